"""Training with the BatchNorm folded into the convolution, so that the quantizer sees the weights of deployment."""

import torch
from torch import Tensor, nn

from lib.quantize.fold import folded_parameters
from lib.quantize.layers import QConv2d


class FoldedAwayBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm whose work the layer before it does: it passes tensors on and keeps its parameters and statistics."""

    def forward(self, input: Tensor) -> Tensor:
        return input

    @torch.no_grad()
    def update(self, output: Tensor):
        """Move the running statistics by a batch of the convolution's output (N, C, H, W), as in training."""
        super().forward(output)


class FoldingConv2d(QConv2d):
    """A convolution that computes with the BatchNorm behind it folded in (Jacob et al., 1712.05877, section 3.2).

    y = conv(q(x), Q(W g)) + (b - mean) g + beta, g = gamma / sqrt(var + eps), with the running statistics, in training
    too: there each batch first moves them, by a pass without gradient through the float convolution. Gradients reach W,
    b, gamma and beta; quantizers are straight through or soft, as they are. The bias stays float.

    Made by `start_folding`. The BatchNorm stays where it is, so keys of the state dict do not change.
    """

    _norm: tuple[FoldedAwayBatchNorm2d]  # in a tuple: it is no child of this layer

    def forward(self, input: Tensor) -> Tensor:
        x, (norm,) = self.input_quantizer(input), self._norm
        if self.training:
            with torch.no_grad():
                norm.update(self._conv_forward(x, self.weight, self.bias))
        weight, bias = folded_parameters(self, norm)
        return self._conv_forward(x, self.weight_quantizer(weight), bias)


def start_folding(layer: QConv2d, norm: nn.BatchNorm2d):
    """Make a quantized convolution compute with the BatchNorm of its output folded in, both in place.

    Raises:
        ValueError: one of them is of another kind or subclass, or the BatchNorm keeps no running statistics.
    """
    if type(layer) is not QConv2d or type(norm) is not nn.BatchNorm2d:
        raise ValueError(f'cannot train a {type(layer).__name__} with a {type(norm).__name__} folded in: expected a '
                         'QConv2d and a BatchNorm2d, no subclasses')
    folded_parameters(layer, norm)
    layer.__class__, norm.__class__ = FoldingConv2d, FoldedAwayBatchNorm2d
    layer._norm = (norm,)


def stop_folding(model: nn.Module):
    """Undo every `start_folding` in a network: convolutions and BatchNorms compute on their own again."""
    for layer in model.modules():
        if isinstance(layer, FoldingConv2d):
            (norm,) = layer._norm
            layer.__class__, norm.__class__ = QConv2d, nn.BatchNorm2d
            del layer._norm
