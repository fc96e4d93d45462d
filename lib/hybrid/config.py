"""The configuration of hybrid quantization: its sections and keys, their defaults, and what values they take."""

from collections.abc import Sequence
from contextlib import suppress
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from lib.record.files import is_file
from lib.record.strategy import paired
from lib.record.values import BITS, BOOL, RANGE, Rule, above, is_number, member_of, optional, real, whole
from lib.record.yaml_file import parse_yaml, read_yaml


class Key(NamedTuple):
    """A key of the configuration: its default, and what values it takes."""

    default: Any
    rule: Rule


def _choice(*words: str) -> Rule:
    return member_of(words, f'one of {", ".join(words)}')


def _text(expected: str) -> Rule:
    return Rule(lambda value: isinstance(value, str) and value != '', expected)


def _places(first: int) -> Rule:
    return Rule(lambda value: isinstance(value, list) and all(type(i) is int and i >= first for i in value)
                and len(set(value)) == len(value),
                f'a list of different block numbers from {first} on' + (' (-1: the first layer)' if first < 0 else ''))


def _per_part(rule: Rule) -> Rule:
    """One value, or one per block, or per block one for each of its parts."""
    def accepts(value):
        return rule.accepts(value) or isinstance(value, list) and all(
            rule.accepts(entry) or isinstance(entry, list) and all(map(rule.accepts, entry)) for entry in value)
    return Rule(accepts, f'{rule.expected}, a list with one per listed block, or in it lists with one per part')


COUNT, POSITIVE_COUNT = whole(0, 2**31 - 1), whole(1, 2**31 - 1)
POSITIVE, NOT_NEGATIVE, SLOPE = above(0), real(0), Rule(above(0).accepts, 'a slope above 0')
FACTOR = Rule(lambda value: is_number(value) and 0 < value < 1, 'a number between 0 and 1')
DATASETS = {'MNIST': 'mnist', 'FashionMNIST': 'fashion_mnist', 'CIFAR-10': 'cifar10', 'CIFAR-100': 'cifar100',
            'ImageNet-100': 'imagenet100', 'ImageNet': 'imagenet'}

SECTIONS = {
    'environment': {
        'device': Key('auto', _choice('auto', 'CPU', 'GPU', 'cpu', 'cuda')),
        'data_directory': Key('data/cifar10', _text('the folder of the data set')),
        'dataset': Key('CIFAR-10', _text(f'{", ".join(DATASETS)}, or a name that --dataset takes')),
        'checkpoints_directory': Key('checkpoints/hybrid', _text('the folder of the run')),
    },
    'model': {
        'arch': Key(None, optional(_text('the name of a network'))),
        'blocks': Key(None, Rule(lambda value: value is None or isinstance(value, list),
                                 'a list of [input channels, output channels, stride]')),
        'kernel_size': Key(3, POSITIVE_COUNT),
        'bottleneck_type': Key(False, BOOL),
    },
    'qat': {
        'quantize_w': Key(True, _per_part(BOOL)),
        'quantize_w_blocks': Key([], _places(0)),
        'w_bit_width': Key(2, _per_part(BITS)),
        'q_w_range': Key([-0.2, 0.2], _per_part(RANGE)),
        'w_slope': Key(2.0, _per_part(SLOPE)),
        'fold_bn': Key(True, BOOL),
        'learn_w_lower': Key(False, BOOL), 'learn_w_upper': Key(False, BOOL), 'learn_w_slope': Key(True, BOOL),
        'quantize_a': Key(True, _per_part(BOOL)),
        'quantize_a_blocks': Key([], _places(0)),
        'a_bit_width': Key(2, _per_part(BITS)),
        'q_a_range': Key([0, 2], _per_part(RANGE)),
        'a_slope': Key(2.0, _per_part(SLOPE)),
        'learn_a_lower': Key(False, BOOL), 'learn_a_upper': Key(True, BOOL), 'learn_a_slope': Key(True, BOOL),
        'clip_a_upper_range': Key([1, 6], RANGE), 'slope_a_range': Key([0.1, 10], RANGE),
        'clip_w_upper_range': Key([-5, 5], RANGE), 'clip_w_lower_range': Key([-5, 5], RANGE),
        'slope_w_range': Key([0.1, 10], RANGE),
    },
    'training': {
        'epochs': Key(200, COUNT), 'warmup_epochs': Key(10, COUNT), 'batch_size': Key(128, POSITIVE_COUNT),
        'lr': Key(0.1, POSITIVE), 'warmup_lr': Key(0.001, NOT_NEGATIVE), 'min_lr': Key(1e-4, NOT_NEGATIVE),
        'lr_reduction_factor': Key(0.5, FACTOR),
        'lr_patience': Key(3, COUNT), 'metric_threshold': Key(1e-4, NOT_NEGATIVE), 'cool_down': Key(0, COUNT),
        'warmup_slope': Key(2.0, POSITIVE), 'slope_warmup_epochs': Key(20, COUNT),
        'evaluate_interval': Key(1, POSITIVE_COUNT), 'save_interval': Key(10, POSITIVE_COUNT), 'seed': Key(1999, COUNT),
        'momentum': Key(0.9, NOT_NEGATIVE), 'weight_decay': Key(1e-4, NOT_NEGATIVE), 'clip_grad': Key(10.0, POSITIVE),
    },
    'ptq': {
        'post_quantize_w': Key(False, BOOL), 'post_w_bit_width': Key(4, _per_part(BITS)),
        'post_quantize_w_layers': Key([], _places(-1)),
        'post_quantize_a': Key(False, BOOL), 'post_a_bit_width': Key(4, _per_part(BITS)),
        'post_quantize_a_layers': Key([], _places(-1)),
        'post_image_bit_width': Key(None, optional(BITS)),
        'weight_method': Key('minmax', _choice('minmax', 'aciq', 'compensated')),
        'activation_method': Key('aciq', _choice('aciq', 'minmax')),
        'prior': Key('laplace', _choice('laplace', 'gauss')),
        'per_channel': Key(False, BOOL), 'bit_alloc': Key(False, BOOL), 'bias_corr': Key(True, BOOL),
        'relu_spread': Key('before_relu', _choice('before_relu', 'after_relu')),
        'relu_center': Key('none', _choice('none', 'mean')),
        'calibration_epochs': Key(10, POSITIVE_COUNT), 'calibration_num': Key(100, POSITIVE_COUNT),
        'calibration_batch_size': Key(20, POSITIVE_COUNT),
    },
    'layers': {},  # {layer name: [weight bits, input bits]}
    'mvm': {},  # settings of the dot-product engine
}
FREE = ('layers', 'mvm')  # sections without keys of their own


