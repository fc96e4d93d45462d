"""K-means quantization of weights: every weight becomes one of at most 2^bits centroids.

A weight tensor is one-dimensional data: sorted once, its clusters are intervals, and the mean and squared error of an
interval are differences of prefix sums. An iteration of Lloyd then costs O(k log n) instead of O(k n).
"""

from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from lib.quantize.codebook import CentroidTrainer, Codebook

__all__ = ['CentroidTrainer', 'Codebook', 'CodebookCache', 'fit_codebook']

SEED_POINTS = 2048  # seeds are drawn from at most this many weighted points
REFINE_POINTS = 8192  # and refined on these, before the iterations on all the weights
REFINE_ROUNDS, REFINE_ITERATIONS = 12, 10
LEAST_IMPORTANCE = 1e-6  # of the mean; every weight counts a little, so that no cluster counts nothing


def fit_codebook(weight: Tensor, bits: int, *, max_iter: int = 3, is_pruned: bool = False, seed: int = 0,
                 importance: Tensor | None = None) -> Codebook:
    """Cluster `weight` into at most min(2^bits, n) centroids by K-means, from one initialization.

    Greedy k-means++ seeds are drawn from a summary of the weights and refined on it; then come at most `max_iter`
    iterations on all of them. Centroids are the exact means of their members. Where there are no more distinct values
    than clusters, the values are the centroids. The same weights and seed always give the same codebook.

    Args:
        weight: any shape, dtype and device; must be finite.
        bits: 1..8.
        max_iter: iterations of Lloyd on all the weights (3 in the search, 50 in fine-tuning).
        is_pruned: zeros stay zero and get no centroid.
        importance: what the squared error of each weight counts, at least 0, of a shape that broadcasts to that of the
            weight; what is below a millionth of the mean counts that much. None, or all 0: all count the same.

    Raises:
        ValueError: bits outside 1..8, max_iter below 1, an empty tensor, weights that are not finite, or importances
            that are negative, not finite or of another shape.
    """
    if not isinstance(bits, Integral) or not 1 <= bits <= 8:
        raise ValueError(f'bits is {bits!r}; K-means quantization needs 1..8')
    if max_iter < 1:
        raise ValueError(f'max_iter is {max_iter!r}; expected at least 1')
    if weight.numel() == 0:
        raise ValueError('cannot cluster an empty weight tensor')
    weight = weight.detach().contiguous()
    weight = weight if weight.dtype == torch.float64 else weight.float()  # numpy has no bfloat16
    kept = weight != 0 if is_pruned else None
    line = _Line.from_sample(*(part if kept is None else part[kept] for part in (weight, *_counts(weight, importance))))
    k = 2**bits
    if len(line.values) <= k:
        edges = np.arange(len(line.values) + 1)
    else:
        edges = line.lloyd(_seed_centroids(line, k, seed), k, max_iter)
    first_values = torch.from_numpy(line.values[edges[1:-1]]).to(weight)  # of every cluster but the first
    labels = torch.bucketize(weight, first_values, right=True, out_int32=True).to(torch.uint8)
    centroids = torch.from_numpy(line.exact_means(edges)).float().to(weight.device)
    return Codebook(centroids, labels if kept is None else labels * kept, kept)


def _counts(weight: Tensor, importance: Tensor | None) -> list[Tensor]:
    """[what each weight counts, float64 of a mean of 1], or [] where all count the same."""
    if importance is None:
        return []
    try:
        counts = importance.detach().double().expand(weight.shape).contiguous()
    except RuntimeError:
        raise ValueError(f'importance is {tuple(importance.shape)} of a weight {tuple(weight.shape)}: expected its '
                         'shape, or one that broadcasts to it') from None
    least, most = counts.min(), counts.max()
    if not (least >= 0 and torch.isfinite(most)):
        raise ValueError(f'importance goes from {least:g} to {most:g}: expected finite numbers of at least 0')
    return [(counts / (counts / most).mean() / most).clamp(min=LEAST_IMPORTANCE)] if most > 0 else []


