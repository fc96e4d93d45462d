"""The table of all quantizers that `test_all_quantizers.py` goes through, a row for each."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from lib.quantize import (
    ACIQActivationQuantizer,
    ACIQWeightQuantizer,
    DoReFaActivationQuantizer,
    DoReFaWeightQuantizer,
    DSQQuantizer,
    LinearActivationQuantizer,
    LinearWeightQuantizer,
    LSQQuantizer,
    PACTActivationQuantizer,
    Quantizer,
)
from tests.quantize import formulas
from tests.quantize.formulas import top

EXACT, OTHER, NEGATIVE = 0.25, 0.0173, -0.3  # distances between levels


def telling(levels):
    """Every level and every boundary between two with its neighbours, what lies beyond, huge values, both zeros."""
    middles, (first, *_, last), step = (levels[1:] + levels[:-1]) / 2, levels, levels[1] - levels[0]
    beyond = [end + side * k * step / 2 for end, side in ((first, -1), (last, 1)) for k in (1, 2, 3)]
    marks = np.concatenate([levels, middles, beyond]).astype(np.float32)
    around = [marks, *(np.nextafter(marks, np.float32(to)) for to in (-np.inf, np.inf))]
    random = np.random.default_rng(0).normal(size=300) * np.abs(levels).max()
    extremes = [0.0, -0.0, 1e30, -1e30, np.inf, -np.inf]
    return np.concatenate([*around, random, extremes]).astype(np.float32).astype(np.float64)


def weights(*shape):
    """Weights of channels of unlike spreads, float32 numbers."""
    w = np.random.default_rng(1).normal(size=shape or (4, 3, 3, 3))
    return (w * np.linspace(0.3, 2, len(w)).reshape(-1, *[1] * (w.ndim - 1)) + 0.1).astype(np.float32).astype(float)


def sample(levels, size):
    return with_zeros(weights()) if levels is None else telling(levels)


def with_zeros(w):
    w.flat[:2] = 0.0, -0.0
    return w


def squashed(levels, size):
    """Weights whose tanh, over the largest one, are the `levels` and the boundaries between them."""
    if levels is None:
        return sample(levels, size)
    return np.arctanh(0.97 * np.clip(telling(levels), -1, 1)).astype(np.float32).astype(np.float64)


def steps(low, high, size):
    return np.arange(low, high + 1) * size


def symmetric_levels(bits, signed, size):
    n = top(bits, signed)
    return np.array([-n, n]) * size if signed and bits == 1 else steps(-n if signed else 0, n, size)


@dataclass(frozen=True)
class Row:
    """A quantizer, made by `make(bits)`, and what is to be true of it; `size` is the distance between its levels.

    Attributes:
        formula: its values, of (x, bits, rounding, **values).
        values: of (bits, size), what its parameters and buffers are set to.
        levels: of (bits, size), all of its levels, ascending; None where they depend on the tensor.
        sample: of (levels, size), float32 numbers that tell formulas apart.
        exact: whether the formula is the same number for number, ties included, for a size that is a power of 2.
        weights: whether it is one of weights.
        again: whether levels are quantized to themselves.
        grid, codes: whether it has `grid()`, and `to_int`.
        either: whether parameters may be negative and count by magnitude.
        gradient_scale: of (bits, shape), what the gradients of its parameters are multiplied with.
    """

    make: Callable[[int | None], Quantizer]
    formula: Callable
    values: Callable = lambda bits, size: {}
    levels: Callable = lambda bits, size: None
    sample: Callable = sample
    exact: bool = False
    weights: bool = False
    again: bool = True
    grid: bool = True
    codes: bool = True
    either: bool = False
    gradient_scale: Callable = lambda bits, shape: 1.0

    @property
    def sizes(self):
        return ((EXACT, OTHER, NEGATIVE) if self.either else (EXACT, OTHER)) if self.values(4, EXACT) else (EXACT,)

    def made(self, bits, size=EXACT, dtype=torch.float32):
        """The quantizer with its parameters set."""
        quantizer = self.make(bits).to(dtype)
        with torch.no_grad():
            for key, value in self.values(bits or 4, size).items():
                getattr(quantizer, key).fill_(value)
        return quantizer

    def random(self, shape, bits=4, size=EXACT, seed=0):
        """Random float64 values, some of them outside of the range."""
        levels = self.levels(bits, size)
        if levels is None:
            return torch.from_numpy(weights(*shape))
        spread = np.abs(levels).max() if self.values(bits, size) else 1.0
        return torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 0.8 * spread)


def with_options(formula, **options):
    return lambda *args, **values: formula(*args, **values, **options)


def clipped_row(make, signed, exact=False, **options):
    return Row(make, with_options(formulas.clipped, signed=signed, exact=exact),
               lambda bits, size: {'range': top(bits, signed) * size},
               lambda bits, size: symmetric_levels(bits, signed, abs(size)), exact=True, **options)


def linear_row(signed, gradient):
    return clipped_row(lambda bits: LinearActivationQuantizer(bits, signed=signed, range_gradient=gradient), signed,
                       gradient == 'exact')


def zero(bits):
    """The zero point of the affine rows."""
    return 2**bits // 3


def affine_levels(bits, size):
    if bits == 1:
        return np.array([-1, 1]) * abs(size)
    return steps(-zero(bits), 2**bits - 1 - zero(bits), abs(size))


def affine_row(gradient):
    return Row(lambda bits: LinearActivationQuantizer(bits, signed=True, affine=True, range_gradient=gradient),
               with_options(formulas.affine, exact=gradient == 'exact'),
               lambda bits, size: {'range': (2**bits - 1 - zero(bits)) * size, 'low': -zero(bits) * size},
               affine_levels, exact=True)


def lsq_plus_row():
    return Row(lambda bits: LSQQuantizer(bits, signed=True, per='features', affine=True), formulas.lsq_plus,
               lambda bits, size: {'step': size, 'low': -zero(bits) * abs(size)}, affine_levels, exact=True,
               either=True, gradient_scale=lambda bits, shape: 1 / np.sqrt(np.prod(shape[1:]) * (2**bits - 1)))


def pact_row(signed, gradient):
    return clipped_row(lambda bits: PACTActivationQuantizer(bits, signed=signed, gradient=gradient), signed,
                       gradient == 'ste', either=True)


def dorefa_row(symmetric):
    def levels(bits, size):
        if bits == 1:
            return None
        n = top(bits, symmetric)
        return steps(-n, n, 1 / n) if symmetric else steps(0, n, 2 / n) - 1

    return Row(lambda bits: DoReFaWeightQuantizer(bits, symmetric=symmetric),
               with_options(formulas.dorefa_weights, symmetric=symmetric), levels=levels, sample=squashed, weights=True,
               again=False, grid=False)


def lsq_row(signed, per):
    options = {'signed': signed, 'per': per} if per == 'features' else {}  # weights are signed without being told

    def levels(bits, size):
        if signed and bits == 1:
            return np.array([-1, 1]) * abs(size)
        low = -(2 ** (bits - 1)) if signed else 0
        return steps(low, low + 2**bits - 1, abs(size))

    def scale(bits, shape):
        high = max(2 ** (bits - 1) - 1, 1) if signed else 2**bits - 1
        return 1 / np.sqrt(np.prod(shape[1:] if per == 'features' else shape) * high)

    return Row(lambda bits: LSQQuantizer(bits, **options), with_options(formulas.lsq, signed=signed),
               lambda bits, size: {'step': size}, levels, exact=True, weights=per == 'weights', either=True,
               gradient_scale=scale)


def slope(bits, size):
    return (0.1, 1.0, 5.0, 10.0)[(bits + (size == EXACT)) % 4]


def dsq_row(lower, **options):
    """With all three learned, from a lower bound of so many steps."""
    learned = {'learn_lower': True, 'learn_upper': True, 'learn_slope': True}
    return Row(lambda bits: DSQQuantizer(bits, **learned, **options), formulas.dsq,
               lambda bits, size: {'lower': lower * size, 'upper': (lower + 2**bits - 1) * size,
                                   'slope': slope(bits, size)},
               lambda bits, size: steps(lower, lower + 2**bits - 1, size), exact=lower == 0, weights=bool(options),
               grid=lower == 0, codes=lower == 0)


def aciq_row(signed, middle=0.0):
    """A range around so many steps; 0 is a level."""
    def levels(bits, size):
        if signed and bits == 1:
            return np.array([-1, 1]) * size
        low = int(np.clip(np.ceil(middle - 2 ** (bits - 1)), 1 - 2**bits, 0)) if signed else 0
        return steps(low, low + 2**bits - 1, size)

    def values(bits, size):
        clip = size * (2**bits / 2 if signed else 2**bits)
        return {'clip': clip, 'middle': middle * size} if signed else {'clip': clip}

    return Row(lambda bits: ACIQActivationQuantizer(bits, signed=signed), with_options(formulas.aciq, signed=signed),
               values, levels, exact=True)


def aciq_weights_row(**options):
    return Row(lambda bits: ACIQWeightQuantizer(bits, **options), with_options(formulas.aciq_weights, **options),
               weights=True, again=options.get('bias_corr') is False, grid=False, codes=False)


ROWS = {
    'linear weights': Row(
        LinearWeightQuantizer, formulas.linear_weights, lambda bits, size: {'range': top(bits, True) * size},
        lambda bits, size: None if bits == 1 else symmetric_levels(bits, True, size), exact=True, weights=True,
        grid=False),
    **{f'linear {sign} {gradient}': linear_row(sign == 'signed', gradient)
       for sign, gradient in product(('unsigned', 'signed'), ('clip', 'exact'))},
    'dorefa weights': dorefa_row(symmetric=False),
    'dorefa weights symmetric': dorefa_row(symmetric=True),
    'dorefa': clipped_row(DoReFaActivationQuantizer, signed=False),
    'dorefa shrunk': Row(
        lambda bits: DoReFaActivationQuantizer(bits, rescale=False), formulas.dorefa_shrunk,
        lambda bits, size: {'range': top(bits, False) * size},
        lambda bits, size: steps(0, 2**bits - 1, 1 / top(bits, False)),
        sample=lambda levels, size: telling(levels * (len(levels) - 1) * size), exact=True, again=False),
    **{f'pact {sign} {gradient}': pact_row(sign == 'signed', gradient)
       for sign, gradient in product(('unsigned', 'signed'), ('paper', 'ste'))},
    **{f'linear affine {gradient}': affine_row(gradient) for gradient in ('clip', 'exact')},
    'lsq plus': lsq_plus_row(),
    'lsq weights': lsq_row(True, 'weights'),
    'lsq signed': lsq_row(True, 'features'),
    'lsq unsigned': lsq_row(False, 'features'),
    'dsq': dsq_row(0),
    'dsq shifted': dsq_row(-3),
    'dsq weights learned': dsq_row(-3, bounds='minmax'),
    'dsq weights': Row(
        lambda bits: DSQQuantizer(bits, bounds='minmax', learn_slope=True), formulas.dsq_minmax,
        lambda bits, size: {'slope': slope(bits, size)}, lambda bits, size: steps(-3, 2**bits - 4, size),
        sample=lambda levels, size: np.clip(telling(levels), *levels[[0, -1]].astype(np.float32)), weights=True,
        grid=False, codes=False),
    'aciq unsigned': aciq_row(signed=False),
    'aciq signed': aciq_row(signed=True),
    'aciq shifted': aciq_row(signed=True, middle=1.3),
    **{f'aciq weights {method} {prior} {of} {form}': aciq_weights_row(
        method=method, prior=prior, per_channel=of == 'channel', bias_corr=form == 'corrected')
       for method, prior, of, form in product(('minmax', 'aciq'), ('laplace', 'gauss'), ('tensor', 'channel'),
                                              ('plain', 'corrected'))},
    'aciq weights allocated': aciq_weights_row(per_channel=True, bit_alloc=True),
}
# Enough for what does not depend on the map.
SOME = [name for name in ROWS if not name.startswith('aciq weights') or name.endswith((
    'allocated', 'minmax laplace tensor plain', 'aciq gauss channel corrected'))]
