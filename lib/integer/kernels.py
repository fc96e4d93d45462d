"""The operations of an integer network on integer tensors, or on integers held in floating point.

Every kernel takes tensors with the batch first, and returns the same type; none of them makes a floating-point number
out of integers. Matrix products serve 1x1 convolutions, for they are the fastest integer operation of PyTorch; its own
depthwise convolution of integers is the slowest, so that one is a sum over shifted slices.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.integer.fixed_point import shift_right_

Pair = tuple[int, int]
CACHED = 2**16  # numbers of a tensor that stays in the processor's cache


def conv(x: Tensor, weight: Tensor, *, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Tensor:
    """Return the convolution of (N, C, H, W) with (O, C / groups, kh, kw), zero padding; options are pairs."""
    kernel = tuple(weight.shape[-2:])
    if kernel == (1, 1) and groups == 1 and not any(padding):
        x = x[:, :, ::stride[0], ::stride[1]]
        out = torch.matmul(weight.flatten(1), x.flatten(2))  # (N, O, H W)
        return out.unflatten(2, x.shape[2:])
    if groups == len(weight) == x.shape[1]:
        return _depthwise(x, weight, kernel, stride, padding, dilation)
    if max(dilation) > 1:  # PyTorch has no such convolution of int32
        weight = _spread(weight, dilation)
    return F.conv2d(x, weight, None, stride, padding, 1, groups)


def _spread(weight, dilation):
    """Return the kernel with zeros where a dilated one does not look."""
    shape = [reach * (size - 1) + 1 for size, reach in zip(weight.shape[2:], dilation, strict=True)]
    spread = weight.new_zeros(*weight.shape[:2], *shape)
    spread[:, :, ::dilation[0], ::dilation[1]] = weight
    return spread


def _depthwise(x, weight, kernel, stride, padding, dilation):
    if x.dtype == torch.float32:
        return F.conv2d(x, weight, None, stride, padding, dilation, len(weight))
    outputs = []
    for images in x.split(max(1, CACHED // x[0].numel())):
        out = None
        for index, part in _windows(images, kernel, stride, padding, dilation):
            factor = weight[:, 0].flatten(1)[:, index, None, None]
            out = part * factor if out is None else out.addcmul_(part, factor)
        outputs.append(out)
    return torch.cat(outputs)


def _windows(x, kernel, stride, padding=(0, 0), dilation=(1, 1)):
    """Yield (index in the kernel, the inputs (N, C, H', W') that it meets at every output position)."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
    height, width = ((size - reach * (length - 1) - 1) // step + 1 for size, length, step, reach in
                     zip(x.shape[2:], kernel, stride, dilation, strict=True))
    for index in range(kernel[0] * kernel[1]):
        top, left = (index // kernel[1]) * dilation[0], (index % kernel[1]) * dilation[1]
        yield index, x[:, :, top:top + (height - 1) * stride[0] + 1:stride[0],
                       left:left + (width - 1) * stride[1] + 1:stride[1]]


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return the integers (N, out) of inputs (N, in) and weights (out, in)."""
    return x @ weight.t()


def sum_pool(x: Tensor, *, kernel: Pair, stride: Pair) -> Tensor:
    """Return the sum over each window; the division is part of the next multiplier."""
    if tuple(kernel) == tuple(x.shape[2:]):
        return x.sum((2, 3), keepdim=True)
    return sum(part for _, part in _windows(x, kernel, stride))


def max_pool(x: Tensor, *, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Return the largest integer of each window."""
    return F.max_pool2d(x, kernel, stride, padding, dilation)


def requantize(*inputs, shift: int, rounding: str, low: int | None = None, high: int | None = None,
               binary: bool = False, **constants) -> Tensor:
    """Return clip((x0 M0 + x1 M1 + ... + C) / 2^shift, low, high); a binary one the sign, +1 for 0 and above.

    `constants` are `multiplier0`, `multiplier1`, ... and `offset`, one integer a channel or a single one.
    """
    offset = constants['offset']
    if rounding == 'round' and shift and not binary:
        offset, rounding = offset + 2**(shift - 1), 'floor'
    total = _per_channel(offset, inputs[0])
    for i, x in enumerate(inputs):
        total = torch.addcmul(total, x, _per_channel(constants[f'multiplier{i}'], x))
    if binary:
        codes = (total >= 0).to(total.dtype).mul_(2).sub_(1)
    else:
        codes = shift_right_(total, shift, rounding)
    return codes if low is None and high is None else codes.clamp_(low, high)


def _per_channel(vector, x):
    return vector.view(-1, *[1] * (x.dim() - 2))


def lookup(x: Tensor, *, table: Tensor) -> Tensor:
    """Return table[x]; the middle entry is that of 0."""
    return table[x.long() + len(table) // 2]


def product(x: Tensor, y: Tensor, *, shift: int, rounding: str) -> Tensor:
    """Return x y / 2^shift; `y` may have one position for all of `x`."""
    return shift_right_(x * y, shift, rounding)


def cat(*inputs: Tensor) -> Tensor:
    """Return the channels of all inputs, one behind another."""
    return torch.cat(inputs, 1)


def permute(x: Tensor, *, index: Tensor) -> Tensor:
    """Return the channels of `x` in the order of the index."""
    return x[:, index.long()]


def flatten(x: Tensor) -> Tensor:
    """Return (N, C * H * W) of (N, C, H, W)."""
    return x.flatten(1)


def take(x: Tensor, *, slices: Sequence[tuple]) -> Tensor:
    """Return x[:, channels, rows, columns]; each slice is (start, stop, step)."""
    return x[(slice(None), *(slice(*part) for part in slices))]


def pad(x: Tensor, *, widths: Sequence[int]) -> Tensor:
    """Return `x` with zeros around it, widths as those of `torch.nn.functional.pad`."""
    return F.pad(x, tuple(widths))


KERNELS = {kernel.__name__: kernel for kernel in
           (conv, linear, sum_pool, max_pool, requantize, lookup, product, cat, permute, flatten, take, pad)}
