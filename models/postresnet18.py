"""ResNet-18 (He et al., 2016) whose every activation is a module of its own, as ProQHA used it for ImageNet."""

from torch import Tensor, nn

from models._blocks import global_pool, init_weights
from models._quantized_parts import QuantizedPart
from models.registry import register

# (channels, stride of the first block) of the four stages, each of two blocks.
STAGES = [(64, 1), (128, 2), (256, 2), (512, 2)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with a convolution where the size changes; a ReLU follows the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.branch = nn.Identity()
        resized = stride != 1 or in_channels != channels
        shortcut = [nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)]
        self.downsample = nn.Sequential(*shortcut) if resized else None
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.branch(self.bn2(self.conv2(y)))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


@register('postresnet18')
class PostActResNet18(nn.Module):
    """ResNet-18 with the state dict of torchvision's, whose weights load strictly; 11,689,512 parameters.

    torchvision's blocks run one ReLU module twice; here each has two, `relu1` and `relu2`.

    Args:
        num_classes: outputs of the last layer.
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        channels = STAGES[0][0]
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for out_channels, stride in STAGES:
            first = BasicBlock(channels, out_channels, stride)
            stages.append(nn.Sequential(first, BasicBlock(out_channels, out_channels, 1)))
            channels = out_channels
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.pool = global_pool()
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(x).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """The 3x3 convolutions of all blocks, each with the ReLU after it; all else stays float."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, BasicBlock)]
        return [QuantizedPart(f'{name}.conv{i}', f'{name}.relu{i}', activation_first=False)
                for name in blocks for i in (1, 2)]
