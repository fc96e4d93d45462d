"""Gradients of the loss of one image at a time, in the weights of layers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from lib.network.hooks import evaluating
from lib.runtime import distributed


@contextmanager
def differentiable(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Give {layer name: weight}, all with a gradient and, where they are computed, computed once."""
    with torch.enable_grad(), parametrize.cached():
        weights = {name: layer.weight for name, layer in layers.items()}
        frozen = [weight for weight in weights.values() if not weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(True)
        try:
            yield weights
        finally:
            for weight in frozen:
                weight.requires_grad_(False)


def logits_of_one(model: nn.Module, image: Tensor) -> Tensor:
    """Return the logits (1, classes) of an image (1, C, H, W).

    Raises:
        ValueError: the network does not take a single image.
    """
    logits = model(image)
    if logits.dim() != 2:
        raise ValueError(f'the network returns a tensor of shape {tuple(logits.shape)} for one image, expected (1, '
                         'classes): the gradient of each image by itself is needed here; in its forward, take '
                         'flatten(1) in place of squeeze()')
    return logits


def fisher_diagonal(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable, images: int
                    ) -> dict[str, Tensor]:
    """Return {layer: mean squared gradient of every weight}, of the shape of the weight.

    It is the diagonal of the empirical Fisher matrix: what the squared error of a weight costs in the loss, to second
    order (SqueezeLLM, 2306.07629). The network is in evaluation mode. Of several processes it is the mean over all.

    Args:
        layers: {name: layer} of the network.
        batches: (images, labels), such as a training loader, whose first `images` are taken.
    """
    device, left = next(model.parameters()).device, images
    sums, seen = {name: torch.zeros_like(layer.weight) for name, layer in layers.items()}, 0
    with evaluating(model), differentiable(layers) as weights:
        for batch, labels in batches:
            for image, label in islice(zip(batch.to(device).split(1), labels.to(device).split(1), strict=True), left):
                loss = F.cross_entropy(logits_of_one(model, image), label)
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total += gradient.square()
                seen += 1
            left = images - seen
            if left <= 0:
                break
    found = {name: total / max(seen, 1) for name, total in sums.items()}
    distributed.average_tensors(list(found.values()))
    return found
