"""Linear (uniform) quantization: pure functions, then HAQ's quantizers of weights and of activations on top."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from lib.quantize.blocks import blocks, dense, like
from lib.quantize.quantizer import (
    Grid,
    Quantizer,
    SignedQuantizer,
    check_choice,
    signs,
    straight_through,
    while_active,
    whole,
)
from lib.quantize.ranges import find_bounds, find_range, max_range


def max_code(bits: int, signed: bool) -> int:
    """Largest integer code: 2^bits - 1 unsigned, 2^(bits-1) - 1 signed (codes are symmetric), 1 for one signed bit."""
    return max(2 ** (bits - 1) - 1, 1) if signed else 2**bits - 1


def choose_scale(clip: Tensor, bits: int, signed: bool) -> Tensor:
    """Return the step between levels for the clipping range `clip`; 0 where the range is not positive."""
    return clip.clamp_min(0) / max_code(bits, signed)


def quantize(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """Return integer codes, as floats: round(x / scale) clamped to [-n, n] (signed) or [0, n], n = `max_code`.

    Ties round to even; a scale of 0 gives codes of 0. One signed bit is the sign, -1 or +1, with sign(0) = +1. NaN
    stays NaN.
    Example: x = (-0.4, 0.9, 7), scale 0.5, 3 bits signed gives (-1, 2, 3).
    """
    if signed and bits == 1:
        return signs(x)
    top = max_code(bits, signed)
    step = torch.where(scale > 0, scale, torch.inf)
    return (x / step).round_().clamp_(-top if signed else 0, top)


@torch.no_grad()
def fake_quantize(x: Tensor, scale: Tensor, bits: int, signed: bool) -> Tensor:
    """Return `quantize(x) * scale` in the dtype of `x`, computed in one buffer; carries no gradient."""
    if signed and bits == 1 or scale.numel() > 1 or scale.dtype != x.dtype:
        return quantize(x, scale, bits, signed).mul_(scale).to(x.dtype)
    x, out = dense(x), torch.empty_like(x)
    top, step = max_code(bits, signed), torch.where(scale > 0, scale, torch.inf)
    for part, values in blocks(x, out):
        torch.div(part, step, out=values).round_().clamp_(-top if signed else 0, top).mul_(scale)
    return out


class LinearWeightQuantizer(Quantizer):
    """Symmetric weights, one scale per tensor: q = round(clamp(w, -r, r) / s) * s with s = r / (2^(bits-1) - 1).

    Example: w = (-0.4, 0.12, 0.7), r = 0.6, 3 bits: s = 0.2 and q = (-0.4, 0.2, 0.6). One bit is binary:
    q = sign(w) * mean|w|, whatever the range. The gradient passes straight through to the unclamped weight, so weights
    outside the range still learn.

    The range r (buffer of shape [1]) is set by `calibrate`; while it is not positive, the first forward makes it
    |w| max. It does not follow the weights in training.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave weights alone.
    """

    def __init__(self, bits: int | None = None):
        super().__init__(bits)
        self.register_buffer('range', torch.zeros(1))

    def fake_quantize(self, x: Tensor) -> Tensor:
        return straight_through(x, fake_quantize(x, self._scale(x.detach()), self.bits, signed=True))

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the range from the weight `x`; 'kl' is |w| max from 5 bits on and the KL threshold below.

        One bit needs no range and leaves it as it is.
        """
        if self.active and self.bits > 1:
            clip = find_range(x, self.bits, signed=True, method=method)
            clip = clip if cap is None else min(clip, cap)
            self.range.fill_(max(clip, self.range.item()) if grow else clip)
            self.is_found = False

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self._scale(x)
        return whole(quantize(x, scale, self.bits, signed=True)), scale

    def _scale(self, weight: Tensor) -> Tensor:
        if self.bits == 1:
            return weight.abs().mean().reshape(1)
        if not self.is_found:
            if self.range.item() <= 0:
                self.range.fill_(max_range(weight))
            self.is_found = self.range.item() > 0
        return choose_scale(self.range, self.bits, signed=True)


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

    Args:
        bits: 1..16, or None, -1, >= 32 to leave inputs alone.
        signed: whether inputs can be negative; None to find out.
        range_gradient: 'clip' (faithful to HAQ) or 'exact'.
    """

    shown = ('bits', 'signed')

    def __init__(self, bits: int | None = None, *, signed: bool | None = None, initial_range: float = 6.0,
                 trainable: bool = True, range_gradient: str = 'clip'):
        super().__init__(bits)
        check_choice('range_gradient', range_gradient, ('clip', 'exact'))
        self.signed = signed
        self.range_gradient = range_gradient
        self.range = nn.Parameter(torch.full((1,), float(initial_range)))
        self.trainable = trainable

    @property
    def trainable(self) -> bool:
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool):
        self._trainable = trainable
        self.bits_changed()

    def bits_changed(self):
        # A range that asks for a gradient and never gets one would stop DistributedDataParallel.
        self.range.requires_grad_(self._trainable and self.active)

    def fake_quantize(self, x: Tensor) -> Tensor:
        signed, clip = self._find_sign(x), self.clip()
        if torch.is_grad_enabled() and (x.requires_grad or clip.requires_grad):
            return _ClipAndRound.apply(x, clip, self.bits, signed, self.range_gradient == 'exact', *_before_relu(x))
        return fake_quantize(x, choose_scale(clip, self.bits, signed), self.bits, signed)

    def clip(self) -> Tensor:
        """Return the clipping range in use, of shape [1]."""
        return self.range

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the range and an unknown sign from a batch `x` of inputs; the range is at most max|x| and `cap`.

        'kl': max|x| from 5 magnitude bits on (one bit of a signed input is its sign), else the KL threshold;
        'max': max|x|; 'mse': the range of least mean squared error. An input that was taken for unsigned and shows a
        negative value is signed from now on.
        """
        if not self.active:
            self.correct_sign(x)
            return
        low, high = bounds = find_bounds(x)
        self.correct_sign(x, low)
        magnitude_bits = self.bits - int(self.signed)
        clip = find_range(x, self.bits, signed=self.signed, method=method, kl_bits=magnitude_bits, bounds=bounds)
        clip = min(clip, max(-low, high))  # the KL threshold can lie half a bin above
        clip = clip if cap is None else min(clip, cap)
        self.range.fill_(max(clip, self.range.item()) if grow else clip)

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        signed = self._find_sign(x)
        scale = choose_scale(self.clip(), self.bits, signed)
        return whole(quantize(x, scale, self.bits, signed)), scale

    @while_active
    def grid(self) -> Grid:
        if self.signed is None:
            raise ValueError('whether the input is signed is not known yet: calibrate, or run the network once')
        top, binary = max_code(self.bits, self.signed), self.signed and self.bits == 1
        step = choose_scale(self.clip(), self.bits, self.signed).item()
        return Grid(step, step, -top if self.signed else 0, top, binary)


