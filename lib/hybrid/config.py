"""The configuration of hybrid quantization: its sections and keys, their defaults, and what values they take."""

from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from lib.record.files import is_file
from lib.record.yaml_file import parse_yaml, read_yaml


class Key(NamedTuple):
    """A key of the configuration: its default, whether a value will do, and what is expected, in words."""

    default: object
    accepts: Callable[[object], bool]
    expected: str


def is_number(value) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float('inf')


def is_pair(value) -> bool:
    """Whether a value is a range, [lower, upper]."""
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value)) and value[0] < value[1]


def is_bits(value) -> bool:
    """Whether a value is a width that a layer can get, 1 to 8."""
    return type(value) is int and 1 <= value <= 8


def is_slope(value) -> bool:
    """Whether a value is a slope of DSQ."""
    return is_number(value) and value > 0


def is_bool(value) -> bool:
    """Whether a value is true or false."""
    return isinstance(value, bool)


def _nested(leaf):
    """Accept one value, or one per block, or per block one for each of its parts."""
    return lambda value: leaf(value) or (isinstance(value, list) and all(
        leaf(entry) or (isinstance(entry, list) and all(map(leaf, entry))) for entry in value))


def _yes(default):
    return Key(default, is_bool, 'true or false')


def _whole(default, minimum=0):
    return Key(default, lambda value: type(value) is int and minimum <= value < 2**31,
               f'a whole number from {minimum} on, below 2^31')


def _real(default, minimum=0.0):
    return Key(default, lambda value: is_number(value) and value >= minimum, f'a number from {minimum:g} on')


def _positive(default):
    return Key(default, is_slope, 'a number above 0')


def _pair(default):
    return Key(default, is_pair, 'a range [lower, upper]')


def _word(default, *words):
    return Key(default, lambda value: value in words, f'one of {", ".join(map(str, words))}')


def _text(default, expected='a text'):
    return Key(default, lambda value: isinstance(value, str) and value or value is None is default, expected)


def _places(first):
    return Key([], lambda value: isinstance(value, list) and all(type(i) is int and i >= first for i in value)
               and len(set(value)) == len(value),
               f'a list of different block numbers from {first} on' + (' (-1: the first layer)' if first < 0 else ''))


def _per_part(default, leaf, what):
    return Key(default, _nested(leaf), f'{what}, a list with one per listed block, or in it lists with one per part')


BITS, SLOPE, RANGE = 'a number of bits from 1 to 8', 'a slope above 0', 'a range [lower, upper]'
DATASETS = {'MNIST': 'mnist', 'FashionMNIST': 'fashion_mnist', 'CIFAR-10': 'cifar10', 'CIFAR-100': 'cifar100',
            'ImageNet-100': 'imagenet100', 'ImageNet': 'imagenet'}

SECTIONS = {
    'environment': {
        'device': _word('auto', 'auto', 'CPU', 'GPU', 'cpu', 'cuda'),
        'data_directory': _text('data/cifar10', 'the folder of the data set'),
        'dataset': _text('CIFAR-10', f'{", ".join(DATASETS)}, or a name that --dataset takes'),
        'checkpoints_directory': _text('checkpoints/hybrid', 'the folder of the run'),
    },
    'model': {
        'arch': _text(None, 'the name of a network'),
        'blocks': Key(None, lambda value: value is None or isinstance(value, list),
                      'a list of [input channels, output channels, stride]'),
        'kernel_size': _whole(3, 1),
        'bottleneck_type': _yes(False),
    },
    'qat': {
        'quantize_w': _per_part(True, is_bool, 'true or false'),
        'quantize_w_blocks': _places(0),
        'w_bit_width': _per_part(2, is_bits, BITS),
        'q_w_range': _per_part([-0.2, 0.2], is_pair, RANGE),
        'w_slope': _per_part(2.0, is_slope, SLOPE),
        'fold_bn': _yes(True),
        'learn_w_lower': _yes(False), 'learn_w_upper': _yes(False), 'learn_w_slope': _yes(True),
        'quantize_a': _per_part(True, is_bool, 'true or false'),
        'quantize_a_blocks': _places(0),
        'a_bit_width': _per_part(2, is_bits, BITS),
        'q_a_range': _per_part([0, 2], is_pair, RANGE),
        'a_slope': _per_part(2.0, is_slope, SLOPE),
        'learn_a_lower': _yes(False), 'learn_a_upper': _yes(True), 'learn_a_slope': _yes(True),
        'clip_a_upper_range': _pair([1, 6]), 'slope_a_range': _pair([0.1, 10]),
        'clip_w_upper_range': _pair([-5, 5]), 'clip_w_lower_range': _pair([-5, 5]), 'slope_w_range': _pair([0.1, 10]),
    },
    'training': {
        'epochs': _whole(200), 'warmup_epochs': _whole(10), 'batch_size': _whole(128, 1),
        'lr': _positive(0.1), 'warmup_lr': _real(0.001), 'min_lr': _real(1e-4), 'lr_reduction_factor': Key(
            0.5, lambda value: is_number(value) and 0 < value < 1, 'a number between 0 and 1'),
        'lr_patience': _whole(3), 'metric_threshold': _real(1e-4), 'cool_down': _whole(0),
        'warmup_slope': _positive(2.0), 'slope_warmup_epochs': _whole(20),
        'evaluate_interval': _whole(1, 1), 'save_interval': _whole(10, 1), 'seed': _whole(1999),
        'momentum': _real(0.9), 'weight_decay': _real(1e-4), 'clip_grad': _positive(10.0),
    },
    'ptq': {
        'post_quantize_w': _yes(False), 'post_w_bit_width': _per_part(4, is_bits, BITS),
        'post_quantize_w_layers': _places(-1),
        'post_quantize_a': _yes(False), 'post_a_bit_width': _per_part(4, is_bits, BITS),
        'post_quantize_a_layers': _places(-1),
        'post_image_bit_width': Key(None, lambda value: value is None or is_bits(value), f'{BITS}, or null'),
        'weight_method': _word('minmax', 'minmax', 'aciq'),
        'activation_method': _word('aciq', 'aciq', 'minmax'), 'prior': _word('laplace', 'laplace', 'gauss'),
        'per_channel': _yes(False), 'bit_alloc': _yes(False), 'bias_corr': _yes(True),
        'relu_spread': _word('before_relu', 'before_relu', 'after_relu'),
        'relu_center': _word('none', 'none', 'mean'),
        'calibration_epochs': _whole(10, 1), 'calibration_num': _whole(100, 1), 'calibration_batch_size': _whole(20, 1),
    },
    'layers': {},  # {layer name: [weight bits, input bits]}
    'mvm': {},  # settings of the dot-product engine
}
FREE = ('layers', 'mvm')  # sections without keys of their own