def default_config() -> dict:
    """Return the configuration without a file, {section: {key: value}}."""
    return {section: {name: deepcopy(key.default) for name, key in keys.items()} for section, keys in SECTIONS.items()}


def read_config(path: str | Path) -> dict:
    """Read a YAML file with the sections of `SECTIONS` over the defaults.

    Returns:
        {section: {key: value}}, every key present.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML, a section or key is unknown, or a value will not do; it is named.
    """
    path = Path(path)
    if not is_file(path):
        raise FileNotFoundError(f'{path}: there is no such file; run/hybrid/config.yaml is an example')
    given = read_yaml(path, 'configuration')
    return complete_config({} if given is None else given, path)


def complete_config(given: Any, source: str | Path) -> dict:
    """Return a configuration with every key present; `source`, a file, is named in messages.

    Raises:
        ValueError: a section or key is unknown, or a value will not do.
    """
    if not isinstance(given, dict) or not all(isinstance(keys, dict) or keys is None for keys in given.values()):
        raise ValueError(f'{source}: expected the sections {", ".join(SECTIONS)}, each with keys and values')
    config = default_config()
    for section, keys in given.items():
        for key, value in (keys or {}).items():
            _set(config, section, key, value, source)
        if section not in SECTIONS:
            raise ValueError(f'{source}: there is no section {section}; known are {", ".join(SECTIONS)}')
    return config


def override(config: dict, text: str) -> None:
    """Set `section.key=value` or `key=value`, whose value is YAML, in a configuration; ValueError as `read_config`."""
    name, equals, value = text.partition('=')
    section, dot, key = name.strip().rpartition('.')
    if not dot:
        section = next((section for section, keys in SECTIONS.items() if key in keys), '')
    if section.split('.')[0] in FREE:  # the name of a layer has dots
        section, _, key = name.strip().partition('.')
    if not equals or not key:
        raise ValueError(f'{text}: expected SECTION.KEY=VALUE, for example training.epochs=30')
    _set(config, section, key, parse_yaml(value, f'{text:.80}: the value'), f'{text:.80}')


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
    entry.rule.check(f'{source}: {section}.{key}', value)
    config[section][key] = value


def _unknown(section, key):
    homes = [name for name, keys in SECTIONS.items() if key in keys]
    if homes:
        return f'{key} belongs to the section {homes[0]}' + (f', not to {section}' if section else '')
    every = [name for keys in SECTIONS.values() for name in keys]
    near = get_close_matches(str(key), every, n=1)
    return (f'there is no key {key}' + (f' in section {section}' if section in SECTIONS else '')
            + (f'; did you mean {near[0]}?' if near else f'; known are {", ".join(SECTIONS.get(section, SECTIONS))}'))


def with_strategy(config: dict, strategy: list, names: Sequence[str]) -> dict:
    """Return a configuration with a strategy for the layers of these names in place of its block lists.

    The section `layers` is then {name: [weight bits, input bits]}; inputs of weight bits alone stay float, -1.
    """
    config = deepcopy(config)
    config['layers'] = dict(zip(names, paired(strategy, -1), strict=True))
    for section, key in (('qat', 'quantize_w_blocks'), ('qat', 'quantize_a_blocks'),
                         ('ptq', 'post_quantize_w_layers'), ('ptq', 'post_quantize_a_layers')):
        config[section][key] = []
    return config
