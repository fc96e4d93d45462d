"""Each change of the agent alone against HAQ's agent, at equal evaluations, on the measured model of a network.

A strategy of ResNet-20 is worth 100 exp(-D) points, D the sum over the layers of the KL divergence from the float
network's outputs when this layer alone is clustered, as measured on CIFAR-10 (benchmarks/resnet20_kl.csv). The optimum
under a budget is known exactly. Warm starts and filling get sensitivities by the Hessian, another measurement of the
same network. Prints how many points the best strategy of a search is below the optimum, mean and standard error over
the seeds; no network is evaluated. docs/results.md has the table. About 20 minutes on one core:

    python benchmarks/agent.py
"""

import argparse
import csv
import functools
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

from _search import RECIPES  # noqa: E402

from lib.env.space import Space  # noqa: E402
from lib.network.coverage import inventory_of  # noqa: E402
from lib.rl.ddpg import DDPG, decay_to  # noqa: E402
from lib.search.agent import AgentSearcher  # noqa: E402
from lib.search.allocation import filled_allocation, ilp_allocation  # noqa: E402
from lib.search.baselines import RandomSearcher, fill  # noqa: E402
from lib.search.bayes import BayesSearcher  # noqa: E402
from lib.search.evolution import EvolutionSearcher  # noqa: E402
from lib.simulator.budget import Constraint  # noqa: E402
from lib.simulator.cost import MAX_BIT  # noqa: E402
from lib.simulator.counting import model_size  # noqa: E402
from models import create_model  # noqa: E402

MEASURED = Path(__file__).with_name('resnet20_kl.csv')
CHANGES = {  # of HAQ's agent, whose layers have at least 2 bits but in the first row
    "HAQ's agent, 1 to 8 bits": {'min_bit': 1},
    "HAQ's agent, 2 to 8 bits": {},
    'fill': {'fill': True},
    'sigma ends at 0.05': {'delta_end': 0.05},
    'warm start by sensitivities': {'warm_start': 'sensitivity'},
    'warm start by bayes': {'warm_start': 'bayes'},
    'executed actions in the replay': {'store_action': 'executed'},
    '2 updates a step': {'n_update': 2},
    'fast recipe': {name: value for name, value in RECIPES['fast'].items() if name in (
        'fill', 'delta_end', 'init_delta', 'warm_start', 'warmup', 'store_action', 'n_update')},
}


def read_tables():
    """Return (KL, Hessian), each (layers, 8, 8) with weight bits in the rows of a layer."""
    with open(MEASURED, newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    return (np.repeat(np.array([float(row[name]) for row in rows]).reshape(-1, MAX_BIT, 1), MAX_BIT, axis=2)
            for name in ('kl', 'hessian'))


@functools.cache
def make_space(bits, min_bit):
    """Return the strategies of ResNet-20 that are no larger than so many bits everywhere."""
    inventory = inventory_of(create_model('resnet20', num_classes=10), (3, 32, 32), False)
    return Space.of(inventory, [Constraint.of_ratio(model_size(inventory.weights), bits / 32)], min_bit=min_bit)


def points(table, strategy):
    """Return what a strategy is worth."""
    return 100 * math.exp(-sum(table[layer, bits - 1, 0] for layer, bits in enumerate(strategy)))


def make_agent(space, hessian, evaluations, seed, *, warm_start='none', store_action='chosen', delta_end=None,
               **settings):
    """Return HAQ's agent with some changes, called like the options of rl_quantize.py."""
    warm, filled = warm_start != 'none', settings.pop('fill', False)
    settings = {'warmup': 20, 'init_delta': 0.5, **settings}
    if delta_end:
        settings['delta_decay'] = decay_to(delta_end, settings['init_delta'], evaluations - 1 - settings['warmup'])
    agent = DDPG(num_states=space.num_states, capacity=128 * space.num_layers, seed=seed, **settings)
    filling = functools.partial(filled_allocation, hessian, space) if warm else functools.partial(fill, space)
    teacher = BayesSearcher(space, seed, hessian) if warm_start == 'bayes' else None
    return AgentSearcher(space, agent, store_action, hessian if warm and not teacher else None,
                         filling if filled else None, teacher)


def gap(searcher, table, best, evaluations, noise, seed):
    """Return by how many points the best strategy of a search, as it was told, is below the optimum."""
    rng, told = np.random.default_rng([seed, 1]), {}
    for _ in range(evaluations):
        strategy = searcher.propose()
        measured = points(table, strategy) + noise * rng.standard_normal()
        searcher.observe(strategy, told.setdefault(str(strategy), 0.1 * (measured - 100)))
    return best - points(table, searcher.best())


def searchers(bits, hessian):
    """Return {row: (evaluations, seed) -> searcher}."""
    def agent(evaluations, seed, *, min_bit=2, **change):
        return make_agent(make_space(bits, min_bit), hessian, evaluations, seed, **change)
    return {**{name: functools.partial(agent, **change) for name, change in CHANGES.items()},
            'random, filled': lambda _, seed: RandomSearcher(make_space(bits, 2), seed),
            'bayes': lambda _, seed: BayesSearcher(make_space(bits, 2), seed, hessian),
            'evolution': lambda _, seed: EvolutionSearcher(make_space(bits, 2), seed)}


def spread(values):
    """Return mean and standard error as text."""
    return f'{statistics.fmean(values):.2f} ± {statistics.stdev(values) / len(values) ** 0.5:.2f}'


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3, help='searches per cell, at least 2 (default: 3)')
    parser.add_argument('--evaluations', type=int, nargs='+', default=[60, 200], help='(default: 60 200)')
    parser.add_argument('--noise', type=float, nargs='+', default=[0.5], help='standard deviation of an evaluation in '
                        'points (default: 0.5)')
    parser.add_argument('--bits', type=float, default=3, help='budget: so many bits in every layer (default: 3)')
    parser.add_argument('--rows', nargs='+', help='words in the names of the rows (default: all rows)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    kl, hessian = read_tables()
    space = make_space(args.bits, 2)
    best, cells = points(kl, ilp_allocation(kl, space)), [(e, n) for n in args.noise for e in args.evaluations]
    known = {'uniform bits': [int(args.bits)] * space.num_layers, 'integer program': ilp_allocation(hessian, space)}
    print(f'the optimum has {best:.2f} points; below it: ' + ', '.join(
        f'{name} {best - points(kl, strategy):.2f}' for name, strategy in known.items()) + '\n')
    print('| | ' + ' | '.join(f'{e} evaluations, noise {n:g}' for e, n in cells) + ' |')
    print('|---' * (len(cells) + 1) + '|')
    for name, make in searchers(args.bits, hessian).items():
        if not args.rows or any(word in name for word in args.rows):
            gaps = ([gap(make(e, seed), kl, best, e, n, seed) for seed in range(args.seeds)] for e, n in cells)
            print(f'| {name} | ' + ' | '.join(map(spread, gaps)) + ' |', flush=True)


if __name__ == '__main__':
    main()
