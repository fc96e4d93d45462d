"""The dot-product engine: integer convolutions and linear layers on analog arrays (docs/dot_product_engine.md).

Integer codes in, estimates of their integer sums of products out; scales and zero points are up to the caller. Runs on
the CPU.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.engine.mvm_engine import MVMEngine, check_code, check_codes, make_engine

__all__ = ['ConvMVMEngine', 'LinearMVMEngine', 'make_engine']

Size = int | tuple[int, int]
PATCHES = 2**25  # bytes of im2col at a time


class LinearMVMEngine:
    """A linear layer's integer products on an engine."""

    def __init__(self, factory: Callable[[], MVMEngine]):
        self.engine = factory()

    def program(self, weight: Tensor, bits: int, zero_point: int = 0) -> None:
        """Write weight codes (out, in); see `MVMEngine.program`."""
        if weight.dim() != 2:
            raise ValueError(f'weight has shape {tuple(weight.shape)}, expected (out, in)')
        self.engine.program(weight.T, bits, zero_point)

    def __call__(self, codes: Tensor, bits: int) -> Tensor:
        """Return (..., out) float64 for input codes (..., in)."""
        sums = self.engine.mvm(codes.reshape(-1, codes.shape[-1]), bits)
        return sums.view(*codes.shape[:-1], sums.shape[1])

    def calibrate_range(self, codes: Tensor, bits: int) -> None:
        """Set the ranges of the converters from sample inputs; see `MVMEngine.calibrate_range`."""
        self.engine.calibrate_range(codes.reshape(-1, codes.shape[-1]), bits)


class ConvMVMEngine:
    """A convolution's integer products on an engine: patches (im2col) times filters."""

    def __init__(self, factory: Callable[[], MVMEngine]):
        self.engine = factory()

    def program(self, weight: Tensor, bits: int, zero_point: int = 0, stride: Size = 1, padding: Size = 0,
                dilation: Size = 1, groups: int = 1) -> None:
        """Write weight codes (out, in / groups, kh, kw); the rest as in `torch.nn.functional.conv2d`, in numbers.

        Raises:
            ValueError: as `MVMEngine.program`; an array with fewer rows than a filter has weights for one channel; a
                stride, padding, dilation or groups that no convolution has.
        """
        if weight.dim() != 4 or groups < 1 or len(weight) % groups:
            raise ValueError(f'weight has shape {tuple(weight.shape)} with {groups} groups, expected (out, '
                             'in / groups, kh, kw) with out a multiple of groups')
        self._stride, self._dilation = _pair(stride, 'stride', 1), _pair(dilation, 'dilation', 1)
        self._padding, self._kernel = _pair(padding, 'padding', 0), tuple(weight.shape[2:])
        matrices = weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2)  # (groups, K, N)
        self.engine.program(matrices, bits, zero_point, unit=self._kernel[0] * self._kernel[1])
        self._channels, self._filters = groups * weight.shape[1], len(weight)

    def __call__(self, codes: Tensor, bits: int, pad_code: int = 0) -> Tensor:
        """Return S, the sums of input codes times weight codes, (N, out, H', W') float64.

        Args:
            codes: (N, C, H, W), 0..2^bits - 1.
            bits: 1..8.
            pad_code: the code that stands for zero, with which the border is padded.
        """
        codes = self._padded(codes, bits, pad_code)
        sums = torch.cat([self.engine.mvm(patches, bits) for patches in self._patches(codes)])
        return sums.view(len(codes), *self._output_size(codes), self._filters).permute(0, 3, 1, 2).contiguous()

    def calibrate_range(self, codes: Tensor, bits: int, pad_code: int = 0) -> None:
        """Set the ranges of the converters from sample inputs; see `MVMEngine.calibrate_range`."""
        self.engine.calibrate_range(next(self._patches(self._padded(codes, bits, pad_code))), bits)

    def _padded(self, codes, bits, pad_code) -> Tensor:
        self.engine.check_programmed()
        codes = check_codes(codes, bits, 'input')
        if codes.dim() != 4 or codes.shape[1] != self._channels:
            raise ValueError(f'inputs have shape {tuple(codes.shape)}, expected (N, {self._channels}, H, W)')
        (top, left), pad_code = self._padding, check_code(pad_code, bits, 'pad_code')
        return F.pad(codes, (left, left, top, top), value=pad_code)

    def _output_size(self, codes) -> tuple[int, int]:
        extents = tuple((k - 1) * d + 1 for k, d in zip(self._kernel, self._dilation, strict=True))
        sizes = tuple((size - extent) // stride + 1
                      for size, extent, stride in zip(codes.shape[2:], extents, self._stride, strict=True))
        if min(sizes) < 1:
            raise ValueError(f'padded inputs of {tuple(codes.shape[2:])} are smaller than the kernel, {extents}')
        return sizes

    def _patches(self, codes) -> Iterator[Tensor]:
        """Yield im2col of padded codes, (images H' W', C kh kw), of a few images at a time."""
        (height, width), (down, right) = self._output_size(codes), self._stride
        step = max(1, PATCHES // (height * width * self._channels * self._kernel[0] * self._kernel[1]))
        for part in codes.split(step):
            patches = part.new_empty(len(part), height, width, self._channels, *self._kernel)
            for i in range(self._kernel[0]):  # a strided copy per weight is six times faster than one copy of all
                for j in range(self._kernel[1]):
                    y, x = i * self._dilation[0], j * self._dilation[1]
                    taken = part[..., y:y + down * (height - 1) + 1:down, x:x + right * (width - 1) + 1:right]
                    patches[..., i, j] = taken.permute(0, 2, 3, 1)
            yield patches.flatten(3).flatten(0, 2)


def _pair(value, name, least) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f'{name} is {value!r:.60}, expected a whole number of at least {least}, or two of them')
    return pair
