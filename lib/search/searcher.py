"""What every searcher is: it proposes strategies and is told how good they are."""

from collections.abc import Mapping, Sequence

from lib.env.space import Space


class Searcher:
    """Base of all searchers. The loop is::

        while evaluations are left and (strategy := searcher.propose()) is not None:
            searcher.observe(strategy, reward of strategy)
        strategy = searcher.best()

    What is proposed holds the budgets. A searcher is a pure function of its space, its seed and the rewards it is told:
    repeating them brings a search that was killed to where it was.

    Attributes:
        name: what users call it.
        space: the strategies it chooses among.
        told: what of an `Outcome` it is told as the reward.
        history: [(strategy, reward)] of what it was told.
    """

    name = ''
    told = 'reward'

    def __init__(self, space: Space):
        self.space, self.history = space, []

    def propose(self) -> list | None:
        """Return the strategy to evaluate next, or None where nothing is left to try."""
        raise NotImplementedError

    def observe(self, strategy: list, reward: float) -> None:
        """Take the reward of the strategy that was proposed last, larger is better."""
        self.history.append((strategy, reward))

    def best(self) -> list:
        """Return the strategy to use: of those observed the one with the highest reward, the earliest of equals."""
        if not self.history:
            raise ValueError(f'the search by {self.name} has evaluated no strategy yet')
        return max(self.history, key=lambda entry: entry[1])[0]


    def rank(self, record: Mapping) -> float | tuple:
        """Return what tells how good the record of an episode is: the greater the better."""
        return record['reward']


class OneStrategy(Searcher):
    """Base of the searchers that propose one `strategy`, found without evaluating any."""

    strategy = None

    def propose(self) -> list | None:
        return None if self.history else self.strategy

    def best(self) -> list:
        return self.strategy


def replay(searcher: Searcher, history: Sequence[tuple[list, float]]) -> None:
    """Bring a new searcher to where an earlier one was that made `history`, [(strategy, reward)].

    Raises:
        ValueError: the searcher proposes something else: the record is of another search.
    """
    for number, (strategy, reward) in enumerate(history):
        proposed = searcher.propose()
        if proposed != strategy:
            raise ValueError(f'evaluation {number} of the record was of {strategy}, this search by {searcher.name} '
                             f'proposes {proposed}: the record is of another search, or of another version')
        searcher.observe(strategy, reward)
