import copy
import itertools
import random
import re
from pathlib import Path

import numpy as np
import pytest

from lib.simulator import budget
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from lib.simulator.counting import model_size
from lib.simulator.layer_bits import LayerBits
from lib.simulator.table_files import load_table
from tests.spaces import drawn, ranged

LOOKUP_TABLES = Path(budget.__file__).parent / 'lookup_tables'
PINNED = {0: [8, -1], 52: [8, 8]}


def fit(strategy, cost, limit, **options):
    """The wall with a single budget."""
    return fit_all(strategy, [Constraint(cost, limit)], **options)


def fit_all(strategy, constraints, wall='rounds', **bits):
    return budget.fit(strategy, constraints, ranged(len(strategy), **bits), wall=wall)


def check_feasible(cost, ratio, *bits, **options):
    budget.check_feasible([Constraint.of_ratio(cost, ratio)], ranged(cost.num_layers, *bits, **options))


@pytest.fixture(scope='module')
def mobilenet():
    return load_table(LOOKUP_TABLES / 'qmobilenetv2_imagenet100_batch16_latency_table.npy')


def random_table(draw, layers, monotone, dtype=np.int64):
    cells = np.random.default_rng(draw.randrange(2**32)).integers(1, 1000, (layers, 8, 8))
    if monotone:
        cells = cells.cumsum(axis=1).cumsum(axis=2)
    cells = cells.astype(dtype) / (1 if dtype == np.int64 else 7)
    return CostTable(cells.astype(dtype), reference=cells[:, 7, 7].sum().item(), name='cost', unit='units')


def random_entry(draw, low, high, kind):
    if kind == 'flat':
        return draw.randint(low, high)
    return [draw.randint(low, high), -1 if draw.random() < 0.2 else draw.randint(low, high)]


def slow_wall(strategy, cost, limit, min_bit, fixed):
    """The wall as it is described, with the full cost after every step; stops where nothing can be lowered."""
    strategy = [fixed.get(index, entry) for index, entry in enumerate(copy.deepcopy(strategy))]
    before = None
    while before != strategy:
        before = copy.deepcopy(strategy)
        for index in reversed(range(len(strategy))):
            if index in fixed:
                continue
            for which in ('activations', 'weights'):
                if cost.cost(strategy) <= limit:
                    return strategy
                if isinstance(strategy[index], int):
                    if which == 'weights' and strategy[index] > min_bit:
                        strategy[index] -= 1
                else:
                    position = 1 if which == 'activations' else 0
                    if strategy[index][position] > min_bit:
                        strategy[index][position] -= 1
    return strategy


def lowest_entries(entry, low, high):
    bits = range(low, high + 1)
    if isinstance(entry, int):
        return list(bits)
    return [[w, -1] for w in bits] if entry[1] == -1 else [[w, a] for w in bits for a in bits]


def lowest_cost(strategy, cost, low, high, fixed):
    """The cheapest strategy of the same form, layer by layer."""
    total = 0
    for index, entry in enumerate(strategy):
        choices = [fixed[index]] if index in fixed else lowest_entries(entry, low, high)
        trials = [strategy[:index] + [choice] + strategy[index + 1 :] for choice in choices]
        total += min(cost.breakdown(trial)[index].item() for trial in trials)
    return total


@pytest.mark.parametrize('kind', ['flat', 'pairs'])
@pytest.mark.parametrize('monotone', [True, False])
@pytest.mark.parametrize('dtype', [np.int64, np.float64])
def test_random_walls(kind, monotone, dtype):
    draw = random.Random(1)
    for _ in range(60):
        layers, low, high = draw.randint(1, 6), draw.randint(1, 4), draw.randint(5, 8)
        cost = random_table(draw, layers, monotone, dtype)
        strategy = [random_entry(draw, low, high, kind) for _ in range(layers)]
        fixed = {0: 8 if kind == 'flat' else [8, -1]} if draw.random() < 0.5 else {}
        limit = draw.random() * cost.reference
        given = copy.deepcopy(strategy)
        fitted = fit(strategy, cost, limit, min_bit=low, max_bit=high, fixed=fixed)

        assert strategy == given
        expected = slow_wall(strategy, cost, limit, low, fixed)
        lowest = lowest_cost(expected, cost, low, high, fixed)
        if cost.cost(expected) <= limit or cost.cost(expected) == pytest.approx(lowest):
            assert fitted == expected
        else:  # the walk alone does not get there
            assert not monotone
            assert cost.cost(fitted) == pytest.approx(lowest) and cost.cost(fitted) < cost.cost(expected)
        assert (cost.cost(fitted) <= limit) == (lowest <= limit)
        assert fit(fitted, cost, limit, min_bit=low, max_bit=high, fixed=fixed) == fitted
        for index, entry in enumerate(fitted):
            assert entry in ([fixed[index]] if index in fixed else lowest_entries(given[index], low, high))


