"""Clipping ranges from data: the maximum, HAQ's KL threshold (kl.py), and the range of least squared error."""

import numpy as np
import torch
from torch import Tensor

from lib.quantize.kl import find_bounds, kl_threshold

METHODS = ('kl', 'max', 'mse')
KL_BELOW_BITS = 5  # from here on 'kl' is the maximum, as in HAQ
MSE_SAMPLE = 2**20


def find_range(x: Tensor, bits: int, *, signed: bool, method: str = 'kl', kl_bits: int | None = None,
               bounds: tuple[float, float] | None = None) -> float:
    """Return the clipping range of `x` for `bits` bits by `method`, one of 'kl', 'max', 'mse'.

    'kl' is `kl_threshold` for `kl_bits` (default `bits`) below 5, the maximum from there on. One signed bit has no
    magnitude to clip: its scale is mean|x| by any method. `bounds` are those of `x`, where they are known.

    Raises:
        ValueError: another method, an empty tensor, or values that are not finite.
    """
    if method not in METHODS:
        raise ValueError(f"calibration method is {method!r}; expected one of {', '.join(METHODS)}")
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
