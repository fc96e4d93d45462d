import random
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from lib.simulator.layer import LayerRecord
from lib.simulator.measured import kernels, onnx_kernel
from lib.simulator.measured.kernels import (
    FloatKernel,
    Int8Kernel,
    IntMatmulKernel,
    PopcountOperands,
    check_int8,
    im2col,
    weight_rows,
    window,
)


def conv(cin, cout, kernel, stride, groups, size, out):
    kernel, stride = (kernel, kernel) if isinstance(kernel, int) else kernel, (stride, stride)
    count = cout * cin // groups * kernel[0] * kernel[1]
    return LayerRecord('layer', 'conv', cin, cout, kernel, stride, groups, *size, *out, count)


def linear(cin, cout, positions=1):
    return LayerRecord('fc', 'linear', cin, cout, (1, 1), (1, 1), 1, positions, 1, positions, 1, cin * cout)


LAYERS = {
    'stem': conv(3, 16, 3, 2, 1, (17, 12), (9, 6)),
    'pointwise': conv(24, 40, 1, 1, 1, (6, 5), (6, 5)),
    'pointwise with stride': conv(16, 8, 1, 2, 1, (7, 8), (4, 4)),
    'depthwise': conv(32, 32, 3, 1, 32, (8, 7), (8, 7)),
    'depthwise with stride': conv(24, 24, 5, 2, 24, (9, 9), (5, 5)),
    'two filters per channel': conv(8, 16, 3, 1, 8, (6, 6), (6, 6)),
    'grouped': conv(16, 24, 3, 1, 4, (6, 6), (6, 6)),
    'no padding': conv(16, 16, 3, 1, 1, (8, 8), (6, 6)),
    'oblong': conv(8, 8, (1, 5), 1, 1, (6, 9), (6, 9)),
    'classifier': linear(40, 10),
    'tokens': linear(24, 16, positions=7),
}  # fmt: skip
ENGINES = [name for name in torch.backends.quantized.supported_engines if name not in ('none', 'qnnpack')]
every_layer = pytest.mark.parametrize('layer', LAYERS.values(), ids=LAYERS)


def reference(layer, x, weight):
    """The layer in float64, in which integers stay exact."""
    x, weight = x.double(), weight.double()
    if layer.kind == 'linear':
        return F.linear(x, weight)
    return F.conv2d(x, weight, None, layer.stride, window(layer).padding, 1, layer.groups)


