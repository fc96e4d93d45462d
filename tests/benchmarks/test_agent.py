"""The bench of the agent: its optimum is one, and its table has what was asked for."""

import numpy as np

from benchmarks import agent
from lib.search.allocation import ilp_allocation


def test_no_strategy_is_above_the_optimum_and_a_search_is_below_it_by_what_its_best_misses():
    kl, hessian = agent.read_tables()
    space, rng = agent.make_space(3, 2), np.random.default_rng(0)
    best = agent.points(kl, ilp_allocation(kl, space))
    assert all(agent.points(kl, space.within_budget(space.random(rng))) < best for _ in range(50))
    for name, make in agent.searchers(3, hessian).items():
        searcher = make(3, 0)
        gap = agent.gap(searcher, kl, best, 3, 0.0, 0)
        told = [agent.points(kl, strategy) for strategy, _ in searcher.history]
        assert len(told) == 3 and gap == best - max(told) > 0, name


def test_the_table(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['agent.py', '--evaluations', '2', '3', '--seeds', '2', '--rows', 'random', 'evol'])
    agent.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('the optimum has 93.14 points; below it: uniform bits 7.10')
    assert [line.split(' | ')[0] for line in lines[4:]] == ['| random, filled', '| evolution']
    assert all(line.count('±') == 2 for line in lines[4:])
