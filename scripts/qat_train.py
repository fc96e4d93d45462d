"""Trains with DoReFa, PACT or LSQ quantizers in place: float, quantized from scratch, or from a float checkpoint."""

import argparse

from _cli import ROOT, logger, make_parser, naming, pick, prefixed, run, training_hint, training_run
from _option_types import BooleanOption as Bool
from _option_types import RepositoryPath, at_least, checked, positive
from _options import (
    add_data_options,
    add_grid_options,
    add_model_options,
    add_rounding_options,
    add_run_options,
    add_teacher_options,
    add_training_options,
)
from _proqha import CONFIG as PROQHA_CONFIG
from _proqha import PRE_K_BITS, add_baseline_options, norm_of
from finetune import STRATEGIES

from lib.qat.bit_lists import parse_bit_list
from lib.record.strategy import find_strategy, paired

CONFIGS = ROOT / 'run' / 'qat' / 'config_train.py'
# The original's names in a configuration, where the option has another one.
KEYS = {'model': 'arch', 'num_workers': 'workers', 'batch_size': 'train_batch', 'nepochs': 'epochs',
        'lr_schedule': 'lr_type', 'learning_rate_min': 'lr_min', 'pretrain': 'checkpoint', 'eval_only': 'evaluate'}
VALUES = {'lr_type': {'cosine': 'cos', 'exponential': 'exp', 'multistep': 'step3'},
          'arch': {'ToyNet': 'toynet', 'MBv2_cf10': 'mobilenetv2_cifar', 'RN20': 'resnet20_projection'}}
MAX_CHANNELS = 2**16
TRAINED_LR = 0.005  # of SGD, that suits weights which are trained already
NETWORK_OPTIONS = ('strides', 'num_layer_list', 'num_channel_list', 'stem_channel', 'header_channel', 'expansion',
                   'relu_after_add')
BITS = ('layer_wbit', 'layer_abit', 'strategy', 'input_bits')  # of one network
PART_BITS = ('k_bits', 'pre_k_bits', 'ratio')  # of any network
QUANTIZERS = ('weight_quantizer', 'act_quantizer', 'alpha', 'end_alpha', 'pact_gradient', 'rescale', 'branch_out',
              'activation_grid', 'weight_scales', 'lsq_init')
ACTIVATIONS = ['dorefa', 'pact', 'mpact', 'fixed_pact', 'lsq', 'linear']
WEIGHTS = ['dorefa', 'dorefa_symmetric', 'lsq', 'linear']


def bit_list(text):
    """Option type: a list of bits."""
    try:
        return parse_bit_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


bit_list.takes_list = True  # of a configuration; checked with the network, which knows what the entries mean


