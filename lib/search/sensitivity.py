"""How much the loss rises when one layer is quantized: measured, or estimated from the curvature of the loss."""

import copy
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.env.search_env import SearchEnv
from lib.env.space import Space
from lib.network.conversion import listed
from lib.network.layer_inputs import weight_matrix
from lib.quantize.reading import Product
from lib.runtime import distributed
from lib.search.candidates import balanced, served_at
from lib.search.curvature import SCALARS, differentiable, measure_curvature
from lib.search.gradient_flow import blocked_layers
from lib.simulator.cost import MAX_BIT, UNTOUCHED, bits_of, column

SENSITIVITIES = ('loss', 'kl', *SCALARS)
LOSS_BATCH = 64


class Sensitivity(NamedTuple):
    """What quantization of the layers does to the loss, each alone.

    Attributes:
        table: (L, 8, 8) float64, `table[l, w - 1, a - 1]`: estimated rise of the mean cross entropy, or the divergence
            of the outputs, when layer l has w weight and a activation bits and all others are float; weights-only
            entries and untouched inputs are in the column of 8 bits, as in a `CostTable`. nan: not measured. A fixed
            layer has 0 in its own cell.
        kind: one of `SENSITIVITIES`.
        forwards, backwards: images passed through the network.
        seconds: that it took, when it was measured.
    """

    table: np.ndarray
    kind: str
    forwards: int
    backwards: int
    seconds: float


def measure_sensitivity(env: SearchEnv, kind: str, *, num_images: int, seed: int = 0) -> Sensitivity:
    """Measure or estimates what the quantizers of a search do to the loss, layer by layer.

    The rise of the loss is taken to be a sum: over the layers, and of the parts of a layer's weights and input.

    * 'loss': the loss with only the weights, or only the input, of one layer quantized, minus the float loss.
    * 'kl': the same with the Kullback-Leibler divergence sum p log(p / q) of the outputs q from those of the float
      network, p, in place of the loss: it needs no labels, and has no noise of what the float network gets wrong.
    * 'hessian': h / 2 ||Q(W) - W||^2, with h the mean of the diagonal of the Hessian over the layer (HAWQ-V2,
      1911.03852, eq. 10). For an input x the same with the Hessian in x of one image, and ||Q(x) - x||^2 averaged over
      the images. The Hessian is that of Gauss and Newton, which is the Hessian's own block of a layer where the logits
      are piecewise linear in its weights: in networks of ReLUs, poolings and BatchNorms, not of h-swish.
    * 'fisher': the same with the mean square of the gradient, of each image by itself, in place of h.

    Quantized values come from the search's own quantizers. The network is afterwards what it was.

    Args:
        env: `SearchEnv`.
        kind: one of `SENSITIVITIES`.
        num_images: images of `env.val_loader`, drawn from all classes alike.
        seed: of the images and of the random signs of the Hessian's estimate.

    Returns:
        The `Sensitivity`, that of the main process in all of them.

    Raises:
        ValueError: an unknown kind, another number of images than there are, or layers that no gradient arrives at,
            though their bits make a difference.
        FloatingPointError: a sensitivity is not finite.
    """
    if kind not in SENSITIVITIES:
        raise ValueError(f'sensitivity {kind!r}: expected one of {", ".join(SENSITIVITIES)}')
    start = time.time()
    images, labels = (tensor.to(env.device) for tensor in draw_images(env.val_loader, num_images, seed))
    with env.float_network():
        free = {index: name for index, name in enumerate(env.layers()) if index not in env.space.fixed}
        measure = _by_passes if kind in ('loss', 'kl') else _by_curvature
        parts, forwards, backwards = measure(env, free, images, labels, kind, seed)
    for what, rises in zip(('weights', 'input'), parts, strict=True):
        for index in rises:
            if not np.isfinite(list(rises[index].values())).all():
                raise FloatingPointError(f'the {kind} sensitivity of the {what} of layer {index} ({free[index]}) is '
                                         f'not finite: {rises[index]}')
    return Sensitivity(distributed.broadcast(table_of(env.space, *parts)), kind, forwards, backwards,
                       time.time() - start)


