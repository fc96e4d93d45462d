"""MobileNetV2 (Sandler et al., 2018) with batch norm and ReLU before each convolution of a block, as ProQHA used it."""

from torch import Tensor, nn

from models._blocks import InvertedResidual, PreActivation, conv_bn, global_pool, init_weights, make_divisible
from models._quantized_parts import QuantizedPart, pre_activation_parts
from models.mobilenetv2 import LAST_CHANNELS, ROWS, STEM_CHANNELS
from models.registry import register

SMALL_IMAGE_STRIDES = (1, 1, 2, 2, 1, 2, 1)  # of the rows; the stem has stride 1, too


def _bottleneck(in_channels: int, out_channels: int, stride: int, expansion: int) -> InvertedResidual:
    """Expand 1x1 (left out where it would not expand), depthwise 3x3, 1x1."""
    hidden = in_channels * expansion
    expand = [PreActivation(in_channels, hidden)] if expansion > 1 else []
    units = [*expand, PreActivation(hidden, hidden, 3, stride, groups=hidden), PreActivation(hidden, out_channels)]
    return InvertedResidual(units, residual=stride == 1 and in_channels == out_channels)


@register('premobilenetv2', resolution=32)
class PreActMobileNetV2(nn.Module):
    """MobileNetV2 in pre-activation order; ReLU6 remains in stem and head, the ReLUs between them have no upper bound.

    The shortcut is the block's input as it came. Keys: `features.N.conv.M.norm`, `features.N.conv.M.conv`,
    `features.0.0` and `features.18.0` for stem and head, `classifier`.

    Args:
        num_classes: outputs of the classifier.
        width_mult: multiplies the channels as in `mobilenetv2`.
        small_images: strides for images of 32 pixels; else those of the paper.
    """

    def __init__(self, num_classes: int = 10, width_mult: float = 1.0, small_images: bool = True):
        super().__init__()
        channels, last_channels = STEM_CHANNELS, make_divisible(LAST_CHANNELS * max(1.0, width_mult))
        blocks = [nn.Sequential(*conv_bn(3, channels, 3, stride=1 if small_images else 2, activation=nn.ReLU6))]
        for (expansion, out_channels, repeats, papers), small in zip(ROWS, SMALL_IMAGE_STRIDES, strict=True):
            out_channels = make_divisible(out_channels * width_mult)
            for stride in [small if small_images else papers] + [1] * (repeats - 1):
                blocks.append(_bottleneck(channels, out_channels, stride, expansion))
                channels = out_channels
        blocks.append(nn.Sequential(*conv_bn(channels, last_channels, activation=nn.ReLU6)))
        self.features = nn.Sequential(*blocks)
        self.pool = global_pool()
        self.classifier = nn.Linear(last_channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """The convolutions of all blocks; stem, head and classifier stay float."""
        return pre_activation_parts(self)


@register('premobilenetv2_imagenet')
def premobilenetv2_imagenet(num_classes: int = 1000, width_mult: float = 1.0) -> PreActMobileNetV2:
    """MobileNetV2 in pre-activation order, with the strides of the paper."""
    return PreActMobileNetV2(num_classes, width_mult, small_images=False)
