"""Allocation by sensitivity against all strategies of small spaces, one by one."""

import itertools
from functools import partial

import numpy as np
import pytest

from lib.env.space import Space
from lib.search.allocation import GreedySearcher, ILPSearcher, greedy_allocation, ilp_allocation
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from tests.spaces import drawn, ranged_space


def weights_table(values):
    """A table (L, 8, 8) for the weights-only flow: `values` (L, 8) in the column of 8 bits, nan elsewhere."""
    values = np.asarray(values, dtype=np.float64)
    table = np.full((len(values), 8, 8), np.nan)
    table[:, :, 7] = values
    return table


def sizes(*numbers):
    """Cost of the weights-only flow: bits times numbers of weights."""
    bits = np.arange(1, 9)[None, :, None]
    return CostTable(np.array(numbers)[:, None, None] * bits * np.ones((1, 1, 8), dtype=np.int64),
                     reference=32 * sum(numbers), name='size', unit='bits')


def random_cost(rng, layers, *, monotone=True, combine='sum', integers=False):
    table = rng.integers(1, 1000, (layers, 8, 8)) if integers else rng.random((layers, 8, 8)) + 0.01
    if monotone:
        table = np.sort(np.sort(table, axis=1), axis=2)
    return CostTable(table, reference=float(table.sum()), name=f'{combine} cost', unit='s', combine=combine)


def random_table(rng, layers):
    """Sensitivities that mostly fall with bits, with noise and a few negative ones, as measured ones have."""
    return 4.0 ** -np.arange(1, 9)[None, :, None] * rng.lognormal(size=(layers, 1, 1)) + \
        2.0 ** -np.arange(1, 9)[None, None] * rng.lognormal(size=(layers, 1, 1)) + \
        0.01 * rng.standard_normal((layers, 8, 8))


def value(table, strategy, fixed=()):
    total = 0.0
    for layer, entry in enumerate(strategy):
        w_bit, a_bit = (entry, 8) if isinstance(entry, int) else entry
        total += 0 if layer in fixed else table[layer, w_bit - 1, (8 if a_bit == -1 else a_bit) - 1]
    return total


def best_by_enumeration(table, space):
    """The least summed sensitivity over all strategies that hold the budgets, or None."""
    everything = itertools.product(*(space.choices(layer) for layer in range(space.num_layers)))
    values = [value(table, strategy, space.fixed) for strategy in everything if space.holds(list(strategy))]
    return min(values, default=None)


def median_limit(cost, space, share):
    """A limit that `share` of random strategies hold."""
    rng = np.random.default_rng(0)
    return float(np.quantile([cost.cost(space.random(rng)) for _ in range(200)], share))


def make_space(rng, *, pairs, costs, share=0.3, candidates=False):
    layers = costs[0].num_layers
    if candidates:
        kind = partial(Space, own=dict(enumerate(drawn(rng, layers, pairs=pairs))), pairs=pairs)
        loose = kind([Constraint(cost, np.inf) for cost in costs])
        return kind([Constraint(cost, median_limit(cost, loose, share)) for cost in costs])
    settings = dict(min_bit=1, max_bit=3, pairs=True, fixed={0: [8, -1]}) if pairs else dict(min_bit=2, max_bit=6)
    loose = ranged_space([Constraint(cost, np.inf) for cost in costs], **settings)
    assert layers == loose.num_layers
    return ranged_space([Constraint(cost, median_limit(cost, loose, share)) for cost in costs], **settings)


KINDS = {
    'one budget': lambda rng: [random_cost(rng, 4)],
    'integers': lambda rng: [random_cost(rng, 4, integers=True)],
    'two budgets': lambda rng: [random_cost(rng, 4), random_cost(rng, 4)],
    'a sum and a peak': lambda rng: [random_cost(rng, 4), random_cost(rng, 4, combine='max')],
    'a peak': lambda rng: [random_cost(rng, 4, combine='max')],
    'not monotone': lambda rng: [random_cost(rng, 4, monotone=False), random_cost(rng, 4, monotone=False)],
}


