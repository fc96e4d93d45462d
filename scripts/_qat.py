"""Quantization-aware training: its options, its EasyDict configurations, and the networks that they describe."""

import argparse
import re

from _common import ROOT, logger
from _options import BooleanOption as Bool
from _options import RepositoryPath, at_least, checked, positive
from _proqha import CONFIG as PROQHA_CONFIG
from _proqha import first_lists
from _setup import probe
from _training import read_start
from _weights import find, load, put
from finetune import STRATEGIES

CONFIGS = ROOT / 'run' / 'qat' / 'config_train.py'
# The original's names in a configuration, where the option has another one.
KEYS = {'model': 'arch', 'num_workers': 'workers', 'batch_size': 'train_batch', 'nepochs': 'epochs',
        'lr_schedule': 'lr_type', 'learning_rate_min': 'lr_min', 'pretrain': 'checkpoint', 'eval_only': 'evaluate'}
VALUES = {'lr_type': {'cosine': 'cos', 'exponential': 'exp', 'multistep': 'step3'},
          'arch': {'ToyNet': 'toynet', 'MBv2_cf10': 'mobilenetv2_cifar', 'RN20': 'resnet20_projection'}}
MAX_CHANNELS = 2**16
NETWORK_OPTIONS = ('strides', 'num_layer_list', 'num_channel_list', 'stem_channel', 'header_channel', 'expansion',
                   'relu_after_add')
BITS = ('layer_wbit', 'layer_abit', 'strategy', 'input_bits')  # of one network
PART_BITS = ('k_bits', 'pre_k_bits', 'ratio')  # of any network
QUANTIZERS = ('weight_quantizer', 'act_quantizer', 'alpha', 'end_alpha', 'pact_gradient', 'rescale', 'branch_out')
ACTIVATIONS = ['dorefa', 'pact', 'mpact', 'fixed_pact', 'lsq', 'linear']
WEIGHTS = ['dorefa', 'dorefa_symmetric', 'lsq', 'linear']
LEARNED = ('pact', 'mpact', 'lsq', 'linear')
QUANTIZER_KEY = re.compile(r'(^|[._])(range|step|_extra_state)$')  # in a state dict


