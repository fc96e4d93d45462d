"""Searches of rl_quantize.py that solve for a strategy: sensitivities that runs share."""

import numpy as np

from lib.record.arrays import read_npz
from tests.runs import history


def test_searches_share_their_sensitivities(succeed, refused, kmeans_options, tmp_path):
    """Another budget on another cost, with fewer bits and a single episode, measures nothing."""
    shared = tmp_path / 'sensitivities.npz'
    options = (*kmeans_options, '--no-finetune_flag', '--sensitivity_images', '8', '--sensitivities', shared,
               '--searcher', 'kl', '--output', tmp_path)
    succeed('rl_quantize.py', *options, '--suffix', 'a', cwd=tmp_path)
    file, written = read_npz(shared), shared.stat().st_mtime_ns
    succeed('rl_quantize.py', *options, '--suffix', 'b', '--cost', 'bitops', '--preserve_ratio', 'uniform:4',
            '--train_episode', '1', '--max_bit', '5', cwd=tmp_path)
    first, second = (tmp_path / f'resnet20_digits_{suffix}' for suffix in 'ab')
    mine = read_npz(second / 'sensitivity_kl.npz')
    assert mine['seconds'] == file['kl.seconds'] and shared.stat().st_mtime_ns == written
    np.testing.assert_array_equal(mine['table'][:, 1:5, 7], file['kl.table'][:, 1:5, 7])
    assert (second / 'sensitivity_kl.png').is_file() and history(first)[0]['strategy'] != history(second)[0]['strategy']
    assert tuple(history(first)[0]['images']) == (8 * (1 + 20 * 5) + 64, 0)
    refused(first, [f'{shared} cannot be used', 'seed differ', 'as --sensitivities, or delete it'], 'rl_quantize.py',
            *options, '--suffix', 'a', '--overwrite', '--seed', '7')
    shared.rename(tmp_path / 'moved.npz')
    succeed('rl_quantize.py', '--resume', first, '--sensitivities', tmp_path / 'moved.npz', cwd=tmp_path)


def test_bayes_in_both_flows_goes_on_to_the_same_numbers(succeed, kmeans_options, linear_options, tmp_path):
    for given, sensitivity, name in ((kmeans_options, 'fisher', 'resnet20'),
                                     (linear_options, 'hessian', 'qresnet20')):
        options = (*given, '--no-finetune_flag', '--searcher', 'bayes', '--sensitivity', sensitivity,
                   '--sensitivity_images', '4', '--output', tmp_path, '--min_bit', '3', '--max_bit', '5')
        whole, part = (tmp_path / f'{name}_digits_{suffix}' for suffix in ('whole', 'part'))
        succeed('rl_quantize.py', *options, '--suffix', 'whole', cwd=tmp_path)
        succeed('rl_quantize.py', *options, '--suffix', 'part', '--train_episode', '2', cwd=tmp_path)
        succeed('rl_quantize.py', '--resume', part, '--train_episode', '4', cwd=tmp_path)
        assert history(whole) == history(part)
        assert len({str(record['strategy']) for record in history(whole)}) == 4
        assert (whole / f'sensitivity_{sensitivity}.npz').is_file()
