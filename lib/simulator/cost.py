"""One interface for every cost: a table of (layer, weight bits, activation bits) and the price of a strategy."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from numbers import Integral

import numpy as np

from lib.record.digest import digest_of_array, digest_of_value

MAX_BIT = 8
UNTOUCHED = -1  # activation bits of a layer whose input is left alone


def bits_of(entry: int | Sequence[int]) -> tuple[int, int]:
    """Return (weight bits, activation bits) of an entry; weight bits alone leave the input alone."""
    return (entry, UNTOUCHED) if isinstance(entry, Integral) else (int(entry[0]), int(entry[1]))


def column(a_bits: int | np.ndarray) -> int | np.ndarray:
    """Return the column of a table for activation bits, one or many; an input that is left alone is priced as 8 bit."""
    if isinstance(a_bits, int):
        return MAX_BIT - 1 if a_bits == UNTOUCHED else a_bits - 1
    return np.where(a_bits == UNTOUCHED, MAX_BIT, a_bits) - 1


def exact_sum(values: Sequence[int | float]) -> int | float:
    """Return the sum, exact for ints and correctly rounded for floats, whatever the order."""
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


COMBINE = {'sum': exact_sum, 'max': max}


@dataclass(eq=False, repr=False)
class CostTable:
    """A cost of every layer at every pair of bits, and the cost of a strategy: the sum over its layers, or the largest.

    A strategy has one entry per layer: an int (weight bits) or a pair [weight bits, activation bits], bits in 1..8.
    An int, and a pair whose activation bits are -1 (input left alone), are priced in the 8-bit activation column. What
    a strategy has no entry for, because it stays float, costs the same under all of them: `rest`.

    Args:
        table: (layers, 8, 8), `table[l, w - 1, a - 1]`; integers are kept as int64 so that sums are exact.
        reference: the cost that ratios are relative to, e.g. of the network at 8/8 bits.
        name: what is measured, e.g. `cloud_latency`.
        unit: of a cell, e.g. `cycles`.
        meaning: what a cell holds and what is counted, in a sentence.
        combine: 'sum', or 'max' for a cost that is that of the most expensive layer (a peak).
        layer_names: one per layer, for error messages.
        about: how the table was made; saved with it.
        rest: cost of all that has no entry, part of the cost of every strategy; `reference` must have it, too.
        rest_names: names of what that is, for messages.

    Raises:
        ValueError: wrong shape, a cell that is negative or not finite, a reference that is not positive.
    """

    table: np.ndarray
    _: KW_ONLY
    reference: float
    name: str
    unit: str
    meaning: str = ''
    combine: str = 'sum'
    layer_names: Sequence[str] | None = None
    about: Mapping = field(default_factory=dict)
    rest: float = 0
    rest_names: Sequence[str] = ()

    def __post_init__(self):
        self.table = as_table(self.table, self.name)
        self.table.setflags(write=False)
        self.num_layers = len(self.table)
        if not 0 <= self.rest < math.inf:
            raise ValueError(f'{self.name}: what stays float costs {self.rest}, expected a number that is not negative')
        if not 0 < self.reference < math.inf:
            raise ValueError(f'{self.name}: the reference cost is {self.reference}, expected a positive number')
        if self.layer_names is not None and len(self.layer_names) != self.num_layers:
            raise ValueError(f'{self.name}: {len(self.layer_names)} layer names for a table of {self.num_layers} '
                             'layers')
        if self.combine not in COMBINE:
            raise ValueError(f"{self.name}: combine is {self.combine!r}, expected {' or '.join(COMBINE)}")
        self.reference, self.rest = (value.item() if isinstance(value, np.generic) else value  # for JSON
                                     for value in (self.reference, self.rest))
        self.layer_names = None if self.layer_names is None else list(self.layer_names)
        self.about, self.rest_names = dict(self.about or {}), list(self.rest_names)

    def __repr__(self):
        return f'CostTable({self.name}, {self.num_layers} layers, reference {self.reference} {self.unit})'

    def digest(self) -> str:
        """Return a digest of what the table says of every strategy, whatever its name and the file it is from."""
        edges = [self.cost([[bits, bits]] * self.num_layers) for bits in (1, MAX_BIT)]
        return digest_of_value([digest_of_array(self.table.astype('<f8')), self.combine, float(self.reference),
                                *map(float, edges)])

    def label(self, index: int) -> str:
        """Return how messages call a layer: `layer 3 (features.1.conv.0)`; negative indices count from the end."""
        index %= self.num_layers
        return f'layer {index}' + (f' ({self.layer_names[index]})' if self.layer_names else '')

    def bits(self, strategy: Sequence) -> list[tuple[int, int]]:
        """Return the strategy as (weight bits, activation bits) per layer, -1 where the input is left alone.

        Raises:
            ValueError: not a list, wrong length, an entry that is neither int nor pair, bits outside 1..8; the message
                names the layer.
        """
        if not isinstance(strategy, (list, tuple, np.ndarray)):
            raise ValueError(f'a strategy is a list with one entry per layer, got {strategy!r}')
        if len(strategy) != self.num_layers:
            too_short = len(strategy) < self.num_layers
            where = f'none for {self.label(len(strategy))}' if too_short else f'the last is {self.label(-1)}'
            raise ValueError(f'strategy has {len(strategy)} entries, {self.name} has {self.num_layers} layers: {where}')
        return [self._entry_bits(index, entry) for index, entry in enumerate(strategy)]

    def breakdown(self, strategy: Sequence) -> np.ndarray:
        """Return the cost of each layer, (layers,)."""
        w_bits, a_bits = np.array(self.bits(strategy), dtype=np.int64).T
        return self.table[np.arange(self.num_layers), w_bits - 1, column(a_bits)]

    def cost(self, strategy: Sequence) -> int | float:
        """Return the cost of a strategy in `unit`; an int (exact) for a table of integers."""
        return self.total(self.breakdown(strategy).tolist())

    def total(self, prices: Sequence[int | float]) -> int | float:
        """Return the cost of a network whose layers cost this much, with the `rest`."""
        return COMBINE[self.combine]([*prices, self.rest] if self.rest else prices)

    def derive(self, **changes) -> 'CostTable':
        """Return a table with some of the arguments of this one changed."""
        return replace(self, **changes)

    def ratio(self, strategy: Sequence) -> float:
        """Return the cost of a strategy relative to the reference."""
        return self.cost(strategy) / self.reference

    def minimum(self, choices: Sequence[Sequence]) -> tuple[int | float, list]:
        """Return the lowest cost, and a strategy that reaches it (the first choice among equals).

        Args:
            choices: the entries that each layer may have, fewest bits first (a table need not be monotone).
        """
        bits = ([bits_of(entry) for entry in entries] for entries in choices)
        prices = ([self.table[layer, w - 1, column(a)] for w, a in pairs] for layer, pairs in enumerate(bits))
        strategy = [entries[int(np.argmin(cells))] for entries, cells in zip(choices, prices, strict=True)]
        return self.cost(strategy), strategy

    def _entry_bits(self, index, entry) -> tuple[int, int]:
        is_pair = isinstance(entry, (list, tuple, np.ndarray)) and len(entry) == 2
        w_bit, a_bit = entry if is_pair else (entry, UNTOUCHED)
        if not (_is_int(w_bit) and _is_int(a_bit)):
            raise ValueError(
                f'strategy entry for {self.label(index)} is {entry!r}, '
                'expected an int (weight bits) or a pair [weight bits, activation bits]'
            )
        if not (1 <= w_bit <= MAX_BIT and (a_bit == UNTOUCHED or 1 <= a_bit <= MAX_BIT)):
            raise ValueError(
                f'strategy entry for {self.label(index)} is {entry!r}, expected bits in 1..{MAX_BIT} '
                f'(activation bits may be {UNTOUCHED}: input left alone)'
            )
        return int(w_bit), int(a_bit)


def check_bit_range(min_bit: int, max_bit: int) -> None:
    """Raise ValueError unless 1 <= min_bit <= max_bit <= 8."""
    if not (_is_int(min_bit) and _is_int(max_bit) and 1 <= min_bit <= max_bit <= MAX_BIT):
        raise ValueError(f'bits {min_bit!r}..{max_bit!r} are no range within 1..{MAX_BIT}: check min_bit and max_bit')


def _is_int(value) -> bool:
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))  # the first is fast


def as_table(values: object, name: object) -> np.ndarray:
    """Return a copy of the values as int64 or float64 of shape (layers, 8, 8), or raise ValueError."""
    table = np.array(values)
    if table.dtype == object and all(isinstance(value, int) for value in table.flat):
        raise ValueError(f'{name}: the table holds whole numbers beyond 64 bits: take a smaller batch or a larger unit')
    if table.dtype.kind not in 'iuf':
        raise ValueError(f'{name}: the table holds {table.dtype}, expected integers or floats')
    if table.ndim != 3 or table.shape[1:] != (MAX_BIT, MAX_BIT) or not len(table):
        raise ValueError(f'{name}: the table has shape {table.shape}, expected (layers, {MAX_BIT}, {MAX_BIT})')
    largest = np.iinfo(np.int64).max if table.dtype.kind == 'u' else np.inf
    wrong = np.argwhere(~(np.isfinite(table) & (table >= 0) & (table <= largest)))
    if len(wrong):
        layer, w_bit, a_bit = wrong[0] + (0, 1, 1)
        raise ValueError(
            f'{name}: layer {layer} costs {table[tuple(wrong[0])]} at {w_bit} weight and {a_bit} activation bits, '
            'expected a finite number that is not negative'
        )
    return table.astype(np.float64 if table.dtype.kind == 'f' else np.int64)
