"""Clipping ranges from data: the maximum, HAQ's KL threshold, and the range of least squared error."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from lib.quantize.blocks import flat
from lib.quantize.quantizer import check_choice

METHODS = ('kl', 'max', 'mse')
KL_BELOW_BITS = 5  # from here on 'kl' is the maximum, as in HAQ
MSE_SAMPLE = 2**20
LOG_FLOOR = 1e-12
MAX_BINS = 8192  # of the bins^2 / 2 terms; reached by 67 million elements, or by values far from 0
BLOCK = 16  # bins that a bound takes together
FEW_BINS = 256  # up to here all distances cost less than their bounds


def find_range(x: Tensor, bits: int, *, signed: bool, method: str = 'kl', kl_bits: int | None = None,
               bounds: tuple[float, float] | None = None) -> float:
    """Return the clipping range of `x` for `bits` bits by `method`, one of 'kl', 'max', 'mse'.

    'kl' is `kl_threshold` for `kl_bits` (default `bits`) below 5, the maximum from there on. One signed bit has no
    magnitude to clip: its scale is mean|x| by any method. `bounds` are those of `x`, where they are known.

    Raises:
        ValueError: another method, an empty tensor, or values that are not finite.
    """
    check_choice('calibration method', method, METHODS)
    bounds = find_bounds(x) if bounds is None else bounds
    if signed and bits == 1:
        return x.detach().abs().mean().item()
    kl_bits = bits if kl_bits is None else kl_bits
    if method == 'kl' and kl_bits < KL_BELOW_BITS:
        return kl_threshold(x, kl_bits, bounds)
    return mse_range(x, bits, signed) if method == 'mse' else max(-bounds[0], bounds[1])


def mse_range(x: Tensor, bits: int, signed: bool) -> float:
    """Return the clipping range of least mean squared error for linear quantization of `x` to `bits` bits.

    The errors are exact (prefix sums of the sorted magnitudes), on a geometric grid from mean|x| / 2 to max|x| that is
    refined twice. Of more than 2^20 values a regular sample and the maximum are used.
    """
    values = (x.detach().abs() if signed else x.detach().clamp_min(0)).flatten()
    values = np.sort(sample_of(values, values.amax()))
    mean, top = values.mean(), values[-1]
    if top == 0 or (signed and bits == 1):
        return float(mean)
    sums = np.concatenate([[0.0], values.cumsum()])
    codes = np.arange(2 ** (bits - 1) if signed else 2**bits)

    def error(clip):  # the sum of squared errors, less the constant sum of squares
        levels = codes * (clip / codes[-1])
        edges = np.concatenate([[0], values.searchsorted((levels[1:] + levels[:-1]) / 2), [len(values)]])
        return (levels**2 * np.diff(edges) - 2 * levels * np.diff(sums[edges])).sum()

    return least_of(error, mean / 2, top)


def least_of(error: Callable[[float], float], low: float, high: float) -> float:
    """Return the number of least error from `low` to `high`, on a geometric grid that is refined twice."""
    grid = np.geomspace(low, high, 97)
    for _ in range(2):
        best = int(np.argmin([error(number) for number in grid]))
        grid = np.linspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 25)
    return float(min(grid, key=error))


def sample_of(values: Tensor, *ends: Tensor) -> np.ndarray:
    """Return values (numel,) as float64; of more than 2^20 a regular sample, and the `ends`."""
    if values.numel() > MSE_SAMPLE:
        step = values.numel() // MSE_SAMPLE | 1  # odd: not in step with rows and channels
        values = torch.cat([values[::step], *(end[None] for end in ends)])
    return values.float().cpu().numpy().astype(np.float64)


def find_channel_ranges(weight: Tensor, bits: int, *, method: str = 'kl') -> Tensor:
    """Return `find_range` of each channel of a signed weight (C, ...), float32 (C,); all of 'mse' at once."""
    check_choice('calibration method', method, METHODS)
    find_bounds(weight)
    rows = weight.detach().flatten(1)
    if bits == 1:
        return rows.abs().mean(1).float()
    if method == 'mse':
        return _channel_mse_ranges(rows.abs().float(), bits)
    if method == 'kl' and bits < KL_BELOW_BITS:
        return torch.tensor([kl_threshold(row, bits) for row in rows], device=rows.device)
    return rows.abs().amax(1).float()


def _channel_mse_ranges(rows: Tensor, bits: int) -> Tensor:
    """Return the ranges (C,) of least mean squared error of magnitudes (C, K), on the grids of `mse_range`."""
    first, last = rows.mean(1) / 2, rows.amax(1)
    codes, tiny = 2 ** (bits - 1) - 1, torch.finfo(rows.dtype).tiny

    def errors(clips):
        steps = (clips / codes).clamp_min(tiny)[:, None]
        return (rows / steps).round_().clamp_(max=codes).mul_(steps).sub_(rows).square_().sum(1)

    shares = torch.linspace(0, 1, 97, device=rows.device)[:, None]
    grid = first * (last / first.clamp_min(tiny)) ** shares  # (97, C)
    for _ in range(2):
        best = torch.stack([errors(clips) for clips in grid]).argmin(0, keepdim=True)
        low, high = (grid.gather(0, (best + side).clamp(0, len(grid) - 1)) for side in (-1, 1))
        grid = low + (high - low) * torch.linspace(0, 1, 25, device=rows.device)[:, None]
    best = torch.stack([errors(clips) for clips in grid]).argmin(0, keepdim=True)
    return grid.gather(0, best)[0]


def find_bounds(x: Tensor) -> tuple[float, float]:
    """Return the least and the largest value; ValueError where `x` is empty or not finite."""
    if x.numel() == 0:
        raise ValueError('cannot choose a clipping range from an empty tensor')
    low, high = (bound.item() for bound in torch.aminmax(x.detach()))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f'cannot choose a clipping range from values between {low} and {high}: they are not finite')
    return low, high


def max_range(x: Tensor) -> float:
    """Return max|x|; ValueError where `x` is empty or not finite."""
    low, high = find_bounds(x)
    return max(-low, high)


# ---- HAQ's threshold: the least Kullback-Leibler-like distance between two cumulative histograms

def kl_threshold(x: Tensor, bits: float, bounds: tuple[float, float] | None = None) -> float:
    """Return the clipping threshold of |x| with the least Kullback-Leibler-like distance for `bits` bits.

    Let c be the cumulative histogram of |x| (numpy's 'sqrt' bins on [0, max]) and n = 2^(bits-1), rounded. For every
    i from n + 1 to the number of bins, p is c with 1 from bin i - 1 on, and q is p with its first i points linearly
    resampled to n points and back. The i of least sum (c - q) log2(c / q) wins; the threshold is i + 0.5 bins. With
    fewer than n + 1 bins it is the maximum. Beyond 8192 bins the bins get wider instead of more.
    `bounds` are those of `x`, where they are known.
    """
    low, high = find_bounds(x) if bounds is None else bounds
    top, levels = max(-low, high), max(round(2 ** (bits - 1)), 1)
    magnitude = flat(x.detach() if low >= 0 else x.detach().abs())
    least = max(low, -high) if low * high >= 0 else magnitude.amin().item()
    bins = _number_of_bins(len(magnitude), least, top)
    if levels + 1 > bins:
        return top
    counts = _histogram(magnitude, bins, top)
    cumulative = (counts / counts.sum()).cumsum(0)
    return (_Distances(cumulative, levels).least() + 0.5) * top / bins


def _number_of_bins(count: int, least: float, top: float) -> int:
    width = (top - least) / math.sqrt(count)
    return min(math.ceil(top / width), MAX_BINS) if width > 0 else 1


def _histogram(magnitude: Tensor, bins: int, top: float) -> Tensor:
    """Return float64 counts of `bins` equal bins on [0, top], counted in pieces that fit the processor's cache.

    A product instead of a division may be wrong by 2^-51 of itself. The edges k top / bins of float32 numbers, with at
    most 2^13 bins, are hit exactly or missed by 2^-37; so 2^-45 more keeps the product on the right side.
    """
    factor = None if magnitude.dtype == torch.float64 else bins / top * (1 + 2**-45)
    counts = torch.zeros(bins + 1, dtype=torch.int64, device=magnitude.device)
    for part in magnitude.split(2**26 if magnitude.is_cuda else 2**16):
        position = part.to(torch.float64, copy=True)
        position = position.mul_(bins).div_(top) if factor is None else position.mul_(factor)
        counts += torch.bincount(position.int(), minlength=bins + 1)
    counts[bins - 1] += counts[bins]  # values equal to `top`
    return counts[:bins].double()


class _Distances:
    """Distances of the thresholds i for one cumulative histogram c (bins,) and n levels.

    Every term f(c, q) = (c - q) log2(c / q) is convex in the pair, so the terms of a block of bins add up to at least
    as many times f at their means (Jensen). That bounds all distances from below at 1 / BLOCK of their cost.
    """

    def __init__(self, cumulative: Tensor, levels: int):
        self.c, self.levels, bins = cumulative, levels, len(cumulative)
        self.log_c = cumulative.clamp_min(LOG_FLOOR).log2()
        beyond = ((cumulative - 1) * self.log_c).flip(0).cumsum(0).flip(0)
        self.beyond = torch.cat([beyond, beyond.new_zeros(1)])  # entry i: the sum from bin i on, where q is 1
        self.index = torch.arange(bins, dtype=torch.float64, device=cumulative.device)
        self.thresholds = torch.arange(levels + 1, bins + 1, device=cumulative.device)

    def least(self) -> int:
        """Return the i of the least distance."""
        candidates = self.thresholds
        if len(self.c) > FEW_BINS:
            bounds = self.bounds()
            reached = self.of(candidates[bounds.argmin()][None])
            candidates = candidates[bounds <= reached * (1 + 1e-9)]
        return int(candidates[self.of(candidates).argmin()])

    def of(self, thresholds: Tensor) -> Tensor:
        """Return the distances of ascending thresholds, some of them at a time."""
        found = []
        for i in thresholds.split(max(1, 2**16 // len(self.c))):
            c, log, column = (vector[: i[-1]] for vector in (self.c, self.log_c, self.index))
            terms = self._terms(c, log, i, column)
            terms[:, i[0] :].masked_fill_(column[i[0] :] >= i[:, None], 0)
            found.append(terms.sum(1) + self.beyond[i])
        return torch.cat(found)

    def bounds(self) -> Tensor:
        """Return a lower bound of every distance, from the blocks in which q has no knot and c does not leave 0."""
        first = self.index[: len(self.c) // BLOCK * BLOCK : BLOCK]
        mean = self.c[: len(first) * BLOCK].view(-1, BLOCK).mean(1)
        log, position = mean.clamp_min(LOG_FLOOR).log2(), first.long()
        leaves = (self.c[position] < LOG_FLOOR) & (self.c[position + BLOCK - 1] >= LOG_FLOOR)
        found = []
        for i in self.thresholds.split(max(1, 2**16 // len(first))):
            blocks = int(i[-1]) // BLOCK
            left, right = first[:blocks], first[:blocks] + (BLOCK - 1)
            terms = self._terms(mean[:blocks], log[:blocks], i, (left + right) / 2)
            per_bin = ((self.levels - 1) / (i - 1).double())[:, None]  # knots
            unsure = (left * per_bin).long() != (right * per_bin).long()
            terms.masked_fill_(unsure | (right >= i[:, None]) | leaves[:blocks], 0)
            found.append(BLOCK * terms.sum(1) + self.beyond[i])
        return torch.cat(found)

    def _terms(self, c: Tensor, log_c: Tensor, i: Tensor, column: Tensor) -> Tensor:
        q = _resampled(self.c, i, column, self.levels)  # (thresholds, columns)
        return (c - q) * (log_c - q.clamp_min_(LOG_FLOOR).log2_())


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
