"""The Bayesian linear model against dense Gaussian conditioning, and its search against all strategies."""

import itertools

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from lib.env.space import Space
from lib.search.allocation import ilp_allocation
from lib.search.baselines import RandomSearcher
from lib.search.bayes import BayesSearcher, LinearModel
from lib.search.searcher import replay
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from lib.simulator.layer_bits import LayerBits
from tests.spaces import drawn, ranged_space

BITS = np.arange(1, 9)


def rises(rng, layers, pairs):
    """(layers, 8, 8) sensitivities of layers that differ; additive, as measured ones are."""
    weights, inputs = (4.0 ** -BITS * rng.lognormal(0, 1, (layers, 1)) for _ in range(2))
    table = weights[:, :, None] + (inputs[:, None] if pairs else np.zeros((layers, 1, 8)))
    if not pairs:
        table[:, :, :7] = np.nan
    return table


def cost(rng, layers, name):
    table = np.sort(np.sort(rng.random((layers, 8, 8)) + 0.1, 1), 2)
    return CostTable(table, reference=float(table[:, 7, 7].sum()), name=name, unit='s')


def tight(kind, costs, share=0.2):
    """Budgets on these costs that `share` of random strategies hold, each."""
    loose, rng = kind([Constraint(each, 1e9) for each in costs]), np.random.default_rng(0)
    strategies = [loose.random(rng) for _ in range(300)]
    return kind([Constraint(each, float(np.quantile([each.cost(s) for s in strategies], share))) for each in costs])


def spaces():
    rng = np.random.default_rng(3)
    own = dict(enumerate(drawn(rng, 5, pairs=True, most=3)))
    own[2] = LayerBits((2, 4, 8), (4, 8))
    return {
        'weights': tight(lambda found: ranged_space(found, min_bit=2, max_bit=5), [cost(rng, 5, 'a')]),
        'pairs, two budgets': tight(lambda found: ranged_space(found, min_bit=2, max_bit=3, pairs=True,
                                                               fixed={0: [8, -1]}), [cost(rng, 5, 'a'),
                                                                                     cost(rng, 5, 'b')], 0.4),
        'candidates': tight(lambda found: Space(found, own=own, pairs=True), [cost(rng, 5, 'a')]),
    }


SPACES = spaces()


def value(table, strategy, space):
    cells = [(layer, entry, 8) if isinstance(entry, int) else (layer, entry[0], 8 if entry[1] == -1 else entry[1])
             for layer, entry in enumerate(strategy) if layer in space.free]
    return sum(table[layer, w - 1, a - 1] for layer, w, a in cells)


def observed(model, space, table, count, seed=0, noise=0.0):
    """Tell a model of random strategies at a level and a scale of its own; return rows and values."""
    rng, strategies = np.random.default_rng(seed), []
    for _ in range(count):
        strategies.append(space.within_budget(space.random(rng)))
        model.observe(strategies[-1], 7 + 3 * value(table, strategies[-1], space) + noise * rng.standard_normal())
    bits = [[entry if space.pairs else [entry] for entry in strategy] for strategy in strategies]
    return np.array([[float(each[layer][side] == bit) for layer, side, bit in model.places] for each in bits]), \
        np.array(model._values)


@pytest.mark.parametrize('kind', SPACES)
def test_the_posterior_is_that_of_dense_conditioning(kind):
    space, rng = SPACES[kind], np.random.default_rng(1)
    table, true = rises(rng, 5, space.pairs), rises(rng, 5, space.pairs)
    model = LinearModel(space, table)
    assert [model.posterior()] == [pytest.approx(model.mean)]
    rows, values = observed(model, space, true, 12, noise=0.1)
    fit = model.fit()
    level = 1e5  # the variance of a level that is as good as unknown
    prior = fit.doubt * model.covariance
    joint = rows @ prior @ rows.T + fit.noise * np.eye(12) + level
    gain = np.linalg.solve(joint, rows @ prior).T
    mean = model.mean + gain @ (fit.scale * values - rows @ model.mean)
    covariance = prior - gain @ rows @ prior
    assert model.posterior() == pytest.approx(mean, rel=1e-4, abs=1e-6)
    draws = np.array([model.posterior(np.random.default_rng(seed)) for seed in range(4000)])
    error = np.sqrt(np.outer(covariance.diagonal(), covariance.diagonal()))
    assert abs(draws.mean(0) - mean).max() < 0.1 * covariance.diagonal().max() ** 0.5
    assert (abs(np.cov(draws.T) - covariance) <= 0.1 * error + 1e-9).all()
    assert covariance.trace() < 0.9 * prior.trace()


def test_scale_noise_and_doubt_are_the_likeliest():
    """Against a numeric maximum of the likelihood of differences from the first observation."""
    space, rng = SPACES['weights'], np.random.default_rng(2)
    model = LinearModel(space, table := rises(rng, 5, False))
    rows, values = observed(model, space, table * rng.lognormal(0, 0.3, (5, 8, 1)), 30, noise=0.05)
    differences = np.eye(30)[1:] - np.eye(30)[:1]
    usual = ((rows @ model.covariance) * rows).sum(1).mean()

    def misfit(logs):
        scale, ratio, doubt = np.exp(logs)
        joint = differences @ (doubt * rows @ model.covariance @ rows.T + ratio * usual * np.eye(30)) @ differences.T
        likelihood = multivariate_normal.logpdf(scale * differences @ values, differences @ rows @ model.mean, joint)
        return -likelihood - 29 * logs[0] + (logs[1] / np.log(10) + 1.5) ** 2 / 2 + logs[2] ** 2 / 2

    best = minimize(misfit, [0, -3, 0], method='Nelder-Mead')
    fit = model.fit()
    assert fit.scale == pytest.approx(np.exp(best.x[0]), rel=0.2)  # few noises and doubts are tried
    assert 1 / 6 < fit.scale < 1  # what is observed is three times the sensitivities
    assert misfit(np.log([fit.scale, fit.noise / usual, fit.doubt])) <= best.fun + 0.1


