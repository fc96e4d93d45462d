"""MobileNetV2 for 32x32 images with a convolution on every shortcut, as the DoReFa/PACT system used it."""

from torch import Tensor, nn

from models import mobilenetv2
from models._blocks import BitEntry, ConvNorm, global_pool, init_weights
from models.mobilenetv2 import LAST_CHANNELS, STEM_CHANNELS
from models.registry import register

ROWS = [(*row[:3], stride) for row, stride in zip(mobilenetv2.ROWS, (1, 1, 2, 2, 1, 2, 1), strict=True)]


class Bottleneck(nn.Module):
    """Expand 1x1, also by 1, depthwise 3x3, linear 1x1; at stride 1 the shortcut is a convolution, never the input."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int):
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvNorm(in_channels, hidden, activation=nn.ReLU6)
        self.depthwise = ConvNorm(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6)
        self.project = ConvNorm(hidden, channels)
        self.shortcut = ConvNorm(in_channels, channels) if stride == 1 else None
        self.output = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return self.output(y)


@register('mobilenetv2_cifar', resolution=32)
class MobileNetV2Cifar(nn.Module):
    """MobileNetV2 with projection shortcuts; 2,383,050 parameters and 95,054,336 multiply-accumulates.

    Keys: `stem.conv`, `blocks.N.expand.conv`, `.depthwise.conv`, `.project.conv`, `.shortcut.conv`, `head.conv`, `fc`.
    """

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.image = nn.Identity()
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, activation=nn.ReLU)
        blocks, before = [], STEM_CHANNELS
        for expansion, channels, repeats, first_stride in ROWS:
            for i in range(repeats):
                blocks.append(Bottleneck(before, channels, first_stride if i == 0 else 1, expansion))
                before = channels
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(before, LAST_CHANNELS, activation=nn.ReLU)
        self.pool = global_pool(madds_as='function')
        self.fc = nn.Linear(LAST_CHANNELS, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(self.image(x))))
        return self.fc(self.pool(x).flatten(1))

    def bit_entries(self) -> list[BitEntry]:
        """Return stem, blocks, classifier and head: a block's activations are its own, its output belongs to the next.

        The output of the head itself is never quantized, only its average.
        """
        entries = [BitEntry('stem', ('stem.conv',), ('image',))]
        before = 'stem.output'
        for i, block in enumerate(self.blocks):
            parts = ['expand', 'depthwise', 'project'] + (['shortcut'] if block.shortcut is not None else [])
            layers = tuple(f'blocks.{i}.{part}.conv' for part in parts)
            inside = (f'blocks.{i}.{part}.output' for part in parts if part != 'project')
            entries.append(BitEntry(f'blocks.{i}', layers, (before, *inside)))
            before = f'blocks.{i}.output'
        entries.append(BitEntry('head', ('head.conv',), (before,)))
        return [*entries, BitEntry('fc', ('fc',), ('pool.output',))]
