"""Clipping ranges from data: the maximum, HAQ's KL threshold, and the range of least squared error."""

import math

import numpy as np
import torch
from torch import Tensor

METHODS = ('kl', 'max', 'mse')
KL_BELOW_BITS = 5  # from here on 'kl' is the maximum, as in HAQ
LOG_FLOOR = 1e-12
MAX_BINS = 8192  # of the KL threshold's bins^2 / 2 steps; reached by 67 million elements, or by values far from 0
MSE_SAMPLE = 2**20


def find_range(x: Tensor, bits: int, *, signed: bool, method: str = 'kl', kl_bits: int | None = None) -> float:
    """Return the clipping range of `x` for `bits` bits by `method`, one of 'kl', 'max', 'mse'.

    'kl' is `kl_threshold` for `kl_bits` (default `bits`) below 5, the maximum from there on. One signed bit has no
    magnitude to clip: its scale is mean|x| by any method.

    Raises:
        ValueError: another method, an empty tensor, or values that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"calibration method is {method!r}; expected one of {', '.join(METHODS)}")
    top = max_range(x)
    if signed and bits == 1:
        return x.detach().abs().mean().item()
    kl_bits = bits if kl_bits is None else kl_bits
    if method == 'kl' and kl_bits < KL_BELOW_BITS:
        return kl_threshold(x, kl_bits)
    return mse_range(x, bits, signed) if method == 'mse' else top


def max_range(x: Tensor) -> float:
    """Return max|x|; ValueError where `x` is empty or not finite."""
    if x.numel() == 0:
        raise ValueError('cannot choose a clipping range from an empty tensor')
    low, high = (bound.item() for bound in torch.aminmax(x.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f'cannot choose a clipping range from values between {low} and {high}: they are not finite')
    return max(-low, high)


def kl_threshold(x: Tensor, bits: int) -> float:
    """Return the clipping threshold of |x| with the least Kullback-Leibler-like distance for `bits` bits.

    Let c be the cumulative histogram of |x| (numpy's 'sqrt' bins on [0, max]) and n = 2^(bits-1). For every i from
    n + 1 to the number of bins, p is c with 1 from bin i - 1 on, and q is p with its first i points linearly resampled
    to n points and back. The i of least sum (c - q) log2(c / q) wins; the threshold is i + 0.5 bins. With fewer than
    n + 1 bins it is the maximum. Beyond 8192 bins the bins get wider instead of more.
    """
    top = max_range(x)
    levels = 2 ** (bits - 1)
    magnitude = x.detach().abs().flatten()
    bins = _number_of_bins(magnitude, top)
    if levels + 1 > bins:
        return top
    counts = _histogram(magnitude, bins, top)
    cumulative = (counts / counts.sum()).cumsum(0)
    best = levels + 1 + int(_distances(cumulative, levels).argmin())
    return (best + 0.5) * top / bins


def _number_of_bins(magnitude: Tensor, top: float) -> int:
    width = (top - magnitude.amin().item()) / math.sqrt(magnitude.numel())
    return min(math.ceil(top / width), MAX_BINS) if width > 0 else 1


def _histogram(magnitude: Tensor, bins: int, top: float) -> Tensor:
    """Return float64 counts of `bins` equal bins on [0, top], counted in pieces that fit the processor's cache."""
    counts = torch.zeros(bins, dtype=torch.float64, device=magnitude.device)
    for part in magnitude.split(2**26 if magnitude.is_cuda else 2**16):
        index = (part.double() * bins / top).long().clamp_max_(bins - 1)
        counts += torch.bincount(index, minlength=bins)
    return counts


def _distances(cumulative: Tensor, levels: int) -> Tensor:
    """Return the distance of every threshold i = levels + 1 .. bins, computed for a block of thresholds at a time."""
    bins = len(cumulative)
    log_c = cumulative.clamp_min(LOG_FLOOR).log2()
    beyond = ((cumulative - 1) * log_c).flip(0).cumsum(0).flip(0)  # entry i: the sum from bin i on, where q is 1
    beyond = torch.cat([beyond, beyond.new_zeros(1)])
    bin_index = torch.arange(bins, dtype=torch.float64, device=cumulative.device)
    blocks = []
    for i in torch.arange(levels + 1, bins + 1, device=cumulative.device).split(max(1, 2**16 // bins)):
        c, log, column = (vector[: i[-1]] for vector in (cumulative, log_c, bin_index))
        q = _resampled(cumulative, i, column, levels)  # (block, bins)
        terms = (c - q) * (log - q.clamp_min_(LOG_FLOOR).log2_())
        terms[:, i[0] :].masked_fill_(column[i[0] :] >= i[:, None], 0)
        blocks.append(terms.sum(1) + beyond[i])
    return torch.cat(blocks)


def _resampled(cumulative: Tensor, i: Tensor, column: Tensor, levels: int) -> Tensor:
    """Return q of the thresholds `i` at the bins `column`: p[:i] linearly interpolated at `levels` points and back."""
    last = (i - 1)[:, None]  # the last of the i points

    def p(index):
        return torch.where(index >= last, 1.0, cumulative[index.clamp_max(len(cumulative) - 1)])

    knot = torch.arange(levels, device=i.device)
    position = knot * last / max(levels - 1, 1)  # (block, levels), in bins
    left = position.floor().long()
    knots = p(left) + (position - left) * (p(left + 1) - p(left))
    slopes = torch.cat([knots.diff(dim=1), torch.zeros_like(knots[:, :1])], 1)  # none after the last knot
    position = column * ((levels - 1) / last)  # (block, bins), in knots
    left = position.long().clamp_max_(levels - 1)
    return torch.addcmul((knots - knot * slopes).gather(1, left), slopes.gather(1, left), position)


def mse_range(x: Tensor, bits: int, signed: bool) -> float:
    """Return the clipping range of least mean squared error for linear quantization of `x` to `bits` bits.

    The errors are exact (prefix sums of the sorted magnitudes), on a geometric grid from mean|x| / 2 to max|x| that is
    refined twice. Of more than 2^20 values a regular sample and the maximum are used.
    """
    values = (x.detach().abs() if signed else x.detach().clamp_min(0)).flatten()
    if values.numel() > MSE_SAMPLE:
        step = values.numel() // MSE_SAMPLE | 1  # odd: not in step with rows and channels
        values = torch.cat([values[::step], values.amax()[None]])
    values = np.sort(values.float().cpu().numpy()).astype(np.float64)
    mean, top = values.mean(), values[-1]
    if top == 0 or (signed and bits == 1):
        return float(mean)
    sums = np.concatenate([[0.0], values.cumsum()])
    codes = np.arange(2 ** (bits - 1) if signed else 2**bits)

    def error(clip):  # the sum of squared errors, less the constant sum of squares
        levels = codes * (clip / codes[-1])
        edges = np.concatenate([[0], values.searchsorted((levels[1:] + levels[:-1]) / 2), [len(values)]])
        return (levels**2 * np.diff(edges) - 2 * levels * np.diff(sums[edges])).sum()

    grid = np.geomspace(mean / 2, top, 97)
    for _ in range(2):
        best = int(np.argmin([error(clip) for clip in grid]))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 25)
    return float(min(grid, key=error))
