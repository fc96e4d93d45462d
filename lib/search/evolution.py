"""Evolutionary search: tournament, crossover, mutation; the oldest dies (Real et al., 1802.01548)."""

from collections import deque

import numpy as np

from lib.env.space import Space
from lib.search.baselines import fill, random_feasible
from lib.search.searcher import Searcher

TRIES = 20  # to make a child that has not been evaluated yet


class EvolutionSearcher(Searcher):
    """Regularized evolution with a hard budget.

    The first `population` strategies are random feasible ones. Then, each time, two parents win a tournament of
    `tournament` members; the child takes every entry from one of them at random, each of its bits moves, with a
    probability of `mutation` / number of bits, to the next or second next that its layer may have, and it is walled and
    filled up to the budgets. It takes the place of the oldest member.
    """

    name = 'evolution'

    def __init__(self, space: Space, seed: int = 0, *, population: int = 12, tournament: int = 4,
                 mutation: float = 2.0):
        super().__init__(space)
        if population < 2 or not 1 <= tournament <= population:
            raise ValueError(f'a population of {population} with tournaments of {tournament}: expected at least 2 '
                             'members, and tournaments of 1 to as many')
        self.rng = np.random.default_rng(seed)
        self.tournament, self.mutation = tournament, mutation
        self.members = deque(maxlen=population)  # (strategy, reward)

    def propose(self) -> list:
        known = [strategy for strategy, _ in self.history]
        for _ in range(TRIES):
            full = len(self.members) == self.members.maxlen
            strategy = self._child() if full else random_feasible(self.space, self.rng)
            if strategy not in known:
                break
        return strategy

    def observe(self, strategy: list, reward: float) -> None:
        super().observe(strategy, reward)
        self.members.append((strategy, reward))

    def _child(self):
        mother, father = self._winner(), self._winner()
        child = [mother[i] if pick else father[i] for i, pick in enumerate(self.rng.random(len(mother)) < 0.5)]
        return fill(self.space, self.space.within_budget(self._mutated(child)), self.rng)

    def _winner(self):
        drawn = self.rng.choice(len(self.members), self.tournament, replace=False)
        return max((self.members[i] for i in sorted(drawn)), key=lambda member: member[1])[0]

    def _mutated(self, strategy):
        space, width = self.space, 1 + self.space.pairs
        rate = self.mutation / (width * len(space.free)) if space.free else 0
        strategy = [list(entry) if space.pairs else [entry] for entry in strategy]
        for layer in space.free:
            for side in range(width):
                if self.rng.random() < rate:
                    able = space.layer_bits[layer].sides[side]
                    moved = able.index(strategy[layer][side]) + self.rng.choice([-2, -1, 1, 2])
                    strategy[layer][side] = able[int(np.clip(moved, 0, len(able) - 1))]
        return strategy if space.pairs else [entry for entry, in strategy]
