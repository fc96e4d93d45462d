"""HAQ's bit-serial matrix array: latency in cycles from closed formulas (docs/hardware.md).

Each of D x D processing elements takes the dot product of two rows of `chunk_bits` (Dk) single bits per cycle, so w-bit
weights and a-bit activations need w * a passes. Activations and weights come from memory through a port each,
`port_bits` (P) per cycle, into a buffer each of D x `depth` entries of Dk bits. Writing results back, im2col and
activation functions cost nothing.

The formulas were recovered from the latency table published with HAQ (Wang et al., CVPR 2019), which they reproduce in
every cell. The `cloud` preset also gives the paper's latencies; `edge` is a configuration fitted to them.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lib.simulator.gemm import Gemm, ceil_div, layer_gemm, split
from lib.simulator.hardware import Hardware, LayerCost, parameter
from lib.simulator.layer import LayerRecord


@dataclass(frozen=True)
class BitSerialArray(Hardware):
    """HAQ's array of D x D processing elements."""

    backend: ClassVar[str] = 'bit_serial'

    dim: int = parameter('D: the array has D x D processing elements')
    chunk_bits: int = parameter('Dk: length of one binary dot product', 'bits')
    port_bits: int = parameter('P: what each of the two memory ports reads per cycle', 'bits')
    depth: int = parameter('entries of Dk bits per row of D in each operand buffer')
    clock_mhz: float = parameter('clock', 'MHz')
    op_energy: float = parameter('energy of one binary operation; a w x a-bit multiply-accumulate is 2 w a of them',
                                 'pJ', minimum=0)
    dram_energy: float = parameter('energy of reading a bit from memory', 'pJ/bit', minimum=0)

    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """See `Hardware.layer_cost`.

        The latency is the published model. The energy is ours, a nominal model of events: 2 w a binary operations per
        multiply-accumulate (padding to whole tiles not counted) and every bit that a tile reads.
        """
        gemm = layer_gemm(layer, self.batch)
        cycles = gemm_cycles(gemm, w_bit, a_bit, self, layer.name)
        load_a, load_w, compute = self.work(gemm, w_bit, a_bit)
        loads = {'activation port': load_a, 'weight port': load_w, 'compute': compute}
        traffic = gemm.repeats * self._tile_bits(gemm, w_bit, a_bit)
        binary_ops = 2 * w_bit * a_bit * gemm.repeats * gemm.m * gemm.n * gemm.k
        energy = (binary_ops * self.op_energy + traffic * self.dram_energy) / 1e3
        return LayerCost(cycles, energy, max(loads, key=loads.get), traffic)

    def peak_macs(self, w_bit: int, a_bit: int) -> float:
        return self.dim**2 * self.chunk_bits * self.clock_mhz * 1e6 / (w_bit * a_bit)

    def memory_bandwidth(self) -> float:
        """Return that of both ports together; each operand can use only its own."""
        return 2 * self.port_bits / 8 * self.clock_mhz * 1e6

    def tiles(self, gemm: Gemm, w_bit: int, a_bit: int, name: str = '') -> list[tuple[int, int, int]]:
        """Return (activation rows, weight rows, how many such tiles) of one product, cut so that they fit the buffers.

        Both dataflows have the same tiles: as many rows as a buffer holds, in multiples of D, a row being whole chunks.
        """
        m_tiles = Counter(split(gemm.m, self._tile_rows(gemm.k, a_bit, name)))
        n_tiles = Counter(split(gemm.n, self._tile_rows(gemm.k, w_bit, name)))
        return [(m, n, times_m * times_n) for m, times_m in m_tiles.items() for n, times_n in n_tiles.items()]

    def work(self, gemm: Gemm, w_bit: int, a_bit: int) -> tuple[int, int, int]:
        """Return the cycles that one product would take if only (activation port, weight port, array) took time."""
        beats = sum(ceil_div(bits, self.port_bits) for bits in split(gemm.k, self.chunk_bits))
        load_a = load_w = compute = 0
        for m, n, times in self.tiles(gemm, w_bit, a_bit):
            load_a += times * a_bit * m * beats
            load_w += times * w_bit * n * beats
            pairs = ceil_div(m, self.dim) * ceil_div(n, self.dim) * ceil_div(gemm.k, self.chunk_bits)
            compute += times * w_bit * a_bit * pairs
        return load_a, load_w, compute

    def _tile_bits(self, gemm, w_bit, a_bit) -> int:
        return sum(times * gemm.k * (m * a_bit + n * w_bit) for m, n, times in self.tiles(gemm, w_bit, a_bit))

    def _tile_rows(self, k, bits, name) -> int:
        """Return how many rows of k values a buffer holds: a multiple of D, and at least D."""
        groups = self.depth // (ceil_div(k, self.chunk_bits) * bits)  # of D rows
        if not groups:
            raise ValueError(
                f'{name or "layer"} does not fit {self.name}: {self.dim} rows of {k} values at {bits} bits take '
                f'{ceil_div(k, self.chunk_bits) * bits} entries per row of its buffer, which has depth {self.depth}'
            )
        return groups * self.dim


