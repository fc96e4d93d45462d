"""K-means quantization of weights: every weight becomes one of at most 2^bits centroids, and centroids train as centroids.

A weight tensor is one-dimensional data: sorted once, its clusters are intervals, and the mean and squared error of an interval are
differences of prefix sums. An iteration of Lloyd then costs O(k log n) instead of O(k n).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

SEED_POINTS = 2048  # seeds are drawn from at most this many weighted points
REFINE_POINTS = 8192  # and refined on these, before the iterations on all the weights
REFINE_ROUNDS, REFINE_ITERATIONS = 20, 10


@dataclass
class Codebook:
    """The clusters of one weight tensor.

    Attributes:
        centroids: (k,) float32; ascending when fitted, in any order after training.
        labels: uint8 of the weight's shape, the cluster of every weight.
        kept: bool of that shape, False where a weight is a pruned zero and has no centroid; None where nothing is pruned.
    """

    centroids: Tensor
    labels: Tensor
    kept: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """int32 of the weight's shape: the cluster, or k for a pruned zero."""
        index = self.labels.to(torch.int32)
        return index if self.kept is None else index.masked_fill_(~self.kept, len(self.centroids))

    def decode(self) -> Tensor:
        """Return the weight tensor (float32): every weight its centroid, every pruned weight 0."""
        return _with_zero(self.centroids)[self.index]

    def to(self, device: torch.device | str) -> "Codebook":
        kept = None if self.kept is None else self.kept.to(device)
        return Codebook(self.centroids.to(device), self.labels.to(device), kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return plain tensors for a checkpoint."""
        state = {"centroids": self.centroids, "labels": self.labels}
        return state if self.kept is None else state | {"kept": self.kept}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> "Codebook":
        return cls(state["centroids"], state["labels"], state.get("kept"))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.state_dict().values())


def fit_codebook(weight: Tensor, bits: int, *, max_iter: int = 3, is_pruned: bool = False, seed: int = 0) -> Codebook:
    """Cluster `weight` into at most min(2^bits, n) centroids by K-means, one initialization, deterministic in `seed`.

    Greedy k-means++ seeds are drawn from and refined on a summary of the weights; then come at most `max_iter` iterations on all
    of them. Centroids are the exact means of their members. No more distinct values than clusters: each becomes a centroid.

    Args:
        weight: any shape, dtype and device; must be finite.
        bits: 1..8.
        max_iter: iterations of Lloyd on all the weights (3 in the search, 50 in fine-tuning).
        is_pruned: zeros stay zero and get no centroid.
        seed: of the seeding's own random generator.

    Raises:
        ValueError: bits outside 1..8, max_iter below 1, an empty tensor, or weights that are not finite.
    """
    if bits not in range(1, 9):
        raise ValueError(f"bits is {bits!r}; K-means quantization needs 1..8")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter!r}; expected at least 1")
    if weight.numel() == 0:
        raise ValueError("cannot cluster an empty weight tensor")
    weight = weight.detach()
    weight = weight if weight.dtype == torch.float64 else weight.float()  # numpy has no bfloat16
    kept = weight != 0 if is_pruned else None
    line = _Line.from_sample(weight[kept] if is_pruned else weight)
    if len(line.values) <= 2**bits:
        edges = np.arange(len(line.values) + 1)
    else:
        edges = line.lloyd(_seed_means(line, 2**bits, seed), max_iter)[0]
    first_values = torch.from_numpy(line.values[edges[1:-1]]).to(weight.device)  # of every cluster but the first
    labels = torch.bucketize(weight, first_values, right=True, out_int32=True).to(torch.uint8)
    centroids = torch.from_numpy(line.means(edges)).float().to(weight.device)
    return Codebook(centroids, labels if kept is None else labels * kept, kept)


class _Line:
    """Weighted points on a line in ascending order; a cluster is an interval of them, k clusters are k + 1 edges."""

    def __init__(self, values: np.ndarray, counts: np.ndarray):
        self.values, self.counts = values, counts
        mass = counts * values.astype(np.float64)
        self._sums = [np.concatenate([[0.0], np.cumsum(term)]) for term in (counts, mass, mass * values)]

    @classmethod
    def from_sample(cls, sample: Tensor) -> "_Line":
        """The distinct values of a tensor, weighted by how often they occur."""
        ordered = np.sort(sample.flatten().cpu().numpy())
        if len(ordered) and not np.isfinite(ordered[[0, -1]]).all():
            raise ValueError(f"cannot cluster weights that are not finite (from {ordered[0]} to {ordered[-1]})")
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
        return cls(ordered[starts], np.diff(starts, append=len(ordered)).astype(np.float64))

    def summary(self, size: int) -> "_Line":
        """At most `size` points, each the mean of some neighbours: single values at both ends, ever more towards the median.

        The number of values beyond a point grows with the cube of its distance from the end: the optimal resolution
        for the tails of a Laplace distribution (density to the power 1/3, Panter and Dite 1951).
        """
        n = len(self.values)
        if n <= size:
            return self
        tail = (n / 2 * np.linspace(0, 1, size // 2) ** 3).astype(np.int64)
        edges = np.unique(np.concatenate([tail, n - tail]))
        counts = np.diff(self._sums[0][edges])
        return _Line(self.means(edges), counts)

    def split(self, centroids: np.ndarray) -> np.ndarray:
        """Edges that give every point to the nearest of the ascending `centroids`."""
        middles = (centroids[1:] + centroids[:-1]) / 2
        return np.concatenate([[0], self.values.searchsorted(middles), [len(self.values)]])

    def means(self, edges: np.ndarray) -> np.ndarray:
        count, mass, _ = (np.diff(sums[edges]) for sums in self._sums)
        return mass / count

    def errors(self, edges: np.ndarray) -> np.ndarray:
        """The squared error of every cluster."""
        count, mass, square = (np.diff(sums[edges]) for sums in self._sums)
        return np.maximum(square - mass * mass / count, 0)

    def lloyd(self, centroids: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (edges, their means) after at most `iterations` iterations of Lloyd; empty clusters are dropped."""
        edges = np.empty(0)
        for _ in range(iterations):
            before, edges = edges, self.split(centroids)
            if np.array_equal(before, edges):
                break
            if (edges[1:] == edges[:-1]).any():
                edges = np.unique(edges)
            centroids = self.means(edges)
        return edges, centroids


def _seed_means(line: _Line, k: int, seed: int) -> np.ndarray:
    coarse = line.summary(SEED_POINTS)
    start = _kmeans_plus_plus(coarse.values.astype(np.float64), coarse.counts, k, np.random.default_rng(seed))
    return _level_errors(line.summary(REFINE_POINTS), start, k)


def _kmeans_plus_plus(points: np.ndarray, counts: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): each seed is the best of 2 + log k points drawn by squared distance."""
    x = points - points.mean()
    x = (x / np.abs(x).max()).astype(np.float32)
    counts = counts.astype(np.float32)
    trials = 2 + int(np.log(k))
    chosen = [rng.choice(len(x), p=counts / counts.sum(dtype=np.float64))]
    distance = (x - x[chosen[0]]) ** 2
    while len(chosen) < k:
        potential = np.cumsum(distance * counts)
        drawn = potential.searchsorted(rng.random(trials) * potential[-1], side="right")
        candidates = np.minimum(drawn, len(x) - 1)
        closer = np.minimum((x - x[candidates, None]) ** 2, distance)  # (trials, points)
        best = np.argmin(closer @ counts)
        chosen.append(candidates[best])
        distance = closer[best]
    return points[np.unique(chosen)]


def _level_errors(line: _Line, centroids: np.ndarray, k: int) -> np.ndarray:
    """Refine `centroids` on `line`: Lloyd, and between its runs a step that evens out the clusters' errors.

    Lloyd moves centroids between dense and sparse regions only slowly. In an optimal quantizer all clusters have about the same error,
    and the error of a cluster grows with the cube of its width (Panter and Dite 1951), so new edges are spaced evenly in the
    cube roots of the errors, mixed with `share` of the present spacing: more of it after every step that failed.
    """
    edges, centroids = line.lloyd(centroids, REFINE_ITERATIONS)
    errors = line.errors(edges)
    share = 1.0
    for _ in range(REFINE_ROUNDS):
        widths = np.cbrt(errors)
        widths += share * widths.mean()
        position = np.concatenate([[0.0], np.cumsum(widths)])
        moved = np.interp(np.linspace(0, position[-1], k + 1), position, edges).round().astype(np.int64)
        trial_edges, trial = line.lloyd(line.means(np.unique(moved)), REFINE_ITERATIONS)
        trial_errors = line.errors(trial_edges)
        if trial_errors.sum() < errors.sum():
            edges, centroids, errors = trial_edges, trial, trial_errors
        else:
            share *= 3
    return centroids


def _with_zero(centroids: Tensor) -> Tensor:
    """The table of values that `Codebook.index` points into."""
    return torch.cat([centroids, centroids.new_zeros(1)])


class CodebookCache:
    """The codebooks of fixed float weights, each fitted once; at most one for every (layer, bits).

    The search clusters the same float weights in every episode. `name` stands for the weight: clear the cache when weights change.
    """

    def __init__(self, *, max_iter: int = 3, is_pruned: bool = False, seed: int = 0):
        self._options = {"max_iter": max_iter, "is_pruned": is_pruned, "seed": seed}
        self._codebooks: dict[tuple[str, int], Codebook] = {}

    def get(self, name: str, weight: Tensor, bits: int) -> Codebook:
        """Return `fit_codebook(weight, bits)`, computed at the first call for (name, bits). Shared: do not change it in place."""
        key = name, bits
        if key not in self._codebooks:
            self._codebooks[key] = fit_codebook(weight, bits, **self._options)
        return self._codebooks[key]

    def clear(self):
        self._codebooks.clear()

    @property
    def num_bytes(self) -> int:
        return sum(codebook.num_bytes for codebook in self._codebooks.values())


class CentroidTrainer:
    """Trains centroids in place of weights, exactly as if after every SGD step each cluster took the mean of its weights.

    SGD with momentum and weight decay is linear, so the mean of the stepped weights is the centroid stepped with the *mean* of its
    members' gradients; the optimizer's state is that of the centroids only. Pruned zeros stay zero.

        trainer = CentroidTrainer({name: (layer.weight, codebook), ...})
        optimizer = SGD([*trainer.parameters(), *other_parameters])     # without the weights
        loss.backward(); trainer.before_step(); optimizer.step(); trainer.after_step()

    With loss scaling, unscale the weights' gradients before `before_step`.
    """

    def __init__(self, layers: Mapping[str, tuple[nn.Parameter, Codebook]]):
        self._layers = {name: _ClusteredWeight(weight, codebook) for name, (weight, codebook) in layers.items()}
        self.after_step()

    def parameters(self) -> list[nn.Parameter]:
        """Return the centroids of every layer, for the optimizer."""
        return [layer.centroids for layer in self._layers.values()]

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
        """Return the present codebooks (copies of the centroids, the labels shared)."""
        return {name: layer.codebook() for name, layer in self._layers.items()}


class _ClusteredWeight:
    def __init__(self, weight: nn.Parameter, codebook: Codebook):
        if codebook.labels.shape != weight.shape:
            raise ValueError(f"codebook of shape {tuple(codebook.labels.shape)} for a weight of shape {tuple(weight.shape)}")
        codebook = codebook.to(weight.device)
        self.weight, self.labels, self.kept = weight, codebook.labels, codebook.kept
        self.centroids = nn.Parameter(codebook.centroids.to(weight.dtype, copy=True))
        self.index = codebook.index.flatten()
        self.counts = torch.bincount(self.index, minlength=len(self.centroids) + 1).clamp_(min=1)

    def collect_gradient(self):
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is None:
            self.centroids.grad = None
            return
        # float64: sums over millions of members stay exact enough not to depend on their order.
        sums = torch.zeros(len(self.counts), dtype=torch.float64, device=gradient.device)
        sums.index_add_(0, self.index, gradient.flatten().double())
        self.centroids.grad = (sums / self.counts)[:-1].to(self.centroids.dtype)

    def write_weight(self):
        values = _with_zero(self.centroids).index_select(0, self.index)
        self.weight.copy_(values.view(self.weight.shape))

    def codebook(self) -> Codebook:
        return Codebook(self.centroids.detach().clone().float(), self.labels, self.kept)
