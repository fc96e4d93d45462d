"""A clustered weight tensor, and the training of its centroids."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass
class Codebook:
    """The clusters of one weight tensor.

    Attributes:
        centroids: (k,) float32; ascending when fitted, in any order after training.
        labels: uint8 of the weight's shape, the cluster of every weight.
        kept: bool of that shape, False where a weight is a pruned zero without centroid; None if nothing is pruned.
    """

    centroids: Tensor
    labels: Tensor
    kept: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """int32 of the weight's shape: the cluster, or k for a pruned zero."""
        index = self.labels.to(torch.int32)
        return index if self.kept is None else index.masked_fill_(~self.kept, len(self.centroids))

    @cached_property
    def counts(self) -> Tensor:
        """int64 (k + 1,): the weights of every cluster, then the pruned zeros; found once."""
        return torch.bincount(self.index.flatten(), minlength=len(self.centroids) + 1)

    @property
    def bits(self) -> int:
        """The fewest bits that hold its labels, at least 1."""
        return max((len(self.centroids) - 1).bit_length(), 1)

    @property
    def is_constant(self) -> bool:
        """Return whether several weights share the only centroid, so that they can never differ."""
        return len(self.centroids) == 1 < self.labels.numel()

    def decode(self) -> Tensor:
        """Return the weight tensor (float32): every weight its centroid, every pruned weight 0."""
        return _with_zero(self.centroids)[self.index]

    def to(self, device: torch.device | str) -> 'Codebook':
        """Return it on another device."""
        kept = None if self.kept is None else self.kept.to(device)
        return Codebook(self.centroids.to(device), self.labels.to(device), kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return plain tensors for a checkpoint."""
        state = {'centroids': self.centroids, 'labels': self.labels}
        return state if self.kept is None else state | {'kept': self.kept}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> 'Codebook':
        """Return the codebook of `state_dict`."""
        return cls(state['centroids'], state['labels'], state.get('kept'))


class CentroidTrainer:
    """Train centroids in place of weights, as if after every step each cluster's weights became their mean.

    SGD with momentum and weight decay is linear, so the mean of the stepped weights is the centroid stepped with the
    *mean* of its members' gradients: the same numbers, with optimizer state for the centroids only. Pruned zeros stay.

        trainer = CentroidTrainer({name: (layer.weight, codebook), ...})
        optimizer = SGD([*trainer.parameters(), *other_parameters])     # without these weights
        loss.backward(); trainer.before_step(); optimizer.step(); trainer.after_step()

    The constructor writes the centroids into the weights. With loss scaling, unscale the weights' gradients before
    `before_step`.
    """

    def __init__(self, layers: Mapping[str, tuple[nn.Parameter, Codebook]]):
        self._layers = {name: _ClusteredWeight(name, *layer) for name, layer in layers.items()}
        self.after_step()

    def parameters(self) -> list[nn.Parameter]:
        """Return the centroids (k,) of all layers, for an optimizer."""
        return [layer.centroids for layer in self._layers.values()]

    @torch.no_grad()
    def before_step(self):
        """Move the gradients from the weights to the centroids: the mean over every cluster, 0 for an empty one."""
        for layer in self._layers.values():
            layer.collect_gradient()

    @torch.no_grad()
    def after_step(self):
        """Write the centroids into the weights."""
        for layer in self._layers.values():
            layer.write_weight()

    def codebooks(self) -> dict[str, Codebook]:
        """Return the present codebooks: copies of the centroids, labels shared."""
        return {name: layer.codebook() for name, layer in self._layers.items()}


class _ClusteredWeight:
    def __init__(self, name: str, weight: nn.Parameter, codebook: Codebook):
        if codebook.labels.shape != weight.shape:
            shapes = f'{tuple(codebook.labels.shape)}, its weight {tuple(weight.shape)}'
            raise ValueError(f'the codebook of {name} has shape {shapes}: it was made for another layer')
        codebook = codebook if codebook.labels.device == weight.device else codebook.to(weight.device)
        self.weight, self.labels, self.kept = weight, codebook.labels, codebook.kept
        self.centroids = nn.Parameter(codebook.centroids.to(weight.dtype, copy=True))
        self.index = codebook.index.flatten()
        self.counts = codebook.counts.clamp(min=1)

    def collect_gradient(self):
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is None:
            self.centroids.grad = None
            return
        # In float64 the sum over millions of members is exact enough not to depend on their order.
        sums = torch.zeros(len(self.counts), dtype=torch.float64, device=gradient.device)
        sums.index_add_(0, self.index, gradient.flatten().double())
        self.centroids.grad = (sums / self.counts)[:-1].to(self.centroids.dtype)

    def write_weight(self):
        values = _with_zero(self.centroids).index_select(0, self.index)
        self.weight.copy_(values.view(self.weight.shape))

    def codebook(self) -> Codebook:
        return Codebook(self.centroids.detach().to(torch.float32, copy=True), self.labels, self.kept)


def _with_zero(centroids: Tensor) -> Tensor:
    """The table that `Codebook.index` points into: the centroids, then the zero of pruned weights."""
    return torch.cat([centroids, centroids.new_zeros(1)])
