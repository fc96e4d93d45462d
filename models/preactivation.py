"""ResNets with activations before the convolutions (He et al., "Identity Mappings in Deep Residual Networks", 2016).

As the progressive search ProQHA used them: no batch norm and no ReLU stand between the last sum and the pooling.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models._blocks import global_pool, init_weights
from models._quantized_parts import QuantizedPart
from models.registry import register
from models.resnet_cifar import STAGES, PadShortcut

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
    """Every convolution of a block but that of a shortcut, with the ReLU of the same number before it."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    inside = [name for name in names if name.startswith('layer') and not name.endswith('.shortcut')]
    return [QuantizedPart(name, name.replace('.conv', '.relu')) for name in inside]


class CifarPreActResNet(nn.Module):
    """CIFAR ResNet of depth 6n + 2 in pre-activation order; with 10 classes depth 20 has 269,626 parameters.

    The shortcut of every block begins at its first activation, also where it is the identity; where the size changes
    it takes every second pixel and fills with zeros (option A). Keys: `conv1`, `bn1`, `layer1.0.bn1`,
    `layer1.0.conv1`, ..., `linear`.

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
                shortcut = PadShortcut(out_channels - channels) if stride != 1 else nn.Identity()
                blocks.append(BasicBlock(channels, out_channels, stride, shortcut))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3 = stages
        self.pool = global_pool()
        self.linear = nn.Linear(channels, num_classes)
        init_weights(self, mode='fan_in')

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.pool(x).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """The convolutions of all blocks; stem and classifier stay float."""
        return _block_parts(self)


class PreActResNet(nn.Module):
    """ResNet with four stages in pre-activation order.

    The shortcut is the block's input as it came; where the size changes it is a 1x1 convolution of the first
    activation. Keys: `conv1`, `bn1`, `layer1.0.bn1`, `layer1.0.conv1`, ..., `layer2.0.shortcut`, `fc`.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        blocks_per_stage: number of blocks in each of the four stages.
        num_classes: outputs of the last layer.
        small_images: stem of 3x3 and stride 1 in place of 7x7 and stride 2; the max pooling stays.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks_per_stage: Sequence[int],
        num_classes: int = 1000,
        small_images: bool = False,
    ):
        super().__init__()
        kernel, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages, before = [], STEM_CHANNELS
        for (channels, first_stride), blocks in zip(FOUR_STAGES, blocks_per_stage, strict=True):
            stages.append(_stage(block, blocks, before, channels, first_stride))
            before = block.expansion * channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = global_pool()
        self.fc = nn.Linear(before, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(x).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """The convolutions of all blocks; stem, shortcuts and classifier stay float."""
        return _block_parts(self)


def _stage(block, blocks: int, in_channels: int, channels: int, first_stride: int) -> nn.Sequential:
    """The blocks of one stage; the first changes the size, if it has to."""
    out_channels = block.expansion * channels
    resized = first_stride != 1 or in_channels != out_channels
    shortcut = nn.Conv2d(in_channels, out_channels, 1, first_stride, bias=False) if resized else None
    first = block(in_channels, channels, first_stride, shortcut)
    return nn.Sequential(first, *(block(out_channels, channels, 1, None) for _ in range(blocks - 1)))


@register('preresnet20', resolution=32)
def preresnet20(num_classes: int = 10) -> CifarPreActResNet:
    """CIFAR ResNet in pre-activation order with 3 blocks per stage."""
    return CifarPreActResNet(3, num_classes)


@register('preresnet32', resolution=32)
def preresnet32(num_classes: int = 10) -> CifarPreActResNet:
    """CIFAR ResNet in pre-activation order with 5 blocks per stage."""
    return CifarPreActResNet(5, num_classes)


@register('preresnet56', resolution=32)
def preresnet56(num_classes: int = 10) -> CifarPreActResNet:
    """CIFAR ResNet in pre-activation order with 9 blocks per stage."""
    return CifarPreActResNet(9, num_classes)


@register('preresnet110', resolution=32)
def preresnet110(num_classes: int = 10) -> CifarPreActResNet:
    """CIFAR ResNet in pre-activation order with 18 blocks per stage."""
    return CifarPreActResNet(18, num_classes)


@register('preresnet18')
def preresnet18(num_classes: int = 1000) -> PreActResNet:
    """ResNet-18 in pre-activation order, of basic blocks."""
    return PreActResNet(BasicBlock, (2, 2, 2, 2), num_classes)


@register('preresnet34')
def preresnet34(num_classes: int = 1000) -> PreActResNet:
    """ResNet-34 in pre-activation order, of basic blocks."""
    return PreActResNet(BasicBlock, (3, 4, 6, 3), num_classes)


@register('preresnet50')
def preresnet50(num_classes: int = 1000) -> PreActResNet:
    """ResNet-50 in pre-activation order, of bottlenecks."""
    return PreActResNet(Bottleneck, (3, 4, 6, 3), num_classes)


@register('preresnet101')
def preresnet101(num_classes: int = 1000) -> PreActResNet:
    """ResNet-101 in pre-activation order, of bottlenecks."""
    return PreActResNet(Bottleneck, (3, 4, 23, 3), num_classes)


@register('preresnet152')
def preresnet152(num_classes: int = 1000) -> PreActResNet:
    """ResNet-152 in pre-activation order, of bottlenecks."""
    return PreActResNet(Bottleneck, (3, 8, 36, 3), num_classes)


@register('preresnet18_cifar', resolution=32)
def preresnet18_cifar(num_classes: int = 10) -> PreActResNet:
    """ResNet-18 in pre-activation order, with the stem for small images."""
    return PreActResNet(BasicBlock, (2, 2, 2, 2), num_classes, small_images=True)


@register('preresnet34_cifar', resolution=32)
def preresnet34_cifar(num_classes: int = 10) -> PreActResNet:
    """ResNet-34 in pre-activation order, with the stem for small images."""
    return PreActResNet(BasicBlock, (3, 4, 6, 3), num_classes, small_images=True)


@register('preresnet50_cifar', resolution=32)
def preresnet50_cifar(num_classes: int = 10) -> PreActResNet:
    """ResNet-50 in pre-activation order, with the stem for small images."""
    return PreActResNet(Bottleneck, (3, 4, 6, 3), num_classes, small_images=True)
