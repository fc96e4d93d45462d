"""Folding: a batch normalization with fixed statistics becomes part of the weight and bias of the layer before it."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def fold_batch_norm(
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    *,
    transposed: bool = False,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the one layer that computes `batch_norm(layer(x))`, differentiable in every tensor.

    W' = W * g and b' = (b - mean) * g + beta with g = gamma / sqrt(var + eps), per output channel (Jacob et al.,
    1712.05877, section 3.2). With gamma 3, beta 1, mean 2, var + eps 4: W 0.4 becomes 0.6, and b 0 becomes -2.

    Args:
        weight: (out, ...), or (in, out / groups, ...) of a transposed convolution.
        bias: (out,); None = 0.
        gamma, beta: (out,), weight and bias of the batch normalization; None = 1 and 0.
        mean, var: (out,), its statistics.
        eps: what it adds to the variance.
        transposed, groups: of the convolution; `groups` matters for transposed ones only.

    Raises:
        ValueError: the statistics are not one number per output channel.
    """
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    if mean.shape != (channels,) or var.shape != (channels,):
        raise ValueError(
            f'a layer of {channels} output channels with a mean of shape {tuple(mean.shape)} and a variance of shape '
            f'{tuple(var.shape)}: expected ({channels},), the batch normalization of the output of this very layer'
        )
    factor = torch.rsqrt(var + eps)
    factor = factor if gamma is None else gamma * factor
    shift = -mean if bias is None else bias - mean
    folded_bias = shift * factor if beta is None else shift * factor + beta
    if transposed:  # output channel k is channel k % (out / groups) of group k // (out / groups)
        grouped = weight.unflatten(0, (groups, -1))  # (groups, in / groups, out / groups, ...)
        per_channel = factor.view(groups, 1, -1, *[1] * (weight.dim() - 2))
        return (grouped * per_channel).flatten(0, 1), folded_bias
    return weight * factor.view(-1, *[1] * (weight.dim() - 1)), folded_bias


def folded_parameters(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `layer` with the running statistics of `norm` folded in; differentiable.

    Args:
        layer: any convolution, transposed convolution or linear layer, quantized ones included.
        norm: the batch normalization of its output.

    Raises:
        ValueError: modules of another kind, no running statistics, or numbers of channels that differ.
    """
    if not isinstance(layer, (nn.Linear, _ConvNd)) or not isinstance(norm, _BatchNorm):
        raise ValueError(f'cannot fold a {type(norm).__name__} into a {type(layer).__name__}: expected a BatchNorm and '
                         'a convolution or linear layer')
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError('the BatchNorm has no running statistics to fold (track_running_stats=False): it depends on '
                         'the batch in evaluation, too; leave it in the network')
    return fold_batch_norm(
        layer.weight, layer.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.eps,
        transposed=getattr(layer, 'transposed', False), groups=getattr(layer, 'groups', 1),
    )  # fmt: skip


@torch.no_grad()
def fold_layer(layer: nn.Module, norm: nn.Module):
    """Make `layer` compute what `norm(layer(x))` computes in evaluation mode, in place; `norm` is left as it is.

    The weight stays the same Parameter object. A layer without a bias gets one, of the type of its weight. The ranges
    of a quantized layer's weight quantizer were found for the old weight: calibrate after folding.

    Args:
        layer, norm: see `folded_parameters`.
    """
    weight, bias = folded_parameters(layer, norm)
    layer.weight.copy_(weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias.copy_(bias)
