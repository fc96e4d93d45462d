"""Bits by sensitivity: the least summed sensitivity within the budgets, found greedily or by an integer linear program.

Both take the rise of the loss for a sum over the layers, as the table of a `Sensitivity` has it, and evaluate nothing.
"""

import functools
from collections.abc import Sequence

import numpy as np

from lib.env.space import Space
from lib.search.searcher import OneStrategy
from lib.simulator.budget import pick_one_each, undominated
from lib.simulator.cost import MAX_BIT, bits_of, column

SCALE = 1e4  # of objective and budgets: what differs by less than 1e-6 is the same to HiGHS
CUTS = 50  # so many solutions that exceed a budget by less than that are cut off one by one


def greedy_allocation(table: np.ndarray, space: Space) -> list:
    """Return a strategy that holds every budget, from the most bits down where they matter least.

    Each time the weight bits, the activation bits or both of one layer are lowered, by any number, where the
    sensitivity rises least for what is saved, relative to the limits that are exceeded. (Both, because where a cost
    goes by the wider of the two neither saves alone.) Once all budgets hold, bits are raised, always where the
    sensitivity falls most for what is spent, until nothing that lowers it fits.

    Args:
        table: (L, 8, 8), `table[l, w - 1, a - 1]`; weights-only entries are in the column of 8 bits.
        space: layers, bits and budgets.

    Raises:
        ValueError: a budget is on a cost that is the same for all strategies, or the table is not finite where a layer
            has a choice.
    """
    problem = _Problem(table, space)
    lowering = functools.cache(functools.partial(_lowering, problem))
    picks = [len(choices) - 1 for choices in problem.choices]  # the most bits
    while exceeded := problem.exceeded(picks):
        moves = [lowering(layer, pick, exceeded) for layer, pick in enumerate(picks)]
        if not any(moves):  # costs that are not monotone
            picks = problem.picks(space.within_budget(problem.strategy(picks)))
            break
        _, layer, picks[layer] = min(filter(None, moves))
    return problem.strategy(_raised(problem, picks))


def filled_allocation(table: np.ndarray, space: Space, strategy: list) -> list:
    """Return a strategy that holds the budgets with bits raised as far as they allow, where it pays most first.

    As in the end of `greedy_allocation`, but what does not lower the sensitivity is raised, too, where it fits: the
    budget is used up. Args, errors: those of `greedy_allocation`.
    """
    problem = _Problem(table, space)
    return problem.strategy(_raised(problem, problem.picks(strategy), least=-np.inf))


def _raised(problem, picks, least=0.0):
    """Return the solution with raises, the one that gains most for its cost first, until none fits that gains more."""
    raises = functools.cache(functools.partial(_raises, problem, least=least))
    while True:
        moves = sorted(move for layer, pick in enumerate(picks) for move in raises(layer, pick))
        raised = ([*picks[:layer], pick, *picks[layer + 1:]] for _, layer, pick in moves)
        fitting = next((candidate for candidate in raised if not problem.exceeded(candidate)), None)
        if fitting is None:
            return picks
        picks = fitting


def ilp_allocation(table: np.ndarray, space: Space) -> list:
    """Return the strategy of least summed sensitivity that holds every budget, exactly.

    Minimizes sum_l s_l(k_l) over the choice k_l of each layer, with sum_l c_l(k_l) <= limit for every budget. A cost of
    the most expensive layer only forbids choices. HiGHS solves it; what it takes for equal is checked by
    `Constraint.met_by`, and a solution that fails is cut off.

    Args, errors: those of `greedy_allocation`.
    """
    problem = _Problem(table, space)
    kept = [problem.useful(layer) for layer in range(space.num_layers)]
    cuts = []
    while True:
        picks = _solve(problem, kept, cuts)
        if not problem.exceeded(picks):
            return problem.strategy(picks)
        cuts.append(picks)


