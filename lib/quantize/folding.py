"""Folding: a BatchNorm with fixed statistics becomes part of the layer before it, after training or already in it."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from lib.quantize.layers import QConv2d


def fold_batch_norm(weight: Tensor, bias: Tensor | None, gamma: Tensor | None, beta: Tensor | None, mean: Tensor,
                    var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one layer that computes `batch_norm(layer(x))`, differentiable in every tensor.

    W' = W * g and b' = (b - mean) * g + beta with g = gamma / sqrt(var + eps), per output channel (Jacob et al.,
    1712.05877, section 3.2). With gamma 3, beta 1, mean 2, var + eps 4: W 0.4 becomes 0.6, and b 0 becomes -2.

    Args:
        weight: (out, ...).
        bias: (out,); None = 0.
        gamma, beta: (out,), weight and bias of the batch normalization; None = 1 and 0.

    Raises:
        ValueError: the statistics are not one number per output channel.
    """
    channels = len(weight)
    if mean.shape != (channels,) or var.shape != (channels,):
        raise ValueError(
            f'a layer of {channels} output channels with a mean of shape {tuple(mean.shape)} and a variance of shape '
            f'{tuple(var.shape)}: expected ({channels},), the batch normalization of the output of this very layer'
        )
    factor = torch.rsqrt(var + eps)
    factor = factor if gamma is None else gamma * factor
    shift = -mean if bias is None else bias - mean
    folded_bias = shift * factor if beta is None else shift * factor + beta
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), folded_bias


def doubles_of(norm: nn.Module) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Return weight, bias, mean and variance of a BatchNorm for `fold_batch_norm`, float64 on the CPU."""
    parts = norm.weight, norm.bias, norm.running_mean, norm.running_var
    return tuple(None if part is None else part.detach().cpu().double() for part in parts)


def folded_parameters(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `layer` with the running statistics of `norm` folded in; differentiable.

    Args:
        layer: any convolution that is not transposed, or linear layer, quantized ones included.
        norm: the batch normalization of its output.

    Raises:
        ValueError: modules of another kind, no running statistics, or numbers of channels that differ.
    """
    if not isinstance(layer, (nn.Linear, _ConvNd)) or getattr(layer, 'transposed', False) or not isinstance(
            norm, _BatchNorm):
        raise ValueError(f'cannot fold a {type(norm).__name__} into a {type(layer).__name__}: expected a BatchNorm and '
                         'a convolution or linear layer')
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError('the BatchNorm has no running statistics to fold (track_running_stats=False): it depends on '
                         'the batch in evaluation, too; leave it in the network')
    return fold_batch_norm(layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                           norm.eps)


@torch.no_grad()
def fold_layer(layer: nn.Module, norm: nn.Module) -> None:
    """Make `layer` compute what `norm(layer(x))` computes in evaluation mode, in place; `norm` is left as it is.

    The weight stays the same Parameter object. A layer without a bias gets one, of the type of its weight. The ranges
    of a quantized layer's weight quantizer were found for the old weight: calibrate after folding.
    """
    weight, bias = folded_parameters(layer, norm)
    layer.weight.copy_(weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.copy_(bias)


# ---- in training, so that the quantizer sees the weights of deployment

class FoldedAwayBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm whose work the layer before it does: it passes tensors on and keeps its parameters and statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the input: what it did is in the weights before it."""
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


def start_folding(layer: QConv2d, norm: nn.BatchNorm2d) -> None:
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


def stop_folding(model: nn.Module) -> None:
    """Undo every `start_folding` in a network: convolutions and BatchNorms compute on their own again."""
    for layer in model.modules():
        if isinstance(layer, FoldingConv2d):
            (norm,) = layer._norm
            layer.__class__, norm.__class__ = QConv2d, nn.BatchNorm2d
            del layer._norm
