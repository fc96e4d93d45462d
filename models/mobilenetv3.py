"""MobileNetV3 (Howard et al., "Searching for MobileNetV3", 2019), as the MobileNetV3 variant of HAQ used it.

It differs from the paper, and from torchvision's, in that every block has its expansion, also where it expands nothing,
and in the squeeze-and-excitation: no biases, a hidden width that is not rounded, batch norm - SE - activation.
"""

from collections.abc import Callable

from torch import Tensor, nn

from models._blocks import InvertedResidual, conv_bn, global_pool, init_weights, make_divisible
from models.registry import register

STEM_CHANNELS = 16
LAST_CHANNELS = 1280
ACTIVATIONS = {'RE': nn.ReLU, 'HS': nn.Hardswish}
# (kernel, expanded channels, output channels, squeeze-and-excitation, activation, stride): tables 1 and 2 of the paper.
ROWS = {
    'large': [
        (3, 16, 16, False, 'RE', 1),
        (3, 64, 24, False, 'RE', 2),
        (3, 72, 24, False, 'RE', 1),
        (5, 72, 40, True, 'RE', 2),
        (5, 120, 40, True, 'RE', 1),
        (5, 120, 40, True, 'RE', 1),
        (3, 240, 80, False, 'HS', 2),
        (3, 200, 80, False, 'HS', 1),
        (3, 184, 80, False, 'HS', 1),
        (3, 184, 80, False, 'HS', 1),
        (3, 480, 112, True, 'HS', 1),
        (3, 672, 112, True, 'HS', 1),
        (5, 672, 160, True, 'HS', 2),
        (5, 960, 160, True, 'HS', 1),
        (5, 960, 160, True, 'HS', 1),
    ],
    'small': [
        (3, 16, 16, True, 'RE', 2),
        (3, 72, 24, False, 'RE', 2),
        (3, 88, 24, False, 'RE', 1),
        (5, 96, 40, True, 'HS', 2),
        (5, 240, 40, True, 'HS', 1),
        (5, 240, 40, True, 'HS', 1),
        (5, 120, 48, True, 'HS', 1),
        (5, 144, 48, True, 'HS', 1),
        (5, 288, 96, True, 'HS', 2),
        (5, 576, 96, True, 'HS', 1),
        (5, 576, 96, True, 'HS', 1),
    ],
}


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate in [0, 1] computed from the means of all channels."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        hidden = channels // reduction
        self.pool = global_pool()
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=False),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc(self.pool(x).flatten(1))
        return x * gate[:, :, None, None]


def _bottleneck(in_channels: int, hidden: int, out_channels: int, kernel: int, stride: int, excite: bool,
                activation: Callable[[], nn.Module]) -> InvertedResidual:
    """Nine layers: expand 1x1 (0), BN, act, depthwise (3), BN, SE or identity (5), act, linear 1x1 (7), BN."""
    layers = [
        *conv_bn(in_channels, hidden, activation=activation),
        *conv_bn(hidden, hidden, kernel, stride, groups=hidden),
        SqueezeExcitation(hidden) if excite else nn.Identity(),
        activation(),
        *conv_bn(hidden, out_channels),
    ]
    return InvertedResidual(layers, residual=stride == 1 and in_channels == out_channels)


@register('mobilenetv3', 'mobilenet_v3')
class MobileNetV3(nn.Module):
    """MobileNetV3; small: 55 convolutions and linear layers, 2,938,368 parameters; large: 65 and 5,476,416.

    Keys: `features.N.conv.0..8`, the squeeze-and-excitation in `features.N.conv.5.fc.0` and `.2`, `classifier.1`.

    Args:
        width_mult: multiplies the channels behind the stem, rounded up to a multiple of 8; the last 1280 grow with it
            above 1 but do not shrink below.
        mode: "small" or "large".
        dropout: probability of dropping an input of the classifier while training.

    Raises:
        ValueError: `mode` is neither "small" nor "large".
    """

    def __init__(self, num_classes: int = 1000, width_mult: float = 1.0, mode: str = 'small', dropout: float = 0.2):
        super().__init__()
        if mode not in ROWS:
            raise ValueError(f"mobilenetv3 has no mode {mode!r}; choose one of {', '.join(sorted(ROWS))}")
        channels, last_channels = STEM_CHANNELS, make_divisible(LAST_CHANNELS * max(1.0, width_mult))
        blocks = [nn.Sequential(*conv_bn(3, channels, 3, stride=2, activation=nn.Hardswish))]
        for kernel, hidden, out_channels, excite, activation, stride in ROWS[mode]:
            hidden, out_channels = make_divisible(hidden * width_mult), make_divisible(out_channels * width_mult)
            blocks.append(_bottleneck(channels, hidden, out_channels, kernel, stride, excite, ACTIVATIONS[activation]))
            channels = out_channels
        blocks.append(nn.Sequential(*conv_bn(channels, hidden, activation=nn.Hardswish)))  # as wide as the last block
        blocks += [global_pool(), nn.Conv2d(hidden, last_channels, 1), nn.Hardswish()]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last_channels, num_classes))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