def draw_images(loader, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw images from all classes alike, also from a loader that is sorted by class.

    Returns:
        (images float32 (count, C, H, W), labels int64 (count,)), in mixed order.

    Raises:
        ValueError: fewer than 1 image, or more than the loader has.
    """
    classes = torch.cat([labels for _, labels in loader]).tolist()
    if not 1 <= count <= len(classes):
        raise ValueError(f'a sensitivity on {count} images: expected 1 to {len(classes)}, the images for validation')
    return served_at(loader, balanced(classes, count, np.random.default_rng(seed)))


def table_of(space: Space, w_parts: Mapping, a_parts: Mapping) -> np.ndarray:
    """Return (L, 8, 8) of the parts {layer: {bits: rise of the loss}} of the weights and of the inputs."""
    table = np.full((space.num_layers, MAX_BIT, MAX_BIT), np.nan)
    for index, entry in space.fixed.items():
        w_bit, a_bit = bits_of(entry)
        table[index, w_bit - 1, column(a_bit)] = 0
    for index in space.free:
        for w_bit, w_part in w_parts[index].items():
            for a_bit, a_part in a_parts[index].items() if space.pairs else [(UNTOUCHED, 0)]:
                table[index, w_bit - 1, column(a_bit)] = w_part + a_part
    return table


@torch.no_grad()
def _by_passes(env, free, images, labels, kind, seed):
    def rise(name, **bits):
        with env.layer_at(name, **bits):
            return judge()

    judge = (_loss_rise if kind == 'loss' else _divergence)(env.model, images, labels)
    sides = {index: env.space.layer_bits[index].sides for index in free}
    w_parts = {index: {bit: rise(name, w_bit=bit) for bit in sides[index][0]} for index, name in free.items()}
    a_parts = {index: {bit: rise(name, a_bit=bit) for bit in sides[index][1]} for index, name in free.items()
               } if env.space.pairs else {}
    passes = 1 + sum(map(len, (*w_parts.values(), *a_parts.values())))
    return (w_parts, a_parts), passes * len(images), 0


def _loss_rise(model, images, labels):
    """Return a function: by how much the mean cross entropy of the network, as it is then, is above that of now."""
    def loss():
        losses = [F.cross_entropy(model(batch), target, reduction='none').double()
                  for batch, target in zip(images.split(LOSS_BATCH), labels.split(LOSS_BATCH), strict=True)]
        return torch.cat(losses).mean().item()

    float_loss = loss()
    return lambda: loss() - float_loss


def _divergence(model, images, labels):
    """Return a function: the mean divergence of the outputs of the network, as it is then, from those of now."""
    def outputs():
        return torch.cat([model(batch).double() for batch in images.split(LOSS_BATCH)]).log_softmax(1)

    floats = outputs()
    return lambda: max(F.kl_div(outputs(), floats, reduction='batchmean', log_target=True).item(), 0.0)


def _by_curvature(env, free, images, labels, kind, seed):
    layers = {name: env.layers()[name] for name in free.values()}
    if products := [name for name, layer in layers.items() if isinstance(layer, Product)]:
        raise ValueError(f'the {kind} sensitivity is one of weights, and {listed(products)} multiply activations: take '
                         'the searcher greedy or ilp, which measure the loss, or pin them')
    sides = {name: env.space.layer_bits[index].sides for index, name in free.items()}
    w_errors = {name: {bit: weight_error(env, name, bit) for bit in sides[name][0]} for name in layers}
    quantizers = {name: {bit: _input_quantizer(env, name, bit) for bit in sides[name][1]} for name in layers
                  } if env.space.pairs else {}
    with differentiable(env.layers()):
        _check_gradients(kind, blocked_layers(env.model, env.layers(), images[:1], layers))
    found = measure_curvature(kind, env.model, layers, quantizers, images, labels, seed=seed)
    _check_gradients(kind, _flat_layers(env, found, images[:LOSS_BATCH]))
    w_parts, a_parts = (_rises(*each, free) for each in ((found.weights, w_errors),
                                                               (found.inputs, found.input_errors)))
    return (w_parts, a_parts), len(images), len(images)


def _check_gradients(kind, names):
    """Raise ValueError, with what to do instead, where there are layers that no gradient arrives at."""
    if names:
        raise ValueError(f'no gradient arrives at {listed(names)}, on which the logits depend (torch.no_grad, detach, '
                         f'rounding or reentrant checkpointing in the network): the {kind} sensitivity would be 0, as '
                         'if these layers needed no bits; take what needs none: the sensitivity kl or loss, the '
                         'searcher greedy, ilp or kl, or one that evaluates strategies, without a warm start from '
                         'the Hessian')


@torch.no_grad()
def _flat_layers(env, found, images):
    """Return the names of layers whose curvature is 0, though the logits are others at the fewest bits."""
    logits = env.model(images)
    flat = set()
    sides = dict(zip(env.layers(), (bits.sides for bits in env.space.layer_bits), strict=True))
    for side, (curvatures, which) in enumerate(((found.weights, 'w_bit'), (found.inputs, 'a_bit'))):
        for name in (name for name, curvature in curvatures.items() if curvature == 0):
            with env.layer_at(name, **{which: sides[name][side][0]}):
                if not torch.equal(env.model(images), logits):
                    flat.add(name)
    return [name for name in found.weights if name in flat]


@torch.no_grad()
def weight_error(env: SearchEnv, name: str, bit: int) -> float:
    """Return ||Q(W) - W||^2 of a layer; of compensated weights, whose errors cancel in the outputs, what counts there.

    That is tr(E H E^T) / (mean of diag H) with E = Q(W) - W and H of the inputs: ||E||^2 of errors that do not cancel.
    """
    weight = env.layers()[name].weight.clone()
    with env.layer_at(name, w_bit=bit) as layer:
        quantized = layer.weight_quantizer(layer.weight) if env.space.pairs else layer.weight
        if getattr(layer, 'computes_weight', False) and env.space.pairs:  # its range is that of what it computes
            quantizer = copy.deepcopy(layer.weight_quantizer)
            quantizer.calibrate(weight)
            quantized = quantizer(weight)
        error, metric = quantized - weight, env.input_metric(name)
        if metric is None:
            return error.square().sum(dtype=torch.float64).item()
        error = weight_matrix(layer, error).double()
        return ((error @ metric * error).sum() / metric.diagonal(dim1=1, dim2=2).mean()).item()


def _input_quantizer(env, name, bit):
    with env.layer_at(name, a_bit=bit) as layer:
        return copy.deepcopy(layer.input_quantizer)


def _rises(curvatures, errors, free):
    """Return {layer: {bits: rise of the loss}}."""
    return {index: {bit: curvatures[name] / 2 * error for bit, error in errors[name].items()}
            for index, name in free.items() if name in curvatures}


def parts_of(table: np.ndarray, space: Space) -> dict[tuple[int, int], np.ndarray]:
    """Return {(layer, side): rise of the loss at each of its bits}, where there is a choice; side 0: weights, 1: input.

    They add up to the cells of the table; what all cells of a layer have at least belongs to both sides by halves.
    """
    parts = {}
    for layer in space.free:
        weights, inputs = space.layer_bits[layer].sides
        cells = table[layer][np.ix_(np.array(weights) - 1, column(np.array(inputs)))]
        if min(cells.shape) == 1:
            parts[layer, int(len(weights) == 1)] = cells.ravel()
            continue
        for side in (0, 1):
            means = cells.mean(1 - side)
            parts[layer, side] = means - means.min() + cells.min() / 2
    return parts