def default_config() -> dict:
    """Return the configuration without a file, {section: {key: value}}."""
    return {section: {name: deepcopy(key.default) for name, key in keys.items()} for section, keys in SECTIONS.items()}


def read_config(path, overrides=()) -> dict:
    """Read a YAML file over the defaults.

    Args:
        path: file with the sections of `SECTIONS`.
        overrides: texts `section.key=value` or `key=value`, whose values are YAML.

    Returns:
        {section: {key: value}}, every key present.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, a section or key is unknown, or a value will not do; it is named.
    """
    path = Path(path)
    if not is_file(path):
        raise FileNotFoundError(f'--config {path}: there is no such file; run/hybrid/config.yaml is an example')
    given = read_yaml(path, 'configuration')
    given = {} if given is None else given
    if not isinstance(given, dict) or not all(isinstance(keys, dict) or keys is None for keys in given.values()):
        raise ValueError(f'{path}: expected the sections {", ".join(SECTIONS)}, each with keys and values')
    config = default_config()
    for section, keys in given.items():
        for key, value in (keys or {}).items():
            _set(config, section, key, value, path)
        if section not in SECTIONS:
            raise ValueError(f'{path}: there is no section {section}; known are {", ".join(SECTIONS)}')
    for text in overrides:
        _override(config, text)
    return config


def _override(config, text):
    name, equals, value = text.partition('=')
    section, dot, key = name.strip().rpartition('.')
    if not dot:
        section = next((section for section, keys in SECTIONS.items() if key in keys), '')
    if section.split('.')[0] in FREE:  # the name of a layer has dots
        section, _, key = name.strip().partition('.')
    if not equals or not key:
        raise ValueError(f'--set {text}: expected SECTION.KEY=VALUE, for example training.epochs=30')
    _set(config, section, key, parse_yaml(value, f'--set {text:.80}: the value'), f'--set {text:.80}')


def _set(config, section, key, value, source):
    if section in FREE:
        config[section][key] = value
        return
    known = SECTIONS.get(section, {})
    if key not in known:
        raise ValueError(f'{source}: {_unknown(section, key)}')
    entry = known[key]
    if isinstance(entry.default, float) and isinstance(value, str):  # YAML 1.1 takes 1e-4 for a text
        with suppress(ValueError):
            value = float(value)
    if not entry.accepts(value):
        raise ValueError(f'{source}: {section}.{key} is {value!r:.80}, expected {entry.expected}')
    config[section][key] = value


def _unknown(section, key):
    homes = [name for name, keys in SECTIONS.items() if key in keys]
    if homes:
        return f'{key} belongs to the section {homes[0]}' + (f', not to {section}' if section else '')
    every = [name for keys in SECTIONS.values() for name in keys]
    near = get_close_matches(str(key), every, n=1)
    return (f'there is no key {key}' + (f' in section {section}' if section in SECTIONS else '')
            + (f'; did you mean {near[0]}?' if near else f'; known are {", ".join(SECTIONS.get(section, SECTIONS))}'))
