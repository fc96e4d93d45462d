"""Latency measured on the machine this runs on, layer by layer, with real kernels (docs/hardware.md).

Every distinct shape is run as a layer of its own with made-up operands, all shapes in turns (`timing.py`).
The time in the table is the lowest median of a round of runs; median and spread are stored beside it. The kernels are
those of `kernels.py`. Integer kernels of common libraries have 8 bits and nothing less: with them every cell
of a layer is the int8 time, and fewer bits save no time. Only `popcount` depends on the bits, about as w a.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from lib.simulator.cost import MAX_BIT
from lib.simulator.hardware import Hardware, LayerCost, parameter, shape_of
from lib.simulator.layer import LayerRecord
from lib.simulator.measured.kernels import (
    ENGINES,
    FLOATS,
    FloatKernel,
    Int8Kernel,
    IntMatmulKernel,
    Kernel,
    PopcountOperands,
    check_int8,
)
from lib.simulator.measured.machine import machine_facts
from lib.simulator.measured.onnx_kernel import OnnxKernel, load_onnx
from lib.simulator.measured.timing import Protocol, Timing, cuda_clock, measure, wall_clock

KERNELS = ('int8', *FLOATS, 'popcount', 'onnxruntime')
GRIDS = {'ends': (1, 8), 'powers': (1, 2, 4, 8), 'all': tuple(range(1, 9))}


@dataclass(frozen=True)
class MeasuredMachine(Hardware):
    """This machine, with one kind of kernel."""

    backend: ClassVar[str] = 'measured'
    latency_unit: ClassVar[str] = 'ms'
    metrics: ClassVar[tuple[str, ...]] = ('latency',)

    kernel: str = parameter('arithmetic and code of the layers', default='int8', choices=KERNELS)
    device: str = parameter('where they run', default='cpu', choices=('cpu', 'cuda'))
    threads: int = parameter('processor threads of a kernel', default=1)
    engine: str = parameter("PyTorch's backend of int8 on the CPU; auto is its best", default='auto', choices=ENGINES)
    grid: str = parameter('bits at which popcount is measured, in both operands: ends are 1 and 8, powers 1 2 4 8; '
                          'the others are interpolated', default='powers', choices=tuple(GRIDS))
    warm_up: int = parameter('runs of a warm-up block; blocks follow until two medians agree within 10 %', default=10)
    rounds: int = parameter('parts of the measurement, each with a median of its own', default=50)
    runs: int = parameter('of a layer in all', default=500)
    max_seconds: float = parameter('limit per layer and pair of bits, for the warm-up and again for the runs: slow '
                                   'layers have fewer, at least one per round', 's', default=10.0)
    statistic: str = parameter('what a cell holds: the lowest of the medians of the rounds, which other work on the '
                               'machine hardly moves, or the median of all runs', default='min_of_medians',
                               choices=('min_of_medians', 'median'))
    seed: int = parameter('of the order in a round', default=0, minimum=0)

    def __post_init__(self):
        super().__post_init__()
        if self.kernel in ('popcount', 'onnxruntime') and self.device != 'cpu':
            raise ValueError(f'{self.name}: the kernel {self.kernel} runs on the cpu, set device to cpu')
        if self.kernel == 'popcount' and self.threads != 1:
            raise ValueError(f'{self.name}: the kernel popcount has a single thread, set threads to 1')

    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """Measure one call of the layer; each time anew, and so never twice the same. For a table see `cells`."""
        pair = (w_bit, a_bit)
        with self.running():
            what, calls = self.calls(layer, [pair])
            timing = self.measure(calls)[pair]
        return self._cost(layer, pair, getattr(timing, self.statistic), what, timing)

    def cells(self, layers: Sequence[LayerRecord]) -> list[list[list[LayerCost]]]:
        """See `Hardware.cells`; all shapes are measured together, in turns."""
        for layer in layers:
            if layer.kind == 'matmul':
                raise ValueError(f'{layer.name} multiplies two activations, for which {self.name} has no kernel: leave '
                                 'products out of the strategy, or take other hardware')
        first = {}  # {shape: its first layer}: a message names a real layer
        for layer in layers:
            if layer.calls:
                first.setdefault(shape_of(layer), layer)
        pairs = self.measured_pairs()
        with self.running():
            built = {shape: self.calls(layer, pairs) for shape, layer in first.items()}
            timings = self.measure({(shape, pair): built[shape][1][pair] for shape in first for pair in pairs})
        known = {}
        for shape, layer in first.items():
            known[shape] = self._rows(layer, built[shape][0], {pair: timings[shape, pair] for pair in pairs})
        never = [[LayerCost(0.0, math.nan, 'measured', 0)] * MAX_BIT] * MAX_BIT
        return [
            [[cell.times(layer.calls) for cell in row] for row in known.get(shape_of(layer), never)] for layer in layers
        ]

    def facts(self, layers: Sequence[LayerRecord], cells: list) -> dict:
        """See `Hardware.facts`: the machine, and median and spread of every measured cell, per call."""
        shapes = {}
        for layer, rows in zip(layers, cells, strict=True):
            measured = {id(cell.facts): cell.facts for row in rows for cell in row if cell.facts}
            entry = {'names': [], 'measured': list(measured.values())}
            shapes.setdefault(shape_of(layer), entry)['names'].append(layer.name)
        return {'machine': machine_facts(self.device), 'timings_ms': list(shapes.values())}

    def cell_meaning(self, metric: str) -> str:
        bits = 'w weight and a activation bits' if self.kernel == 'popcount' else f'every pair of bits ({self.kernel})'
        return f'ms of one layer for a batch of {self.batch}, measured alone, at {bits}'

    def measured_pairs(self) -> list[tuple[int, int]]:
        """Return the pairs of bits that are really run."""
        grid = GRIDS[self.grid] if self.kernel == 'popcount' else (MAX_BIT,)
        return [(w_bit, a_bit) for w_bit in grid for a_bit in grid]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Set threads and engine for the kernels, no gradients; afterwards everything is as before.

        Raises:
            ValueError: the kernel or the device is not to be had here (says what to change).
        """
        threads, engine = torch.get_num_threads(), torch.backends.quantized.engine
        wanted = self._check_available()
        try:
            torch.set_num_threads(self.threads)
            if wanted:
                torch.backends.quantized.engine = wanted
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(threads)
            torch.backends.quantized.engine = engine

    def calls(self, layer: LayerRecord, pairs: Sequence[tuple[int, int]]) -> tuple[str, dict[tuple, Callable]]:
        """Return what runs the layer, and a call for each pair of bits; inside `running`.

        Raises:
            ValueError: the kernel cannot run this layer (names it).
        """
        try:
            kernel = self.build(layer)
            calls = {pair: partial(kernel.at, *pair) if self.kernel == 'popcount' else kernel for pair in pairs}
            calls[pairs[-1]]()
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f'{self.name}: layer {layer.name} cannot run in {self.kernel} on {self.device} ({error}); '
                'take another kernel'
            ) from error
        return kernel.what, calls

    def build(self, layer: LayerRecord) -> Kernel:
        """Return the layer with operands of its own; inside `running`."""
        if self.kernel == 'popcount':
            return PopcountOperands(layer, self.batch)
        if self.kernel == 'onnxruntime':
            return OnnxKernel(layer, self.batch, self.threads)
        if self.kernel == 'int8' and self.device == 'cpu':
            return Int8Kernel(layer, self.batch)
        if self.kernel == 'int8' and layer.groups == 1:
            return IntMatmulKernel(layer, self.batch, self.device)
        # PyTorch has no int8 kernel for grouped convolutions on CUDA: float16 is what would run there
        return FloatKernel(layer, self.batch, self.device, FLOATS.get(self.kernel, torch.float16))

    def measure(self, calls: Mapping[Hashable, Callable[[], object]]) -> dict[Hashable, Timing]:
        """Return the times of calls under this machine's protocol; inside `running`."""
        protocol = Protocol(
            warm_up=self.warm_up, rounds=self.rounds, runs=self.runs, max_seconds=self.max_seconds, seed=self.seed
        )
        return measure(calls, protocol, cuda_clock if self.device == 'cuda' else wall_clock)

    def _check_available(self) -> str | None:
        """Return the engine to set, None where it does not matter; raise ValueError where something is missing."""
        if self.device == 'cuda' and not torch.cuda.is_available():
            raise ValueError(f'{self.name}: this PyTorch sees no CUDA device; take a preset that runs on the cpu')
        if self.kernel == 'onnxruntime':
            load_onnx()
        return check_int8(self.engine) if self.kernel == 'int8' and self.device == 'cpu' else None

    def _rows(self, layer, what, timings) -> list[list[LayerCost]]:
        """Return the cells of all pairs of bits from the timings of the measured ones."""
        table = interpolate({pair: getattr(timing, self.statistic) for pair, timing in timings.items()})
        return [
            [
                self._cost(layer, (w_bit, a_bit), float(ms), what, timings.get((w_bit, a_bit)))
                for a_bit, ms in enumerate(row, start=1)
            ]
            for w_bit, row in enumerate(table, start=1)
        ]

    def _cost(self, layer, pair, ms, what, timing) -> LayerCost:
        """Return the cell; `timing` is None where the kernel was not run at these bits."""
        facts = None
        if timing:
            statistics = {key: round(value, 6) for key, value in timing._asdict().items()}
            facts = {'w_bit': pair[0], 'a_bit': pair[1], 'kernel': what, **statistics}
        between = self.kernel == 'popcount' and not timing
        return LayerCost(ms, math.nan, 'interpolated' if between else 'measured', self._traffic(layer, *pair), facts)

    def _traffic(self, layer, w_bit, a_bit) -> int:
        """Return the bits of weights, inputs and results, each once, as the kernel stores them."""
        sizes = {'int8': (8, 8, 8), 'onnxruntime': (8, 8, 8), 'popcount': (w_bit, a_bit, 32), 'fp32': (32, 32, 32)}
        w_size, x_size, y_size = sizes.get(self.kernel, (16, 16, 16))
        if self.kernel == 'int8' and self.device == 'cuda':
            y_size = 32
        return layer.num_weights * w_size + self.batch * (layer.inputs * x_size + layer.outputs * y_size)


