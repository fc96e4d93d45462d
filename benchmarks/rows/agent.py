"""Rows 6 and 10: the agent, and the cost side of a search."""

import numpy as np

from benchmarks import straightforward
from benchmarks.rows.measure import Row, alternate, faster, seconds
from benchmarks.rows.networks import network
from lib.network.records import profile_layers
from lib.rl.ddpg import DDPG
from lib.simulator import budget
from lib.simulator.backends import find_hardware
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from lib.simulator.hardware import make_table
from lib.simulator.layer_bits import LayerBits, bits_of_layers

EPISODES, COST_SECONDS = 600, 1.0
LAYERS = 53  # of MobileNetV2


def agent_rows(settings):
    """Returns row 6: all that the agent does in an episode after warm-up, beside plain DDPG; row 8 has its share."""
    return [_agent_row('K-means', 9, LAYERS, 128), _agent_row('linear', 10, 2 * LAYERS, 64)]


def _agent_row(flow, num_states, steps, episodes):
    """Times an episode of `steps` with a replay full of `episodes` episodes."""
    capacity, rng = episodes * steps, np.random.default_rng(0)
    ours = DDPG(num_states=num_states, capacity=capacity)
    plain = straightforward.Agent(num_states, capacity)
    for source, target in ((ours.actor, plain.actor), (ours.critic, plain.critic)):
        target.load_state_dict(source.state_dict())
    plain.copy_targets()
    gap = _updates_apart(ours, plain, rng.random((32, num_states)))
    states = rng.random((capacity, num_states))
    for agent in (ours, plain):
        _fill(agent, states)
    sides = {'ours': lambda: _episode(ours, states[:steps], lambda state: ours.act(state, ours.warmup + 1)),
             'straightforward': lambda: _episode(plain, states[:steps], lambda state: plain.select_action(state, 0.5))}
    return faster(6, f'agent, an episode of the {flow} flow ({steps} steps)', alternate(sides), None,
                  f'losses of 10 updates: {gap:.1e} apart at most (relative)')


def full_agent(num_states=9, steps=LAYERS, episodes=128):
    """Returns a function that does what the agent does in an episode, its replay full."""
    agent, states = DDPG(num_states=num_states, capacity=episodes * steps), np.random.default_rng(0).random(
        (episodes * steps, num_states))
    _fill(agent, states)
    return lambda: _episode(agent, states[:steps], lambda state: agent.act(state, agent.warmup + 1))


def _fill(agent, states):
    rng = np.random.default_rng(1)
    for state in states:
        agent.observe(state, rng.random(), rng.normal(), state, False)


def _updates_apart(ours, plain, states):
    """Trains both on the same few transitions, all of them in every batch; returns how far the losses are apart."""
    for index, state in enumerate(states):
        for agent in (ours, plain):
            agent.observe(state, index / len(states), index % 5, state, index == len(states) - 1)
    pairs = [(ours.update_policy(), plain.update_policy()) for _ in range(10)]
    return max(abs(a - b) / abs(b) for left, right in pairs for a, b in zip(left, right, strict=True))


def _episode(agent, states, act):
    actions = [act(state) for state in states]
    for index, (state, action) in enumerate(zip(states, actions, strict=True)):
        last = index == len(states) - 1
        agent.observe(state, action, 0.1, states[index if last else index + 1], last)
        agent.update_policy()


# ---- row 10


def wall_rows(settings):
    """Returns row 10: wall and cost of 600 random strategies, of weights alone and of pairs."""
    records = profile_layers(network('mobilenetv2').to('meta'), (3, 224, 224))
    size = model_size([record.num_weights for record in records])
    latency = make_table(records, find_hardware('edge'))
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 9, (EPISODES, len(records))).tolist()
    pairs = rng.integers(1, 9, (EPISODES, len(records), 2)).tolist()
    fixed = {0: [8, -1], len(records) - 1: [8, 8]}
    return [_wall_row('model size', Constraint.of_ratio(size, 0.1), weights, {}),
            _wall_row('latency, weights and activations', Constraint.of_ratio(latency, 0.4), pairs, fixed)]


def _wall_row(what, constraint, strategies, fixed):
    cost, found = constraint.cost, {}
    layer_bits = bits_of_layers(cost.num_layers, LayerBits.span(1), {i: LayerBits.of(e) for i, e in fixed.items()})

    def ours():
        fitted = [budget.fit(s, [constraint], layer_bits) for s in strategies]
        found['ours'] = [(s, cost.cost(s), cost.ratio(s)) for s in fitted]

    def plain():
        entries = [[entry if isinstance(entry, list) else [entry, -1] for entry in s] for s in strategies]
        found['plain'] = [straightforward.wall(s, cost.table, constraint.limit, 1, fixed) for s in entries]

    times = alternate({'ours': ours, 'plain': plain})
    same = sum(_pairs(s) == other and price == other_price
               for (s, price, _), (other, other_price) in zip(found['ours'], found['plain'], strict=True))
    held = sum(constraint.met_by(s) for s, *_ in found['ours'])
    return Row(10, f'{EPISODES} episodes of wall and cost on {cost.num_layers} layers, {what}', seconds(times['ours']),
               f'{seconds(times["plain"])} (summed anew after every bit)',
               f'{times["plain"] / times["ours"]:.3g}x faster',
               f'under {COST_SECONDS:g} s', times['ours'] < COST_SECONDS,
               f'{same} of {EPISODES} strategies and prices are the same; {held} hold the budget')


def _pairs(strategy):
    return [entry if isinstance(entry, list) else [entry, -1] for entry in strategy]
