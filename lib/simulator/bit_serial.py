"""HAQ's bit-serial matrix array: latency in cycles from closed formulas (docs/lookup_tables.md).

Each of D x D processing elements takes the dot product of two rows of `chunk_bits` (Dk) single bits per cycle, so w-bit
weights and a-bit activations need w * a passes. Activations and weights come from memory through a port each,
`port_bits` (P) per cycle, into a buffer each of D x `depth` entries of Dk bits. Writing results back, im2col and
activation functions cost nothing.

The formulas were recovered from the latency table published with HAQ (Wang et al., CVPR 2019), which they reproduce in
every cell. The `cloud` preset also gives the paper's latencies; `edge` is a configuration fitted to them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from lib.simulator.cost import MAX_BIT, CostTable
from lib.simulator.layer import LayerRecord


@dataclass(frozen=True)
class BitSerialArray:
    """The parameters of an array; all must be positive, else ValueError."""

    dim: int  # D: the array has D x D processing elements
    chunk_bits: int  # Dk: bits of one binary dot product
    port_bits: int  # P: bits per cycle that each of the two memory ports reads
    depth: int  # entries of Dk bits per row of D in each operand buffer
    batch: int  # images that are processed together
    clock_mhz: float

    def __post_init__(self):
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f'bit-serial array: {field.name} is {getattr(self, field.name)}, expected > 0')

    def milliseconds(self, cycles):
        """Return the time of a number (or array) of cycles in ms."""
        return cycles / (self.clock_mhz * 1e3)


PRESETS = {
    'cloud': BitSerialArray(dim=16, chunk_bits=256, port_bits=256, depth=1024, batch=16, clock_mhz=200),
    'edge': BitSerialArray(dim=8, chunk_bits=256, port_bits=64, depth=1024, batch=1, clock_mhz=200),
}


class Gemm(NamedTuple):
    """`repeats` products of an (m, k) matrix of activation rows and an (n, k) matrix of weight rows."""

    repeats: int
    m: int
    n: int
    k: int


def layer_gemm(layer: LayerRecord, batch: int) -> Gemm:
    """Return the matrix products that a layer amounts to for a whole batch.

    A convolution is one product per image (im2col rows). In a depthwise convolution each channel is one product: the
    images of the batch lie side by side in a row and the filter is repeated for each of them (block diagonal). A linear
    layer is a single product over all positions of the batch. Our extensions, as the original's networks have neither:
    a grouped convolution is a dense one per group; several filters per depthwise channel are so many more weight rows.
    """
    pixels = layer.out_h * layer.out_w
    taps = layer.kernel[0] * layer.kernel[1]
    in_channels, out_channels = layer.in_channels // layer.groups, layer.out_channels // layer.groups  # of one group
    if layer.kind == 'linear':
        gemm = Gemm(1, batch * pixels, out_channels, in_channels)
    elif layer.is_depthwise:
        gemm = Gemm(layer.groups, pixels, batch * out_channels, taps * batch)
    else:
        gemm = Gemm(batch * layer.groups, pixels, out_channels, in_channels * taps)
    return gemm._replace(repeats=layer.calls * gemm.repeats)


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
    beats = np.array([_ceil_div(bits, array.port_bits) for bits in _split(k, array.chunk_bits)])  # L_k
    r, s = np.array(_split(m, array.dim)), np.array(_split(n, array.dim))
    chunks, c, d = len(beats), len(r), len(s)

    load = r[0] * beats
    load[1:] = np.maximum(load[1:], w_bit)
    next_groups = np.maximum(np.outer(beats, r[1:]), d * w_bit).sum()
    activation_port = a_bit * (load.sum() + next_groups + chunks * w_bit * (d - 1) + w_bit - 1)

    weight_groups = np.maximum(np.outer(beats, s), a_bit).sum()
    weight_port = w_bit * (chunks * a_bit * (c - 1) * d + weight_groups) + a_bit - 1
    return int(max(activation_port, weight_port))


def layer_cycles(layer: LayerRecord, w_bit: int, a_bit: int, array: BitSerialArray, batch: int | None = None) -> int:
    """Return the cycles of a layer for a whole batch (default: that of the array); 0 if the layer is never called."""
    gemm = layer_gemm(layer, array.batch if batch is None else batch)
    return gemm_cycles(gemm, w_bit, a_bit, array) if layer.calls else 0


def gemm_cycles(gemm: Gemm, w_bit: int, a_bit: int, array: BitSerialArray) -> int:
    """Return the cycles of the products: the sum over the tiles, for the better of two dataflows.

    The second dataflow is the first with activations and weights exchanged. The tiles are the same for both: as many
    rows as a buffer holds, in multiples of D (at least D), where a row takes whole chunks.
    """
    repeats, m, n, k = gemm
    m_tiles = _split(m, _tile_rows(k, a_bit, array))
    n_tiles = _split(n, _tile_rows(k, w_bit, array))
    straight = exchanged = 0
    for rows_m, times_m in Counter(m_tiles).items():
        for rows_n, times_n in Counter(n_tiles).items():
            times = times_m * times_n
            straight += times * tile_cycles(rows_m, rows_n, k, w_bit, a_bit, array)
            exchanged += times * tile_cycles(rows_n, rows_m, k, a_bit, w_bit, array)
    return repeats * min(straight, exchanged)


def latency_table(layers: Sequence[LayerRecord], array: BitSerialArray, batch: int | None = None) -> np.ndarray:
    """Return the cycles of every layer at every pair of bits, int64 (layers, 8, 8), `table[l, w - 1, a - 1]`."""
    bits = range(1, MAX_BIT + 1)
    unnamed = [replace(layer, name='') for layer in layers]
    cells = {
        layer: [[layer_cycles(layer, w_bit, a_bit, array, batch) for a_bit in bits] for w_bit in bits]
        for layer in set(unnamed)  # equal shapes once
    }
    return np.array([cells[layer] for layer in unnamed], dtype=np.int64).reshape(-1, MAX_BIT, MAX_BIT)


def make_table(
    layers: Sequence[LayerRecord],
    hardware: str | BitSerialArray = 'cloud',
    batch: int | None = None,
    about: Mapping | None = None,
) -> CostTable:
    """Return the latency table of a network, ready for a search or for `save_table`.

    Args:
        layers: the network's layers in module order.
        hardware: name of a preset, or an array of one's own.
        batch: images processed together; None = that of the hardware (cloud 16, edge 1).
        about: facts to save with the table, e.g. network, dataset, resolution.

    Raises:
        ValueError: unknown preset (the message lists them), batch below 1, no layer that is ever called.
    """
    name = hardware if isinstance(hardware, str) else 'bit_serial'
    if isinstance(hardware, str):
        if hardware not in PRESETS:
            raise ValueError(f"unknown hardware {hardware!r}, expected one of {', '.join(sorted(PRESETS))}")
        hardware = PRESETS[hardware]
    if batch is not None:
        hardware = replace(hardware, batch=batch)
    table = latency_table(layers, hardware)
    return CostTable(
        table,
        reference=int(table[:, -1, -1].sum()),
        name=f'{name}_latency',
        unit='cycles',
        layer_names=[layer.name for layer in layers],
        about={
            **(about or {}),
            'batch': hardware.batch,
            'model': 'bit_serial',
            'hardware': {'name': name, **asdict(hardware)},
            'layers': [layer.to_dict() for layer in layers],
        },
    )


def _tile_rows(k: int, bits: int, array: BitSerialArray) -> int:
    """Return how many rows of k values a buffer holds: a multiple of D, and at least D."""
    entries_per_row = _ceil_div(k, array.chunk_bits) * bits
    return max(array.dim, array.dim * array.depth // entries_per_row // array.dim * array.dim)


def _split(total: int, size: int) -> list[int]:
    """Return the sizes of the pieces of `total` cut every `size`: 7 by 3 gives [3, 3, 1]."""
    full, rest = divmod(total, size)
    return [size] * full + ([rest] if rest else [])


def _ceil_div(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
