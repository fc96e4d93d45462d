"""Strategies between the stages: parsed from a list or a file, checked against the network, saved to be pasted."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief

from lib.record.files import parse_json, read_text, unsealed, write_json, write_text

MAX_BIT = 8


def uniform_strategy(num_layers: int, bits: int, *, linear: bool = False, ends: tuple = ((0,), (-1,))) -> list:
    """Return the same bits for every layer.

    A linear one keeps the image as it is, `[8, -1]` in the first layer, and the last one at `[8, 8]`, as the search
    does; `ends` are the indices of the first layers and of the last ones.
    """
    if not linear:
        return [bits] * num_layers
    strategy = [[bits, bits] for _ in range(num_layers)]
    first, last = ends
    for indices, a_bit in ((last, MAX_BIT), (first, -1)):
        for index in indices:
            strategy[index] = [MAX_BIT, a_bit]
    return strategy


def check_strategy(strategy: list, layer_names: Sequence[str], *, linear: bool, source: str = 'the strategy',
                   names_in_file: list[str] | None = None, network: str = 'the network') -> list:
    """Check that a strategy is one of this network and of this kind.

    Args:
        strategy: what was given.
        layer_names: names of the network's quantizable layers, in module order.
        linear: whether pairs `[w_bit, a_bit]` are expected, else single weight bits.
        names_in_file: the layer names saved with the strategy, where known.

    Returns:
        The strategy as a list of ints or of two-entry lists.

    Raises:
        ValueError: no list, wrong kind, wrong length, or bits out of range; the first layer concerned is named.
    """
    if not isinstance(strategy, (list, tuple)) or not strategy:
        raise ValueError(f'{source} is no list: got {brief(strategy)}; expected '
                         + ('[[8, -1], [7, 7], ..., [8, 8]]' if linear else '[6, 6, 5, ...]'))
    pairs = [isinstance(entry, (list, tuple)) for entry in strategy]
    if linear and not all(pairs):
        raise ValueError(f'{source} is a list of single bits, for K-means; linear quantization needs pairs '
                         f'[w_bit, a_bit] (entry {pairs.index(False)} is {brief(strategy[pairs.index(False)])})')
    if not linear and any(pairs):
        raise ValueError(f'{source} holds pairs, for linear quantization; K-means needs single weight bits '
                         f'(entry {pairs.index(True)} is {brief(strategy[pairs.index(True)])}); for the linear flow '
                         'give --linear_quantization')
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
        raise ValueError(f'{where} is {brief(entry)}: expected a pair [w_bit, a_bit]')
    weight = _check_bits(entry[0], where, 'weight bits')
    return [weight, -1 if entry[1] == -1 else _check_bits(entry[1], where, 'activation bits')]


def _check_bits(bits, where, what):
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MAX_BIT:
        raise ValueError(f'{where} has {what} {brief(bits)}: expected a whole number from 1 to {MAX_BIT}'
                         + (', or -1 to leave the input alone' if what.startswith('activation') else ''))
    return bits


def _other_network(source, theirs, ours, network):
    first = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours)))
    name = (list(theirs) + list(ours))[first] if first < len(theirs) else ours[first]
    return (f'{source} has {len(theirs)} entries, {network} has {len(ours)} quantizable layers; '
            f'first difference at entry {first}, {name}')


def find_strategy(text: str, layer_names: Sequence[str] | Callable[[bool], Sequence[str]], *, linear: bool,
                  either: bool = False, published: Mapping[str, list], network: str = 'the network',
                  ends: tuple = ((0,), (-1,))) -> list:
    """Return the checked strategy that a text names: the one way from a command line to a strategy.

    Args:
        text: as for `read_strategy`.
        layer_names: names of the layers that have an entry, in module order; or what returns them for pairs (True) or
            single bits (False).
        linear: whether pairs are expected.
        either: take pairs and single bits alike; `linear` then says what `uniform:K` is alone.
        published: {name: strategy} of those that have a name.
        ends: indices of the first and the last layers in the linear flow, where `uniform:K` differs.

    Raises:
        ValueError, FileNotFoundError: it cannot be read, or does not fit the network.
    """
    strategy, names_in_file, source = read_strategy(text, published)
    if either and isinstance(strategy, list):
        linear = any(isinstance(entry, (list, tuple)) for entry in strategy)
    if callable(layer_names):
        layer_names = layer_names(linear)
    if not layer_names:
        raise ValueError(f'{network} has no layer that {source} could have an entry for')
    if not isinstance(strategy, list):
        strategy = uniform_strategy(len(layer_names), strategy, linear=linear, ends=ends)
    return check_strategy(strategy, layer_names, linear=linear, source=source, names_in_file=names_in_file,
                          network=network)


def read_strategy(text: str, published: Mapping[str, list]) -> tuple[list | int, list[str] | None, str]:
    """Read a list as JSON or Python write it, `uniform:K`, a name in `published`, or a strategy.json or strategy.txt.

    Returns:
        (strategy or the K of `uniform:K`, layer names if the file has them, description for messages).

    Raises:
        FileNotFoundError: no such name or file.
        ValueError: the text or the file holds no list.
    """
    text = str(text).strip().removeprefix('\ufeff').strip()
    if text in published:
        source = f'STRATEGIES[{text!r}] in finetune.py'
        return _as_list(published[text], source), None, source
    if text.startswith('uniform:'):
        return _uniform_bits(text), None, text
    if text.startswith(('[', '(')):
        source = 'the list given to --strategy'
        return _as_list(_parse(text, source), source), None, source
    if _is_missing(text):
        raise FileNotFoundError(f'--strategy {text:.80}: no such file; expected a list like [6, 6, 5], uniform:4, the '
                                'path of a strategy.json or strategy.txt that rl_quantize.py wrote, or a name in '
                                f'STRATEGIES of finetune.py ({", ".join(published)})')
    value, names = _parse(read_text(text, 'strategy'), text), None
    if isinstance(value, dict):
        if 'strategy' not in value:
            raise ValueError(f'{text} has no entry "strategy": is it the strategy.json of a search?')
        try:
            value = unsealed(value, text)
        except ValueError as error:
            raise ValueError(f'{error}; give a strategy of your own as a list, as strategy.txt holds it') from error
        value, names = value['strategy'], value.get('layers')
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError(f'{text}: "layers" is {brief(names)}, expected the names of the layers')
    return _as_list(value, text), names, text


def _is_missing(path):
    try:
        os.stat(path)
    except PermissionError:
        return False
    except (OSError, ValueError):  # a text that is too long for a name, too
        return True
    return False


def _uniform_bits(text):
    bits = text.removeprefix('uniform:')
    if not re.fullmatch('[0-9]{1,9}', bits):
        raise ValueError(f'--strategy {text:.80}: expected uniform:K with a number of bits K from 1 to {MAX_BIT}')
    return _check_bits(int(bits), f'--strategy {text}', 'weight bits')


def _parse(text, source):
    text = text.strip()
    if text.startswith(('[', '(')):  # as Python may write it: tuples, a comma after the last entry
        text = re.sub(r',(\s*\])', r'\1', text.rstrip(',').replace('(', '[').replace(')', ']'))
    try:
        return parse_json(text, source)
    except ValueError as error:
        raise ValueError(f'{error}; expected a list of bits, for example [6, 6, 5] or [[8, -1], [7, 7], [8, 8]]'
                         ) from error


def _as_list(value, source):
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'{source} is no list: got {brief(value)}; expected [6, 6, 5, ...] or [[8, -1], ..., [8, 8]]')
    return list(value)


def save_strategy(folder: str | Path, strategy: list, layer_names: Sequence[str], **about) -> None:
    """Write `strategy.json` (with layer names and `about`) and `strategy.txt` (the line to paste) to `folder`."""
    write_json(Path(folder) / 'strategy.json', {'strategy': strategy, 'layers': list(layer_names), **about}, seal=True)
    write_text(Path(folder) / 'strategy.txt', json.dumps(strategy) + '\n')


def paired(strategy: Sequence, a_bit: int) -> list[list[int]]:
    """Return a strategy as pairs; `a_bit` stands beside weight bits alone."""
    return [list(entry) if isinstance(entry, (list, tuple)) else [entry, a_bit] for entry in strategy]
