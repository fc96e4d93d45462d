"""Strategies between the stages: parsed from a list or a file, checked against the network, saved to be pasted."""

import json
from pathlib import Path

from lib.record.files import write_json, write_text

MAX_BIT = 8


def uniform_strategy(num_layers, bits, *, linear=False):
    """Returns the same bits for every layer.

    A linear one keeps the image as it is, `[8, -1]`, and the last layer at `[8, 8]`, as the search does.
    """
    if not linear:
        return [bits] * num_layers
    strategy = [[bits, bits] for _ in range(num_layers)]
    strategy[-1] = [MAX_BIT, MAX_BIT]
    strategy[0] = [MAX_BIT, -1]
    return strategy


def check_strategy(strategy, layer_names, *, linear, source='the strategy', names_in_file=None, network='the network'):
    """Checks that a strategy is one of this network and of this kind.

    Args:
        strategy: what was given.
        layer_names: names of the network's quantizable layers, in module order.
        linear: whether pairs `[w_bit, a_bit]` are expected, else single weight bits.
        source: where the strategy comes from, for the message.
        names_in_file: the layer names saved with the strategy, where known.
        network: name of the network, for the message.

    Returns:
        The strategy as a list of ints or of two-entry lists.

    Raises:
        ValueError: no list, wrong kind, wrong length, or bits out of range; the first layer concerned is named.
    """
    if not isinstance(strategy, (list, tuple)) or not strategy:
        raise ValueError(f'{source} is no list: got {strategy!r:.80}; expected '
                         + ('[[8, -1], [7, 7], ..., [8, 8]]' if linear else '[6, 6, 5, ...]'))
    pairs = [isinstance(entry, (list, tuple)) for entry in strategy]
    if linear and not all(pairs):
        raise ValueError(f'{source} is a list of single bits, for K-means; linear quantization needs pairs '
                         f'[w_bit, a_bit] (entry {pairs.index(False)} is {strategy[pairs.index(False)]!r})')
    if not linear and any(pairs):
        raise ValueError(f'{source} holds pairs, for linear quantization; K-means needs single weight bits '
                         f'(entry {pairs.index(True)} is {strategy[pairs.index(True)]!r}); for the linear flow give '
                         '--linear_quantization')
    if names_in_file and list(names_in_file) != list(layer_names):
        raise ValueError(_other_network(source, names_in_file, layer_names, network))
    if len(strategy) != len(layer_names):
        raise ValueError(f'{source} has {len(strategy)} entries, {network} has {len(layer_names)} quantizable layers '
                         f'({layer_names[0]} ... {layer_names[-1]}); was it made for another network?')
    return [_check_entry(entry, f'{source}: entry {i} ({name})', linear)
            for i, (entry, name) in enumerate(zip(strategy, layer_names, strict=True))]


def _check_entry(entry, where, linear):
    if not linear:
        return _check_bits(entry, where, 'weight bits')
    if len(entry) != 2:
        raise ValueError(f'{where} is {entry!r}: expected a pair [w_bit, a_bit]')
    weight = _check_bits(entry[0], where, 'weight bits')
    return [weight, -1 if entry[1] == -1 else _check_bits(entry[1], where, 'activation bits')]


def _check_bits(bits, where, what):
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BIT:
        raise ValueError(f'{where} has {what} {bits!r}: expected a whole number from 1 to {MAX_BIT}'
                         + (', or -1 to leave the input alone' if what.startswith('activation') else ''))
    return bits


def _other_network(source, theirs, ours, network):
    first = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    name = (list(theirs) + list(ours))[first] if first < len(theirs) else ours[first]
    return (f'{source} has {len(theirs)} entries, {network} has {len(ours)} quantizable layers; '
            f'first difference at entry {first}, {name}')


def read_strategy(text):
    """Reads `--strategy`: a list, `uniform:K`, or the path of a `strategy.json` or `strategy.txt`.

    Returns:
        (strategy or the int K of uniform:K, layer names or None, description for messages).

    Raises:
        ValueError: the text is neither, or the file holds no strategy.
    """
    text = str(text).strip()
    if text.startswith('uniform:'):
        if not text[8:].isdigit():
            raise ValueError(f'--strategy {text}: expected uniform:K with a number of bits K from 1 to {MAX_BIT}')
        return _check_bits(int(text[8:]), f'--strategy {text}', 'weight bits'), None, text
    if text.startswith('['):
        return _parse(text, 'the list given to --strategy'), None, 'the list given to --strategy'
    path = Path(text)
    if not path.is_file():
        raise ValueError(f'--strategy {text}: no such file; expected a list like [6, 6, 5], uniform:4, or the path of '
                         'a strategy.json or strategy.txt that rl_quantize.py wrote')
    value = _parse(path.read_text(encoding='utf-8', errors='replace'), str(path))
    if isinstance(value, dict):
        if 'strategy' not in value:
            raise ValueError(f'{path} has no entry "strategy": is it the strategy.json of a search?')
        return value['strategy'], value.get('layers'), str(path)
    return value, None, str(path)


def _parse(text, source):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f'{source} is no list of bits ({error}); expected for example [6, 6, 5] or '
                         '[[8, -1], [7, 7], [8, 8]]') from error


def save_strategy(folder, strategy, layer_names, **about):
    """Writes `strategy.json` (with layer names and `about`) and `strategy.txt` (the line to paste) to `folder`."""
    write_json(Path(folder) / 'strategy.json', {'strategy': strategy, 'layers': list(layer_names), **about})
    write_text(Path(folder) / 'strategy.txt', json.dumps(strategy) + '\n')
