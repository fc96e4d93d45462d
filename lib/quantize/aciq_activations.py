"""ACIQ, analytical clipping for integer quantization (Banner et al., 1810.05723), of activations."""

import math

import torch
from torch import Tensor

from lib.quantize.aciq import CLIPPINGS, PRIORS, aciq_constant, center_and_spread
from lib.quantize.quantizer import (
    Affine,
    Grid,
    SignedQuantizer,
    check_choice,
    signs,
    straight_through,
    while_active,
    whole,
)

CENTERS = ('none', 'mean')
SPREADS = ('after_relu', 'before_relu')


class ACIQActivationQuantizer(SignedQuantizer):
    """Activations clipped where the mean squared error of a Laplace or Gaussian density is least, then rounded.

    * Unsigned, behind a ReLU: s = a / 2^M, q = clip(round(x / s), 0, 2^M - 1) s.
    * Signed: 2^M steps of s = 2 a / 2^M that cover mu -+ a but for at most s / 2, as 0 is a level (a convolution pads
      with it): q = (clip(round(x / s) + z, 0, 2^M - 1) - z) s with z = round((a - mu) / s - 1/2), in 0 .. 2^M - 1.
    * One signed bit is the sign, q = +-a with sign(0) = +1 and a = E|x|, the best.

    Example: x = (-0.8, 0.6, 2), a = 2, 2 bits: unsigned s = 0.5 and (0, 0.5, 1.5); signed with mu = 0, s = 1, z = 2 and
    (-1, 1, 1).

    a = x_M times the spread of x, with x_M of `aciq_constant`: E|x - mu| around the median ('laplace') or the standard
    deviation around the mean ('gauss'). Unsigned, that is the spread behind the ReLU, often less than half of the one
    that x_M is meant for; `spread` 'before_relu' takes that of the density around 0 that the ReLU has cut, E[x | x > 0]
    or sqrt(E[x^2 | x > 0]). `center` 'mean' adds max(E x, 0) to the unsigned a, as the authors' program does. No a is
    larger than the data: max x, or max|x - mu|.

    dq/dx is 1 inside the range and 0 outside. `clip` (a) and `middle` (mu) are buffers of shape [1]. While `clip` is 0,
    the first tensor that comes gives both. They are kept when `bits` changes; calibrate then. For the mean over several
    batches: `set_clip` with the means of their `statistics`.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave inputs alone.
        prior: 'laplace' or 'gauss'.
        signed: whether inputs can be negative; None: the first tensor tells.
        center: 'none' or 'mean', of unsigned inputs.
        spread: 'after_relu' or 'before_relu', of unsigned inputs.
        method: 'aciq', or 'minmax', which clips nothing (of one signed bit both are the same).
    """

    shown = ('bits', 'method', 'prior', 'signed', 'center', 'spread')

    def __init__(self, bits: int | None = None, *, prior: str = 'laplace', signed: bool | None = None,
                 center: str = 'none', spread: str = 'after_relu', method: str = 'aciq'):
        super().__init__(bits)
        for name, value, choices in (('method', method, CLIPPINGS), ('prior', prior, PRIORS),
                                     ('center', center, CENTERS), ('spread', spread, SPREADS)):
            check_choice(name, value, choices)
        self.method, self.prior, self.center, self.spread, self.signed = method, prior, center, spread, signed
        self.register_buffer('clip', torch.zeros(1))
        self.register_buffer('middle', torch.zeros(1))

    def fake_quantize(self, x: Tensor) -> Tensor:
        self._prepare(x)
        with torch.no_grad():
            codes, step, zero = self._codes(x)
            quantized = codes.sub_(zero).mul_(step).to(x.dtype)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return quantized
        return straight_through(x.clamp(*self._range()).to(x.dtype), quantized)

    @while_active
    def statistics(self, x: Tensor) -> tuple[float, float]:
        """Return (clip, middle) for one batch `x`; the sign is found, or corrected, as by `calibrate`.

        The median of more than 2^20 values is that of a regular sample.
        """
        self.correct_sign(x)
        return self._statistics(x)

    @torch.no_grad()
    def set_clip(self, clip: float, middle: float = 0.0):
        """Set the range; `middle` has a meaning for signed inputs of more than one bit only."""
        if not (0 <= clip < math.inf and math.isfinite(middle)):
            raise ValueError(f'clip is {clip!r} and middle {middle!r}: expected a clip of at least 0, both finite')
        self.clip.fill_(clip)
        self.middle.fill_(middle)
        self.is_found = False

    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the range from one batch `x`, whatever the method; `cap` limits the clip.

        An input that was taken for unsigned and shows a negative value is signed from now on.
        """
        if not self.active:
            self.correct_sign(x)
            return
        clip, middle = self.statistics(x)
        clip = clip if cap is None else min(clip, cap)
        if not grow or clip > self.clip.item():
            self.set_clip(clip, middle)

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._prepare(x)
        codes, step, zero = self._codes(x)
        if self.signed and self.bits == 1:
            return whole(codes.mul_(2).sub_(1)), step / 2
        return whole(codes.sub_(zero)), step

    @while_active
    def to_affine(self, x: Tensor) -> Affine:
        self._prepare(x)
        codes, step, zero = self._codes(x)
        return Affine(whole(codes, torch.int64), step.double(), zero.double(), self.bits)

    @while_active
    def grid(self) -> Grid:
        if self.signed is None or self.clip.item() == 0:
            raise ValueError('the clip is not known yet: calibrate, or run the network once')
        if self.signed and self.bits == 1:
            return Grid(self.clip.item(), self.clip.item(), -1, 1, binary=True)
        step, zero = (value.item() for value in self._steps())
        return Grid(step, step, -int(zero), 2**self.bits - 1 - int(zero))

    def _prepare(self, x: Tensor):
        """Find the sign and the clip in `x` if need be."""
        self._find_sign(x)
        if not self.is_found:
            if self.clip.item() == 0:
                self.set_clip(*self._statistics(x))
            self.is_found = self.clip.item() > 0

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[float, float]:
        values = x.reshape(1, -1).to(torch.promote_types(x.dtype, torch.float32))
        middle, spread = (value.item() for value in center_and_spread(values, self.prior))
        if not (math.isfinite(middle) and math.isfinite(spread)):
            raise ValueError(f'cannot find a clip for {x.numel()} inputs around {middle} with a spread of {spread}: '
                             'they are not finite, or too large')
        if self.signed and self.bits == 1:
            return values.abs().mean().item(), 0.0
        if self.method == 'minmax':
            low, high = (bound.item() for bound in values.aminmax())
            return ((high - low) / 2, (high + low) / 2) if self.signed and high > low else (max(abs(low), high), 0.0)
        if self.signed:
            clip = min(spread * aciq_constant(self.bits, self.prior), (values - middle).abs_().amax().item())
            return (clip, middle) if clip > 0 else (abs(middle), 0.0)  # all values are the same
        if self.spread == 'before_relu':
            spread = _spread_before_relu(values, self.prior)
        clip = spread * aciq_constant(self.bits, self.prior, one_sided=True)
        largest = max(values.amax().item(), 0)
        if not clip > 0:  # all values are the same
            return largest, 0.0
        return min(clip + max(values.mean().item(), 0) if self.center == 'mean' else clip, largest), 0.0

    def _steps(self) -> tuple[Tensor, Tensor]:
        """Return the step and the code of 0 (of one signed bit, which has none, the middle of both), of shape [1]."""
        if not self.signed:
            return self.clip / 2**self.bits, torch.zeros_like(self.clip)
        if self.bits == 1:
            return 2 * self.clip, torch.full_like(self.clip, 0.5)
        step = 2 * self.clip / 2**self.bits
        zero = (self.clip - self.middle) / torch.where(step > 0, step, 1) - 0.5
        return step, zero.round().clamp(0, 2**self.bits - 1)

    def _range(self) -> tuple[Tensor, Tensor]:
        """Return the lowest and the highest value that is not clipped, of shape [1]."""
        step, zero = self._steps()
        if not self.signed:
            return torch.zeros_like(step), self.clip
        if self.bits == 1:
            return -self.clip, self.clip
        return -(zero + 0.5) * step, (2**self.bits - 0.5 - zero) * step

    def _codes(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes 0, 1, ..., as floats in a new tensor, step and zero point: the value is step * (code - zero)."""
        step, zero = self._steps()
        if self.signed and self.bits == 1:
            return signs(x).add_(1).div_(2).to(step.dtype), step, zero
        codes = (x / torch.where(step > 0, step, torch.inf)).round_().add_(zero)
        return codes.clamp_(0, 2**self.bits - 1), step, zero


def _spread_before_relu(values: Tensor, prior: str) -> float:
    """Return b or sigma of a symmetric density around 0, from its positive values."""
    positive = values.clamp_min(0)
    count = max(int((values > 0).sum()), 1)
    if prior == 'gauss':
        return math.sqrt(positive.square_().sum().item() / count)
    return positive.sum().item() / count
