"""compare_searchers.py by command: every searcher in both flows, killed and resumed, refused where it must be."""

import csv
import json

import numpy as np
import pytest

from lib.record.strategy import uniform_strategy
from lib.simulator.cost import CostTable
from tests.runs import log_without_seconds

ALL = ('uniform', 'random', 'greedy', 'ilp', 'hessian', 'fisher', 'kl', 'bayes', 'evolution', 'progressive', 'ddpg')
SMALL = ('--train_size', '64', '--val_size', '24', '--train_batch', '32', '--test_batch', '64', '--warmup', '1',
         '--hidden1', '32', '--hidden2', '32', '--evaluations', '4', '--final_epochs', '0', '--seeds', '1', '2',
         '--min_bit', '2', '--max_bit', '6')


def rows(folder):
    with open(folder / 'comparison.csv', newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def files(folder):
    """Everything that a comparison leaves, but for the clock and the figure."""
    found = {}
    for path in sorted(folder.rglob('*.json')):
        value = json.loads(path.read_text())
        for row in [value, *value.get('rows', [])]:
            row.pop('seconds', None)
            row.pop('digest', None)  # of the seconds, too
        found[path.name] = value if path.name != 'args.json' else None
    return found


@pytest.fixture(scope='module')
def options(small, small_weights):
    """Options of a K-means comparison, but for its folder."""
    return (*small, '--weights', small_weights, '--budgets', 'uniform:3', *SMALL)


@pytest.fixture(scope='module')
def comparison(succeed, options, tmp_path_factory):
    """Folder of a comparison of all searchers, and what it said."""
    folder = tmp_path_factory.mktemp('compare') / 'kmeans'
    return folder, succeed('compare_searchers.py', *options, '--output', folder, cwd=folder.parent).out


def test_all_searchers(comparison):
    folder, out = comparison
    found = rows(folder)
    assert [(row['searcher'], row['seed']) for row in found] == [(name, seed) for name in ALL for seed in '12']
    for row in found:
        assert float(row['ratio']) <= 3 / 32
        assert 0 < float(row['top1']) <= 100
        assert all(2 <= bit <= 6 for bit in json.loads(row['strategy']))
    evaluations = {row['searcher']: int(row['evaluations']) for row in found}
    assert evaluations == dict(zip(ALL, (1, 4, 1, 1, 1, 1, 1, 4, 4, 1, 4), strict=True))
    images = {row['searcher']: int(row['forwards']) for row in found}
    assert images['uniform'] == 24  # one evaluation of 24 images
    assert images['random'] == 4 * 24
    every_cell = 24 + (5 * 5 + 1) * (3 * 24 // 26)  # and the float network
    assert images['greedy'] == images['ilp'] == images['kl'] == every_cell
    assert images['ddpg'] <= 4 * 24  # strategies that come again are not evaluated again
    assert int(next(row['backwards'] for row in found if row['searcher'] == 'hessian')) > 0
    assert (folder / 'pareto.png').is_file()
    table = (folder / 'comparison.md').read_text()
    assert table.strip() in out
    assert '| uniform:3 | ddpg |' in table


def test_the_same_strategy_is_evaluated_once_without_training(comparison):
    folder, _ = comparison
    tops = {}
    for row in rows(folder):
        assert tops.setdefault(row['strategy'], row['top1']) == row['top1']
    assert len(list((folder / 'finetuned').glob('*_seed0.json'))) == len(tops)


@pytest.fixture(scope='module')
def short(succeed, options, tmp_path_factory):
    """Options of a comparison of two searchers with fine-tuning, and its folder."""
    folder = tmp_path_factory.mktemp('compare') / 'short'
    options = (*options, '--searchers', 'random', 'ddpg', '--seeds', '1', '--evaluations', '3', '--final_epochs', '1',
               '--final_batch', '512')
    succeed('compare_searchers.py', *options, '--output', folder, cwd=folder.parent)
    return options, folder


def test_a_killed_comparison_goes_on_to_the_same_numbers(call, crash, short, tmp_path):
    """Killed before one of its files is written: twice within a search, then within a fine-tuning."""
    options, whole = short
    folder = tmp_path / 'killed'
    crash('*.json', 3, 'compare_searchers.py', *options, '--output', folder, cwd=tmp_path)
    for writes, searched in ((3, False), (6, True)):
        crash('*.json', writes, 'compare_searchers.py', '--resume', folder, cwd=tmp_path)
        assert (folder / 'comparison.md').is_file() == searched
    done = call('compare_searchers.py', '--resume', folder, cwd=tmp_path)
    assert done.code == 0, done.err
    assert files(folder) == files(whole)
    assert len(rows(folder)) == 2


def test_seeds_and_searchers_can_be_added(succeed, options, tmp_path):
    folder = tmp_path / 'grown'
    succeed('compare_searchers.py', *options, '--searchers', 'uniform', '--seeds', '1', '--output', folder,
            cwd=tmp_path)
    before = {path: path.read_bytes() for path in folder.glob('*/*.json')}
    (tmp_path / 'mine.txt').write_text(str([8, *[2] * 4]))
    succeed('compare_searchers.py', '--resume', folder, '--searchers', 'random', '--seeds', '2', '--policy',
            'mine=mine.txt', '--policy', 'big=uniform:5', cwd=tmp_path)
    added = rows(folder)
    succeed('compare_searchers.py', '--resume', folder, cwd=tmp_path)
    assert rows(folder) == added  # what was added stays
    assert [(row['searcher'], row['seed']) for row in rows(folder)] == [
        (name, seed) for name in ('uniform', 'random', 'mine', 'big') for seed in '12']
    assert [row['above_budget'] for row in rows(folder)] == ['False'] * 6 + ['True'] * 2
    assert rows(folder)[4]['strategy'] == str([8, *[2] * 4])
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_linear_flow_under_latency(succeed, small, small_weights, tmp_path):
    folder, table = tmp_path / 'linear', tmp_path / 'table.npy'
    succeed('make_lookup_table.py', *small[:6], '--hardware', 'cloud', '--output', table, '--no-plot', cwd=tmp_path)
    succeed('compare_searchers.py', *small, '--linear_quantization', '--weights', small_weights, '--cost', table,
            '--budgets', '0.6', *SMALL, '--seeds', '1', '--evaluations', '2', '--calibrate', 'max',
            '--output', folder, cwd=tmp_path)
    found = rows(folder)
    assert [row['searcher'] for row in found] == list(ALL)
    images = {row['searcher']: int(row['forwards']) for row in found}
    assert images['uniform'] == 24 and images['random'] == 2 * 24  # the ranges, which all share, are paid by nobody
    for row in found:
        strategy = json.loads(row['strategy'])
        assert strategy[0] == [8, -1] and strategy[-1] == [8, 8]
        assert float(row['ratio']) <= 0.6


def test_refuses_to_resume_with_other_settings(call, comparison, tmp_path):
    folder, _ = comparison
    before = (folder / 'comparison.json').read_bytes()
    done = call('compare_searchers.py', '--resume', folder, '--evaluations', '9', '--min_bit', '1', cwd=tmp_path)
    assert done.code and '--evaluations was 4, now 9' in done.err and '--min_bit was 2, now 1' in done.err
    done = call('compare_searchers.py', '--resume', tmp_path, cwd=tmp_path)
    assert done.code and 'no comparison is there' in done.err
    assert (folder / 'comparison.json').read_bytes() == before


SHORT = ('--preserve_ratio', '0.1', '--no-finetune_flag')


def check_search(folder, searcher, episodes):
    """What a search without an agent leaves."""
    found = json.loads((folder / 'results.json').read_text())
    assert found['episodes'] == episodes and found['searcher'] == searcher and found['ratio'] <= 0.1
    assert json.loads((folder / 'strategy.json').read_text())['strategy'] == found['strategy']
    assert not (folder / 'actor.pkl').exists()


@pytest.mark.parametrize('searcher', ['ilp', 'uniform', 'progressive'])
def test_other_searchers_of_rl_quantize(succeed, small_search, tmp_path, searcher):
    succeed('rl_quantize.py', *small_search, *SHORT, '--searcher', searcher, '--output', 'save', cwd=tmp_path)
    check_search(tmp_path / 'save' / 'small_digits', searcher, episodes=1)


def test_a_search_of_candidates_and_pins_goes_on_with_them(succeed, call, small_search, tmp_path):
    options = (*small_search, '--min_bit', '1', '--max_bit', '8', '--candidates', '2,4,8', '--candidates',
               'layer1.*=4,8', '--pin', 'linear=8', '--pin', 'stem.conv1=6', '--no-finetune_flag', '--output', 'save')
    succeed('rl_quantize.py', *options, '--suffix', 'whole', cwd=tmp_path)
    succeed('rl_quantize.py', *options, '--suffix', 'part', '--train_episode', '2', cwd=tmp_path)
    done = call('rl_quantize.py', '--resume', 'save/small_digits_part', '--candidates', '2,4', cwd=tmp_path)
    assert done.code and "--candidates was ['2,4,8', 'layer1.*=4,8'], now ['2,4']" in done.err
    succeed('rl_quantize.py', '--resume', 'save/small_digits_part', '--train_episode', '4', cwd=tmp_path)
    whole, part = (log_without_seconds(tmp_path / 'save' / f'small_digits_{name}') for name in ('whole', 'part'))
    assert whole == part
    found = json.loads((tmp_path / 'save' / 'small_digits_part' / 'strategy.json').read_text())
    assert found['candidates'] == ['2,4,8', 'layer1.*=4,8'] and found['pins'] == ['linear=8', 'stem.conv1=6']
    able = {'stem.conv1': {6}, 'linear': {8}}
    assert all(bits in able.get(name, {4, 8} if name.startswith('layer1') else {2, 4, 8})
               for name, bits in zip(found['layers'], found['strategy'], strict=True)) and found['ratio'] <= 0.13


def test_a_search_by_evolution_goes_on_to_the_same_numbers(succeed, small_search, tmp_path):
    options = (*small_search, *SHORT, '--searcher', 'evolution', '--output', 'save')
    succeed('rl_quantize.py', *options, '--suffix', 'whole', cwd=tmp_path)
    check_search(tmp_path / 'save' / 'small_digits_whole', 'evolution', episodes=4)
    succeed('rl_quantize.py', *options, '--suffix', 'part', '--train_episode', '2', cwd=tmp_path)
    succeed('rl_quantize.py', '--resume', 'save/small_digits_part', '--train_episode', '4', cwd=tmp_path)
    whole, part = (log_without_seconds(tmp_path / 'save' / f'small_digits_{name}') for name in ('whole', 'part'))
    assert whole == part


def test_the_budget_of_uniform_bits_is_what_they_cost_to_the_last_digit():
    from _costs import constraint_on
    table = np.zeros((3, 8, 8), dtype=np.int64)
    table[1, 1, 1], table[1, 7, 7] = 400167, 1571191
    cost = CostTable(table, reference=1571191, name='net', unit='cycles')
    assert 400167 / 1571191 * 1571191 < 400167, 'by way of the ratio, rounding takes a bit from every layer'
    for linear in (True, False):
        strategy = uniform_strategy(3, 2, linear=linear)
        assert constraint_on(cost, 'uniform:2', linear, '').limit == cost.cost(strategy)
    assert constraint_on(cost, 0.5, True, '').limit == 0.5 * 1571191
