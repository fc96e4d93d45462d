"""Building blocks shared by our own networks.

Every activation is a module of its own that runs once per forward pass, and where a tensor worth quantizing comes out
of an addition or a pooling there is a named `nn.Identity`. None of these adds a key to the state dict, and none works
in place, so a hook or a quantizer may be put anywhere.
"""

import math
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The smallest multiple of `divisor` that is not below `channels`."""
    return math.ceil(channels / divisor) * divisor


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = None,
) -> list[nn.Module]:
    """Bias-free convolution, batch norm and activation (if any), as consecutive entries of an `nn.Sequential`."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(out_channels)]
    return layers if activation is None else [*layers, activation()]


class PreActivation(nn.Sequential):
    """Batch norm, ReLU and bias-free convolution in this order: `norm`, `relu`, `conv`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(norm=nn.BatchNorm2d(in_channels), relu=nn.ReLU(), conv=conv))


def global_pool(madds_as: str = 'adaptive') -> nn.Sequential:
    """Average over all positions, (N, C, H, W) -> (N, C, 1, 1), and the place for a quantizer of the pooled tensor.

    `madds_as` says what the original pools with, whose MADDS depend on it: an 'adaptive' or a 'fixed' module, or a
    'function', which its counter does not see.
    """
    average = nn.AdaptiveAvgPool2d(1)
    average.madds_as = madds_as
    return nn.Sequential(OrderedDict(average=average, output=nn.Identity()))


class InvertedResidual(nn.Module):
    """A chain of layers `conv`, with a shortcut around it if `residual`.

    `branch` is the chain's result before it is added to the shortcut, `output` what leaves the block.
    """

    def __init__(self, conv: list[nn.Module], residual: bool):
        super().__init__()
        self.conv = nn.Sequential(*conv)
        self.branch = nn.Identity() if residual else None
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.branch is not None:
            y = x + self.branch(y)
        return self.output(y)


def init_weights(model: nn.Module, mode: str = 'fan_out') -> None:
    """Kaiming-normal (`mode`) convolutions, batch norm 1 and 0, linear layers N(0, 0.01), biases 0; in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if getattr(module, 'bias', None) is not None:
            nn.init.zeros_(module.bias)
