"""ResNet-20 to -56 for 32x32 images (He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2)."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from models._blocks import global_pool, init_weights, stages
from models.registry import register

STAGES = [(16, 1), (32, 2), (64, 2)]  # (channels, stride of the first block)


class PadShortcut(nn.Module):
    """Option A of the paper: every second pixel in both directions, new channels filled with zeros; no parameters."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.padding = new_channels // 2  # half of the zeros before the old channels, half behind

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; the second ReLU follows the addition."""

    shortcut_name = 'shortcut'

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.branch = nn.Identity()
        self.add_module(self.shortcut_name, self.make_shortcut(in_channels, channels, stride))
        self.relu2 = nn.ReLU()

    def make_shortcut(self, in_channels: int, channels: int, stride: int) -> nn.Module | None:
        """Return what the block's input goes through; None: nothing."""
        return PadShortcut(channels - in_channels) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y, shortcut = self.relu1(self.bn1(self.conv1(x))), getattr(self, self.shortcut_name)
        y = self.branch(self.bn2(self.conv2(y)))
        return self.relu2(y + (x if shortcut is None else shortcut(x)))


class CifarResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2: a 3x3 stem, three stages of n basic blocks, global pooling, one linear layer.

    Keys: `conv1`, `bn1`, `layer1.0.conv1`, ..., `linear`; with 10 classes resnet20 has 269,722 parameters.

    Args:
        blocks_per_stage: n.
    """

    fan = 'fan_out'  # of the initial weights

    def __init__(self, blocks_per_stage: int, num_classes: int = 10):
        super().__init__()
        first, last = STAGES[0][0], STAGES[-1][0]
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        rows = [(channels, blocks_per_stage, stride) for channels, stride in STAGES]
        self.layer1, self.layer2, self.layer3 = stages(self.make_block, first, rows)
        self.pool = global_pool()
        self.linear = nn.Linear(last, num_classes)
        init_weights(self, mode=self.fan)

    def make_block(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        return BasicBlock(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))


for depth in (20, 32, 44, 56):
    register(f'resnet{depth}', resolution=32)(partial(CifarResNet, depth // 6))