class _ClipAndRound(torch.autograd.Function):
    """Fake quantization with a learnable range.

    For the backward pass it keeps a tensor that the ReLU or ReLU6 before it keeps anyway, else one byte per element.
    """

    @staticmethod
    def forward(ctx, x, clip, bits, signed, exact, before, top):
        x = dense(x)
        out = fake_quantize(x, choose_scale(clip, bits, signed), bits, signed)
        kept = _regions(x, _positive(clip), signed) if before is None else like(before, x)
        ctx.signed, ctx.top = signed, top
        ctx.save_for_backward(kept, clip, *((x, out) if exact else ()))
        return out

    @staticmethod
    def backward(ctx, grad):
        kept, clip, *inside = ctx.saved_tensors
        grad, learns = like(grad, kept), ctx.needs_input_grad[1]
        grad_x, grad_clip = torch.empty_like(grad), torch.zeros_like(clip)
        split = partial(_split_by_region, signed=ctx.signed) if ctx.top is None else _split_at(clip, kept, ctx.top)
        for part, what, result in blocks(grad, kept, grad_x):
            total = split(part, what, result)
            if learns:
                grad_clip += total.sum(dtype=clip.dtype)
        if inside and learns:
            x, out = inside
            grad_clip += (grad_x * (out - x)).sum(dtype=clip.dtype) / _positive(clip)
        return grad_x, grad_clip if learns else None, None, None, None, None, None


def _split_by_region(grad: Tensor, side: Tensor, out: Tensor, *, signed: bool) -> Tensor:
    """Write the gradient of the input to `out` and return the terms of the range's; `side` is that of `_regions`."""
    side = side.to(grad.dtype)  # arithmetic with it is several times faster than torch.where
    outside = grad * side
    torch.addcmul(grad, outside, side, value=-1, out=out)
    return outside if signed else grad * side.clamp_min_(0)  # below an unsigned range the range has no say


def _before_relu(x: Tensor) -> tuple[Tensor | None, float | None]:
    """Return (v, top) with x = clip(v, 0, top) and v a tensor that autograd keeps anyway; (None, None) without."""
    name = None if x.grad_fn is None else x.grad_fn.name()
    if name == 'ReluBackward0':
        return x.detach(), math.inf
    if name == 'HardtanhBackward0' and x.grad_fn._saved_min_val == 0:  # ReLU6
        return x.grad_fn._saved_self.detach(), x.grad_fn._saved_max_val
    return None, None


def _split_at(clip: Tensor, v: Tensor, top: float):
    """Return a function that does the same with v in place of the region of the input clip(v, 0, top)."""
    edge = _positive(clip).to(v.dtype).clamp_min(torch.finfo(v.dtype).tiny)
    last = torch.nextafter(edge, torch.zeros_like(edge))
    last = torch.where(edge > torch.full_like(edge, top), torch.inf, last)  # no input is outside
    number = last.item() if _takes_numbers(v) else None

    def split(grad, part, out):
        above = grad.masked_fill(part <= last, 0) if number is None else \
            torch.ops.aten.threshold_backward(grad, part, number)
        torch.sub(grad, above, out=out)
        return above
    return split


def _regions(x: Tensor, edge: Tensor, signed: bool) -> Tensor:
    """Return, in 8 bits, 1 where x >= edge, -1 below the range (x <= -edge if signed, else x < 0), and 0 inside.

    That is the sign of x minus the nearest number inside: without comparisons, which are slow on the CPU.
    """
    last = torch.nextafter(edge.to(x.dtype), torch.zeros_like(edge, dtype=x.dtype))
    first = -last if signed else torch.zeros_like(last)
    if _takes_numbers(x):
        first, last = first.item(), last.item()
    region = torch.empty_like(x, dtype=torch.int8)
    for part, side in blocks(x, region):
        side.copy_(part.sub(part.clamp(first, last)).sign_())
    return region


def _takes_numbers(x: Tensor) -> bool:
    """Whether edges are better numbers than tensors: torch clamps and masks several times faster then, on the CPU.

    Elsewhere the host would have to wait for the number.
    """
    return x.device.type == 'cpu'


def _positive(clip: Tensor) -> Tensor:
    """Return the range, or the smallest positive number where it is 0 or less, so that x is inside or outside of it."""
    return clip.clamp_min(torch.finfo(clip.dtype).tiny)
