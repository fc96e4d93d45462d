"""--activation_grid and --weight_scales from search to export: who starts with them keeps them, and the files know."""

import shutil

import pytest
import torch

GRIDS = ('--activation_grid', 'affine', '--weight_scales', 'channel')


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope='module')
def linear(small):
    """Options of the network in the linear flow."""
    return (*small, '--linear_quantization')


@pytest.fixture(scope='module')
def tuned(home, linear, small_weights, succeed):
    """`Done` of a fine-tuning on both grids, whose run is in `tuned_g`."""
    return succeed('finetune.py', *linear, *GRIDS, '--weights', small_weights, '--strategy', 'uniform:4', '--cost',
                   'file_size', '--epochs', '1', '--lr', '0.01', '--train_batch', '80', '-c', 'tuned_g', cwd=home)


def test_a_checkpoint_knows_its_grids(home, linear, tuned, succeed, read_json, tmp_path):
    saved, results = read(home / 'tuned_g' / 'checkpoint.pth.tar'), read_json(home / 'tuned_g' / 'results.json')
    assert all((part['activation_grid'], part['weight_scales']) == ('affine', 'channel') for part in (saved, results))
    layers = [key.removesuffix('.weight_quantizer.range') for key in saved['state_dict'] if 'weight_quantizer' in key]
    assert len(layers) == 5
    for name in layers:
        assert len(saved['state_dict'][f'{name}.weight_quantizer.range']) == len(saved['state_dict'][f'{name}.weight'])
        assert f'{name}.input_quantizer.low' in saved['state_dict']
    top1 = f'top-1 {results["top1"]:.2f} %'
    shutil.copy(home / 'tuned_g' / 'checkpoint.pth.tar', tmp_path / 'moved.pth.tar')
    for options in (('moved.pth.tar', *linear), (home / 'tuned_g' / 'checkpoint.pth.tar',)):
        assert top1 in succeed('finetune.py', '--resume', *options, '--eval', cwd=tmp_path).out
    succeed('export.py', '--integer', '--resume', home / 'tuned_g' / 'checkpoint.pth.tar', '--images', '100',
            '--output', tmp_path / 'integer', cwd=tmp_path)
    report = read_json(tmp_path / 'integer' / 'report.json')
    assert report['agreement'] == 100 and max(row['largest'] for row in report['codes'].values()) <= 1


def test_a_resumed_run_keeps_them_and_weights_may_get_others(home, linear, tuned, refused, succeed, tmp_path):
    source = home / 'tuned_g' / 'checkpoint.pth.tar'
    refused(home / 'tuned_g', ['--activation_grid affine', '--weights'], 'finetune.py', '--resume', source, '--eval',
            '--activation_grid', 'symmetric')
    shutil.copytree(home / 'tuned_g', tmp_path / 'longer')
    succeed('finetune.py', '--resume', tmp_path / 'longer' / 'checkpoint.pth.tar', '--epochs', '2', cwd=tmp_path)
    assert read(tmp_path / 'longer' / 'checkpoint.pth.tar')['weight_scales'] == 'channel'
    base = ('finetune.py', *linear, '--weights', source, '--epochs', '1', '--train_batch', '80', '--lr', '0.01')
    succeed(*base, '-c', 'same', cwd=tmp_path)
    succeed(*base, '--weight_scales', 'tensor', '-c', 'other', cwd=tmp_path)
    same, other = (read(tmp_path / name / 'checkpoint.pth.tar') for name in ('same', 'other'))
    assert same['weight_scales'] == 'channel' and same['activation_grid'] == other['activation_grid'] == 'affine'
    assert other['weight_scales'] == 'tensor' and len(other['state_dict']['stem.conv1.weight_quantizer.range']) == 1


def test_searches_and_comparisons_use_them(linear, small_weights, episodes, succeed, read_json, tmp_path):
    options = (*linear, *GRIDS, '--weights', small_weights, '--train_size', '64', '--val_size', '64', '--cost',
               'file_size')
    for searcher in ('ddpg', 'greedy'):
        succeed('rl_quantize.py', *options, *episodes[4:], '--train_episode', '2', '--searcher', searcher,
                '--preserve_ratio', 'uniform:4', '--output', tmp_path, '--suffix', searcher, cwd=tmp_path)
        succeed('rl_quantize.py', '--resume', tmp_path / f'small_digits_{searcher}', '--train_episode', '3',
                cwd=tmp_path)
        args = read_json(tmp_path / f'small_digits_{searcher}' / 'args.json')
        assert (args['activation_grid'], args['weight_scales']) == ('affine', 'channel')
    done = succeed('compare_searchers.py', *options, '--searchers', 'uniform', '--budgets', 'uniform:4', '--seeds', 1,
                   '--evaluations', 1, '--final_epochs', 0, '--output', tmp_path / 'compared', cwd=tmp_path)
    assert 'uniform' in done.out


def test_qat_learns_on_them(small, small_weights, succeed, read_json, tmp_path):
    succeed('qat_train.py', *small, '--strategy', 'uniform:4', '--weight_quantizer', 'lsq', '--act_quantizer', 'lsq',
            *GRIDS, '--weights', small_weights, '--epochs', '1', '--train_batch', '80', '-c', 'qat', cwd=tmp_path)
    saved = read(tmp_path / 'qat' / 'checkpoint.pth.tar')
    settings, state = saved['qat']['quantizers'], saved['state_dict']
    assert (settings['activation_grid'], settings['weight_scales']) == ('affine', 'channel')
    assert len(state['layer2.conv1.weight_quantizer.step']) == 32
    succeed('qat_train.py', '--resume', tmp_path / 'qat' / 'checkpoint.pth.tar', '--epochs', '2', cwd=tmp_path)
    done = succeed('qat_train.py', '--resume', tmp_path / 'qat' / 'checkpoint.pth.tar', '--eval', cwd=tmp_path)
    assert f'top-1 {read_json(tmp_path / "qat" / "results.json")["top1"]:.2f} %' in done.out
    succeed('export.py', '--integer', '--resume', 'qat/checkpoint.pth.tar', '--images', '50', cwd=tmp_path)
    assert read_json(tmp_path / 'qat' / 'integer' / 'report.json')['agreement'] == 100


REFUSED = [
    ('finetune.py', ('--weight_scales', 'channel'), 'linear flow'),
    ('rl_quantize.py', ('--activation_grid', 'symmetric'), 'linear flow'),
    ('qat_train.py', ('--strategy', 'uniform:4', '--weight_scales', 'channel'), 'take lsq or linear'),
    ('qat_train.py', ('--strategy', 'uniform:4', '--activation_grid', 'affine'), 'take lsq or linear'),
]


@pytest.mark.parametrize(('script', 'options', 'words'), REFUSED)
def test_what_has_no_such_grid_refuses_it(script, options, words, small_weights, small, refused, tmp_path):
    refused(tmp_path, [options[-2].lstrip('-'), words], script, *small, '--weights', small_weights, *options)
