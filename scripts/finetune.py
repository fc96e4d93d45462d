"""Fine-tunes and evaluates a network under a strategy: paste the strategy that rl_quantize.py printed below."""

import copy
from pathlib import Path

from _cli import logger, make_parser, naming, pick, run, training_hint, training_run
from _option_types import BooleanOption as Bool
from _option_types import at_least
from _options import (
    add_data_options,
    add_model_options,
    add_quantization_options,
    add_run_options,
    add_teacher_options,
    add_training_options,
    check_kmeans_weights,
)

from lib.record.strategy import check_strategy, find_strategy

# One entry per architecture: weight bits for K-means, [weight bits, activation bits] for linear quantization (q...).
STRATEGIES = {
    # HAQ's README: K-means, preserve ratio 0.1
    'resnet50': [
        6, 6, 5, 5, 5, 5, 4, 5, 5, 4, 5, 5, 5, 5, 5, 5, 3, 5, 4, 3, 5, 4, 3, 4, 4, 4, 2, 5, 4, 3, 3, 5, 3, 2, 5,
        3, 2, 4, 3, 2, 5, 3, 2, 5, 3, 4, 2, 5, 2, 3, 4, 2, 3, 4,
    ],
    # The other published list for the same budget; take it with --strategy resnet50_finetune
    'resnet50_finetune': [
        6, 6, 6, 6, 5, 5, 6, 5, 5, 6, 5, 5, 6, 5, 5, 5, 5, 5, 4, 5, 4, 4, 5, 4, 4, 4, 3, 4, 4, 4, 3, 4, 4, 3, 4,
        4, 3, 4, 4, 3, 4, 4, 3, 4, 3, 3, 2, 3, 2, 3, 3, 2, 3, 4,
    ],
    # HAQ's README: linear, 0.6 of the latency at 8/8 bits; -1 leaves the image as it is
    'qmobilenetv2': [
        [8, -1], [7, 7], [5, 6], [4, 6], [5, 6], [5, 7], [5, 6], [7, 4], [4, 6], [4, 6], [7, 7], [5, 6], [4, 6],
        [7, 3], [5, 7], [4, 7], [7, 3], [5, 7], [4, 7], [7, 7], [4, 7], [4, 7], [6, 4], [6, 7], [4, 7], [7, 4],
        [6, 7], [5, 7], [7, 4], [6, 7], [5, 7], [7, 4], [6, 7], [6, 7], [6, 4], [5, 7], [6, 7], [6, 4], [5, 7],
        [6, 7], [7, 7], [4, 7], [7, 7], [7, 7], [4, 7], [7, 7], [7, 7], [4, 7], [7, 7], [7, 7], [4, 7], [7, 7],
        [8, 8],
    ],
}


def make_finetune_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='resnet50')
    add_data_options(parser, batch=256)
    group = add_quantization_options(parser)
    group.add_argument('--strategy', help='name of an entry of STRATEGIES, path of a strategy.json or strategy.txt, '
                       'a list, or uniform:K (default: the entry of STRATEGIES named like the network)')
    group.add_argument('--free_high_bit', action=Bool, default=True, help='K-means: layers above 6 bits stay float '
                       'until the last epoch')
    group.add_argument('--kmeans_iter', type=at_least(1), default=50, help='K-means: Lloyd iterations')
    add_teacher_options(add_training_options(parser, lr=0.1, weight_decay=1e-5))
    add_run_options(parser)
    return parser


def configure(args, _parser):
    """Return the defaults that a checkpoint to resume gives which has no args.json of its run beside it."""
    from _checkpoints import checkpoint_settings  # it imports torch

    path = Path(args.resume or '').absolute()
    return checkpoint_settings(path) if path.is_file() else {}


