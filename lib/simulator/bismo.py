"""The BISMO overlay, version 2: a bit-serial matrix multiplier with one read port for both operands.

Dm x Dn units (rows of the left-hand side, LHS, by rows of the transposed right-hand side, RHS) each take the dot
product of Dk single bits per cycle. Three stages work at the same time and meet in token queues: fetch (memory to
operand buffers), execute, and result (back to memory). The schedule of the runtime (github.com/EECS-NTNU/bismo,
generators of fetch and execute instructions):

    for each slice of Dn RHS rows: fetch it (all K, all bits)
        for each slice of Dm LHS rows: fetch it; execute l r ceil(K / Dk) cycles; write Dm x Dn results

So the RHS is read once and the LHS once per RHS slice. Both matrices are padded to whole slices and chunks. This is
another machine than HAQ's simulator (bit_serial.py), which has two read ports and writes no results.

The cycles are exactly those of this schedule. That ports never stall and that software adds nothing is assumed.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import ClassVar, NamedTuple

from lib.simulator.gemm import Gemm, ceil_div, layer_gemm, split
from lib.simulator.hardware import Hardware, LayerCost, parameter
from lib.simulator.layer import LayerRecord

REGIONS = 4  # of each operand buffer: a slice fills one while others are fetched or executed
BRAM_LATENCY = 3  # cycles: address, memory and output register
COMPRESSOR_DEPTH = {32: 2, 64: 3, 128: 3, 256: 4, 512: 5}  # Dk: pipeline stages
LUT_MODELS = {'fpl18': (2.04, 109.41), 'trets19': (1.17, 44.1)}  # LUTs of a dot product unit: (per bit of Dk, constant)
LUT_UNIT = 120.1  # LUTs per unit of the array besides the dot product


class Pass(NamedTuple):
    """One product that fits the buffers: how many slices, and the cycles of each kind of instruction."""

    rhs_slices: int
    lhs_slices: int
    fetch_rhs: int
    fetch_lhs: int
    execute: int
    write: int


@dataclass(frozen=True)
class Bismo(Hardware):
    """A BISMO overlay of Dm x Dk x Dn."""

    backend: ClassVar[str] = 'bismo'

    lhs_rows: int = parameter('Dm: rows of the left-hand side that the array takes at once')
    chunk_bits: int = parameter('Dk: length of one binary dot product', 'bits')
    rhs_rows: int = parameter('Dn: rows of the transposed right-hand side that the array takes at once')
    lhs_depth: int = parameter('Bm: entries of Dk bits per LHS row in its buffer', default=1024)
    rhs_depth: int = parameter('Bn: entries of Dk bits per RHS row in its buffer', default=1024)
    port_bits: int = parameter('what the read port and the write port move per cycle, each', 'bits', default=64)
    accumulator_bits: int = parameter('of a result', 'bits', default=32)
    result_tiles: int = parameter('tiles of Dm x Dn results that wait for the write port', default=2, maximum=256)
    pipeline_registers: int = parameter('cycles of the array besides its memories and compressor', default=3, minimum=0)
    clock_mhz: float = parameter('clock', 'MHz')
    weights_as: str = parameter('operand that the weights are; best: for each layer and bits whatever is faster',
                                default='best', choices=('lhs', 'rhs', 'best'))
    op_energy: float = parameter('energy of one binary operation of the array, padding included', 'pJ', minimum=0)
    dram_energy: float = parameter('energy of moving a bit from or to memory', 'pJ/bit', default=20.0, minimum=0)
    board_power: float = parameter('power that is drawn whatever happens', 'W', default=0.0, minimum=0)

    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """See `Hardware.layer_cost`. Products that do not fit the buffers run in several passes (`passes`)."""
        gemm = layer_gemm(layer, self.batch)
        costs = [self._cost(gemm.repeats, passes) for passes in self.arrangements(gemm, w_bit, a_bit) if passes]
        if not costs:
            raise ValueError(
                f'{layer.name or "layer"} does not fit {self.name}: a chunk of {self.chunk_bits} values takes as many '
                f'buffer entries as it has bits, and {w_bit}-bit weights or {a_bit}-bit activations exceed a region, '
                f'1/{REGIONS} of lhs_depth = {self.lhs_depth} or rhs_depth = {self.rhs_depth}: use fewer bits or '
                'deeper buffers'
            )
        return min(costs, key=lambda cost: cost.latency)

    def arrangements(self, gemm: Gemm, w_bit: int, a_bit: int) -> list[list[Pass]]:
        """Return the passes of one product, for each operand that the weights may be: LHS before RHS."""
        ways = {
            'lhs': (gemm.n, gemm.m, gemm.k, w_bit, a_bit),
            'rhs': (gemm.m, gemm.n, gemm.k, a_bit, w_bit),
        }
        return [self.passes(*way) for name, way in ways.items() if self.weights_as in (name, 'best')]

    def passes(self, m: int, n: int, k: int, lhs_bits: int, rhs_bits: int) -> list[Pass]:
        """Return the passes of a product of (m, k) and (k, n), one unless K is too long for the buffers.

        A slice must fit a region: bits * chunks <= depth / 4 for both operands. A longer K is cut by software into
        passes of as many chunks as fit. Each is a run of its own and writes its partial results, which software adds
        (not counted). Empty when not even one chunk fits.
        """
        longest = min(self.lhs_depth // REGIONS // lhs_bits, self.rhs_depth // REGIONS // rhs_bits)
        if not longest:
            return []
        return [
            Pass(
                rhs_slices=ceil_div(n, self.rhs_rows),
                lhs_slices=ceil_div(m, self.lhs_rows),
                fetch_rhs=ceil_div(self.rhs_rows * chunks * self.chunk_bits * rhs_bits, self.port_bits),
                fetch_lhs=ceil_div(self.lhs_rows * chunks * self.chunk_bits * lhs_bits, self.port_bits),
                execute=lhs_bits * rhs_bits * chunks,
                write=ceil_div(self.lhs_rows * self.rhs_rows * self.accumulator_bits, self.port_bits),
            )
            for chunks in split(ceil_div(k, self.chunk_bits), longest)
        ]

    def _cost(self, repeats, passes) -> LayerCost:
        passes = [(one, times * repeats, times * repeats * one.rhs_slices * one.lhs_slices)
                  for one, times in Counter(passes).items()]  # all but the last are equal
        cycles = sum(times * pass_cycles(one, self.pipeline_latency, self.result_tiles) for one, times, _ in passes)
        busy = {
            'compute': sum(tiles * one.execute for one, _, tiles in passes),
            'read port': sum(times * one.rhs_slices * one.fetch_rhs + tiles * one.fetch_lhs
                             for one, times, tiles in passes),
            'write port': sum(tiles * one.write for one, _, tiles in passes),
        }
        traffic = (busy['read port'] + busy['write port']) * self.port_bits
        binary_ops = busy['compute'] * 2 * self.lhs_rows * self.rhs_rows * self.chunk_bits
        picojoules = binary_ops * self.op_energy + traffic * self.dram_energy
        energy = picojoules / 1e3 + self.board_power * cycles / self.clock_mhz * 1e3
        return LayerCost(cycles, energy, max(busy, key=busy.get), traffic)

    @property
    def pipeline_latency(self) -> int:
        """Cycles from the last bits that enter the array to the result; instructions follow back to back."""
        depths = [depth for width, depth in COMPRESSOR_DEPTH.items() if self.chunk_bits <= width]
        depth = depths[0] if depths else 5 + ceil(log2(self.chunk_bits / 512))  # extrapolated: a stage per doubling
        return BRAM_LATENCY + depth + self.pipeline_registers

    @property
    def peak_binary_tops(self) -> float:
        """Peak in tera binary operations per second: 2 Dm Dn Dk f."""
        return 2 * self.lhs_rows * self.rhs_rows * self.chunk_bits * self.clock_mhz / 1e6

    def peak_macs(self, w_bit: int, a_bit: int) -> float:
        return self.peak_binary_tops * 1e12 / (2 * w_bit * a_bit)

    def memory_bandwidth(self) -> float:
        """Return that of the read and the write port together."""
        return 2 * self.port_bits / 8 * self.clock_mhz * 1e6

    def resources(self, layers: Sequence[LayerRecord]) -> str:
        """Return peak, LUTs and block RAMs; see `Hardware.resources`."""
        return (f'peak {self.peak_binary_tops:g} binary TOPS; array of about {self.lut_cost():,.0f} LUTs (trets19; '
                f"{self.lut_cost('fpl18'):,.0f} by fpl18), {self.bram_cost()} block RAMs of 36 Kb")

    def lut_cost(self, version: str = 'trets19') -> float:
        """Return the LUTs of the array, Dm Dn (alpha Dk + beta + 120.1), as fitted in BISMO's papers.

        Args:
            version: 'fpl18' or 'trets19' (with a compressor). The stages around the array take about 700 more.
        """
        if version not in LUT_MODELS:
            raise ValueError(f"no LUT model {version!r}, expected {' or '.join(LUT_MODELS)}")
        alpha, beta = LUT_MODELS[version]
        return self.lhs_rows * self.rhs_rows * (alpha * self.chunk_bits + beta + LUT_UNIT)

    def bram_cost(self) -> int:
        """Return the 36 Kb block RAMs of the operand buffers; a block is 1024 deep and 32 bits wide."""
        blocks = self.lhs_rows * ceil_div(self.lhs_depth, 1024) + self.rhs_rows * ceil_div(self.rhs_depth, 1024)
        return ceil_div(self.chunk_bits, 32) * blocks


# The energies are nominal: 1.4 TOPS/W reported for a Zynq-7020 at its peak; less than 8 W at 15.36 TOPS on the Ultra96.
_STATUS = 'cycles exact for the schedule of the runtime with ideal ports; pipeline registers and energy nominal'
PRESETS = {
    'bismo_pynq': Bismo(name='bismo_pynq', lhs_rows=8, chunk_bits=256, rhs_rows=8, clock_mhz=200, op_energy=0.714,
                        status=_STATUS),
    'bismo_ultra96': Bismo(name='bismo_ultra96', lhs_rows=10, chunk_bits=256, rhs_rows=10, clock_mhz=300,
                           op_energy=0.52, status=_STATUS),
}


def pass_cycles(one: Pass, latency: int, result_tiles: int) -> int:
    """Return the cycles of one pass, from the first fetch to the last result written.

    Tiles j count on through all RHS slices. With f, e, w the cycles when fetch, execute and write of a tile end, and T
    the tiles of the result buffer:

        f_j = max(f_{j-1}, e_{j-4}) + fetch_lhs          a region of the LHS buffer must be free
        e_j = max(f_j, e_{j-1}, w_{j-T}) + execute       a tile of the result buffer must be free
        w_j = max(e_j + latency, w_{j-1}) + write

    Before the first tile of RHS slice n, f grows by fetch_rhs, and waits until slice n - 4 has been executed.
    """
    newest = REGIONS  # state: (f, the last 4 e, the last T w), oldest first

    def tile(state):
        fetch = max(state[0], state[1]) + one.fetch_lhs
        execute = max(fetch, state[newest], state[newest + 1]) + one.execute
        write = max(execute + latency, state[-1]) + one.write
        return (fetch, *state[2 : newest + 1], execute, *state[newest + 2 :], write)

    def rhs_slice(state):
        # Slice n - 4 ends with tile j - 4 if slices are single tiles, else with one that a fetch has waited for before.
        free = state[1] if one.lhs_slices == 1 else 0
        state = (max(state[0], free) + one.fetch_rhs, *state[1:])
        return repeat(tile, state, one.lhs_slices, result_tiles)

    return repeat(rhs_slice, (0,) * (1 + REGIONS + result_tiles), one.rhs_slices, result_tiles)[-1]


def repeat(step: Callable, state: tuple[int, ...], times: int, period: int) -> tuple[int, ...]:
    """Return the state after `times` steps, not walking through those that only repeat with a shift.

    Args:
        step: from a tuple of points in time to the next, by sums and maxima only: shifting its argument by some cycles
            shifts the result by as many. So once a state equals an earlier one but for a shift, all that follow do.
        period: after how many steps to look for such a state. The result does not depend on it, only the speed.
    """
    recent = deque([state], maxlen=period)
    for done in range(1, times + 1):
        state = step(state)
        shift = state[0] - recent[0][0]
        if len(recent) == period and all(new - old == shift for new, old in zip(state, recent[0], strict=True)):
            rounds, rest = divmod(times - done, period)
            state = tuple(point + rounds * shift for point in state)
            return repeat(step, state, rest, period) if rest else state
        recent.append(state)
    return state
