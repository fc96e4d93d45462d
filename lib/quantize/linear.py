"""Linear (uniform) quantization: HAQ's quantizers of weights and of activations, and a zero point for the latter."""

import torch
from torch import Tensor, nn

from lib.quantize.affine import RoundToStep, codes_around_zero, find_ends, round_to_step, zero_point
from lib.quantize.quantizer import (
    Grid,
    Quantizer,
    SignedQuantizer,
    check_choice,
    per_channel,
    straight_through,
    while_active,
    whole,
)
from lib.quantize.ranges import find_bounds, find_channel_ranges, find_range
from lib.quantize.uniform import ClipAndRound, before_relu, choose_scale, fake_quantize, max_code, positive, quantize


class LinearWeightQuantizer(Quantizer):
    """Symmetric weights, one scale per tensor or channel: q = round(clamp(w, -r, r) / s) * s, s = r / (2^(bits-1) - 1).

    Example: w = (-0.4, 0.12, 0.7), r = 0.6, 3 bits: s = 0.2 and q = (-0.4, 0.2, 0.6). One bit is binary:
    q = sign(w) * mean|w|, whatever the range. The gradient passes straight through to the unclamped weight, so weights
    outside the range still learn.

    The range r (buffer of shape [1], or one for each channel) is set by `calibrate`; while none is positive, the first
    forward makes it |w| max. It does not follow the weights in training.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave weights alone.
        channels: of a weight (C, ...) that gets a scale for each of them; None: one for all.
    """

    def __init__(self, bits: int | None = None, *, channels: int | None = None):
        super().__init__(bits)
        self.channels = channels

    @property
    def channels(self) -> int | None:
        """How many channels have a scale of their own; None: one scale for all. Set, the range begins anew."""
        return self._channels

    @channels.setter
    def channels(self, channels: int | None):
        self._channels, self.is_found = channels, False
        device = self.range.device if hasattr(self, 'range') else None
        self.register_buffer('range', torch.zeros(channels or 1, device=device))

    def fake_quantize(self, x: Tensor) -> Tensor:
        return straight_through(x, fake_quantize(x, self._scale(x.detach()), self.bits, signed=True))

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the range from the weight `x`; 'kl' is |w| max from 5 bits on and the KL threshold below.

        One bit needs no range and leaves it as it is.
        """
        if self.active and self.bits > 1:
            clip = self._ranges(x, method)
            clip = clip if cap is None else clip.clamp_max(cap)
            self.range.copy_(torch.maximum(clip, self.range) if grow else clip)
            self.is_found = False

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale(x)
        return whole(quantize(x, scale, self.bits, signed=True)), scale

    def _ranges(self, weight: Tensor, method: str) -> Tensor:
        if self.channels is None:
            return torch.full_like(self.range, find_range(weight, self.bits, signed=True, method=method))
        per_channel(self.range, weight)  # it checks that there are as many
        return find_channel_ranges(weight, self.bits, method=method).to(self.range)

    def _scale(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            magnitude = weight.abs()
            return magnitude.mean().reshape(1) if self.channels is None else \
                per_channel(magnitude.flatten(1).mean(1), weight)
        if not self.is_found:
            if not (self.range > 0).any():
                self.range.copy_(self._ranges(weight, 'max'))
            self.is_found = bool((self.range > 0).any())
        return choose_scale(per_channel(self.range, weight), self.bits, signed=True)


class LinearActivationQuantizer(SignedQuantizer):
    """Activations clipped to a learnable range r: y = clip(x), q = round(y / s) * s.

    * Unsigned ("half wave"): y = 0.5 (|x| - |x - r| + r) = clip(x, 0, r), s = r / (2^bits - 1).
    * Signed ("full wave"): y = 0.5 (|x + r| - |x - r|) = clip(x, -r, r), s = r / (2^(bits-1) - 1): one bit is the sign.
    * One signed bit: q = r where x >= 0 and -r elsewhere; calibration makes r = mean|x|.

    Example: x = (-1, 0.6, 2), r = 1.5, 2 bits: unsigned (0, 0.5, 1.5), signed (-1.5, 0, 1.5).

    The gradient is straight through the rounding, for one bit too: dq/dx is 1 inside the range and 0 outside; dq/dr is
    1 for x >= r, -1 for x <= -r (signed) and 0 inside. `range_gradient='exact'` adds the rounding term of the inside,
    (q - x) / r (as LSQ does, 1902.08153). A range of 0 or less gives zeros, never NaN; every non-zero x is then
    outside, so the gradient can bring the range back.

    `range` is a Parameter of shape [1]. It asks for a gradient only while `trainable` and `active`. `signed` is saved
    with the state dict; None means unknown, and the next calibration or forward finds it from its input.

    `affine`: a signed input gets a lower end l of its own, the Parameter `low`, and all 2^bits levels:
    s = (r - l) / (2^bits - 1), q = (clip(round(x / s) + z, 0, 2^bits - 1) - z) s with the zero point z = round(-l / s)
    (Jacob et al., 1712.05877, section 2.1). Example: x = (-1, 0.6, 2), l = -0.5, r = 1, 2 bits: s = 0.5, z = 1 and
    (-0.5, 0.5, 1). dq/dl is 1 below the range and 0 inside, where 'exact' adds the rounding term, as in LSQ+.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave inputs alone.
        signed: whether inputs can be negative; None to find out.
        affine: give signed inputs a zero point.
        range_gradient: 'clip' (faithful to HAQ) or 'exact'.
    """

    shown = ('bits', 'signed')

    def __init__(self, bits: int | None = None, *, signed: bool | None = None, initial_range: float = 6.0,
                 trainable: bool = True, range_gradient: str = 'clip', affine: bool = False):
        super().__init__(bits)
        check_choice('range_gradient', range_gradient, ('clip', 'exact'))
        self._trainable, self.range_gradient = trainable, range_gradient
        self.range = nn.Parameter(torch.full((1,), float(initial_range)))
        self.affine, self.signed = affine, signed

    @property
    def trainable(self) -> bool:
        """Whether the range is trained."""
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool):
        self._trainable = trainable
        self.bits_changed()

    def bits_changed(self):
        # What asks for a gradient and never gets one would stop DistributedDataParallel.
        self.range.requires_grad_(self._trainable and self.active)
        if self.affine:
            self.low.requires_grad_(self._trainable and self.active and self.has_zero_point)

    def _first_low(self) -> Tensor:
        return -self.range.detach().abs()

    def fake_quantize(self, x: Tensor) -> Tensor:
        signed, clip = self._find_sign(x), self.clip()
        if self.has_zero_point:
            return self._fake_quantize_affine(x)
        if torch.is_grad_enabled() and (x.requires_grad or clip.requires_grad):
            return ClipAndRound.apply(x, clip, self.bits, signed, self.range_gradient == 'exact', *before_relu(x))
        return fake_quantize(x, choose_scale(clip, self.bits, signed), self.bits, signed)

    def _fake_quantize_affine(self, x: Tensor) -> Tensor:
        step, low = self._affine_step()
        with torch.no_grad():
            bounds = codes_around_zero(zero_point(low, step, self.bits), self.bits)
            if not (x.requires_grad or self.range.requires_grad):
                return round_to_step(x, step, bounds).mul_(step).to(x.dtype)
        return RoundToStep.apply(x, step, low, bounds, False, self.range_gradient == 'exact')

    def _affine_step(self) -> tuple[Tensor, Tensor]:
        """Return step and lower end in use, of shape [1]; ends on the wrong side of 0 are 0, and can come back."""
        high, low = (straight_through(end, bound) for end, bound in (
            (self.range, self.range.detach().clamp_min(0)), (self.low, self.low.detach().clamp_max(0))))
        step = (high - low) / max_code(self.bits, signed=False)
        return straight_through(step, positive(step.detach())), low

    def clip(self) -> Tensor:
        """Return the clipping range in use, of shape [1]; the upper end of an affine grid."""
        return self.range

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the range and an unknown sign from a batch `x` of inputs; the range is at most max|x| and `cap`.

        'kl': max|x| from 5 magnitude bits on (one bit of a signed input is its sign), else the KL threshold;
        'max': max|x|; 'mse': the range of least mean squared error. An input that was taken for unsigned and shows a
        negative value is signed from now on. An affine grid gets both ends, see `find_ends`.
        """
        if not self.active:
            self.correct_sign(x)
            return
        low, high = bounds = find_bounds(x)
        self.correct_sign(x, low)
        if self.has_zero_point:
            ends = find_ends(x, self.bits, method=method, least=self.least)
            low, high = ends if cap is None else (max(ends[0], -cap), min(ends[1], cap))
            self.low.fill_(min(low, self.low.item()) if grow else low)
            self.range.fill_(max(high, self.range.item()) if grow else high)
            return
        magnitude_bits = self.bits - int(self.signed)
        clip = find_range(x, self.bits, signed=self.signed, method=method, kl_bits=magnitude_bits, bounds=bounds)
        clip = min(clip, max(-low, high))  # the KL threshold can lie half a bin above
        clip = clip if cap is None else min(clip, cap)
        self.range.fill_(max(clip, self.range.item()) if grow else clip)

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        signed = self._find_sign(x)
        if self.has_zero_point:
            step, low = self._affine_step()
            bounds = codes_around_zero(zero_point(low, step, self.bits), self.bits)
            return whole(round_to_step(x, step, bounds)), step
        scale = choose_scale(self.clip(), self.bits, signed)
        return whole(quantize(x, scale, self.bits, signed)), scale

    def zero_point(self) -> int | None:
        if not self.has_zero_point:
            return None
        step, low = self._affine_step()
        return int(zero_point(low.detach(), step.detach(), self.bits))

    @while_active
    def grid(self) -> Grid:
        if self.signed is None:
            raise ValueError('whether the input is signed is not known yet: calibrate, or run the network once')
        if self.has_zero_point:
            step, zero = self._affine_step()[0].item(), self.zero_point()
            step = 0.0 if step <= torch.finfo(self.range.dtype).tiny else step
            return Grid(step, step, -zero, max_code(self.bits, signed=False) - zero, zero_point=zero)
        top, binary = max_code(self.bits, self.signed), self.signed and self.bits == 1
        step = choose_scale(self.clip(), self.bits, self.signed).item()
        return Grid(step, step, -top if self.signed else 0, top, binary)
