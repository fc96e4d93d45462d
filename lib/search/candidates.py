"""Candidates of a progressive search: random lowerings of a list of bits, and how they are judged."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.env.layer_choices import own_bits, usual_bits
from lib.network.other_state import kept_state
from lib.qat.parts import PartQuantizers
from lib.runtime.distributed import broadcast, is_main
from lib.runtime.seeds import derived_seed
from lib.simulator.cost import MAX_BIT
from lib.simulator.layer_bits import LayerBits, bits_of_layers

FLOOR = 2  # fewest bits that the search goes down to
POOL = 4  # batches of a shuffled epoch among whose images a balanced one is chosen


def able_bits(parts: PartQuantizers, candidates: Sequence[str] = (), pins: Sequence[str] = ()) -> list[tuple[int, ...]]:
    """Return the bits that each quantizer may have: 2..8, or those of the candidates and pins of its layer.

    Args:
        parts: the quantizers.
        candidates, pins: texts as `candidates_of` and `pin_of` take them.

    Raises:
        ValueError: bits below 2, or a name that no quantized layer has.
    """
    usual = usual_bits(candidates, True) or LayerBits.span(FLOOR)
    own = own_bits([part.layer for part in parts.parts], {}, candidates=candidates, pins=pins, pairs=True)
    bits = bits_of_layers(len(parts.parts), usual, own)
    if wrong := [bit for each in bits for side in each.sides for bit in side if bit < FLOOR]:
        raise ValueError(f'candidates or pin: {wrong[0]} bits, expected {FLOOR}..{MAX_BIT}')
    return parts.joined(*([each.sides[side] for each in bits] for side in (0, 1)))


def num_drawn(count: int, ratio: float) -> int:
    """Return floor(ratio * count).

    Raises:
        ValueError: that is none, or the ratio is above 1.
    """
    drawn = math.floor(ratio * count + 1e-9)  # 0.29 * 100 is a little below 29
    if not 0 < drawn <= count:
        raise ValueError(f'a ratio of {ratio:g} lowers {drawn} of {count} quantizers at a time: expected at least '
                         f'{1 / count:.4g}, and at most 1')
    return drawn


def draw(rng: np.random.Generator, count: int, ratio: float) -> list[int]:
    """Draw floor(ratio * count) different numbers below `count`, in random order; ValueError as `num_drawn`."""
    return rng.permutation(count)[:num_drawn(count, ratio)].tolist()


def lower(bits: Sequence[int], chosen: Sequence[int], interval: int, able: Sequence[Sequence[int]]) -> list[int]:
    """Return the bits, those at the `chosen` positions less by `interval` or more; none goes up.

    Each becomes the most of those that it is `able` to have, ascending, that are fewer by so many; else their fewest.
    """
    lowered = list(bits)
    for i in chosen:
        fewer = [bit for bit in able[i] if bit <= lowered[i] - interval] or able[i][:1]
        lowered[i] = min(lowered[i], fewer[-1])
    return lowered


def candidate(bits: Sequence[int], *, rng: np.random.Generator, ratio: float, interval: int,
              able: Sequence[Sequence[int]], enough: Callable[[list[int]], bool] | None = None) -> list[int]:
    """Return `bits` with floor(ratio * n) of the n that are not fixed, drawn at random, less by `interval`.

    With `enough`, which says of bits whether they hold the budgets, only those that can go down are drawn, and it stops
    at once where they do. See `lower` for `able`.
    """
    if enough is None:
        free = [i for i, each in enumerate(able) if len(each) > 1]
        return lower(bits, [free[i] for i in draw(rng, len(free), ratio)], interval, able)
    movable = [i for i in rng.permutation(len(bits)).tolist() if bits[i] > able[i][0]]
    for i in movable[:num_drawn(len(bits), ratio)]:
        bits = lower(bits, [i], interval, able)
        if enough(bits):
            break
    return list(bits)


def best_candidate(bits: Sequence[int], judge: Callable[[list[int]], float], lam: int,
                   **options) -> tuple[list[int], float]:
    """Return the best of `lam` random lowerings of `bits`, the first of equals, and its score.

    Args:
        bits: of all quantizers.
        judge: returns the score of such a list, smaller is better.
        lam: number of candidates.
        options: of `candidate`.
    """
    best = None
    for _ in range(lam):
        lowered = candidate(bits, **options)
        score = broadcast(judge(lowered))  # of the main process: on GPUs sums may round differently
        if best is None or score < best[1]:
            best = lowered, score
    return best


def gradient_score(model: nn.Module, images: Tensor, labels: Tensor, *, clip: float | None = 5.0, lr: float = 1e-3,
                   beta2: float = 0.999, eps: float = 1e-7) -> float:
    """Return ProQHA's score of a network at its present bits, smaller is better; changes nothing in it.

    It is infinite where the gradient is not finite.

    The original takes one step of Adam and sums (sqrt(v) + eps) * (change of the weight)^2 over all parameters, v being
    the second moment after that step. With the gradient g, its norm clipped, that is sum lr^2 (1 - beta2) g^2 /
    (sqrt(1 - beta2) |g| + eps), about lr^2 sqrt(1 - beta2) times the L1 norm of g: no step is needed.

    Args:
        model: the network; one forward and one backward pass in training mode, its statistics are restored.
        images, labels: the batch, on the model's device.
        clip: largest L2 norm of the gradient, or None.
        lr, beta2, eps: of Adam.

    Raises:
        ValueError: no gradient arrives at any parameter.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with (kept_state(model), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []),
          torch.enable_grad()):
        torch.manual_seed(0)  # all candidates drop the same units
        model.train()
        loss = F.cross_entropy(model(images), labels)
        gradients = _gradients(loss, parameters)
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    scale = 1.0 if clip is None else (clip / (norm + 1e-6)).clamp(max=1.0)
    root = math.sqrt(1 - beta2)
    terms = [((root * lr * scale * g).square() / (root * (scale * g).abs() + eps)).sum() for g in gradients]
    score = torch.stack(terms).sum().item()
    return score if math.isfinite(score) else math.inf


