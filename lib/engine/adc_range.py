"""Analog-to-digital converters: rounding to uniform levels within a range, and how that range is chosen.

Values are in products of one input step and one cell level. The ranges are those of Sandia's CrossSim 3.2.
"""

from math import floor, log2

import torch
from scipy.optimize import minimize
from torch import Tensor

from lib.engine.array import ArrayConfig

PERCENTILE = 0.9999  # of the values that the range of a slice holds at least


def adc_levels(config: ArrayConfig) -> tuple[int, int]:
    """Return lowest and highest code of a conversion of b bits.

    Differences of currents have codes of sign and magnitude, -n..n with n = 2^(b-1) - 1, so that 0 is exact; currents
    have 0..2^b - 1.
    """
    if config.signed:
        top = 2 ** (config.adc_bits - 1) - 1
        return -top, top
    return 0, 2**config.adc_bits - 1


def adc_step(low: Tensor, high: Tensor, config: ArrayConfig) -> Tensor:
    """Return the step between two codes, (high - low) / (number of codes - 1).

    Raises:
        ValueError: a range that is zero, or no number.
    """
    wrong = ~((high - low > 0) & torch.isfinite(high - low))
    if wrong.any():
        column = int(wrong.flatten().nonzero()[0])
        raise ValueError(f'the range of converter {column} is {float(low.flatten()[column]):g} to '
                         f'{float(high.flatten()[column]):g}, expected a range above zero')
    if config.signed and (low + high).abs().max() > 1e-6 * high.max():
        raise ValueError("the ranges of 'balanced' converters must be symmetric around zero")
    first, last = adc_levels(config)
    return (high - low) / (last - first)


def convert(values: Tensor, low: Tensor, high: Tensor, config: ArrayConfig) -> Tensor:
    """Return values rounded to the nearest level and clipped to the range; `low` and `high` broadcast over values."""
    step = adc_step(low, high, config)
    zero = torch.zeros_like(low) if config.signed else low
    return ((values - zero) / step).round_().clamp_(*adc_levels(config)).mul_(step).add_(zero)


def fixed_range(config: ArrayConfig, rows: int) -> tuple[float, float]:
    """Return the range of the options that need no data, for an array of which `rows` rows are in use.

    'max': the largest sum that these rows can reach, (+-) rows (2^d - 1)(2^c - 1); nothing is clipped. 'granular': the
    smallest difference of two sums is one code, so large sums are clipped.
    """
    first, last = adc_levels(config)
    if config.adc_range == 'granular':
        return float(first), float(last)
    top = float(config.largest_sum(rows))
    return -top if config.signed else 0.0, top


def choose_range(values: Tensor, rows: int, config: ArrayConfig, sliced: bool) -> tuple[float, float]:
    """Return the 'calibrated' range for sample values of one slice, never worse in squared error than 'max'.

    Sliced weights: the largest sum over 2^j, j = floor(log2(1 / p)), p the 99.99th percentile of |value| as a part of
    the largest sum; so the ranges of slices differ by powers of two, and their digital sum needs only shifts. j is
    lowered as long as the squared error is above that of 'max'. Weights in one cell: `_unsliced_range`.

    Args:
        values: sums before conversion, any shape.
        rows: rows of the array that are in use.
        sliced: whether a weight has several slices.
    """
    values = values.flatten().double()
    top = float(config.largest_sum(rows))
    bottom = -top if config.signed else 0.0
    limit = _squared_error(values, bottom, top, config)
    if not sliced:
        low, high = _unsliced_range(values, config)
        fine = high > low and _squared_error(values, low, high, config) <= limit
        return (low, high) if fine else (bottom, top)
    part = float(_quantile(values.abs(), PERCENTILE)) / top
    for power in range(floor(log2(1 / part)) if part else 0, 0, -1):
        low, high = bottom / 2**power, top / 2**power
        if _squared_error(values, low, high, config) <= limit:
            return low, high
    return bottom, top


def _unsliced_range(values: Tensor, config: ArrayConfig) -> tuple[float, float]:
    """Return the range between percentiles 10^eta and 1 - 10^eta of least mean |error|, by Nelder-Mead from eta = -4.

    A symmetric range has one eta, of |value|.
    """
    ordered = (values.abs() if config.signed else values).sort().values

    def bounds(etas):
        parts = [10.0 ** min(float(eta), -0.31) for eta in etas]
        high = float(_quantile(ordered, 1 - parts[-1], is_sorted=True))
        return (-high if config.signed else float(_quantile(ordered, parts[0], is_sorted=True))), high

    def mean_error(etas):
        low, high = bounds(etas)
        if high <= low:
            return float(values.abs().max()) + 1.0
        return float((_converted(values, low, high, config) - values).abs().mean())

    start = [-4.0] if config.signed else [-4.0, -4.0]
    return bounds(minimize(mean_error, start, method='Nelder-Mead', options={'xatol': 0.01, 'maxiter': 100}).x)


def _squared_error(values, low, high, config) -> float:
    return float((_converted(values, low, high, config) - values).square().mean())


def _converted(values, low, high, config) -> Tensor:
    return convert(values, values.new_tensor(low), values.new_tensor(high), config)


def _quantile(values: Tensor, part: float, is_sorted: bool = False) -> Tensor:
    """Return the value below which `part` of all lie; `Tensor.quantile` refuses more than 2^24 values."""
    rank = min(values.numel(), max(1, round(part * values.numel())))
    return values[rank - 1] if is_sorted else values.kthvalue(rank).values
