"""The file of sensitivities that searches share: read at other budgets and fewer bits, refused for something else."""

import copy
import json

import numpy as np
import pytest
import torch

from lib.record.arrays import read_npz, write_npz
from lib.search.allocation import ilp_allocation
from lib.search.bench import Bench, SearcherSettings
from lib.search.sensitivity import measure_sensitivity, parts_of
from lib.search.sensitivity_file import read_or_measure, read_shared
from lib.training.compensation import Rounding
from tests.env.environments import ENVS, kmeans_env, linear_env

IMAGES = 12


def env_of(flow, net, loaders, **settings):
    return ENVS[flow](net, loaders, **{'finetune_flag': False, **settings})


@pytest.mark.parametrize('flow, rounding', [('kmeans', 'nearest'), ('linear', 'nearest'), ('kmeans', 'compensated')])
def test_another_budget_and_fewer_bits_measure_nothing(flow, rounding, tiny_net, tiny_loaders, tmp_path):
    path, other, rounding = tmp_path / 'shared.npz', copy.deepcopy(tiny_net), Rounding(rounding, 8)
    first = env_of(flow, tiny_net, tiny_loaders, min_bit=2, max_bit=6, rounding=rounding)
    for kind in ('kl', 'fisher'):
        found = read_or_measure(None, first, kind, num_images=IMAGES, shared=path)
        np.testing.assert_array_equal(found.table, measure_sensitivity(first, kind, num_images=IMAGES).table)
    ends = ['stem=4,8', 'head=4,8'] if flow == 'linear' else ['stem=4', 'head=4']
    second = env_of(flow, other, tiny_loaders, preserve_ratio=0.9, candidates=['2,4,6'], pins=ends,
                    rounding=rounding)
    before, stamp = dict(read_npz(path)), path.stat().st_mtime_ns
    for kind in ('kl', 'fisher'):
        found = read_or_measure(tmp_path / f'{kind}.npz', second, kind, num_images=IMAGES, shared=path)
        np.testing.assert_allclose(found.table, measure_sensitivity(second, kind, num_images=IMAGES).table, rtol=1e-5)
        assert found.seconds == before[f'{kind}.seconds'] and ilp_allocation(found.table, second.space)
        assert (tmp_path / f'{kind}.png').is_file()
    assert path.stat().st_mtime_ns == stamp
    path.unlink()  # the run has its own
    again = read_or_measure(tmp_path / 'kl.npz', second, 'kl', num_images=IMAGES, shared=path)
    assert again.seconds == before['kl.seconds'] and not path.exists()


def other_weights(env, file):
    env._float_state['head.weight'] += 0.5


def other_codebooks(env, file):
    env.kmeans_iter += 1


def other_images(env, file):
    env.val_loader.images = env.val_loader.images.flip(0)


def with_more_settings(env, file):
    """What has a line only where it is not usual."""
    file['about'] = json.dumps({**json.loads(str(file['about'])), 'kmeans_weights': 'fisher'})


@pytest.mark.parametrize(('change', 'words'), [
    (other_weights, 'weights differ'), (other_codebooks, 'kmeans_iter differ'), (other_images, 'images differ'),
    (with_more_settings, 'kmeans_weights differ'),
    (lambda env, file: file.pop('kl.forwards'), 'forwards'), (lambda env, file: file.pop('about'), 'about'),
    (lambda env, file: file.update({'kl.table': file['kl.table'][1:]}), 'cannot be used'),
    (lambda env, file: file.update({'kl.table': -file['kl.table']}), 'not those of a measurement'),
    (lambda env, file: file.update({'kl.sides': '[[[2], [-1]]]'}), 'layer 0 was measured at'),
])
def test_a_file_of_something_else_is_refused_and_left_alone(change, words, tiny_net, tiny_loaders, tmp_path):
    env, path = env_of('kmeans', tiny_net, tiny_loaders, min_bit=2, max_bit=3), tmp_path / 'shared.npz'
    read_or_measure(None, env, 'kl', num_images=IMAGES, shared=path)
    file = dict(read_npz(path))
    change(env, file)
    write_npz(path, file)
    kept = path.read_bytes()
    bench = Bench(env, 600, SearcherSettings(sensitivity_images=IMAGES, sensitivities=path))
    with pytest.raises(ValueError, match='shared.npz cannot be used.*delete it') as error:
        bench.check('kl', env.space)
    assert words in str(error.value)
    if change in (other_weights, other_codebooks, other_images):  # nothing of another kind is added to it, either
        with pytest.raises(ValueError, match='cannot be used'):
            bench.searcher('fisher', 0)
    assert path.read_bytes() == kept


def test_more_bits_other_counts_and_damage_are_refused(tiny_net, tiny_loaders, tmp_path):
    path, wide = tmp_path / 'shared.npz', copy.deepcopy(tiny_net)
    read_or_measure(None, env_of('kmeans', tiny_net, tiny_loaders, min_bit=2, max_bit=3), 'kl', num_images=IMAGES,
                    shared=path)
    env = env_of('kmeans', wide, tiny_loaders, min_bit=2, max_bit=4)
    with pytest.raises(ValueError, match=r'layer 0 was measured at \[2, 3\].*asks for 2..4'):
        read_shared(path, env, 'kl', num_images=IMAGES)
    with pytest.raises(ValueError, match='num_images differ'):
        read_shared(path, env, 'fisher', num_images=IMAGES + 1)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match='shared.npz'):
        read_shared(path, env, 'kl', num_images=IMAGES)
    assert read_shared(tmp_path / 'none.npz', env, 'kl', num_images=IMAGES) is None


def test_a_shared_file_does_not_depend_on_the_number_of_evaluations(tiny_net, tiny_loaders, tmp_path):
    env = env_of('kmeans', tiny_net, tiny_loaders, min_bit=2, max_bit=3)
    few = Bench(env, 1, SearcherSettings(sensitivity_images=IMAGES))
    assert few.sensitivity('kl').forwards == 1 * (1 + 4 * 2)
    shared = Bench(env, 1, SearcherSettings(sensitivity_images=IMAGES, sensitivities=tmp_path / 'shared.npz'))
    assert shared.sensitivity('kl').forwards == shared.sensitivity('kl').forwards == IMAGES * (1 + 4 * 2)


def test_the_parts_of_weights_and_inputs_add_up_to_the_cells(tiny_net, tiny_loaders):
    env = linear_env(copy.deepcopy(tiny_net), tiny_loaders, finetune_flag=False, candidates=['2,3,6/4,8', 'stem=3,5/8'])
    table = measure_sensitivity(env, 'kl', num_images=IMAGES).table
    parts = parts_of(table, env.space)
    assert set(parts) == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1)}
    np.testing.assert_array_equal(parts[0, 0], table[0, [2, 4], 7])
    for layer in (1, 2):
        whole = parts[layer, 0][:, None] + parts[layer, 1]
        np.testing.assert_allclose(whole, table[layer][np.ix_([1, 2, 5], [3, 7])], atol=1e-12)
        assert min(parts[layer, 0].min(), parts[layer, 1].min()) >= 0
    weights = parts_of(table := measure_sensitivity(kmeans_env(tiny_net, tiny_loaders), 'fisher', num_images=2).table,
                       kmeans_env(tiny_net, tiny_loaders).space)
    assert all((weights[layer, 0] == table[layer, :, 7]).all() for layer in range(4)) and len(weights) == 4
    assert torch.is_grad_enabled()
