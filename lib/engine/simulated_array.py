"""A simulated array: conductances with the errors of their device, read noise, and converters."""

import numpy as np
import torch
from torch import Tensor

from lib.engine.adc_range import adc_levels, adc_step, fixed_range
from lib.engine.array import ArrayConfig, ArrayDriver

CONVERTERS, CELLS, READS = range(3)  # random streams of a seed


def generator(*stream: int) -> torch.Generator:
    """Return a random generator of its own for a sequence of whole numbers."""
    state = np.random.SeedSequence(stream).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def converter_errors(config: ArrayConfig) -> tuple[Tensor, Tensor]:
    """Return gain and offset of the converter of each column, (outputs,).

    All arrays of a configuration share one bank of converters: column j has the same errors everywhere.
    """
    normal = torch.randn(2, config.outputs, generator=generator(config.seed, CONVERTERS), dtype=torch.float64)
    return 1 + config.gain_mismatch * normal[0], config.offset_mismatch * config.largest_sum() * normal[1]


class SimulatedArray(ArrayDriver):
    """An array of cells with conductances g = g_min + (g_max - g_min) level / (2^c - 1), plus errors.

    'balanced' subtracts the currents of a pair of cells before conversion, 'offset' that of one reference column of
    cells at g_min, so g_min cancels in both. What is left, in levels, is one matrix M, and a read is

        ADC(gain (inputs M + noise) + offset),   var(noise) = sum over rows of input^2 (variances of the cells)

    which is exactly the sum of independent noise in every cell. The reference column's noise is the same for all
    columns. Writing noise, drift and stuck cells are drawn once, in `program`.

    Args:
        config: parameters.
        stream: numbers that, after the configuration's seed, tell the random streams of arrays apart.
    """

    def __init__(self, config: ArrayConfig, stream: tuple[int, ...] = ()):
        self.config = config
        self._cells = generator(config.seed, CELLS, *stream)
        self._reads = generator(config.seed, READS, *stream)
        # Below 2^24 whole numbers are exact in float32; 255 is the largest input, whose cycles are added in this type.
        exact = config.largest_sum() * 255 < 2**24
        self._dtype = torch.float32 if exact else torch.float64
        self.range = None

    def program(self, cells: Tensor) -> None:
        _, self._rows, self._columns = cells.shape
        if not self.config.signed:
            cells = torch.cat([cells, cells.new_zeros(1, self._rows, 1)], dim=-1)  # the reference column
        g, variance = self._conductances(cells)
        if self.config.signed:
            self._matrix = g[0] - g[1]
        else:
            self._matrix = g[0, :, :-1] - g[0, :, -1:]
        self._set_noise(variance)
        gain, offset = converter_errors(self.config)
        self._gain, self._offset = gain[:self._columns], offset[:self._columns]
        self._raw = self._folded(torch.zeros_like(self._gain), torch.ones_like(self._gain))
        if self.config.adc_bits and self.config.adc_range != 'calibrated':
            low, high = fixed_range(self.config, self._rows)
            self.set_range(torch.full_like(self._gain, low), torch.full_like(self._gain, high))

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """See `ArrayDriver.set_range`; ValueError where a range is zero."""
        low, high = low.double(), high.double()
        step = adc_step(low, high, self.config)
        zero = torch.zeros_like(low) if self.config.signed else low
        self.range = low, high
        self._converter = self._folded(zero, step), step.to(self._dtype), zero.to(self._dtype)

    def read(self, inputs: Tensor) -> Tensor:
        if not self.config.adc_bits:
            return self.currents(inputs)
        if self.range is None:
            raise ValueError("adc_range is 'calibrated', but no range is set: call calibrate_range with sample inputs "
                             'before the first product')
        folded, step, zero = self._converter
        values = self._analog(inputs, folded).round_().clamp_(*adc_levels(self.config))
        if self.config.adc_range == 'granular':
            return values  # steps of 1 from 0
        values.mul_(step)
        return values if self.config.signed else values.add_(zero)

    def currents(self, inputs: Tensor) -> Tensor:
        return self._analog(inputs, self._raw)

    def _analog(self, inputs, folded) -> Tensor:
        matrix, bias, scale = folded
        inputs = inputs.to(self._dtype)
        values = torch.addmm(bias, inputs, matrix)
        power = inputs.square() if self._noise else None
        for variance, shared in self._noise:
            noise = values.new_empty(len(values), 1 if shared else values.shape[1]).normal_(generator=self._reads)
            values.addcmul_(noise.mul_((power @ variance).sqrt_()), scale)
        return values

    def _folded(self, zero, step):
        """Return matrix, bias and factor of the noise that give (gain current + offset - zero) / step."""
        scale = self._gain / step
        return tuple(part.to(self._dtype) for part in (self._matrix * scale, (self._offset - zero) / step, scale))

    def _conductances(self, cells) -> tuple[Tensor, Tensor | float]:
        """Return what the cells conduct and its variance in a read, in levels; a number where all cells have it."""
        config = self.config
        device, g_min, g_max = config.device_model()
        level = (g_max - g_min) / (2**config.cell_bits - 1)
        target = g_min + level * cells.double()
        normal, exponent = (torch.randn(cells.shape, generator=self._cells, dtype=torch.float64) for _ in range(2))
        g = target + normal * self._programming_std(device, target, g_max - g_min)
        if device.positive:
            g.clamp_(min=0)
        if config.drift_seconds:
            mean, std = device.drift_exponent(target)
            g *= (1 + config.drift_seconds / device.t0) ** -(mean + std * exponent).clamp(min=0)
        self._stick(g, g_min, g_max)
        if config.read_noise is not None:
            return g / level, (config.read_noise * (2**config.cell_bits - 1)) ** 2
        std = device.read_std(g, config.drift_seconds)
        return g / level, 0.0 if std is None else (std / level).square()

    def _programming_std(self, device, target, span) -> Tensor:
        noise = self.config.programming_noise
        if noise is None:
            return device.programming_std(target)
        return noise * (target if device.proportional else torch.full_like(target, span))

    def _stick(self, g, g_min, g_max) -> None:
        """Set stuck cells to their conductance; the reference column has none (it is tested, and repaired)."""
        draw = torch.rand(g.shape, generator=self._cells, dtype=torch.float64)[..., :self._columns]
        cells = g[..., :self._columns]
        cells[draw < self.config.stuck_low] = g_min
        cells[draw >= 1 - self.config.stuck_high] = g_max

    def _set_noise(self, variance) -> None:
        """Prepare noises as (variance per row and column or per row alone, whether all columns have the same draw)."""
        self._noise = []
        if isinstance(variance, float):
            if variance:
                per_row = torch.full((self._rows, 1), variance, dtype=self._dtype)
                self._noise = [(2 * per_row, False)] if self.config.signed else [(per_row, False), (per_row, True)]
            return
        variance = variance.to(self._dtype)
        if self.config.signed:
            self._noise = [(variance[0] + variance[1], False)]
        else:
            self._noise = [(variance[0, :, :-1], False), (variance[0, :, -1:], True)]
