"""The formulas of all quantizers, as the papers have them, in NumPy and float64; nothing here comes from lib.

A formula is written once, (x, bits, ste, **parameters) -> quantized x: with `Nearest` as `ste` it gives values, with
`Through` the function whose derivative is the gradient.
"""

from functools import cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import erfc


class Nearest:
    """The rounding of values; a `nudge` moves ties, and what arithmetic makes of them, to one side."""

    def __init__(self, nudge=0.0):
        self.nudge = nudge

    def round(self, code):
        return np.round(code + self.nudge)

    def __call__(self, x, quantized):
        return quantized

    def hold(self, name, make):
        return make()


class Through(Nearest):
    """The straight-through rounding: from the first call on it moves as `x` does; what is held has no gradient."""

    def __init__(self):
        super().__init__()
        self.first = {}

    def __call__(self, x, quantized):
        return quantized + x - self.hold('x', lambda: x)

    def hold(self, name, make):
        if name not in self.first:
            self.first[name] = make()
        return self.first[name]


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def top(bits, signed):
    """The largest code where codes are symmetric."""
    return max(2 ** (bits - 1) - 1, 1) if signed else 2**bits - 1


def linear_weights(w, bits, ste, range):
    if bits == 1:
        return ste(w, sign(w) * ste.hold('mean', lambda: np.abs(w).mean()))
    n = top(bits, True)
    return ste(w, ste.round(np.clip(w, -range, range) * n / range) * range / n)


def clipped(x, bits, ste, range, signed=False, exact=False):
    """HAQ's activations and PACT; the gradient of the range is that of the clip, or `exact`, of the rounding too."""
    r, n = abs(range), top(bits, signed)
    y = np.clip(x, -r if signed else 0, r)
    code = sign(x) if signed and bits == 1 else ste.round(y * n / r)
    return ste(y * n / r, code) * r / n if exact else ste(y, ste.hold('q', lambda: code * r / n))


def dorefa_weights(w, bits, ste, symmetric=False):
    if bits == 1:
        return ste(w, sign(w) * ste.hold('mean', lambda: np.abs(w).mean()))
    t = np.tanh(w) / np.abs(np.tanh(w)).max()
    if symmetric:
        n = 2 ** (bits - 1) - 1
        return ste(t * n, ste.round(t * n)) / n
    n = 2**bits - 1
    return 2 * ste((t / 2 + 1 / 2) * n, ste.round((t / 2 + 1 / 2) * n)) / n - 1


def dorefa_shrunk(x, bits, ste, range):
    return clipped(x, bits, ste, range) / range


def lsq(v, bits, ste, step, signed=True):
    s = abs(step)
    if signed and bits == 1:
        edge = ste.hold('edge', lambda: s)
        return ste(np.clip(v, -edge, edge), sign(v) * s)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    z = np.clip(v / s, low, high)
    return ste(z, ste.round(z)) * s


def lsq_plus(v, bits, ste, step, low):
    """Equations 1 to 5 of LSQ+, 2004.09576, where the offset is a level; ties go to even multiples of the step."""
    s, n = abs(step), 2**bits - 1
    if bits == 1:
        return lsq(v, bits, ste, step)
    z = ste.hold('z', lambda: np.round(-low / s))
    code = np.clip(ste.round(v / s) + z, 0, n)
    return ste(np.clip((v - low) / s, 0, n), code) * s + low


def affine(x, bits, ste, range, low, exact=False):
    """A grid with a zero point between learned ends; the gradient is that of the clip, or `exact`, as LSQ+."""
    if bits == 1:
        return clipped(x, bits, ste, range, signed=True, exact=exact)
    s = (range - low) / (2**bits - 1)
    if exact:
        return lsq_plus(x, bits, ste, s, low)
    return ste(np.clip(x, low, range), ste.hold('q', lambda: lsq_plus(x, bits, Nearest(ste.nudge), s, low)))


def dsq(x, bits, ste, lower, upper, slope):
    n = 2**bits - 1
    delta = (upper - lower) / n
    z = np.clip((x - lower) / delta, 0, n)
    middle, k = np.minimum(np.floor(z), n - 1) + 0.5, abs(slope)
    return ste(middle + np.tanh(k * (z - middle)) / (2 * np.tanh(k / 2)), ste.round(z)) * delta + lower


def dsq_minmax(w, bits, ste, slope):
    return dsq(w, bits, ste, ste.hold('lower', w.min), ste.hold('upper', w.max), slope)


def aciq(x, bits, ste, clip, middle=0.0, signed=False):
    levels = 2**bits
    if signed and bits == 1:
        return ste(np.clip(x, -clip, clip), sign(x) * clip)
    if not signed:
        s = clip / levels
        return ste(np.clip(x, 0, clip), np.clip(ste.round(x / s), 0, levels - 1) * s)
    s = 2 * clip / levels
    z = np.clip(np.round((clip - middle) / s - 1 / 2), 0, levels - 1)
    q = (np.clip(ste.round(x / s) + z, 0, levels - 1) - z) * s
    return ste(np.clip(x, (-z - 0.5) * s, (levels - 0.5 - z) * s), q)


@cache
def aciq_constant(bits, prior):
    """Where the derivative of the error is 0, by a solver for equations."""
    def derivative(a):
        if prior == 'laplace':
            return a / (3 * 4.0**bits) - np.exp(-a)
        return a / (3 * 4.0**bits) + a * erfc(a / 2**0.5) - (2 / np.pi) ** 0.5 * np.exp(-a * a / 2)

    return brentq(derivative, 0.1, 30, xtol=1e-13)


def aciq_spread(w, prior):
    center = np.sort(w)[(len(w) - 1) // 2] if prior == 'laplace' else w.mean()
    return center, np.abs(w - center).mean() if prior == 'laplace' else w.std()


def aciq_channel(w, bits, ste, method, prior, bias_corr):
    if bits == 0:
        return np.full_like(w, w.mean())
    center, spread = aciq_spread(w, prior)
    clip = spread * aciq_constant(bits, prior)
    low, high = (w.min(), w.max()) if method == 'minmax' else (center - clip, center + clip)
    step = (high - low) / 2**bits
    q = low + step / 2 + step * np.clip(ste.round((w - low - step / 2) / step), 0, 2**bits - 1)
    if not bias_corr:
        return q
    xi = np.linalg.norm(w - w.mean()) / np.linalg.norm(q - q.mean())
    return xi * (q + w.mean() - q.mean()) + (1 - xi) * w.mean()


def aciq_allocation(rows, bits, prior):
    """One bit after the other to the channel of the largest a^(4/3) / 4^M: least in sum, as brute force says."""
    error = np.array([aciq_spread(row, prior)[1] for row in rows]) ** (4 / 3)
    widths = np.zeros(len(rows), int)
    for _ in range(bits * len(rows)):
        widths[np.where(widths < 8, error / 4.0**widths, -1).argmax()] += 1
    return widths


def aciq_weights(w, bits, ste, method='minmax', prior='laplace', per_channel=False, bias_corr=True, bit_alloc=False):
    def quantized():
        rows = w.reshape(len(w) if per_channel else 1, -1)
        widths = aciq_allocation(rows, bits, prior) if bit_alloc and bits <= 4 else [bits] * len(rows)
        q = [aciq_channel(row, width, ste, method, prior, bias_corr) for row, width in zip(rows, widths, strict=True)]
        return np.stack(q).reshape(w.shape)

    return ste(w, ste.hold('q', quantized))
