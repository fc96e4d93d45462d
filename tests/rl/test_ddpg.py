"""The agent against hand-written mathematics: exploration, one update, targets, saving."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from lib.rl.ddpg import DDPG, truncated_normal

STATES = 3


def small_agent(**options) -> DDPG:
    options = {'num_states': STATES, 'hidden1': 5, 'hidden2': 4, 'capacity': 50, 'warmup': 2, 'seed': 1, **options}
    return DDPG(**options)


def fill(agent: DDPG, entries: int = 7, seed: int = 0) -> list[np.ndarray]:
    """Store random transitions; returns them as float64 columns s, a, r, s', terminal."""
    rng = np.random.default_rng(seed)
    columns = (rng.random((entries, STATES)), rng.random((entries, 1)), rng.normal(size=entries),
               rng.random((entries, STATES)), np.arange(entries) % 3 == 2)
    for transition in zip(*columns, strict=True):
        agent.observe(*transition)
    return [np.asarray(column, np.float32).astype(np.float64) for column in columns]


# ---- exploration

@pytest.mark.parametrize('mean', [0., 1e-9, .03, .5, .9, 1.])
@pytest.mark.parametrize('sigma', [1e-9, 1e-3, .05, .5, 3., 1e4])
def test_truncated_normal_has_scipys_distribution(mean, sigma):
    rng = np.random.default_rng(5)
    draws = [truncated_normal(mean, sigma, u) for u in rng.random(3000)]
    exact = stats.truncnorm(-mean / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
    assert min(draws) >= 0 and max(draws) <= 1
    assert stats.kstest(draws, exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize('mean', [0., .3, 1.])
def test_truncated_normal_is_uniform_for_endless_sigma(mean):
    for sigma in (1e12, 1e300, math.inf):
        for u in (0., .1, .5, .9, 1 - 2.**-53):
            assert truncated_normal(mean, sigma, u) == pytest.approx(u, abs=1e-8)


@pytest.mark.parametrize('mean', [0., .3, 1.])
@pytest.mark.parametrize('sigma', [0., sys.float_info.min, 1e-300, 1e-20])
def test_truncated_normal_is_its_mean_for_vanishing_sigma(mean, sigma):
    draws = [truncated_normal(mean, sigma, u) for u in (0., .3, 1 - 2.**-53)]
    assert draws == pytest.approx([mean] * 3, abs=1e-15)


@pytest.mark.parametrize(('mean', 'sigma'), [(-.1, 1), (1.1, 1), (math.nan, 1), (.5, -1), (.5, math.nan)])
def test_truncated_normal_refuses_what_is_no_distribution(mean, sigma):
    with pytest.raises(ValueError, match='expected a mean'):
        truncated_normal(mean, sigma, .5)


def test_sigma_starts_after_warm_up():
    agent = small_agent(warmup=20)
    assert [agent.delta(e) for e in (0, 20)] == [.5, .5]
    assert agent.delta(21) == pytest.approx(.5 * .99)
    assert agent.delta(120) == pytest.approx(.5 * .99 ** 100)


def test_warm_up_is_uniform_and_then_the_policy_acts():
    agent = small_agent(warmup=2, init_delta=0.)
    policy = agent.select_action([.1, .2, .3], episode=0, deterministic=True)
    assert [agent.learning(e) for e in range(4)] == [False, False, False, True]
    assert agent.act([.1, .2, .3], episode=3) == policy  # no noise: init_delta is 0
    random = [agent.act([.1, .2, .3], episode) for episode in (0, 1, 2) for _ in range(500)]
    assert stats.kstest(random, 'uniform').pvalue > 1e-3


def test_actions_are_floats_for_any_sequence_of_floats():
    agent = small_agent(init_delta=0.)
    frozen = np.array([.1, .2, .3], np.float32)
    frozen.flags.writeable = False
    states = [[.1, .2, .3], (.1, .2, .3), np.array([.1, .2, .3]), frozen, torch.tensor([.1, .2, .3])]
    actions = [agent.select_action(state, 5) for state in states]
    assert all(type(action) is float for action in (*actions, agent.random_action()))
    assert len(set(actions)) == 1 and 0 < actions[0] < 1


def test_seed_decides_everything_and_global_generators_are_left_alone():
    def actions(seed):
        agent = small_agent(seed=seed)
        fill(agent)
        agent.update_policy()
        return [agent.act([.1, .2, .3], episode) for episode in range(10)]
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = actions(seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002 - the global generator must not matter
    assert actions(seed=3) == first
    assert actions(seed=4) != first


def test_default_initialisation_of_torch():
    agent = DDPG(num_states=9, capacity=1)
    for layer in (agent.actor.fc1, agent.actor.fc2, agent.actor.fc3, agent.critic.fc_state, agent.critic.fc_action):
        bound = 1 / math.sqrt(layer.in_features)
        assert .9 * bound < layer.weight.abs().max() <= bound


# ---- one update, written out in float64

def numbers(net) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().astype(np.float64) for name, p in net.named_parameters()}


def relu(x):
    return np.maximum(x, 0)


def mu(p, s):
    h = relu(s @ p['fc1.weight'].T + p['fc1.bias'])
    h = relu(h @ p['fc2.weight'].T + p['fc2.bias'])
    return 1 / (1 + np.exp(-(h @ p['fc3.weight'].T + p['fc3.bias'])))


def q(p, s, a):
    h = relu(s @ p['fc_state.weight'].T + p['fc_state.bias'] + a @ p['fc_action.weight'].T + p['fc_action.bias'])
    h = relu(h @ p['fc2.weight'].T + p['fc2.bias'])
    return (h @ p['fc3.weight'].T + p['fc3.bias'])[:, 0]


def gradient(loss, parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Central differences of `loss(parameters)`."""
    result = {name: np.zeros_like(p) for name, p in parameters.items()}
    for name, p in parameters.items():
        for index in np.ndindex(p.shape):
            value, sides = p[index], []
            for step in (1e-6, -1e-6):
                p[index] = value + step
                sides.append(loss(parameters))
            p[index] = value
            result[name][index] = (sides[0] - sides[1]) / 2e-6
    return result


class Adam:
    def __init__(self, lr):
        self.lr, self.t, self.m, self.v = lr, 0, {}, {}

    def step(self, parameters, gradients):
        self.t += 1
        for name, g in gradients.items():
            self.m[name] = .9 * self.m.get(name, 0) + .1 * g
            self.v[name] = .999 * self.v.get(name, 0) + .001 * g * g
            m_hat, v_hat = self.m[name] / (1 - .9 ** self.t), self.v[name] / (1 - .999 ** self.t)
            parameters[name] -= self.lr * m_hat / (np.sqrt(v_hat) + 1e-8)


def assert_close(net, parameters, **tolerance):
    for name, p in net.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), parameters[name], err_msg=name, **tolerance)


@pytest.mark.parametrize('discount', [0., .9, 1.])
def test_updates_equal_the_written_out_ones(discount):
    agent = small_agent(lr_a=1e-3, lr_c=1e-2, tau=.1, discount=discount)
    s, a, r, s_next, terminal = fill(agent)  # fewer than bsize, so every update uses all of them
    actor, critic = numbers(agent.actor), numbers(agent.critic)
    actor_target, critic_target = numbers(agent.actor), numbers(agent.critic)
    actor_adam, critic_adam, baseline = Adam(1e-3), Adam(1e-2), r.mean()

    for _ in range(3):
        baseline += .5 * (r.mean() - baseline)
        y = (r - baseline) + discount * (1 - terminal) * q(critic_target, s_next, mu(actor_target, s_next))

        def value(p, y=y):
            return np.mean((q(p, s, a) - y) ** 2)

        def policy(p):
            return -np.mean(q(critic, s, mu(p, s)))

        value_loss, value_gradient = value(critic), gradient(value, critic)
        critic_adam.step(critic, value_gradient)
        policy_loss, policy_gradient = policy(actor), gradient(policy, actor)
        actor_adam.step(actor, policy_gradient)
        for target, net in ((actor_target, actor), (critic_target, critic)):
            for name in net:
                target[name] = .9 * target[name] + .1 * net[name]

        assert agent.update_policy() == pytest.approx((value_loss, policy_loss), rel=1e-4, abs=1e-6)
        for net, gradients in ((agent.actor, policy_gradient), (agent.critic, value_gradient)):
            for name, p in net.named_parameters():
                np.testing.assert_allclose(p.grad, gradients[name], rtol=1e-3, atol=1e-6, err_msg=name)
        for net, parameters in ((agent.actor, actor), (agent.critic, critic),
                                (agent.actor_target, actor_target), (agent.critic_target, critic_target)):
            assert_close(net, parameters, atol=2e-5)


def test_baseline_follows_the_rewards_by_halves():
    agent = small_agent(bsize=1, capacity=1)
    baselines = []
    for reward in (8., 0., 4.):
        agent.observe([0] * 3, .5, reward, [0] * 3, True)
        agent.update_policy()
        baselines.append(agent.baseline)
    assert baselines == [8., 4., 4.]


def test_n_update_is_that_many_updates():
    once, thrice = small_agent(bsize=2), small_agent(bsize=2, n_update=3)
    fill(once)
    fill(thrice)
    losses = [once.update_policy() for _ in range(3)]
    assert thrice.update_policy() == pytest.approx(np.mean(losses, axis=0).tolist())
    assert_close(thrice.critic, numbers(once.critic), atol=0)


def test_soft_update_moves_by_tau():
    agent = small_agent(tau=.25)
    fill(agent)
    old = numbers(agent.critic_target)
    agent.update_policy()
    new = numbers(agent.critic)
    assert_close(agent.critic_target, {n: .75 * old[n] + .25 * new[n] for n in old}, rtol=1e-6, atol=1e-7)
    copying = small_agent(tau=1.)
    fill(copying)
    copying.update_policy()
    assert_close(copying.actor_target, numbers(copying.actor), atol=0)


def test_a_loss_that_is_not_finite_is_named_and_changes_nothing():
    agent = small_agent()
    fill(agent)
    before = numbers(agent.critic)
    agent.observe([0] * 3, .5, math.nan, [0] * 3, True)
    with pytest.raises(FloatingPointError, match='value_loss is nan'):
        agent.update_policy()
    assert_close(agent.critic, before, atol=0)

    agent = small_agent()
    fill(agent)
    agent.actor.fc3.bias.data.fill_(math.nan)
    with pytest.raises(FloatingPointError, match='policy_loss is nan'):
        agent.update_policy()
    with pytest.raises(ValueError, match='got mean nan'):
        agent.select_action([0] * 3, 5)


def test_update_before_any_transition_is_refused():
    with pytest.raises(ValueError, match='empty'):
        small_agent().update_policy()


@pytest.mark.parametrize('option', [{'capacity': 0}, {'bsize': 0}, {'tau': 0}, {'tau': 2}, {'discount': 1.5},
                                    {'init_delta': -1}, {'n_update': 0}])
def test_settings_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        small_agent(**option)


# ---- saving

def continue_search(agent: DDPG) -> list:
    trace = []
    for episode in range(2, 6):
        fill(agent, entries=4, seed=episode)
        trace += [*agent.update_policy(), agent.act([.1, .2, .3], episode), agent.baseline]
    return trace


def test_resuming_continues_bit_for_bit(tmp_path):
    agent = small_agent(bsize=3, capacity=9)
    fill(agent)
    agent.update_policy()
    agent.random_action()
    torch.save(agent.state_dict(), tmp_path / 'search.pth')
    expected = continue_search(agent)

    resumed = small_agent(bsize=3, capacity=9, seed=99)
    resumed.load_state_dict(torch.load(tmp_path / 'search.pth', weights_only=True))
    assert continue_search(resumed) == expected


def test_a_state_dict_is_a_snapshot():
    agent = small_agent(bsize=3)
    fill(agent)
    agent.update_policy()
    state = agent.state_dict()
    traces = []
    for _ in range(2):  # continuing an agent must not change the snapshot that the next one starts from
        agent.load_state_dict(state)
        traces.append(continue_search(agent))
    assert traces[0] == traces[1]


def test_another_size_is_refused():
    state = small_agent().state_dict()
    with pytest.raises(ValueError, match='hidden1'):
        small_agent(hidden1=6).load_state_dict(state)
    with pytest.raises(ValueError, match='capacity'):
        small_agent(capacity=51).load_state_dict(state)


@pytest.mark.parametrize('part', ['actor', 'critic_target', 'actor_optimizer'])
@pytest.mark.parametrize('value', ['x', [], 3, {1: 2}, {'param_groups': [[]], 'state': {}}, {'fc1.weight': 'x'}])
def test_a_damaged_part_is_refused_by_name(part, value):
    agent = small_agent()
    with pytest.raises(ValueError, match=f'{part} does not fit this agent|this is no state of an agent'):
        agent.load_state_dict({**agent.state_dict(), part: value})


@pytest.mark.parametrize('value', ['x', [], 3, {1: 2}])
def test_damaged_weights_are_refused_by_file(tmp_path, value):
    small_agent().save_model(tmp_path)
    torch.save(value, tmp_path / 'critic.pkl')
    with pytest.raises(ValueError, match='critic.pkl'):
        small_agent().load_weights(tmp_path)


def flat(optimizer: torch.optim.Adam) -> dict:
    """The state of an optimizer as searches of before saved it: one tensor over all parameters."""
    state = optimizer.state_dict()
    moments = {name: torch.cat([entry[name].flatten() for entry in state['state'].values()])
               for name in ('exp_avg', 'exp_avg_sq')}
    return {'lr': state['param_groups'][0]['lr'], 'steps': state['state'][0]['step'], **moments}


def test_a_search_of_before_goes_on():
    agent, resumed = small_agent(bsize=3, lr_a=1e-2), small_agent(bsize=3, seed=99)
    fill(agent)
    agent.update_policy()
    optimizers = {name: flat(getattr(agent, name)) for name in ('actor_optimizer', 'critic_optimizer')}
    resumed.load_state_dict({**agent.state_dict(), **optimizers})
    assert continue_search(resumed) == continue_search(agent)
    wider = flat(filled_agent(hidden2=9).actor_optimizer)
    with pytest.raises(ValueError, match='exp_avg of Adam has .* values, expected'):
        agent.load_state_dict({**agent.state_dict(), 'actor_optimizer': wider})


def test_the_actor_learns_without_changing_what_the_critic_learns():
    agent = filled_agent()
    before = [p.grad.clone() for p in agent.critic.parameters()]
    agent.compute_loss_pi(torch.zeros(2, STATES)).backward(inputs=list(agent.actor.parameters()))
    assert all(torch.equal(p.grad, g) for p, g in zip(agent.critic.parameters(), before, strict=True))


def filled_agent(**options) -> DDPG:
    """An agent after one update."""
    agent = small_agent(**options)
    fill(agent)
    agent.update_policy()
    return agent


def test_weights_make_the_same_policy(tmp_path):
    agent, other = small_agent(), small_agent(seed=2)
    fill(agent)
    agent.update_policy()
    agent.save_model(tmp_path / 'run')
    other.load_weights(tmp_path / 'run')
    assert sorted(path.name for path in (tmp_path / 'run').iterdir()) == ['actor.pkl', 'critic.pkl']
    for name in ('actor', 'critic'):
        assert_close(getattr(other, name), numbers(getattr(agent, name)), atol=0)
        assert_close(getattr(other, f'{name}_target'), numbers(getattr(agent, name)), atol=0)
    with pytest.raises(ValueError, match=r'actor\.pkl does not fit'):
        small_agent(hidden2=9).load_weights(tmp_path / 'run')
    with pytest.raises(FileNotFoundError, match=r'actor\.pkl'):
        other.load_weights(tmp_path)
