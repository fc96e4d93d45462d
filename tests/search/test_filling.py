"""What the wall leaves of the budgets: filled until no raise fits, by brute force over all raises."""

import itertools

import numpy as np
import pytest

from lib.rl.ddpg import DDPG
from lib.search.agent import AgentSearcher
from lib.search.allocation import filled_allocation, ilp_allocation
from lib.search.baselines import fill
from lib.search.bayes import BayesSearcher
from lib.search.bench import Bench, SearcherSettings
from lib.search.sensitivity import measure_sensitivity
from lib.simulator.layer import LayerRecord
from tests.env.environments import kmeans_env
from tests.search.test_searchers import SPACES, sizes


def raised(space, strategy):
    """All strategies with more bits in one place."""
    for layer, side in itertools.product(space.free, range(1 + space.pairs)):
        entry = strategy[layer]
        for bit in space.layer_bits[layer].sides[side]:
            if bit > (entry[side] if space.pairs else entry):
                new = [bit if i == side else other for i, other in enumerate(entry)] if space.pairs else bit
                yield [*strategy[:layer], new, *strategy[layer + 1:]]


def sensitivities(space, rng):
    """Falling with the bits, but for some noise."""
    table = np.sort(rng.random((space.num_layers, 8, 8)), axis=1)[:, ::-1]
    return np.sort(table, axis=2)[:, :, ::-1] + 0.1 * rng.standard_normal(table.shape)


@pytest.mark.parametrize('by_table', [False, True])
@pytest.mark.parametrize('kind', SPACES)
def test_after_filling_no_raise_fits(kind, by_table):
    space, rng, changed = SPACES[kind](), np.random.default_rng(0), 0
    table = sensitivities(space, rng)
    for _ in range(40):
        walled = space.within_budget(space.random(rng))
        filled = filled_allocation(table, space, walled) if by_table else fill(space, walled)
        assert space.holds(filled) and not any(map(space.holds, raised(space, filled)))
        assert all(entry in space.choices(layer) for layer, entry in enumerate(filled))
        assert all(np.all(np.atleast_1d(more) >= np.atleast_1d(entry))
                   for more, entry in zip(filled, walled, strict=True))
        changed += filled != walled
    assert changed > 5


def test_the_rounds_go_from_the_first_layer_on_and_the_table_to_where_it_pays():
    space = sizes(0.115)  # 2649 bits
    assert fill(space, [3, 3, 3, 3]) == [6, 4, 5, 3]  # of 2160: + 30 + 200 + 90, + 30 + 90, + 30
    table = np.zeros((4, 8, 8))
    table[3, :3], table[0, :5] = 9.0, 1.0
    assert filled_allocation(table, space, [3, 3, 3, 3]) == [5, 3, 3, 4]


def agent(space, **settings):
    return AgentSearcher(space, DDPG(num_states=space.num_states, capacity=64, warmup=0, bsize=8, seed=1), **settings)


def small():
    records = [LayerRecord(str(i), 'linear', 4, 4, (1, 1), (1, 1), 1, 1, 1, 1, 1, n) for i, n in enumerate(
        (30, 200, 90, 400))]
    return sizes(records=records)


@pytest.mark.parametrize('table', [None, np.arange(8.0, 0, -1)[None, :, None] * np.ones((4, 1, 8))])
def test_the_agent_fills_and_remembers_what_was_executed(table):
    space = small()
    for store, filled in itertools.product(('chosen', 'executed'), (False, True)):
        filling = (lambda strategy: fill(space, strategy)) if filled else None
        searcher, given = agent(space, store_action=store, table=table, fill=filling), []
        searcher.agent.observe = lambda *transition, given=given, **_: given.append(transition)
        strategy = searcher.propose()
        assert any(map(space.holds, raised(space, strategy))) <= (not filled)
        chosen = searcher._acted
        searcher.observe(strategy, 1.0)
        expected = space.trajectory(strategy) if store == 'executed' else chosen
        assert [transition[:2] for transition in given] == expected
        if filled and table is None:
            assert space.trajectory(strategy) != chosen, 'the wall or the filling changed something'


@pytest.mark.parametrize('warm_start', ['none', 'sensitivity', 'kl', 'bayes'])
def test_the_bench_builds_an_agent_that_fills_and_explores_until_the_last_evaluation(warm_start, tiny_net,
                                                                                   tiny_loaders):
    env = kmeans_env(tiny_net, tiny_loaders, preserve_ratio=0.15)
    tables = {'sensitivity': 'hessian', 'kl': 'kl', 'bayes': 'kl'}
    settings = SearcherSettings({'warmup': 2, 'hidden1': 8, 'hidden2': 8}, warm_start=warm_start, fill=True,
                                delta_end=0.05)
    searcher = Bench(env, 9, settings).searcher('ddpg', 0)
    assert [searcher.agent.delta(episode) for episode in (2, 5, 8)] == pytest.approx([0.5, (0.5 * 0.05)**0.5, 0.05])
    expected = measure_sensitivity(env, tables[warm_start], num_images=20).table if warm_start in tables else None
    for episode in range(9):
        strategy = searcher.propose()
        if expected is not None and not episode:
            assert strategy == filled_allocation(expected, env.space, ilp_allocation(expected, env.space))
        assert env.space.holds(strategy) and not any(map(env.space.holds, raised(env.space, strategy)))
        searcher.observe(strategy, -float(episode))
    with pytest.raises(ValueError, match='not above init_delta 0.5'):
        Bench(env, 9, SearcherSettings(delta_end=0.6)).searcher('ddpg', 0)


def test_bayes_proposes_during_the_warm_up_and_an_agent_that_goes_on_was_taught_the_same():
    space, left = small(), None
    table = sensitivities(space, np.random.default_rng(0)).clip(0.01)

    def taught():
        settings = {'num_states': space.num_states, 'capacity': 64, 'warmup': 4, 'bsize': 8}
        return AgentSearcher(space, DDPG(**settings, seed=1), teacher=BayesSearcher(space, 3, table))

    whole, alone = taught(), BayesSearcher(space, 3, table)
    for episode in range(8):
        strategy = whole.propose()
        if left is not None:
            assert left.propose() == strategy
        reward = -sum(table[layer, bits - 1, 0] for layer, bits in enumerate(strategy))
        if episode < 5:
            assert strategy == alone.propose()
            alone.observe(strategy, reward)
        whole.observe(strategy, reward)
        left = taught()
        left.resume(whole.history, whole.agent.state_dict())
        assert left.teacher.history == whole.teacher.history == whole.history[:5]
