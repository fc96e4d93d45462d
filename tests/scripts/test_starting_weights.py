"""What a run makes of the weights it starts from: quantized ones, ones for other classes, BatchNorm afterwards."""

import argparse
import copy
import hashlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

import models
from lib.record.checkpoint import read_checkpoint
from lib.record.download import read_download
from lib.utils.quantize_utils import quantizable_layers
from tests.runs import last_line
from tests.small import build


@pytest.mark.usefixtures('kmeans_finetune')
def test_a_kmeans_checkpoint_brings_its_strategy_and_centroids(home, succeed, network):
    path = home / 'tuned_k' / 'checkpoint.pth.tar'
    evaluated = succeed('finetune.py', '--resume', path, '--eval', cwd=home)
    started = succeed('finetune.py', *network, '--weights', path, '--eval', cwd=home)
    assert last_line(started) == last_line(evaluated)
    coarser = succeed('finetune.py', *network, '--weights', path, '--strategy', 'uniform:1', '--eval', cwd=home)
    assert 'layers are clustered anew' in coarser.out and 'model_size is 0.0312' in coarser.out


@pytest.mark.usefixtures('linear_finetune')
def test_a_linear_checkpoint_brings_its_strategy_and_ranges(home, succeed, linear, table):
    path = home / 'tuned_l' / 'checkpoint.pth.tar'
    options = (*linear, '--linear_quantization', '--cost', table, '--weights', path, '--eval')
    evaluated = succeed('finetune.py', '--resume', path, '--eval', cwd=home)
    assert last_line(succeed('finetune.py', *options, cwd=home)) == last_line(evaluated)
    other = succeed('finetune.py', *options, '--strategy', 'uniform:2', cwd=home)
    assert last_line(other) != last_line(evaluated)


@pytest.mark.usefixtures('kmeans_finetune', 'linear_finetune')
def test_an_evaluation_reads_training_images_only_where_it_needs_them(home, call, succeed, linear, table, weights,
                                                                      small, small_weights, request):
    linear = (*linear, '--linear_quantization', '--cost', table)
    evaluations = [
        ('pretrain.py', '--resume', weights),
        ('finetune.py', '--resume', home / 'tuned_k' / 'checkpoint.pth.tar'),
        ('finetune.py', '--resume', home / 'tuned_l' / 'checkpoint.pth.tar'),
        ('finetune.py', *small, '--weights', small_weights, '--strategy', 'uniform:4'),
        ('qat_train.py', *small, '--weights', small_weights, '--k_bits', '8'),
    ]
    needy = [
        ('finetune.py', *linear, '--weights', weights, '--strategy', 'uniform:4'),
        ('finetune.py', *small, '--weights', small_weights, '--strategy', 'uniform:4', '--bn_batches', '1'),
        ('qat_train.py', *small, '--weights', small_weights, '--k_bits', '8', '--act_quantizer', 'lsq'),
    ]
    before = [last_line(succeed(*options, '--eval', cwd=home)) for options in evaluations]
    request.getfixturevalue('validation_images_alone')
    assert [last_line(succeed(*options, '--eval', cwd=home)) for options in evaluations] == before
    for options in needy:
        done = call(*options, '--eval', cwd=home)
        assert done.code == 1 and done.err == 'error: the training images are not there\n'


def test_weights_for_other_classes(tmp_path, call, network):
    torch.manual_seed(1)
    theirs = models.create_model('resnet20', num_classes=7).state_dict()
    torch.save(theirs, tmp_path / 'seven.pth')
    options = (*network, '--weights', tmp_path / 'seven.pth', '--epochs', '1', '--lr', '1e-9', '-c', tmp_path / 'run')
    refused = call('pretrain.py', *options, cwd=tmp_path)
    assert refused.code == 1 and 'linear.weight is (7, 64)' in refused.err and '--reset_classifier' in refused.err
    assert not (tmp_path / 'run').exists()
    done = call('pretrain.py', *options, '--reset_classifier', cwd=tmp_path)
    assert done.code == 0 and 'layer linear starts from random weights' in done.out, done.err
    state = read_checkpoint(tmp_path / 'run' / 'checkpoint.pth.tar')['state_dict']
    assert state['linear.weight'].shape == (10, 64)
    assert torch.allclose(state['conv1.weight'], theirs['conv1.weight'], atol=1e-5)


@pytest.mark.parametrize('script', ['finetune.py', 'pretrain.py'])
def test_an_average_beside_the_weights_is_named_and_taken_by_ema(tmp_path, call, succeed, small, small_weights, script):
    state = read_checkpoint(small_weights)['state_dict']
    raw = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({'state_dict': raw, 'model_ema': {f'module.{key}': value for key, value in state.items()} |
                {'n_averaged': torch.tensor(3)}, 'args': argparse.Namespace(out=Path('x'))}, tmp_path / 'ema.pth')
    safetensors.torch.save_file({f'model.{key}': value for key, value in state.items()}, tmp_path / 'net.safetensors')
    strategy = ('--strategy', 'uniform:8') if script == 'finetune.py' else ()
    options = (script, *small, *strategy, '--eval', '--weights')
    plain = succeed(*options, small_weights, cwd=tmp_path)
    average = succeed(*options, tmp_path / 'ema.pth', '--ema', cwd=tmp_path)
    assert last_line(average) == last_line(plain)
    assert 'taken: model_ema, an average; beside them: state_dict' in average.out
    assert last_line(succeed(*options, tmp_path / 'net.safetensors', cwd=tmp_path)) == last_line(plain)
    taken = call('pretrain.py', *small, '--eval', '--weights', tmp_path / 'ema.pth', cwd=tmp_path)
    assert 'taken: the raw weights; beside them: model_ema, an average (--ema takes it)' in taken.out
    assert last_line(taken) != last_line(plain)
    torch.save(torch.nn.Linear(2, 2), tmp_path / 'whole.pth')
    refused = call(*options, tmp_path / 'whole.pth', cwd=tmp_path)
    assert refused.code == 1 and [line.partition('(')[0] for line in refused.err.splitlines()[1:]] == [
        'import torch; network = torch.load', 'torch.save'], refused.err
    refused = call(*options, small_weights, '--ema', cwd=tmp_path)
    assert refused.code == 1 and refused.err.startswith('error: --ema: ') and 'holds no average' in refused.err


