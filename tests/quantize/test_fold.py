"""Folding a batch normalization into one layer: against the two layers one after the other, and against torch's own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lib.quantize import QConv2d, QLinear
from lib.quantize.folding import fold_batch_norm, fold_layer, folded_parameters

NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYERS = [
    lambda bias: (nn.Conv1d(4, 6, 3, groups=2, bias=bias), (2, 4, 7)),
    lambda bias: (nn.Conv2d(4, 6, 3, padding=1, bias=bias), (2, 4, 7, 7)),
    lambda bias: (nn.Conv2d(4, 8, (3, 2), stride=2, groups=4, bias=bias), (2, 4, 7, 7)),
    lambda bias: (nn.Conv2d(4, 5, 3, padding=1, padding_mode='reflect', bias=bias), (2, 4, 7, 7)),
    lambda bias: (nn.Conv3d(2, 3, 2, bias=bias), (2, 2, 4, 4, 4)),
    lambda bias: (nn.Linear(5, 3, bias=bias), (4, 5)),
    lambda bias: (QConv2d(4, 6, 3, bias=bias), (2, 4, 7, 7)),
    lambda bias: (QLinear(5, 3, bias=bias), (4, 5)),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def norm_after(layer, shape, affine=True):
    """A BatchNorm in evaluation mode whose every number matters."""
    channels = layer(torch.zeros(shape)).shape[1]
    norm = NORMS[len(shape)](channels, eps=0.1, affine=affine).eval()
    for tensor in (norm.running_mean, *norm.parameters()):
        nn.init.normal_(tensor)
    nn.init.uniform_(norm.running_var, 0.2, 3)
    return norm


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('make', LAYERS)
def test_the_folded_layer_is_both_layers(make, bias, affine):
    layer, shape = make(bias)
    norm = norm_after(layer, shape, affine)
    layer, norm, x = layer.double(), norm.double(), torch.randn(shape, dtype=torch.float64)
    expected, weight, before = norm(layer(x)), layer.weight, copy.deepcopy(norm.state_dict())
    fold_layer(layer, norm)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert layer.weight is weight and isinstance(layer.bias, nn.Parameter) and 'bias' in layer.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())


def test_only_gamma_or_only_beta():
    layer, x = nn.Linear(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    norm = norm_after(nn.Linear(5, 3), (4, 5)).double()
    for gamma, beta in ((norm.weight, None), (None, norm.bias)):
        weight, bias = fold_batch_norm(layer.weight, layer.bias, gamma, beta, norm.running_mean, norm.running_var, 0.1)
        expected = F.batch_norm(layer(x), norm.running_mean, norm.running_var, gamma, beta, eps=0.1)
        torch.testing.assert_close(F.linear(x, weight, bias), expected, rtol=1e-12, atol=1e-12)


def test_the_numbers_of_the_docstring():
    weight, bias = fold_batch_norm(*map(torch.tensor, ([[0.4]], [0.0], [3.0], [1.0], [2.0], [3.5])), eps=0.5)
    assert weight.item() == pytest.approx(0.6) and bias.item() == pytest.approx(-2)


def test_agrees_with_torch():
    layer = nn.Conv2d(4, 6, 3)
    norm = norm_after(layer, (2, 4, 7, 7))
    own = fold_batch_norm(layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, 0.1)
    theirs = fuse_conv_bn_weights(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, 0.1, norm.weight, norm.bias)
    for a, b in zip(own, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('make', [LAYERS[2], LAYERS[4], LAYERS[5]])
def test_gradients_are_those_of_both_layers(make):
    layer, shape = make(True)
    norm = norm_after(layer, shape)
    layer, norm, x = layer.double(), norm.double(), torch.randn(shape, dtype=torch.float64)
    parameters = [*layer.parameters(), *norm.parameters()]
    expected = torch.autograd.grad(norm(layer(x)).square().sum(), parameters)
    weight, bias = folded_parameters(layer, norm)
    output = torch.func.functional_call(layer, {'weight': weight, 'bias': bias}, (x,))
    for a, b in zip(torch.autograd.grad(output.square().sum(), parameters), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradient_with_respect_to_the_statistics():
    tensors = [torch.rand(*shape, dtype=torch.float64, requires_grad=True)
               for shape in ((6, 3, 2), (6,), (6,), (6,), (6,), (6,))]
    assert torch.autograd.gradcheck(lambda *t: fold_batch_norm(*t, 0.1), tensors)


def test_types_are_kept():
    layer = nn.Conv2d(4, 6, 3, bias=False).half().requires_grad_(False)
    fold_layer(layer, nn.BatchNorm2d(6))
    assert layer.weight.dtype == layer.bias.dtype == torch.float16
    assert not layer.bias.requires_grad


def test_refuses_what_cannot_be_folded():
    with pytest.raises(ValueError, match='6 output channels'):
        fold_layer(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match='BatchNorm2d into a ConvTranspose2d'):
        fold_layer(nn.ConvTranspose2d(4, 4, 1, groups=2), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match='running statistics'):
        fold_layer(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, track_running_stats=False))
    with pytest.raises(ValueError, match='LayerNorm into a Linear'):
        fold_layer(nn.Linear(4, 6), nn.LayerNorm(6))
    with pytest.raises(ValueError, match='BatchNorm2d into a Embedding'):
        fold_layer(nn.Embedding(4, 6), nn.BatchNorm2d(6))