@pytest.mark.parametrize('candidates', [False, True])
@pytest.mark.parametrize('pairs', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_the_ilp_is_as_good_as_the_best_of_all_strategies_and_greedy_is_near(kind, pairs, candidates):
    gaps = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        costs = KINDS[kind](rng)
        try:
            space = make_space(rng, pairs=pairs, costs=costs, candidates=candidates)
        except ValueError:  # two budgets drawn apart need not have a strategy in common
            continue
        table = random_table(rng, 4)
        best = best_by_enumeration(table, space)
        exact, greedy = ilp_allocation(table, space), greedy_allocation(table, space)
        assert space.holds(exact)
        assert space.holds(greedy)
        assert value(table, exact, space.fixed) == pytest.approx(best, abs=1e-9)
        gaps.append(value(table, greedy, space.fixed) - best)
        assert all(strategy[layer] in space.choices(layer) for strategy in (exact, greedy) for layer in range(4))
    assert len(gaps) >= 3
    assert np.median(gaps) <= 0.1  # of values around 1
    assert min(gaps) >= -1e-9


def test_choices_that_are_equal_in_everything():
    table = np.repeat(4.0 ** -np.arange(1, 9)[None, :, None] * np.array([3, 1])[:, None, None], 8, axis=2)
    space = ranged_space([Constraint(sizes(10, 10), 110)], pairs=True)  # activation bits change neither loss nor size
    for allocate in (greedy_allocation, ilp_allocation):
        assert [entry[0] for entry in allocate(table, space)] == [6, 5]


def test_greedy_by_hand():
    # Both layers at 3 bits cost 3 * 10 + 3 * 20 = 90. Going to 2 or 1 bits raises the loss, per 10 saved, by 5 or 3.5
    # in layer 0, by 1 or 2 in layer 1: layer 1 goes to 2 bits (70), and then to 1 bit, at 3 per 10 (50). It cannot
    # come back within 60, so that nothing is raised: a loss of 8, where 2 bits in both layers have 7.
    table = weights_table([[7, 5, 0, 0, 0, 0, 0, 0], [8, 2, 0, 0, 0, 0, 0, 0]])
    cost = sizes(10, 20)
    space = ranged_space([Constraint(cost, 60)], min_bit=1, max_bit=3)
    assert greedy_allocation(table, space) == [3, 1]
    assert ilp_allocation(table, space) == [2, 2]


def test_greedy_raises_what_still_fits():
    # The last lowering, of the large layer to 1 bit, leaves room for the small one, which was lowered before.
    table = weights_table([[1, 0.1, 0, 0, 0, 0, 0, 0], [1000, 30, 0, 0, 0, 0, 0, 0]])
    space = ranged_space([Constraint(sizes(10, 100), 229)], min_bit=1, max_bit=3)
    assert greedy_allocation(table, space) == [2, 2]
    space = ranged_space([Constraint(sizes(10, 100), 130)], min_bit=1, max_bit=3)
    assert greedy_allocation(table, space) == [3, 1]


@pytest.mark.parametrize('seed', range(6))
def test_after_greedy_no_single_raise_that_lowers_the_sensitivity_fits(seed):
    rng = np.random.default_rng(seed)
    space = make_space(rng, pairs=True, costs=[random_cost(rng, 4), random_cost(rng, 4)], share=0.5)
    table = random_table(rng, 4)
    found = greedy_allocation(table, space)
    for layer, which, bits in itertools.product(space.free, (0, 1), range(1, 4)):
        raised = [list(entry) for entry in found]
        if bits > raised[layer][which]:
            raised[layer][which] = bits
            assert not space.holds(raised) or value(table, raised, space.fixed) >= value(table, found, space.fixed)


def test_a_budget_that_is_met_exactly_and_one_that_is_missed_by_a_hair():
    # Relative to the limit the best choices are too expensive by 1e-12, which a solver in floats does not see.
    huge = 10 ** 12
    table = np.zeros((3, 8, 8), dtype=np.int64) + np.array([0, 1, 2, 3, 4, 5, 6, 7])[:, None] * huge
    table[:, 1] += 1
    cost = CostTable(table + 1, reference=8 * huge, name='size', unit='bits')
    space = ranged_space([Constraint(cost, 3 * huge + 4)], min_bit=1, max_bit=4)  # 3 layers at 2 bits cost 3 huge + 6
    sensitivity = weights_table([[3, 1, 0.9, 0.8, 0, 0, 0, 0], [3, 1, 0.95, 0.9, 0, 0, 0, 0],
                                 [3, 1, 0.97, 0.95, 0, 0, 0, 0]])
    best = best_by_enumeration(sensitivity, space)
    for allocate in (ilp_allocation, greedy_allocation):
        found = allocate(sensitivity, space)
        assert space.holds(found)
    assert value(sensitivity, ilp_allocation(sensitivity, space)) == best


def test_fifty_layers_with_all_pairs_of_bits():
    rng = np.random.default_rng(0)
    table = 4.0 ** -np.arange(1, 9)[None, :, None] * rng.lognormal(size=(53, 1, 1)) + \
        3.0 ** -np.arange(1, 9)[None, None] * rng.lognormal(size=(53, 1, 1))
    weights = rng.integers(100, 10000, (53, 1, 1))
    bits = np.arange(1, 9)
    size = CostTable(weights * bits[None, :, None] * np.ones((1, 1, 8), dtype=np.int64),
                     reference=int(32 * weights.sum()), name='size', unit='bits')
    energy = CostTable(rng.random((53, 1, 1)) * np.maximum(bits[:, None], bits)[None], reference=100.0, name='energy',
                       unit='J')
    space = ranged_space([Constraint(cost, cost.cost([[4, 4]] * 53)) for cost in (size, energy)], pairs=True)
    exact, greedy = ilp_allocation(table, space), greedy_allocation(table, space)
    assert space.holds(exact)
    assert space.holds(greedy)
    assert value(table, exact) <= value(table, greedy) < 1.05 * value(table, exact)
    assert value(table, greedy) < value(table, [[4, 4]] * 53)


def test_what_cannot_be_allocated_is_said():
    good = weights_table(np.ones((2, 8)))
    with pytest.raises(ValueError, match='cannot be met.*lowest possible is 0.03125'):
        ilp_allocation(good, ranged_space([Constraint.of_ratio(sizes(10, 20), 0.01)]))
    with pytest.raises(ValueError, match='cannot be met'):
        greedy_allocation(good, ranged_space([Constraint.of_ratio(sizes(10, 20), 0.01)]))
    constant = CostTable(np.full((2, 8, 8), 5), reference=10, name='activation_memory', unit='bits')
    for allocate in (greedy_allocation, ilp_allocation):
        with pytest.raises(ValueError, match='activation_memory is the same for all weight bits'):
            allocate(good, ranged_space([Constraint(sizes(10, 20), 200), Constraint(constant, 10)]))
        with pytest.raises(ValueError, match=r'layer 1 at 3 is not a finite number.*1\.\.8 bits'):
            broken = good.copy()
            broken[1, 2, 7] = np.nan
            allocate(broken, ranged_space([Constraint(sizes(10, 20), 200)]))
        with pytest.raises(ValueError, match=r'shape \(3, 8, 8\), expected \(2, 8, 8\)'):
            allocate(weights_table(np.ones((3, 8))), ranged_space([Constraint(sizes(10, 20), 200)]))


@pytest.mark.parametrize('name', ['greedy', 'ilp'])
def test_a_searcher_proposes_its_strategy_once(name):
    table = weights_table(4.0 ** -np.arange(1, 9) * np.array([[1], [5], [2]]))
    space = ranged_space([Constraint(sizes(10, 20, 30), 240)])
    searcher = (GreedySearcher if name == 'greedy' else ILPSearcher)(space, table)
    assert searcher.name == name
    expected = (greedy_allocation if name == 'greedy' else ilp_allocation)(table, space)
    assert searcher.best() == searcher.propose() == expected
    searcher.observe(expected, 50.0)
    assert searcher.propose() is None
    assert searcher.best() == expected
