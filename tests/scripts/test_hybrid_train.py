"""Hybrid quantization as a user runs it: training, folding, quantization after training, resuming, messages."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lib.hybrid.config import read_config
from lib.record.checkpoint import read_checkpoint
from tests.runs import equal

SCRIPT = 'hybrid_train.py'
TINY = ('--dataset', 'digits', '--image_size', '8', '--workers', '0', '--device', 'cpu', '--train_batch', '80',
        '--set', 'blocks=[[4, 4, 1], [4, 8, 2]]', '--set', 'warmup_epochs=0', '--set', 'save_interval=2')
BITS = ('--set', 'quantize_w_blocks=[0]', '--set', 'quantize_a_blocks=[0]', '--set', 'quantize_a=true', '--set',
        'a_bit_width=[[2, 1]]', '--set', 'post_quantize_w_layers=[-1, 1]', '--set', 'post_quantize_a_layers=[-1, 1]')
FLOAT = ('--set', 'quantize_w_blocks=[]', '--set', 'quantize_a_blocks=[]', '--set', 'quantize_a=true', '--set',
         'a_bit_width=2', '--set', 'post_quantize_w=false', '--set', 'post_quantize_a=false')


def results(folder):
    return json.loads((Path(folder) / 'results.json').read_text())


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('hybrid')


@pytest.fixture(scope='module')
def run(place, succeed):
    """A run of three epochs; (its folder, what it printed)."""
    done = succeed(SCRIPT, *TINY, *BITS, '--epochs', 3, '-c', 'run', cwd=place)
    return place / 'run', done.out


def test_a_run_leaves_the_tree_of_the_original(run):
    folder, out = run
    files = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
    assert {'args.json', 'log.txt', 'results.json', 'checkpoint.pth.tar', 'epoch_2.pth.tar',
            'experiment_data/q_model/model.pth.tar', 'experiment_data/q_model/weights.npz',
            'experiment_data/q_model/config.yaml'} <= files
    assert 'the edge device ends with blocks.0.relu2' in out and '6 BatchNorms are folded' in out
    accuracies = results(folder)['accuracies']
    assert accuracies['float'] is None and accuracies['quantized'] == results(folder)['top1']
    weights = np.load(folder / 'experiment_data/q_model/weights.npz')
    assert weights['blocks.0.conv1.codes'].max() <= 3 and weights['conv0.codes'].max() == 15
    config = read_config(folder / 'experiment_data/q_model/config.yaml')
    assert config['qat']['a_bit_width'] == [[2, 1]]


@pytest.mark.parametrize(('file', 'stage'), [('checkpoint.pth.tar', 'trained'),
                                             ('experiment_data/q_model/model.pth.tar', 'quantized')])
def test_checkpoints_evaluate_to_what_was_reported(run, succeed, place, file, stage, request):
    folder, _ = run
    request.getfixturevalue('validation_images_alone')
    done = succeed(SCRIPT, *TINY[:8], '--resume', folder / file, '--eval', cwd=place)
    assert f'top-1 {results(folder)["accuracies"][stage]:.2f} %' in done.out


def test_a_killed_run_goes_on_to_the_same_numbers(run, crash, succeed, place):
    folder, _ = run
    crash('checkpoint.pth.tar', 3, SCRIPT, *TINY, *BITS, '--epochs', 3, '-c', 'killed', cwd=place)
    succeed(SCRIPT, '--resume', place / 'killed' / 'checkpoint.pth.tar', cwd=place)
    assert (place / 'killed' / 'log.txt').read_text() == (folder / 'log.txt').read_text()
    assert results(place / 'killed')['accuracies'] == results(folder)['accuracies']
    assert equal(*(read_checkpoint(path / 'experiment_data/q_model/model.pth.tar')['state_dict']
                   for path in (place / 'killed', folder)))


def test_float_weights_are_quantized_without_training(place, succeed):
    succeed(SCRIPT, *TINY, *FLOAT, '--epochs', 2, '-c', 'float', cwd=place)
    done = succeed(SCRIPT, *TINY, *FLOAT, '--set', 'post_quantize_w=true', '--set', 'post_w_bit_width=8', '--set',
                   'post_quantize_w_layers=[-1, 0, 1]', '--epochs', 0, '--weights', 'float/checkpoint.pth.tar', '-c',
                   'after', cwd=place)
    accuracies = results(place / 'after')['accuracies']
    assert accuracies['float'] == accuracies['trained'] == results(place / 'float')['accuracies']['trained']
    assert abs(accuracies['quantized'] - accuracies['float']) < 2
    assert 'weights of 6 layers: 8 bits' in done.out


def test_any_network_and_the_strategy_of_a_search(place, succeed):
    strategy = place / 'strategy.json'
    layers = ['conv1'] + [f'layer{i}.{j}.conv{k}' for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)] + ['linear']
    pairs = [[8, -1]] + [[3, 4], [4, 3]] * 9 + [[8, 8]]
    strategy.write_text(json.dumps({'strategy': pairs, 'layers': layers}))
    options = (*TINY[:8], '--train_batch', 512, '--arch', 'resnet20', '--strategy', strategy, '--set',
               'calibration_epochs=1')
    done = succeed(SCRIPT, *options, '--write_config', 'made.yaml', cwd=place)
    assert 'made.yaml' in done.out
    made = read_config(place / 'made.yaml')
    assert made['layers']['layer1.0.conv1'] == [3, 4] and not made['qat']['quantize_w_blocks']
    succeed(SCRIPT, *options, '--epochs', 1, '-c', 'searched', cwd=place)
    saved = read_checkpoint(place / 'searched/experiment_data/q_model/model.pth.tar')
    assert {name: (entry['method'], entry['bits']) for name, entry in saved['plan']['weights'].items()} == {
        name: ('dsq' if w < 4 else 'aciq', w) for name, (w, _) in zip(layers, pairs, strict=True)}
    assert saved['plan']['inputs']['layer2.0.conv2']['method'] == 'dsq' and 'conv1' not in saved['plan']['inputs']
    done = succeed(SCRIPT, *TINY[:8], '--resume', 'searched/experiment_data/q_model/model.pth.tar', '--eval', cwd=place)
    assert f'top-1 {saved["acc"]:.2f} %' in done.out


def test_epochs_without_evaluation_are_left_out(place, succeed):
    succeed(SCRIPT, *TINY, *FLOAT, '--set', 'evaluate_interval=2', '--epochs', 3, '-c', 'seldom', cwd=place)
    accuracies = [line.split('\t')[-1] for line in (place / 'seldom' / 'log.txt').read_text().splitlines()[1:]]
    assert accuracies[0] == 'nan' and 'nan' not in accuracies[1:]


def test_checkpoints_of_others_and_finished_ones_are_refused(run, refused, place):
    finished = run[0] / 'experiment_data/q_model/model.pth.tar'
    torch.save({'state_dict': {'a': torch.zeros(1)}, 'arch': 'resnet20'}, place / 'other.pth.tar')
    for words, *command in (
            ('is a finished, quantized network', SCRIPT, '--resume', finished),
            ('is no checkpoint of hybrid_train.py', SCRIPT, '--resume', 'other.pth.tar', '--eval'),
            ('is a checkpoint of a hybrid network', SCRIPT, *TINY[8:], *BITS, '--weights', finished),
            ('is a checkpoint of hybrid_train.py, whose quantizers only that script has', 'pretrain.py', '--arch',
             'hybrid_cnn', '--weights', run[0] / 'checkpoint.pth.tar')):
        more = () if '--resume' in command else ('--epochs', 1, '-c', 'again')
        refused(place, [words], *command, *TINY[:8], *more)


@pytest.mark.parametrize(('section', 'value', 'said'), [
    ('training', {'lr': 'x'}, "training.lr is 'x'"), ('qat', 3, 'expected the sections'), ('engine', {}, 'no section'),
])
def test_a_damaged_configuration_of_an_earlier_version_is_named(run, refused, place, tmp_path, section, value, said):
    saved = torch.load(run[0] / 'checkpoint.pth.tar', weights_only=True)
    saved['hybrid']['config'][section] = value
    torch.save({key: saved[key] for key in saved if key not in ('digest', 'run')}, tmp_path / 'old.pth.tar')
    refused(place, [said, 'old.pth.tar: '], SCRIPT, *TINY[:8], '--resume', tmp_path / 'old.pth.tar', '--eval')


def test_yaml_of_a_run_can_be_used_again(run, place, succeed):
    folder, _ = run
    path = folder / 'experiment_data/q_model/config.yaml'
    assert yaml.safe_load(path.read_text())['model']['blocks'] == [[4, 4, 1], [4, 8, 2]]
    succeed(SCRIPT, *TINY[:10], '--config', path, '--write_config', 'again.yaml', cwd=place)
    assert read_config(place / 'again.yaml') == read_config(path)
