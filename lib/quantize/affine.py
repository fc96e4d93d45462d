"""Uniform grids with a zero point: their ends from data, and rounding to a learned step with a learned offset."""

import math

import numpy as np
import torch
from torch import Tensor

from lib.quantize.quantizer import check_choice, signs
from lib.quantize.ranges import KL_BELOW_BITS, METHODS, find_bounds, kl_threshold, least_of, sample_of

Bounds = tuple[Tensor | float, Tensor | float]


def zero_point(offset: Tensor, step: Tensor, bits: int) -> Tensor:
    """Return the code of 0, z = round(-offset / step) within 0 .. 2^bits - 1, as a float: 0 is always a level.

    The grid is (c - z) step for the codes c = 0 .. 2^bits - 1; its lower end, -z step, is the level next to `offset`.
    """
    return (-offset / step).round_().clamp_(0, 2**bits - 1)


def codes_around_zero(zero: Tensor, bits: int) -> Bounds:
    """Return the lowest and the highest c - z, as numbers where the host has them anyway."""
    zero = zero.item() if zero.device.type == 'cpu' else zero  # torch clamps by numbers several times faster
    return -zero, 2**bits - 1 - zero


# ---- ends from data

def find_ends(x: Tensor, bits: int, *, method: str = 'kl', least: float | None = None) -> tuple[float, float]:
    """Return the ends (low, high) of the affine grid of `x` for `bits` bits, low <= 0 <= high.

    'max': the least and the largest value. 'mse': those of `mse_ends`. 'kl': what lies within the KL threshold of |x|,
    for b + log2(m / (high - low)) bits with m = max|x|: b where all values have one sign, and b - 1, as of a symmetric
    grid, where they reach as far on both sides; the least and the largest value from 5 of these bits on.

    Args:
        least: what no value can be below, where that is known, as behind a GELU: 'max' begins there.

    Raises:
        ValueError: another method, an empty tensor, or values that are not finite.
    """
    check_choice('calibration method', method, METHODS)
    low, high = find_bounds(x)
    if method == 'mse':
        return mse_ends(x, bits)
    low = min(low, 0.0) if least is None else min(least, 0.0)
    high = max(high, 0.0)
    if method == 'max' or not high > low:
        return low, high
    magnitude_bits = bits + math.log2(max(-low, high) / (high - low))
    clip = kl_threshold(x, magnitude_bits) if magnitude_bits < KL_BELOW_BITS else math.inf
    return max(low, -clip), min(high, clip)


def mse_ends(x: Tensor, bits: int) -> tuple[float, float]:
    """Return the ends of the affine grid of least mean squared error, -z s and (2^bits - 1 - z) s.

    Every zero point z is tried for steps s on a geometric grid, from mean|x| / 2 to max x - min x over the levels, that
    is refined twice. The errors are exact for the values of `sample_of`.
    """
    values = sample_of(x.detach().flatten(), *x.detach().aminmax())
    sides = [_Side(values[values > 0]), _Side(-values[values < 0])]
    mean, span, top = np.abs(values).mean(), sum(side.largest for side in sides), 2**bits - 1
    if span == 0:
        return 0.0, 0.0

    def error(width):  # (least error, its zero point)
        above, below = (side.errors(width / top, top) for side in sides)
        total = above[::-1] + below  # entry z: top - z levels above 0, z below
        return total.min(), total.argmin()

    width = least_of(lambda width: error(width)[0], mean / 2, span)
    step, zero = width / top, error(width)[1]
    return float(-zero * step), float((top - zero) * step)


class _Side:
    """The magnitudes of the values on one side of 0, and what it costs to give them so many levels."""

    def __init__(self, magnitudes: np.ndarray):
        self.values = np.sort(magnitudes)
        self.sums = np.concatenate([[0.0], self.values.cumsum()])
        self.largest = self.values[-1] if len(self.values) else 0.0

    def errors(self, step: float, top: int) -> np.ndarray:
        """Return the squared error, less the sum of squares, of levels 0 .. k steps, for k = 0 .. top."""
        levels = np.arange(top + 1) * step
        edges = np.concatenate([[0], self.values.searchsorted(levels[1:] - step / 2), [len(self.values)]])
        counts, sums = np.diff(edges), np.diff(self.sums[edges])
        inner = np.concatenate([[0.0], (levels**2 * counts - 2 * levels * sums).cumsum()[:-1]])  # below the last level
        beyond_count, beyond_sum = len(self.values) - edges[:-1], self.sums[-1] - self.sums[edges[:-1]]
        return inner + levels**2 * beyond_count - 2 * levels * beyond_sum


# ---- rounding

def round_to_step(x: Tensor, step: Tensor, bounds: Bounds, binary: bool = False) -> Tensor:
    """Return clip(round(x / step)) as floats in a new tensor, ties to even; the sign, +-1, if `binary`; NaN stays."""
    return signs(x) if binary else (x / step).round_().clamp_(*bounds)


class RoundToStep(torch.autograd.Function):
    """Fake quantization q = clip(round(x / s), n, p) s with a learned step s, and with an offset a learned lower end.

    For the backward pass it keeps its input alone, and computes the rest. With the position u = x / s, dq/dx is 1 where
    n < u < p and 0 elsewhere; dq/ds is round(u) - u there, n below and p above (LSQ, 1902.08153, equations 3 and 5).

    With an offset b = n s (LSQ+, 2004.09576, equations 4 and 5, for q = round(clip((x - b) / s, 0, p - n)) s + b),
    dq/db is 0 inside and 1 outside, and dq/ds is 0 below and p - n above.

    Args:
        step: s, one number or one for each channel, which broadcasts with x.
        offset: b, or None; its value counts in the bounds alone.
        bounds: n and p, whole numbers.
        binary: the sign of one bit instead: q = +-s, with n = -1 and p = 1; dq/ds is the sign of x.
        exact: with the term round(u) - u inside; else dq/ds is 0 there.
        gradient_scale: factor of the gradients of step and offset.
    """

    @staticmethod
    def forward(ctx, x, step, offset, bounds, binary=False, exact=True, gradient_scale=1.0):
        ctx.save_for_backward(x, step)
        ctx.options = bounds, binary, exact, gradient_scale
        return round_to_step(x, step, bounds, binary).mul_(step).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        bounds, binary, exact, gradient_scale = ctx.options
        needs_x, needs_step, needs_offset = ctx.needs_input_grad[:3]
        low, high = bounds
        position = x / step
        inside = ((position > low) & (position < high)).to(position.dtype)  # arithmetic with it is faster than a mask
        grad_x = grad.mul(inside).to(x.dtype) if needs_x else None
        grad_step = grad_offset = None
        if needs_offset:
            grad_offset = _summed(grad * (1 - inside), step, gradient_scale)
        if needs_step:
            slope = round_to_step(x, step, bounds, binary)
            if not exact:
                slope.mul_(1 - inside)
            elif not binary:
                slope.addcmul_(position.clamp_(low, high), inside, value=-1)
            if needs_offset:
                slope.sub_((1 - inside) * low)
            grad_step = _summed(slope.mul_(grad), step, gradient_scale)
        return grad_x, grad_step, grad_offset, None, None, None, None


def _summed(terms: Tensor, step: Tensor, factor: float) -> Tensor:
    total = terms.sum(dtype=step.dtype) if step.numel() == 1 else terms.sum_to_size(step.shape)
    return (total * factor).reshape(step.shape).to(step.dtype)
