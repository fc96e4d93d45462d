"""Quantization of whole networks: K-means with trained centroids, and conversion to linearly quantized layers."""

import logging

import torch
from torch import nn

from lib.quantize.kmeans import CentroidTrainer, Codebook, CodebookCache
from lib.quantize.layers import QConv2d, QLinear, calibrating
from lib.utils.signedness import probe_inputs

__all__ = ['KMeansQuantization', 'LinearQuantization', 'QConv2d', 'QLinear', 'Quantization', 'calibrate',
           'convert_to_quantized', 'quantizable_layers', 'quantized_layers', 'recognise_codebooks']

logger = logging.getLogger(__name__)

HIGH_BIT = 6  # with `free_high_bit`, layers above these bits stay float until the last epoch


def quantizable_layers(model):
    """Returns {name: layer} of every convolution and linear layer, in the order of `model.modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}


def quantized_layers(model):
    """Returns {name: layer} of every `QConv2d` and `QLinear`, in the order of `model.modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (QConv2d, QLinear))}


def weight_counts(model, is_pruned=False):
    """Returns {name: number of weights} of every quantizable layer; only those that are not zero if `is_pruned`."""
    return {name: int((layer.weight != 0).sum()) if is_pruned else layer.weight.numel()
            for name, layer in quantizable_layers(model).items()}


class Quantization:
    """What training needs to know of a quantized network; this base leaves everything to the network's own layers."""

    kind = 'float'
    complete = True  # whether the network is quantized as its strategy says

    def __init__(self, model, strategy=None):
        self.model, self.strategy = model, strategy

    def parameters(self):
        """Returns what an optimizer trains."""
        return list(self.model.parameters())

    def before_epoch(self, epoch, epochs, optimizer):
        """Called before every epoch."""

    def before_step(self):
        """Called between backward pass and optimizer step."""

    def after_step(self):
        """Called after every optimizer step."""

    def describe(self):
        """Returns the kind of quantization and the strategy, as plain values."""
        return {'quantization': self.kind, 'strategy': self.strategy}

    def state(self):
        """Returns what a checkpoint carries, so that it needs no strategy beside it."""
        return self.describe()


class LinearQuantization(Quantization):
    """Linear quantization of weights and activations in the `QConv2d` and `QLinear` layers of a network."""

    kind = 'linear'

    def __init__(self, model, strategy, images=None, *, method='kl', cap=None, cache=None):
        """Sets the bits from pairs [w_bit, a_bit] and calibrates on `images`; None keeps the ranges of a checkpoint.

        `cache` is a dict shared by the episodes of a search, which quantize the same weights on the same images.
        """
        super().__init__(model, strategy)
        for layer, (w_bit, a_bit) in zip(quantized_layers(model).values(), strategy, strict=True):
            layer.w_bit, layer.a_bit = w_bit, a_bit
        if images is not None:
            calibrate(model, images, method=method, cap=cap, cache=cache)


class KMeansQuantization(Quantization):
    """K-means weight quantization of a network, with centroids that are trained in place of the weights.

    The network stays an ordinary float network whose weights take at most 2^bits values per layer. Layers are
    addressed by name, so a wrapped or converted network gets the same codebooks.
    """

    kind = 'kmeans'

    def __init__(self, model, strategy, *, is_pruned=False, free_high_bit=False, cache=None, codebooks=None,
                 max_iter=50, seed=0):
        """Clusters the weights of `model` in place.

        Args:
            model: network with float weights.
            strategy: weight bits (1..8) per quantizable layer.
            is_pruned: zero weights stay zero and get no centroid.
            free_high_bit: layers above 6 bits stay float until the last epoch.
            cache: a `CodebookCache` over the same weights, shared by the episodes of a search.
            codebooks: {layer name: `Codebook`} of a checkpoint, used instead of clustering.
            max_iter: Lloyd iterations.
            seed: of the k-means++ initialisation.
        """
        super().__init__(model, strategy)
        self.is_pruned = is_pruned
        self.bits = dict(zip(quantizable_layers(model), strategy, strict=True))
        self.cache = cache or CodebookCache(max_iter=max_iter, is_pruned=is_pruned, seed=seed)
        self.trainers, self._centroids = [], {}
        known = codebooks or {}
        self.free = [name for name, bits in self.bits.items()
                     if free_high_bit and bits > HIGH_BIT and name not in known]
        self._masks = {name: self._weight(name) != 0 for name in self.free} if is_pruned else {}
        self._cluster([name for name in self.bits if name not in self.free], known)

    @property
    def complete(self):
        """Whether no layer is left free."""
        return not self.free

    def _weight(self, name):
        return self.model.get_submodule(name).weight

    def _cluster(self, names, known):
        layers = {}
        for name in names:
            weight = self._weight(name)
            if not torch.isfinite(weight).all():
                raise ValueError(f'{name} has weights that are not finite: check the checkpoint')
            codebook = known.get(name) or self.cache.get(name, weight.detach(), self.bits[name])
            layers[name] = weight, codebook
        if layers:
            trainer = CentroidTrainer(layers)
            self.trainers.append(trainer)
            self._centroids.update(zip(layers, trainer.parameters(), strict=True))

    def parameters(self):
        """Returns centroids in place of clustered weights, in layer order, and everything else as it is."""
        clustered = {id(self._weight(name)) for name in self._centroids}
        rest = [p for p in self.model.parameters() if id(p) not in clustered]
        return rest + [self._centroids[name] for name in self.bits if name in self._centroids]

    def before_epoch(self, epoch, epochs, optimizer):
        """Before the last epoch clusters the layers left free, and hands their centroids to the optimizer."""
        if epoch < epochs - 1 or not self.free:
            return
        freed, self.free, self._masks = self.free, [], {}
        self._cluster(freed, {})
        optimizer.param_groups[0]['params'] = self.parameters()
        for name in freed:
            optimizer.state.pop(self._weight(name), None)
            self._weight(name).grad = None  # zero_grad no longer reaches it

    def before_step(self):
        """Moves the gradients of the weights to their centroids."""
        for trainer in self.trainers:
            trainer.before_step()

    @torch.no_grad()
    def after_step(self):
        """Writes the centroids to the weights, and keeps the pruned weights of free layers at zero."""
        for trainer in self.trainers:
            trainer.after_step()
        for name, mask in self._masks.items():
            self._weight(name).mul_(mask)

    def state(self):
        """Returns what a checkpoint carries: strategy, codebooks with their labels."""
        books = {name: codebook.state_dict() for trainer in self.trainers
                 for name, codebook in trainer.codebooks().items()}
        return {**super().state(), 'is_pruned': self.is_pruned, 'codebooks': books}


def recognise_codebooks(model, is_pruned=False):
    """Finds the codebooks in a K-means network that came without them: its weights take few values per layer.

    Returns:
        {layer name: `Codebook`}, the bits of each being the fewest that hold its centroids.

    Raises:
        ValueError: a layer holds more than 256 values.
    """
    found = {}
    for name, layer in quantizable_layers(model).items():
        weight = layer.weight.detach()
        kept = weight != 0 if is_pruned else None
        values, inverse = torch.unique(weight if kept is None else weight[kept], return_inverse=True)
        if len(values) > 256:
            raise ValueError(f'{name} holds {len(values)} different weights, more than the 256 of 8 bits: this is no '
                             'checkpoint of the K-means flow; give --strategy and --weights to quantize it')
        labels = inverse.to(torch.uint8)
        if kept is not None:
            labels = torch.zeros_like(weight, dtype=torch.uint8).masked_scatter_(kept, labels)
        found[name] = Codebook(values, labels, kept)
    return found


def convert_to_quantized(model, images):
    """Turns every convolution and linear layer of `model` into a `QConv2d` or `QLinear`, in place.

    One forward pass on `images` finds which layers are called, and whether their inputs are signed; what it cannot
    tell is found at calibration, from real images. A layer whose
    forward is never called (its weight is read by other code, as inside torch's attention) cannot quantize its
    input: it is named in a warning and left as it is.

    Args:
        model: float network.
        images: probe (N, C, H, W) on the model's device.

    Returns:
        The model, its layers without bits yet (they compute what the float layers did).
    """
    layers = quantizable_layers(model)
    signed = probe_inputs(model, layers, images)
    twins = {}
    for name, layer in layers.items():
        kind = {nn.Conv2d: QConv2d, nn.Linear: QLinear}.get(type(layer))
        if kind is not None and name in signed:
            twins[layer] = kind.from_float(layer)
            twins[layer].input_quantizer.signed = signed[name]
    for parent in list(model.modules()):  # a layer may have several parents and names
        for name, child in list(parent._modules.items()):  # named_children would leave out the second name
            if child in twins:
                setattr(parent, name, twins[child])
    left = [name for name in layers if name not in quantized_layers(model)]
    if left:
        logger.warning('%d layers keep float weights and inputs in the linear flow, because their forward is never '
                       'called or they are of a kind of their own: %s', len(left), ', '.join(left))
    return model


@torch.no_grad()
def calibrate(model, images, *, method='kl', cap=None, cache=None):
    """Sets the ranges of all quantized layers from one batch.

    The pass runs in evaluation mode, so BatchNorm statistics stay as they are, and unquantized.

    Args:
        model: network with quantized layers whose bits are set.
        images: (N, C, H, W) on the model's device.
        method: how ranges are chosen: 'kl', 'mse' or 'max'.
        cap: upper limit of the activation ranges (the original's is 6), or None.
        cache: ranges of earlier calibrations of the same weights on the same images; used and added to.
    """
    training = model.training
    model.eval()
    try:
        with calibrating(model, method=method, cap=cap, cache=cache) as needed:
            if needed:
                model(images)
    finally:
        model.train(training)
