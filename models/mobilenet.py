"""MobileNet V1 (Howard et al., "MobileNets: Efficient Convolutional Neural Networks", 2017), as HAQ used it."""

from torch import Tensor, nn

from models._blocks import conv_bn, global_pool, init_weights, make_divisible
from models.registry import register

STEM_CHANNELS = 32
# (output channels, stride) of the depthwise-separable blocks: table 1 of the paper. It prints stride 2 for
# the last block too, but the sizes beside it (7 x 7 in and out) are those of stride 1.
ROWS = [
    (64, 1),
    (128, 2), (128, 1),
    (256, 2), (256, 1),
    (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
]  # fmt: skip


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3 convolution, then pointwise 1x1 convolution, each with batch norm and ReLU6."""
    return nn.Sequential(
        *conv_bn(in_channels, in_channels, 3, stride, groups=in_channels, activation=nn.ReLU6),
        *conv_bn(in_channels, out_channels, activation=nn.ReLU6),
    )


@register('mobilenet')
class MobileNet(nn.Module):
    """MobileNet V1; 28 convolutions and linear layers, 4,231,976 parameters at width 1.

    Keys: `conv1.0`, `features.N.0` (depthwise), `features.N.3` (pointwise), `classifier.0`.

    Args:
        width_mult: multiplies every channel count, rounded up to a multiple of 8.
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0):
        super().__init__()
        channels = make_divisible(STEM_CHANNELS * width_mult)
        self.conv1 = nn.Sequential(*conv_bn(3, channels, 3, stride=2, activation=nn.ReLU))  # ReLU here, ReLU6 elsewhere
        blocks = []
        for out_channels, stride in ROWS:
            out_channels = make_divisible(out_channels * width_mult)
            blocks.append(_separable(channels, out_channels, stride))
            channels = out_channels
        self.features = nn.Sequential(*blocks)
        self.pool = global_pool()
        self.classifier = nn.Sequential(nn.Linear(channels, num_classes))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.conv1(x))
        return self.classifier(self.pool(x).flatten(1))
