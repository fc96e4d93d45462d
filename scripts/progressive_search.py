"""Searches mixed precision progressively (ProQHA): lowers bits step by step and fine-tunes after each choice.

In each step many random candidates lower a part of all quantizers, of weights and of activations; the one that disturbs
the network least is kept and trained. Every step leaves a checkpoint and a row of a table: pick the one with the cost
you want, or give the --cost at which to stop. Starts from a network that was trained at uniform bits (qat_train.py
--k_bits 8), or from float weights.
"""

import argparse
from pathlib import Path

from _cli import folder_hint, logger, make_parser, naming, pick, prefixed, run, run_of, settings_of
from _option_types import BooleanOption as Bool
from _option_types import RepositoryPath, at_least, fraction, positive
from _options import add_data_options, add_model_options, add_run_options
from _proqha import ALIASES, NO_EFFECT, NamedNetwork, Search, add_depth_option, add_historic_options
from _search import add_bit_options

GROWING = ('step', 'cost')  # what a resumed search may change
QUANTIZERS = {'weights': 'dorefa', 'activations': 'pact', 'alpha': 10.0, 'end_alpha': 10.0, 'gradient': 'ste',
              'rescale': True, 'branch_out': True}
K_BITS, LOWEST, HIGHEST = 8, 2, 8
# Of the original's options those that mean nothing here, with values it took.
UNUSED = {**NO_EFFECT, 'archtype': 'float networks are trained by pretrain.py', 'train_epochs': 'it belongs to '
          'pretrain.py and qat_train.py', 'momentum': 'Adam has none', 'weight_decay': 'the search has none'}


def make_progressive_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    group = add_model_options(parser, arch='resnet')
    add_depth_option(group)
    add_data_options(parser, batch=128, workers=8)
    add_search_options(parser)
    add_fine_tuning_options(parser)
    group = parser.add_argument_group('output')
    group.add_argument('--output', '--job_dir', dest='output', default=RepositoryPath('save'), help='folder that holds '
                       'the folders of searches')
    group.add_argument('--suffix', '--mission', dest='suffix', help='appended to the name of the folder, '
                       '<arch>_<dataset>_progressive[_<suffix>]')
    group.add_argument('--resume', metavar='RUN', help='folder of a search to continue, with its own settings; a '
                       'checkpoint to start another search from is taken as --weights')
    group.add_argument('--test_only', action=Bool, help='only evaluate the network to start from')
    add_run_options(parser)
    group = parser.add_argument_group('for command lines of the original')
    add_historic_options(group, ALIASES, UNUSED)
    group.add_argument('--clip', action=Bool, default=True, help=argparse.SUPPRESS)  # it always is, at --grad_clip
    parser.no_effect, parser.translation = UNUSED, Search
    parser.set_defaults(dataset='cifar10', test_batch=100)
    return parser


def add_search_options(parser):
    """Add the options of the choice of bits."""
    group = parser.add_argument_group('search')
    group.add_argument('--step', type=at_least(1), default=20, help='steps: choices of bits, each with fine-tuning')
    group.add_argument('--lam', type=at_least(1), default=100, help='candidates per step')
    group.add_argument('--ratio', type=fraction, default=0.5, help='fraction of all quantizers, of weights and '
                       'activations alike, that a candidate lowers')
    group.add_argument('--interval', type=int, choices=[1, 2, 4], default=1, help='by how many bits, never below 2')
    add_bit_options(group, '2 to 8')
    group.add_argument('--info', choices=['hession', 'acc'], default='hession', help='how candidates are judged: by '
                       "the original's score of one gradient (smallest), or by accuracy on held-out images (largest)")
    group.add_argument('--cost', type=positive, metavar='TARGET', help='stop after the step whose cost is at most this '
                       '(default: all steps)')
    group.add_argument('--odd_positions', action=Bool, help="count the original's cost: every second number of bits is "
                       'taken for that of the weights, which is wrong for postresnet18')
    group.add_argument('--k_bits', type=at_least(1), help='bits to start from (default: those of the checkpoint of '
                       '--weights, else 8)')
    group.add_argument('--pre_k_bits', type=at_least(1), help='another start: a random fraction --ratio of the '
                       'quantizers has --k_bits, the others have these (default: all --k_bits)')
    group.add_argument('--val_size', type=at_least(1), default=1000, help='--info acc: images that are held out of the '
                       'training set to judge candidates on')