def _gradients(loss, parameters):
    """Return the gradients that there are, in float64."""
    try:
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    except RuntimeError as error:
        found, reason = [], f' ({error})'.partition('\n')[0]
    else:
        reason = ''
    if all(gradient is None for gradient in found):
        raise ValueError(f'no gradient arrives at any of the {len(parameters)} trainable parameters{reason}, and the '
                         'progressive search compares gradients: leave out torch.no_grad, detach and reentrant '
                         'checkpointing, unfreeze parameters, or take another searcher')
    return [gradient.double() for gradient in found if gradient is not None]


def balanced_batch(loader, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return (images, labels) on the CPU: about equally many from each class, as the loader serves and augments them.

    Several processes get the same batch.

    Args:
        loader: of (images, labels), with `set_epoch`; one epoch is the same however often it is served. Where it
            shuffles, only the first images of an epoch are looked at.
        size: number of images; all of them where there are not as many.
        seed: of choice and augmentation.
    """
    return broadcast(_balanced_batch(loader, size, seed) if is_main() else None)


def _balanced_batch(loader, size, seed):
    loader.set_epoch(derived_seed(seed, 'balanced batch'))
    shuffled = getattr(getattr(loader, 'batches', None), 'shuffle', False)
    labels = []
    for _, served in loader:
        labels += served.tolist()
        if shuffled and len(labels) >= POOL * size:
            break
    rng = np.random.default_rng(derived_seed(seed, 'balanced choice'))
    return served_at(loader, sorted(balanced(labels, size, rng)))


def balanced(labels: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """Draw at most `size` positions in `labels`: first one of every class, then a second one of every class ..."""
    seen, rounds = {}, {}
    for place, i in enumerate(rng.permutation(len(labels)).tolist()):
        number = seen[labels[i]] = seen.get(labels[i], -1) + 1
        rounds[i] = number, place
    return sorted(rounds, key=rounds.get)[:size]


def served_at(loader, picked: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (images, labels), on the CPU, at these positions in what a loader serves, in their order."""
    place, found, start = {index: position for position, index in enumerate(picked)}, [None] * len(picked), 0
    for images, labels in loader:
        for index in place.keys() & range(start, start + len(labels)):
            found[place[index]] = images[index - start].cpu(), labels[index - start].cpu()
        start += len(labels)
        if None not in found:
            break
    return tuple(map(torch.stack, zip(*found, strict=True)))
