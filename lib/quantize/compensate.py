"""Rounding whose errors are compensated: codes chosen column by column, each error made good in the weights to come.

The problem of a layer is min tr((W - Q) H (W - Q)^T), with H = X^T X / n of its inputs X: not the weights but the
outputs shall stay what they are. Its greedy solution is OBQ's (2208.11580) in the form of GPTQ (2210.17323); grids may
be any, also the centroids of a codebook (GPTVQ, 2402.15319).

Weights are (G, O, d): groups of a convolution, output channels of each, inputs of a channel (C / G * kh * kw). Moments
of the inputs are (G, d, d). Both are float64, or are made it: A^-1 of a layer with many dead inputs needs it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lib.quantize.kmeans import fit_codebook

DAMPING = 0.01  # of the mean of H's diagonal, added to it
BLOCK = 128  # columns whose errors are kept back from the columns after them, which then get all at once
ROUNDS = 3  # of a codebook: labels for its centroids, then the centroids for the labels
SOLVER_STEPS = 40  # at most, of the conjugate gradients that find the centroids

Nearest = Callable[[Tensor], Tensor]


class Moments(NamedTuple):
    """What compensation knows of the inputs of a layer.

    Attributes:
        second: H = X^T X / n, (G, d, d).
        cross: C = X_f^T X / n, (G, d, d), with the inputs X_f that the float network has in the same places; None where
            they are the same.
        mean, float_mean: of X and of X_f, (G, d).
    """

    second: Tensor
    mean: Tensor
    cross: Tensor | None = None
    float_mean: Tensor | None = None


class Problem:
    """A layer's weights and the metric in which they are rounded: A = H + damping mean(diag H) I.

    With `cross` moments the weights to be rounded are no longer W but W (C + damp I) A^-1, with which the outputs for
    the inputs X are nearest to those that W has for X_f (asymmetric calibration; GPTAQ, 2504.02692). Weights of inputs
    that are always 0 become 0.

    Attributes:
        weight: (G, O, d) float64, what is to be rounded.
        metric: A, (G, d, d) float64.
    """

    def __init__(self, weight: Tensor, moments: Moments, damping: float = DAMPING):
        """Take the weights (G, O, d) and moments of a layer.

        Raises:
            ValueError: shapes that do not belong together, or inputs that are not finite.
        """
        hessian = moments.second.double()
        groups, _, size = weight.shape
        if hessian.shape != (groups, size, size):
            raise ValueError(f'moments of shape {tuple(hessian.shape)} for weights of {tuple(weight.shape)}: expected '
                             f'{(groups, size, size)}')
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        if not diagonal.isfinite().all():
            raise ValueError('the inputs of a layer are not finite: weights cannot be compensated for them')
        damp = damping * diagonal.mean(1)
        damp = torch.where(damp > 0, damp, 1.0)[:, None]  # (G, 1): of a group without inputs, all weights are alike
        self.metric = hessian + torch.diag_embed(damp.expand(-1, size))
        self.weight = weight.double()
        self._upper = None
        if moments.cross is not None:
            target = self.weight @ moments.cross.double() + damp[:, None] * self.weight
            self.weight = torch.linalg.solve(self.metric, target, left=False)
        self.weight = self.weight.masked_fill((diagonal == 0)[:, None], 0.0)

    @property
    def upper(self) -> Tensor:
        """U (G, d, d), upper triangular, with A^-1 = U^T U."""
        if self._upper is None:
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.metric))
            self._upper = torch.linalg.cholesky(inverse, upper=True)
        return self._upper

    def errors(self, quantized: Tensor) -> Tensor:
        """Return (w - q) A (w - q)^T of every output channel, (G, O)."""
        rest = self.weight - quantized
        return ((rest @ self.metric) * rest).sum(2)

    def error(self, quantized: Tensor) -> float:
        """Return tr((W - Q) A (W - Q)^T), summed over the groups."""
        return float(self.errors(quantized).sum())

    def round(self, nearest: Nearest, block: int = BLOCK) -> Tensor:
        """Return Q (G, O, d): every column rounded by `nearest`, (G, O) -> (G, O), its error spread over those to come.

        For j = 0 .. d - 1: q_j = nearest(w_j), e = (w_j - q_j) / U_jj, w_k -= e U_jk for all k > j.
        """
        rest, size = self.weight.transpose(1, 2).clone(memory_format=torch.contiguous_format), self.weight.shape[2]
        upper, diagonal = self.upper, self.upper.diagonal(dim1=1, dim2=2).T[:, :, None]
        quantized = torch.empty_like(rest)
        for start in range(0, size, block):
            stop = min(start + block, size)
            errors = torch.empty_like(rest[:, start:stop])
            for j in range(start, stop):
                column = rest[:, j]
                quantized[:, j] = rounded = nearest(column)
                errors[:, j - start] = error = (column - rounded) / diagonal[j]
                rest[:, j + 1:stop] -= upper[:, j, j + 1:stop, None] * error[:, None]
            rest[:, stop:] -= upper[:, start:stop, stop:].transpose(1, 2) @ errors
        return quantized.transpose(1, 2).contiguous()


def compensate(problem: Problem, nearest: Nearest) -> Tensor:
    """Return weights (G, O, d) on a fixed grid: for each output channel the better of compensated and plain rounding.

    Args:
        nearest: (G, O) -> (G, O), the grid's value nearest to each of the weights of one column, and the same of many
            columns, (G, O, d) -> (G, O, d).
    """
    plain = nearest(problem.weight)
    chosen = problem.round(nearest)
    return torch.where((problem.errors(chosen) < problem.errors(plain))[..., None], chosen, plain)


def compensate_codebook(problem: Problem, bits: int, *, max_iter: int = 50, kept: Tensor | None = None,
                        rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """Choose at most 2^bits centroids and the cluster of every weight.

    The centroids begin as those of K-means in which a weight counts as the moment of its input, H_jj. Then come, in
    turn, labels by `Problem.round` to the nearest centroid, and the best centroids for these labels. The best pair of
    all rounds is the answer, or the K-means itself where no round is better.

    Args:
        bits: 1..8.
        max_iter: of the K-means.
        kept: bool (G, O, d), False where a weight is a pruned zero and stays it; None: nothing is pruned.

    Returns:
        (centroids (k,) float32, ascending; labels uint8 (G, O, d)).
    """
    importance = problem.metric.diagonal(dim1=1, dim2=2)[:, None].expand_as(problem.weight)
    weight = problem.weight if kept is None else problem.weight * kept
    start = fit_codebook(weight.float(), bits, max_iter=max_iter, is_pruned=kept is not None,
                         importance=importance.float())
    centroids = start.centroids.double().sort().values
    best = (problem.error(start.decode().double()), start.centroids, start.labels)
    for _ in range(rounds):
        labels = _labels(problem, centroids, kept)
        centroids = _best_centroids(problem, labels, centroids, kept)
        error = problem.error(_decoded(centroids, labels, kept))
        if error < best[0]:
            best = (error, centroids.float(), labels)
        centroids = centroids.sort().values
    _, centroids, labels = best
    order = centroids.argsort()
    return centroids[order], order.argsort().to(torch.uint8)[labels.long()]


def _labels(problem, centroids, kept) -> Tensor:
    edges = (centroids[1:] + centroids[:-1]) / 2
    masks = None if kept is None else iter(kept.unbind(2))

    def nearest(column):
        values = centroids[torch.bucketize(column.contiguous(), edges)]
        return values if masks is None else values * next(masks)

    return torch.bucketize(problem.round(nearest), edges).to(torch.uint8)


def _decoded(centroids, labels, kept) -> Tensor:
    values = centroids[labels.long()]
    return values if kept is None else values * kept


def _best_centroids(problem, labels, centroids, kept) -> Tensor:
    """Return the c of least tr((W - Z c) A (W - Z c)^T) for the labels Z, by conjugate gradients from `centroids`.

    The linear system Z^T (A Z c - A W) = 0 has an unknown for each centroid; its matrix is never formed. Steps are
    scaled by the diagonal of A, summed over the members of each cluster. One without members stays where it is.
    """
    index, size = labels.long().flatten(), len(centroids)

    def collected(values):  # Z^T
        values = values if kept is None else values * kept
        return values.new_zeros(size).index_add_(0, index, values.flatten())

    diagonal = problem.metric.diagonal(dim1=1, dim2=2)[:, None].expand_as(problem.weight)
    scale = collected(diagonal)
    scale = torch.where(scale > 0, scale, torch.inf)
    residual = collected((problem.weight - _decoded(centroids, labels, kept)) @ problem.metric)
    direction = residual / scale
    slope, found = residual @ direction, centroids.clone()
    first = slope
    for _ in range(min(SOLVER_STEPS, 2 * size)):
        if not slope > 1e-12 * first:
            break
        image = collected(_decoded(direction, labels, kept) @ problem.metric)
        step = slope / (direction @ image)
        found += step * direction
        residual -= step * image
        scaled = residual / scale
        slope, before = residual @ scaled, slope
        direction = scaled + slope / before * direction
    return found