def bit_list(text):
    """Option type: a list of bits."""
    from lib.qat.bit_lists import parse_bit_list
    try:
        return parse_bit_list(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


bit_list.takes_list = True  # of a configuration; checked with the network, which knows what the entries mean


def add_qat_options(parser):
    """Adds the options that only quantization-aware training has."""
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


def configure(args, parser):
    """Returns the defaults that --config gives, as {option: value}.

    For another network than the configuration's, these are without its shape, its bits and its folder. The parser
    refuses an unknown configuration, key or value.
    """
    from lib.runtime.user_code import load_object
    theirs = args.archtype and args.config == parser.get_default('config')
    args.config = f'{PROQHA_CONFIG}:quant' if theirs else args.config
    try:
        config = load_object(args.config, '--config') if ':' in args.config else named_config(args.config)
        if not isinstance(config, dict):
            raise ValueError(f'--config {args.config} is a {type(config).__name__}: expected an EasyDict of settings')
        values = dict(option_of(key, value, parser, args.config) for key, value in config.items())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if args.model_file or args.arch not in (parser.get_default('arch'), values.get('arch', args.arch)):
        values = {name: value for name, value in values.items() if name not in (*NETWORK_OPTIONS, *BITS, 'checkpoint')}
    return {**values, 'config': args.config, 'schedule': None} if theirs else values


def named_config(name):
    """Returns a configuration of run/qat/config_train.py."""
    from lib.runtime.user_code import load_object
    configs = load_object(f'{CONFIGS}:CONFIGS', '--config')
    if name not in configs:
        raise ValueError(f'--config {name}: expected FILE.py:NAME or one of {", ".join(configs)}')
    return configs[name]


def option_of(key, value, parser, config):
    """Returns (option, value) of a configuration's entry, checked as the command line would be."""
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


def qat_settings(args):
    """Returns what rebuilds network and quantizers, as plain values, for checkpoints."""
    network = {name: getattr(args, name) for name in NETWORK_OPTIONS if getattr(args, name) is not None}
    return {'arch': args.arch, 'network': network, 'normalize': args.normalize, 'quantizers': {
        'weights': args.weight_quantizer, 'activations': args.act_quantizer, 'alpha': args.alpha,
        'end_alpha': args.end_alpha, 'gradient': args.pact_gradient, 'rescale': args.rescale,
        'branch_out': args.branch_out}, 'parts': args.k_bits is not None, 'ends': 'called'}


def quantize(model, settings, strategy, shape, network):
    """Puts the quantizers of the settings into a float network; returns the complete strategy.

    Args:
        model: the network, in place.
        settings: `qat_settings`.
        strategy: {'layer_wbit': ..., 'layer_abit': ...} or a list of pairs.
        shape: (C, H, W) of an image.
        network: its name, for messages.
    """
    from lib.qat.placement import Quantizers, quantize_blocks, quantize_layers
    quantizers = Quantizers.from_dict(settings['quantizers'])
    if settings.get('parts'):
        return quantize_by_parts(model, quantizers, strategy, shape, network, settings.get('ends'))[1]
    if isinstance(strategy, dict):
        bits = quantize_blocks(model, strategy['layer_wbit'], strategy['layer_abit'], quantizers, network)
        return dict(zip(('layer_wbit', 'layer_abit'), bits, strict=True))
    return quantize_layers(model, strategy, quantizers, probe(model, shape))


def quantize_by_parts(model, quantizers, strategy, shape, network, ends):
    """Puts quantizers where ProQHA has them; returns (`PartQuantizers`, the complete strategy). Arguments: `quantize`.

    A number of bits may stand for each of the two lists. `ends`, of the settings: 'called', or None of a checkpoint
    from when the first and the last layer were those of the definition.
    """
    from lib.qat.parts import quantize_parts
    parts = quantize_parts(model, strategy['layer_wbit'], strategy['layer_abit'], quantizers, probe(model, shape),
                           network, in_order=ends == 'called')
    return parts, parts.lists(parts.bits)


def settings_of(args, saved):
    """Returns the `qat_settings` of a run: those of the checkpoint to resume, if any, else of the options.

    Raises:
        ValueError: the checkpoint is of another kind or network, or options say otherwise.
    """
    if not saved:
        return qat_settings(args)
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


def load_start(args, model, saved, settings, strategy, float_names):
    """Loads the weights to begin with, if any, into the network.

    Clips and steps come with --weights where they mean the same here: learned under quantizers of the same kind, steps
    also under the same bits. All others begin anew; a float network has none that were learned.

    Args:
        args: the options.
        model: the network, with quantizers.
        saved: checkpoint to resume, or None.
        settings, strategy: of this run.
        float_names: keys of its state dict before it had quantizers.
    """
    start, source = read_start(args, saved)
    if start is None or saved:
        load(args, model, start, source)
    else:
        load_quantized(args, model, start, source, settings, strategy, float_names)


def load_quantized(args, model, start, source, settings, strategy, float_names):
    """Loads the checkpoint `start`, from `source`, into a network with quantizers; the rest as `load_start`."""
    weights, kept = find(args, model, start, source), kept_quantizers(start, settings, strategy)
    taken = {key for key in model.state_dict()
             if key in float_names or ('weights' if '.weight_quantizer.' in key else 'activations') in kept}
    left = [key for key in weights.state_dict if key not in taken and QUANTIZER_KEY.search(key)]
    for key in left:
        del weights.state_dict[key]
    put(args, model, weights, source)
    if left:
        logger.info('its clips and steps are not taken over: they begin anew')


def kept_quantizers(start, settings, strategy):
    """Returns which quantizers' clips and steps a checkpoint passes on to this run: 'weights', 'activations'."""
    from lib.qat.bit_lists import is_quantized
    if not isinstance(start, dict) or 'qat' not in start:
        return []
    theirs, ours = start['qat']['quantizers'], settings['quantizers']
    kept = [which for which in ('weights', 'activations') if theirs[which] == ours[which] in LEARNED
            and (ours[which] != 'lsq' or start['strategy'] == strategy)]
    return kept if is_quantized(start['strategy']) else []


def choose_bits(args, model, saved, shape):
    """Returns the strategy of a run: that of the checkpoint to resume, of --k_bits or --strategy, or the bit lists.

    Raises:
        ValueError: there is none, or it does not fit.
    """
    if saved:
        return saved['strategy']
    if args.k_bits:
        return first_lists(args, model, shape)
    if args.ratio != 1:
        raise ValueError(f'--ratio {args.ratio:g} is a fraction of the quantizers with --k_bits: give --k_bits')
    if args.strategy is not None:
        return strategy_of_layers(args, layers_with_strategy(model, shape), args.input_bits)
    if args.layer_wbit is None or args.layer_abit is None:
        raise ValueError('the bits are missing: give --layer_wbit and --layer_abit, --strategy, --k_bits, or a '
                         '--config that has them')
    return {'layer_wbit': list(args.layer_wbit), 'layer_abit': list(args.layer_abit)}


def strategy_of_layers(args, inventory, input_bits):
    """Returns --strategy as pairs, one per layer of an `Inventory`; `input_bits` stand beside weight bits alone."""
    from lib.record.strategy import find_strategy
    strategy = find_strategy(args.strategy, inventory.names, linear=True, either=True, published=STRATEGIES,
                             network=args.arch, ends=inventory.ends)
    logger.info('--strategy %.80s: bits of %d layers, the bit lists of the configuration are not used', args.strategy,
                len(strategy))
    return [entry if isinstance(entry, list) else [entry, input_bits] for entry in strategy]


def layers_with_strategy(model, shape):
    """Returns the `Inventory` of a float network whose layers --strategy has entries for: those of the linear flow."""
    from lib.network.coverage import inventory_of
    return inventory_of(model, shape, linear=True)
