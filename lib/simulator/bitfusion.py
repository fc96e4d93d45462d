"""BitFusion: an array of multipliers that split into several of fewer bits (docs/hardware.md).

A unit of the array makes one product of 8 x 8 bits per cycle, 4 of 4 x 4 or 16 of 2 x 2. Weights, activations and
partial sums pass through a buffer each, half of which holds the running tile. A layer costs what the best of all loop
orders and tilings costs. Cycles, traffic and energy are those of the simulator published with BitFusion (Sharma et al.,
ISCA 2018), reproduced exactly; grouped convolutions, which that simulator does not know, are mapped to dense blocks of
channels, a rule inferred from the table published with APQ (Wang et al., CVPR 2020).
"""

from dataclasses import dataclass
from itertools import permutations
from math import prod
from typing import ClassVar, NamedTuple

import numpy as np

from lib.simulator.gemm import ceil_div
from lib.simulator.hardware import Hardware, LayerCost, parameter
from lib.simulator.layer import LayerRecord

IMAGE_CHANNELS = 3  # a dense convolution of at most so many input channels reads an image: im2col mode
LAYOUTS = ('padded', 'packed')
LOOPS = B, OH, OW, IC, OC = range(5)
INDEXED_BY = {  # the loops that step through the tiles of each kind of data
    'weight': (IC, OC),
    'activation': (B, OH, OW, IC),
    'output': (B, OH, OW, OC),
}


class Convolution(NamedTuple):
    """A dense convolution of a whole batch; a linear layer is one of kernel, stride and output 1 x 1."""

    kernel: tuple[int, int]  # (height, width)
    stride: tuple[int, int]
    out: tuple[int, int]
    in_channels: int
    out_channels: int
    batch: int = 1
    im2col: bool = False  # whether kernel positions and channels together fill the rows of the array (first layers)


class Schedule(NamedTuple):
    """What the best loop order and tiling of a convolution costs; bits are those of the memory outside the chip."""

    cycles: int
    stall: int  # cycles in which the array does not compute, first loads and last stores included
    read_bits: int
    write_bits: int
    core_energy: float  # nJ, as the other energies
    sram_energy: float
    dram_energy: float
    tile: tuple[int, ...]  # (images, rows, columns, input channels, output channels); often not the only best one

    @property
    def energy(self) -> float:
        """Energy of the whole batch in nJ."""
        return self.core_energy + self.sram_energy + self.dram_energy


