"""The residual network of the hybrid quantization system for small images: its blocks are a list in a configuration."""

from collections import OrderedDict

from torch import Tensor, nn

from models._blocks import global_pool, init_weights
from models.registry import register

# (input channels, output channels, stride) of each block: ResNet-20.
BLOCKS = ((16, 16, 1), (16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1),
          (64, 64, 1))


class HybridBlock(nn.Module):
    """Two k x k convolutions, or 1x1, k x k, 1x1 with a quarter of the channels, and a shortcut.

    Where stride or channels change, the shortcut is a 1x1 convolution with a BatchNorm. The last ReLU follows the sum.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, kernel: int, bottleneck: bool):
        super().__init__()
        inside = channels // 4 if bottleneck else channels
        layers = [(inside, 1, 1), (inside, kernel, stride), (channels, 1, 1)] if bottleneck else \
            [(inside, kernel, stride), (channels, kernel, 1)]
        before, self.num_layers = in_channels, len(layers)
        for i, (out, size, step) in enumerate(layers, start=1):
            self.add_module(f'conv{i}', nn.Conv2d(before, out, size, step, padding=size // 2))
            self.add_module(f'bn{i}', nn.BatchNorm2d(out))
            self.add_module(f'relu{i}', nn.ReLU())
            before = out
        resized = stride != 1 or in_channels != channels
        self.shortcut = nn.Sequential(OrderedDict(
            conv=nn.Conv2d(in_channels, channels, 1, stride), bn=nn.BatchNorm2d(channels))) if resized else None

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.num_layers + 1):
            y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
            if i == self.num_layers:
                y = y + (x if self.shortcut is None else self.shortcut(x))
            y = getattr(self, f'relu{i}')(y)
        return y


@register('hybrid_cnn', resolution=32)
class HybridCNN(nn.Module):
    """Residual network of the hybrid system; 273,258 parameters and 40,813,184 multiply-accumulates as ResNet-20.

    Its convolutions have biases although BatchNorms follow, as the original's; folding makes use of them. Keys:
    `conv0`, `bn0`, `blocks.N.conv1`, `.bn1`, `.shortcut.conv`, `fc`.

    Args:
        blocks: [input channels, output channels, stride] of each block.
        kernel_size: of the convolutions, odd.
        bottleneck_type: blocks of three convolutions.
        in_channels: of the image.

    Raises:
        ValueError: no blocks, a block that does not fit the one before it, or an even kernel.
    """

    def __init__(self, num_classes: int = 10, blocks=BLOCKS, kernel_size: int = 3, bottleneck_type: bool = False,
                 in_channels: int = 3):
        super().__init__()
        check_blocks(blocks, kernel_size, bottleneck_type)
        self.conv0 = nn.Conv2d(in_channels, blocks[0][0], kernel_size, padding=kernel_size // 2)
        self.bn0 = nn.BatchNorm2d(blocks[0][0])
        self.relu0 = nn.ReLU()
        self.blocks = nn.Sequential(*(HybridBlock(*block, kernel_size, bottleneck_type) for block in blocks))
        self.pool = global_pool()
        self.fc = nn.Linear(blocks[-1][1], num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.relu0(self.bn0(self.conv0(x))))
        return self.fc(self.pool(x).flatten(1))


def check_blocks(blocks, kernel_size: int, bottleneck_type: bool):
    """Raise ValueError, naming the block, unless these make a network."""
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise ValueError(f'blocks is {blocks!r:.60}: expected a list of [input channels, output channels, stride]')
    for i, block in enumerate(blocks):
        numbers = isinstance(block, (list, tuple)) and all(type(value) is int and value > 0 for value in block)
        if not numbers or len(block) != 3:
            raise ValueError(f'blocks: block {i} is {block!r:.60}: expected [input channels, output channels, stride]')
        if i and block[0] != blocks[i - 1][1]:
            raise ValueError(f'blocks: block {i} takes {block[0]} channels, block {i - 1} gives {blocks[i - 1][1]}')
        if bottleneck_type and block[1] % 4:
            raise ValueError(f'blocks: block {i} has {block[1]} output channels, bottlenecks need a multiple of 4')
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size is {kernel_size!r}: expected an odd number')
