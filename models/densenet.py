"""DenseNet-40 for 32x32 images (Huang et al., "Densely Connected Convolutional Networks", 2017, section 4)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from models._blocks import PreActivation, QuantizedPart, global_pool, init_weights, pre_activation_parts
from models.registry import register

GROWTH = 12
LAYERS = 12  # of each of the three dense blocks


class DenseBlock(nn.Sequential):
    """A chain of layers, each of which reads the block's input and the outputs of all layers before it."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.cat([x, layer(x)], dim=1)
        return x


@register('densenet40', resolution=32)
class DenseNet40(nn.Module):
    """DenseNet of growth 12 without bottlenecks and without compression; with 10 classes 1,059,298 parameters.

    Keys: `conv1`, `block1.0.norm`, `block1.0.conv`, ..., `transition1.unit.conv`, ..., `norm`, `linear`.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        channels = 2 * GROWTH
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.block1, channels = _dense(channels)
        self.transition1 = _transition(channels)
        self.block2, channels = _dense(channels)
        self.transition2 = _transition(channels)
        self.block3, channels = _dense(channels)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = global_pool()
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.block3(self.transition2(self.block2(x)))
        return self.linear(self.pool(self.relu(self.norm(x))).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """Return the convolutions of dense blocks and transitions; stem and classifier stay float."""
        return pre_activation_parts(self)


def _dense(channels: int) -> tuple[DenseBlock, int]:
    """Return a dense block, and the channels that leave it."""
    layers = [PreActivation(channels + i * GROWTH, GROWTH, 3) for i in range(LAYERS)]
    return DenseBlock(*layers), channels + LAYERS * GROWTH


def _transition(channels: int) -> nn.Sequential:
    """Return a 1x1 convolution that keeps the channels, and the mean of 2x2 pixels."""
    return nn.Sequential(OrderedDict(unit=PreActivation(channels, channels), pool=nn.AvgPool2d(2)))
