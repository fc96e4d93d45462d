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
