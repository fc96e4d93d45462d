"""Layers as calls that can be timed: one convolution or linear layer with made-up operands, run by a real kernel.

A kernel is an object with its operands as attributes; calling it runs the layer once for a whole batch and returns the
result. `what` names the code that runs.
"""

import warnings
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.simulator.gemm import ceil_div
from lib.simulator.layer import LayerRecord
from lib.simulator.measured.popcount import pack_planes, popcount_matmul

FLOATS = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
ENGINES = ('auto', 'x86', 'onednn', 'fbgemm', 'qnnpack')  # of PyTorch's quantized kernels


class Window(NamedTuple):
    """The input of a convolution and its padding that give the recorded output size."""

    height: int
    width: int
    padding: tuple[int, int]


def window(layer: LayerRecord) -> Window:
    """Return the smallest padding, the same on both sides, with which the input gives the recorded output size.

    A record holds no padding. Where none fits (`same` padding of an even kernel, a dilated kernel, a record merged of
    several calls) the input is made larger or smaller until the output size is right, for that decides the work.
    """
    height, pad_h = _side(layer.in_h, layer.out_h, layer.kernel[0], layer.stride[0])
    width, pad_w = _side(layer.in_w, layer.out_w, layer.kernel[1], layer.stride[1])
    return Window(height, width, (pad_h, pad_w))


