"""Which actions should the replay hold: those the agent chose, or those of the strategy after the budget wall?

Runs the small allocation problem of tests/rl/test_allocation.py, whose optimum is known, with both choices at several
budgets, and prints how far the best strategy found is from the optimum (reward: 0 at one bit everywhere, 10 without
noise). docs/results.md has the table. About 15 minutes on one core:

    python benchmarks/store_action.py
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.rl.ddpg import DDPG  # noqa: E402
from tests.rl import test_allocation as problem  # noqa: E402

LAYERS = problem.LAYERS


def search(seed, executed, episodes):
    """Returns the rewards of a search that stores executed or chosen actions."""
    agent, rewards = DDPG(num_states=4, capacity=128 * LAYERS, seed=seed), []
    for episode in range(episodes):
        actions = []
        for i in range(LAYERS):
            actions.append(agent.act(state(i, actions), episode))
        bits = problem.execute(actions)
        rewards.append(problem.reward(bits))
        stored = [(b - 0.5) / 8 for b in bits] if executed else actions
        for i in range(LAYERS):
            agent.observe(state(i, stored), stored[i], rewards[-1], state(min(i + 1, LAYERS - 1), stored),
                          i == LAYERS - 1)
            if agent.learning(episode):
                agent.update_policy()
    return rewards


def state(layer, actions):
    """Returns what the agent sees at a layer: position, sensitivity, size, previous action."""
    previous = actions[layer - 1] if layer else 0.5
    return [layer / 7, problem.SENSITIVITY[layer] / 30, problem.SIZE[layer] / 8, previous]


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=8, help='searches per cell (default: 8)')
    parser.add_argument('--episodes', type=int, default=200, help='episodes per search (default: 200)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print('| budget (share of 8 bits) | chosen | executed | random search |\n|---|---|---|---|')
    for share in (0.25, 0.4, 0.6, 0.75):
        problem.LIMIT = int(share * 8 * problem.SIZE.sum())
        best = problem.reward(problem.optimum())
        gaps = [np.mean([best - max(search(seed, executed, args.episodes)) for seed in range(args.seeds)])
                for executed in (False, True)]
        rng = np.random.default_rng(0)
        gaps.append(np.mean([best - max(problem.reward(problem.execute(rng.random(LAYERS)))
                                        for _ in range(args.episodes)) for _ in range(20)]))
        print(f'| {share} | ' + ' | '.join(f'{gap:.3f}' for gap in gaps) + ' |', flush=True)


if __name__ == '__main__':
    main()
