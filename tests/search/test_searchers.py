"""Searchers without a network: what they propose holds the budgets, uses them up, and can be replayed."""

import itertools

import numpy as np
import pytest

from lib.env.space import Space
from lib.env.state import bits_from_action
from lib.search.baselines import RandomSearcher, UniformSearcher, fill, random_feasible
from lib.search.bench import ImageCounter
from lib.search.evolution import EvolutionSearcher
from lib.search.searcher import replay
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from lib.simulator.counting import model_size
from lib.simulator.layer import LayerRecord
from lib.simulator.layer_bits import LayerBits
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized
from tests.spaces import ranged_space

WEIGHTS = [30, 200, 90, 400]


def sizes(ratio=0.11, **settings):
    return ranged_space([Constraint.of_ratio(model_size(WEIGHTS), ratio)], **settings)


def machine(ratio=0.5, **settings):
    """Pairs on a table that is not even monotone, under two budgets, first and last layer fixed."""
    rng = np.random.default_rng(0)
    tables = [np.sort(np.sort(rng.random((5, 8, 8)), 1), 2) + 0.05 * rng.random((5, 8, 8)) for _ in range(2)]
    constraints = [Constraint.of_ratio(CostTable(table, reference=table[:, 7, 7].sum(), name=f'cost{i}', unit='s'),
                                       ratio + 0.1 * i) for i, table in enumerate(tables)]
    return ranged_space(constraints, fixed={0: [8, -1], 4: [8, 8]}, pairs=True, **settings)


def candidates():
    """The same with bits that are no range, others in each layer."""
    own = [LayerBits((8,), (-1,)), LayerBits((2, 4, 8), (2, 4, 8)), LayerBits((3, 5), (8,)), LayerBits((4,), (1, 7, 8)),
           LayerBits((1, 8), (-1,))]
    records = [LayerRecord(str(i), 'linear', 4, 4, (1, 1), (1, 1), 1, 1, 1, 1, 1, 16) for i in range(5)]
    return Space(machine(0.7).constraints, LayerBits.span(1), dict(enumerate(own)), pairs=True, records=records)


SPACES = {'sizes': sizes, 'machine': machine, 'candidates': candidates}


def bits(space, strategy):
    return [bit for layer in space.free for bit in np.atleast_1d(strategy[layer]).tolist()]


def run(searcher, objective, evaluations):
    for _ in range(evaluations):
        strategy = searcher.propose()
        if strategy is None:
            break
        searcher.observe(strategy, objective(strategy))
    return searcher


def test_uniform_is_the_most_bits_that_fit():
    for ratio in np.linspace(0.04, 0.26, 30):
        space = sizes(ratio)
        searcher = UniformSearcher(space)
        (bit,) = set(searcher.propose())
        assert bit * sum(WEIGHTS) <= ratio * 32 * sum(WEIGHTS)
        assert bit == 8 or (bit + 1) * sum(WEIGHTS) > ratio * 32 * sum(WEIGHTS)
        searcher.observe([bit] * 4, 1.0)
        assert searcher.propose() is None
        assert searcher.best() == [bit] * 4


def test_uniform_keeps_fixed_layers_and_every_budget():
    space = machine()
    strategy = UniformSearcher(space).propose()
    assert strategy[0] == [8, -1] and strategy[4] == [8, 8]
    assert len(set(map(tuple, strategy[1:4]))) == 1
    assert space.holds(strategy)
    assert not any(space.holds(space.uniform(bit)) for bit in range(strategy[1][0] + 1, 9))


@pytest.mark.parametrize('kind', SPACES)
def test_random_strategies_hold_the_budgets_and_no_bit_can_be_added(kind):
    space, rng, seen = SPACES[kind](), np.random.default_rng(1), set()
    for _ in range(40):
        strategy = random_feasible(space, rng)
        seen.add(str(strategy))
        assert space.holds(strategy)
        assert all(strategy[layer] == entry for layer, entry in space.fixed.items())
        for layer, side in itertools.product(space.free, range(1 + space.pairs)):
            more = [list(np.atleast_1d(entry)) for entry in strategy]
            for bit in space.layer_bits[layer].sides[side]:
                if bit > more[layer][side]:
                    more[layer][side] = bit
                    raised = [[int(b) for b in entry] if space.pairs else int(entry[0]) for entry in more]
                    assert not space.holds(raised)
                    break
    assert len(seen) > (5 if kind == 'candidates' else 20)


def test_filling_changes_nothing_where_everything_fits_at_most_bits():
    space = sizes(1.0)
    assert fill(space, [1, 2, 3, 4], np.random.default_rng(0)) == [8, 8, 8, 8]


def noise(strategy):
    """Minus the noise of layers of very different sensitivity; each bit more quarters it."""
    sensitivities = itertools.cycle((1, 1000, 3, 20))
    return -sum(weight * 4.0 ** -bit for weight, bit in zip(sensitivities, strategy, strict=False))