@dataclass(frozen=True)
class BitFusion(Hardware):
    """An array of `rows` x `columns` fusion units with its three buffers."""

    backend: ClassVar[str] = 'bitfusion'

    rows: int = parameter('N: inputs that a column of units adds up', minimum=2)
    columns: int = parameter('M: outputs that the array makes at a time')
    widest: int = parameter('bits of the operands of a whole unit', 'bits', minimum=8)
    narrowest: int = parameter('bits of the narrowest operands that a unit splits into', 'bits')
    output_bits: int = parameter('bits of a partial sum', 'bits', minimum=16)
    weight_buffer: int = parameter('buffer of the weights; half of each buffer holds a tile', 'bytes')
    activation_buffer: int = parameter('buffer of the activations', 'bytes')
    output_buffer: int = parameter('buffer of the partial sums', 'bytes')
    dram_bits: int = parameter('what memory and chip exchange per cycle', 'bits')
    layout: str = parameter('whether the traffic counts tiles padded to the size of the array', choices=LAYOUTS)
    group_block: int = parameter('channels of a dense block of a grouped convolution, per product of a unit and cycle')
    clock_mhz: float = parameter('clock', 'MHz')
    unit_energy: float = parameter('energy of one unit in a cycle of computing', 'pJ', minimum=0)
    weight_read_energy: float = parameter('energy of reading the weight buffer', 'pJ/bit', minimum=0)
    weight_write_energy: float = parameter('energy of writing the weight buffer', 'pJ/bit', minimum=0)
    activation_read_energy: float = parameter('energy of reading the activation buffer', 'pJ/bit', minimum=0)
    activation_write_energy: float = parameter('energy of writing the activation buffer', 'pJ/bit', minimum=0)
    output_read_energy: float = parameter('energy of reading the output buffer', 'pJ/bit', minimum=0)
    output_write_energy: float = parameter('energy of writing the output buffer', 'pJ/bit', minimum=0)
    dram_energy: float = parameter('energy of moving a bit between memory and chip', 'pJ/bit', minimum=0)

    def __post_init__(self):
        super().__post_init__()
        if self.narrowest > self.widest:
            raise ValueError(f'{self.name}: narrowest is {self.narrowest} bits, expected at most widest, {self.widest}')

    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """See `Hardware.layer_cost`; 'memory' bound where the traffic alone takes longer than the computing."""
        repeats, problem = self.as_convolution(layer, w_bit, a_bit)
        best = self.best_schedule(problem, w_bit, a_bit, layer.name)
        traffic = best.read_bits + best.write_bits
        bound = 'memory' if traffic > self.dram_bits * (best.cycles - best.stall) else 'compute'
        return LayerCost(best.cycles, best.energy, bound, traffic).times(repeats)

    def peak_macs(self, w_bit: int, a_bit: int) -> float:
        return self.rows * self.columns * self.products(w_bit, a_bit) * self.clock_mhz * 1e6

    def memory_bandwidth(self) -> float:
        return self.dram_bits / 8 * self.clock_mhz * 1e6

    def products(self, w_bit: int, a_bit: int) -> int:
        """Return how many products a unit makes per cycle: 3 bits count as 4, 5 to 7 as 8, 1 as 2."""
        return (self.widest // max(w_bit, self.narrowest)) * (self.widest // max(a_bit, self.narrowest))

    def as_convolution(self, layer: LayerRecord, w_bit: int, a_bit: int) -> tuple[int, Convolution]:
        """Return how often which dense convolution is run for one call of the layer.

        A linear layer takes its positions as images, and so does a product of activations, once for each image. A
        grouped convolution becomes dense blocks that hold as many whole groups as fit into `group_block` * `products`
        channels, at most the columns of the array, but at least one group; all blocks count as full. For a depthwise
        layer at 4 to 8 bits that is what the table of APQ suggests; it has no fewer bits, where blocks wider than the
        array would only cost more. A dense convolution of an image is in im2col mode.
        """
        if layer.kind == 'matmul':
            return self.batch, Convolution((1, 1), (1, 1), (1, 1), layer.in_channels, layer.out_channels, layer.out_h)
        if layer.kind == 'linear':
            positions = self.batch * layer.out_h * layer.out_w
            return 1, Convolution((1, 1), (1, 1), (1, 1), layer.in_channels, layer.out_channels, positions)
        cin, cout = layer.in_channels // layer.groups, layer.out_channels // layer.groups  # of one group
        block = min(self.group_block * self.products(w_bit, a_bit), self.columns)
        fit = block // max(cin, cout)
        together = min(layer.groups, max(1, fit))
        problem = Convolution(
            layer.kernel, layer.stride, (layer.out_h, layer.out_w), cin * together, cout * together, self.batch,
            im2col=layer.groups == 1 and layer.in_channels <= IMAGE_CHANNELS,
        )  # fmt: skip
        return ceil_div(layer.groups, together), problem

    def best_schedule(self, problem: Convolution, w_bit: int, a_bit: int, name: str = '') -> Schedule:
        """Return the schedule of fewest cycles, and of least energy among those, over all loop orders and tilings.

        Raises:
            ValueError: not even the smallest tile fits the buffers; the message has the `name` of the layer.
        """
        tiles = _tilings(problem, self.columns)
        sizes = self._tile_bits(problem, tiles, w_bit, a_bit)
        fits = np.all([sizes[data] <= self._capacity(data) for data in INDEXED_BY], axis=0)
        if not fits.any():
            self._refuse(sizes, w_bit, a_bit, name)
        tiles, sizes = tiles[:, fits], {data: bits[fits] for data, bits in sizes.items()}

        counts = _counts(problem, tiles)
        orders = _orders(counts)
        moved, resident = {}, {}  # bits of each kind of data, both (orders, tilings)
        for data, loops in INDEXED_BY.items():
            moved[data], resident[data] = _traffic(sizes[data], counts, orders, loops, self._capacity(data))
        compute = counts.prod(axis=0) * self._tile_cycles(problem, tiles, w_bit, a_bit)
        stall = self._stall(moved, resident, compute)

        order, tiling = np.nonzero(compute + stall == (compute + stall).min())
        moved = {data: bits[order, tiling] for data, bits in moved.items()}
        compute, stall, tiles = compute[tiling], stall[order, tiling], tiles[:, tiling]
        energies = self._energies(problem, tiles, counts[:, tiling], moved, compute, w_bit, a_bit)
        best = energies.sum(axis=0).argmin()
        return Schedule(
            int(compute[best] + stall[best]), int(stall[best]),
            int(sum(moved.values())[best]), int(moved['output'][best]),
            *energies[:, best].tolist(), tuple(tiles[:, best].tolist()),
        )  # fmt: skip

    def _capacity(self, data) -> int:
        """Return the bits of one half of a buffer: the other half is being filled or emptied."""
        return getattr(self, f'{data}_buffer') * 8 // 2

    def _tile_bits(self, problem, tiles, w_bit, a_bit) -> dict[str, np.ndarray]:
        """Return the bits of each kind of data in every tile, (tilings,) each."""
        b, oh, ow, ic, oc = tiles
        (kh, kw), (sh, sw) = problem.kernel, problem.stride
        weights, outputs = kh * kw * ic, oc
        if self.layout == 'padded':
            weights, outputs = _round_up(weights, self.rows * self.products(w_bit, a_bit)), _round_up(oc, self.columns)
        window = oh * ow * kh * kw if problem.im2col else (kh + (oh - 1) * sh) * (kw + (ow - 1) * sw)
        return {
            'weight': weights * oc * w_bit,
            'activation': window * ic * b * a_bit,
            'output': oh * ow * outputs * b * self.output_bits,
        }

    def _tile_cycles(self, problem, tiles, w_bit, a_bit) -> np.ndarray:
        """Return the cycles of computing every tile, (tilings,)."""
        b, oh, ow, ic, oc = tiles
        at_once, taps = self.rows * self.products(w_bit, a_bit), prod(problem.kernel)
        steps = -(-taps * ic // at_once) if problem.im2col else taps * -(-ic // at_once)
        return b * oh * ow * -(-oc // self.columns) * steps

    def _stall(self, moved, resident, compute) -> np.ndarray:
        """Return the cycles that do not compute, (orders, tilings): first loads, last stores, and waiting between."""
        first, last = sum(resident.values()), resident['output']
        ends = -(-first // self.dram_bits) - (-last // self.dram_bits)
        between = sum(moved.values()) + moved['output'] - first - last
        return np.maximum(0, -(-between // self.dram_bits) - compute) + ends

    def _energies(self, problem, tiles, counts, moved, compute, w_bit, a_bit) -> np.ndarray:
        """Return core, buffer and memory energy in nJ, (3, schedules).

        The array reads its buffers as output-stationary: a partial sum stays until all its inputs of the tile are
        added. The published simulator compares three stationarities; this one is always the cheapest from 2 rows and
        16-bit partial sums on (hence the limits of these parameters).
        """
        outputs = counts.prod(axis=0) * tiles[[B, OH, OW, OC]].prod(axis=0)
        products = outputs * tiles[IC] * prod(problem.kernel)
        sums = outputs * self.output_bits + moved['output']
        core = self.unit_energy * self.rows * self.columns * compute
        sram = (
            products * a_bit * self.activation_read_energy + moved['activation'] * self.activation_write_energy
            + products * w_bit * self.weight_read_energy + moved['weight'] * self.weight_write_energy
            + sums * (self.output_read_energy + self.output_write_energy)
        )  # fmt: skip
        dram = self.dram_energy * (sum(moved.values()) + moved['output'])
        return np.stack([core, sram, dram]) / 1e3

    def _refuse(self, sizes, w_bit, a_bit, name):
        data = next(data for data in INDEXED_BY if sizes[data][0] > self._capacity(data))
        raise ValueError(
            f'{name or "layer"} does not fit {self.name}: its smallest tile has {sizes[data][0]} bits of {data}s at '
            f'{w_bit} weight and {a_bit} activation bits, half of {data}_buffer is {self._capacity(data)}: enlarge it'
        )


def _round_up(values, multiple):
    return -(-values // multiple) * multiple


def _tile_sizes(total: int, first: int = 1) -> list[int]:
    """Return the sizes that are tried in one dimension: `first` times powers of two below the total, and the total."""
    return [first << i for i in range(total.bit_length()) if first << i < total] + [total]


def _tilings(problem, columns) -> np.ndarray:
    """Return all tiles that are tried, one per column, rows in the order of `LOOPS`; the first is the smallest.

    Tiles of the output are squares; the published simulator has square outputs only. Ours of other outputs are squares
    cut off at the shorter side.
    """
    oc_sizes = _tile_sizes(problem.out_channels, 1 if problem.im2col else columns)
    sizes = [_tile_sizes(problem.batch), _tile_sizes(max(problem.out)), _tile_sizes(problem.in_channels), oc_sizes]
    b, side, ic, oc = (grid.ravel() for grid in np.meshgrid(*sizes, indexing='ij'))
    return np.stack([b, np.minimum(side, problem.out[0]), np.minimum(side, problem.out[1]), ic, oc])


def _counts(problem, tiles) -> np.ndarray:
    """Return how many steps each loop takes, shaped like `tiles`."""
    totals = np.array([problem.batch, *problem.out, problem.in_channels, problem.out_channels])
    return -(-totals[:, None] // tiles)


def _orders(counts) -> np.ndarray:
    """Return the loop orders that can differ, innermost loop first: (orders, loops).

    A loop of a single step does nothing in any place. The loops over the rows and columns of the output step through
    the same data, so that they can be exchanged where their counts agree.
    """
    orders = permutations(loop for loop in LOOPS if (counts[loop] > 1).any())
    alike = np.array_equal(counts[OH], counts[OW])
    return np.array([o for o in orders if not (alike and OH in o and o.index(OH) > o.index(OW))])


def _traffic(size, counts, orders, indexed_by, capacity) -> tuple[np.ndarray, np.ndarray]:
    """Return the bits that are moved in all, and those that stay in the buffer at a time; both (orders, tilings).

    From the innermost loop outwards, data that a loop does not step through stays, and data that it does accumulates
    in the buffer for as long as it fits. From the loop on with which it no longer does, all is moved in every step.
    """
    moved = np.broadcast_to(size, (len(orders), len(size)))
    resident, staying = moved, np.full(moved.shape, True)
    for loops in orders.T:
        free = staying & ~np.isin(loops, indexed_by)[:, None]
        moved = np.where(free, moved, moved * counts[loops])
        staying = staying & (moved <= capacity)
        resident = np.where(staying, moved, resident)
    return moved, resident


# Sizes and energies (45 nm, buffers by CACTI) are those of the published simulator's configuration.
_ISCA = {
    'rows': 16, 'columns': 32, 'widest': 8, 'narrowest': 2, 'output_bits': 32, 'weight_buffer': 65536,
    'activation_buffer': 32768, 'output_buffer': 16384, 'dram_bits': 192, 'group_block': 8, 'clock_mhz': 500,
    'unit_energy': 0.4591875, 'weight_read_energy': 0.02136565625, 'weight_write_energy': 0.02891615625,
    'activation_read_energy': 0.059474375, 'activation_write_energy': 0.1137040625,
    'output_read_energy': 0.0331553125, 'output_write_energy': 0.0730840625, 'dram_energy': 15.0,
}  # fmt: skip
PRESETS = {
    'bitfusion': BitFusion(name='bitfusion', batch=1, layout='padded', **_ISCA,
                           status='exact (the published simulator); grouped convolutions inferred from the APQ table'),
    'apq': BitFusion(name='apq', batch=1, layout='packed', **_ISCA,
                     status='latency fitted to the APQ table; energy that of the BitFusion simulator, lower than APQ'),
}
