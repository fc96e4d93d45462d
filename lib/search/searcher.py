"""What every searcher is: it proposes strategies and is told how good they are."""

from lib.search.space import Space


class Searcher:
    """Base of all searchers. The loop is::

        while evaluations are left and (strategy := searcher.propose()) is not None:
            searcher.observe(strategy, score of strategy)
        strategy = searcher.best()

    A searcher is a pure function of its space, its seed and the scores it was told: repeating them brings a search that
    was killed to where it was.

    Attributes:
        name: what users call it.
        score: what `observe` is told, larger is better: 'accuracy' for a reward that rises with it, 'gradient_norm' for
            minus that norm.
        within_budget: whether what it proposes holds the budgets; `best` always does.
    """

    name = ''
    score = 'accuracy'
    within_budget = True

    def __init__(self, space: Space):
        space.check_feasible()
        self.space = space
        self.history = []  # (strategy, score)

    def propose(self) -> list | None:
        """Returns the strategy to evaluate next, or None where nothing is left to try."""
        raise NotImplementedError

    def observe(self, strategy: list, score: float) -> None:
        """Takes the score of the strategy that was proposed last."""
        self.history.append((strategy, score))

    def best(self) -> list:
        """Returns the strategy to use: of those observed the one with the highest score, the earliest of equals."""
        if not self.history:
            raise ValueError(f'the search by {self.name} has evaluated no strategy yet')
        return max(self.history, key=lambda entry: entry[1])[0]
