"""Networks whose weights were trained in TensorFlow: the same layers, with its padding and its BatchNorm epsilon."""

import torch.nn.functional as F
from torch import Tensor, nn

BATCH_NORM_EPS = 1e-3


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: ceil(size / stride) outputs, the odd pixel of padding at the end.

    In all, (ceil(size / stride) - 1) * stride + (kernel - 1) * dilation + 1 - size pixels are added to a dimension,
    half of them before it, rounded down. For size 224, kernel 3 and stride 2 that is 0 before and 1 behind, where
    PyTorch's networks pad 1 and 1. State dict and options are those of `nn.Conv2d`; `padding` is not used.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(self.same_padded(x), weight, bias, self.stride, 0, self.dilation, self.groups)

    def same_padded(self, x: Tensor) -> Tensor:
        """Return images (N, C, H, W) with their padding."""
        height, width = (self._padding_of(*sizes) for sizes in zip(
            x.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True))
        return F.pad(x, (*width, *height))

    @staticmethod
    def _padding_of(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        return total // 2, total - total // 2


def tensorflow_style(model: nn.Module) -> nn.Module:
    """Give a network SAME padding and BatchNorm eps 1e-3, in place; its images must be in [-1, 1].

    Meant for networks that pad every convolution to keep or halve the size, such as the MobileNets. A convolution of
    stride 1 pads alike on both sides in both frameworks and is left as it is.

    Raises:
        ValueError: a strided convolution does not pad, or pads more than to keep or divide the size.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and child.stride != (1, 1) and child.kernel_size != (1, 1):
                setattr(module, name, _same(name, child))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eps = BATCH_NORM_EPS
    return model


def _same(name: str, layer: nn.Conv2d) -> SameConv2d:
    halves = tuple((kernel - 1) * dilation // 2 for kernel, dilation in
                   zip(layer.kernel_size, layer.dilation, strict=True))
    if layer.padding != halves:
        raise ValueError(
            f'{name} has kernel {layer.kernel_size} and padding {layer.padding}, expected {halves}: this network '
            'does not pad as TensorFlow does'
        )
    twin = SameConv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, layer.bias is not None, device='meta',
    )  # fmt: skip
    twin.weight, twin.bias = layer.weight, layer.bias
    return twin.train(layer.training)
