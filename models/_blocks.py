"""Building blocks shared by our own networks.

Every activation is a module of its own that runs once per forward pass, and where a tensor worth quantizing comes out
of an addition or a pooling there is a named `nn.Identity`. None of these adds a key to the state dict, and none works
in place, so a hook or a quantizer may be put anywhere.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Return the smallest multiple of `divisor` that is not below `channels`."""
    return math.ceil(channels / divisor) * divisor


def conv_bn(in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1,
            activation: Callable[[], nn.Module] | None = None) -> list[nn.Module]:
    """Return bias-free convolution, batch norm and activation (if any), consecutive entries of an `nn.Sequential`."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    layers = [conv, nn.BatchNorm2d(out_channels)]
    return layers if activation is None else [*layers, activation()]


class PreActivation(nn.Sequential):
    """Batch norm, ReLU and bias-free convolution in this order: `norm`, `relu`, `conv`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(norm=nn.BatchNorm2d(in_channels), relu=nn.ReLU(), conv=conv))


class ConvNorm(nn.Module):
    """Bias-free convolution, batch norm, activation if any, and the place of a quantizer."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1,
                 activation: Callable[[], nn.Module] | None = None):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = activation and activation()
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.output(y if self.activation is None else self.activation(y))


def stages(make: Callable[[int, int, int], nn.Module], before: int, rows: Iterable[tuple[int, int, int]]
           ) -> list[nn.Sequential]:
    """Return a chain of blocks `make(in_channels, channels, stride)` for each (channels, blocks, first stride)."""
    found = []
    for channels, blocks, first_stride in rows:
        found.append(nn.Sequential(make(before, channels, first_stride),
                                   *(make(channels, channels, 1) for _ in range(blocks - 1))))
        before = channels
    return found


def global_pool(madds_as: str = 'adaptive') -> nn.Sequential:
    """Return the average over all positions, (N, C, H, W) -> (N, C, 1, 1), and the place of a quantizer behind it.

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
    """Set Kaiming-normal (`mode`) convolutions, batch norm 1 and 0, linear layers N(0, 0.01), biases 0; in place."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        if getattr(module, 'bias', None) is not None:
            nn.init.zeros_(module.bias)


# ---- what quantization-aware training and the progressive search ask a network

class BitEntry(NamedTuple):
    """Entry i of `layer_wbit` and of `layer_abit`, the bit lists of the DoReFa/PACT networks.

    `layers` are the names of the layers whose weights get `layer_wbit[i]`; `activations` the names of the Identities
    whose tensors get `layer_abit[i]`. `implied` is the pair (weight bits, activation bits) of an entry that a shorter
    list leaves out.
    """

    name: str
    layers: tuple[str, ...]
    activations: tuple[str, ...]
    implied: tuple[int, int] | None = None


class QuantizedPart(NamedTuple):
    """A layer whose weights the progressive search quantizes, and the activation whose output it quantizes.

    `layer` is the name of a convolution or linear layer, `activation` that of an `nn.ReLU`: the one before the layer,
    or, where `activation_first` is False, the one after it. In the order of a bit list the pair stands as
    (activation, weights) or (weights, activation).
    """

    layer: str
    activation: str
    activation_first: bool = True


def pre_activation_parts(model: nn.Module) -> list[QuantizedPart]:
    """Return the convolutions of all `PreActivation`s, in module order, each with the ReLU of its own."""
    names = [name for name, module in model.named_modules() if isinstance(module, PreActivation)]
    return [QuantizedPart(f'{name}.conv', f'{name}.relu') for name in names]