def test_a_met_budget_changes_nothing_but_the_fixed_layers(mobilenet):
    strategy = [[2, 3]] * 53
    fitted = fit(strategy, mobilenet, mobilenet.reference, min_bit=2, fixed=PINNED)
    assert fitted == [[8, -1], *[[2, 3]] * 51, [8, 8]]
    fitted[1][0] = 5
    assert fitted[2] == [2, 3] and strategy[1] == [2, 3]  # no entry is shared
    assert PINNED == {0: [8, -1], 52: [8, 8]}


def test_the_order_of_lowering():
    cost = model_size([1, 1, 1])
    assert fit([8, 8, 8], cost, 22, min_bit=1) == [8, 7, 7]
    assert fit([8, 8, 8], cost, 18, min_bit=1) == [6, 6, 6]
    assert fit([3, 8, 8], cost, 13, min_bit=3) == [3, 5, 5]
    assert fit([[8, 8], [8, -1], [8, 8]], cost, 22, min_bit=1) == [[8, 8], [7, -1], [7, 8]]  # a_bit would not help
    cost = CostTable(np.add.outer([1], np.add.outer(np.arange(8), np.arange(8))), reference=15, name='c', unit='u')
    assert fit([[8, 8]], cost, 14, min_bit=1) == [[8, 7]]
    assert fit([[8, 8]], cost, 13, min_bit=1) == [[7, 7]]


def test_an_impossible_budget_ends_at_the_lowest_bits():
    assert fit([8, 5, 2], model_size([10, 20, 30]), 0, min_bit=2, fixed={1: 8}) == [2, 8, 2]


def test_a_table_whose_cost_rises_when_bits_fall():
    cells = np.broadcast_to(np.arange(8, 0, -1), (4, 8, 8)).transpose(0, 2, 1)  # 8 weight bits are cheapest
    cost = CostTable(cells, reference=4, name='upside_down', unit='units')
    assert fit([4, 4, 4, 4], cost, 4, min_bit=1) == [8, 8, 8, 8]
    assert fit([4, 4, 4, 4], cost, 4, min_bit=1, max_bit=6) == [6, 6, 6, 6]  # not met, but nothing is lower
    assert fit([4, 4, 4, 4], cost, 4, min_bit=1, fixed={3: 1}) == [8, 8, 8, 1]


def test_floats_do_not_end_above_the_limit_through_rounding():
    draw = random.Random(2)
    for _ in range(200):
        cells = np.full((9, 8, 8), 0.1) * np.arange(1, 9)[:, None]
        cost = CostTable(cells * draw.choice([1, 1e-9, 1e12]), reference=1, name='f', unit='J')
        target = [draw.randint(1, 8) for _ in range(9)]
        limit = cost.cost(target)
        assert cost.cost(fit([8] * 9, cost, limit, min_bit=1)) <= limit


@pytest.mark.parametrize(
    'strategy, options, message',
    [
        ([8, 1, 8], {'min_bit': 2}, 'layer 1 .* 1, expected bits in 2..8'),
        ([8, [8, 8], 8], {'min_bit': 2, 'max_bit': 7}, 'layer 0 .* 8, expected bits in 2..7'),
        ([8, [8, 1], 8], {'min_bit': 2}, 'layer 1'),
        ([8, 8], {'min_bit': 2}, '2 entries'),
        ([8, 8, 8], {'min_bit': 0}, 'no range'),
        ([8, 8, 8], {'min_bit': 2, 'fixed': {3: 8}}, 'bits are given for layer 3'),
        ([8, 8, 8], {'min_bit': 2, 'fixed': {-1: 8}}, 'bits are given for layer -1'),
        ([8, 8, 8], {'min_bit': 2, 'fixed': {1: [0, 8]}}, 'weights are 0, expected some of 1..8'),
    ],
)
def test_bad_input(strategy, options, message):
    with pytest.raises(ValueError, match=message):
        fit(strategy, model_size([1, 2, 3]), 10, **options)


def test_a_budget_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match='not a number'):
        fit([8], model_size([1]), float('nan'), min_bit=1)


@pytest.mark.parametrize('min_bit, possible', [(1, '0.12338'), (2, '0.20979')])  # rounded up, so that it can be met
def test_the_lowest_ratio_of_mobilenetv2_is_named(mobilenet, min_bit, possible):
    with pytest.raises(ValueError, match=r'--preserve_ratio 0\.05 cannot be met') as error:
        check_feasible(mobilenet, 0.05, min_bit, 8, PINNED)
    assert str(error.value).endswith(f'the lowest possible is {possible}')
    check_feasible(mobilenet, float(possible), min_bit, 8, PINNED)
    fitted = fit([[8, 8]] * 53, mobilenet, float(possible) * mobilenet.reference, min_bit=min_bit, fixed=PINNED)
    assert mobilenet.ratio(fitted) <= float(possible)