def main(args):
    """Quantize, fine-tune and evaluate; only evaluate with --evaluate."""
    from _costs import Pricing, find_cost, find_layers
    from _networks import Network, build_model
    from _setup import Data, start_device
    from _training import (
        Course,
        Teaching,
        about_labels,
        about_run,
        batches_to_estimate,
        calibration_images,
        read_images,
        read_resumed,
        start_value,
        training_loader,
        with_float_labels,
    )
    from _weights import Start, prepare, published_file, read_weights, say_own_weights

    from lib.network.codebooks import find_codebooks
    from lib.network.gradients import fisher_diagonal
    from lib.quantize.grids import Grids
    from lib.training.compensation import Rounding, round_codebooks, round_linear
    from lib.training.loop import Precision
    from lib.training.settings import TrainingSettings
    from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization, has_ranges, quantized_layers

    run, device = training_run(args), start_device(args.device)
    network, data, start = pick(Network, args), pick(Data, args), pick(Start, args)
    saved, linear = read_resumed(run, evaluate_only=args.evaluate), args.linear_quantization or network.is_twin
    if args.fold_bn and not linear:
        raise ValueError('--fold_bn belongs to the linear flow: leave it out in the K-means flow')
    check_kmeans_weights(args.kmeans_weights, linear, args.rounding, args.bias_correction)
    checkpoint, source = (saved, args.resume) if saved else read_weights(start, network)
    estimate = batches_to_estimate(run, args.bn_batches, checkpoint) if args.evaluate else 0
    with naming('keep_bn', 'bn_batches'):
        rounding = pick(Rounding, args)

    # data
    teaching, trains = pick(Teaching, args), not args.evaluate and args.epochs > 0
    *loaders, classes = read_images(data, network, device, training=not args.evaluate or estimate,
                                    needs_labels=reader_of_labels(args, trains, teaching))
    loaders = with_float_labels(loaders, network, start, classes, device, trains)
    shape = loaders[0].input_shape

    # network
    model = build_model(network, classes, shape, device, loaders)
    if checkpoint is None:
        say_own_weights(network, 'neither --weights nor --pretrained is given: the weights to be quantized are random')
    prepare(model, shape, start, checkpoint, source, linear=linear, fold_bn=args.fold_bn, sync_bn=args.sync_bn,
            bn_batches=args.bn_batches,
            grids={'activation_grid': args.activation_grid, 'weight_scales': args.weight_scales})
    is_pruned = not linear and bool(args.is_pruned or start_value(checkpoint, 'is_pruned', False))

    # strategy
    pricing = pick(Pricing, args, network=network, linear=linear, folder=args.checkpoint)
    layers = find_layers(pricing, model, shape, is_pruned=is_pruned)
    cost = find_cost(pricing, pricing.cost_name, layers)
    books = {} if linear or checkpoint is None else find_codebooks(model, checkpoint, is_pruned, source)
    if args.resume and not (linear or books or args.strategy or start_value(checkpoint, 'strategy')):
        raise ValueError(f'{source} has no strategy, and its weights take more than 256 values in a layer: this is no '
                         'checkpoint of the K-means flow; give --strategy and --weights to quantize it')
    found = [books[name].bits for name in layers.names] if len(books) == len(layers.names) else None
    strategy = choose_strategy(args, checkpoint, source, network.float_name, layers, linear, found)

    # quantization
    precision = Precision(device, args.half, args.channels_last)
    if linear:
        known = checkpoint is not None and has_ranges(model, start.find(model, checkpoint, source).state_dict)
        known = known and start_value(checkpoint, 'strategy', strategy) in (None, strategy) and Grids.of(
            quantized_layers(model).values()) == Grids.from_dict(checkpoint)
        images = None if known else calibration_images(data, network, loaders, device)
        rounds = rounding.needs_images and not known
        float_model = copy.deepcopy(model) if rounds else None
        quantization = LinearQuantization(model, strategy, images, method=args.calibrate, cap=args.activation_cap)
        if rounds:
            loader = training_loader(data, network, loaders, device)
            round_linear(model, rounding.batches(loader, device, precision), rounding, float_model=float_model,
                         method=args.calibrate)
    else:  # weights that came clustered keep their codebooks; what is evaluated is quantized as it is priced
        kept = {name: books[name] for name, bits in zip(layers.names, strategy, strict=True)
                if name in books and books[name].bits <= bits and (args.resume or not books[name].is_constant)}
        if len(kept) < len(books):
            logger.info('%d of %d layers are clustered anew: they have more centroids than the strategy allows',
                        len(books) - len(kept), len(books))
        anew = {name: bits for name, bits in zip(layers.names, strategy, strict=True) if name not in kept}
        rounds = rounding.needs_images and bool(anew)
        if rounds:
            loader = training_loader(data, network, loaders, device)
            kept |= round_codebooks(model, anew, rounding.batches(loader, device, precision), rounding,
                                    is_pruned=is_pruned, max_iter=args.kmeans_iter)
        importance = None
        if args.kmeans_weights == 'fisher' and anew:
            importance = fisher_diagonal(model, {name: model.get_submodule(name) for name in anew},
                                         training_loader(data, network, loaders, device, '--kmeans_weights fisher'),
                                         args.calibration_images)
        quantization = KMeansQuantization(model, strategy, is_pruned=is_pruned, codebooks=kept,
                                          free_high_bit=args.free_high_bit and not args.evaluate and args.epochs > 0,
                                          max_iter=args.kmeans_iter, importance=importance)

    if rounds:
        quantization.synchronise()
        rounding.estimate_batch_norm(model, loader, device, precision)

    # training
    about = about_run(network, data, shape, classes, ratio=cost.ratio(strategy), cost=cost.cost(strategy),
                      cost_name=cost.name, cost_unit=cost.unit, layers=layers.names, coverage=layers.coverage,
                      folded=args.fold_bn or start_value(checkpoint, 'folded') is True, **about_labels(loaders[-1]))
    logger.info('%s, %s quantization: %s is %.4f of %.6g %s', args.arch, quantization.kind, cost.name, about['ratio'],
                cost.reference, cost.unit)
    settings = pick(TrainingSettings, args, grad_clip=args.clip_norm)
    course = Course(run, None if args.evaluate else settings, device,
                    precision, about, saved, estimate, costs=(cost,),
                    start_epoch=args.start_epoch, published=published_file(network) if args.pretrained else None,
                    distillation=None if args.evaluate else teaching.begin(network, start, classes, shape, device))
    course.train(model, loaders, quantization)


