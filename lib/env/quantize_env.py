"""The K-means environment: weight bits of every layer under budgets of model size or any other cost."""

from contextlib import contextmanager

import torch

from lib.env.search_env import SearchEnv
from lib.network.codebooks import name_constant_layers
from lib.quantize.kmeans import CodebookCache
from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers

FIRST_ACTION = 4  # the previous action of the first layer, in raw bits


class QuantizeEnv(SearchEnv):
    """One step a layer: its weight bits. State: the eight layer features and the previous action in raw bits."""

    num_states = 9
    pairs = False  # a strategy is a list of weight bits

    def __init__(self, model, train_loader, val_loader, *, is_pruned=False, kmeans_iter=3, seed=234, **settings):
        """See `SearchEnv` for the other settings.

        Args:
            is_pruned: zero weights stay zero and get no centroid.
            kmeans_iter: Lloyd iterations of the clustering.
        """
        self.is_pruned = is_pruned
        self.kmeans_iter = kmeans_iter
        self.cache = CodebookCache(max_iter=kmeans_iter, is_pruned=is_pruned, seed=seed)
        name_constant_layers(model, is_pruned)
        super().__init__(model, train_loader, val_loader, fixed={}, seed=seed, **settings)

    @property
    def num_steps(self):
        """Steps of an episode."""
        return self.num_layers

    def _state(self, chosen):
        index = min(len(chosen), self.num_layers - 1)
        previous = chosen[index - 1] if index else FIRST_ACTION
        return [*self.features[index], previous]

    def _entries(self, chosen):
        return list(chosen)

    def _choices(self, strategy):
        return list(strategy)

    def _quantize(self, strategy):
        return KMeansQuantization(self.model, strategy, is_pruned=self.is_pruned, cache=self.cache)

    def layers(self):
        """Returns {name: layer} of the layers that a strategy has entries for."""
        return quantizable_layers(self.model)

    def describe_quantizers(self):
        """Returns what the quantized weights depend on beside the float ones, as plain values."""
        return {'flow': 'kmeans', 'is_pruned': self.is_pruned, 'kmeans_iter': self.kmeans_iter, 'seed': self.seed}

    @contextmanager
    def layer_at(self, name, w_bit):
        """Within this context, inside `float_network`, the weights of one layer are clustered; it is given."""
        layer = self.layers()[name]
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(self.cache.get(name, kept, w_bit).decode())
        try:
            yield layer
        finally:
            with torch.no_grad():
                layer.weight.copy_(kept)
