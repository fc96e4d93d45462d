"""The K-means environment: weight bits of every layer under budgets of model size or any other cost."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib.env.compensated import CompensatedCodebooks
from lib.env.search_env import SearchEnv
from lib.network.codebooks import name_constant_layers
from lib.network.gradients import fisher_diagonal
from lib.quantize.kmeans import CodebookCache
from lib.training.compensation import round_codebooks
from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers


class QuantizeEnv(SearchEnv):
    """One step a layer: its weight bits. The weights are clustered, and centroids trained in their place."""

    def __init__(self, model: nn.Module, train_loader, val_loader, space, settings=None, *, is_pruned: bool = False,
                 kmeans_iter: int = 3, kmeans_weights: str = 'none', **common):
        """See `SearchEnv` for the other settings.

        Args:
            is_pruned: zero weights stay zero and get no centroid.
            kmeans_iter: Lloyd iterations of the clustering.
            kmeans_weights: what weights count in it: all the same, 'none', or by the 'fisher' diagonal on as many
                training images as rounding takes.
        """
        name_constant_layers(model, is_pruned)
        super().__init__(model, train_loader, val_loader, space, settings, **common)
        self.is_pruned, self.kmeans_iter = is_pruned, kmeans_iter
        options = {'max_iter': kmeans_iter, 'is_pruned': is_pruned}
        self.cache = CompensatedCodebooks(self.problems, **options) if self.problems else \
            CodebookCache(**options, importance=self._importance(kmeans_weights))
        self.kmeans_weights = kmeans_weights

    def _importance(self, kmeans_weights):
        if kmeans_weights == 'none':
            return None
        self.train_loader.set_epoch(0)
        return fisher_diagonal(self.model, self.layers(), self.train_loader, self.rounding.calibration_images)

    def _quantize(self, strategy):
        quantization = KMeansQuantization(self.model, strategy, is_pruned=self.is_pruned, cache=self.cache)
        if self.rounding.compensated and self.rounding.corrects_bias:
            for name, bits in zip(self.layers(), strategy, strict=True):
                self.problems.correct_bias(name, bits)
        return quantization

    def _quantize_finally(self, strategy, batches):
        books = round_codebooks(self.model, dict(zip(self.layers(), strategy, strict=True)), batches, self.rounding,
                                is_pruned=self.is_pruned)
        return KMeansQuantization(self.model, strategy, is_pruned=self.is_pruned, codebooks=books)

    def layers(self) -> dict[str, nn.Module]:
        """Return {name: layer} of the layers that a strategy has entries for."""
        return quantizable_layers(self.model)

    def describe_quantizers(self) -> dict:
        """Return what the quantized weights depend on beside the float ones, as plain values."""
        return {'flow': 'kmeans', 'is_pruned': self.is_pruned, 'kmeans_iter': self.kmeans_iter,
                'seed': self.settings.seed, **self.rounding.describe(), **(
                    {} if self.kmeans_weights == 'none' else
                    {'kmeans_weights': self.kmeans_weights, 'calibration_images': self.rounding.calibration_images})}

    @contextmanager
    def layer_at(self, name: str, w_bit: int) -> Iterator[nn.Module]:
        """Give one layer, inside `float_network`, with its weights clustered."""
        layer = self.layers()[name]
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(self.cache.get(name, kept, w_bit).decode())
        try:
            yield layer
        finally:
            with torch.no_grad():
                layer.weight.copy_(kept)