def test_evolution_comes_closer_to_the_optimum_than_chance():
    """The optimum is known by dynamic programming over the cost."""
    weights = [4, 9, 2, 7, 12, 3, 8, 5]
    space = ranged_space([Constraint.of_ratio(model_size(weights), 0.1)])
    best = {0: 0.0}  # {bits spent: least noise}
    for layer, weight in enumerate(weights):
        one = [noise([0] * layer + [bit]) - noise([0] * layer) for bit in range(1, 9)]
        grown = {}
        for spent, score in best.items():
            for bit in range(1, 9):
                cost = spent + bit * weight
                if cost <= space.constraints[0].limit:
                    grown[cost] = max(grown.get(cost, -np.inf), score + one[bit - 1])
        best = grown
    optimum = max(best.values())
    gaps = {kind: [optimum - noise(run(kind(space, seed), noise, 160).best()) for seed in range(3)]
            for kind in (RandomSearcher, EvolutionSearcher)}
    assert min(gaps[EvolutionSearcher]) >= -1e-9
    assert np.mean(gaps[EvolutionSearcher]) < 0.3 * np.mean(gaps[RandomSearcher])


@pytest.mark.parametrize('kind', SPACES)
def test_evolution_proposes_what_holds_the_budgets(kind):
    space = SPACES[kind]()
    searcher = run(EvolutionSearcher(space, 3), lambda strategy: sum(bits(space, strategy)), 60)
    assert len(searcher.history) == 60
    for strategy, _ in searcher.history:
        assert space.holds(strategy)
        assert all(strategy[layer] == entry for layer, entry in space.fixed.items())
        assert all(entry in space.choices(layer) for layer, entry in enumerate(strategy))


def test_bits_stay_in_their_range():
    space = sizes(0.12, min_bit=2, max_bit=5)
    for searcher in (RandomSearcher(space, 0), EvolutionSearcher(space, 0)):
        for strategy, _ in run(searcher, noise, 40).history:
            assert all(2 <= bit <= 5 for bit in strategy)


def test_uniform_takes_the_next_fewer_of_the_candidates():
    space = candidates()
    assert [space.uniform(bits) for bits in (8, 6, 2)] == [
        [[8, -1], [8, 8], [5, 8], [4, 8], [8, -1]], [[8, -1], [4, 4], [5, 8], [4, 1], [1, -1]],
        [[8, -1], [2, 2], [3, 8], [4, 1], [1, -1]]]
    proposed = UniformSearcher(space).propose()
    assert space.holds(proposed) and not any(space.holds(space.uniform(bits)) for bits in range(1 + max(
        bits for bits in space.all_bits if space.uniform(bits) == proposed), 9))


def test_every_entry_is_drawn_and_an_agent_reaches_it():
    space, rng = candidates(), np.random.default_rng(0)
    drawn = [space.random(rng) for _ in range(200)]
    for layer in range(space.num_layers):
        assert sorted({tuple(strategy[layer]) for strategy in drawn}) == list(map(tuple, space.choices(layer)))
    for strategy in drawn[:20]:
        steps = space.trajectory(strategy)
        assert len(steps) == space.num_steps == 10 and all(0 <= action <= 1 for _, action in steps)
        chosen = [bits_from_action(action, able) for (_, action), able in zip(steps, space.steps, strict=True)]
        assert space.of_bits(chosen) == strategy


@pytest.mark.parametrize('kind', [RandomSearcher, EvolutionSearcher])
def test_a_search_is_replayed_from_its_record(kind):
    space = sizes()
    whole = run(kind(space, 5), noise, 40).history
    again = kind(space, 5)
    replay(again, whole[:25])
    assert run(again, noise, 15).history == whole
    assert kind(space, 6).propose() != whole[0][0]
    with pytest.raises(ValueError, match='of another search'):
        replay(kind(space, 6), whole)


def test_the_best_is_the_earliest_of_equals():
    searcher = RandomSearcher(sizes(), 0)
    with pytest.raises(ValueError, match='evaluated no strategy'):
        searcher.best()
    for strategy, score in (([1, 1, 1, 1], 3.0), ([2, 2, 2, 2], 5.0), ([3, 2, 2, 2], 5.0)):
        searcher.observe(strategy, score)
    assert searcher.best() == [2, 2, 2, 2]


@pytest.mark.parametrize('kind', [UniformSearcher, RandomSearcher, EvolutionSearcher])
def test_an_infeasible_budget_is_refused(kind):
    with pytest.raises(ValueError, match='lowest possible is 0.03125'):
        kind(sizes(0.03))


def test_a_population_must_make_sense():
    for options in ({'population': 1}, {'population': 4, 'tournament': 5}, {'tournament': 0}):
        with pytest.raises(ValueError, match='expected at least 2'):
            EvolutionSearcher(sizes(), **options)


def test_images_are_counted(tiny_net, tiny_loaders):
    import torch
    counter = ImageCounter(tiny_net)
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        tiny_net(images)
    tiny_net(images[:2]).sum().backward()
    assert counter.counts == (7, 2)
    with counter.paused():
        tiny_net(images)
    counter.add(10, 20)
    assert counter.counts == (17, 22)
    counter.close()
    tiny_net(images)
    assert counter.counts == (17, 22)


def test_images_for_calibration_are_not_counted(tiny_net, tiny_loaders):
    """They depend on what was calibrated before, as in a resumed search."""
    images = tiny_loaders[0].first_batch()
    counter, strategy = ImageCounter(convert_to_quantized(tiny_net, images)), [[8, -1], [4, 4], [4, 4], [8, 8]]
    for cache in ({}, {}, None):
        LinearQuantization(tiny_net, strategy, images, cache=cache)
    assert counter.counts == (0, 0)
    tiny_net(images)
    assert counter.counts == (16, 16)
