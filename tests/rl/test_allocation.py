"""The agent finds the known optimum of a small allocation problem, which random search misses."""

import itertools

import numpy as np

from lib.rl.ddpg import DDPG

SENSITIVITY = np.array([2, 20, 5, 30, 1, 10, 4, 15])  # of eight layers; one bit more halves a layer's noise
SIZE = np.array([6, 2, 5, 1, 8, 3, 7, 2])
LIMIT = int(.4 * 8 * SIZE.sum())
LAYERS, EPISODES, NEAR = len(SIZE), 120, .16


def noise(layer: int, bits: int) -> float:
    return SENSITIVITY[layer] * 2. ** -bits


def reward(bits: list[int]) -> float:
    """10 without noise, 0 at one bit everywhere."""
    worst = sum(noise(i, 1) for i in range(LAYERS))
    return 10 * (1 - sum(noise(i, b) for i, b in enumerate(bits)) / worst)


def optimum() -> list[int]:
    """The best bits within the budget, by dynamic programming over the cost so far."""
    best = {0: (0., [])}  # cost: (least noise of the layers so far, their bits)
    for i in range(LAYERS):
        extended = {}
        for cost, (total, bits) in best.items():
            for b in range(1, 9):
                candidate = (total + noise(i, b), [*bits, b])
                spent = cost + b * int(SIZE[i])
                if spent <= LIMIT and candidate < extended.get(spent, (np.inf,)):
                    extended[spent] = candidate
        best = extended
    return min(best.values())[1]


def execute(actions: list[float]) -> list[int]:
    """Actions to bits, then from the last layer to the first one bit off each until the budget holds."""
    bits = np.clip(np.round(8 * np.array(actions) + .5), 1, 8).astype(int).tolist()
    backwards = itertools.cycle(reversed(range(LAYERS)))
    while np.dot(bits, SIZE) > LIMIT:
        i = next(backwards)
        bits[i] = max(bits[i] - 1, 1)
    return bits


def search(seed: int) -> list[float]:
    """Rewards of a search with the default settings."""
    agent = DDPG(num_states=4, capacity=128 * LAYERS, seed=seed)
    rewards = []
    for episode in range(EPISODES):
        states, actions = [], [.5]
        for i in range(LAYERS):
            states.append([i / 7, SENSITIVITY[i] / 30, SIZE[i] / 8, actions[-1]])
            actions.append(agent.act(states[-1], episode))
        rewards.append(reward(execute(actions[1:])))
        for i in range(LAYERS):
            last = i == LAYERS - 1
            agent.observe(states[i], actions[i + 1], rewards[-1], states[i if last else i + 1], last)
            if agent.learning(episode):
                agent.update_policy()
    return rewards


def test_finds_the_optimum_where_random_search_does_not():
    bits = optimum()
    assert np.dot(bits, SIZE) <= LIMIT and execute((np.array(bits) - .5) / 8) == bits
    best, rng = reward(bits), np.random.default_rng(0)
    random_gaps = [best - max(reward(execute(rng.random(LAYERS))) for _ in range(EPISODES)) for _ in range(20)]
    assert min(random_gaps) >= 0
    assert np.mean(np.array(random_gaps) > NEAR) >= .9

    rewards = search(seed=0)
    assert 0 <= best - max(rewards) < NEAR
    assert np.mean(rewards[-20:]) > np.mean(rewards[:21]) + 1  # the policy itself got better, it was not one lucky draw
