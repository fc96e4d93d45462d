"""A Bayesian linear model of the loss, whose best strategy the integer program finds: Thompson sampling."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.linalg import helmert

from lib.env.space import Space
from lib.search.allocation import ilp_allocation
from lib.search.searcher import Searcher
from lib.search.sensitivity import parts_of, table_of
from lib.simulator.cost import MAX_BIT

SPREAD, FLOOR = 0.6, 0.03  # prior standard deviation: relative to the mean, and more, relative to the median of means
SHARED = 0.7  # correlation of the numbers of bits of a layer: who is wrong about one is wrong about all
ALIKE, WIDE = 0.25, 2.0  # without sensitivities: what one bit more leaves of a rise, and the spread in place of SPREAD
NOISES = np.logspace(-4, 1, 26)  # variances of an evaluation's noise, relative to the prior variance of a strategy
USUAL, DECADES = -1.5, 1.0  # mean and standard deviation of their logarithm, before anything is observed
DOUBTS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # variances of theta, relative to those of the prior; of 1, give or take e
TRIES = 6  # draws that look for a strategy that is new, each wider than the one before


class Fit(NamedTuple):
    """What the observations say: `contrasts` (n - 1, theta) @ theta is `targets`, with independent errors.

    Attributes:
        basis: (n - 1, n), what makes contrasts of observations.
        contrasts, targets: in the unit of the sensitivities.
        variances: (n - 1,) of the targets before they are known.
        scale, noise: from what is observed to sensitivities, and the variance of an evaluation in their unit.
        doubt: variance of theta relative to that of the prior.
    """

    basis: np.ndarray
    contrasts: np.ndarray
    targets: np.ndarray
    variances: np.ndarray
    scale: float
    noise: float
    doubt: float


class LinearModel:
    """scale * observed(strategy) = level + sum of theta[layer, bits] over the layers + noise.

    In the linear flow a layer has a theta for the bits of its weights and one for those of its input. The prior of
    theta is Gaussian, in the unit of the sensitivities, its level flat. The scale, the noise and how far the prior is
    to be doubted are those under which the observations are most likely, so that any measure will do that is lower
    where a strategy is better. Given these, the posterior of theta is exact.

    Attributes:
        places: (layer, side, bits) of each theta, side 0: weights, 1: input.
        mean, covariance: of the prior.
    """

    def __init__(self, space: Space, table: np.ndarray | None = None):
        """Begin with the prior.

        Args:
            space: the strategies.
            table: (layers, 8, 8) of a `Sensitivity`, the prior mean; None: all layers are alike.
        """
        bits, spread = np.arange(1, MAX_BIT + 1), SPREAD if table is not None else WIDE
        if table is None:
            table = np.broadcast_to(ALIKE ** bits[:, None] + ALIKE ** bits, (space.num_layers, MAX_BIT, MAX_BIT))
        parts = parts_of(table, space)
        self.space = space
        self.places = [(layer, side, bit) for layer, side in parts for bit in space.layer_bits[layer].sides[side]]
        self.mean = np.concatenate([np.zeros(0), *parts.values()]).clip(0)
        deviations = spread * self.mean + FLOOR * np.median(self.mean[self.mean > 0] if self.mean.any() else [1.0])
        blocks = np.repeat(np.arange(len(parts)), [len(rises) for rises in parts.values()])
        together = np.where(np.eye(len(blocks)), 1, SHARED * (blocks[:, None] == blocks))
        self.covariance = deviations[:, None] * together * deviations
        self._root = deviations[:, None] * np.linalg.cholesky(together)
        self._rows, self._values, self._fit, self._expected = [], [], None, None

    def observe(self, strategy: Sequence, value: float) -> None:
        """Learn what a strategy gave; lower is better."""
        self._rows.append(self._row(strategy))
        self._values.append(value)
        self._fit = self._expected = None

    def _row(self, strategy):
        bits = [entry if self.space.pairs else [entry] for entry in strategy]
        return [bits[layer][side] == bit for layer, side, bit in self.places]

    def expect(self, strategy: Sequence) -> float:
        """Return the summed theta of a strategy by the posterior mean: what it gives but for level, scale and noise."""
        if self._expected is None:
            self._expected = self.posterior()
        return float(np.dot(self._row(strategy), self._expected))

    def posterior(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the posterior mean of theta, or a draw: one from the prior, corrected by what it misses (Matheron)."""
        fit = self.fit()
        doubt = fit.doubt if fit else 1.0
        theta = self.mean
        if rng is not None:
            theta = theta + doubt ** 0.5 * (self._root @ rng.standard_normal(len(theta)))
        if fit is None:
            return theta
        noise = 0.0 if rng is None else fit.noise ** 0.5 * (fit.basis @ rng.standard_normal(len(self._values)))
        missing = fit.targets - fit.contrasts @ theta - noise
        return theta + doubt * self.covariance @ (fit.contrasts.T @ (missing / fit.variances))

    def fit(self) -> Fit | None:
        """Return the `Fit` of all observations; None: there are fewer than two, and the level is unknown."""
        if self._fit is None and len(self._values) > 1:
            self._fit = self._fitted(np.array(self._rows, dtype=float), np.array(self._values))
        return self._fit

    def _fitted(self, rows, values):
        """Return the likeliest `Fit`.

        Contrasts of observations sum to 0, so that the level is not in them. The eigenvectors of their covariance
        make them independent, whatever noise and doubt, and for each the likeliest scale is the root of a quadratic
        equation.
        """
        basis, known = helmert(len(values)), rows @ self.covariance
        spread, vectors = np.linalg.eigh(basis @ known @ rows.T @ basis.T)
        basis = vectors.T @ basis
        contrasts, observed = basis @ rows, basis @ values
        expected, count = contrasts @ self.mean, len(observed)
        usual, found = (known * rows).sum(1).mean(), []
        for ratio, doubt in product(NOISES, DOUBTS):
            variances = doubt * spread.clip(0) + ratio * usual
            square, cross = (observed ** 2 / variances).sum(), (observed * expected / variances).sum()
            scale = (cross + (cross ** 2 + 4 * count * square) ** 0.5) / (2 * square) if square else 0.0
            misses = ((scale * observed - expected) ** 2 / variances + np.log(variances)).sum()
            prior = ((np.log10(ratio) - USUAL) / DECADES) ** 2 + np.log(doubt) ** 2
            found.append((count * np.log(scale or 1) - (misses + prior) / 2,
                          Fit(basis, contrasts, scale * observed, variances, scale, ratio * usual, doubt)))
        return max(found, key=lambda pair: pair[0])[1]

    def solve(self, theta: np.ndarray, space: Space | None = None) -> list:
        """Return the strategy of `space`, by default the model's own, of least summed theta, which is clipped at 0."""
        space = space or self.space
        parts = [{layer: dict.fromkeys(bits.sides[side], 0.0) for layer, bits in enumerate(space.layer_bits)}
                 for side in (0, 1)]
        for (layer, side, bit), rise in zip(self.places, theta.clip(0).tolist(), strict=True):
            parts[side][layer][bit] = rise
        return ilp_allocation(table_of(space, *parts), space)


