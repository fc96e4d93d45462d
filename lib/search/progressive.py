"""Progressive search (ProQHA): from many bits downwards, always the least harmful of some random lowerings."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from lib.network.other_state import kept_state
from lib.qat.parts import find_parts
from lib.runtime.distributed import broadcast, is_main
from lib.runtime.seeds import derived_seed
from lib.search.searcher import Searcher

FLOOR = 2  # fewest bits that the search goes down to
POOL = 4  # batches of a shuffled epoch among whose images a balanced one is chosen
TRIALS = 5  # random courses of a search that tell how many steps it takes


def num_drawn(count: int, ratio: float) -> int:
    """Returns floor(ratio * count).

    Raises:
        ValueError: that is none, or the ratio is above 1.
    """
    drawn = math.floor(ratio * count + 1e-9)  # 0.29 * 100 is a little below 29
    if not 0 < drawn <= count:
        raise ValueError(f'a ratio of {ratio:g} lowers {drawn} of {count} quantizers at a time: expected at least '
                         f'{1 / count:.4g}, and at most 1')
    return drawn


def draw(rng: np.random.Generator, count: int, ratio: float) -> list[int]:
    """Draws floor(ratio * count) different numbers below `count`, in random order; ValueError as `num_drawn`."""
    return rng.permutation(count)[:num_drawn(count, ratio)].tolist()


def first_lists(model: nn.Module, shape: Sequence[int], k_bits: int, pre_k_bits: int, ratio: float, seed: int) -> dict:
    """Return the bit lists of a network that begins at `k_bits`, a number or a list each.

    Args:
        model: the float network.
        shape: (C, H, W) of an image.
        k_bits: of all quantizers, or below a `ratio` of 1 of this random fraction of them.
        pre_k_bits: of the others.
        ratio: above 0, at most 1.
        seed: of the choice.
    """
    if ratio == 1:
        return {'layer_wbit': k_bits, 'layer_abit': k_bits}
    parts = find_parts(model, shape)
    bits = [pre_k_bits] * (2 * len(parts))
    for i in draw(np.random.default_rng(derived_seed(seed, 'first bits')), len(bits), ratio):
        bits[i] = k_bits
    pairs = [bits[2 * i:2 * i + 2][::1 if part.activation_first else -1] for i, part in enumerate(parts)]
    return {'layer_wbit': [w_bit for _, w_bit in pairs], 'layer_abit': [a_bit for a_bit, _ in pairs]}


def lower(bits: Sequence[int], chosen: Sequence[int], interval: int, floor: int = FLOOR) -> list[int]:
    """Returns the bits, those at the `chosen` positions less by `interval`; none goes below `floor` or up."""
    lowered = list(bits)
    for i in chosen:
        lowered[i] = min(lowered[i], max(floor, lowered[i] - interval))
    return lowered


class Candidate(NamedTuple):
    """A list of bits, what drew it lower, and its score, smaller is better."""

    bits: list
    chosen: list
    score: float


def best_candidate(bits, judge, *, rng, lam, ratio, interval):
    """Returns the best of `lam` random lowerings of `bits`, the first of equals, as a `Candidate`.

    Args:
        bits: a list of bits.
        judge: function of a list of bits that returns its score, smaller is better.
        rng: numpy generator.
        lam: number of candidates.
        ratio: fraction of the entries that a candidate lowers.
        interval: by how many bits.
    """
    best = None
    for _ in range(lam):
        chosen = draw(rng, len(bits), ratio)
        lowered = lower(bits, chosen, interval)
        score = broadcast(judge(lowered))  # of the main process: on GPUs sums may round differently
        if best is None or score < best.score:
            best = Candidate(lowered, chosen, score)
    return best


def gradient_score(model, images, labels, *, clip=5.0, lr=1e-3, beta2=0.999, eps=1e-7) -> float:
    """Returns ProQHA's score of a network at its present bits, smaller is better; changes nothing in it.

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
    """Returns the gradients that there are, in float64."""
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


