"""--rounding compensated from search to checkpoint: without training, resumed, and beside rounding to the nearest."""

import shutil

import pytest
import torch

ROUND = ('--rounding', 'compensated', '--calibration_images', '96')


def read(path):
    return torch.load(path, weights_only=True)


def top1_of(done):
    return float(done.out.rpartition('top-1 ')[2].split()[0])


def loss_of(done):
    return float(done.out.rpartition('loss ')[2].split()[0])


FLOWS = {'kmeans': (), 'linear': ('--linear_quantization',)}


@pytest.mark.parametrize('flow', FLOWS)
def test_without_training_it_is_a_checkpoint_like_any_other(flow, small, small_weights, succeed, tmp_path):
    options = (*small, *FLOWS[flow], '--weights', small_weights, '--strategy', 'uniform:2', '--cost', 'file_size',
               '--train_batch', '80', '--lr', '0.001', '--bn_batches', '4', '--epochs', '0')
    plain = succeed('finetune.py', *options, '-c', 'plain', cwd=tmp_path)
    done = succeed('finetune.py', *options, *ROUND, '-c', 'rounded', cwd=tmp_path)
    assert loss_of(done) < 0.95 * loss_of(plain)
    again = succeed('finetune.py', '--resume', tmp_path / 'rounded' / 'checkpoint.pth.tar', '--eval', cwd=tmp_path)
    assert top1_of(again) == top1_of(done)
    state = read(tmp_path / 'rounded' / 'checkpoint.pth.tar')['state_dict']
    assert not torch.equal(state['layer1.conv1.weight'], read(small_weights)['state_dict']['layer1.conv1.weight'])
    succeed('export.py', '--resume', tmp_path / 'rounded' / 'checkpoint.pth.tar', '--packed', 'x.safetensors',
            cwd=tmp_path)
    if flow == 'linear':
        return
    shutil.copytree(tmp_path / 'rounded', tmp_path / 'longer')
    longer = succeed('finetune.py', '--resume', tmp_path / 'longer' / 'checkpoint.pth.tar', '--epochs', '1',
                     cwd=tmp_path)
    straight = succeed('finetune.py', *options[:-2], *ROUND, '--epochs', '1', '-c', 'straight', cwd=tmp_path)
    assert loss_of(longer) == loss_of(straight) < loss_of(plain)


@pytest.mark.parametrize('flow', FLOWS)
def test_a_search_rounds_and_a_comparison_rounds_for_good(flow, small, small_weights, succeed, tmp_path):
    options = (*small, *FLOWS[flow], *ROUND, '--weights', small_weights, '--train_size', '128', '--val_size', '64',
               '--cost', 'file_size', '--finetune_flag', 'False', '--min_bit', '2')
    if flow == 'linear':
        done = succeed('compare_searchers.py', *options, '--searchers', 'uniform', '--budgets', 'uniform:3', '--seeds',
                       1, '--evaluations', 1, '--final_epochs', 0, '--output', tmp_path / 'compared', cwd=tmp_path)
        assert 'uniform' in done.out
        return
    search = ('rl_quantize.py', *options, '--searcher', 'random', '--preserve_ratio', 'uniform:3', '--output', tmp_path)
    succeed(*search, '--train_episode', '2', '--suffix', 'whole', cwd=tmp_path)
    succeed(*search, '--train_episode', '1', '--suffix', 'parts', cwd=tmp_path)
    whole, parts = (next(tmp_path.glob(f'*_{name}')) for name in ('whole', 'parts'))
    succeed('rl_quantize.py', '--resume', parts, '--train_episode', '2', cwd=tmp_path)
    assert (parts / 'strategy.txt').read_text() == (whole / 'strategy.txt').read_text()


def test_a_search_corrects_no_biases_of_plain_rounding(refused, small, tmp_path):
    refused(tmp_path, ['--bias_correction', '--rounding compensated'], 'rl_quantize.py', *small,
            '--bias_correction', 'True', '--train_size', '64', '--val_size', '64', '--output', tmp_path)


def test_qat_begins_with_it(small, small_weights, refused, succeed, tmp_path):
    options = ('qat_train.py', *small, *ROUND, '--weights', small_weights, '--strategy', 'uniform:3', '--train_batch',
               '80', '--epochs', '0')
    done = succeed(*options, '--weight_quantizer', 'lsq', '--act_quantizer', 'lsq', '-c', 'qat', cwd=tmp_path)
    again = succeed('qat_train.py', '--resume', tmp_path / 'qat' / 'checkpoint.pth.tar', '--eval', cwd=tmp_path)
    assert top1_of(again) == top1_of(done) > 50
    assert read(tmp_path / 'qat' / 'checkpoint.pth.tar')['qat']['normalize'] is None, "its weights' own"
    refused(tmp_path, ['--rounding compensated', 'DoReFa', 'no grid'], *options, '-c', tmp_path / 'other')


def test_hybrid_quantization_with_it_beside_aciq(small, small_weights, succeed, read_json, tmp_path):
    options = ('hybrid_train.py', *small, '--weights', small_weights, '--strategy', str([4] * 5), '--epochs', '0',
               '--set', 'ptq.per_channel=true')
    results = []
    for name, rounding in (('aciq', ()), ('compensated', ('--rounding', 'compensated'))):
        succeed(*options, *rounding, '-c', tmp_path / name, cwd=tmp_path)
        results.append(read_json(tmp_path / name / 'results.json')['top1'])
    aciq, compensated = results
    assert compensated > aciq - 2
    model = tmp_path / 'compensated' / 'experiment_data' / 'q_model' / 'model.pth.tar'
    done = succeed('hybrid_train.py', '--resume', model, '--eval', *small[2:4], cwd=tmp_path)
    assert top1_of(done) == pytest.approx(compensated, abs=0.01)


def test_a_search_leaves_a_network_that_is_ready(small, small_weights, succeed, tmp_path):
    done = succeed('rl_quantize.py', *small, '--recipe', 'fast', '--calibration_images', '96', '--weights',
                   small_weights, '--train_size', '128', '--val_size', '64', '--preserve_ratio', 'uniform:3',
                   '--max_bit', '4', '--train_episode', '1', '--sensitivity_images', '32', '--output', tmp_path,
                   cwd=tmp_path)
    ready, = tmp_path.glob('*/quantized/checkpoint.pth.tar')
    assert str(ready.relative_to(tmp_path)) in done.out
    saved = read(ready)
    assert saved['quantization'] == 'kmeans' and len(saved['codebooks']) == 5 and saved['classes'] == 10
    top1 = top1_of(succeed('finetune.py', '--resume', ready, '--eval', *small[2:], cwd=tmp_path))
    assert top1 > 50
    succeed('export.py', '--resume', ready, *small[2:4], '--packed', 'ready.safetensors', cwd=tmp_path)
    kept = ready.read_bytes()
    succeed('rl_quantize.py', '--resume', ready.parents[1], cwd=tmp_path)
    assert len(ready.read_bytes()) == len(kept)
    succeed('rl_quantize.py', *small, '--searcher', 'uniform', '--weights', small_weights, '--train_size', '128',
            '--val_size', '64', '--finetune_flag', 'False', '--preserve_ratio', 'uniform:3', '--train_episode', '1',
            '--output', tmp_path, '--overwrite', cwd=tmp_path)
    assert not ready.exists(), 'it belongs to the search before'
