"""The K-means environment: weight bits of every layer under a budget of model size."""

from lib.env.search_env import SearchEnv
from lib.quantize.kmeans import CodebookCache
from lib.simulator.cost import model_size
from lib.utils.profile import profile_layers
from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers

FIRST_ACTION = 4  # the previous action of the first layer, in raw bits


class QuantizeEnv(SearchEnv):
    """One step a layer: its weight bits. State: the eight layer features and the previous action in raw bits."""

    num_states = 9
    pairs = False  # a strategy is a list of weight bits

    def __init__(self, model, train_loader, val_loader, *, input_shape, preserve_ratio=0.1, min_bit=1, max_bit=8,
                 float_bit=32, is_pruned=False, kmeans_iter=3, seed=234, device='cpu', **settings):
        """See `SearchEnv` for the other settings.

        Args:
            input_shape: (C, H, W) of the data set, at which the layers' input sizes are measured.
            float_bit: bits per weight of the uncompressed model.
            is_pruned: only weights that are not zero count, and zeros stay zero.
            kmeans_iter: Lloyd iterations of the clustering.
        """
        layers = quantizable_layers(model)
        counts = [int((layer.weight != 0).sum()) if is_pruned else layer.weight.numel() for layer in layers.values()]
        self.is_pruned = is_pruned
        self.cache = CodebookCache(max_iter=kmeans_iter, is_pruned=is_pruned, seed=seed)
        super().__init__(model, train_loader, val_loader, records=profile_layers(model, input_shape, device),
                         cost=model_size(counts, float_bit=float_bit, layer_names=list(layers)),
                         preserve_ratio=preserve_ratio, min_bit=min_bit, max_bit=max_bit, fixed={}, seed=seed,
                         device=device, **settings)

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