def add_qat_options(parser):
    """Add the options that only quantization-aware training has."""
    group = parser.add_argument_group('quantization')
    group.add_argument('--config', default='toynet_cfg1_star', metavar='NAME|FILE.py:NAME', help='an EasyDict of '
                       'run/qat/config_train.py or of a file of your own, whose code is run: its settings take the '
                       'place of the defaults below, options on the command line go before both; of another '
                       '--arch only what does not belong to its network counts')
    group.add_argument('--layer_wbit', type=bit_list, metavar='LIST', help='weight bits of each part of the network, '
                       'such as 32,8x10,16,16: 1 to 8, 16, or 32 for float (docs/qat.md has the indexing; default: the '
                       "configuration's)")
    group.add_argument('--layer_abit', type=bit_list, metavar='LIST', help='activation bits of each part (default: the '
                       "configuration's)")
    group.add_argument('--strategy', help='bits layer by layer instead, for any network: path of a strategy.json or '
                       'strategy.txt of a search, a list, a name in STRATEGIES of finetune.py, or uniform:K; weights '
                       'and inputs of its layers (default: the bit lists)')
    group.add_argument('--input_bits', type=int, default=32, help='--strategy with weight bits only: bits of the '
                       'inputs of all layers')
    group.add_argument('--k_bits', type=at_least(1), metavar='K', help='weights and activations of any network at K '
                       'bits, in the layers that ProQHA quantizes, instead of bit lists: what progressive_search.py '
                       'starts from (docs/progressive.md; default: the bit lists)')
    group.add_argument('--weight_quantizer', choices=WEIGHTS, default='dorefa_symmetric', help='quantizer of all '
                       'weights')
    group.add_argument('--act_quantizer', choices=ACTIVATIONS, default='mpact', help='quantizer of all activations')
    group.add_argument('--alpha', type=positive, default=10.0, help='pact, mpact: first clip inside the blocks; '
                       'fixed_pact: their clip')
    group.add_argument('--end_alpha', type=positive, default=6.0, help='the same behind stem, header and pooling')
    group.add_argument('--pact_gradient', choices=['paper', 'ste'], default='paper', help='of a clip inside its range: '
                       '0, or the rounding error as autograd has it')
    group.add_argument('--rescale', action=Bool, default=True, help='dorefa: expand the activations again; without it '
                       'they shrink by 10, as in the original')
    group.add_argument('--branch_out', action=Bool, default=True, help='quantize shortcuts with a convolution before '
                       'the sum')
    add_grid_options(group, 'quantizers lsq and linear: ')
    add_rounding_options(group)
    group.add_argument('--lsq_init', choices=['formula', 'least_squares'], default='formula', help='lsq: where steps '
                       "begin: 2 mean|x| / sqrt(highest code), the paper's, or where the squared error is least")
    group.add_argument('--dampening', type=at_least(0, float), default=0.0, metavar='L', help='lsq weights: factor of '
                       'the squared distances of weights from their levels in the loss, against oscillation; it rises '
                       'as a cosine over the epochs')
    group.add_argument('--bn_batches', type=at_least(0), default=0, metavar='N', help='estimate the BatchNorm '
                       'statistics anew, on N training batches, before the network is evaluated')
    group.add_argument('--clip_decay', type=at_least(0, float), default=2e-4, help='L2 penalty of the learned clips, '
                       'beside the weight decay')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='mean and standard deviation of the images '
                       "(default: the data set's own row)")
    group = parser.add_argument_group('shape of toynet and resnet20_projection')
    for name in ('strides', 'num_layer_list', 'num_channel_list'):
        group.add_argument(f'--{name}', type=at_least(1, maximum=MAX_CHANNELS), nargs='+', help='toynet: one number '
                           "per stage (default: the configuration's)")
    for name in ('stem_channel', 'header_channel', 'expansion'):
        group.add_argument(f'--{name}', type=at_least(1, maximum=MAX_CHANNELS), help='toynet: one number (default: '
                           "the configuration's)")
    group.add_argument('--relu_after_add', action=Bool, default=None, help='resnet20_projection: a ReLU after each '
                       'sum, too (default: False)')


def make_qat_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_qat_options(parser)
    add_model_options(parser, arch='toynet')
    add_data_options(parser, batch=128, workers=4)
    add_teacher_options(add_training_options(parser, lr=0.01, weight_decay=5e-4))
    add_run_options(parser)
    add_baseline_options(parser, 'quant')
    return parser


def configure(args, parser):
    """Return the defaults that --config gives, as {option: value}.

    For another network than the configuration's, these are without its shape, its bits, its folder and what images are
    normalised by, for its weights were made elsewhere.

    Raises:
        ValueError, OSError: an unknown configuration, key or value.
    """
    from lib.runtime.user_code import load_object  # it imports torch
    theirs = args.archtype and args.config == parser.get_default('config')
    args.config = f'{PROQHA_CONFIG}:quant' if theirs else args.config
    config = load_object(args.config, '--config') if ':' in args.config else \
        named_config(args.config, load_object(f'{CONFIGS}:CONFIGS', '--config'))
    if not isinstance(config, dict):
        raise ValueError(f'--config {args.config} is a {type(config).__name__}: expected an EasyDict of settings')
    values = dict(option_of(key, value, parser, args.config) for key, value in config.items())
    if args.model_file or args.arch not in (parser.get_default('arch'), values.get('arch', args.arch)):
        own = (*NETWORK_OPTIONS, *BITS, 'normalize', 'checkpoint')
        values = {name: value for name, value in values.items() if name not in own}
    return {**values, 'config': args.config, 'schedule': None} if theirs else values


