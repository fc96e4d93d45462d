"""Budgets of networks a part of which stays float: against all strategies, one by one."""

from itertools import product

import numpy as np
import pytest

from lib.env.space import Space
from lib.search.allocation import greedy_allocation, ilp_allocation
from lib.simulator.budget import WALLS, Constraint, cheapest, check_feasible, fit
from lib.simulator.cost import CostTable
from tests.spaces import ranged


def table(seed, rest, combine='sum', layers=3):
    cells = np.sort(np.random.default_rng(seed).integers(1, 50, (layers, 8, 8)), axis=1)
    top = cells[:, -1, -1]
    reference = int(top.sum()) + rest if combine == 'sum' else max(int(top.max()), rest)
    return CostTable(cells, reference=reference, name=f'cost{seed}', unit='mJ', combine=combine, rest=rest,
                     rest_names=['odd', 'even'])


def test_the_rest_is_part_of_every_cost():
    cells = table(0, 0)
    for rest in (0, 1000, 2.5):
        cost = cells.derive(rest=rest, reference=cells.reference + rest)
        for strategy in ([1, 1, 1], [8, 3, 2]):
            assert cost.cost(strategy) == cells.cost(strategy) + rest
        assert cost.ratio([8, 8, 8]) == 1
        assert cost.minimum([range(2, 9)] * 3)[0] == cells.minimum([range(2, 9)] * 3)[0] + rest
    peak = table(0, 45, 'max')
    assert peak.cost([1, 1, 1]) == 45 and peak.cost([8, 8, 8]) == max(45, peak.table[:, -1, -1].max())
    with pytest.raises(ValueError, match='stays float costs -1'):
        cells.derive(rest=-1)


@pytest.mark.parametrize('combine', ['sum', 'max'])
@pytest.mark.parametrize('seed', range(6))
def test_walls_and_allocations_against_every_strategy(seed, combine):
    costs = [table(seed, 40), table(seed + 100, 30, combine)]
    everything = [list(strategy) for strategy in product(range(1, 9), repeat=3)]
    sensitivities = np.random.default_rng(seed).random((3, 8, 8))
    for share in (0.3, 0.6, 0.9):
        limits = [np.quantile([cost.cost(strategy) for strategy in everything], share) for cost in costs]
        constraints = [Constraint(cost, limit) for cost, limit in zip(costs, limits, strict=True)]
        held = [s for s in everything if all(constraint.met_by(s) for constraint in constraints)]
        worst = [max(c.cost.cost(s) / c.limit for c in constraints) for s in everything]
        found = cheapest(constraints, [list(range(1, 9))] * 3)
        assert max(c.cost.cost(found) / c.limit for c in constraints) == pytest.approx(min(worst))
        if not held:
            continue
        space = Space(constraints)
        best = min(held, key=lambda s: sum(sensitivities[layer, b - 1, 7] for layer, b in enumerate(s)))
        assert ilp_allocation(sensitivities, space) == best
        for strategy in (*(fit([8, 8, 8], constraints, space.layer_bits, wall=wall) for wall in WALLS),
                         greedy_allocation(sensitivities, space)):
            assert strategy in held


def test_a_budget_that_what_stays_float_exceeds_is_refused_by_name():
    cost = table(0, 500)
    with pytest.raises(ValueError, match=r'--constraint x 0.1 .* stays float costs 500 of \d+ mJ .*: odd, even;'):
        check_feasible([Constraint.of_ratio(cost, 0.1, '--constraint x')], ranged(3))
    lowest = cost.minimum([each.entries() for each in ranged(3)])[0] / cost.reference
    check_feasible([Constraint.of_ratio(cost, lowest + 1e-9)], ranged(3))
    with pytest.raises(ValueError, match='the cheapest strategy of 1..8 bits costs'):
        check_feasible([Constraint.of_ratio(cost, lowest - 1e-3)], ranged(3))
