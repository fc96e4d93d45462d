"""Codebooks of a whole network: saved ones, those that its weights show, and weights that allow none."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.network.conversion import listed, quantizable_layers
from lib.quantize.codebook import Codebook

logger = logging.getLogger(__name__)


def has_one_value(weight: Tensor, is_pruned: bool = False) -> bool:
    """Return whether a weight that is trained has several values, without pruned zeros, and all are the same."""
    values = weight.detach()[weight != 0] if is_pruned else weight.detach()
    return weight.requires_grad and values.numel() > 1 and bool(values.min() == values.max())


def name_constant_layers(model: nn.Module, is_pruned: bool = False) -> None:
    """Tell which layers begin with weights that are all the same, and what becomes of them."""
    weights = {name: layer.weight for name, layer in quantizable_layers(model).items()}
    if names := [name for name, weight in weights.items() if has_one_value(weight, is_pruned)]:
        logger.warning('all weights of %s are the same: they stay float through the first epoch of training and are '
                       'clustered after it, for weights of one cluster can never differ', listed(names))
    if names := [name for name, weight in weights.items() if is_pruned and weight.numel() and not weight.any()]:
        logger.warning('all weights of %s are 0, and pruned: they stay 0', listed(names))


def find_codebooks(model: nn.Module, checkpoint: Any, is_pruned: bool = False, source: str | Path = 'the checkpoint'
                   ) -> dict[str, Codebook]:
    """Return {layer name: `Codebook`} of weights to begin with: saved with them, or recognised in them; {}: none.

    Args:
        model: the network, with these weights.
        checkpoint: what they came from.
        is_pruned: zeros are no centroid.
        source: where it is from, for the log.
    """
    saved = checkpoint.get('codebooks') if isinstance(checkpoint, dict) else None
    if saved and bool(checkpoint.get('is_pruned')) == is_pruned:
        layers = quantizable_layers(model)  # whose classifier may have been reset
        books = {name: Codebook.from_state_dict(state) for name, state in saved.items() if name in layers}
        return {name: book for name, book in books.items() if book.labels.shape == layers[name].weight.shape}
    if saved or isinstance(checkpoint, dict) and checkpoint.get('strategy'):
        return {}
    books = recognise_codebooks(model, is_pruned) or {}
    if books:
        logger.info('%s: the weights take few values, which are taken as the centroids', source)
    return books


def recognise_codebooks(model: nn.Module, is_pruned: bool = False) -> dict[str, Codebook] | None:
    """Find the codebooks in a K-means network that came without them: its weights take few values per layer.

    Returns:
        {layer name: `Codebook`}, or None where the network is none of the K-means flow: a layer takes more than the
        256 values of 8 bits, or no layer has more weights than values, of which there are several.
    """
    found = {}
    for name, layer in quantizable_layers(model).items():
        weight = layer.weight.detach()
        kept = weight != 0 if is_pruned else None
        values, inverse = torch.unique(weight if kept is None else weight[kept], return_inverse=True)
        if len(values) > 256:
            return None
        labels = inverse.to(torch.uint8)
        if kept is not None:
            labels = torch.zeros_like(weight, dtype=torch.uint8).masked_scatter_(kept, labels)
        found[name] = Codebook(values, labels, kept)
    return found if any(book.labels.numel() > len(book.centroids) > 1 for book in found.values()) else None
