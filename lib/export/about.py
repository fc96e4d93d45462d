"""What an exported file says of itself: which network it is, how it is quantized, and what images it takes."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from lib.quantize.grids import CHOICES
from lib.record.checkpoint_rules import check_checkpoint
from lib.record.values import BOOL, TEXT, Rule, check_values, dict_with, list_of, member_of, optional, real, whole

FORMAT, VERSION = 'haq-packed', 1
IMAGENET = 'imagenet'  # as class names: the 1000 classes in their usual order
QUANTIZED = ('quantization', 'strategy', 'input', 'classes', 'folded', 'is_pruned', 'qat', 'plan', 'hybrid',
             'attention_products', *CHOICES)
NETWORK = {
    'arch': TEXT, 'width_mult': real(0.001, 1000), 'mode': optional(TEXT), 'tensorflow': BOOL,
    'model_file': optional(TEXT)}
MAX_SIDE, MAX_VALUES = 2**12, 2**24  # of an image
PREPROCESSING = {
    'resize': Rule(lambda value: whole(1, MAX_SIDE).accepts(value) or list_of(whole(1, MAX_SIDE), 2).accepts(value),
                   'the shorter side, or [height, width]'),
    'crop': optional(whole(1, MAX_SIDE)), 'rescale': optional(whole(1, MAX_SIDE)),
    'mean': list_of(real(-1000, 1000), 3), 'std': list_of(real(1e-6, 1000), 3)}
RULES = {
    'format': member_of((FORMAT,), FORMAT), 'version': Rule(lambda value: value == VERSION, f'version {VERSION}, which '
                                                            'this reader knows'),
    'network': dict_with('a network', *NETWORK),
    'preprocessing': optional(dict_with('how images are prepared', *PREPROCESSING)),
    'class_names': Rule(lambda value: value in (None, IMAGENET) or list_of(TEXT).accepts(value), 'a list of names'),
    'classes': whole(1, 10**7), 'attention_products': optional(BOOL),
    'input': Rule(lambda value: list_of(whole(1, MAX_SIDE), 3).accepts(value) and math.prod(value) <= MAX_VALUES,
                  f'[channels, height, width] of at most {MAX_VALUES} values')}


def make_about(saved: Mapping[str, Any], network: Mapping[str, Any], preprocessing: Mapping | None,
               class_names: list[str] | str | None) -> dict:
    """Return what a file says of itself.

    Args:
        saved: what a checkpoint has of the network: `quantization`, `strategy`, `input`, `classes` and the like.
        network: values of the keys of `NETWORK`.
        preprocessing: values of the keys of `PREPROCESSING`; None where it is not known.
        class_names: one of each class; `IMAGENET`; None.
    """
    quantized = {key: saved[key] for key in QUANTIZED if key in saved}
    if 'hybrid' in quantized:  # of its settings only those that rebuild the network
        quantized['hybrid'] = {'config': {}, **{key: saved['hybrid'][key] for key in ('network', 'stage')}}
    return {'format': FORMAT, 'version': VERSION, 'network': dict(network), **quantized,
            'preprocessing': preprocessing and dict(preprocessing), 'class_names': class_names}


def check_about(about: Mapping[str, Any], keys: Collection[str] = ()) -> None:
    """Raise ValueError unless these are values that `make_about` returns; `keys` are names of the file's tensors."""
    check_images(about)
    check_values(about['network'], NETWORK, 'network')
    if unknown := about['network'].keys() - NETWORK.keys():
        raise ValueError(f'network says {min(unknown)!r:.40}, which this version does not know')
    aliases = about.get('aliases', {})
    if not isinstance(aliases, dict) or not all(isinstance(first, str) and first != key
                                                for key, first in aliases.items()):
        raise ValueError('aliases are no names by name')
    if unknown := about.keys() - {*RULES, *QUANTIZED, 'aliases'}:
        raise ValueError(f'says {min(unknown)!r:.40}, which this version does not know')
    quantized = {key: about[key] for key in QUANTIZED if key in about}
    check_checkpoint({'quantization': 'float', **quantized}, has_digest=True)


def check_images(about: Mapping[str, Any]) -> None:
    """Raise ValueError unless it is said as by `make_about` what network it is, what images it takes, and what classes
    it knows."""
    if missing := [key for key in RULES if key not in about and key != 'attention_products']:
        raise ValueError(f'says nothing of {", ".join(missing)}')
    check_values(about, RULES, 'what it says of itself')
    if about['preprocessing']:
        _check_preprocessing(about['preprocessing'], about['input'])
    if isinstance(about['class_names'], list) and len(about['class_names']) != about['classes']:
        raise ValueError(f'{len(about["class_names"])} names for {about["classes"]} classes')


def _check_preprocessing(steps: Mapping[str, Any], shape: list[int]) -> None:
    check_values(steps, PREPROCESSING, 'preprocessing')
    if unknown := steps.keys() - PREPROCESSING.keys():
        raise ValueError(f'preprocessing says {min(unknown)!r:.40}, which this version does not know')
    last = steps['rescale'] or steps['crop'] or steps['resize']
    made = last if isinstance(last, list) else [last, last]
    if [3, *made] != shape or not (steps['crop'] or isinstance(steps['resize'], list)):
        raise ValueError(f'preprocessing does not make images of shape {shape}')