def all_of(space):
    everything = itertools.product(*(space.choices(layer) for layer in range(5)))
    return [strategy for strategy in map(list, everything) if space.holds(strategy)]


def search(searcher, true, evaluations, noise=0.0, seed=5):
    rng = np.random.default_rng(seed)
    for _ in range(evaluations):
        strategy = searcher.propose()
        searcher.observe(strategy, 1.5 - 2.5 * value(true, strategy, searcher.space) + noise * rng.standard_normal())
    return searcher


@pytest.mark.parametrize('prior', ['sensitivities', 'none'])
@pytest.mark.parametrize('kind', SPACES)
def test_the_optimum_of_all_strategies_is_found(kind, prior):
    """With sensitivities that are wrong by a factor of two, or with none; random search comes less far."""
    space, gaps, others = SPACES[kind], [], []
    for seed in range(2):
        rng = np.random.default_rng(seed)
        true = rises(rng, 5, space.pairs)
        table = true * rng.lognormal(0, 0.7, (5, 1, 1)) if prior == 'sensitivities' else None
        optimum = min(value(true, strategy, space) for strategy in all_of(space))
        found = search(BayesSearcher(space, seed, table), true, 16)
        gaps.append(value(true, found.best(), space) - optimum)
        others.append(value(true, search(RandomSearcher(space, seed), true, 16).best(), space) - optimum)
        assert all(space.holds(strategy) for strategy, _ in found.history)
        assert all(strategy[layer] in space.choices(layer) for strategy, _ in found.history for layer in range(5))
        if table is not None:
            assert found.history[0][0] == ilp_allocation(table, space)
    assert min(gaps) > -1e-9
    assert max(gaps) < 1e-9 or np.mean(gaps) < 0.2 * np.mean(others), (gaps, others)


def test_in_noise_the_posterior_chooses_better_than_the_highest_reward():
    space, true = SPACES['weights'], rises(np.random.default_rng(0), 5, False)
    noise, chosen, luckiest = 0.5 * 2.5 * np.std([value(true, s, space) for s in all_of(space)]), [], []
    for seed in range(6):
        found = search(BayesSearcher(space, seed, true * 2), true, 12, noise, seed)
        lucky = max(found.history, key=lambda entry: entry[1])[0]
        chosen.append(value(true, found.best(), space))
        luckiest.append(value(true, lucky, space))
        ranked = max(({'strategy': strategy} for strategy, _ in found.history), key=found.rank)
        assert ranked['strategy'] == found.best()
    assert found.rank({'strategy': found.best(), 'diverged': 'nan'}) < found.rank({'strategy': lucky})
    assert np.mean(chosen) < np.mean(luckiest)


def test_all_proposals_are_new_and_a_batch_is_one_of_different_ones():
    rng = np.random.default_rng(0)
    space = tight(lambda found: ranged_space(found, min_bit=2, max_bit=5), [cost(rng, 12, 'a')])
    true = rises(rng, 12, False)
    searcher = search(BayesSearcher(space, 1, true), true, 10, noise=0.1)
    assert len({str(strategy) for strategy, _ in searcher.history}) == 10
    batch = searcher.propose_batch(4)
    assert len({str(strategy) for strategy in [*batch, *(each for each, _ in searcher.history)]}) == 14
    assert batch == searcher.propose_batch(4) and batch[0] == searcher.propose()  # it changes nothing


def test_a_search_goes_on_from_its_record():
    space, rng = SPACES['candidates'], np.random.default_rng(4)
    true = rises(rng, 5, True)
    whole = search(BayesSearcher(space, 3, true), true, 12, noise=0.1).history
    again = BayesSearcher(space, 3, true)
    replay(again, whole[:7])
    assert again.propose() == whole[7][0]
    assert search(BayesSearcher(space, 4, true), true, 12, noise=0.1).history != whole


@pytest.mark.parametrize('rewards', [[0.5] * 4, [1e-9, 2e-9, 3e-9, -1e-9], [-1e6, 3e5, 0.0, 1.0]])
def test_rewards_that_say_nothing_or_much_leave_proposals(rewards):
    space = SPACES['pairs, two budgets']
    searcher = BayesSearcher(space, 0, rises(np.random.default_rng(0), 5, True))
    for reward in rewards:
        searcher.observe(searcher.propose(), reward)
    assert np.isfinite(searcher.model.posterior()).all() and space.holds(searcher.propose())


def test_a_space_of_few_strategies_comes_to_its_end():
    own = dict(enumerate([LayerBits((4,)), LayerBits((2, 4)), LayerBits((8,))]))
    table = np.ones((3, 8, 8)) * BITS[:, None]
    space = Space([Constraint(CostTable(table, reference=24.0, name='size', unit='bits'), 16.0)], own=own)
    searcher = BayesSearcher(space, 0, rises(np.random.default_rng(0), 3, False))
    assert [searcher.observe(searcher.propose(), float(i)) for i in range(4)] and \
        searcher.best() in ([4, 2, 8], [4, 4, 8])
