"""K-means quantization of weights: every weight becomes one of at most 2^bits centroids.

A weight tensor is one-dimensional data, whose best clusters are found almost exactly (`Line`).
"""

from collections.abc import Mapping
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

from lib.quantize.codebook import CentroidTrainer, Codebook
from lib.quantize.line import Line

__all__ = ['CentroidTrainer', 'Codebook', 'CodebookCache', 'fit_codebook']

LEAST_IMPORTANCE = 1e-6  # of the mean; every weight counts a little, so that no cluster counts nothing


def fit_codebook(weight: Tensor, bits: int, *, max_iter: int = 3, is_pruned: bool = False,
                 importance: Tensor | None = None) -> Codebook:
    """Cluster `weight` into at most min(2^bits, n) centroids, with a squared error close to the least that there is.

    The best clusters of a summary of the weights are where at most `max_iter` iterations of Lloyd on all of them begin.
    Centroids are the exact means of their members. Where there are no more distinct values than clusters, the values
    are the centroids. The same weights always give the same codebook.

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
    line = Line.from_sample(*(part if kept is None else part[kept] for part in (weight, *_counts(weight, importance))))
    k = 2**bits
    if len(line.values) <= k:
        edges = np.arange(len(line.values) + 1)
    else:
        edges = line.lloyd(line.best_centroids(k), k, max_iter)
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


class CodebookCache:
    """The codebooks of fixed float weights, each fitted once; at most one for every (layer, bits).

    The search clusters the same float weights in every episode. `name` stands for the weight: other weights need
    another cache. `importance` has what weights count, of the layers that are in it.
    """

    def __init__(self, *, max_iter: int = 3, is_pruned: bool = False, importance: Mapping[str, Tensor] | None = None):
        self._options = {'max_iter': max_iter, 'is_pruned': is_pruned}
        self._importance = importance or {}
        self._codebooks: dict[tuple[str, int], Codebook] = {}

    def get(self, name: str, weight: Tensor, bits: int) -> Codebook:
        """Return the codebook of a weight, computed once for (name, bits); it is shared, so do not change it."""
        key = name, bits
        if key not in self._codebooks:
            self._codebooks[key] = self.find(name, weight, bits)
        return self._codebooks[key]

    def find(self, name: str, weight: Tensor, bits: int) -> Codebook:
        """Return the codebook of fixed weights, which `get` then keeps; for subclasses that find other ones."""
        return fit_codebook(weight, bits, importance=self._importance.get(name), **self._options)

    def fit(self, weight: Tensor, bits: int) -> Codebook:
        """Return the codebook of other weights than the fixed ones, which all count the same."""
        return fit_codebook(weight, bits, **self._options)
