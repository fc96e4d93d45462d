"""ResNet-20 with a convolution on the shortcuts that change size, as the DoReFa/PACT system used it."""

from functools import partial

from torch import Tensor, nn

from models._blocks import BitEntry, ConvNorm, global_pool, init_weights, stages
from models.registry import register

STAGES = [(16, 3, 1), (32, 3, 2), (64, 3, 2)]  # (channels, blocks, stride of the first block)


class ProjectionBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. Nothing follows the sum but a quantizer, whose clip at 0 is the ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, relu_after_add: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.output1 = nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        resized = stride != 1 or in_channels != channels
        self.shortcut = ConvNorm(in_channels, channels, stride=stride) if resized else None
        self.relu2 = nn.ReLU() if relu_after_add else nn.Identity()
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.output1(self.relu(self.bn1(self.conv1(x))))
        y = self.bn2(self.conv2(y))
        y = y + (x if self.shortcut is None else self.shortcut(x))
        return self.output(self.relu2(y))


@register('resnet20_projection', resolution=32)
class ProjectionResNet(nn.Module):
    """ResNet-20 with projection shortcuts; 272,474 parameters and 40,813,184 multiply-accumulates.

    Keys: `conv1`, `bn1`, `blocks.N.conv1`, `.conv2`, `.shortcut.conv`, `fc`.

    Args:
        relu_after_add: put a ReLU after each sum, too. Without it, as in the original, a network at 32 bits has none
            there: the quantizer was meant to be the ReLU.
    """

    def __init__(self, num_classes: int = 10, relu_after_add: bool = False):
        super().__init__()
        first, last = STAGES[0][0], STAGES[-1][0]
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        self.stem_output = nn.Identity()
        chains = stages(partial(ProjectionBlock, relu_after_add=relu_after_add), first, STAGES)
        self.blocks = nn.Sequential(*(block for chain in chains for block in chain))
        self.pool = global_pool(madds_as='fixed')
        self.fc = nn.Linear(last, num_classes)
        init_weights(self)
        self.fc.reset_parameters()  # DoReFa divides by the largest weight: small ones would learn all too fast

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem_output(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(self.pool(x).flatten(1))

    def bit_entries(self) -> list[BitEntry]:
        """Return nine blocks, each with all its activations, the output too; stem and classifier may be left out."""
        entries = [BitEntry('stem', ('conv1',), ('stem_output',), implied=(32, 32))]
        for i, block in enumerate(self.blocks):
            shortcut = block.shortcut is not None
            layers = [f'blocks.{i}.conv1', f'blocks.{i}.conv2'] + [f'blocks.{i}.shortcut.conv'] * shortcut
            inside = [f'blocks.{i}.output1'] + [f'blocks.{i}.shortcut.output'] * shortcut
            entries.append(BitEntry(f'blocks.{i}', tuple(layers), (*inside, f'blocks.{i}.output')))
        return [*entries, BitEntry('fc', ('fc',), ('pool.output',), implied=(16, 32))]