def test_the_ratio_that_is_named_can_always_be_met():
    draw = random.Random(3)
    for _ in range(200):
        cost = model_size([draw.randint(1, 10**6) for _ in range(3)], float_bit=draw.randint(3, 33))
        with pytest.raises(ValueError, match='cannot be met') as error:
            check_feasible(cost, 1e-6, 2)
        check_feasible(cost, float(re.search(r'[\d.]+$', str(error.value))[0]), 2)


@pytest.mark.parametrize('ratio', [0, -0.1, float('nan')])
def test_ratios_that_make_no_sense(ratio):
    with pytest.raises(ValueError, match='the lowest possible is 0.03125'):
        check_feasible(model_size([5, 6]), ratio, 1)
    check_feasible(model_size([5, 6]), 0.03125, 1)


def test_feasibility_of_weights_only_is_priced_at_eight_activation_bits(mobilenet):
    check_feasible(mobilenet, 0.2, 1)
    with pytest.raises(ValueError, match='cannot be met'):
        check_feasible(mobilenet, 0.2, 1, pairs=False)


# Several budgets at once.


def random_budgets(draw, layers, monotone, low, high, kind):
    """Two sums and a peak, with limits near the lowest that each of them can reach."""
    tables = [random_table(draw, layers, monotone) for _ in range(3)]
    peak = CostTable(tables[2].table, reference=tables[2].table.max().item(), name='peak', unit='u', combine='max')
    room = (0.9, 1.5) if monotone else (1, 7)
    choices = [each.entries() for each in ranged(layers, low, high, pairs=kind == 'pairs')]
    lowest = [cost.minimum(choices)[0] for cost in (*tables[:2], peak)]
    costs = zip((*tables[:2], peak), lowest, strict=True)
    return [Constraint(cost, draw.uniform(*room) * limit) for cost, limit in costs]


def all_strategies(layers, low, high, kind):
    entries = lowest_entries(low if kind == 'flat' else [low, low], low, high)
    return map(list, itertools.product(entries, repeat=layers))


@pytest.mark.parametrize('kind', ['flat', 'pairs'])
@pytest.mark.parametrize('monotone', [True, False])
def test_several_budgets_are_met_whenever_any_strategy_meets_them(kind, monotone):
    draw = random.Random(4)
    feasible = 0
    for _ in range(20):
        low, high = (1, 8) if kind == 'flat' else (2, 4)
        constraints = random_budgets(draw, 3, monotone, low, high, kind)
        strategy = [random_entry(draw, low, high, 'flat') if kind == 'flat' else [high, high] for _ in range(3)]
        possible = any(all(c.met_by(s) for c in constraints) for s in all_strategies(3, low, high, kind))
        for wall in budget.WALLS:
            fitted = fit_all(strategy, constraints, wall, min_bit=low, max_bit=high)
            assert all(c.met_by(fitted) for c in constraints) == possible
            assert fitted == fit_all(strategy, constraints, wall, min_bit=low, max_bit=high)
        if possible:
            feasible += 1
            budget.check_feasible(constraints, ranged(3, low, high, pairs=kind == 'pairs'))
        else:
            with pytest.raises(ValueError, match='cannot be met'):
                budget.check_feasible(constraints, ranged(3, low, high, pairs=kind == 'pairs'))
    assert 2 < feasible < 18


@pytest.mark.parametrize('pairs', [False, True])
@pytest.mark.parametrize('monotone', [True, False])
def test_walls_and_feasibility_of_any_candidates_against_every_strategy(pairs, monotone):
    draw, rng, feasible = random.Random(6), np.random.default_rng(6), 0
    for _ in range(40):
        layer_bits, constraints = drawn(rng, 3, pairs=pairs), random_budgets(draw, 3, monotone, 1, 8, 'pairs')[::2]
        choices = [each.entries(pairs=pairs) for each in layer_bits]
        everything = [list(strategy) for strategy in itertools.product(*choices)]
        lowest = [min(map(c.cost.cost, everything)) for c in constraints]
        assert [c.cost.minimum(choices)[0] for c in constraints] == lowest
        limits = [low * draw.uniform(0.9, 1.4 if monotone else 2.5) for low in lowest]
        constraints = [Constraint(c.cost, limit) for c, limit in zip(constraints, limits, strict=True)]
        possible = any(all(c.met_by(s) for c in constraints) for s in everything)
        for wall in budget.WALLS:
            fitted = budget.fit(draw.choice(everything), constraints, layer_bits, wall=wall)
            assert fitted in everything and all(c.met_by(fitted) for c in constraints) == possible
        feasible += possible
        if possible:
            budget.check_feasible(constraints, layer_bits)
            continue
        with pytest.raises(ValueError, match='cannot be met') as error:
            budget.check_feasible(constraints, layer_bits)
        alone = [c for c, low in zip(constraints, lowest, strict=True) if c.limit < low]
        if alone:  # the ratio that is named is the lowest that any strategy reaches
            named = float(re.search(r'[\d.]+$', str(error.value))[0])
            assert 0 <= named - lowest[constraints.index(alone[0])] / alone[0].cost.reference < 2e-5
    assert 5 < feasible < 35


