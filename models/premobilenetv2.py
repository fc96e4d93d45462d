"""MobileNetV2 (Sandler et al., 2018) with batch norm and ReLU before each convolution of a block, as ProQHA used it."""

from models._blocks import InvertedResidual, PreActivation, QuantizedPart, pre_activation_parts
from models.mobilenetv2 import ROWS, InvertedResiduals
from models.registry import register

SMALL_IMAGE_STRIDES = (1, 1, 2, 2, 1, 2, 1)  # of the rows; the stem has stride 1, too


def _bottleneck(in_channels: int, out_channels: int, stride: int, expansion: int) -> InvertedResidual:
    """Return: expand 1x1 (left out where it would not expand), depthwise 3x3, 1x1."""
    hidden = in_channels * expansion
    expand = [PreActivation(in_channels, hidden)] if expansion > 1 else []
    units = [*expand, PreActivation(hidden, hidden, 3, stride, groups=hidden), PreActivation(hidden, out_channels)]
    return InvertedResidual(units, residual=stride == 1 and in_channels == out_channels)


@register('premobilenetv2', resolution=32)
class PreActMobileNetV2(InvertedResiduals):
    """MobileNetV2 in pre-activation order; ReLU6 remains in stem and head, the ReLUs between them have no upper bound.

    The shortcut is the block's input as it came. Keys: `features.N.conv.M.norm`, `features.N.conv.M.conv`,
    `features.0.0` and `features.18.0` for stem and head, `classifier`.

    `small_images`: strides for images of 32 pixels; else those of the paper.
    """

    def __init__(self, num_classes: int = 10, width_mult: float = 1.0, small_images: bool = True):
        strides = SMALL_IMAGE_STRIDES if small_images else [stride for *_, stride in ROWS]
        super().__init__(_bottleneck, 1 if small_images else 2, strides, num_classes, width_mult)

    def quantized_parts(self) -> list[QuantizedPart]:
        """Return the convolutions of all blocks; stem, head and classifier stay float."""
        return pre_activation_parts(self)


@register('premobilenetv2_imagenet')
def premobilenetv2_imagenet(num_classes: int = 1000, width_mult: float = 1.0) -> PreActMobileNetV2:
    """MobileNetV2 in pre-activation order, with the strides of the paper."""
    return PreActMobileNetV2(num_classes, width_mult, small_images=False)