class _Problem:
    """The choices of every layer, with sensitivities and costs; a solution is an index into each layer's choices.

    Attributes:
        choices: entries of each layer.
        rises: (choices,) of each layer, its sensitivities.
        costs: of each budget and each layer (choices,).
    """

    def __init__(self, table: np.ndarray, space: Space):
        table, layers = np.asarray(table), range(space.num_layers)
        if table.shape != (space.num_layers, MAX_BIT, MAX_BIT):
            raise ValueError(f'the sensitivity table has shape {table.shape}, expected '
                             f'({space.num_layers}, {MAX_BIT}, {MAX_BIT}): measure it for this network')
        self.space, self.choices = space, [space.choices(layer) for layer in layers]
        self.bits = [np.array([bits_of(entry) for entry in entries]) for entries in self.choices]  # (choices, 2)
        self.rises = [self._cells(table, layer) if layer in space.free else np.zeros(1) for layer in layers]
        self.costs = [[self._cells(budget.cost.table, layer) for layer in layers] for budget in space.constraints]
        self._check()

    def _cells(self, table, layer):
        w_bits, a_bits = self.bits[layer].T
        return table[layer, w_bits - 1, column(a_bits)]

    def _check(self):
        for layer, rises in enumerate(self.rises):
            if not np.isfinite(rises).all():
                entry = self.choices[layer][int(np.argmin(np.isfinite(rises)))]
                raise ValueError(f'the sensitivity of layer {layer} at {entry} is not a finite number: measure it for '
                                 f'{self.space.layer_bits[layer]} bits')
        for budget, costs in zip(self.space.constraints, self.costs, strict=True):
            if all(np.ptp(cells) == 0 for cells in costs):
                what = 'weight and activation bits' if self.space.pairs else 'weight bits'
                raise ValueError(f'{budget.cost.name} is the same for all {what} of this search: a searcher by '
                                 'sensitivity has no use for it; leave this budget out, or take another cost')

    def strategy(self, picks: Sequence[int]) -> list:
        entries = [entries[pick] for entries, pick in zip(self.choices, picks, strict=True)]
        return [entry if isinstance(entry, int) else list(entry) for entry in entries]

    def picks(self, strategy: Sequence) -> list[int]:
        return [entries.index(entry) if len(entries) > 1 else 0
                for entries, entry in zip(self.choices, strategy, strict=True)]

    def exceeded(self, picks: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of the budgets that the solution does not hold, by the sums of `Constraint.met_by`."""
        totals = (budget.cost.total([cells[pick].item() for cells, pick in zip(costs, picks, strict=True)])
                  for budget, costs in zip(self.space.constraints, self.costs, strict=True))
        return tuple(number for number, total in enumerate(totals) if total > self.space.constraints[number].limit)

    def prices(self, number: int, layer: int) -> np.ndarray:
        """Return what the choices of a layer use of a budget, relative to it; of a peak only what is above it.

        What stays float uses its part first.
        """
        budget, cells = self.space.constraints[number], self.costs[number][layer]
        return (cells if budget.cost.combine == 'sum' else np.maximum(cells - budget.limit, 0)) / budget.room

    def moves(self, layer: int, pick: int, sign: int) -> np.ndarray:
        """Return the choices with more (sign 1) or fewer (-1) weight bits, activation bits or both."""
        steps = sign * (self.bits[layer] - self.bits[layer][pick])
        return np.flatnonzero((steps >= 0).all(1) & (steps > 0).any(1))

    def useful(self, layer: int) -> np.ndarray:
        """Return the choices within every peak that no other one equals or beats in sensitivity and all costs."""
        peaks = [number for number, budget in enumerate(self.space.constraints) if budget.cost.combine == 'max']
        sums = [costs[layer] for number, costs in enumerate(self.costs) if number not in peaks]
        allowed = np.flatnonzero(np.all([self.prices(number, layer) == 0 for number in peaks], axis=0)
                                 if peaks else np.ones(len(self.choices[layer])))
        cells = np.stack([self.rises[layer], *sums], 1)[allowed]
        return allowed[::-1][undominated(cells[::-1])][::-1]  # of equals the last


def _lowering(problem, layer, pick, exceeded):
    """Return (rise per saving, layer, choice) of a layer's best lowering, or None if none saves."""
    lower = problem.moves(layer, pick, -1)
    prices = sum(problem.prices(number, layer) for number in exceeded)
    lower = lower[prices[lower] < prices[pick]]
    rises = (problem.rises[layer][lower] - problem.rises[layer][pick]) / (prices[pick] - prices[lower])
    return (rises.min().item(), layer, lower[rises.argmin()].item()) if len(lower) else None


def _raises(problem, layer, pick, least):
    """Return [(minus the gain per cost, layer, choice)] of a layer's raises that gain more than the `least`."""
    higher = problem.moves(layer, pick, 1)
    gains = problem.rises[layer][pick] - problem.rises[layer][higher]
    prices = (problem.prices(number, layer) for number in range(len(problem.costs)))
    spent = sum(np.maximum(cells[higher] - cells[pick], 0) for cells in prices)
    return [(-gain / max(price, 1e-12), layer, new)
            for gain, price, new in zip(gains.tolist(), spent.tolist(), higher.tolist(), strict=True) if gain > least]


def _solve(problem, kept, cuts):
    """Return the solution of least sensitivity among the choices `kept` of each layer, without those in `cuts`."""
    owner = np.repeat(np.arange(len(kept)), [len(indices) for indices in kept])
    choice = np.concatenate(kept)
    rises = np.concatenate([rises[indices] - rises[indices].min()
                            for rises, indices in zip(problem.rises, kept, strict=True)])
    budgets = [np.concatenate([problem.prices(number, layer)[indices] for layer, indices in enumerate(kept)])
               for number in range(len(problem.costs))]
    room = SCALE * (1 - 1e-9 * (len(cuts) >= CUTS))
    rows = [*(SCALE * budget for budget in budgets), *(choice == np.array(picks)[owner] for picks in cuts)]
    upper = [room] * len(budgets) + [len(kept) - 1] * len(cuts)
    try:
        if len(cuts) > CUTS:
            raise RuntimeError(f'{len(cuts)} solutions exceed a budget by rounding')
        picks = pick_one_each(owner, np.array(rows), upper, rises * (SCALE / (rises.max() or 1)))
    except RuntimeError as error:
        raise RuntimeError(f'no exact solution of the allocation was found: {error}; take a budget that is a little '
                           'larger') from error
    return [int(indices[pick]) for indices, pick in zip(kept, picks, strict=True)]


class AllocationSearcher(OneStrategy):
    """Base of the searchers that propose the strategy that an allocation by sensitivity gives."""

    allocate = None

    def __init__(self, space: Space, table: np.ndarray):
        """`table`: see `greedy_allocation`, which also says the errors."""
        super().__init__(space)
        self.table, self.strategy = table, self.allocate(table, space)

    def under(self, space: Space) -> list:
        """Return the strategy of the same layers and bits under other budgets."""
        return self.allocate(self.table, space)


class GreedySearcher(AllocationSearcher):
    """Proposes what `greedy_allocation` finds."""

    name = 'greedy'
    allocate = staticmethod(greedy_allocation)


class ILPSearcher(AllocationSearcher):
    """Proposes what `ilp_allocation` finds."""

    name = 'ilp'
    allocate = staticmethod(ilp_allocation)
