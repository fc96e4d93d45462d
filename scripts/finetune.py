"""Fine-tunes and evaluates a network under a strategy: paste the strategy that rl_quantize.py printed below."""

from _common import BooleanOption as Bool
from _common import (
    add_data_options,
    add_model_options,
    add_quantization_options,
    add_run_options,
    add_training_options,
    at_least,
    logger,
    make_parser,
    run,
)
from _costs import cost_name, find_cost, layers_and_sizes
from _setup import build_model, find_device, float_name, is_linear, loaders_of
from _training import load_start, read_resumed, resume_hint, train

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
    saved = read_resumed(args)
    device = find_device(args.device)
    *loaders, classes = loaders_of(args, device)
    model = build_model(args, classes, device, is_linear(args))
    if not (saved or args.weights or args.pretrained):
        logger.warning('neither --weights nor --pretrained is given: the weights to be quantized are random')
    load_start(args, model, saved)
    quantize = quantize_linear if is_linear(args) else quantize_kmeans
    quantization = quantize(args, model, saved, loaders[0])
    cost = price(args, model, quantization)
    about = {'arch': args.arch, 'dataset': args.dataset, 'ratio': cost.ratio(quantization.strategy),
             'cost': cost.cost(quantization.strategy), 'cost_name': cost.name, 'cost_unit': cost.unit,
             'layers': list(cost.layer_names)}
    logger.info('%s, %s quantization: %s is %.4f of %.6g %s', args.arch, quantization.kind, cost.name, about['ratio'],
                cost.reference, cost.unit)
    train(args, model, loaders, saved, device, quantization=quantization, about=about)


def quantize_kmeans(args, model, saved, train_loader):
    """Returns the K-means `Quantization` of the network."""
    from lib.quantize.kmeans import Codebook
    from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers, recognise_codebooks

    layers = quantizable_layers(model)
    is_pruned = saved.get('is_pruned', args.is_pruned) if saved else args.is_pruned
    codebooks, strategy = {}, None
    if saved and 'codebooks' in saved:
        codebooks = {name: Codebook.from_state_dict(state) for name, state in saved['codebooks'].items()}
    elif saved and not args.strategy:
        codebooks = recognise_codebooks(model, is_pruned)
        strategy = [max((len(book.centroids) - 1).bit_length(), 1) for book in codebooks.values()]
    strategy = strategy or choose_strategy(args, saved, list(layers), linear=False)
    free_high_bit = args.free_high_bit and not args.evaluate  # what is evaluated is quantized as it is priced
    return KMeansQuantization(model, strategy, is_pruned=is_pruned, free_high_bit=free_high_bit,
                              codebooks=codebooks, max_iter=args.kmeans_iter, seed=args.seed)


def quantize_linear(args, model, saved, train_loader):
    """Returns the linear `Quantization` of the network."""
    from lib.utils.quantize_utils import LinearQuantization, quantized_layers

    names = list(quantized_layers(model))
    strategy = choose_strategy(args, saved, names, linear=True)
    device = next(model.parameters()).device
    images = None if saved else next(iter(train_loader))[0].to(device)
    return LinearQuantization(model, strategy, images, method=args.calibrate, cap=args.activation_cap)


def price(args, model, quantization):
    """Returns the `CostTable` of --cost for the quantized layers."""
    records, sizes = layers_and_sizes(args, model, getattr(quantization, 'is_pruned', False))
    return find_cost(args, cost_name(args), records, sizes)


def choose_strategy(args, saved, layer_names, *, linear):
    """Returns the checked strategy: the checkpoint's own, that of --strategy, or the network's in STRATEGIES."""
    from lib.utils.strategy import check_strategy, read_strategy, uniform_strategy

    default = ('q' if linear else '') + float_name(args.arch)
    names = None
    if saved and saved.get('strategy'):
        if 'strategy' in args.changed:
            raise ValueError(f'{args.resume} has a strategy of its own: leave --strategy out, or start a new run with '
                             '--weights')
        strategy, names, source = saved['strategy'], saved.get('layers'), args.resume
    elif args.strategy in STRATEGIES or (not args.strategy and default in STRATEGIES):
        source = f'STRATEGIES[{args.strategy or default!r}] in finetune.py'
        strategy = STRATEGIES[args.strategy or default]
    elif args.strategy:
        strategy, names, source = read_strategy(args.strategy)
    else:
        raise ValueError(f'no strategy for {args.arch}: paste the list that rl_quantize.py printed into STRATEGIES of '
                         f'scripts/finetune.py as {default!r}, or give --strategy with its strategy.json')
    if isinstance(strategy, int) and source.startswith('uniform:'):
        strategy = uniform_strategy(len(layer_names), strategy, linear=linear)
    return check_strategy(strategy, layer_names, linear=linear, source=source, names_in_file=names, network=args.arch)


if __name__ == '__main__':
    run(main, make_finetune_parser(), resume_hint)
