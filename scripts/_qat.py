"""Quantization-aware training: its options, its EasyDict configurations, and the networks that they describe."""

from _common import ROOT, logger
from _options import BooleanOption as Bool
from _options import RepositoryPath, at_least, positive

CONFIGS = ROOT / 'run' / 'qat' / 'config_train.py'
# The original's names in a configuration, where the option has another one.
KEYS = {'model': 'arch', 'num_workers': 'workers', 'batch_size': 'train_batch', 'nepochs': 'epochs',
        'lr_schedule': 'lr_type', 'learning_rate_min': 'lr_min', 'pretrain': 'checkpoint', 'eval_only': 'evaluate'}
VALUES = {'lr_type': {'cosine': 'cos', 'exponential': 'exp', 'multistep': 'step3'},
          'arch': {'ToyNet': 'toynet', 'MBv2_cf10': 'mobilenetv2_cifar', 'RN20': 'resnet20_projection'}}
NETWORK_OPTIONS = ('strides', 'num_layer_list', 'num_channel_list', 'stem_channel', 'header_channel', 'expansion',
                   'relu_after_add')
ACTIVATIONS = ['dorefa', 'pact', 'mpact', 'fixed_pact', 'lsq', 'linear']
WEIGHTS = ['dorefa', 'dorefa_symmetric', 'lsq', 'linear']


def bit_list(text):
    """Option type: a list of bits."""
    import argparse

    from lib.utils.bit_lists import parse_bit_list
    try:
        return parse_bit_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_qat_options(parser):
    """Adds the options that only quantization-aware training has."""
    group = parser.add_argument_group('quantization')
    group.add_argument('--config', default='toynet_cfg1_star', metavar='NAME|FILE.py:NAME', help='an EasyDict of '
                       'run/qat/config_train.py or of a file of your own; options on the command line go before it')
    group.add_argument('--layer_wbit', type=bit_list, metavar='LIST', help='weight bits of each part of the network, '
                       'such as 32,8x10,16,16: 1 to 8, 16, or 32 for float (docs/qat.md has the indexing)')
    group.add_argument('--layer_abit', type=bit_list, metavar='LIST', help='activation bits of each part')
    group.add_argument('--strategy', help='bits layer by layer instead, for any network: path of a strategy.json or '
                       'strategy.txt of a search, a list, or uniform:K; weights and inputs of its layers')
    group.add_argument('--input_bits', type=int, default=32, help='--strategy with weight bits only: bits of the '
                       'inputs of all layers')
    group.add_argument('--weight_quantizer', choices=WEIGHTS, default='dorefa_symmetric', help='of all weights')
    group.add_argument('--act_quantizer', choices=ACTIVATIONS, default='mpact', help='of all activations')
    group.add_argument('--alpha', type=positive, default=10.0, help='pact, mpact: first clip inside the blocks; '
                       'fixed_pact: their clip')
    group.add_argument('--end_alpha', type=positive, default=6.0, help='the same behind stem, header and pooling')
    group.add_argument('--pact_gradient', choices=['paper', 'ste'], default='paper', help='of a clip inside its range: '
                       '0, or the rounding error as autograd has it')
    group.add_argument('--rescale', action=Bool, default=True, help='dorefa: expand the activations again; without it '
                       'they shrink by 10, as in the original')
    group.add_argument('--branch_out', action=Bool, default=True, help='quantize shortcuts with a convolution before '
                       'the sum')
    group.add_argument('--clip_decay', type=at_least(0, float), default=2e-4, help='L2 penalty of the learned clips, '
                       'beside the weight decay')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='mean and standard deviation of the images '
                       "(default: the data set's own row)")
    group = parser.add_argument_group('shape of toynet and resnet20_projection')
    for name in ('strides', 'num_layer_list', 'num_channel_list'):
        group.add_argument(f'--{name}', type=at_least(1), nargs='+', help='one number per stage')
    for name in ('stem_channel', 'header_channel', 'expansion'):
        group.add_argument(f'--{name}', type=at_least(1), help='toynet')
    group.add_argument('--relu_after_add', action=Bool, default=None, help='resnet20_projection: a ReLU after each '
                       'sum, too')


def configure(args, parser):
    """Returns the defaults that --config gives, as {option: value}.

    The parser refuses an unknown configuration or key.
    """
    from lib.utils.user_code import load_object
    try:
        config = load_object(args.config, '--config') if ':' in args.config else named_config(args.config)
        return dict(option_of(key, value, parser, args.config) for key, value in config.items())
    except (ValueError, OSError, AttributeError) as error:
        parser.error(str(error))


