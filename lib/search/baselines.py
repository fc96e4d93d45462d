"""What every search has to beat: the same bits everywhere, and the best of random strategies."""

import numpy as np

from lib.env.space import Space
from lib.search.searcher import OneStrategy, Searcher


class UniformSearcher(OneStrategy):
    """Proposes the most bits that fit the budgets when all layers have the same."""

    name = 'uniform'

    def __init__(self, space: Space):
        super().__init__(space)
        fitting = (space.uniform(bits) for bits in reversed(space.all_bits))
        self.strategy = next(filter(space.holds, fitting), None) or \
            space.within_budget(space.uniform(space.all_bits[0]))


class PolicySearcher(OneStrategy):
    """Proposes a strategy from elsewhere, also where it does not hold the budgets."""

    name = 'policy'

    def __init__(self, space: Space, strategy: list):
        super().__init__(space)
        self.strategy = strategy


class RandomSearcher(Searcher):
    """Proposes random strategies that use up the budgets: uniformly drawn bits, walled, then raised at random."""

    name = 'random'

    def __init__(self, space: Space, seed: int = 0):
        super().__init__(space)
        self.rng = np.random.default_rng(seed)

    def propose(self) -> list:
        return random_feasible(self.space, self.rng)


def random_feasible(space: Space, rng: np.random.Generator) -> list:
    """Return a random strategy within the budgets, to which no bit can be added."""
    return fill(space, space.within_budget(space.random(rng)), rng)


def fill(space: Space, strategy: list, rng: np.random.Generator | None = None) -> list:
    """Return the strategy with bits raised to the next more, round by round, as long as the budgets allow any.

    With a generator the order of a round is random. Without one it is that of HAQ's wall backwards: from the first
    layer to the last, weights before activations; and what is raised then is any number of bits, the fewest that fit,
    so that in the end no bits of a layer can be raised alone.
    """
    strategy = [list(entry) if space.pairs else entry for entry in strategy]
    places = [(layer, side) for layer in space.free for side in range(1 + space.pairs)]
    raised = True
    while raised:  # a table need not be monotone: what did not fit may fit later
        order = range(len(places)) if rng is None else rng.permutation(len(places))
        raised = any([_raise(space, strategy, *places[i], most=None if rng is None else 1) for i in order])
    return strategy


def _raise(space, strategy, layer, side, most) -> bool:
    """Raise the bits of one place, in place, to the first of the next `most` that holds the budgets, if one does."""
    before = strategy[layer]
    bits = before[side] if space.pairs else before
    more = [bit for bit in space.layer_bits[layer].sides[side] if bit > bits > 0]
    for raised in more[:most]:
        strategy[layer] = [raised if i == side else other for i, other in enumerate(before)] if space.pairs else raised
        if space.holds(strategy):
            return True
    strategy[layer] = before
    return False