def add_fine_tuning_options(parser):
    """Add the options of the training in each step."""
    group = parser.add_argument_group('fine-tuning')
    group.add_argument('--search_epochs', type=at_least(1), default=30, help='epochs after each choice')
    group.add_argument('--lr', '--learning_rate', dest='lr', type=positive, default=1e-3, help='learning rate of Adam, '
                       'in the score too; in each step it falls to 0 by half a cosine')
    group.add_argument('--beta1', type=at_least(0, float), default=0.9, help="Adam's first decay rate")
    group.add_argument('--beta2', type=at_least(0, float), default=0.999, help="Adam's second decay rate")
    group.add_argument('--epsilon', type=positive, default=1e-7, help="Adam's epsilon")
    group.add_argument('--grad_clip', type=positive, default=5.0, help='largest norm of the gradient')
    group.add_argument('--eval_freq', type=at_least(1), default=1, help='evaluate after every so many epochs, and '
                       'after the last one of a step')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='mean and standard deviation of the images '
                       "(default: those of the checkpoint of --weights, else the data set's own row)")


def main(args):
    """Lower the bits of a network step by step; only evaluate it with --test_only."""
    from _costs import coverage_of
    from _networks import Network, build_model, probe
    from _resume import Beginning, begin_run, check_done, in_file, inputs_of, read_state
    from _setup import Data, loaders_of, start_device
    from _weights import Start, load_quantized, read_weights, say_own_weights

    from lib.network.conversion import convertible_layers
    from lib.network.records import profile_layers
    from lib.qat.parts import quantize_parts
    from lib.qat.placement import Quantizers, weight_bits
    from lib.record.folder import check_folder
    from lib.runtime.distributed import is_main, on_main
    from lib.search.candidates import able_bits
    from lib.search.log import StepLog, last_step, step_path
    from lib.search.progressive import ProgressiveSearch, StepSettings, first_bits
    from lib.simulator.layer import DEFINED, END_RULES
    from lib.training.loop import Precision

    arch = pick(NamedNetwork, args).registered
    if arch != args.arch:
        logger.info('%s: %s', args.arch, arch)
    run, device = run_of(args, run_path(args), settings=settings_of(args), growing=GROWING), start_device(args.device)
    if not args.test_only:
        on_main(check_folder, run.folder, resume=bool(args.resume), overwrite=args.overwrite)
    path = last_step(run.folder)
    saved = read_state(run, path, ('kbits', 'history', 'step', 'qat'),
                       'no step of a progressive search: it has no bits',
                       'progressive search, or a checkpoint to start from by --weights')
    check_done(run, saved['step'] if saved else 0, args.step, 'steps', 'step')
    network, start = pick(Network, args, arch=arch), pick(Start, args, pretrained=False)
    checkpoint, source = (saved, path) if saved else read_weights(start, network)
    qat = saved['qat'] if saved else {
        'arch': arch, 'network': {}, 'normalize': args.normalize or of_quantized(checkpoint).get('normalize'),
        'quantizers': dict(QUANTIZERS), 'parts': True, 'ends': 'flow'}

    # data
    data, held_out = pick(Data, args, normalize=qat['normalize']), None
    *loaders, classes = loaders_of(data, network, device)
    if args.info == 'acc':
        size = max(loaders[0].num_images - args.val_size, 1)
        loaders[0], held_out, _ = loaders_of(data, network, device, train_size=size, val_size=args.val_size)
    shape = loaders[0].input_shape

    # network and quantizers
    model = build_model(network, classes, shape, device, (loaders[0], held_out or loaders[1]))
    records, names = profile_layers(model, shape), set(model.state_dict())
    layer_names = list(convertible_layers(model, records))
    with in_file(path if saved else None):
        parts = quantize_parts(model, K_BITS, K_BITS, Quantizers.from_dict(qat['quantizers']), probe(model, shape),
                               arch, rule=END_RULES.get(qat.get('ends'), DEFINED))
        if saved and len(saved['kbits']) != len(parts):
            raise ValueError(f'kbits is for {len(saved["kbits"])} quantizers, this network has {len(parts)}')
        if saved:
            start.load(model, saved, source)
    if checkpoint is None:
        say_own_weights(network, 'the network starts from random weights: give a trained one by --weights')
    elif not saved:
        load_quantized(model, checkpoint, source, start, qat, parts.lists(parts.bits), names)
    with naming('candidates', 'pin'):
        able = able_bits(parts, args.candidates or (), args.pin or ())
    if saved:
        parts.bits = saved['kbits']
    else:
        k_bits = args.k_bits or K_BITS
        drawn = first_bits(len(parts), k_bits, args.pre_k_bits or k_bits, args.ratio, args.seed)
        parts.bits = starting_bits(args, parts, checkpoint, drawn, able)
    about = {'arch': arch, 'dataset': args.dataset, 'input': list(shape), 'classes': args.num_classes or classes,
             **coverage_of(model, shape)}

    # search
    precision = Precision(device, args.half, args.channels_last)
    search = ProgressiveSearch(model, parts, loaders, pick(StepSettings, args), able=able, qat=qat, held_out=held_out,
                               precision=precision)
    accuracy = search.accuracy() if args.test_only or not saved else None
    if args.test_only:
        logger.info('%s on %s: top-1 %.2f %% at cost %.4f', arch, args.dataset, accuracy, search.cost)
        return
    with prefixed('--'):
        search.check_target()
    inputs = {'counts': [loader.num_images for loader in (*loaders, *([held_out] if held_out else []))]}
    identity = on_main(lambda: begin_run(run, Beginning(inputs_of(run, ('train', 'val'), **inputs),
                                                        unread=('weights',) if saved else ())))
    begun = saved['start'] if saved else {'cost': search.cost, 'test_acc': accuracy}
    bits, full = weight_bits(model)
    kinds = {record.name: record.type for record in records}
    log = None
    if is_main():
        logger.info('%s on %s: %d quantizers in %d layers with %d weights, cost %.4f, with float layers %.4f of the '
                    'float size; top-1 %.2f %%', arch, device, len(parts), len(parts.parts), sum(parts.num_weights),
                    search.cost, bits / full, begun['test_acc'])
        log = StepLog(run.folder, parts, kinds=[kinds[part.layer] for part in parts.parts], layer_names=layer_names,
                      about=about, start=begun, history=saved['history'] if saved else (),
                      mark={'run': identity} if identity else {})
    search.run(log, saved['step'] if saved else 0)

    # result
    if not log:
        return
    bits, full = weight_bits(model)
    try:
        last = log.finish(search.bits, bits / full)
    except FloatingPointError as error:
        raise FloatingPointError(f'{error}; start another search with an --lr below {args.lr:g}') from error
    advice = f'; evaluate any step by qat_train.py --arch {arch} --eval --resume ' \
             f'{step_path(run.folder, last["step"])}' if log.history else ''
    logger.info('%d steps: top-1 %.2f %% at cost %.4f, with float layers %.4f of the float size%s', last['step'],
                last['test_acc'], last['cost'], bits / full, advice)


