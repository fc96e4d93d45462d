"""Matrix-vector products of integer codes on analog arrays: the base of the dot-product engine."""

from collections.abc import Callable, Sequence
from itertools import count

import torch
from torch import Tensor

from lib.engine.adc_range import choose_range
from lib.engine.array import ArrayConfig, ArrayDriver
from lib.engine.calibration import Calibration
from lib.engine.simulated_array import SimulatedArray
from lib.engine.tiling import count_slices, make_tiles, slice_cells
from lib.simulator.gemm import ceil_div

BACKENDS = ('ideal', 'simulated', 'hardware')
CODE_BITS = 8  # of a weight or an input, at most
CHUNK = 2**19  # values of a read that are worked on at a time: they stay in the cache
RANGE_SAMPLES = 1024  # input vectors that a converter's range is calibrated on, at most


def make_engine(config: ArrayConfig | None = None, backend: str = 'simulated',
                driver: Callable[[], ArrayDriver] | None = None,
                calibration: Calibration | None = None) -> Callable[[], 'MVMEngine']:
    """Return a factory of engines, one per layer; the i-th has random streams of its own: keep the order of layers.

    Args:
        config: the arrays; None: the defaults of `ArrayConfig`.
        backend: 'ideal' (exact integer products), 'simulated', or 'hardware'.
        driver: for 'hardware': called once per array, returns its `ArrayDriver`.
        calibration: of the columns, of an engine of the same configuration; 'ideal' has no use for it.

    Raises:
        ValueError: unknown backend, driver missing or of no use, calibration of another engine (named).
    """
    config = ArrayConfig() if config is None else config
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r:.60}, expected {', '.join(BACKENDS)}")
    if (backend == 'hardware') != (driver is not None) or not (driver is None or callable(driver)):
        raise ValueError(f'backend {backend!r} with driver {driver!r:.60}, expected a callable that returns an '
                         "ArrayDriver for 'hardware', None for the others")
    if calibration is not None:
        calibration.check(config)
    if backend == 'ideal':
        return lambda: MVMEngine(config)
    if backend == 'hardware':
        return lambda: MVMEngine(config, lambda number: driver(), calibration)
    layers = count()

    def simulated():
        layer = next(layers)
        return MVMEngine(config, lambda number: SimulatedArray(config, (layer, number)), calibration)
    return simulated


