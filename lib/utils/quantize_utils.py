"""Quantization of whole networks: K-means with trained centroids, and conversion to linearly quantized layers."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.network.codebooks import has_one_value, name_constant_layers, recognise_codebooks
from lib.network.conversion import convert_to_quantized, quantizable_layers, quantized_layers
from lib.network.hooks import evaluating
from lib.network.not_finite import locating
from lib.network.other_state import kept_state
from lib.quantize.grids import Grids
from lib.quantize.kmeans import CentroidTrainer, Codebook, CodebookCache
from lib.quantize.layers import QConv2d, QLinear, calibrating
from lib.quantize.quantizer import Quantizer
from lib.runtime import distributed
from lib.runtime.seeds import own_generators

__all__ = ['KMeansQuantization', 'LinearQuantization', 'QConv2d', 'QLinear', 'Quantization', 'calibrate',
           'convert_to_quantized', 'quantizable_layers', 'quantized_layers', 'recognise_codebooks']

logger = logging.getLogger(__name__)

HIGH_BIT = 6  # with `free_high_bit`, layers above these bits stay float until the last epoch


def weight_counts(model: nn.Module, is_pruned: bool = False) -> dict[str, int]:
    """Return {name: number of weights} of every quantizable layer; only those that are not zero if `is_pruned`."""
    return {name: int((layer.weight != 0).sum()) if is_pruned else layer.weight.numel()
            for name, layer in quantizable_layers(model).items()}


class Quantization:
    """What training needs to know of a quantized network; this base leaves everything to the network's own layers."""

    kind = 'float'
    complete = True  # whether the network is quantized as its strategy says

    def __init__(self, model: nn.Module, strategy: Any = None):
        self.model, self.strategy = model, strategy

    def parameters(self) -> list[nn.Parameter]:
        """Return what an optimizer trains."""
        return list(self.model.parameters())

    def loss(self, logits: Tensor, labels: Tensor, task: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
             ) -> Tensor:
        """Return what training minimises, averaged over the batch: the loss of the task, cross entropy or another.

        Labels are classes (N,), or probabilities (N, classes) where they are smoothed or images are mixed.
        """
        return task(logits, labels)

    def before_epoch(self, epoch: int, epochs: int, optimizer: torch.optim.Optimizer) -> None:
        """Called before every epoch."""

    def after_epoch(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after every epoch."""

    def before_step(self) -> None:
        """Called between backward pass and optimizer step."""

    def after_step(self) -> None:
        """Called after every optimizer step."""

    def synchronise(self) -> None:
        """Give the network of every process the weights and buffers of the main one's."""
        distributed.broadcast_tensors([*self.model.parameters(), *self.model.buffers()])

    def describe(self) -> dict:
        """Return the kind of quantization and the strategy, as plain values."""
        return {'quantization': self.kind, 'strategy': self.strategy}

    def state(self) -> dict:
        """Return what a checkpoint carries, so that it needs no strategy beside it."""
        return self.describe()


class LinearQuantization(Quantization):
    """Linear quantization of weights and activations in the `QConv2d` and `QLinear` layers of a network."""

    kind = 'linear'

    def __init__(self, model: nn.Module, strategy: list | None, images: Tensor | None = None, *, method: str = 'kl',
                 cap: float | None = None, cache: dict | None = None):
        """Set the bits from pairs [w_bit, a_bit] and calibrate on `images`; None keeps the ranges of a checkpoint.

        `cache` is a dict shared by the episodes of a search, which quantize the same weights on the same images.
        """
        super().__init__(model, strategy)
        for layer, (w_bit, a_bit) in zip(quantized_layers(model).values(), strategy, strict=True):
            layer.w_bit, layer.a_bit = w_bit, a_bit
        if images is not None:
            calibrate(model, images, method=method, cap=cap, cache=cache)
        self.synchronise()

    def synchronise(self) -> None:
        super().synchronise()
        synchronise_signs(layer.input_quantizer for layer in quantized_layers(self.model).values())

    def describe(self) -> dict:
        """Return also the grids, which the quantizers in the network have."""
        return {**super().describe(), **Grids.of(quantized_layers(self.model).values()).to_dict()}


def synchronise_signs(quantizers: Iterable[Quantizer]) -> None:
    """Give the quantizers of every process the signs of the main one's, where they have one."""
    signed = [quantizer for quantizer in quantizers if hasattr(quantizer, 'signed')]
    for quantizer, sign in zip(signed, distributed.broadcast([q.signed for q in signed]), strict=True):
        quantizer.signed = sign


class KMeansQuantization(Quantization):
    """K-means weight quantization of a network, with centroids that are trained in place of the weights.

    The network stays an ordinary float network whose weights take at most 2^bits values per layer. Layers are
    addressed by name, so a wrapped or converted network gets the same codebooks.

    A trainable layer whose weights are all the same (a head that begins with zeros) would have one centroid for ever.
    It stays float through its first epoch, and is clustered after it.
    """

    kind = 'kmeans'

    def __init__(self, model: nn.Module, strategy: list[int], *, is_pruned: bool = False, free_high_bit: bool = False,
                 cache: CodebookCache | None = None, codebooks: dict[str, Codebook] | None = None, max_iter: int = 50,
                 importance: Mapping[str, Tensor] | None = None):
        """Cluster the weights of `model` in place.

        Args:
            strategy: weight bits (1..8) per quantizable layer.
            is_pruned: zero weights stay zero and get no centroid.
            free_high_bit: layers above 6 bits stay float until the last epoch.
            cache: a `CodebookCache` over the same weights, shared by the episodes of a search.
            codebooks: {layer name: `Codebook`} of a checkpoint, used instead of clustering.
            importance: {layer name: what its weights count}, of layers that are clustered now; None: all the same.
        """
        super().__init__(model, strategy)
        self.is_pruned = is_pruned
        self.bits = dict(zip(quantizable_layers(model), strategy, strict=True))
        self.cache = cache or CodebookCache(max_iter=max_iter, is_pruned=is_pruned, importance=importance)
        self.trainers, self._centroids = [], {}
        known = codebooks or {}
        self.free = [name for name, bits in self.bits.items()
                     if free_high_bit and bits > HIGH_BIT and name not in known]
        self.unformed = [name for name in self.bits
                         if name not in known and has_one_value(self._weight(name), is_pruned)]
        if cache is None:
            name_constant_layers(model, is_pruned)
        later = {*self.free, *self.unformed}
        self._masks = {name: self._weight(name) != 0 for name in later} if is_pruned else {}
        self._cluster([name for name in self.bits if name not in later], known)

    @property
    def complete(self) -> bool:
        """Whether all layers are clustered."""
        return not self.free and not self.unformed

    def _weight(self, name):
        return self.model.get_submodule(name).weight

    def _cluster(self, names, known):
        layers = {}
        for name in names:
            weight = self._weight(name)
            if not torch.isfinite(weight.sum(dtype=torch.float64)):  # many times faster than to look at every weight
                raise ValueError(f'{name} has weights that are not finite: check the checkpoint')
            codebook = known.get(name) or self.cache.get(name, weight.detach(), self.bits[name])
            layers[name] = weight, codebook
        self._train_centroids(layers)

    def _train_centroids(self, layers):
        if layers:
            # In place, also in the cache: all have as many centroids, but another machine may round otherwise.
            distributed.broadcast_tensors([tensor for _, codebook in layers.values()
                                           for tensor in (codebook.centroids, codebook.labels)])
            trainer = CentroidTrainer(layers)
            self.trainers.append(trainer)
            self._centroids.update(zip(layers, trainer.parameters(), strict=True))

    def parameters(self) -> list[nn.Parameter]:
        """Return centroids in place of clustered weights, in layer order, and everything else as it is."""
        clustered = {id(self._weight(name)) for name in self._centroids}
        rest = [p for p in self.model.parameters() if id(p) not in clustered]
        return rest + [self._centroids[name] for name in self.bits if name in self._centroids]

    def before_epoch(self, epoch: int, epochs: int, optimizer: torch.optim.Optimizer) -> None:
        """Cluster the layers left free before the last epoch, and hand their centroids to the optimizer."""
        if epoch == epochs - 1:
            freed, self.free = [name for name in self.free if name not in self.unformed], []
            self._cluster_later(freed, optimizer)

    def after_epoch(self, optimizer: torch.optim.Optimizer) -> None:
        """Cluster, after the first epoch, the layers that had one value only before it."""
        formed, self.unformed = [name for name in self.unformed if name not in self.free], []
        self._cluster_later(formed, optimizer)

    def _cluster_later(self, names, optimizer):
        """Cluster layers that were float until now, and hand their centroids to the optimizer."""
        if not names:
            return
        self.synchronise()  # all processes cluster the same weights
        self._masks = {name: mask for name, mask in self._masks.items() if name not in names}
        self._train_centroids({name: (self._weight(name), self.cache.fit(self._weight(name).detach(), self.bits[name]))
                               for name in names})
        others = {id(p) for group in optimizer.param_groups[1:] for p in group['params']}
        optimizer.param_groups[0]['params'] = [p for p in self.parameters() if id(p) not in others]
        for name in names:
            optimizer.state.pop(self._weight(name), None)
            self._weight(name).grad = None  # zero_grad no longer reaches it

    def synchronise(self) -> None:
        super().synchronise()
        distributed.broadcast_tensors(self._centroids.values())

    def before_step(self) -> None:
        for trainer in self.trainers:
            trainer.before_step()

    @torch.no_grad()
    def after_step(self) -> None:
        """Write the centroids to the weights, and keep the pruned weights of free layers at zero."""
        for trainer in self.trainers:
            trainer.after_step()
        for name, mask in self._masks.items():
            self._weight(name).mul_(mask)

    def state(self) -> dict:
        books = {name: codebook.state_dict() for trainer in self.trainers
                 for name, codebook in trainer.codebooks().items()}
        return {**super().state(), 'is_pruned': self.is_pruned, 'codebooks': books}


def has_ranges(model: nn.Module, state_dict: dict) -> bool:
    """Return whether a state dict has the ranges of every quantized layer, under our names or the original's."""
    keys = state_dict.keys()
    return all({f'{name}.weight_range', f'{name}.activation_range'} <= keys
               or {f'{name}.weight_quantizer.range', f'{name}.input_quantizer.range'} <= keys
               for name in quantized_layers(model))


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor, *, method: str = 'kl', cap: float | None = None,
              cache: dict | None = None) -> None:
    """Set the ranges of all quantized layers from one batch.

    The pass runs in evaluation mode and unquantized; of the network it changes nothing but the quantizers.

    Args:
        model: network with quantized layers whose bits are set.
        images: (N, C, H, W) on the model's device.
        method: how ranges are chosen: 'kl', 'mse' or 'max'.
        cap: upper limit of the activation ranges (the original's is 6), or None.
        cache: ranges of earlier calibrations of the same weights on the same images; used and added to.
    """
    with evaluating(model), calibrating(model, method=method, cap=cap, cache=cache) as needed:
        if needed:
            # A search that knows the ranges goes on without this pass, so it leaves no traces.
            with kept_state(model, leave=(Quantizer,)), own_generators('calibrate'), locating(model, images):
                model(images)
