"""The optimizer of a training: which parameters decay, and the largest norm of the gradient."""

from collections.abc import Iterable

import torch
from torch import nn

from lib.quantize.quantizer import Quantizer

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def without_decay(model: nn.Module) -> set[int]:
    """Return the ids of the Parameters that a weight decay pulls at for nothing.

    Those are biases and whatever else has one dimension (scales of norms and of layers), all of a normalisation and of
    a quantizer, and what the network itself names by `no_weight_decay()`, as timm's do (position embeddings).
    """
    spared = set(getattr(model, 'no_weight_decay', set)())
    whole = [module for module in model.modules() if isinstance(module, (*NORMS, Quantizer))]
    found = {id(parameter) for module in whole for parameter in module.parameters()}
    return found | {id(parameter) for name, parameter in model.named_parameters()
                    if parameter.dim() <= 1 or name.endswith('bias') or name in spared}


def learned_by_quantizers(model: nn.Module) -> set[int]:
    """Return the ids of the Parameters of quantizers: steps, ranges and clips."""
    return {id(parameter) for module in model.modules() if isinstance(module, Quantizer)
            for parameter in module.parameters()}


def parameter_groups(parameters: Iterable[nn.Parameter], spared: set[int]) -> list[dict]:
    """Return groups for an optimizer: what decays, then those Parameters whose ids are `spared`."""
    parameters = list(parameters)
    groups = [{'params': [p for p in parameters if id(p) not in spared]}]
    rest = [p for p in parameters if id(p) in spared]
    return [*groups, {'params': rest, 'weight_decay': 0.0}] if rest else groups


def clip_norm(optimizer: torch.optim.Optimizer, largest: float) -> None:
    """Let every step of the optimizer begin with clipping the norm of the gradient of all that it trains then.

    By that time gradients are those of centroids, and there is no factor of mixed precision in them any more.
    """
    def clip(*_):
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group['params']], largest)

    optimizer.register_step_pre_hook(clip)
