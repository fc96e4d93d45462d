"""What a checkpoint of ours can hold: the type and the range of each of its entries, and how they belong together."""

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lib.record.finite import not_finite

NEEDED = {'kmeans': ('strategy',), 'linear': ('strategy',), 'qat': ('strategy', 'qat'),
          'hybrid': ('plan', 'hybrid'), 'float': ()}  # beside each kind of quantization
BITS, MAX_BIT = (*range(1, 9), 16, 32), 8

EPISODE = ('reward', 'accuracy', 'cost', 'ratio', 'seconds', 'loss', 'ratios', 'w_ratio', 'strategy', 'delta', 'images',
           'value_loss', 'policy_loss', 'best_reward')  # keys of an episode; the first are numbers
STEP = ('cost', 'train_acc', 'test_acc', 'lr', 'step_time', 'model_size', 'hession_info', 'acc_info', 'kbits')
NUMBERS = 4

Rule = tuple[Callable[[Any], bool], str]


def check_checkpoint(saved: dict, *, has_digest: bool) -> None:
    """Check a checkpoint of ours; one of others passes.

    Args:
        saved: what the file holds, without its digest.
        has_digest: it had one, as ours have since they carry them; else only its values tell whether it was changed.

    Raises:
        ValueError: says which entry is wrong, how, and what was expected.
    """
    kind = saved.get('quantization')
    ours = has_digest or isinstance(kind, str) and kind in NEEDED or 'codebooks' in saved or 'qat' in saved
    if not (ours or _is_search(saved)):
        return
    for key, (holds, expected) in RULES.items():
        if key in saved:
            _expect(holds(saved[key]), key, saved[key], expected)
    _check_kind(saved)
    if 'codebooks' in saved:
        _check_codebooks(saved)
    if 'agent' in saved or 'step' in saved or _is_search(saved):
        _check_history(saved)
    if 'agent' in saved and not has_digest:
        _check_memory(saved['agent']['memory'], saved['history'])
    if found := not_finite({key: saved[key] for key in ('state_dict', 'optimizer', 'codebooks', 'agent')
                            if key in saved}):
        raise ValueError(found)


def _expect(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ValueError(f'{name} is {_shown(value)}, expected {expected}')


def _shown(value: Any) -> str:
    """Return a value in words: large ones by their kind and size."""
    if isinstance(value, torch.Tensor):
        return f'a tensor of shape {tuple(value.shape)}'
    if isinstance(value, Mapping) and value:
        return f'a dict of {len(value)} entries, {reprlib.repr(next(iter(value)))} first'
    return reprlib.repr(value)


# ---- rules

def _whole(low: int, high: float = math.inf) -> Rule:
    words = f'a whole number from {low}' + (f' to {high:g}' if high < math.inf else '')
    return lambda value: type(value) is int and low <= value <= high, words


def _number(low: float, high: float = math.inf, *, unknown: bool = False) -> Rule:
    """A finite number in a range; `unknown`: or None or NaN, where nothing was measured."""
    def holds(value):
        if unknown and (value is None or value != value):
            return True
        return type(value) in (int, float) and math.isfinite(value) and low <= value <= high
    return holds, f'a number from {low:g}' + (f' to {high:g}' if high < math.inf else '')


def _of(kind: type, words: str, *keys: str) -> Rule:
    return lambda value: isinstance(value, kind) and (not keys or set(keys) <= value.keys()), words


def _list_of(rule: Rule, words: str, length: int | None = None) -> Rule:
    return lambda value: isinstance(value, list) and length in (None, len(value)) and all(map(rule[0], value)), words


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(entry, torch.Tensor) for entry in value.values())


def _is_plan(value: Any) -> bool:
    if not (isinstance(value, dict) and value.keys() == {'weights', 'activations', 'inputs'}
            and all(isinstance(group, dict) for group in value.values())):
        return False
    entries = [entry for group in value.values() for entry in group.values()]
    return all(isinstance(entry, dict) and entry.get('method') in ('dsq', 'aciq') and type(entry.get('bits')) is int
               for entry in entries)


_text, _bool, _dict = _of(str, 'a text'), _of(bool, 'True or False'), _of(dict, 'a dict')
_measured = _number(0, 100, unknown=True)
_bits = _list_of((lambda value: type(value) is int and value in BITS, ''), f'a list of bits: {BITS}')
RULES: dict[str, Rule] = {
    'epoch': _whole(0), 'step': _whole(1), 'classes': _whole(1), 'acc': _measured, 'top5': _measured,
    'best_acc': _number(-1, 100), 'test_prec1': _measured, 'ratio': _number(0), 'cost': _number(0), 'arch': _text,
    'dataset': _text, 'cost_name': _text, 'cost_unit': _text, 'folded': _bool, 'is_pruned': _bool,
    'input': _list_of(_whole(1), '[channels, height, width]', 3), 'layers': _list_of(_text, 'names of layers'),
    'quantization': (lambda value: isinstance(value, str) and value in NEEDED, f'one of {", ".join(NEEDED)}'),
    'state_dict': (_is_state, 'tensors by name'), 'scaler': _dict, 'kbits': _bits,
    'optimizer': _of(dict, 'the state of an optimizer', 'state', 'param_groups'),
    'qat': (lambda value: isinstance(value, dict) and isinstance(value.get('quantizers'), dict)
            and isinstance(value.get('network', {}), dict), 'the settings of network and quantizers'),
    'plan': (_is_plan, 'bits and method of weights, activations and inputs'),
    'hybrid': (lambda value: isinstance(value, dict) and {'config', 'network'} <= value.keys()
               and value.get('stage') in ('trained', 'quantized'), 'the settings of a hybrid network'),
    'accuracies': (lambda value: isinstance(value, dict) and all(map(_measured[0], value.values())), 'accuracies'),
    'agent': _of(dict, "an agent's state", 'actor', 'critic', 'memory', 'rng'),
    'start': _of(dict, 'cost and accuracy before the first step', 'cost', 'test_acc'),
    'history': _of(list, 'a list'),
}


