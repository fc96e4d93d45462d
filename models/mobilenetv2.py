"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018), as HAQ used it."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from models._blocks import InvertedResidual, conv_bn, global_pool, init_weights, make_divisible
from models.registry import register

STEM_CHANNELS = 32
LAST_CHANNELS = 1280
# (expansion t, output channels c, repeats n, stride s of the first repeat): table 2 of the paper.
ROWS = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def _bottleneck(in_channels: int, out_channels: int, stride: int, expansion: int) -> InvertedResidual:
    """Return: expand 1x1 (left out where it would not expand), depthwise 3x3, linear 1x1."""
    hidden = in_channels * expansion
    expand = conv_bn(in_channels, hidden, activation=nn.ReLU6) if expansion > 1 else []
    depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6)
    project = conv_bn(hidden, out_channels)
    return InvertedResidual(expand + depthwise + project, residual=stride == 1 and in_channels == out_channels)


class InvertedResiduals(nn.Module):
    """Stem, the blocks of `ROWS`, head and a linear classifier.

    Args:
        block: makes a block of (input channels, output channels, stride, expansion).
        stem_stride, strides: of the stem, and of the first block of each row.
        width_mult: multiplies the channels of the blocks, rounded up to a multiple of 8; the last 1280 grow with it
            above 1 but do not shrink below.
    """

    def __init__(self, block: Callable[[int, int, int, int], nn.Module], stem_stride: int, strides: Sequence[int],
                 num_classes: int, width_mult: float):
        super().__init__()
        channels, last_channels = STEM_CHANNELS, make_divisible(LAST_CHANNELS * max(1.0, width_mult))
        blocks = [nn.Sequential(*conv_bn(3, channels, 3, stem_stride, activation=nn.ReLU6))]
        for (expansion, out_channels, repeats, _), first_stride in zip(ROWS, strides, strict=True):
            out_channels = make_divisible(out_channels * width_mult)
            for stride in [first_stride] + [1] * (repeats - 1):
                blocks.append(block(channels, out_channels, stride, expansion))
                channels = out_channels
        blocks.append(nn.Sequential(*conv_bn(channels, last_channels, activation=nn.ReLU6)))
        self.features = nn.Sequential(*blocks)
        self.pool = global_pool()
        self.classifier = nn.Linear(last_channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


@register('mobilenetv2')
class MobileNetV2(InvertedResiduals):
    """MobileNetV2; 53 convolutions and linear layers, 3,504,872 parameters at width 1.

    Unlike torchvision's mobilenet_v2 the stem is never scaled, widths round up, and the classifier is a single linear
    layer without dropout. Keys: `features.N...`, `classifier.weight`.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0):
        super().__init__(_bottleneck, 2, [stride for *_, stride in ROWS], num_classes, width_mult)
