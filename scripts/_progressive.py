"""The progressive search: its options, with the original's names, and what they mean here."""

from _cli import logger
from _options import BooleanOption as Bool
from _options import RepositoryPath, add_data_options, add_model_options, add_run_options, at_least, positive
from _proqha import ALIASES, NO_EFFECT, add_depth_option, add_historic_options, fraction, say_unused, start_from_file

QUANTIZERS = {'weights': 'dorefa', 'activations': 'pact', 'alpha': 10.0, 'end_alpha': 10.0, 'gradient': 'ste',
              'rescale': True, 'branch_out': True}
K_BITS, LOWEST, HIGHEST = 8, 2, 8
# Of the original's options those that mean nothing here, with values it took.
UNUSED = {**NO_EFFECT, 'archtype': 'float networks are trained by pretrain.py', 'train_epochs': 'it belongs to '
          'pretrain.py and qat_train.py', 'momentum': 'Adam has none', 'weight_decay': 'the search has none'}


def add_progressive_options(parser):
    """Adds all options of the script."""
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
    group.add_argument('--clip', action=Bool, default=True, help='has no effect: the gradient is always clipped at '
                       '--grad_clip')
    parser.translate = lambda args, complete: [*start_from_file(args), *(say_unused(args, UNUSED) if complete else [])]
    parser.set_defaults(dataset='cifar10', test_batch=100)


def add_search_options(parser):
    """Adds the options of the choice of bits."""
    group = parser.add_argument_group('search')
    group.add_argument('--step', type=at_least(1), default=20, help='steps: choices of bits, each with fine-tuning')
    group.add_argument('--lam', type=at_least(1), default=100, help='candidates per step')
    group.add_argument('--ratio', type=fraction, default=0.5, help='fraction of all quantizers, of weights and '
                       'activations alike, that a candidate lowers')
    group.add_argument('--interval', type=int, choices=[1, 2, 4], default=1, help='by how many bits, never below 2')
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
    """Adds the options of the training in each step."""
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


def progressive_settings(args, start):
    """Returns what rebuilds the network with its quantizers; `start` is the checkpoint of --weights, or None."""
    theirs = start.get('qat', {}).get('normalize') if isinstance(start, dict) else None
    return {'arch': args.arch, 'network': {}, 'normalize': args.normalize or theirs, 'quantizers': dict(QUANTIZERS),
            'parts': True, 'ends': 'called'}


def first_bits(args, parts, start):
    """Returns the bits that the search starts from, a list in the order of `PartQuantizers`.

    Raises:
        ValueError: bits below 2 or above 8.
    """
    import numpy as np

    from lib.runtime.seeds import derived_seed
    from lib.search.progressive import draw
    theirs = isinstance(start, dict) and start.get('qat', {}).get('parts') and start['strategy']
    if theirs and args.k_bits is None and args.pre_k_bits is None and len(theirs['layer_wbit']) == len(parts.parts):
        bits, source = parts.joined(**theirs), args.weights
    else:
        k_bits, source = args.k_bits or K_BITS, '--k_bits'
        bits = [args.pre_k_bits or k_bits] * len(parts)
        drawn = draw(np.random.default_rng(derived_seed(args.seed, 'first bits')), len(parts), args.ratio)
        for i in drawn if args.pre_k_bits else range(len(parts)):
            bits[i] = k_bits
    wrong = [value for value in bits if not LOWEST <= value <= HIGHEST]
    if wrong:
        raise ValueError(f'{source}: the search starts from {wrong[0]} bits, expected {LOWEST} to {HIGHEST}'
                         + ('' if source == '--k_bits' else '; give --k_bits'))
    return bits


def check_target(args, parts, bits):
    """Refuses a --cost that the search cannot reach, and a --ratio that draws nothing."""
    from lib.search.progressive import num_drawn
    num_drawn(len(parts), args.ratio)
    lowest = parts.cost([LOWEST] * len(parts), odd_positions=args.odd_positions)
    if args.cost and args.cost < lowest:
        raise ValueError(f'--cost {args.cost:g} cannot be reached: {LOWEST} bits everywhere cost {lowest:.4g}')
    if args.cost and parts.cost(bits, odd_positions=args.odd_positions) <= args.cost:
        logger.warning('--cost %g is what the network to start from costs already: there is nothing to search',
                       args.cost)
