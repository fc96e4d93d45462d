"""One interface for every cost: a table of (layer, weight bits, activation bits) and the price of a strategy."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from numbers import Integral
from pathlib import Path

import numpy as np

from lib.simulator.layer import LayerRecord
from lib.simulator.table_files import REMAKE, VERSION, checksum, npy_path, read_about, read_array, write_files

MAX_BIT = 8
UNTOUCHED = -1  # activation bits of a layer whose input is left alone; such an input is priced as 8 bit


class CostTable:
    """A cost of every layer at every pair of bits, and the cost of a strategy as the sum over its layers.

    A strategy has one entry per layer: an int (weight bits) or a pair [weight bits, activation bits], bits in 1..8.
    An int, and a pair whose activation bits are -1 (input left alone), are priced in the 8-bit activation column.

    Args:
        table: (layers, 8, 8), `table[l, w - 1, a - 1]`; integers are kept as int64 so that sums are exact.
        reference: the cost that ratios are relative to, e.g. of the network at 8/8 bits.
        name: what is measured, e.g. `cloud_latency`.
        unit: of a cell, e.g. `cycles`.
        layer_names: one per layer, for error messages.
        about: how the table was made; saved with it.

    Raises:
        ValueError: wrong shape, a cell that is negative or not finite, a reference that is not positive.
    """

    def __init__(self, table, *, reference, name, unit, layer_names=None, about=None):
        self.table = _as_table(table, name)
        self.table.setflags(write=False)
        self.num_layers = len(self.table)
        if not 0 < reference < math.inf:
            raise ValueError(f'{name}: the reference cost is {reference}, expected a positive number')
        if layer_names is not None and len(layer_names) != self.num_layers:
            raise ValueError(f'{name}: {len(layer_names)} layer names for a table of {self.num_layers} layers')
        self.reference = reference.item() if isinstance(reference, np.generic) else reference  # for JSON
        self.name = name
        self.unit = unit
        self.layer_names = None if layer_names is None else list(layer_names)
        self.about = dict(about or {})

    def __repr__(self):
        return f'CostTable({self.name}, {self.num_layers} layers, reference {self.reference} {self.unit})'

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
        a_bits = np.where(a_bits == UNTOUCHED, MAX_BIT, a_bits)
        return self.table[np.arange(self.num_layers), w_bits - 1, a_bits - 1]

    def cost(self, strategy: Sequence) -> int | float:
        """Return the cost of a strategy in `unit`; an int (exact) for a table of integers."""
        return exact_sum(self.breakdown(strategy).tolist())

    def ratio(self, strategy: Sequence) -> float:
        """Return the cost of a strategy relative to the reference."""
        return self.cost(strategy) / self.reference

    def minimum(
        self, min_bit: int, max_bit: int = MAX_BIT, fixed: Mapping | None = None, *, pairs: bool = True
    ) -> tuple[int | float, list]:
        """Return the lowest cost within the bits, and a strategy that reaches it (the fewest bits among equals).

        Args:
            min_bit: lowest bits of weights and activations; `max_bit` the highest (a table need not be monotone).
            fixed: {layer index: entry} of layers that are not free.
            pairs: whether activation bits are free too; False gives a strategy of ints (weights only).
        """
        check_bit_range(min_bit, max_bit)
        first_column = min_bit - 1 if pairs else MAX_BIT - 1
        last_column = max_bit if pairs else MAX_BIT
        allowed = self.table[:, min_bit - 1 : max_bit, first_column:last_column]
        rows, columns = np.divmod(allowed.reshape(self.num_layers, -1).argmin(axis=1), allowed.shape[2])
        w_bits, a_bits = (rows + min_bit).tolist(), (columns + min_bit).tolist()
        strategy = [[w, a] for w, a in zip(w_bits, a_bits, strict=True)] if pairs else w_bits
        strategy = self.with_fixed(strategy, fixed)
        return self.cost(strategy), strategy

    def with_fixed(self, strategy: Sequence, fixed: Mapping | None) -> list:
        """Return a copy of the strategy with the fixed entries {layer index: entry} in their places."""
        strategy = list(strategy)
        for index, entry in (fixed or {}).items():
            if not 0 <= index < len(strategy):
                raise ValueError(f'fixed entry for layer {index}, the strategy has layers 0..{len(strategy) - 1}')
            strategy[index] = list(entry) if isinstance(entry, (list, tuple)) else entry
        return strategy

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


def exact_sum(values: Sequence[int | float]) -> int | float:
    """Return the sum, exact for ints and correctly rounded for floats, whatever the order."""
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


def check_bit_range(min_bit: int, max_bit: int) -> None:
    """Raise ValueError unless 1 <= min_bit <= max_bit <= 8."""
    if not (_is_int(min_bit) and _is_int(max_bit) and 1 <= min_bit <= max_bit <= MAX_BIT):
        raise ValueError(f'bits {min_bit!r}..{max_bit!r} are no range within 1..{MAX_BIT}: check min_bit and max_bit')


def model_size(
    layers_weights: Sequence[int], *, float_bit: int = 32, layer_names: Sequence[str] | None = None
) -> CostTable:
    """Return the size of the weights in bits as a cost table: w * n for a layer of n weights, whatever its inputs.

    The reference is float_bit * sum(n). For a pruned network give the number of weights that are not zero.
    """
    counts = np.asarray(layers_weights, dtype=np.int64)
    bits = np.arange(1, MAX_BIT + 1)
    table = np.broadcast_to((counts[:, None] * bits)[:, :, None], (len(counts), MAX_BIT, MAX_BIT))
    reference = float_bit * int(counts.sum())
    return CostTable(table, reference=reference, name='model_size', unit='bits', layer_names=layer_names)


def save_table(path: str | Path, table: CostTable, about: Mapping | None = None) -> None:
    """Write the table to `path` (.npy) and how it was made to the .json beside it, each complete or not at all.

    `about` is added to `table.about`; its `layers`, a list of `LayerRecord.to_dict`, is what `load_table` checks.
    """
    facts = {
        'name': table.name,
        'unit': table.unit,
        'cell': 'table[layer][w_bit - 1][a_bit - 1]',
        'reference': table.reference,
        'version': VERSION,
        'sha256': checksum(table.table),
    }
    write_files(npy_path(path), table.table, {**facts, **table.about, **(about or {}), **facts})


def load_table(path: str | Path, layers: Sequence[LayerRecord] | None = None) -> CostTable:
    """Read a table written by `save_table`, or a bare .npy of shape (layers, 8, 8) such as the original's.

    Args:
        path: the .npy file. Name, unit and reference come from the .json beside it; without one the unit is unknown and
            the reference is the cost at 8/8 bits.
        layers: the network the table is to be used with. Names and shapes must be those in the .json, or the number of
            layers must agree where there is none.

    Raises:
        FileNotFoundError: no such table.
        ValueError: not a complete table, or made for another network (names the first layer that differs).
    """
    path = npy_path(path)
    array = _as_table(read_array(path), path)
    about = read_about(path)
    if about.get('sha256', checksum(array)) != checksum(array):
        raise ValueError(f'{path} is not the table that the .json beside it describes; {REMAKE} (--overwrite)')
    saved = [LayerRecord.from_dict(entries) for entries in about.get('layers', [])]
    if layers is not None:
        _check_same_network(path, saved, layers, num_rows=len(array))
    return CostTable(
        array,
        reference=about.get('reference', array[:, -1, -1].sum().item()),
        name=about.get('name', path.stem),
        unit=about.get('unit', 'units'),
        layer_names=[layer.name for layer in saved or layers or []] or None,
        about=about,
    )


def _is_int(value) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _as_table(values, name) -> np.ndarray:
    """Return a copy of the values as int64 or float64 of shape (layers, 8, 8), or raise ValueError."""
    table = np.array(values)
    if table.dtype.kind not in 'iuf':
        raise ValueError(f'{name}: the table holds {table.dtype}, expected integers or floats')
    if table.ndim != 3 or table.shape[1:] != (MAX_BIT, MAX_BIT) or not len(table):
        raise ValueError(f'{name}: the table has shape {table.shape}, expected (layers, {MAX_BIT}, {MAX_BIT})')
    wrong = np.argwhere(~(np.isfinite(table) & (table >= 0)))
    if len(wrong):
        layer, w_bit, a_bit = wrong[0] + (0, 1, 1)
        raise ValueError(
            f'{name}: layer {layer} costs {table[tuple(wrong[0])]} at {w_bit} weight and {a_bit} activation bits, '
            'expected a finite number that is not negative'
        )
    return table.astype(np.float64 if table.dtype.kind == 'f' else np.int64)


def _check_same_network(path, saved, layers, num_rows) -> None:
    """Raise ValueError, naming the first layer that differs, unless the table's layers are the network's."""
    if not saved and num_rows != len(layers):  # a bare .npy: all that can be compared
        raise ValueError(f'{path} has {num_rows} layers, the network has {len(layers)}; {REMAKE}')
    for index, (theirs, ours) in enumerate(itertools.zip_longest(saved, layers) if saved else ()):
        if theirs != ours:
            name = (ours or theirs).name
            raise ValueError(
                f'{path} was made for another network: layer {index} ({name}): {_difference(theirs, ours)}; {REMAKE}'
            )


def _difference(theirs, ours) -> str:
    if theirs is None or ours is None:
        return f"only the {'network' if theirs is None else 'table'} has it"
    key = next(field.name for field in fields(LayerRecord) if getattr(theirs, field.name) != getattr(ours, field.name))
    return f'{key} is {getattr(theirs, key)!r} in the table and {getattr(ours, key)!r} in the network'
