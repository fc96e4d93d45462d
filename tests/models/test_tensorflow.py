"""TensorFlow's SAME padding against its definition, pixel by pixel."""

import itertools
import math

import pytest
import torch
from torch import nn

import models
from models.tensorflow import BATCH_NORM_EPS, SameConv2d, tensorflow_style


def same_convolution(x, weight, stride, dilation):
    """The definition: output o reads the inputs o * stride - before + k * dilation; outside the image is 0."""
    size, kernel = x.shape[-1], weight.shape[-1]
    outputs = math.ceil(size / stride)
    before = max((outputs - 1) * stride + (kernel - 1) * dilation + 1 - size, 0) // 2
    y = torch.zeros(len(weight), outputs, outputs, dtype=x.dtype)
    for row, column, i, j in itertools.product(range(outputs), range(outputs), range(kernel), range(kernel)):
        r, c = row * stride - before + i * dilation, column * stride - before + j * dilation
        if 0 <= r < size and 0 <= c < size:
            y[:, row, column] += weight[:, :, i, j] @ x[0, :, r, c]
    return y


@pytest.mark.parametrize(('size', 'kernel', 'stride', 'dilation'), [
    (8, 3, 2, 1), (7, 3, 2, 1), (8, 5, 2, 1), (9, 5, 3, 1), (8, 2, 2, 1), (8, 3, 1, 1), (10, 3, 2, 2), (6, 4, 1, 1)])
def test_same_padding(size, kernel, stride, dilation):
    torch.manual_seed(0)
    layer = SameConv2d(2, 3, kernel, stride, dilation=dilation, bias=False).double()
    x = torch.randn(1, 2, size, size, dtype=torch.float64)
    assert torch.allclose(layer(x)[0], same_convolution(x, layer.weight.detach(), stride, dilation), atol=1e-12)


def test_only_padding_and_epsilon_change():
    plain = models.create_model('mobilenet_v2').eval()
    twin = tensorflow_style(models.create_model('mobilenet_v2')).eval()
    twin.load_state_dict(plain.state_dict())
    assert [name for name, m in twin.named_modules() if isinstance(m, SameConv2d)] == [
        name for name, m in plain.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert {m.eps for m in twin.modules() if isinstance(m, nn.BatchNorm2d)} == {BATCH_NORM_EPS}
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(twin.features[0](images), plain.features[0](images), rtol=0.1)


def test_a_network_that_pads_in_another_way_is_refused():
    with pytest.raises(ValueError, match='0 has kernel .* does not pad as TensorFlow does'):
        tensorflow_style(nn.Sequential(nn.Conv2d(3, 8, 11, stride=4, padding=2)))
