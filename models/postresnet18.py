"""ResNet-18 (He et al., 2016) whose every activation is a module of its own, as ProQHA used it for ImageNet."""

from torch import Tensor, nn

from models._blocks import QuantizedPart, global_pool, init_weights, stages
from models.registry import register
from models.resnet_cifar import BasicBlock

STAGES = [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)]  # (channels, blocks, stride of the first block)


class DownsampleBlock(BasicBlock):
    """A basic block with a convolution on the shortcut where the size changes."""

    shortcut_name = 'downsample'

    def make_shortcut(self, in_channels: int, channels: int, stride: int) -> nn.Module | None:
        # Made in any case, so that a seed gives the weights that it always gave.
        shortcut = nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        return shortcut if stride != 1 or in_channels != channels else None


@register('postresnet18')
class PostActResNet18(nn.Module):
    """ResNet-18 with the state dict of torchvision's, whose weights load strictly; 11,689,512 parameters.

    torchvision's blocks run one ReLU module twice; here each has two, `relu1` and `relu2`.
    """

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        first, last = STAGES[0][0], STAGES[-1][0]
        self.conv1 = nn.Conv2d(3, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1, self.layer2, self.layer3, self.layer4 = stages(DownsampleBlock, first, STAGES)
        self.pool = global_pool()
        self.fc = nn.Linear(last, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.pool(x).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """Return the 3x3 convolutions of all blocks, each with the ReLU after it; all else stays float."""
        blocks = [name for name, module in self.named_modules() if isinstance(module, DownsampleBlock)]
        return [QuantizedPart(f'{name}.conv{i}', f'{name}.relu{i}', activation_first=False)
                for name in blocks for i in (1, 2)]
