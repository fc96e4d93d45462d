"""What modules with a forward of their own compute, found by running copies of them: nothing is known of their classes.

A copy is on the CPU, in float64, with random numbers in place of what the module holds.
"""

import copy
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd


@torch.no_grad()
def scales_with_weight(layer: nn.Module) -> bool:
    """Return whether a convolution or linear layer is linear in its weight and bias, for each output channel alone.

    So it is where inputs are padded first; not where the weight is standardised or rounded.
    """
    try:
        other = _copy(layer)
        x = _input_of(other)
        channel = 1 if isinstance(other, _ConvNd) else -1
        before = other(x).movedim(channel, -1).clone()
        factor, shift = torch.rand(before.shape[-1]).double() + 0.5, torch.randn(before.shape[-1]).double()
        other.weight.mul_(factor.view(-1, *[1] * (other.weight.dim() - 1)))
        if other.bias is not None:
            other.bias.mul_(factor).add_(shift)
        expected = before * factor + (shift if other.bias is not None else 0)
        return torch.allclose(other(x).movedim(channel, -1), expected, rtol=1e-9, atol=1e-9)
    except Exception:  # its forward takes something else, or cannot be copied: nothing is known of it
        return False


@torch.no_grad()
def rest_of_norm(norm: nn.Module) -> nn.Sequential | None:
    """Return the modules that a BatchNorm applies to its normalised input, as one under their names; None: others.

    A BatchNorm that is fused with its activation consists of the normalization and of the modules it holds (timm's
    `BatchNormAct2d`: drop and act), in their order.
    """
    try:
        other = _copy(norm)
        x = torch.randn(2, other.num_features, *[5] * (1 + (isinstance(other, nn.BatchNorm2d))),
                        dtype=torch.float64)
        y = F.batch_norm(x, other.running_mean, other.running_var, other.weight, other.bias, False, 0.0, other.eps)
        for child in other.children():
            y = child(y)
        if not torch.allclose(other(x), y, rtol=1e-9, atol=1e-9):
            return None
    except Exception:  # its forward takes something else, or cannot be copied: nothing is known of it
        return None
    rest = nn.Sequential()
    for name, child in norm.named_children():
        rest.add_module(name, child)
    return rest.train(norm.training)


def _copy(module) -> nn.Module:
    other = copy.deepcopy(module).to_empty(device='cpu').double().eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in (*other.parameters(), *other.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator).double() + 0.5)
    return other


def _input_of(layer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if not isinstance(layer, _ConvNd):
        return torch.randn(3, layer.in_features, generator=generator).double()
    sizes = [4 + dilation * (kernel - 1) for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
    return torch.randn(2, layer.in_channels, *sizes, generator=generator).double() / prod(layer.kernel_size)