def named_config(name):
    """Returns a configuration of run/qat/config_train.py."""
    from lib.utils.user_code import load_object
    configs = load_object(f'{CONFIGS}:CONFIGS', '--config')
    if name not in configs:
        raise ValueError(f'--config {name}: expected FILE.py:NAME or one of {", ".join(configs)}')
    return configs[name]


def option_of(key, value, parser, config):
    """Returns (option, value) of a configuration's entry."""
    name = KEYS.get(key, key)
    known = {action.dest: action for action in parser._actions if action.dest not in ('help', 'config')}
    if name not in known:
        raise ValueError(f'--config {config}: there is no setting {key}; known are '
                         f'{", ".join(sorted(KEYS | {option: None for option in known}))}')
    if isinstance(value, str):
        value = VALUES.get(name, {}).get(value, value)
    choices = known[name].choices
    value = value.lower() if name == 'opt' else value
    if choices and value is not None and value not in choices:
        raise ValueError(f'--config {config}: {key} is {value!r}, expected one of {", ".join(choices)}')
    return name, RepositoryPath(value) if name == 'checkpoint' else value


def qat_settings(args):
    """Returns what rebuilds network and quantizers, as plain values, for checkpoints."""
    network = {name: getattr(args, name) for name in NETWORK_OPTIONS if getattr(args, name) is not None}
    return {'arch': args.arch, 'network': network, 'normalize': args.normalize, 'quantizers': {
        'weights': args.weight_quantizer, 'activations': args.act_quantizer, 'alpha': args.alpha,
        'end_alpha': args.end_alpha, 'gradient': args.pact_gradient, 'rescale': args.rescale,
        'branch_out': args.branch_out}}


def quantize(model, settings, strategy, shape, network):
    """Puts the quantizers of the settings into a float network; returns the complete strategy.

    Args:
        model: the network, in place.
        settings: `qat_settings`.
        strategy: {'layer_wbit': ..., 'layer_abit': ...} or a list of pairs.
        shape: (C, H, W) of an image.
        network: its name, for messages.
    """
    from _setup import probe

    from lib.utils.qat import Quantizers, quantize_blocks, quantize_layers
    quantizers = Quantizers.from_dict(settings['quantizers'])
    if isinstance(strategy, dict):
        bits = quantize_blocks(model, strategy['layer_wbit'], strategy['layer_abit'], quantizers, network)
        return dict(zip(('layer_wbit', 'layer_abit'), bits, strict=True))
    return quantize_layers(model, strategy, quantizers, probe(model, shape))


def choose_bits(args, model, saved, shape):
    """Returns the strategy of a run: that of the checkpoint to resume, of --strategy, or the two bit lists.

    Raises:
        ValueError: the checkpoint is of another kind or network, or the strategy does not fit.
    """
    if saved and 'qat' in saved:
        if saved['qat']['arch'] != args.arch:
            raise ValueError(f'{args.resume} is a checkpoint of {saved["qat"]["arch"]}, --arch is {args.arch}: leave '
                             '--arch out, or start a new run')
        return saved['strategy']
    if saved:
        raise ValueError(f'{args.resume} is no checkpoint of qat_train.py: start from its weights with --weights')
    if args.strategy:
        return strategy_of_layers(args, model, shape)
    if args.layer_wbit is None or args.layer_abit is None:
        raise ValueError('the bits are missing: give --layer_wbit and --layer_abit, --strategy, or a --config that has '
                         'them')
    return {'layer_wbit': list(args.layer_wbit), 'layer_abit': list(args.layer_abit)}


def strategy_of_layers(args, model, shape):
    """Returns --strategy as pairs, one per layer that the linear flow quantizes."""
    from lib.utils.conversion import convertible_layers
    from lib.utils.profile import profile_layers
    from lib.utils.strategy import check_strategy, read_strategy, uniform_strategy
    names = list(convertible_layers(model, profile_layers(model, shape)))
    strategy, names_in_file, source = read_strategy(args.strategy)
    if isinstance(strategy, int) and source.startswith('uniform:'):
        strategy = uniform_strategy(len(names), strategy, linear=True)
    linear = isinstance(strategy, list) and any(isinstance(entry, list) for entry in strategy)
    strategy = check_strategy(strategy, names, linear=linear, source=source, names_in_file=names_in_file,
                              network=args.arch)
    logger.info('%s: bits of %d layers, the bit lists of the configuration are not used', source, len(names))
    return [entry if linear else [entry, args.input_bits] for entry in strategy]
