"""Compute in memory: weights as conductances of resistive crossbars, products as currents (cost only).

A crossbar of R x C cells multiplies R inputs by C columns in one read. A weight is cut into slices of c bits, one cell
each, in neighbouring columns; an input goes in d bits per read, so a-bit inputs take ceil(a / d) reads. Columns share
analog-to-digital converters (ADCs). Slices, reads and the parts of long rows are added digitally.

All slices and parts of a layer work at the same time, on arrays of their own: the latency follows the activation bits
and not the weight bits, the energy both. Weights stay where they are. Moving activations costs no time or energy here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import ClassVar

from lib.record.parameters import Parameters, parameter, without_default
from lib.simulator.gemm import ceil_div
from lib.simulator.hardware import Hardware, LayerCost
from lib.simulator.layer import LayerRecord

MAPPINGS = ('balanced', 'offset')


@dataclass(frozen=True)
class Array(Parameters):
    """An array of cells: the parameters that its price here and its products in `lib.engine` follow from."""

    rows: int = parameter('R: inputs of an array', default=128, minimum=1, maximum=2**16)
    columns: int = parameter('C: columns of an array', default=128, minimum=1, maximum=2**16)
    cell_bits: int = parameter('c: bits of a weight in one cell', 'bits', default=2, minimum=1, maximum=8)
    dac_bits: int = parameter('d: bits of an input that go in at once', 'bits', default=1, minimum=1, maximum=8)

    def columns_of(self, bits: int) -> int:
        """Return the columns of a weight of so many bits: a cell for each slice, two in the balanced mapping."""
        slices = max(1, ceil_div(bits, self.cell_bits))
        return 2 * slices if self.mapping == 'balanced' else slices


@dataclass(frozen=True)
class Crossbar(Array, Hardware):
    """Crossbars of one size with their converters."""

    backend: ClassVar[str] = 'crossbar'
    latency_unit: ClassVar[str] = 'ms'

    rows: int = without_default(Array, 'rows')  # a chip has its own
    columns: int = without_default(Array, 'columns')
    cell_bits: int = without_default(Array, 'cell_bits')
    adc_bits: int = parameter('of a conversion; 0: as many as no sum can overflow', 'bits', default=0, minimum=0)
    mapping: str = parameter('balanced: two cells of opposite sign hold w - 1 bits; offset: one holds W + 2^(w-1)',
                             default='offset', choices=MAPPINGS)
    columns_per_adc: int = parameter('columns that one converter reads in turn')
    read_ns: float = parameter('time of a read before its conversions', 'ns', minimum=0)
    conversion_ns: float = parameter('time of one conversion', 'ns')
    replication: int = parameter('copies of every layer, which share its pixels', default=1)
    max_arrays: int = parameter('arrays on the chip, 0: no limit', default=0, minimum=0)
    output_bits: int = parameter('of an output value that leaves the arrays', 'bits', default=8)
    dac_energy: float = parameter('energy of driving one row for a read', 'pJ', minimum=0)
    cell_energy: float = parameter('energy of one cell in a read', 'pJ', minimum=0)
    adc_energy: float = parameter('energy of a conversion of 8 bits', 'pJ', minimum=0)
    adc_growth: float = parameter('factor of the energy of a conversion per bit', default=2.0, minimum=1)
    shift_add_energy: float = parameter('digital energy per conversion', 'pJ', default=0.0, minimum=0)

    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """See `Hardware.layer_cost`.

        The output pixels of the batch follow one another, ceil(a / d) reads each, spread over the copies. Whole arrays
        are counted, with the rows and columns that a layer leaves unused.
        """
        if layer.kind == 'matmul':
            raise ValueError(f'{layer.name or "layer"} multiplies two activations, and {self.name} multiplies with '
                             'weights that stay in its cells: leave products out of the strategy, or take another '
                             'machine')
        arrays = self.num_arrays(layer, w_bit)
        if self.max_arrays and arrays > self.max_arrays:
            raise ValueError(
                f'{layer.name or "layer"} does not fit {self.name}: at {w_bit}-bit weights it takes {arrays} arrays, '
                f'max_arrays is {self.max_arrays}: use fewer weight bits, less replication or a larger chip'
            )
        pixels, reads = self.batch * layer.out_h * layer.out_w, ceil_div(a_bit, self.dac_bits)
        latency = ceil_div(pixels, self.replication) * reads * self.read_cycle_ns / 1e6
        energy = pixels * reads * (arrays // self.replication) * self.read_energy() / 1e3
        traffic = self.batch * (layer.inputs * a_bit + layer.outputs * self.output_bits)
        conversions = self.columns_per_adc * self.conversion_ns
        return LayerCost(latency, energy, 'ADC' if conversions > self.read_ns else 'read', traffic)

    def columns_per_weight(self, w_bit: int) -> int:
        """Return the cells of one weight; in the balanced mapping a bit of it is the sign."""
        return self.columns_of(w_bit - (self.mapping == 'balanced'))

    def num_arrays(self, layer: LayerRecord, w_bit: int) -> int:
        """Return the arrays of a layer, copies included.

        A group of K inputs per pixel and N filters is a block of K x N n_cells, on ceil(K / R) ceil(N n_cells / C)
        arrays. Blocks of a depthwise or grouped convolution share neither inputs nor columns, so as many as fit lie on
        the diagonal of one array, min(R // K, C // (N n_cells)), and the rest of it stays empty (our choice).
        """
        k = layer.in_channels // layer.groups * prod(layer.kernel)
        n = layer.out_channels // layer.groups * self.columns_per_weight(w_bit)
        on_diagonal = min(self.rows // k, self.columns // n)
        if on_diagonal:
            return self.replication * ceil_div(layer.groups, on_diagonal)
        return self.replication * layer.groups * ceil_div(k, self.rows) * ceil_div(n, self.columns)

    def network_arrays(self, layers: Sequence[LayerRecord], w_bits: Sequence[int]) -> int:
        """Return the arrays that hold a whole network, every layer that is called on its own."""
        pairs = zip(layers, w_bits, strict=True)
        return sum(self.num_arrays(layer, w_bit) for layer, w_bit in pairs if layer.calls)

    def resources(self, layers: Sequence[LayerRecord]) -> str:
        """Return the number of arrays at 8, 4 and 2 weight bits; see `Hardware.resources`."""
        counts = [f'{self.network_arrays(layers, [w_bit] * len(layers)):,} at {w_bit}' for w_bit in (8, 4, 2)]
        return f"arrays of {self.rows} x {self.columns} cells: {', '.join(counts)} weight bits"

    @property
    def conversion_bits(self) -> int:
        """Bits of a conversion: `adc_bits`, or what R products of d and c bits need, log2 R + d + c.

        One bit less where d or c is 1 (Shafiee et al., ISAAC, ISCA 2016); an R that is no power of two is rounded up.
        """
        if self.adc_bits:
            return self.adc_bits
        return ceil(log2(self.rows)) + self.dac_bits + self.cell_bits - (1 in (self.dac_bits, self.cell_bits))

    @property
    def read_cycle_ns(self) -> float:
        """Time from one read to the next: the read and the conversions of the columns that share an ADC."""
        return self.read_ns + self.columns_per_adc * self.conversion_ns

    def read_energy(self) -> float:
        """Return the pJ of one read of one array: R DACs, R C cells, C conversions of adc_energy growth^(bits - 8).

        Growth 2 is the usual figure of merit of converters, a constant energy per level; it is too low for many bits,
        where noise makes it 4.
        """
        conversion = self.adc_energy * self.adc_growth ** (self.conversion_bits - 8) + self.shift_add_energy
        return self.rows * self.dac_energy + self.rows * self.columns * self.cell_energy + self.columns * conversion

    def peak_macs(self, w_bit: int, a_bit: int) -> float | None:
        """Return the rate of a chip whose cells are all in use, None when it has no limit of arrays."""
        if not self.max_arrays:
            return None
        weights = self.max_arrays * self.rows * self.columns / self.columns_per_weight(w_bit)
        return weights / (ceil_div(a_bit, self.dac_bits) * self.read_cycle_ns * 1e-9)


# ISAAC: an ADC of 1.28 GS/s per array reads 128 columns in 100 ns, behind which the read hides; 8 bits, as its encoding
# saves the ninth. Energies from its component powers times 100 ns: 4 mW for 1024 DACs, 0.3 mW per crossbar, 0.05 mW of
# shift-and-add per crossbar; 1.7 pJ per conversion. NeuroSim: array, cells, ADC and read are its defaults. Ours are the
# conversion time, ISAAC's converters for the energy, and a cell of a quarter of 0.25 pJ (0.5 V, 100 uS, 10 ns): half
# the conductance, half of the inputs.
PRESETS = {
    'isaac': Crossbar(name='isaac', rows=128, columns=128, cell_bits=2, dac_bits=1, adc_bits=8, columns_per_adc=128,
                      read_ns=0, conversion_ns=0.78125, dac_energy=0.39, cell_energy=0.00183, adc_energy=1.7,
                      shift_add_energy=0.04, status='nominal'),
    'neurosim': Crossbar(name='neurosim', rows=128, columns=128, cell_bits=2, dac_bits=1, adc_bits=5, columns_per_adc=8,
                         read_ns=10, conversion_ns=1, dac_energy=0.39, cell_energy=0.0625, adc_energy=1.7,
                         shift_add_energy=0.04, status='nominal'),
}
