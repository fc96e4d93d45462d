"""What a checkpoint of ours can hold: the type and the range of each of its entries, and how they belong together."""

import reprlib
from collections.abc import Container, Mapping
from typing import Any

import torch

from lib.record.finite import not_finite
from lib.record.values import (
    STRATEGY,
    TEXT,
    Rule,
    dict_with,
    is_number,
    list_of,
    member_of,
    one_of,
    optional,
    real,
    whole,
)

NEEDED = {'kmeans': ('strategy',), 'linear': ('strategy',), 'qat': ('strategy', 'qat'),
          'hybrid': ('plan', 'hybrid'), 'float': ()}  # beside each kind of quantization
BITS, MAX_BIT = (*range(1, 9), 16, 32), 8

PLANNED = {  # types of what a plan says of a tensor
    **dict.fromkeys(('fold', 'learn_lower', 'learn_upper', 'learn_slope', 'per_channel', 'bit_alloc', 'bias_corr'),
                    (bool,)),
    **dict.fromkeys(('bounds', 'clipping', 'prior', 'center', 'spread'), (str,)),
    **dict.fromkeys(('lower', 'upper', 'slope'), (int, float))}


def check_checkpoint(saved: dict, *, has_digest: bool) -> None:
    """Check a checkpoint that a run here wrote; one of another program passes.

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
    for key, rule in RULES.items():
        if key in saved:
            rule.check(key, saved[key])
    _check_kind(saved)
    if 'codebooks' in saved:
        _check_codebooks(saved)
    if 'agent' in saved or 'step' in saved or _is_search(saved):
        _check_history(saved)
    if 'agent' in saved and not has_digest:
        _check_memory(saved['agent']['memory'], saved['history'])
    if found := not_finite({key: saved[key] for key in ('state_dict', 'optimizer', 'codebooks', 'agent', 'ema')
                            if key in saved}):
        raise ValueError(found)


# ---- entries one by one

def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(entry, torch.Tensor) for entry in value.values())


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_average(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {'updates', 'trained', 'statistics'} \
        and whole().accepts(value['updates']) and all(
            isinstance(tensor, torch.Tensor) for kind in ('trained', 'statistics') for tensor in value[kind])


def _is_plan(value: Any) -> bool:
    if not (isinstance(value, dict) and value.keys() == {'weights', 'activations', 'inputs'}
            and all(isinstance(group, dict) for group in value.values())):
        return False
    entries = [entry for group in value.values() for entry in group.values()]
    return all(isinstance(entry, dict) and entry.get('method') in ('dsq', 'aciq') and type(entry.get('bits')) is int
               and all(type(entry[key]) in PLANNED[key] for key in entry.keys() & PLANNED) for entry in entries)


def _is_qat(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get('quantizers'), dict) \
        and all(isinstance(entry, (str, int, float, type(None))) for entry in value['quantizers'].values()) \
        and _is_named(value.get('network', {}))


def _is_hybrid(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get('config'), dict) \
        and (value.get('network', 0) is None or _is_named(value.get('network'))) \
        and value.get('stage') in ('trained', 'quantized')


def _pairs_of(bits: Container[int], words: str) -> Rule:
    return list_of(Rule(lambda pair: isinstance(pair, (list, tuple)) and len(pair) == 2 and all(
        type(entry) is int and (entry == -1 or entry in bits) for entry in pair), ''), words=words)


NUMBER = Rule(is_number, 'a finite number')
MEASURED = Rule(lambda value: value is None or value != value or is_number(value, 0, 100),
                'a number from 0 to 100')  # None or NaN where nothing was measured
BIT_LIST = list_of(Rule(lambda value: type(value) is int and value in BITS, ''), words=f'a list of bits: {BITS}')
BIT_LISTS = Rule(lambda value: isinstance(value, dict) and value.keys() == {'layer_wbit', 'layer_abit'}
                 and all(map(BIT_LIST.accepts, value.values())), 'layer_wbit and layer_abit')
RULES: dict[str, Rule] = {
    **dict.fromkeys(('arch', 'mode', 'dataset', 'cost_name', 'cost_unit'), TEXT),
    **dict.fromkeys(('acc', 'top5', 'test_prec1'), MEASURED),
    **dict.fromkeys(('folded', 'is_pruned', 'tensorflow'), one_of(bool)), 'width_mult': real(0),
    'epoch': whole(0), 'step': whole(1), 'classes': whole(1), 'best_acc': real(-1, 100), 'ratio': real(0),
    'cost': real(0), 'input': list_of(whole(1), 3, '[channels, height, width]'), 'layers': list_of(TEXT),
    'activation_grid': member_of(('symmetric', 'affine'), 'symmetric or affine'),
    'weight_scales': member_of(('tensor', 'channel'), 'tensor or channel'),
    'quantization': member_of(NEEDED, f'one of {", ".join(NEEDED)}'), 'scaler': one_of(dict), 'kbits': BIT_LIST,
    'state_dict': Rule(_is_state, 'tensors by name'),
    'optimizer': dict_with('the state of an optimizer', 'state', 'param_groups'),
    'ema': Rule(_is_average, 'the weights beside their average'),
    'qat': Rule(_is_qat, 'the settings of network and quantizers'),
    'plan': Rule(_is_plan, 'bits and method of weights, activations and inputs'),
    'hybrid': Rule(_is_hybrid, 'the settings of a hybrid network'),
    'accuracies': Rule(lambda value: isinstance(value, dict) and all(map(MEASURED.accepts, value.values())),
                       'accuracies'),
    'agent': dict_with("an agent's state", 'actor', 'critic', 'memory', 'rng'),
    'start': Rule(lambda value: isinstance(value, dict) and is_number(value.get('cost'))
                  and is_number(value.get('test_acc')), 'cost and accuracy before the first step'),
    'history': one_of(list),
}
FIGURE = optional(one_of(int, float))  # NaN where nothing was found
EPISODE = {
    **dict.fromkeys(('reward', 'accuracy', 'cost', 'ratio', 'seconds', 'w_ratio', 'best_reward'), NUMBER),
    **dict.fromkeys(('loss', 'delta', 'value_loss', 'policy_loss'), FIGURE), 'strategy': STRATEGY,
    'ratios': Rule(lambda value: isinstance(value, dict) and all(map(is_number, value.values())), 'ratios of costs'),
    'images': Rule(lambda value: isinstance(value, (list, tuple)) and len(value) == 2
                   and all(map(whole().accepts, value)), 'numbers of images, forward and backward')}
STEP = {
    **dict.fromkeys(('cost', 'train_acc', 'test_acc', 'lr', 'step_time', 'model_size'), NUMBER),
    **dict.fromkeys(('hession_info', 'acc_info'), FIGURE), 'kbits': BIT_LIST}
STRATEGIES = {
    'kmeans': list_of(whole(1, MAX_BIT), words=f'a list of 1 to {MAX_BIT} bits'),
    'linear': _pairs_of(range(1, MAX_BIT + 1), 'pairs of weight and activation bits'),
    'qat': Rule(lambda value: BIT_LISTS.accepts(value) or _pairs_of(BITS, '').accepts(value),
                'layer_wbit and layer_abit, or pairs of bits'),
}


# ---- entries that belong together

def _check_kind(saved: dict) -> None:
    kind = saved.get('quantization')
    if missing := [key for key in NEEDED.get(kind, ()) if key not in saved]:
        raise ValueError(f'{", ".join(missing)} is missing beside quantization {kind}')
    strategy, layers = saved.get('strategy'), saved.get('layers')
    if kind in STRATEGIES:
        STRATEGIES[kind].check('strategy', strategy)
    if kind == 'qat':
        dict_with('arch and network among its settings', 'arch', 'network').check('qat', saved['qat'])
    elif kind in STRATEGIES and layers is not None and len(layers) != len(strategy):
        raise ValueError(f'strategy has {len(strategy)} entries for {len(layers)} layers')


def _expect(holds: bool, name: str, value: Any, expected: str) -> None:
    Rule(lambda _: holds, expected).check(name, value)


def _check_codebooks(saved: dict) -> None:
    dict_with('codebooks by layer').check('codebooks', saved['codebooks'])
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
    one_of(list).check('history', history)
    key, start, entries = ('step', 1, STEP) if 'step' in saved else ('episode', 0, EPISODE)
    complete = dict_with(f'a record with {key}, {", ".join(entries)}', key, *entries)
    for index, record in enumerate(history, start):
        name = f'history[{index - start}]'
        complete.check(name, record)
        if record[key] != index:
            raise ValueError(f'{name} is {key} {reprlib.repr(record[key])}, expected {index}: records are missing '
                             'or twice')
        for entry, rule in entries.items():
            rule.check(f'{name}.{entry}', record[entry])
        if key == 'episode' and (record['value_loss'] is None) != (record['policy_loss'] is None):
            raise ValueError(f'{name} has one of value_loss and policy_loss, expected both or none')
        if key == 'step' and (record['hession_info'] is None) == (record['acc_info'] is None):
            raise ValueError(f'{name} has hession_info and acc_info, or neither, expected one')
    if 'step' in saved and saved['step'] != len(history):
        raise ValueError(f'history has {len(history)} steps, step is {saved["step"]}')


def _check_memory(memory: Any, history: list[dict]) -> None:
    """Check that the agent remembers as many transitions as the episodes had, one or two for each layer."""
    dict_with('a replay memory', 'size', 'capacity', 'arrays').check('agent.memory', memory)
    strategies = [record.get('strategy') for record in history]
    steps = sum(sum(len(entry) if isinstance(entry, list) else 1 for entry in strategy) for strategy in strategies
                if isinstance(strategy, list))
    whole(0).check('agent.memory.capacity', memory['capacity'])
    if memory['size'] != min(steps, memory['capacity']):
        raise ValueError(f"history has {len(history)} episodes of {steps} steps, the agent remembers {memory['size']}: "
                         'episodes are missing or twice')