# The energies are nominal: 1.4 TOPS/W, reported for BISMO on a Zynq-7020 at its peak, and 20 pJ per bit of DRAM.
_ENERGY = {'op_energy': 0.714, 'dram_energy': 20.0}
PRESETS = {
    'cloud': BitSerialArray(name='cloud', dim=16, chunk_bits=256, port_bits=256, depth=1024, batch=16, clock_mhz=200,
                            status='latency exact (recovered from the published table); energy nominal', **_ENERGY),
    'edge': BitSerialArray(name='edge', dim=8, chunk_bits=256, port_bits=64, depth=1024, batch=1, clock_mhz=200,
                           status='latency fitted to the published milliseconds; energy nominal', **_ENERGY),
}


def tile_cycles(m: int, n: int, k: int, w_bit: int, a_bit: int, array: BitSerialArray) -> int:
    """Return the cycles of one tile that fits the buffers: max(TA, TW).

    Activation rows go in groups r_1..r_c of D (the last may be short), weight rows in groups s_1..s_d, the k values of
    a row in chunks of Dk; L_k port cycles load one bit plane of chunk k of one row. With w and a the bits:

        TA = a * (sum_k [load_k + sum_{i=2..c} max(r_i L_k, d w) + w (d - 1)] + w - 1)       activation port
             load_k = r_1 L_k for the first chunk, max(r_1 L_k, w) for later ones
        TW = w * sum_k [a (c - 1) d + sum_{j=1..d} max(a, s_j L_k)] + a - 1                  weight port

    TA: the next activation group loads behind the d w computations of the current one; at a change of chunk only those
    of the last weight group hide it. TW: each weight plane is used for c activation groups of a cycles; only the last a
    hide the next load. Example: one row and one weight of one bit take 1 cycle.
    """
    beats = np.array([ceil_div(bits, array.port_bits) for bits in split(k, array.chunk_bits)])  # L_k
    r, s = np.array(split(m, array.dim)), np.array(split(n, array.dim))
    chunks, c, d = len(beats), len(r), len(s)

    load = r[0] * beats
    load[1:] = np.maximum(load[1:], w_bit)
    next_groups = np.maximum(np.outer(beats, r[1:]), d * w_bit).sum()
    activation_port = a_bit * (load.sum() + next_groups + chunks * w_bit * (d - 1) + w_bit - 1)

    weight_groups = np.maximum(np.outer(beats, s), a_bit).sum()
    weight_port = w_bit * (chunks * a_bit * (c - 1) * d + weight_groups) + a_bit - 1
    return int(max(activation_port, weight_port))


def gemm_cycles(gemm: Gemm, w_bit: int, a_bit: int, array: BitSerialArray, name: str = '') -> int:
    """Return the cycles of the products: the sum over the tiles, for the better of two dataflows.

    The second dataflow is the first with activations and weights exchanged. `name` is that of the layer, for messages.
    """
    straight = exchanged = 0
    for m, n, times in array.tiles(gemm, w_bit, a_bit, name):
        straight += times * tile_cycles(m, n, gemm.k, w_bit, a_bit, array)
        exchanged += times * tile_cycles(n, m, gemm.k, a_bit, w_bit, array)
    return gemm.repeats * min(straight, exchanged)
