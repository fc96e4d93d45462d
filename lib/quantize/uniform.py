"""Uniform quantization without a zero point, as pure functions, and with the gradient of a learnable range."""

import math
from functools import partial

import torch
from torch import Tensor

from lib.quantize.blocks import blocks, dense, like
from lib.quantize.quantizer import signs


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


class ClipAndRound(torch.autograd.Function):
    """Fake quantization with a learnable range.

    For the backward pass it keeps a tensor that the ReLU or ReLU6 before it keeps anyway, else one byte per element.
    """

    @staticmethod
    def forward(ctx, x, clip, bits, signed, exact, before, top):
        x = dense(x)
        out = fake_quantize(x, choose_scale(clip, bits, signed), bits, signed)
        kept = _regions(x, positive(clip), signed) if before is None else like(before, x)
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
            grad_clip += (grad_x * (out - x)).sum(dtype=clip.dtype) / positive(clip)
        return grad_x, grad_clip if learns else None, None, None, None, None, None


def _split_by_region(grad: Tensor, side: Tensor, out: Tensor, *, signed: bool) -> Tensor:
    """Write the gradient of the input to `out` and return the terms of the range's; `side` is that of `_regions`."""
    side = side.to(grad.dtype)  # arithmetic with it is several times faster than torch.where
    outside = grad * side
    torch.addcmul(grad, outside, side, value=-1, out=out)
    return outside if signed else grad * side.clamp_min_(0)  # below an unsigned range the range has no say


def before_relu(x: Tensor) -> tuple[Tensor | None, float | None]:
    """Return (v, top) with x = clip(v, 0, top) and v a tensor that autograd keeps anyway; (None, None) without."""
    name = None if x.grad_fn is None else x.grad_fn.name()
    if name == 'ReluBackward0':
        return x.detach(), math.inf
    if name == 'HardtanhBackward0' and x.grad_fn._saved_min_val == 0:  # ReLU6
        return x.grad_fn._saved_self.detach(), x.grad_fn._saved_max_val
    return None, None


def _split_at(clip: Tensor, v: Tensor, top: float):
    """Return a function that does the same with v in place of the region of the input clip(v, 0, top)."""
    edge = positive(clip).to(v.dtype).clamp_min(torch.finfo(v.dtype).tiny)
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


def positive(clip: Tensor) -> Tensor:
    """Return the range, or the smallest positive number where it is 0 or less, so that x is inside or outside of it."""
    return clip.clamp_min(torch.finfo(clip.dtype).tiny)