def balanced_batch(loader, size, seed=0):
    """Returns (images, labels) on the CPU: about equally many from each class, as the loader serves and augments them.

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
    for _, some in loader:
        labels += some.tolist()
        if shuffled and len(labels) >= POOL * size:
            break
    picked = _balanced(labels, size, np.random.default_rng(derived_seed(seed, 'balanced choice')))
    parts, start = [], 0
    for images, some in loader:
        here = [i - start for i in picked if start <= i < start + len(some)]
        parts.append((images[here].cpu(), some[here].cpu()))
        start += len(some)
        if start > picked[-1]:
            break
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _balanced(labels, size, rng):
    """Returns `size` positions in ascending order: first one of every class, then a second one of every class ..."""
    seen, rounds = {}, {}
    for place, i in enumerate(rng.permutation(len(labels)).tolist()):
        number = seen[labels[i]] = seen.get(labels[i], -1) + 1
        rounds[i] = number, place
    return sorted(sorted(rounds, key=rounds.get)[:size])


class ProgressiveSearcher(Searcher):
    """Starts at the most bits; in each step the best of `lam` random lowerings becomes the state, within the budgets.

    A candidate lowers floor(ratio * n) of the n free bits of weights and (pairs) inputs, in random order, and stops at
    once when the budgets hold. Where fewer than these can still go down, it lowers those. Proposals are on the way
    to the budgets, so most exceed them. After the step that holds them `propose` returns None.
    """

    name = 'progressive'

    within_budget = False

    def __init__(self, space, seed=0, *, lam=10, ratio=0.5, interval=1, score='gradient_norm'):
        """Starts at `space.max_bit`.

        Args:
            space: budgets must be reachable with at least two bits everywhere.
            seed: of all candidates.
            lam: candidates per step.
            ratio: fraction of the bits that a candidate lowers.
            interval: by how many.
            score: what `observe` is told.

        Raises:
            ValueError: lam or interval is below 1, the ratio lowers nothing, or the budgets cannot be held.
        """
        if lam < 1 or interval < 1:
            raise ValueError(f'lam is {lam}, interval {interval}: expected at least 1 of each')
        if not space.free:
            raise ValueError('the progressive search has nothing to lower: all layers are fixed')
        self.floor = max(FLOOR, space.min_bit)
        super().__init__(replace(space, min_bit=self.floor))
        self.score, self.lam, self.interval = score, lam, interval
        self.rng = np.random.default_rng(seed)
        self.state = self.space.uniform(space.max_bit)
        self._places = [(layer, side) for layer in space.free for side in range(1 + space.pairs)]
        self._count = num_drawn(len(self._places), ratio)
        self._waiting, self._judged = [], []

    @classmethod
    def affordable(cls, space, seed, evaluations, **options):
        """Returns the largest lam with which the search evaluates at most about so many strategies; at least 1."""
        steps = 1
        for trial in range(TRIALS):
            search, taken = cls(space, derived_seed(seed, 'course', trial), **{**options, 'lam': 1}), 0
            while (strategy := search.propose()) is not None:
                search.observe(strategy, 0.0)
                taken += 1
            steps = max(steps, taken)
        return max(1, evaluations // steps)

    def propose(self):
        if not self._waiting:
            lowest = all(self._bits(self.state, place) <= self.floor for place in self._places)
            if lowest or self.space.holds(self.state):
                return None
            self._waiting, self._judged = [self._candidate() for _ in range(self.lam)], []
        return self._waiting[0]

    def observe(self, strategy, score):
        """Takes the score of the candidate that was proposed last; the last one of a step decides it."""
        super().observe(strategy, score)
        self._judged.append((score, self._waiting.pop(0)))
        if not self._waiting:
            self.state = max(self._judged, key=lambda judged: judged[0])[1]

    def best(self):
        """Returns the state; before the end of the search what the final wall makes of it."""
        return self.space.fit(self.state)

    def _candidate(self):
        bits = [self._bits(self.state, place) for place in self._places]
        able = [i for i in self.rng.permutation(len(bits)).tolist() if bits[i] > self.floor]
        strategy = self.state
        for i in able[:self._count]:
            strategy = self._with(strategy, self._places[i], lower(bits, [i], self.interval, self.floor)[i])
            if self.space.holds(strategy):
                break
        return strategy

    def _bits(self, strategy, place):
        layer, side = place
        return strategy[layer][side] if self.space.pairs else strategy[layer]

    def _with(self, strategy, place, bits):
        """Returns a copy of the strategy with other bits in one place."""
        layer, side = place
        changed = [list(entry) if self.space.pairs else entry for entry in strategy]
        if self.space.pairs:
            changed[layer][side] = bits
        else:
            changed[layer] = bits
        return changed
