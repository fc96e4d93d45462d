"""How curved the loss is in the weights and in the input of every layer: Fisher matrix and Hessian, on the diagonal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.network.gradients import differentiable, logits_of_one
from lib.network.hooks import hooked
from lib.network.reach import Following
from lib.quantize.quantizer import Quantizer
from lib.runtime.seeds import seeded_generator


class Curvature(NamedTuple):
    """What quantization is expensive by.

    Attributes:
        weights: {layer: mean of the diagonal over its weights, for the mean loss}.
        inputs: {layer: mean of the diagonal over its input, for the loss of one image}.
        input_errors: {layer: {bits: ||Q(x) - x||^2 of its input, the mean over the images}}.
    """

    weights: dict[str, float]
    inputs: dict[str, float]
    input_errors: dict[str, dict[int, float]]


def measure_curvature(
    kind: str,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    quantizers: Mapping[str, Mapping[int, Quantizer]],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int = 0,
) -> Curvature:
    """Measure the curvature of the cross entropy on `images`.

    Args:
        kind: in `SCALARS`.
        model: network in evaluation mode.
        layers: its layers to look at, by name.
        quantizers: by bits, of those layers whose inputs are looked at too.
        images, labels: (N, C, H, W) and (N,).
        seed: of the random signs of the Hessian's estimate.

    Raises:
        ValueError: the network does not take a single image.
    """
    generator = seeded_generator(seed, kind)
    w_sums, a_sums = dict.fromkeys(layers, 0.0), dict.fromkeys(quantizers, 0.0)
    errors = {name: dict.fromkeys(each, 0.0) for name, each in quantizers.items()}
    with differentiable(layers) as weights:
        for image, label in zip(images.split(1), labels.split(1), strict=True):  # each gradient is squared by itself
            with recorded_inputs(model, {name: layers[name] for name in quantizers}) as inputs:
                scalar = SCALARS[kind](logits_of_one(model, image), label, generator)
            squares = iter(_mean_squares(scalar, [*([weight] for weight in weights.values()), *inputs.values()]))
            for sums in (w_sums, a_sums):
                for name in sums:
                    sums[name] += next(squares)
            _add_errors(errors, quantizers, inputs)
    return Curvature(_mean(w_sums, images), _mean(a_sums, images),
                     {name: _mean(sums, images) for name, sums in errors.items()})


def _mean(sums, images):
    return {key: total / len(images) for key, total in sums.items()}


def _mean_squares(scalar, groups):
    """Return the mean square of the gradient over each group of tensors, 0 where the scalar depends on none."""
    tensors = [tensor for group in groups for tensor in group]
    gradients = iter(torch.autograd.grad(scalar, tensors, allow_unused=True, materialize_grads=True))
    squares = [sum(next(gradients).square().sum(dtype=torch.float64).item() for _ in group) for group in groups]
    return [square / max(sum(map(torch.numel, group)), 1) for square, group in zip(squares, groups, strict=True)]


@torch.no_grad()
def _add_errors(errors, quantizers, inputs):
    for name, tensors in inputs.items():
        for bits, quantizer in quantizers[name].items():
            errors[name][bits] += sum((quantizer(x) - x).square().sum(dtype=torch.float64).item() for x in tensors)


@contextmanager
def recorded_inputs(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Give {layer name: its inputs, one tensor per call} of the forward passes within this context.

    What is recorded is a copy that no other layer reads, as no other reads what the input's quantizer returns: the
    gradient through a shortcut from the same tensor is not in it.
    """
    inputs, names = {name: [] for name in layers}, {layer: name for name, layer in layers.items()}

    def record(name, _layer, x):
        x = x.clone()
        inputs[name].append(x if x.requires_grad else x.requires_grad_())
        return x

    def record_use(use, x, _weight):  # a layer with a forward of its own is called
        return None if use.whole or use.layer not in names else record(names[use.layer], None, x)

    with hooked(layers, before=record), Following(record_use).through(model):
        yield inputs


def fisher(logits: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Return the loss of an image: its squared gradient is the diagonal of the empirical Fisher matrix."""
    return F.cross_entropy(logits, label)


def hessian(logits: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Return a scalar whose squared gradient has the expectation of the Hessian's diagonal, J^T A J.

    J is the Jacobian of the logits, A = diag(p) - p p^T the Hessian of the cross entropy in them. With A = S S^T,
    S_ic = (d_ic - p_i) sqrt(p_c), and a vector r of random signs, E[(S r)(S r)^T] = A: Hutchinson's estimate, with the
    signs at the logits. One backward pass serves all layers, and no layer's estimate gets noise of another, or a
    negative value, as with v^T H v for v over the weights of all layers.
    """
    p = logits.detach().softmax(1)
    signs = torch.randint(2, p.shape, generator=generator).mul_(2).sub_(1).to(p)
    rooted = p.sqrt() * signs
    return (logits * (rooted - p * rooted.sum(1, keepdim=True))).sum()


SCALARS = {'fisher': fisher, 'hessian': hessian}