def named_config(name, configs):
    """Return a configuration of run/qat/config_train.py, whose are `configs`."""
    if name not in configs:
        raise ValueError(f'--config {name}: expected FILE.py:NAME or one of {", ".join(configs)}')
    return configs[name]


def option_of(key, value, parser, config):
    """Return (option, value) of a configuration's entry, checked as the command line would be."""
    name = KEYS.get(key, key)
    known = {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}
    if name not in known:
        raise ValueError(f'--config {config}: there is no setting {key}; known are '
                         f'{", ".join(sorted(KEYS | {option: None for option in known}))}')
    if isinstance(value, str):
        value = VALUES.get(name, {}).get(value, value)
    try:
        value = checked(known[name], value)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise ValueError(f'--config {config}: {key} is {value!r}: {error}') from error
    return name, RepositoryPath(value) if name == 'checkpoint' else value


def main(args):
    """Build the network, put the quantizers into it and train; only evaluate with --evaluate."""
    from _costs import coverage_of
    from _networks import Network, build_model, probe
    from _resume import in_file
    from _setup import Data, start_device
    from _training import (
        Course,
        Teaching,
        about_run,
        batches_to_estimate,
        calibration_images,
        float_network,
        read_images,
        read_resumed,
        training_loader,
    )
    from _weights import Start, load_quantized, published_file, read_weights

    from lib.network.conversion import quantized_layers
    from lib.network.coverage import inventory_of
    from lib.network.sync_batch_norm import synchronise_batch_norm
    from lib.qat.parts import quantize_as
    from lib.qat.placement import QATQuantization, find_steps, weight_bits
    from lib.runtime.distributed import world_size
    from lib.search.progressive import first_lists
    from lib.training.compensation import Rounding, round_linear
    from lib.training.loop import Precision
    from lib.training.settings import TrainingSettings

    run, device, start = training_run(args), start_device(args.device), pick(Start, args)
    saved = read_resumed(run, evaluate_only=args.evaluate)
    settings, estimate = settings_of(args, saved), batches_to_estimate(run, args.bn_batches, saved) \
        if args.evaluate else 0
    network = pick(Network, args, network_options=settings['network'])

    # data
    data = pick(Data, args, normalize=settings['normalize'])
    *loaders, classes = read_images(data, network, device, training=not args.evaluate or estimate)
    shape = loaders[0].input_shape

    # network
    with in_file(args.resume):
        model = build_model(network, classes, shape, device, loaders)
    float_names = set(model.state_dict())

    # bits and quantizers
    if saved:
        strategy = saved['strategy']
    elif args.k_bits:
        strategy = first_lists(model, shape, args.k_bits, args.pre_k_bits or PRE_K_BITS, args.ratio, args.seed)
    else:
        strategy = choose_bits(args, args.strategy and inventory_of(model, shape, linear=True))
    with in_file(args.resume):
        strategy = quantize_as(model, settings, strategy, probe(model, shape), args.arch)
    checkpoint, source = (saved, args.resume) if saved else read_weights(start, network)
    if saved:
        start.load(model, saved, source)
    elif checkpoint is not None:
        load_quantized(model, checkpoint, source, start, settings, strategy, float_names)
    if args.sync_bn and world_size() > 1:
        synchronise_batch_norm(model)
    if not saved and settings['quantizers']['activations'] in ('lsq', 'linear'):
        find_steps(model, calibration_images(data, network, loaders, device))
    with naming('keep_bn', 'bn_batches'):
        rounding = pick(Rounding, args)
    precision = Precision(device, args.half, args.channels_last)
    if rounding.needs_images and not saved:
        loader = training_loader(data, network, loaders, device)
        with prefixed('--rounding compensated: '):
            round_linear(model, rounding.batches(loader, device, precision), rounding, method='mse',
                         float_model=float_network(network, start, classes, shape, device))
        rounding.estimate_batch_norm(model, loader, device, precision)
    with prefixed('--'):
        quantization = QATQuantization(model, strategy, settings, clip_decay=args.clip_decay,
                                       dampening=args.dampening)

    # training
    bits, full = weight_bits(model)
    logger.info('%s, %s weights, %s activations: weights take %.1f kB, %.4f of float', args.arch,
                settings['quantizers']['weights'], settings['quantizers']['activations'], bits / 8000, bits / full)
    cost = {'cost': bits / 8, 'cost_name': 'model_size', 'cost_unit': 'bytes'} if quantization.kind == 'qat' else {}
    about = about_run(network, data, shape, classes, ratio=bits / full, **cost,
                      **coverage_of(model, shape, quantization.kind))
    if isinstance(strategy, list):
        about['layers'] = list(quantized_layers(model))
    training = pick(TrainingSettings, args, grad_clip=norm_of(args.clip_norm, args.clip, args.grad_clip))
    course = Course(run, None if args.evaluate else training, device,
                    precision, about, saved, estimate,
                    start_epoch=args.start_epoch,
                    published=published_file(network) if args.pretrained else None,
                    distillation=None if args.evaluate else pick(Teaching, args).begin(
                        network, start, classes, shape, device))
    if checkpoint is not None and not saved and args.opt == 'sgd' and args.lr > TRAINED_LR:
        logger.info('--lr %g from trained weights: a rate such as %g loses less of them (docs/qat.md)', args.lr,
                    TRAINED_LR)
    course.train(model, loaders, quantization)