def reader_of_labels(args, trains, teaching):
    """Return what in this run reads the labels of images, or None: the float network stands in where it can."""
    if trains and not teaching.needs_no_labels:
        return 'training (--epochs 0, and --distill float with --distill_weight 1, do without)'
    return '--kmeans_weights fisher' if args.kmeans_weights == 'fisher' and not args.evaluate else None


def choose_strategy(args, checkpoint, source, name, layers, linear, found=None):
    """Return the checked strategy.

    It is that of the checkpoint to resume; else that of --strategy, of the weights' checkpoint, that of the centroids
    `found` in the weights, or the network's in STRATEGIES.
    """
    theirs, default = checkpoint if isinstance(checkpoint, dict) else {}, ('q' if linear else '') + name
    saved = theirs.get('strategy')
    if not args.resume and theirs.get('quantization') != ('linear' if linear else 'kmeans'):
        saved = None  # of the other flow
    if args.resume and saved and 'strategy' in args.changed:
        raise ValueError(f'{args.resume} has a strategy of its own: leave --strategy out, or start a new run with '
                         '--weights')
    kind = {'linear': linear, 'network': args.arch}
    if saved and (args.resume or args.strategy is None):
        return check_strategy(saved, layers.names, source=source, names_in_file=theirs.get('layers'), **kind)
    if found and args.strategy is None:
        return check_strategy(found, layers.names, source=source, **kind)
    if args.strategy is None and default not in STRATEGIES:
        raise ValueError(f'no strategy for {args.arch}: paste the list that rl_quantize.py printed into STRATEGIES of '
                         f'scripts/finetune.py as {default!r}, or give --strategy with its strategy.json')
    return find_strategy(default if args.strategy is None else args.strategy, layers.names, published=STRATEGIES,
                         ends=layers.inventory.ends, **kind)


if __name__ == '__main__':
    run(main, make_finetune_parser(), training_hint, configure=configure)