def im2col(images: Tensor, layer: LayerRecord) -> Tensor:
    """Return the rows of a convolution of (B, C, H, W): (groups, B out_h out_w, k_h k_w C / groups), channels last."""
    pixels, (pad_h, pad_w) = images.permute(0, 2, 3, 1), window(layer).padding
    if pad_h or pad_w:
        pixels = F.pad(pixels, (0, 0, pad_w, pad_w, pad_h, pad_h))
    batch, _, _, channels = pixels.shape
    size = (layer.groups, batch, layer.out_h, layer.out_w, *layer.kernel, channels // layer.groups)
    (stride_h, stride_w), rows = layer.stride, (layer.groups, batch * layer.out_h * layer.out_w, -1)
    if layer.groups == 1:  # one copy, none for a pointwise layer
        patches = pixels.unfold(1, layer.kernel[0], stride_h).unfold(2, layer.kernel[1], stride_w)
        return patches.permute(0, 1, 2, 4, 5, 3).reshape(rows)
    pixels = pixels.unflatten(3, (layer.groups, -1)).permute(3, 0, 1, 2, 4).contiguous()
    patches = pixels.new_empty(size)  # filled tap by tap: several times faster than a copy of so fine a view
    for i, j in np.ndindex(layer.kernel):
        taps = pixels[:, :, i : i + stride_h * layer.out_h : stride_h, j : j + stride_w * layer.out_w : stride_w]
        patches[:, :, :, :, i, j] = taps
    return patches.reshape(rows)


def weight_rows(weight: Tensor, groups: int) -> Tensor:
    """Return a weight as the rows that meet those of `im2col`: (groups, C_out / groups, k_h k_w C_in / groups)."""
    rows = weight.permute(0, 2, 3, 1) if weight.dim() == 4 else weight
    return rows.reshape(groups, weight.shape[0] // groups, -1)


class Kernel:
    """Base of the kernels: shapes and made-up operands of a layer.

    Args:
        layer: what to run.
        batch: images at a time.
        device: where the operands live.
    """

    what: ClassVar[str]
    X_SCALE, X_ZERO, W_SCALE, Y_ZERO = 0.02, 5, 0.005, 64  # where results are 8-bit codes, too

    def __init__(self, layer: LayerRecord, batch: int, device: str = 'cpu'):
        self.layer, self.batch, self.device = layer, batch, device
        self.generator = torch.Generator().manual_seed(0)
        if layer.kind == 'linear':
            self.input_shape = (batch * layer.out_h * layer.out_w, layer.in_channels)
            self.weight_shape = (layer.out_channels, layer.in_channels)
        else:
            shape = window(layer)
            self.input_shape = (batch, layer.in_channels, shape.height, shape.width)
            self.weight_shape = (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)
            self.padding = shape.padding
        self.fan_in = int(np.prod(self.weight_shape[1:]))
        self.y_scale = 100 * self.fan_in**0.5 * self.X_SCALE * self.W_SCALE  # most results fall within 0..255

    def __call__(self):
        """Run the layer once and return its result."""
        raise NotImplementedError

    def codes(self, shape: tuple[int, ...], low: int, high: int) -> Tensor:
        """Return integers from low..high as int16, in the memory format that integer kernels want (channels last)."""
        drawn = torch.randint(low, high + 1, shape, generator=self.generator, dtype=torch.int16)
        return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


class FloatKernel(Kernel):
    """The layer in floating point by `torch`, without bias, channels first as networks come."""

    def __init__(self, layer: LayerRecord, batch: int, device: str = 'cpu', dtype: torch.dtype = torch.float32):
        super().__init__(layer, batch, device)
        self.what = f'torch, {str(dtype).removeprefix("torch.")}'
        weight = torch.randn(self.weight_shape, generator=self.generator) / self.fan_in**0.5
        self.x = torch.randn(self.input_shape, generator=self.generator).to(device, dtype)
        self.weight = weight.to(device, dtype)

    def __call__(self) -> Tensor:
        if self.layer.kind == 'linear':
            return F.linear(self.x, self.weight)
        return F.conv2d(self.x, self.weight, None, self.layer.stride, self.padding, 1, self.layer.groups)


class Int8Kernel(Kernel):
    """The layer by PyTorch's quantized kernels on the CPU: uint8 inputs, int8 weights, uint8 results, channels last.

    Requantization of the result is part of the call. The weights are packed beforehand. Inputs stay below 128 so that
    the result is exact also where the kernel adds pairs of products in 16 bits (x86 without VNNI).
    """

    def __init__(self, layer: LayerRecord, batch: int):
        super().__init__(layer, batch)
        self.what = f'torch.ops.quantized, {torch.backends.quantized.engine}'
        self.x = quantized(self.codes(self.input_shape, 0, 127), self.X_SCALE, self.X_ZERO, torch.quint8)
        self.weight = quantized(self.codes(self.weight_shape, -128, 127), self.W_SCALE, 0, torch.qint8)
        ops = torch.ops.quantized
        if layer.kind == 'linear':
            self.packed = ops.linear_prepack(self.weight, None)
        else:
            self.packed = ops.conv2d_prepack(self.weight, None, layer.stride, self.padding, (1, 1), layer.groups)

    def __call__(self) -> Tensor:
        ops = torch.ops.quantized
        operation = ops.linear if self.layer.kind == 'linear' else ops.conv2d
        return operation(self.x, self.packed, self.y_scale, self.Y_ZERO)


class IntMatmulKernel(Kernel):
    """The layer as one int8 matrix product by `torch._int_mm`, on CUDA by tensor cores; for layers of one group.

    The result is int32 and stays so. Where a convolution needs im2col, that copy is part of the call; PyTorch has no
    int8 convolution for CUDA. Rows and channels are filled up to the multiples that the operation asks for.
    """

    what = 'torch._int_mm, int8'

    def __init__(self, layer: LayerRecord, batch: int, device: str = 'cpu'):
        super().__init__(layer, batch, device)
        self.x = self.codes(self.input_shape, -128, 127).to(device, torch.int8)
        self.weight = self.codes(self.weight_shape, -128, 127).to(device, torch.int8)
        rows = weight_rows(self.weight, 1)[0]
        self.columns = _fill(rows, 8 * ceil_div(len(rows), 8)).t()
        pointwise = layer.kind == 'linear' or (layer.kernel == layer.stride == (1, 1) and self.padding == (0, 0))
        self.rows = self._rows() if pointwise else None  # the input as it lies in memory

    def __call__(self) -> Tensor:
        return torch._int_mm(self._rows() if self.rows is None else self.rows, self.columns)

    def _rows(self) -> Tensor:
        rows = self.x if self.layer.kind == 'linear' else im2col(self.x, self.layer)[0]
        return _fill(rows, max(32, 8 * ceil_div(len(rows), 8)))


class PopcountOperands(Kernel):
    """8-bit codes from which the layer is computed by `popcount_matmul` at any bits: the lowest of each code.

    Activations are unsigned, weights two's complement. One call packs the activations' bit planes and multiplies; the
    weights are packed beforehand. The result is int32 and stays so.
    """

    what = 'numpy popcount, bit-serial'

    def __init__(self, layer: LayerRecord, batch: int):
        super().__init__(layer, batch)
        self.x = self.codes(self.input_shape, 0, 255).to(torch.uint8)
        self.weight = self.codes(self.weight_shape, -128, 127).to(torch.int8)
        self.w_planes = pack_planes(weight_rows(self.weight, layer.groups).contiguous().numpy(), 8)

    def at(self, w_bit: int, a_bit: int) -> np.ndarray:
        """Return the product of the lowest bits, (groups, C_out / groups, rows)."""
        rows = self.x[None] if self.layer.kind == 'linear' else im2col(self.x, self.layer)
        return popcount_matmul(pack_planes(rows.numpy(), a_bit), self.w_planes[:w_bit])


def quantized(codes: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """Return PyTorch's quantized tensor of the codes; the notice that such tensors will go is not repeated."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', category=UserWarning)
        return torch.quantize_per_tensor((codes - zero_point) * scale, scale, zero_point, dtype)


def check_int8(engine: str = 'auto') -> str:
    """Return the engine of PyTorch's quantized kernels to use: 'auto' is the first of x86, onednn, fbgemm, qnnpack.

    Raises:
        ValueError: this PyTorch lacks the kernels or the engine.
    """
    supported = [name for name in torch.backends.quantized.supported_engines if name != 'none']
    names = ('conv2d_prepack', 'conv2d', 'linear_prepack', 'linear')
    missing = [name for name in names if not hasattr(torch.ops.quantized, name)]
    if missing or not supported or not hasattr(torch, 'quantize_per_tensor'):
        raise ValueError(
            f'PyTorch {torch.__version__} has no quantized kernels on this machine '
            f"({', '.join(missing) or 'no engine'}): take the kernel fp32, popcount or onnxruntime"
        )
    if engine == 'auto':
        return next(name for name in (*ENGINES[1:], *supported) if name in supported)
    if engine not in supported:
        raise ValueError(f'this PyTorch has no engine {engine!r} for quantized kernels, only {", ".join(supported)}')
    return engine


def _side(size, out, kernel, stride) -> tuple[int, int]:
    """Return input size and padding along one side; see `window`."""
    covered = (out - 1) * stride + kernel  # by the outputs, padding included
    padding = max(0, ceil_div(covered - size, 2))
    if (size + 2 * padding - kernel) // stride + 1 == out:
        return size, padding
    padding = max(0, (covered - size) // 2)
    return covered - 2 * padding, padding


def _fill(rows: Tensor, count: int) -> Tensor:
    """Return the matrix with zeros added: `count` rows, and columns in a multiple of 8."""
    more_columns = -rows.shape[1] % 8
    if not more_columns and len(rows) == count:
        return rows.contiguous()
    return F.pad(rows, (0, more_columns, 0, count - len(rows)))
