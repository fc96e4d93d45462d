"""Strategies for one budget after another from the same sensitivities: a Pareto front, or the least that is enough."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib.env.space import Space
from lib.record.files import csv_text, write_text
from lib.record.plots import plot_budget
from lib.record.words import cost_words
from lib.search.allocation import ilp_allocation
from lib.search.bench import SOLVERS
from lib.search.searcher import Searcher
from lib.simulator.cost import bits_of, column

CLOSE = 0.01  # a least cost is found when a budget that is smaller by this share is not enough
COLUMNS = ('budget', 'ratio', 'cost', 'accuracy', 'loss', 'reward', 'episode', 'strategy')


@dataclass(frozen=True)
class Goal:
    """What the budget of a search is, where it is not one: several, or the least that is enough.

    Attributes:
        searcher: name of the one that solves.
        pareto: so many budgets on the first cost, from least to most, evenly in the logarithm.
        accuracy_drop: the accuracy may be so many points below that of the float network, at the least cost.
        train_episode: most evaluations.

    Raises:
        ValueError: the values contradict each other.
    """

    searcher: str
    pareto: int | None = None
    accuracy_drop: float | None = None
    train_episode: int = 600
    screen: int = 0

    def __post_init__(self):
        if not self:
            return
        name = 'accuracy_drop' if self.pareto is None else 'pareto'
        if self.pareto is not None and self.accuracy_drop is not None:
            raise ValueError(f'pareto {self.pareto} and accuracy_drop {self.accuracy_drop:g}: give one of them')
        if self.searcher not in SOLVERS:
            raise ValueError(f'{name} asks for the best strategy under any budget, which searcher {self.searcher} does '
                             f'not know: give one of {", ".join(SOLVERS)} as searcher')
        if self.screen:
            raise ValueError(f'{name} evaluates every strategy, screen {self.screen} does not: leave it out')
        if (self.pareto or 0) > self.train_episode:
            raise ValueError(f'pareto {self.pareto} takes as many evaluations, train_episode {self.train_episode} are '
                             'fewer')

    def __bool__(self):
        return self.pareto is not None or self.accuracy_drop is not None

    def searcher_of(self, searcher: Searcher, lowest: float, float_accuracy: float) -> Searcher:
        """Return the `Searcher` of this goal, from one that solves and the lowest limit of the first budget."""
        if not self:
            return searcher
        if self.pareto is not None:
            return ParetoSearcher(searcher, lowest, self.pareto)
        return DropSearcher(searcher, lowest, float_accuracy - self.accuracy_drop)


def widened(space: Space) -> tuple[Space, float]:
    """Return (the space without a limit on the first cost, the lowest limit that can be held together with the others).

    What the most expensive strategy costs stands for no limit. If the first limit of `space` is a finite number, that
    is the lowest one.
    """
    first, *others = space.constraints
    cost, choices = first.cost, [space.choices(layer) for layer in range(space.num_layers)]
    prices = ([cost.table[layer, w - 1, column(a)].item() for w, a in map(bits_of, entries)]
              for layer, entries in enumerate(choices))
    wide = space.with_constraints([replace(first, limit=cost.total(list(map(max, prices)))), *others])
    if math.isfinite(first.limit):
        return wide, first.limit
    cheapest = ilp_allocation(cost.table, wide) if others and cost.combine == 'sum' else cost.minimum(choices)[1]
    return wide, cost.cost(cheapest)


class BudgetSearcher(Searcher):
    """Base of those that ask a searcher for the best strategy under one budget after another."""

    def __init__(self, searcher: Searcher, lowest: float):
        """Take a searcher that has `under`; its space has the highest limit of the first budget, `lowest` the other."""
        super().__init__(searcher.space)
        self.searcher, self.limits = searcher, (lowest, searcher.space.constraints[0].limit)

    def under(self, limit: float) -> list:
        """Return the best strategy under a limit of the first budget."""
        first, *others = self.space.constraints
        return self.searcher.under(self.space.with_constraints([replace(first, limit=limit), *others]))

    def observe(self, strategy: list, reward: float) -> None:
        super().observe(strategy, reward)
        self.searcher.observe(strategy, reward)


class ParetoSearcher(BudgetSearcher):
    """Proposes a strategy for each of several budgets, from the most to the least, evenly in the logarithm."""

    name = 'pareto'

    def __init__(self, searcher: Searcher, lowest: float, count: int):
        """`count`: budgets; `searcher` and `lowest` as of `BudgetSearcher`."""
        super().__init__(searcher, lowest)
        self.budgets = np.geomspace(*self.limits[::-1], count).tolist()

    def propose(self) -> list | None:
        done = len(self.history)
        return self.under(self.budgets[done]) if done < len(self.budgets) else None


class DropSearcher(BudgetSearcher):
    """Looks for the least cost at which the accuracy is high enough: halves the budgets between two that bracket it.

    The lower end is the lowest budget, or one whose strategy was not good enough; the upper end is what the
    cheapest strategy costs that was. The search ends where they are `CLOSE`.
    """

    name = 'accuracy_drop'
    told = 'accuracy'

    def __init__(self, searcher: Searcher, lowest: float, accuracy: float):
        """`accuracy`: that is enough, in percent; `searcher` and `lowest` as of `BudgetSearcher`."""
        super().__init__(searcher, lowest)
        self.enough, self.ends, self._limit = accuracy - 1e-9, list(self.limits), None

    def propose(self) -> list | None:
        known = {str(strategy): value for strategy, value in self.history}
        while (limit := self._next(known.values())) is not None:
            strategy, self._limit = self.under(limit), limit
            if str(strategy) not in known:
                return strategy
            self._halve(strategy, known[str(strategy)])
        return None

    def _next(self, accuracies):
        """Return the limit to try: half way, in the end the highest if nothing was enough; None: it is found."""
        low, high = self.ends
        if low < high / (1 + CLOSE):
            return (low * high) ** 0.5
        found = max(accuracies, default=-math.inf) >= self.enough
        return None if found or self._limit == self.limits[1] else self.limits[1]

    def observe(self, strategy: list, reward: float) -> None:
        super().observe(strategy, reward)
        self._halve(strategy, reward)

    def _halve(self, strategy, accuracy):
        low, high = self.ends
        if accuracy >= self.enough:
            self.ends = [min(low, cost := self.space.cost.cost(strategy)), min(high, cost)]
        else:
            self.ends = [max(low, self._limit), high]

    def rank(self, record: Mapping) -> tuple:
        holds = record['accuracy'] >= self.enough
        return holds, -record['cost'] if holds else record['accuracy']


def write_front(folder: str | Path, budgets: Sequence[float], history: Sequence[Mapping], cost_name: str,
                float_accuracy: float) -> str:
    """Write `pareto.csv` and `pareto.png` of a search for a Pareto front; return the table as text.

    Args:
        folder: of the run.
        budgets: limits relative to the reference of the cost, in the order of the episodes.
        history: records of the episodes.
        cost_name: of the budgets.
        float_accuracy: in percent.
    """
    rows = sorted(({'budget': budget, **record} for budget, record in zip(budgets, history, strict=True)),
                  key=lambda row: row['budget'])
    write_text(Path(folder) / 'pareto.csv', csv_text(COLUMNS, rows))
    points = [{**row, 'label': f"{row['accuracy']:.2f}", 'group': 'best strategy under each budget'} for row in rows]
    plot_budget(points, Path(folder) / 'pareto.png', float_accuracy, xlabel=cost_words(cost_name))
    return '\n'.join(['budget   ratio    accuracy', *(f"{row['budget']:<8.4f} {row['ratio']:<8.4f} "
                                                      f"{row['accuracy']:.2f}" for row in rows)])
