"""Fine-tunes and evaluates a network under a strategy: paste the strategy that rl_quantize.py printed below."""

from _common import logger, make_parser, run
from _costs import cost_name, find_cost, find_layers
from _options import BooleanOption as Bool
from _options import (
    add_data_options,
    add_model_options,
    add_quantization_options,
    add_run_options,
    add_training_options,
    at_least,
)
from _setup import build_model, is_linear, network_name, start_device
from _training import (
    about_run,
    calibration_images,
    read_images,
    read_resumed,
    read_start,
    resume_hint,
    start_value,
    train,
)
from _weights import find, prepare, say_own_weights

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
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='resnet50')
    add_data_options(parser, batch=256)
    group = add_quantization_options(parser)
    group.add_argument('--strategy', help='name of an entry of STRATEGIES, path of a strategy.json or strategy.txt, '
                       'a list, or uniform:K (default: the entry of STRATEGIES named like the network)')
    group.add_argument('--free_high_bit', action=Bool, default=True, help='K-means: layers above 6 bits stay float '
                       'until the last epoch')
    group.add_argument('--kmeans_iter', type=at_least(1), default=50, help='K-means: Lloyd iterations')
    add_training_options(parser, lr=0.1, weight_decay=1e-5)
    add_run_options(parser)
    return parser


def main(args):
    """Quantizes, fine-tunes and evaluates; only evaluates with --evaluate."""
    device, saved, linear = start_device(args), read_resumed(args), is_linear(args)
    if args.fold_bn and not linear:
        raise ValueError('--fold_bn belongs to the linear flow: leave it out in the K-means flow')
    start, source = read_start(args, saved)
    *loaders, classes = read_images(args, device, start)
    shape = loaders[0].input_shape
    model = build_model(args, classes, shape, device, loaders)
    if start is None:
        say_own_weights(args, 'neither --weights nor --pretrained is given: the weights to be quantized are random')
    prepare(args, model, shape, start, source, linear)
    is_pruned = not linear and bool(args.is_pruned or start_value(start, 'is_pruned', False))
    layers = find_layers(args, model, shape, is_pruned)
    cost = find_cost(args, cost_name(args), layers)
    quantize = quantize_linear if linear else quantize_kmeans
    quantization = quantize(args, model, start, source, loaders, layers.inventory.ends)
    strategy = quantization.strategy
    about = about_run(args, loaders, classes, ratio=cost.ratio(strategy), cost=cost.cost(strategy),
                      cost_name=cost.name, cost_unit=cost.unit, layers=layers.names, coverage=layers.coverage,
                      folded=args.fold_bn or start_value(start, 'folded') is True)
    logger.info('%s, %s quantization: %s is %.4f of %.6g %s', args.arch, quantization.kind, cost.name, about['ratio'],
                cost.reference, cost.unit)
    train(args, model, loaders, saved, device, quantization=quantization, about=about, costs=[cost], start=start)


def quantize_kmeans(args, model, start, source, _loaders, _ends):
    """Returns the K-means `Quantization` of the network.

    Weights that came clustered keep their codebooks: those saved with them, or those recognised in them.
    """
    from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers

    is_pruned = args.is_pruned or start_value(start, 'is_pruned', False)
    names = list(quantizable_layers(model))
    books = find_codebooks(args, model, start, source, is_pruned)
    found = [books[name].bits for name in names] if len(books) == len(names) else None
    strategy = choose_strategy(args, start, source, names, linear=False, found=found)
    kept = {name: books[name] for name, bits in zip(names, strategy, strict=True)
            if name in books and books[name].bits <= bits and (args.resume or not books[name].is_constant)}
    if books and len(kept) < len(books):
        logger.info('%d of %d layers are clustered anew: they have more centroids than the strategy allows',
                    len(books) - len(kept), len(books))
    free_high_bit = args.free_high_bit and not args.evaluate  # what is evaluated is quantized as it is priced
    return KMeansQuantization(model, strategy, is_pruned=is_pruned, free_high_bit=free_high_bit, codebooks=kept,
                              max_iter=args.kmeans_iter, seed=args.seed)


def find_codebooks(args, model, start, source, is_pruned):
    """Returns {layer name: `Codebook`} of the weights to begin with: saved with them or recognised in them; {}: none.

    Raises:
        ValueError: a checkpoint to resume has neither codebooks nor clustered weights, and no strategy is given.
    """
    from lib.quantize.kmeans import Codebook
    from lib.utils.quantize_utils import quantizable_layers, recognise_codebooks

    saved = start_value(start, 'codebooks')
    if saved and start_value(start, 'is_pruned', False) == is_pruned:
        books = {name: Codebook.from_state_dict(state) for name, state in saved.items()}
        layers = quantizable_layers(model)  # whose classifier may have been reset
        return {name: book for name, book in books.items()
                if name in layers and book.labels.shape == layers[name].weight.shape}
    if start is None or saved or start_value(start, 'strategy'):
        return {}
    books = recognise_codebooks(model, is_pruned)
    if books:
        logger.info('%s: the weights take few values, which are taken as the centroids', source)
    elif args.resume and not args.strategy:
        raise ValueError(f'{source} has no strategy, and its weights take more than 256 values in a layer: this is no '
                         'checkpoint of the K-means flow; give --strategy and --weights to quantize it')
    return books or {}


def quantize_linear(args, model, start, source, loaders, ends):
    """Returns the linear `Quantization` of the network, calibrated unless the weights came with ranges for its bits."""
    from lib.utils.quantize_utils import LinearQuantization, has_ranges, quantized_layers

    strategy = choose_strategy(args, start, source, list(quantized_layers(model)), linear=True, ends=ends)
    images, theirs = None, start_value(start, 'strategy')
    known = start is not None and has_ranges(model, find(args, model, start, source).state_dict)
    if not known or (theirs and theirs != strategy):
        images = calibration_images(args, loaders, next(model.parameters()).device)
    return LinearQuantization(model, strategy, images, method=args.calibrate, cap=args.activation_cap)


def choose_strategy(args, start, source, layer_names, *, linear, found=None, ends=(0, -1)):
    """Returns the checked strategy.

    It is that of the checkpoint to resume; else that of --strategy, of the weights' checkpoint, that of the centroids
    `found` in the weights, or the network's in STRATEGIES.
    """
    from lib.record.strategy import check_strategy, find_strategy

    default, saved = ('q' if linear else '') + network_name(args), start_value(start, 'strategy')
    if not args.resume and start_value(start, 'quantization') != ('linear' if linear else 'kmeans'):
        saved = None  # of the other flow
    if args.resume and saved and 'strategy' in args.changed:
        raise ValueError(f'{args.resume} has a strategy of its own: leave --strategy out, or start a new run with '
                         '--weights')
    kind = {'linear': linear, 'network': args.arch}
    if saved and (args.resume or args.strategy is None):
        return check_strategy(saved, layer_names, source=source, names_in_file=start_value(start, 'layers'), **kind)
    if found and args.strategy is None:
        return check_strategy(found, layer_names, source=source, **kind)
    if args.strategy is None and default not in STRATEGIES:
        raise ValueError(f'no strategy for {args.arch}: paste the list that rl_quantize.py printed into STRATEGIES of '
                         f'scripts/finetune.py as {default!r}, or give --strategy with its strategy.json')
    return find_strategy(default if args.strategy is None else args.strategy, layer_names, published=STRATEGIES,
                         ends=ends, **kind)


if __name__ == '__main__':
    run(main, make_finetune_parser(), resume_hint)