def interpolate(measured: Mapping[tuple[int, int], float]) -> np.ndarray:
    """Return the times (8, 8) at all bits from those of a grid {(w, a): ms}, bilinear in w and a between its pairs.

    Exact where the time is c0 + c1 w + c2 a + c3 w a. A grid of a single pair gives that time everywhere.
    """
    grid, bits = sorted({w_bit for w_bit, _ in measured}), range(1, MAX_BIT + 1)
    known = np.array([[measured[w_bit, a_bit] for a_bit in grid] for w_bit in grid])
    wide = np.array([np.interp(bits, grid, row) for row in known])
    return np.array([np.interp(bits, grid, column) for column in wide.T]).T


PRESETS = {
    machine.name: machine
    for machine in (
        MeasuredMachine(name='measured', status='measured'),
        MeasuredMachine(name='measured_fp32', kernel='fp32', status='measured'),
        MeasuredMachine(name='measured_bf16', kernel='bf16', status='measured'),
        MeasuredMachine(name='measured_popcount', kernel='popcount', warm_up=3, rounds=5, runs=20, max_seconds=0.1,
                        status='measured at 1, 2, 4 and 8 bits, interpolated between'),
        MeasuredMachine(name='measured_onnxruntime', kernel='onnxruntime', status='measured'),
        MeasuredMachine(name='measured_cuda', device='cuda', status='measured'),
        MeasuredMachine(name='measured_cuda_fp16', kernel='fp16', device='cuda', status='measured'),
        MeasuredMachine(name='measured_cuda_fp32', kernel='fp32', device='cuda', status='measured'),
    )
}  # fmt: skip
