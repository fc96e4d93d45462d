"""Weighted points on a line, and how they are best divided into k clusters.

Sorted once, clusters of one-dimensional data are intervals, and the mean and squared error of an interval are
differences of prefix sums. An iteration of Lloyd then costs O(k log n) instead of O(k n).
"""

import numpy as np
from torch import Tensor

POINTS = 32, 2048, 8192  # a summary has so many for each cluster, at least and at most so many
MERGED = 0.5  # of the merges that are left, the cheapest share that is looked at at once
CANDIDATES = 8, 4096  # on each side of an edge, and the square of their number that all clusters share
LAST_REACH, GAIN = 0.5, 0.01  # widths of a cluster that edges move by at last; a share of the error that counts


class Line:
    """Distinct weighted points in ascending order. A cluster is an interval of them; k clusters are k + 1 edges."""

    def __init__(self, values: np.ndarray, counts: np.ndarray):
        self.values, self.counts = values, counts
        self._sums = np.zeros((3, len(values) + 1))  # prefix sums of counts, values and squares
        for row, terms in zip(self._sums, (counts, counts * values, counts * values**2), strict=True):
            np.cumsum(terms, out=row[1:])

    @classmethod
    def from_sample(cls, sample: Tensor, counts: Tensor | None = None) -> 'Line':
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

    def summary(self, size: int) -> 'Line':
        """At most `size` points, each the mean of neighbours: single values at both ends, more towards the median.

        The number of values beyond a point grows with the cube of its distance from the end: the optimal resolution
        for the tails of a Laplace distribution (density to the power 1/3, Panter and Dite 1951).
        """
        n = len(self.values)
        if n <= size:
            return self
        tail = (n / 2 * np.linspace(0, 1, size // 2) ** 3).astype(np.int64)
        edges = np.unique(np.concatenate([tail, n - tail]))
        return Line(self.means(edges), np.diff(self._sums[0, edges]))

    def means(self, edges: np.ndarray) -> np.ndarray:
        """Return the mean (k,) of each cluster, from sums of all that lies before."""
        count, total, _ = np.diff(self._sums[:, edges])
        return np.clip(total / count, self.values[edges[:-1]], self.values[edges[1:] - 1])  # the sums are rounded

    def exact_means(self, edges: np.ndarray) -> np.ndarray:
        """The means from the points themselves: prefix sums lose small values that come after large ones."""
        return np.add.reduceat(self.counts * self.values, edges[:-1]) / np.diff(self._sums[0, edges])

    def errors(self, edges: np.ndarray) -> np.ndarray:
        """Return the squared error (k,) of each cluster around its mean."""
        return _errors(np.diff(self._sums[:, edges]))

    # ---- Lloyd

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

    # ---- nearly the optimum

    def best_centroids(self, k: int) -> np.ndarray:
        """The means of k < n clusters whose error is nearly the least: within 1 % of it for weights of networks.

        Neighbours of a summary are merged until there are k clusters. Then dynamic programming finds the best edges
        among candidates around the present ones, first wide apart, then closer and closer, each as long as it helps.
        """
        per_cluster, least, most = POINTS
        line = self.summary(min(max(per_cluster * k, least), most))
        edges = line._merged(k)
        error, half = line.errors(edges).sum(), max(CANDIDATES[0], int((CANDIDATES[1] / k) ** 0.5))
        for reach in np.geomspace(half / 4, LAST_REACH, 1 + int(np.ceil(np.log2(half / 4 / LAST_REACH)))):
            gain = 1.0
            while gain > GAIN:
                edges = line._moved(edges, reach, half)
                before, error = error, line.errors(edges).sum()
                gain = 1 - error / before if before > 0 else 0
        return line.means(edges)

    def _merged(self, k: int) -> np.ndarray:
        """The edges of k clusters of neighbours, those merged first that add least to the error (Ward 1963).

        At once go pairs that are cheaper than both their neighbours, of the cheapest share of all.
        """
        edges = np.arange(len(self.values) + 1)
        while (left := len(edges) - 1 - k) > 0:
            count, total, _ = np.diff(self._sums[:, edges])
            cost = count[1:] * count[:-1] / (count[1:] + count[:-1]) * np.diff(total / count) ** 2
            rank = int(MERGED * left)
            beside = np.concatenate([[np.inf], cost, [np.inf]])
            cheap = (cost <= np.partition(cost, rank)[rank]) & (cost <= beside[:-2]) & (cost < beside[2:])
            found = np.flatnonzero(cheap)[:left]
            edges = np.delete(edges, (found if len(found) else cost.argmin()) + 1)
        return edges

    def _moved(self, edges: np.ndarray, reach: float, half: int) -> np.ndarray:
        """The best edges of all whose i-th lies between the old ones i - reach and i + reach.

        There are 2 * half + 1 candidates for each, evenly spaced between old edges, which are among them.
        """
        k = len(edges) - 1
        at = np.arange(1, k)[:, None] + np.linspace(-reach, reach, 2 * half + 1)
        near = np.interp(at, np.arange(k + 1), edges).round().astype(np.int64)  # (edges, candidates)
        sums, chosen, columns = self._sums[:, near], [], np.arange(near.shape[1])
        best = _errors(sums[:, 0] - self._sums[:, :1])  # of all clusters before each candidate
        for errors in _errors(sums[:, 1:, :, None] - sums[:, :-1, None]):  # (its end, its beginning) of a cluster
            errors += best
            chosen.append(errors.argmin(1))
            best = errors[columns, chosen[-1]]
        path = [(best + _errors(self._sums[:, -1:] - sums[:, -1])).argmin()]
        for choice in reversed(chosen):
            path.append(choice[path[-1]])
        return np.concatenate([[0], near[np.arange(k - 1), path[::-1]], [len(self.values)]])


def _is_first(ordered: np.ndarray) -> np.ndarray:
    """Which entries of an ascending array are the first of their value."""
    return np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]


def _errors(sums: np.ndarray) -> np.ndarray:
    """The squared error of intervals with these sums of counts, values and squares; infinite without points."""
    count, total, square = sums
    some = count > 0
    return np.where(some, np.maximum(square - total * total / np.where(some, count, 1), 0), np.inf)
