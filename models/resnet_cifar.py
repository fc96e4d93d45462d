"""ResNet-20 to -56 for 32x32 images (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from models._blocks import global_pool, init_weights
from models.registry import register

# (channels, stride of the first block) of the three stages.
STAGES = [(16, 1), (32, 2), (64, 2)]


class PadShortcut(nn.Module):
    """Option A of the paper: every second pixel in both directions, new channels filled with zeros; no parameters."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.padding = new_channels // 2  # half of the zeros before the old channels, half behind

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the second ReLU follows the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.branch = nn.Identity()
        self.shortcut = PadShortcut(channels - in_channels) if stride != 1 else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.branch(self.bn2(self.conv2(y)))
        return self.relu2(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2: a 3x3 stem, three stages of n basic blocks, global pooling, one linear layer.

    Keys: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`; with 10 classes resnet20 has 269,722 parameters.

    Args:
        blocks_per_stage: n.
        num_classes: outputs of the linear layer.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int = 10):
        super().__init__()
        channels = STAGES[0][0]
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        stages = []
        for out_channels, first_stride in STAGES:
            blocks = []
            for stride in [first_stride] + [1] * (blocks_per_stage - 1):
                blocks.append(BasicBlock(channels, out_channels, stride))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = global_pool()
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


@register('resnet20', resolution=32)
def resnet20(num_classes: int = 10) -> CifarResNet:
    """CIFAR ResNet with 3 blocks per stage."""
    return CifarResNet(3, num_classes)


@register('resnet32', resolution=32)
def resnet32(num_classes: int = 10) -> CifarResNet:
    """CIFAR ResNet with 5 blocks per stage."""
    return CifarResNet(5, num_classes)


@register('resnet44', resolution=32)
def resnet44(num_classes: int = 10) -> CifarResNet:
    """CIFAR ResNet with 7 blocks per stage."""
    return CifarResNet(7, num_classes)


@register('resnet56', resolution=32)
def resnet56(num_classes: int = 10) -> CifarResNet:
    """CIFAR ResNet with 9 blocks per stage."""
    return CifarResNet(9, num_classes)