@pytest.mark.parametrize('change', [
    lambda o: o['state'][0].update(momentum_buffer=torch.ones(2)), lambda o: o['param_groups'].clear(),
    lambda o: o.update(param_groups=3), lambda o: o['param_groups'][0].pop('params'), lambda o: o.update(state=[1]),
])
def test_an_optimizer_that_is_none_of_the_run_s_is_refused(tmp_path, monkeypatch, change):
    import _training as training
    net = torch.nn.Linear(3, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = {'epoch': 1, 'best_acc': 1.0, 'scaler': {}, 'optimizer': copy.deepcopy(optimizer.state_dict())}
    precision = SimpleNamespace(scaler=SimpleNamespace(is_enabled=lambda: False))
    arguments = 'a.pth.tar', saved, 'float', optimizer, precision
    assert training.resume_training(*arguments) == {'start_epoch': 1, 'best': 1.0}
    change(saved['optimizer'])
    with pytest.raises(ValueError, match='a.pth.tar is no checkpoint that this training can go on from'):
        training.resume_training(*arguments)


def test_torchvision_s_cache_is_read_without_running_code_from_it(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    (tmp_path / 'hub' / 'checkpoints').mkdir(parents=True)

    class Harmful:
        def __reduce__(self):
            return open, (str(tmp_path / 'harm'), 'w')

    def cached(value):
        torch.save(value, tmp_path / 'saved')
        data = (tmp_path / 'saved').read_bytes()
        name = f'net-{hashlib.sha256(data).hexdigest()[:8]}.pth'
        (tmp_path / 'hub' / 'checkpoints' / name).write_bytes(data)
        return name

    good, harmful = cached({'a': torch.ones(2)}), cached({'a': Harmful()})
    assert torch.equal(read_download(f'https://nowhere.invalid/{good}', 'net', 'give it')['a'], torch.ones(2))
    with pytest.raises(ValueError, match='made to do harm'):
        read_download(f'https://nowhere.invalid/{harmful}', 'net', 'give --weights PATH')
    (tmp_path / 'hub' / 'checkpoints' / good).write_bytes((tmp_path / 'hub' / 'checkpoints' / harmful).read_bytes())
    with pytest.raises(ValueError, match='does not have the SHA-256 that its name begins'):
        read_download(f'https://nowhere.invalid/{good}', 'net', 'give --weights PATH')
    with pytest.raises(FileNotFoundError, match='could not be downloaded.*fetch file:///none.pth'):
        read_download('file:///none.pth', 'net', 'give --weights PATH')
    assert not (tmp_path / 'harm').exists()


def test_batch_norm_is_estimated_anew_or_folded(tmp_path, succeed, call, small, small_weights):
    flow = (*small, '--linear_quantization', '--cost', 'file_size')
    options = (*flow, '--weights', small_weights, '--strategy', 'uniform:8')
    plain = last_line(succeed('finetune.py', *options, '--eval', cwd=tmp_path))
    assert last_line(succeed('finetune.py', *options, '--eval', '--bn_batches', '3', cwd=tmp_path)) != plain
    done = succeed('finetune.py', *options, '--fold_bn', '--epochs', '1', '--lr', '1e-9', '-c', 'run', cwd=tmp_path)
    assert '4 BatchNorms are folded' in done.out
    checkpoint = read_checkpoint(tmp_path / 'run' / 'checkpoint.pth.tar')
    assert checkpoint['folded'] is True
    assert not any('bn' in key for key in checkpoint['state_dict'])
    assert {f'{name}.bias' for name in quantizable_layers(build(10))} <= \
        checkpoint['state_dict'].keys()
    (tmp_path / 'run' / 'args.json').unlink()  # the checkpoint itself knows that it is folded
    again = succeed('finetune.py', *flow, '--resume', tmp_path / 'run' / 'checkpoint.pth.tar', '--eval',
                    cwd=tmp_path)
    assert last_line(again) == last_line(done)
    both = call('finetune.py', *options, '--fold_bn', '--bn_batches', '3', '--eval', cwd=tmp_path)
    assert both.code == 1 and 'no BatchNorm' in both.err
    kmeans = call('finetune.py', *small, '--weights', small_weights, '--fold_bn', '--strategy', 'uniform:3', '--eval',
                  cwd=tmp_path)
    assert kmeans.code == 1 and '--fold_bn belongs to the linear flow' in kmeans.err
