"""Both environments on a tiny problem: budget kept, accuracy that of the strategy as priced, episodes reproducible."""

import copy
from dataclasses import replace

import pytest
import torch

from lib.env.space import Space
from lib.network.records import profile_layers
from lib.simulator.backends import find_hardware
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from lib.simulator.hardware import make_table
from lib.simulator.inventory import Inventory
from lib.training.loop import evaluate, loss_function
from lib.utils.quantize_utils import convert_to_quantized, quantizable_layers, quantized_layers, weight_counts
from tests.env.environments import SHAPE, kmeans_env, linear_env


def episode(env, actions, number=0):
    states, done = [env.reset()], False
    for action in actions:
        assert not done
        state, reward, done, outcome = env.step(action, number)
        states.append(state)
    assert done
    assert reward == outcome.reward
    return outcome, states[:-1]


def test_a_kmeans_episode_keeps_the_budget_and_quantizes_what_it_prices(tiny_net, tiny_loaders):
    env = kmeans_env(tiny_net, tiny_loaders)
    outcome, _ = episode(env, [0.99] * 4)
    sizes = [layer.weight.numel() for layer in quantizable_layers(tiny_net).values()]
    bits = sum(b * n for b, n in zip(outcome.strategy, sizes, strict=True))
    assert outcome.cost == bits <= 0.12 * 32 * sum(sizes)
    assert outcome.ratio == pytest.approx(bits / (32 * sum(sizes)))
    for b, layer in zip(outcome.strategy, quantizable_layers(tiny_net).values(), strict=True):
        assert len(layer.weight.unique()) <= 2 ** b  # still clustered after fine-tuning
    measured = evaluate(tiny_net, tiny_loaders[1], loss_function(), 'cpu').top1
    assert outcome.accuracy == measured
    assert outcome.reward == pytest.approx(0.1 * (measured - env.float_accuracy))


def test_a_linear_episode_pins_first_and_last_and_keeps_the_budget(tiny_net, tiny_loaders):
    env = linear_env(tiny_net, tiny_loaders)
    outcome, _ = episode(env, [0.0, 0.0] + [0.99] * 6)
    assert outcome.strategy[0] == [8, -1]
    assert outcome.strategy[-1] == [8, 8]
    assert env.space.cost.cost(outcome.strategy) == outcome.cost <= 0.7 * env.space.cost.reference
    layers = list(quantized_layers(tiny_net).values())
    assert [[layer.w_bit, layer.a_bit] for layer in layers] == outcome.strategy
    assert outcome.accuracy == evaluate(tiny_net, tiny_loaders[1], loss_function(), 'cpu').top1


def test_first_and_last_are_pinned_also_where_the_budget_is_met_at_once(tiny_net, tiny_loaders):
    env = linear_env(tiny_net, tiny_loaders, preserve_ratio=1.0)
    assert env.space.within_budget([[2, 2]] * 4) == [[8, -1], [2, 2], [2, 2], [8, 8]]