class MVMEngine:
    """Matrix-vector products S = x @ weight of integer codes, on as many arrays as the weights need.

    Weights become slices of c bits (`cell_bits`), inputs cycles of d bits (`dac_bits`), and

        S = sum_tiles sum_i sum_k 2^(c i) 2^(d k) read(x_k . w_i) + z sum x

    with everything but the reads digital; z is the zero point in 'balanced', where the cells hold weight - z, and 0 in
    'offset'. `make_engine` makes engines.

    Args:
        config: of the arrays.
        make_array: returns the array of a number; None: no arrays, products are exact.
        calibration: of the arrays' columns.
    """

    def __init__(self, config: ArrayConfig, make_array: Callable[[int], ArrayDriver] | None = None,
                 calibration: Calibration | None = None):
        self.config, self.calibration, self._make_array = config, calibration, make_array
        self.programmed = False

    def program(self, weight: Tensor, bits: int, zero_point: int = 0, unit: int = 1) -> None:
        """Write weights into new arrays; what was programmed before is forgotten.

        Args:
            weight: (K, N) codes 0..2^bits - 1, or (groups, K, N): independent products side by side.
            bits: 1..8.
            zero_point: the code that 'balanced' stores as no current; the result does not depend on it.
            unit: rows that stay together in one array, a divisor of K.

        Raises:
            ValueError: codes or zero point out of range, or a weight or unit larger than an array.
        """
        self.programmed = False
        codes = check_codes(weight, bits, 'weight').long()
        codes = codes.unsqueeze(0) if codes.dim() == 2 else codes
        if codes.dim() != 3 or not codes.numel() or codes.shape[1] % unit:
            raise ValueError(f'weight has shape {tuple(weight.shape)}, expected (K, N) or (groups, K, N), none of them '
                             f'0 and K a multiple of {unit}')
        zero_point = check_code(zero_point, bits, 'zero_point')
        self._zero = zero_point if self.config.signed else 0
        self.shape, self._weight, self._ranges = tuple(codes.shape), codes.double(), None
        self._slices = count_slices(codes - self._zero, self.config)
        tiles = make_tiles(codes - self._zero, self._slices, unit, self.config)
        self.num_arrays, numbers = sum(map(len, tiles)), count()
        self._tiles = [[(tile, self._make_array and self._make_array(next(numbers))) for tile in row] for row in tiles]
        for tile, array in sum(self._tiles, []) if self._make_array else ():
            array.program(slice_cells(tile.values, self._slices, self.config))
        self.programmed = True

    def mvm(self, x: Tensor, bits: int) -> Tensor:
        """Return estimates of x @ weight.

        Args:
            x: (B, groups * K) codes 0..2^bits - 1.
            bits: 1..8.

        Returns:
            (B, groups * N) float64.

        Raises:
            ValueError: no weights, a wrong shape, codes out of range, or a range of the converters not yet calibrated.
        """
        x = self._checked(x, bits)
        groups, k, n = self.shape
        if not self._make_array:
            return torch.einsum('bgk,gkn->bgn', x.double().view(-1, groups, k), self._weight).flatten(1)
        out = torch.zeros(len(x), groups * n, dtype=torch.float64)
        step = max(1, CHUNK // (ceil_div(bits, self.config.dac_bits) * max(self.config.rows, self.config.outputs)))
        for part, into in zip(x.split(step), out.split(step), strict=True) if len(x) else ():
            self._add_products(part, bits, into)
        if self._zero:
            sums = x.view(-1, groups, k).sum(-1, dtype=torch.float64)
            out.view(-1, groups, n).add_(sums.unsqueeze(-1), alpha=self._zero)
        return out

    def calibrate_range(self, x: Tensor, bits: int) -> None:
        """Set the ranges of the converters for inputs like x, where `adc_range` is 'calibrated'; see `choose_range`.

        One range per slice and tile of rows; at most `RANGE_SAMPLES` evenly spaced rows of x are used.

        Raises:
            ValueError: as `mvm`; `adc_range` is another; or an array that does not allow it.
        """
        self._check_calibrated('calibrate_range')
        x = self._checked(x, bits)
        if not len(x):
            raise ValueError('calibrate_range got no inputs, expected at least one vector')
        if not self._converts:
            return
        x = x[torch.linspace(0, len(x) - 1, min(len(x), RANGE_SAMPLES), dtype=torch.float64).long()]
        found = []
        for row in self._tiles:
            digits = self._cycles(x[:, row[0][0].rows], bits)
            values = torch.cat([array.currents(digits).view(len(digits), -1, self._slices) for _, array in row], 1)
            found.append([choose_range(values[..., i], digits.shape[1], self.config, self._slices > 1)
                          for i in range(self._slices)])
        self.use_ranges(found)

    def ranges(self) -> list | None:
        """Return the calibrated ranges as plain values, [tile of rows][slice] = [low, high]; None before."""
        return self._ranges

    def use_ranges(self, ranges: Sequence) -> None:
        """Set ranges that `ranges` returned for the same weights; ValueError where they do not fit."""
        self._check_calibrated('use_ranges')
        if not self._converts:
            return
        ranges = [[[float(low), float(high)] for low, high in row] for row in ranges]
        if [len(row) for row in ranges] != [self._slices] * len(self._tiles):
            raise ValueError(f'ranges of {[len(row) for row in ranges]} slices, expected {self._slices} for each of '
                             f'{len(self._tiles)} tiles')
        for bounds, row in zip(ranges, self._tiles, strict=True):
            for tile, array in row:
                array.set_range(*torch.tensor(bounds, dtype=torch.float64).repeat(tile.values.shape[1], 1).T)
        self._ranges = ranges

    @property
    def _converts(self) -> bool:
        return self._make_array is not None and self.config.adc_bits > 0

    def check_programmed(self) -> None:
        """Raise ValueError where there are no weights."""
        if not self.programmed:
            raise ValueError('the engine has no weights: call program first')

    def _check_calibrated(self, method) -> None:
        self.check_programmed()
        if self.config.adc_range != 'calibrated':
            raise ValueError(f"{method} is for adc_range 'calibrated', this engine's is {self.config.adc_range!r}")

    def _checked(self, x, bits) -> Tensor:
        self.check_programmed()
        x = check_codes(x, bits, 'input')
        inputs = self.shape[0] * self.shape[1]
        if x.dim() != 2 or x.shape[1] != inputs:
            raise ValueError(f'inputs have shape {tuple(x.shape)}, expected (B, {inputs}) for weights of shape '
                             f'{self.shape} (groups, K, N)')
        return x

    def _cycles(self, x, bits) -> Tensor:
        """Return the inputs of all cycles, lowest first: (B, k) codes to (cycles * B, k) parts of d bits."""
        shifts = torch.arange(0, bits, self.config.dac_bits, dtype=torch.uint8).view(-1, 1, 1)
        return ((x.contiguous().unsqueeze(0) >> shifts) & (2**self.config.dac_bits - 1)).flatten(0, 1).float()

    def _add_products(self, x, bits, out) -> None:
        """Add the products of a few inputs to `out`: read, then shift and add over cycles and slices."""
        cycles = ceil_div(bits, self.config.dac_bits)
        cycle_weights = 2.0 ** (self.config.dac_bits * torch.arange(cycles))
        slice_weights = 2.0 ** (self.config.cell_bits * torch.arange(self._slices, dtype=torch.float64))
        for row in self._tiles:
            inputs = self._cycles(x[:, row[0][0].rows], bits)
            for tile, array in row:
                values = _read(array, inputs, tile.values.shape[1] * self._slices)
                if self.calibration is not None:
                    values = self.calibration.correct(values)
                sums = (cycle_weights.to(values.dtype) @ values.view(cycles, -1)).double()
                out[:, tile.columns] += sums.view(len(x), -1, self._slices) @ slice_weights


def _read(array, inputs, columns) -> Tensor:
    values = torch.as_tensor(array.read(inputs)).contiguous()
    if values.shape != (len(inputs), columns):
        raise ValueError(f'{type(array).__name__}.read gave a shape of {tuple(values.shape)}, expected '
                         f'{(len(inputs), columns)}: a value per input vector and column')
    return values if values.is_floating_point() else values.double()


def check_codes(values: Tensor, bits: int, what: str) -> Tensor:
    """Return codes of any dtype as uint8; ValueError unless they are whole numbers from 0 to 2^bits - 1, bits 1..8."""
    if isinstance(bits, bool) or bits not in range(1, CODE_BITS + 1):
        raise ValueError(f'{what} bits are {bits!r:.60}, expected a whole number from 1 to {CODE_BITS}')
    values = values.detach().cpu()
    if not values.numel():
        return values.to(torch.uint8)
    low, high = (float(bound) for bound in values.aminmax())
    if not (low >= 0 and high < 2**bits):
        raise ValueError(f'{what} codes reach from {low:g} to {high:g}, expected 0 to {2**bits - 1} at {bits} bits')
    codes = values.to(torch.uint8)
    if values.is_floating_point() and not torch.equal(codes.to(values.dtype), values):
        raise ValueError(f'{what} codes must be whole numbers, got {float(values[codes != values][0]):g} among them')
    return codes


def check_code(value: float, bits: int, name: str) -> int:
    """Return a code as an int; ValueError unless it is a whole number from 0 to 2^bits - 1."""
    if int(value) != value or not 0 <= value < 2**bits:
        raise ValueError(f'{name} is {value}, expected a whole number from 0 to {2**bits - 1}')
    return int(value)