class BayesSearcher(Searcher):
    """Draws theta from the posterior of a `LinearModel` and proposes the best strategy for it; first that of the prior.

    What it proposes depends on the seed and the history alone. Of the strategies that were evaluated the one to use is
    the best by the posterior mean: the highest reward of many is luck as well, and the others say how much.
    """

    name = 'bayes'

    def __init__(self, space: Space, seed: int = 0, table: np.ndarray | None = None):
        """`table`: see `LinearModel`."""
        super().__init__(space)
        self.model, self.seed = LinearModel(space, table), seed

    def propose(self) -> list:
        return self.propose_batch(1)[0]

    def propose_batch(self, count: int) -> list[list]:
        """Return so many strategies, for processes that evaluate them at the same time: independent draws.

        All are new and differ, as far as a few draws find such. Observe them in this order.
        """
        batch, known = [], {str(strategy) for strategy, _ in self.history}
        for number in range(len(self.history), len(self.history) + count):
            batch.append(self._new(number, known))
            known.add(str(batch[-1]))
        return batch

    def _new(self, number, known):
        """Return the strategy of a draw that is not known, the last one of several if none is."""
        rng, mean = np.random.default_rng([self.seed, number]), self.model.posterior()
        for attempt in range(TRIES):
            width = (number > 0) + attempt / 2
            strategy = self.model.solve(mean + width * (self.model.posterior(rng) - mean))
            if str(strategy) not in known:
                break
        return strategy

    def under(self, space: Space) -> list:
        """Return the strategy of the same layers and bits under other budgets that is best for the posterior mean."""
        return self.model.solve(self.model.posterior(), space)

    def observe(self, strategy: list, reward: float) -> None:
        super().observe(strategy, reward)
        self.model.observe(strategy, -reward)

    def rank(self, record: Mapping) -> tuple:
        return not record.get('diverged'), -self.model.expect(record['strategy'])

    def best(self) -> list:
        super().best()  # says so where there is none
        return min((strategy for strategy, _ in self.history), key=self.model.expect)
