"""What every hardware model shares: parameters with units, the cost of a layer, and the table of a network."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from typing import ClassVar, NamedTuple

import numpy as np

from lib.record.parameters import Parameters, parameter, parse_parameters
from lib.record.values import Rule
from lib.simulator.cost import MAX_BIT, CostTable
from lib.simulator.layer import LayerRecord

MAX_BATCH = 2**16
MAX_NAME = 100  # characters; tables and figures are named after it
METRICS = ('latency', 'energy')
NANOJOULE = 'nJ'  # the unit of every energy table


class LayerCost(NamedTuple):
    """The cost of one layer at one pair of bits, for a whole batch."""

    latency: int | float  # in the latency unit of the hardware
    energy: float  # nJ
    bound: str  # what the time waits for: 'compute', 'memory', 'weight port', ...
    traffic_bits: int | float  # moved between the chip and its memory
    facts: Mapping | None = None  # what else is known of it, per call, e.g. the spread of a measurement

    def times(self, n: int) -> 'LayerCost':
        """Return the cost of n calls."""
        return LayerCost(self.latency * n, self.energy * n, self.bound, self.traffic_bits * n, self.facts)


@dataclass(frozen=True)
class Hardware(Parameters, ABC):
    """Base of the hardware models: a frozen set of parameters that prices one layer at one pair of bits.

    A backend is a subclass in a file of its own: its parameters as fields made by `parameter`, `layer_cost`, and its
    presets in a dict `PRESETS` (docs/hardware.md).

    Raises:
        ValueError: a parameter out of its range (names it).
    """

    backend: ClassVar[str]  # name of the model, e.g. 'bit_serial'
    latency_unit: ClassVar[str] = 'cycles'  # of `LayerCost.latency`; 'ms' where there is no clock
    metrics: ClassVar[tuple[str, ...]] = METRICS

    name: str = parameter('name, the first part of the name of its tables', default='')
    batch: int = parameter('images that are processed together', default=1, maximum=MAX_BATCH)
    status: str = parameter('exact, fitted, nominal or measured: how far to trust the parameters', default='')

    def __post_init__(self):
        if not self.name:
            object.__setattr__(self, 'name', self.backend)
        super().__post_init__()

    def owner(self, name: str) -> str:
        return self.backend if name == 'name' else self.name

    def rule(self, f: Field, value: object) -> Rule:
        """See `Parameters.rule`; a name becomes part of the names of files."""
        rule = super().rule(f, value)
        if f.name != 'name' or not isinstance(value, str):
            return rule
        return Rule(lambda name: len(name) <= MAX_NAME and name.isprintable() and not set('/\\') & set(name)
                    and name[0] != '.', f'at most {MAX_NAME} characters without / or \\, for it becomes part of the '
                    'names of files')

    @abstractmethod
    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """Return the cost of one call of the layer for the whole batch; its `calls` is left to the caller.

        Raises:
            ValueError: the layer does not fit the hardware (names it).
        """

    def milliseconds(self, latency: float | np.ndarray) -> float | np.ndarray:
        """Return a latency (or an array of them) in ms."""
        if self.latency_unit == 'ms':
            return latency
        return latency / (self.clock_mhz * 1e3)

    def peak_macs(self, w_bit: int, a_bit: int) -> float | None:
        """Return the highest rate in multiply-accumulates per second, None where there is no such figure."""
        return None

    def memory_bandwidth(self) -> float | None:
        """Return the bandwidth of the memory outside the chip in bytes per second, None where there is none."""
        return None

    def cells(self, layers: Sequence[LayerRecord]) -> list[list[list[LayerCost]]]:
        """Return the cost of every layer at every pair of bits, `cells[l][w - 1][a - 1]`; equal shapes once."""
        bits = range(1, MAX_BIT + 1)
        known = {}
        for layer in layers:
            if layer.calls and shape_of(layer) not in known:
                known[shape_of(layer)] = [[self._priced(layer, w_bit, a_bit) for a_bit in bits] for w_bit in bits]
        never_called = [[LayerCost(0, 0, '', 0)] * MAX_BIT] * MAX_BIT
        return [[[cell.times(layer.calls) for cell in row] for row in known.get(shape_of(layer), never_called)]
                for layer in layers]

    def _priced(self, layer, w_bit, a_bit) -> LayerCost:
        try:
            return self.layer_cost(layer, w_bit, a_bit)
        except (ArithmeticError, MemoryError) as error:
            raise ValueError(f'{self.name}: {layer.name} cannot be priced ({type(error).__name__}: {error}): a '
                             'parameter is too large or too small') from error

    def cell_meaning(self, metric: str) -> str:
        """Return what a cell of a table holds, in a sentence."""
        what = {'latency': self.latency_unit, 'energy': f'energy in {NANOJOULE}'}[metric]
        return f'{what} of one layer for a batch of {self.batch} at w weight and a activation bits'

    def facts(self, layers: Sequence[LayerRecord], cells: list) -> dict:
        """Return what is to be saved with a table made of these `cells`, besides the parameters; plain values."""
        return {}

    def resources(self, layers: Sequence[LayerRecord]) -> str:
        """Return what the machine itself takes for these layers, in a line for people; empty where nothing is known."""
        return ''

    def to_dict(self) -> dict:
        """Return backend and parameters as plain values, for JSON."""
        return {'backend': self.backend, **super().to_dict()}


def make_table(
    layers: Sequence[LayerRecord], hardware: Hardware, metric: str = 'latency', about: Mapping | None = None
) -> CostTable:
    """Return the table of a network on a machine, ready for a search or for `save_table`.

    Args:
        layers: the network's layers in module order.
        hardware: a preset of `lib.simulator.backends`, or parameters of one's own.
        metric: 'latency' or 'energy' (nJ).
        about: facts to save with the table, e.g. network, dataset, resolution.

    Raises:
        ValueError: the hardware has no such metric, a layer does not fit it, or no layer is ever called.
    """
    check_metric(hardware, metric)
    cells = hardware.cells(layers)
    return table_from_cells(cells, layers, hardware, metric, about)


def table_from_cells(cells: list, layers: Sequence[LayerRecord], hardware: Hardware, metric: str,
                     about: Mapping | None = None) -> CostTable:
    """Return the `CostTable` of `hardware.cells(layers)`; see `make_table`."""
    table = np.array([[[getattr(cell, metric) for cell in row] for row in layer] for layer in cells])
    reference = table[:, -1, -1].sum().item() if len(table) else 0
    if not reference:
        raise ValueError(f'{hardware.name}: the network has no layer that costs anything: a table needs one')
    return CostTable(
        table,
        reference=reference,
        name=f'{hardware.name}_{metric}',
        unit=hardware.latency_unit if metric == 'latency' else NANOJOULE,
        meaning=hardware.cell_meaning(metric),
        layer_names=[layer.name for layer in layers],
        about={
            **(about or {}),
            'batch': hardware.batch,
            'metric': metric,
            'hardware': hardware.to_dict(),
            **hardware.facts(layers, cells),
            'layers': [layer.to_dict() for layer in layers],
        },
    )


def check_metric(hardware: Hardware, metric: str) -> None:
    """Raise ValueError, with the list of metrics, when the hardware cannot be priced by this one."""
    if metric not in hardware.metrics:
        raise ValueError(f"{hardware.name} has no metric {metric!r}, expected {' or '.join(hardware.metrics)}")


def shape_of(layer: LayerRecord) -> LayerRecord:
    """Return the record without what does not change the cost of a call: two layers of one shape compare equal."""
    return replace(layer, name='', calls=1)


def with_parameters(hardware: Hardware | type[Hardware], values: Mapping) -> Hardware:
    """Return the hardware with other parameters (a preset), or a new one (a class), from numbers or `200 MHz` strings.

    Raises:
        ValueError: an unknown or missing parameter, a wrong unit, a value out of range; each by name.
    """
    cls = hardware if isinstance(hardware, type) else type(hardware)
    parsed = parse_parameters(cls, values, f'{cls.backend} has')
    if not isinstance(hardware, type):
        return replace(hardware, **parsed)
    if missing := [f.name for f in fields(cls) if f.default is MISSING and f.name not in parsed]:
        raise ValueError(f"{cls.backend} needs {', '.join(missing)} as well (or start from a preset)")
    return cls(**parsed)