def run_path(args):
    """Return the folder of the search."""
    arch, suffix = pick(NamedNetwork, args).registered, f'_{args.suffix}' if args.suffix else ''
    return Path(args.resume or Path(args.output) / f'{arch}_{args.dataset}_progressive{suffix}')


def of_quantized(checkpoint):
    """Return what rebuilds the quantizers of the checkpoint of --weights, {} where it has none."""
    return checkpoint.get('qat', {}) if isinstance(checkpoint, dict) else {}


def starting_bits(args, parts, checkpoint, drawn, able):
    """Return the bits that the search starts from: those of the checkpoint of --weights, or those of --k_bits.

    Where a quantizer cannot have these it starts at the next fewer ones, a pinned one at its own.

    Raises:
        ValueError: bits below 2 or above 8, or below all that a quantizer may have.
    """
    theirs = of_quantized(checkpoint).get('parts') and checkpoint['strategy']
    if theirs and args.k_bits is None and args.pre_k_bits is None and len(theirs['layer_wbit']) == len(parts.parts):
        bits, source = parts.joined(**theirs), args.weights
    else:
        bits, source = drawn, '--k_bits'
    wrong = [value for value in bits if not LOWEST <= value <= HIGHEST]
    if wrong:
        raise ValueError(f'{source}: the search starts from {wrong[0]} bits, expected {LOWEST} to {HIGHEST}'
                         + ('' if source == '--k_bits' else '; give --k_bits'))
    most = [max((bit for bit in each if bit <= value or len(each) == 1), default=None)
            for value, each in zip(bits, able, strict=True)]
    if None in most:
        number = most.index(None)
        raise ValueError(f'{source}: {parts.labels[number]} starts from {bits[number]} bits, --candidates has '
                         f'{",".join(map(str, able[number]))}: start from more by --k_bits')
    return most


if __name__ == '__main__':
    run(main, make_progressive_parser(), lambda args: folder_hint(run_path(args)))
