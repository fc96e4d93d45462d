"""Searches of rl_quantize.py that solve for a strategy: shared sensitivities, bayes, budgets by the dozen."""

import csv

import numpy as np

from lib.record.arrays import read_npz
from tests.runs import history


def test_searches_share_their_sensitivities(succeed, refused, small_search, tmp_path):
    """Another budget on another cost, with fewer bits and a single episode, measures nothing."""
    shared = tmp_path / 'sensitivities.npz'
    options = (*small_search, '--no-finetune_flag', '--sensitivity_images', '8', '--sensitivities', shared,
               '--searcher', 'kl', '--output', tmp_path)
    succeed('rl_quantize.py', *options, '--suffix', 'a', cwd=tmp_path)
    file, written = read_npz(shared), shared.stat().st_mtime_ns
    succeed('rl_quantize.py', *options, '--suffix', 'b', '--cost', 'bitops', '--preserve_ratio', 'uniform:4',
            '--train_episode', '1', '--max_bit', '5', cwd=tmp_path)
    first, second = (tmp_path / f'small_digits_{suffix}' for suffix in 'ab')
    mine = read_npz(second / 'sensitivity_kl.npz')
    assert mine['seconds'] == file['kl.seconds'] and shared.stat().st_mtime_ns == written
    np.testing.assert_array_equal(mine['table'][:, 1:5, 7], file['kl.table'][:, 1:5, 7])
    assert (second / 'sensitivity_kl.png').is_file() and history(first)[0]['strategy'] != history(second)[0]['strategy']
    assert tuple(history(first)[0]['images']) == (8 * (1 + 5 * 5) + 64, 0)
    refused(first, [f'{shared} cannot be used', 'seed differ', 'as --sensitivities, or delete it'], 'rl_quantize.py',
            *options, '--suffix', 'a', '--overwrite', '--seed', '7')
    shared.rename(tmp_path / 'moved.npz')
    succeed('rl_quantize.py', '--resume', first, '--sensitivities', tmp_path / 'moved.npz', cwd=tmp_path)


def test_bayes_in_both_flows_goes_on_to_the_same_numbers(succeed, small_search, tmp_path):
    linear = ('--linear_quantization', '--cost', 'bitops', '--preserve_ratio', '0.4')
    for more, sensitivity, name in (((), 'fisher', 'kmeans'), (linear, 'hessian', 'linear')):
        options = (*small_search, *more, '--no-finetune_flag', '--searcher', 'bayes', '--sensitivity', sensitivity,
                   '--sensitivity_images', '4', '--output', tmp_path, '--min_bit', '3', '--max_bit', '5')
        whole, part = (tmp_path / f'small_digits_{name}_{suffix}' for suffix in ('whole', 'part'))
        succeed('rl_quantize.py', *options, '--suffix', f'{name}_whole', cwd=tmp_path)
        succeed('rl_quantize.py', *options, '--suffix', f'{name}_part', '--train_episode', '2', cwd=tmp_path)
        succeed('rl_quantize.py', '--resume', part, '--train_episode', '4', cwd=tmp_path)
        assert history(whole) == history(part)
        assert len({str(record['strategy']) for record in history(whole)}) == 4
        assert (whole / f'sensitivity_{sensitivity}.npz').is_file()


FRONT = ('--no-finetune_flag', '--sensitivity_images', '8', '--sensitivity', 'fisher', '--min_bit', '2', '--max_bit',
         '5')


def without_budget(options):
    at = options.index('--preserve_ratio')
    return (*options[:at], *options[at + 2:])


def test_a_front_by_bayes_goes_on_to_the_same_numbers(succeed, small_search, crash, tmp_path):
    options = (*without_budget(small_search), *FRONT, '--searcher', 'bayes', '--pareto', '4', '--output', tmp_path)
    done = succeed('rl_quantize.py', *options, '--suffix', 'whole', cwd=tmp_path)
    crash('search.pth.tar', 3, 'rl_quantize.py', *options, '--suffix', 'part', cwd=tmp_path)
    succeed('rl_quantize.py', '--resume', tmp_path / 'small_digits_part', cwd=tmp_path)
    whole, part = (tmp_path / f'small_digits_{suffix}' for suffix in ('whole', 'part'))
    assert (whole / 'pareto.csv').read_text() == (part / 'pareto.csv').read_text()
    with open(whole / 'pareto.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    budgets = [float(row['budget']) for row in rows]
    assert len(rows) == 4 and (whole / 'pareto.png').is_file()
    np.testing.assert_allclose([budgets[0], budgets[-1]], [2 / 32, 5 / 32])
    assert all(float(row['ratio']) <= budget for row, budget in zip(rows, budgets, strict=True))
    assert f'{budgets[1]:.4f}' in done.out and not (tmp_path / 'small_digits' / 'pareto.csv').exists()


def test_the_least_size_within_a_drop_of_accuracy(succeed, refused, small_search, read_json, tmp_path):
    options = (*without_budget(small_search), *FRONT, '--searcher', 'fisher', '--train_episode', '12', '--output',
               tmp_path, '--constraint', 'bitops=0.9')
    succeed('rl_quantize.py', *options, '--accuracy_drop', '3', cwd=tmp_path)
    folder = tmp_path / 'small_digits'
    records, best = history(folder), read_json(folder / 'results.json')
    enough = [record for record in records if record['accuracy'] >= best['float_accuracy'] - 3]
    assert best['strategy'] == min(enough, key=lambda record: record['cost'])['strategy']
    assert best['strategy'] == read_json(folder / 'strategy.json')['strategy'] and 1 < len(records) <= 12
    assert any(record['cost'] < best['cost'] for record in records)  # which are not good enough
    succeed('rl_quantize.py', '--resume', folder, cwd=tmp_path)
    assert history(folder) == records
    for more, words in ((('--preserve_ratio', '0.1'), ['--accuracy_drop 3 looks for the budget', '--preserve_ratio']),
                        (('--pareto', '3'), ['--pareto 3 and --accuracy_drop 3: give one of them']),
                        (('--searcher', 'random'), ['--accuracy_drop asks for', 'as --searcher'])):
        refused(tmp_path, words, 'rl_quantize.py', *options, '--accuracy_drop', '3', *more, '--overwrite')
