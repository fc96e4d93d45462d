"""The bit lists of quantization-aware training, `layer_wbit` and `layer_abit`, one entry per part of the network."""

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

MAX_ENTRIES = 10_000  # more than any network has parts
MAX_DESCRIBED = 20  # entries that a message explains
ALLOWED = (*range(1, 9), 16, 32)


def check_bit_lists(entries: Sequence, layer_wbit: list[int], layer_abit: list[int], network: str = 'the network'
                    ) -> tuple[list[int], list[int]]:
    """Check the two lists against the entries of a network and fill in what may be left out.

    Args:
        entries: the network's `bit_entries()`: rows with `name`, `layers`, `activations` and `implied`.
        layer_wbit, layer_abit: bits of weights and of activations per entry: 1..8, 16, or 32 for float.

    Returns:
        (layer_wbit, layer_abit) with all entries.

    Raises:
        ValueError: no list, another length (the message says what the entries mean), or other bits.
    """
    return tuple(_check(entries, bits, which, name, network) for which, (name, bits) in
                 enumerate((('layer_wbit', layer_wbit), ('layer_abit', layer_abit))))


def _check(entries, bits, which, name, network):
    if not isinstance(bits, (list, tuple)):
        raise ValueError(f'{name} is {bits!r:.60}: expected a list of {len(entries)} numbers of bits, one per entry: '
                         f'{meaning(entries, which)}')
    needed = [entry for entry in entries if entry.implied is None]
    if len(bits) not in (len(entries), len(needed)):
        lengths = ' or '.join(str(len(rows)) for rows in ([entries] if needed == entries else [needed, entries]))
        raise ValueError(f'{name} has {len(bits)} entries, {network} takes {lengths}: {meaning(entries, which)}')
    if len(bits) == len(needed):
        given = iter(bits)
        bits = [next(given) if entry.implied is None else entry.implied[which] for entry in entries]
    for i, (entry, value) in enumerate(zip(entries, bits, strict=True)):
        check_bits(value, f'{name}: entry {i} ({entry.name})')
    return list(bits)


def check_bits(bits: Any, where: str) -> None:
    """Raise ValueError, saying `where`, unless these are bits that quantization-aware training takes."""
    if isinstance(bits, bool) or not isinstance(bits, Integral) or bits not in ALLOWED:
        raise ValueError(f'{where} is {bits!r}: expected 1 to 8 or 16 bits, or 32 to leave it float')


def meaning(entries: Sequence, which: int) -> str:
    """Return what the entries of `layer_wbit` (`which` 0) or `layer_abit` (1) stand for, in a line: the first ones."""
    described = []
    for i, entry in enumerate(entries):
        names = entry.activations if which else entry.layers
        implied = '' if entry.implied is None else f', {entry.implied[which]} where left out'
        described.append(f'{i} {entry.name} ({_short(names, entry.name)}{implied})')
    return '; '.join(described[:MAX_DESCRIBED]) + ('; ...' if len(described) > MAX_DESCRIBED else '')


def _short(names, own):
    if not names:
        return 'nothing'
    return ', '.join(name.removeprefix(f'{own}.') for name in names)


def is_quantized(strategy: dict | list) -> bool:
    """Whether a strategy of quantization-aware training, the two lists or a list of pairs, quantizes anything."""
    rows = strategy.values() if isinstance(strategy, dict) else strategy
    return any(0 < bits < 32 for row in rows for bits in row)


def parse_bit_list(text: str) -> list[int]:
    """Read a list from the command line: `[32, 8, 8]`, `32,8,8`, or with repetitions, `32,8x10,16`.

    Raises:
        ValueError: it is none.
    """
    bits = []
    for part in str(text).strip().strip('[]').replace(' ', ',').split(','):
        if not part:
            continue
        value, _, times = part.partition('x')
        if not re.fullmatch('[0-9]{1,9}(x[0-9]{1,100})?', part):
            raise ValueError(f'{text!s:.200}: {part!r:.60} is no number of bits; expected a list like 32,8,8,16 or '
                             '32,8x10,16')
        if len(bits) + int(times or 1) > MAX_ENTRIES:
            raise ValueError(f'{text!s:.200}: {part!r} makes more than {MAX_ENTRIES} entries; expected one per part of '
                             'the network')
        bits += [int(value)] * int(times or 1)
    if not bits:
        raise ValueError(f'{text!r}: expected a list like 32,8,8,16 or 32,8x10,16')
    return bits