def as_rows(layer, y):
    """(B, C, H, W) as (groups, C / groups, B H W)."""
    if layer.kind == 'linear':
        return y.T[None]
    batch, channels, height, width = y.shape
    y = y.reshape(batch, layer.groups, channels // layer.groups, height * width)
    return y.permute(1, 2, 0, 3).reshape(layer.groups, channels // layer.groups, batch * height * width)


# From a record to the operands.


@pytest.mark.parametrize(
    'size, out, kernel, stride, expected',
    [
        (224, 112, 3, 2, (224, 1)), (56, 56, 3, 1, (56, 1)), (14, 14, 1, 1, (14, 0)), (32, 28, 5, 1, (32, 0)),
        (224, 112, 7, 2, (224, 3)), (7, 4, 1, 2, (7, 0)),
        (8, 8, 2, 1, (9, 0)),  # an even kernel with `same` padding: one row more
        (16, 14, 1, 1, (14, 0)),  # more input than the outputs can have used: less of it
        (8, 4, 3, 1, (6, 0)),  # dilation 2 without padding: four outputs of a kernel that is not dilated
    ],
)  # fmt: skip
def test_window(size, out, kernel, stride, expected):
    found = window(conv(4, 4, kernel, stride, 1, (size, 40), (out, (40 - kernel) // stride + 1)))
    assert (found.height, found.padding[0]) == expected
    assert (found.width, found.padding[1]) == (40, 0)


def test_window_finds_the_smallest_padding_and_always_the_output_size():
    pick = random.Random(0).randint
    for _ in range(500):
        size, kernel, stride, padding = pick(1, 40), pick(1, 7), pick(1, 4), pick(0, 3)
        if size + 2 * padding < kernel:
            continue
        out = (size + 2 * padding - kernel) // stride + 1
        found = window(conv(1, 1, kernel, stride, 1, (size, size), (out, out)))
        fitting = [p for p in range(4) if (size + 2 * p - kernel) // stride + 1 == out]
        assert (found.height, found.padding[0]) == (size, fitting[0])
    for _ in range(500):  # any record
        size, out, kernel, stride = pick(1, 40), pick(1, 40), pick(1, 7), pick(1, 4)
        found = window(conv(1, 1, kernel, stride, 1, (size, size), (out, out)))
        assert (found.height + 2 * found.padding[0] - kernel) // stride + 1 == out and found.height > 0


@pytest.mark.parametrize('layer', [layer for layer in LAYERS.values() if layer.kind == 'conv'])
def test_im2col_rows_times_weight_rows_are_the_convolution(layer):
    x = torch.randint(0, 9, (2, layer.in_channels, layer.in_h, layer.in_w)).double()
    weight = torch.randint(-9, 9, (layer.out_channels, layer.in_channels // layer.groups, *layer.kernel)).double()
    product = weight_rows(weight, layer.groups) @ im2col(x, layer).mT
    assert torch.equal(product, as_rows(layer, reference(layer, x, weight)))


# What the kernels compute.


@every_layer
@pytest.mark.parametrize('engine', ENGINES)
def test_int8_rounds_the_exact_result(layer, engine):
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        kernel = Int8Kernel(layer, batch=2)
        result = kernel()
    finally:
        torch.backends.quantized.engine = before
    exact = reference(layer, kernel.x.dequantize(), kernel.weight.dequantize())
    codes = exact / kernel.y_scale + kernel.Y_ZERO
    error = (result.int_repr() - codes.clamp(0, 255)).abs()
    assert result.shape == exact.shape and error.max() < 0.501
    assert ((codes > 0) & (codes < 255)).double().mean() > 0.5  # the test is not one of clipping


@every_layer
def test_popcount_is_exact_at_any_bits(layer):
    operands = PopcountOperands(layer, batch=2)
    for w_bit, a_bit in ((8, 8), (1, 1), (3, 5), (8, 2)):
        weight = operands.weight.int() << (32 - w_bit) >> (32 - w_bit)  # the lowest bits, two's complement
        exact = reference(layer, operands.x & (2**a_bit - 1), weight)
        assert torch.equal(torch.from_numpy(operands.at(w_bit, a_bit)).double(), as_rows(layer, exact))


@pytest.mark.parametrize('layer', [layer for layer in LAYERS.values() if layer.groups == 1])
def test_int_matmul_is_exact(layer):
    kernel = IntMatmulKernel(layer, batch=2)
    exact = as_rows(layer, reference(layer, kernel.x, kernel.weight))[0].T
    result = kernel()
    assert torch.equal(result[: len(exact), : layer.out_channels].double(), exact)
    rows, columns = kernel.rows if kernel.rows is not None else kernel._rows(), kernel.columns
    assert len(rows) > 16 and not (len(rows) % 8 or rows.shape[1] % 8 or columns.shape[1] % 8)  # CUDA asks for these


@every_layer
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_float_layers(layer, dtype):
    kernel = FloatKernel(layer, batch=2, dtype=dtype)
    result, exact = kernel(), reference(layer, kernel.x, kernel.weight)
    assert result.dtype == dtype and result.shape == exact.shape
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.1)
    if layer.kind == 'conv':
        assert result.shape[2:] == (layer.out_h, layer.out_w)


@every_layer
def test_onnxruntime_rounds_the_exact_result(layer):
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    kernel = onnx_kernel.OnnxKernel(layer, batch=2, threads=1)
    x, result = torch.from_numpy(kernel.x), torch.from_numpy(kernel())
    if layer.kind == 'conv':
        x, result = x.permute(0, 3, 1, 2), result.permute(0, 3, 1, 2)
    exact = reference(layer, (x.double() - kernel.X_ZERO) * kernel.X_SCALE, torch.from_numpy(kernel.weight))
    codes = exact * kernel.W_SCALE / kernel.y_scale + kernel.Y_ZERO
    assert (result - codes.clamp(0, 255)).abs().max() < 0.501


# What is missing is named.


def test_missing_onnxruntime(monkeypatch):
    def refuse(name):
        raise ImportError(f'No module named {name!r}')

    monkeypatch.setattr(onnx_kernel, 'import_module', refuse)
    with pytest.raises(ValueError, match='requirements-export.txt'):
        onnx_kernel.load_onnx()


def test_missing_quantized_kernels(monkeypatch):
    assert check_int8() in kernels.ENGINES[1:]
    with pytest.raises(ValueError, match="no engine 'other'.*only"):
        check_int8('other')
    monkeypatch.setattr(torch.ops, 'quantized', SimpleNamespace(linear=None))
    with pytest.raises(ValueError, match='has no quantized kernels.*conv2d_prepack.*fp32'):
        check_int8()
