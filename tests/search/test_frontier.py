"""Searches over budgets: against a scan of all budgets, and what contradicts itself."""

import csv
import itertools

import numpy as np
import pytest

from lib.search.allocation import GreedySearcher, ILPSearcher, ilp_allocation
from lib.search.bayes import BayesSearcher
from lib.search.frontier import DropSearcher, Goal, ParetoSearcher, widened, write_front
from lib.search.searcher import replay
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from tests.search.test_bayes import cost, rises, value
from tests.spaces import ranged_space

KINDS = {'ilp': ILPSearcher, 'greedy': GreedySearcher, 'bayes': lambda space, table: BayesSearcher(space, 0, table)}
WEIGHTS = [30, 200, 90, 400, 120]


def open_space(pairs, limit=np.inf, other=None):
    rng = np.random.default_rng(0)
    if not pairs:
        return ranged_space([Constraint(model_size(WEIGHTS), limit)], min_bit=2, max_bit=6)
    costs = [cost(rng, 5, 'a'), cost(rng, 5, 'b')]
    more = [Constraint(costs[1], other)] if other else []
    return ranged_space([Constraint(costs[0], limit), *more], min_bit=2, max_bit=4, pairs=True, fixed={0: [8, -1]})


@pytest.mark.parametrize('other', [None, 3.0])
def test_the_ends_of_all_budgets_are_those_of_all_strategies(other):
    space = open_space(True, other=other)
    wide, lowest = widened(space)
    everything = [list(each) for each in itertools.product(*map(space.choices, range(5)))]
    first, *others = wide.constraints
    assert first.limit == pytest.approx(max(first.cost.cost(strategy) for strategy in everything))
    least = min(first.cost.cost(strategy) for strategy in everything if all(each.met_by(strategy) for each in others))
    assert lowest == pytest.approx(least)
    assert ilp_allocation(rises(np.random.default_rng(0), 5, True), wide.with_constraints(
        [Constraint(first.cost, lowest), *others]))  # what is lowest can be held
    assert widened(open_space(True, 2.0))[1] == 2.0


def told(searcher, true, noise=0.0):
    rng = np.random.default_rng(1)
    while (strategy := searcher.propose()) is not None:
        accuracy = 90 - 100 * value(true, strategy, searcher.space) + noise * rng.standard_normal()
        searcher.observe(strategy, accuracy)
    return searcher


@pytest.mark.parametrize('pairs', [False, True])
@pytest.mark.parametrize('kind', KINDS)
def test_a_front_has_the_best_strategy_of_every_budget(kind, pairs):
    table = rises(np.random.default_rng(5), 5, pairs)
    wide, lowest = widened(open_space(pairs))
    found = told(ParetoSearcher(KINDS[kind](wide, table), lowest, 6), table)
    ratios = np.array(found.budgets[:-1]) / found.budgets[1:]
    assert len(found.history) == 6 and ratios == pytest.approx(ratios[0])
    assert found.budgets[0] == wide.constraints[0].limit and found.budgets[-1] == pytest.approx(lowest)
    everything = [list(each) for each in itertools.product(*map(wide.choices, range(5)))]
    for limit, (strategy, accuracy) in zip(found.budgets, found.history, strict=True):
        assert wide.cost.cost(strategy) <= limit
        best = max(90 - 100 * value(table, each, wide) for each in everything if wide.cost.cost(each) <= limit)
        assert accuracy == pytest.approx(best) if kind == 'ilp' else accuracy <= best + 1e-9
    accuracies = [accuracy for _, accuracy in found.history]
    assert kind == 'bayes' or accuracies == sorted(accuracies, reverse=True)


@pytest.mark.parametrize('enough', [60.0, 85.0, 89.0, 89.99])
@pytest.mark.parametrize('kind', KINDS)
def test_the_least_cost_that_is_enough_is_found(kind, enough):
    table = rises(np.random.default_rng(5), 5, False)
    wide, lowest = widened(open_space(False))
    found = told(DropSearcher(KINDS[kind](wide, table), lowest, enough), table)
    records = [{'accuracy': accuracy, 'cost': wide.cost.cost(strategy)} for strategy, accuracy in found.history]
    best = max(records, key=found.rank)
    everything = [list(each) for each in itertools.product(*map(wide.choices, range(5)))]
    costs = [wide.cost.cost(each) for each in everything if 90 - 100 * value(table, each, wide) >= enough]
    if not costs:  # the nearest is the best answer
        assert best['accuracy'] < enough and best['cost'] == wide.constraints[0].limit
        return
    assert best['accuracy'] >= enough
    assert min(costs) <= best['cost'] <= min(costs) * (1.03 if kind == 'ilp' else 1.2)
    assert len({str(strategy) for strategy, _ in found.history}) == len(found.history) < 15
    again = DropSearcher(KINDS[kind](wide, table), lowest, enough)
    replay(again, found.history[:4])
    assert again.propose() == (found.history[4:] or [(None,)])[0][0]


@pytest.mark.parametrize(('given', 'words'), [
    ({'pareto': 4, 'accuracy_drop': 1.0}, 'pareto 4 and accuracy_drop 1: give one of them'),
    ({'pareto': 4, 'searcher': 'ddpg'}, 'pareto asks for .* searcher ddpg does not know: give one of greedy'),
    ({'accuracy_drop': 1.0, 'searcher': 'random'}, 'accuracy_drop asks for'),
    ({'accuracy_drop': 1.0, 'screen': 64}, 'screen 64 does not: leave it out'),
    ({'pareto': 8, 'train_episode': 7}, 'pareto 8 takes as many evaluations, train_episode 7 are fewer'),
])
def test_goals_that_contradict_themselves(given, words):
    with pytest.raises(ValueError, match=words):
        Goal(**{'searcher': 'kl', **given})
    assert not Goal('ddpg', screen=64, train_episode=1)


def test_the_table_of_a_front(tmp_path):
    history = [{'episode': number, 'ratio': ratio, 'cost': 10 * ratio, 'accuracy': accuracy, 'loss': 0.5,
                'reward': -1.0, 'strategy': [number, 2]}
               for number, (ratio, accuracy) in enumerate([(0.2, 91.5), (0.1, 80.25)])]
    text = write_front(tmp_path, [0.21, 0.1], history, 'model_size', 92.0)
    with open(tmp_path / 'pareto.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert [(row['budget'], row['accuracy'], row['strategy'], row['episode']) for row in rows] == [
        ('0.1', '80.25', '[1, 2]', '1'), ('0.21', '91.5', '[0, 2]', '0')]
    assert text.splitlines()[1:] == ['0.1000   0.1000   80.25', '0.2100   0.2000   91.50']
    assert (tmp_path / 'pareto.png').is_file()