def settings_of(args, saved):
    """Return what rebuilds network and quantizers, as plain values: of the checkpoint to resume, or of the options.

    Raises:
        ValueError: the checkpoint is of another kind or network, or options say otherwise.
    """
    if not saved:
        shape = {name: getattr(args, name) for name in NETWORK_OPTIONS if getattr(args, name) is not None}
        return {'arch': args.arch, 'network': shape, 'normalize': args.normalize, 'quantizers': {
            'weights': args.weight_quantizer, 'activations': args.act_quantizer, 'alpha': args.alpha,
            'end_alpha': args.end_alpha, 'gradient': args.pact_gradient, 'rescale': args.rescale,
            'branch_out': args.branch_out, 'activation_grid': args.activation_grid,
            'weight_scales': args.weight_scales, 'lsq_init': args.lsq_init}, 'parts': args.k_bits is not None,
            'ends': 'flow'}
    if 'qat' not in saved:
        raise ValueError(f'{args.resume} is no checkpoint of qat_train.py: start from its weights with --weights')
    theirs = saved['qat']['arch']
    if theirs != args.arch:
        raise ValueError(f'{args.resume} is a checkpoint of {theirs}, this is a run of {args.arch}: give --arch '
                         f'{theirs}, or start a new run')
    changed = [f'--{name}' for name in (*BITS, *PART_BITS, *QUANTIZERS, *NETWORK_OPTIONS) if name in args.changed]
    if changed:
        raise ValueError(f'{args.resume} has a network, bits and quantizers of its own: leave {", ".join(changed)} '
                         'out, or start a new run with --weights')
    return saved['qat']


def choose_bits(args, inventory):
    """Return the strategy of a new run: that of --strategy for the layers of an `Inventory`, or the bit lists.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    if args.ratio != 1:
        raise ValueError(f'--ratio {args.ratio:g} is a fraction of the quantizers with --k_bits: give --k_bits')
    if args.strategy is not None:
        strategy = find_strategy(args.strategy, inventory.names, linear=True, either=True, published=STRATEGIES,
                                 network=args.arch, ends=inventory.ends)
        logger.info('--strategy %.80s: bits of %d layers, the bit lists of the configuration are not used',
                    args.strategy, len(strategy))
        return paired(strategy, args.input_bits)
    if args.layer_wbit is None or args.layer_abit is None:
        raise ValueError('the bits are missing: give --layer_wbit and --layer_abit, --strategy, --k_bits, or a '
                         '--config that has them')
    return {'layer_wbit': list(args.layer_wbit), 'layer_abit': list(args.layer_abit)}


if __name__ == '__main__':
    run(main, make_qat_parser(), training_hint, configure=configure)