class _Line:
    """Distinct weighted points in ascending order. A cluster is an interval of them; k clusters are k + 1 edges."""

    def __init__(self, values: np.ndarray, counts: np.ndarray):
        self.values, self.counts = values, counts
        self._sums = np.zeros((3, len(values) + 1))  # prefix sums of counts, values and squares
        for row, terms in zip(self._sums, (counts, counts * values, counts * values**2), strict=True):
            np.cumsum(terms, out=row[1:])

    @classmethod
    def from_sample(cls, sample: Tensor, counts: Tensor | None = None) -> '_Line':
        """The distinct values of a tensor, weighted by how often they occur, or by the sum of their `counts`."""
        ordered = sample.flatten().cpu().numpy()
        order = None if counts is None else np.argsort(ordered)
        ordered = np.sort(ordered) if order is None else ordered[order]
        if not np.isfinite(ordered[[0, -1] if len(ordered) else []]).all():
            raise ValueError(f'cannot cluster weights from {ordered[0]} to {ordered[-1]}: they are not finite')
        starts = np.flatnonzero(_is_first(ordered))
        counts = np.diff(starts, append=len(ordered)) if order is None else \
            np.add.reduceat(counts.flatten().cpu().numpy()[order], starts)
        return cls(ordered[starts].astype(np.float64), counts.astype(np.float64))

    def summary(self, size: int) -> '_Line':
        """At most `size` points, each the mean of neighbours: single values at both ends, more towards the median.

        The number of values beyond a point grows with the cube of its distance from the end: the optimal resolution
        for the tails of a Laplace distribution (density to the power 1/3, Panter and Dite 1951).
        """
        n = len(self.values)
        if n <= size:
            return self
        tail = (n / 2 * np.linspace(0, 1, size // 2) ** 3).astype(np.int64)
        edges = np.unique(np.concatenate([tail, n - tail]))
        return _Line(self.means(edges), np.diff(self._sums[0, edges]))

    def means(self, edges: np.ndarray) -> np.ndarray:
        count, total, _ = np.diff(self._sums[:, edges])
        return np.clip(total / count, self.values[edges[:-1]], self.values[edges[1:] - 1])  # the sums are rounded

    def exact_means(self, edges: np.ndarray) -> np.ndarray:
        """The means from the points themselves: prefix sums lose small values that come after large ones."""
        return np.add.reduceat(self.counts * self.values, edges[:-1]) / np.diff(self._sums[0, edges])

    def errors(self, edges: np.ndarray) -> np.ndarray:
        count, total, square = np.diff(self._sums[:, edges])
        return np.maximum(square - total * total / count, 0)

    def split(self, centroids: np.ndarray, k: int) -> np.ndarray:
        """The edges of k clusters that give every point to the nearest of the ascending `centroids`.

        Where centroids are missing or get no points, the clusters of largest error are divided at their means.
        """
        middles = (centroids[1:] + centroids[:-1]) / 2
        edges = np.concatenate([[0], self.values.searchsorted(middles), [len(self.values)]])
        edges = edges[_is_first(edges)]
        while len(edges) <= k:
            worst = np.where(np.diff(edges) > 1, self.errors(edges), -1).argmax()
            middle = self.values.searchsorted(self.means(edges)[worst])
            edges = np.insert(edges, worst + 1, np.clip(middle, edges[worst] + 1, edges[worst + 1] - 1))
        return edges

    def lloyd(self, centroids: np.ndarray, k: int, iterations: int) -> np.ndarray:
        """The edges of k clusters after at most `iterations` (at least one) iterations of Lloyd from `centroids`."""
        edges = self.split(centroids, k)
        for _ in range(iterations - 1):
            before, edges = edges, self.split(self.means(edges), k)
            if np.array_equal(before, edges):
                break
        return edges


def _is_first(ordered: np.ndarray) -> np.ndarray:
    """Which entries of an ascending array are the first of their value."""
    return np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]


def _seed_centroids(line: _Line, k: int, seed: int) -> np.ndarray:
    """The k seeds: drawn from a coarse summary of the line, then improved on a finer one.

    Lloyd moves centroids between dense and sparse regions only slowly, so between its runs a step evens out the
    clusters' errors: in an optimal quantizer all are about the same, and the error of a cluster grows with the cube of
    its width (Panter and Dite 1951). New edges are spaced evenly in the cube roots of the errors, mixed with `share`
    of the present spacing, and more of it after every step that failed.
    """
    drawn = _kmeans_plus_plus(line.summary(SEED_POINTS), k, np.random.default_rng(seed))
    line = line.summary(REFINE_POINTS)
    edges = line.lloyd(drawn, k, REFINE_ITERATIONS)
    errors, share = line.errors(edges), 1.0
    for _ in range(REFINE_ROUNDS):
        widths = np.cbrt(errors)
        position = np.concatenate([[0.0], np.cumsum(widths + share * widths.mean())])
        moved = np.interp(np.linspace(0, position[-1], k + 1), position, edges).round().astype(np.int64)
        if np.array_equal(moved, edges):
            break
        moved = line.lloyd(line.means(moved[_is_first(moved)]), k, REFINE_ITERATIONS)
        moved_errors = line.errors(moved)
        if moved_errors.sum() < errors.sum():
            edges, errors = moved, moved_errors
        else:
            share *= 3
    return line.means(edges)


def _kmeans_plus_plus(line: _Line, k: int, rng: np.random.Generator) -> np.ndarray:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): every seed is the best of 2 + log k that were drawn."""
    x = line.values - line.values.mean()
    x = (x / np.abs(x).max()).astype(np.float32)
    counts = line.counts.astype(np.float32)
    chosen = [rng.choice(len(x), p=line.counts / line.counts.sum())]
    distance = (x - x[chosen[0]]) ** 2
    for shares in rng.random((k - 1, 2 + int(np.log(k)))):
        potential = np.cumsum(distance * counts)
        candidates = np.minimum(potential.searchsorted(shares * potential[-1], side='right'), len(x) - 1)
        closer = np.minimum((x - x[candidates, None]) ** 2, distance)  # (trials, points)
        best = np.argmin(closer @ counts)
        chosen.append(candidates[best])
        distance = closer[best]
    return line.values[np.unique(chosen)]


class CodebookCache:
    """The codebooks of fixed float weights, each fitted once; at most one for every (layer, bits).

    The search clusters the same float weights in every episode. `name` stands for the weight: other weights need
    another cache.
    """

    def __init__(self, *, max_iter: int = 3, is_pruned: bool = False, seed: int = 0):
        self._options = {'max_iter': max_iter, 'is_pruned': is_pruned, 'seed': seed}
        self._codebooks: dict[tuple[str, int], Codebook] = {}

    def get(self, name: str, weight: Tensor, bits: int) -> Codebook:
        """Return `fit_codebook(weight, bits)`, computed once for (name, bits); it is shared, so do not change it."""
        key = name, bits
        if key not in self._codebooks:
            self._codebooks[key] = self.fit(weight, bits)
        return self._codebooks[key]

    def fit(self, weight: Tensor, bits: int) -> Codebook:
        """Return `fit_codebook(weight, bits)` with the options of this cache, for other weights than the fixed ones."""
        return fit_codebook(weight, bits, **self._options)