def test_the_order_of_lowering_to_the_next_candidates():
    cost, bits = model_size([1, 1, 1]), [LayerBits((2, 4, 8)), LayerBits((4, 8)), LayerBits((8, 2, 4))]
    for limit, expected in ((24, [8, 8, 8]), (23, [8, 8, 4]), (17, [8, 4, 4]), (15, [4, 4, 4]), (11, [4, 4, 2]),
                            (0, [2, 4, 2])):
        assert budget.fit([8, 8, 8], [Constraint(cost, limit)], bits) == expected
    with pytest.raises(ValueError, match='layer 1 has 2, expected bits in 4,8'):
        budget.fit([2, 2, 2], [Constraint(cost, 9)], bits)
    with pytest.raises(ValueError, match=r'cheapest strategy of 2,4,8 or 4,8 bits costs 8 of .* possible is 0\.08334'):
        budget.check_feasible([Constraint(cost, 7)], bits)
    with pytest.raises(ValueError, match='bits are given for 2 layers, the strategy has 3'):
        budget.fit([8, 8, 8], [Constraint(cost, 9)], bits[:2])


def test_only_bits_that_an_exceeded_budget_depends_on_are_lowered():
    size = model_size([10, 10])
    cells = np.broadcast_to(np.arange(1, 9), (2, 8, 8))
    memory = CostTable(cells, reference=8, name='memory', unit='u', combine='max')
    met, exceeded = Constraint(memory, 8), Constraint(size, 120)
    assert fit_all([[8, 8], [8, 8]], [met, exceeded], min_bit=1) == [[6, 8], [6, 8]]
    assert fit_all([[8, 8], [8, 8]], [Constraint(memory, 5), Constraint(size, 160)], min_bit=1) == [[8, 5], [8, 5]]
    both = fit_all([[8, 8], [8, 8]], [Constraint(memory, 5), exceeded], min_bit=1)
    assert both == [[6, 5], [6, 5]]


def test_budgets_that_exclude_each_other_are_refused_with_what_comes_closest():
    cells = np.arange(1, 9)[None, :, None] * np.ones((1, 8, 8), dtype=int)
    up = CostTable(cells, reference=8, name='up', unit='u')
    down = CostTable(9 - cells, reference=8, name='down', unit='u')
    constraints = [Constraint(up, 3, '--constraint up'), Constraint(down, 3, '--constraint down')]
    with pytest.raises(ValueError, match='up 0.375, --constraint down 0.375 cannot be met together') as error:
        budget.check_feasible(constraints, ranged(1))
    assert str(error.value).endswith(('up 0.50000, down 0.62500', 'up 0.62500, down 0.50000'))


def test_the_greedy_wall_lowers_where_most_is_saved_per_bit():
    cells = np.zeros((3, 8, 8), dtype=int)
    cells[0] = np.arange(1, 9)[:, None]  # 1 per weight bit
    cells[1] = 3 * np.arange(1, 9)  # 3 per activation bit
    cells[2] = np.where(np.arange(1, 9)[:, None] > 4, 20, 0)  # nothing until 4 bits, then 20: 5 per bit
    cost = CostTable(cells, reference=52, name='c', unit='u')
    eight = [[8, 8]] * 3
    assert fit(eight, cost, 51, min_bit=1, wall='greedy') == [[8, 8], [8, 8], [4, 8]]
    assert fit(eight, cost, 30, min_bit=1, wall='greedy') == [[8, 8], [8, 7], [4, 8]]
    assert fit(eight, cost, 10, min_bit=1, wall='greedy') == [[7, 8], [8, 1], [4, 8]]
    assert fit(eight, cost, 10, min_bit=1, wall='greedy', fixed={0: [8, 8]}) == [[8, 8], [1, 1], [1, 1]]
    with pytest.raises(ValueError, match="unknown wall 'brick', expected rounds or greedy"):
        fit(eight, cost, 10, min_bit=1, wall='brick')