@pytest.mark.parametrize('make', [kmeans_env, linear_env])
def test_episodes_start_from_the_same_float_network(make, tiny_net, tiny_loaders):
    env = make(tiny_net, tiny_loaders)
    actions = [0.3, 0.9, 0.5, 0.7] * (env.space.num_steps // 4)
    first, states = episode(env, actions, 5)
    episode(env, [0.1] * env.space.num_steps, 6)
    again, same_states = episode(env, actions, 5)
    assert first == again
    assert states == same_states


def test_kmeans_states(tiny_net, tiny_loaders):
    env = kmeans_env(tiny_net, tiny_loaders)
    _, states = episode(env, [0.01, 0.99, 0.5, 0.5])
    assert [len(s) for s in states] == [9] * 4
    assert [s[-1] for s in states] == [4, 1, 8, bits_of(0.5)]  # raw bits; 4 at the first layer
    assert [s[7] for s in states] == pytest.approx([0, 1 / 3, 2 / 3, 1])


def bits_of(action):
    return round(0.5 + 8 * action)


def test_linear_states(tiny_net, tiny_loaders):
    env = linear_env(tiny_net, tiny_loaders)
    _, states = episode(env, [0.01, 0.99] * 4)
    assert [len(s) for s in states] == [10] * 8
    assert [s[-1] for s in states] == [1, 0] * 4  # 1 = the weight step
    assert [s[-2] for s in states] == [1, *[1 / 8, 1] * 3, 1 / 8]


@pytest.mark.parametrize('make', [kmeans_env, linear_env])
def test_the_trajectory_of_an_executed_strategy_is_that_of_acting_it(make, tiny_net, tiny_loaders):
    env = make(tiny_net, tiny_loaders, preserve_ratio=1.0)
    outcome, states = episode(env, [0.95] * env.space.num_steps)
    trajectory = env.space.trajectory(outcome.strategy)
    assert [state for state, _ in trajectory] == states
    env.reset()
    for _, action in trajectory:
        *_, done, replayed = env.step(action)
    assert replayed.strategy == outcome.strategy


def test_impossible_budgets_name_the_lowest_ratio(tiny_net, tiny_loaders):
    with pytest.raises(ValueError, match=r'0\.01 cannot be met.*lowest possible is 0\.03125'):
        kmeans_env(tiny_net, tiny_loaders, preserve_ratio=0.01)
    with pytest.raises(ValueError, match='lowest possible is 0.06250'):
        kmeans_env(tiny_net, tiny_loaders, preserve_ratio=0.05, min_bit=2)
    env = kmeans_env(tiny_net, tiny_loaders, preserve_ratio=1 / 32)
    assert episode(env, [0.9] * 4)[0].strategy == [1] * 4  # exactly the lowest is possible


@pytest.mark.parametrize(('low', 'high'), [(0, 8), (5, 4), (1, 9)])
def test_bit_ranges_are_checked(low, high, tiny_net, tiny_loaders):
    with pytest.raises(ValueError, match='min_bit'):
        kmeans_env(tiny_net, tiny_loaders, min_bit=low, max_bit=high)


def test_pruned_weights_stay_zero_and_cost_nothing(tiny_net, tiny_loaders):
    weight = tiny_net.pointwise.weight.data
    weight[weight.abs() < weight.abs().median()] = 0
    zeros = weight == 0
    env = kmeans_env(tiny_net, tiny_loaders, is_pruned=True)
    outcome, _ = episode(env, [0.8] * 4)
    assert (tiny_net.pointwise.weight[zeros] == 0).all()
    assert len(tiny_net.pointwise.weight[~zeros].unique()) <= 2 ** outcome.strategy[2]
    numbers = [layer.weight.numel() for layer in quantizable_layers(tiny_net).values()]
    assert env.space.cost.reference == 32 * (sum(numbers) - int(zeros.sum()))


def test_rewards(tiny_net, tiny_loaders):
    env = kmeans_env(tiny_net, tiny_loaders, reward_cost=True)
    outcome, _ = episode(env, [0.5] * 4)
    assert outcome.reward == pytest.approx(0.1 * (outcome.accuracy - env.float_accuracy + 1 / outcome.ratio))
    env = kmeans_env(tiny_net, tiny_loaders, use_top5=True)
    assert episode(env, [0.5] * 4)[0].accuracy == 100  # four classes: top-5 is all of them
    with pytest.raises(ValueError, match='reward_on train'):
        kmeans_env(tiny_net, tiny_loaders, reward_on='train', finetune_flag=False)


def test_training_accuracy_can_be_rewarded_as_in_the_original(tiny_net, tiny_loaders):
    env = linear_env(tiny_net, tiny_loaders, reward_on='train')
    assert env.float_accuracy == evaluate(tiny_net, tiny_loaders[0], loss_function(), 'cpu').top1
    outcome, _ = episode(env, [0.9] * env.space.num_steps)
    assert 0 <= outcome.accuracy <= 100


def test_tables_of_another_network_are_refused(tiny_net, tiny_loaders):
    net = convert_to_quantized(tiny_net, torch.randn(2, *SHAPE))
    records = profile_layers(net, SHAPE)
    constraints = [Constraint.of_ratio(make_table(records[:3], find_hardware('edge')), 0.6)]
    with pytest.raises(ValueError, match='3 layers, the network has 4'):
        Space.of(Inventory(records, linear=True), constraints)


def test_all_budgets_of_an_episode_are_kept(tiny_net, tiny_loaders):
    sizes = model_size(list(weight_counts(tiny_net).values()))
    env = linear_env(tiny_net, tiny_loaders, constraints=[Constraint.of_ratio(sizes, 0.18, '--constraint size')])
    outcome, _ = episode(env, [0.99] * env.space.num_steps)
    assert outcome.ratios == {'edge_latency': outcome.ratio, 'model_size': sizes.ratio(outcome.strategy)}
    assert outcome.ratios['model_size'] <= 0.18 and outcome.ratio <= 0.7


# ---- a quick look first

def screened_env(make, net, loaders, **settings):
    env = make(net, loaders, screen=16, **settings)
    env.val_loader.batch_size = 16
    return env


@pytest.mark.parametrize('make', [kmeans_env, linear_env])
def test_a_promising_strategy_is_fine_tuned_as_without_a_screen(make, tiny_net, tiny_loaders):
    strategy = make(tiny_net, tiny_loaders).space.within_budget([3] * 4 if make is kmeans_env else [[5, 5]] * 4)
    plain = make(copy.deepcopy(tiny_net), tiny_loaders).evaluate_strategy(strategy, 3)
    env = screened_env(make, copy.deepcopy(tiny_net), tiny_loaders)
    outcome = env.evaluate_strategy(strategy, 3)
    assert outcome.finetuned and outcome.screened is not None
    assert (outcome.accuracy, outcome.loss, outcome.reward) == (plain.accuracy, plain.loss, plain.reward)
    assert env.screen.pairs == [(outcome.screened, outcome.accuracy)]


def test_a_hopeless_strategy_is_not_fine_tuned(tiny_net, tiny_loaders):
    env = screened_env(kmeans_env, tiny_net, tiny_loaders, preserve_ratio=0.3)
    env.screen.pairs = [(float(x), 100.0 + 0.01 * x) for x in range(200, 220)]
    steps = []
    env._finetune = lambda *_: steps.append(1)  # would fail after it
    outcome = env.evaluate_strategy([1, 1, 1, 1])
    assert not steps and not outcome.finetuned
    assert outcome.accuracy == pytest.approx(100.0)
    assert len(env.screen.pairs) == 20
    assert outcome.ratio == pytest.approx(1 / 32)


def test_a_screen_needs_something_to_save(tiny_net, tiny_loaders):
    with pytest.raises(ValueError, match='saves fine-tuning'):
        kmeans_env(tiny_net, tiny_loaders, screen=8, finetune_flag=False)
    with pytest.raises(ValueError, match='reward_cost'):
        kmeans_env(tiny_net, tiny_loaders, screen=8, reward_cost=True)


@pytest.mark.parametrize('settings', [{}, {'reward_cost': True}, {'reward_on': 'train'}, {'bn_batches': 2}])
@pytest.mark.parametrize('make', [kmeans_env, linear_env])
def test_an_episode_that_diverges_is_the_worst_and_leaves_nothing(make, settings, tiny_net, tiny_loaders):
    other, strategy = copy.deepcopy(tiny_net), [[8, -1], [3, 3], [3, 3], [8, 8]] if make is linear_env else [3, 3, 3, 3]
    expected = make(other, tiny_loaders, **settings).evaluate_strategy(strategy, 1)
    env = make(tiny_net, tiny_loaders, **settings)
    before, env.settings = env.settings, replace(env.settings, finetune_lr=1e30)
    worst = env.evaluate_strategy(strategy, 0)
    assert worst.accuracy == 0 and worst.loss is None and 'nan' in worst.diverged
    assert worst.reward == pytest.approx(-0.1 * env.float_accuracy)
    assert worst.reward < expected.reward
    env.settings = before
    assert env.evaluate_strategy(strategy, 1) == expected
    assert expected.diverged is None


def test_an_episode_that_diverges_teaches_the_screen_nothing(tiny_net, tiny_loaders):
    tiny_loaders[1].batch_size = tiny_loaders[1].batch
    env = kmeans_env(tiny_net, tiny_loaders, screen=16, finetune_lr=1e30)
    assert env.evaluate_strategy([3, 3, 3, 3]).diverged
    assert env.screen.pairs == []
