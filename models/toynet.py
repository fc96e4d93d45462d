"""ToyNet, the ConvNeXt-like network for 32x32 images of the DoReFa/PACT system."""

from collections.abc import Sequence

from torch import Tensor, nn

from models._blocks import BitEntry, ConvNorm, global_pool, init_weights
from models.registry import register


class Downsample(nn.Module):
    """Batch norm, then a convolution whose windows do not overlap; both come before the block, on its only path."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, channels, stride, stride, bias=False)
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.conv(self.norm(x)))


class ToyBlock(nn.Module):
    """Depthwise 3x3 and batch norm, pointwise to `expansion` times the channels, ReLU, pointwise back, shortcut.

    The Identities are the places of quantizers; without them only the ReLU in the middle is not linear.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int):
        super().__init__()
        resized = stride != 1 or in_channels != channels
        self.downsample = Downsample(in_channels, channels, stride) if resized else None
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.depthwise_output = nn.Identity()
        self.expand = nn.Conv2d(channels, channels * expansion, 1, bias=False)
        self.relu = nn.ReLU()
        self.expand_output = nn.Identity()
        self.project = nn.Conv2d(channels * expansion, channels, 1, bias=False)
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.downsample is None else self.downsample(x)
        y = self.depthwise_output(self.norm(self.depthwise(x)))
        y = self.project(self.expand_output(self.relu(self.expand(y))))
        return self.output(y + x)


@register('toynet', resolution=32)
class ToyNet(nn.Module):
    """Stem, blocks, header, classifier; 203,626 parameters and 25,265,152 multiply-accumulates with the defaults.

    Keys: `stem.conv`, `blocks.N.depthwise`, `.expand`, `.project`, `.downsample.conv`, `header.conv`, `fc`.

    Args:
        strides: stride of the first block of each stage.
        num_layer_list: blocks of each stage.
        num_channel_list: channels of each stage.
        stem_channel, header_channel: channels behind the stem and behind the header.
        expansion: channels between the two pointwise convolutions, in those of the block.

    Raises:
        ValueError: the three lists differ in length.
    """

    def __init__(self, num_classes: int = 10, strides: Sequence[int] = (1, 2, 1, 2),
                 num_layer_list: Sequence[int] = (1, 3, 3, 3), num_channel_list: Sequence[int] = (16, 32, 32, 64),
                 stem_channel: int = 16, header_channel: int = 512, expansion: int = 4):
        super().__init__()
        if not len(strides) == len(num_layer_list) == len(num_channel_list):
            raise ValueError(f'toynet: strides has {len(strides)} entries, num_layer_list {len(num_layer_list)}, '
                             f'num_channel_list {len(num_channel_list)}; expected one of each per stage')
        self.image = nn.Identity()
        self.stem = ConvNorm(3, stem_channel, 3)
        blocks, before = [], stem_channel
        for stride, layers, channels in zip(strides, num_layer_list, num_channel_list, strict=True):
            for i in range(layers):
                blocks.append(ToyBlock(before, channels, stride if i == 0 else 1, expansion))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.header = ConvNorm(before, header_channel, 1)
        self.pool = global_pool()
        self.fc = nn.Linear(header_channel, num_classes)
        init_weights(self)
        nn.init.normal_(self.fc.weight, std=0.001)

    def forward(self, x: Tensor) -> Tensor:
        x = self.header(self.blocks(self.stem(self.image(x))))
        return self.fc(self.pool(x).flatten(1))

    def bit_entries(self) -> list[BitEntry]:
        """Return stem, blocks, header, classifier: a block's output belongs to the next entry."""
        entries = [BitEntry('stem', ('stem.conv',), ('image',))]
        before = 'stem.output'
        for i, block in enumerate(self.blocks):
            name, resized = f'blocks.{i}', block.downsample is not None
            layers = [f'{name}.{layer}' for layer in ('depthwise', 'expand', 'project')]
            inside = [f'{name}.depthwise_output', f'{name}.expand_output']
            if resized:
                layers, inside = [f'{name}.downsample.conv', *layers], [f'{name}.downsample.output', *inside]
            entries.append(BitEntry(name, tuple(layers), (before, *inside)))
            before = f'{name}.output'
        entries.append(BitEntry('header', ('header.conv',), (before,)))
        return [*entries, BitEntry('fc', ('fc',), ('header.output', 'pool.output'))]
