"""ResNets with activations before the convolutions (He et al., "Identity Mappings in Deep Residual Networks", 2016).

As the progressive search ProQHA used them: no batch norm and no ReLU stand between the last sum and the pooling.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from models._blocks import QuantizedPart, global_pool, init_weights, stages
from models.registry import register
from models.resnet_cifar import CifarResNet, PadShortcut

STEM_CHANNELS = 64
# (channels inside a block, stride of the first block) of the four stages.
FOUR_STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]


class BasicBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice.

    `shortcut` is applied to the first activation; where it is None, the block's input is added as it came.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.branch = nn.Identity()
        self.shortcut = shortcut
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        y = self.branch(self.conv2(self.relu2(self.bn2(self.conv1(active)))))
        return self.output(y + (x if self.shortcut is None else self.shortcut(active)))


class Bottleneck(nn.Module):
    """Batch norm, ReLU and convolution, thrice: 1x1, 3x3 with the stride, 1x1 to four times the channels.

    `shortcut` as in `BasicBlock`.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu3 = nn.ReLU()
        self.conv3 = nn.Conv2d(channels, self.expansion * channels, 1, bias=False)
        self.branch = nn.Identity()
        self.shortcut = shortcut
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu1(self.bn1(x))
        y = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        y = self.branch(self.conv3(self.relu3(self.bn3(y))))
        return self.output(y + (x if self.shortcut is None else self.shortcut(active)))


def _block_parts(model: nn.Module) -> list[QuantizedPart]:
    """Return every convolution of a block but that of a shortcut, with the ReLU of the same number before it."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    inside = [name for name in names if name.startswith('layer') and not name.endswith('.shortcut')]
    return [QuantizedPart(name, name.replace('.conv', '.relu')) for name in inside]


class CifarPreActResNet(CifarResNet):
    """CIFAR ResNet of depth 6n + 2 in pre-activation order; with 10 classes depth 20 has 269,626 parameters.

    The shortcut of every block begins at its first activation, also where it is the identity; where the size changes
    it takes every second pixel and fills with zeros (option A). Keys: `conv1`, `bn1`, `layer1.0.bn1`,
    `layer1.0.conv1`, ..., `linear`.
    """

    fan = 'fan_in'

    def make_block(self, in_channels: int, channels: int, stride: int) -> nn.Module:
        shortcut = PadShortcut(channels - in_channels) if stride != 1 else nn.Identity()
        return BasicBlock(in_channels, channels, stride, shortcut)

    def quantized_parts(self) -> list[QuantizedPart]:
        """Return the convolutions of all blocks; stem and classifier stay float."""
        return _block_parts(self)


class PreActResNet(nn.Module):
    """ResNet with four stages in pre-activation order.

    The shortcut is the block's input as it came; where the size changes it is a 1x1 convolution of the first
    activation. Keys: `conv1`, `bn1`, `layer1.0.bn1`, `layer1.0.conv1`, ..., `layer2.0.shortcut`, `fc`.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks_per_stage: number of blocks in each of the four stages.
        small_images: stem of 3x3 and stride 1 in place of 7x7 and stride 2; the max pooling stays.
    """

    def __init__(self, block: type[nn.Module], blocks_per_stage: Sequence[int], small_images: bool = False,
                 num_classes: int = 1000):
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        rows = [(block.expansion * channels, blocks, stride) for (channels, stride), blocks in
                zip(FOUR_STAGES, blocks_per_stage, strict=True)]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(partial(_projected, block), STEM_CHANNELS, rows)
        self.pool = global_pool()
        self.fc = nn.Linear(rows[-1][0], num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(x).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """Return the convolutions of all blocks; stem, shortcuts and classifier stay float."""
        return _block_parts(self)


def _projected(block: type[nn.Module], in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Return a block with a convolution on its shortcut, if it changes the size."""
    resized = stride != 1 or in_channels != out_channels
    shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if resized else None
    return block(in_channels, out_channels // block.expansion, stride, shortcut)


for depth in (20, 32, 56, 110):
    register(f'preresnet{depth}', resolution=32)(partial(CifarPreActResNet, depth // 6))
for depth, kind, counts in ((18, BasicBlock, (2, 2, 2, 2)), (34, BasicBlock, (3, 4, 6, 3)),
                            (50, Bottleneck, (3, 4, 6, 3)), (101, Bottleneck, (3, 4, 23, 3)),
                            (152, Bottleneck, (3, 8, 36, 3))):
    register(f'preresnet{depth}')(partial(PreActResNet, kind, counts, False))
    if depth <= 50:
        register(f'preresnet{depth}_cifar', resolution=32)(partial(PreActResNet, kind, counts, True))