# ---- entries that belong together

def _check_kind(saved: dict) -> None:
    kind = saved.get('quantization')
    if missing := [key for key in NEEDED.get(kind, ()) if key not in saved]:
        raise ValueError(f'{", ".join(missing)} is missing beside quantization {kind}')
    strategy, layers = saved.get('strategy'), saved.get('layers')
    if kind == 'kmeans':
        _expect(_list_of(_whole(1, MAX_BIT), '')[0](strategy), 'strategy', strategy, f'a list of 1 to {MAX_BIT} bits')
    elif kind == 'linear':
        _expect(_pairs(strategy, range(1, MAX_BIT + 1)), 'strategy', strategy, 'pairs of weight and activation bits')
    elif kind == 'qat':
        lists = isinstance(strategy, dict) and set(strategy) == {'layer_wbit', 'layer_abit'} \
            and all(map(_bits[0], strategy.values()))
        _expect(lists or _pairs(strategy, BITS), 'strategy', strategy, 'layer_wbit and layer_abit, or pairs of bits')
        _expect({'arch', 'network'} <= saved['qat'].keys(), 'qat', saved['qat'], 'arch and network among its settings')
    if kind in ('kmeans', 'linear') and layers is not None and len(layers) != len(strategy):
        raise ValueError(f'strategy has {len(strategy)} entries for {len(layers)} layers')


def _pairs(strategy: Any, allowed: Any) -> bool:
    return isinstance(strategy, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(bits) is int for bits in pair)
        and pair[0] in (*allowed, -1) and pair[1] in (*allowed, -1) for pair in strategy)


def _check_codebooks(saved: dict) -> None:
    _expect(isinstance(saved['codebooks'], dict), 'codebooks', saved['codebooks'], 'codebooks by layer')
    known = saved.get('quantization') == 'kmeans' and saved.get('layers')
    bits = dict(zip(saved['layers'], saved['strategy'], strict=True)) if known else {}
    for layer, book in saved['codebooks'].items():
        name = f'codebooks.{layer}'
        _expect(isinstance(book, dict) and {'centroids', 'labels'} <= book.keys()
                and _is_state({**book, 'kept': book['labels']}), name, book, 'centroids and labels')
        centroids, labels, kept = book['centroids'], book['labels'], book.get('kept')
        most = 2 ** bits.get(layer, MAX_BIT)
        _expect(centroids.dim() == 1 and centroids.is_floating_point() and 1 <= len(centroids) <= most,
                f'{name}.centroids', centroids, f'1 to {most} numbers')
        weight = (saved.get('state_dict') or {}).get(f'{layer}.weight', labels)
        _expect(labels.dtype == torch.uint8 and labels.shape == weight.shape, f'{name}.labels', labels,
                f'uint8 of shape {tuple(weight.shape)}')
        if labels.numel() and int(labels.max()) >= len(centroids):
            raise ValueError(f'{name}.labels goes up to {int(labels.max())}, there are {len(centroids)} centroids')
        _expect(kept is None or isinstance(kept, torch.Tensor) and kept.dtype == torch.bool
                and kept.shape == labels.shape, f'{name}.kept', kept, 'bool of the shape of the labels')


def _is_search(saved: dict) -> bool:
    return 'history' in saved and 'state_dict' not in saved


def _check_history(saved: dict) -> None:
    """Check the history of a search: one record for each episode or step, in order, each with what it found."""
    history = saved.get('history')
    _expect(isinstance(history, list), 'history', history, 'a list')
    key, start, entries = ('step', 1, STEP) if 'step' in saved else ('episode', 0, EPISODE)
    for index, record in enumerate(history, start):
        name = f'history[{index - start}]'
        _expect(isinstance(record, dict) and {key, *entries} <= record.keys(), name, record,
                f'a record with {key}, {", ".join(entries)}')
        if record[key] != index:
            raise ValueError(f'{name} is {key} {reprlib.repr(record[key])}, expected {index}: records are missing '
                             'or twice')
        for entry in entries[:NUMBERS]:
            _expect(_number(-math.inf)[0](record[entry]), f'{name}.{entry}', record[entry], 'a finite number')
    if 'step' in saved and saved['step'] != len(history):
        raise ValueError(f'history has {len(history)} steps, step is {saved["step"]}')


def _check_memory(memory: Any, history: list[dict]) -> None:
    """Check that the agent remembers as many transitions as the episodes had, one or two for each layer."""
    _expect(isinstance(memory, dict) and {'size', 'capacity', 'arrays'} <= memory.keys(), 'agent.memory', memory,
            'a replay memory')
    strategies = [record.get('strategy') for record in history]
    steps = sum(sum(len(entry) if isinstance(entry, list) else 1 for entry in strategy) for strategy in strategies
                if isinstance(strategy, list))
    _expect(type(memory['capacity']) is int, 'agent.memory.capacity', memory['capacity'], 'a whole number')
    if memory['size'] != min(steps, memory['capacity']):
        raise ValueError(f"history has {len(history)} episodes of {steps} steps, the agent remembers {memory['size']}: "
                         'episodes are missing or twice')
