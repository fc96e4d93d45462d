"""Quantization-aware training as a user runs it: configurations, bits, starting weights, resuming, messages."""

import json
import math
import re
import runpy
import shutil
from types import SimpleNamespace

import pytest
import torch

import models
from lib.data.datasets import dataset_spec
from lib.data.transforms import renormalised
from lib.network.conversion import activation_quantizers
from lib.qat.placement import Quantizers, quantize_blocks
from lib.record.checkpoint import read_checkpoint
from lib.utils.utils import learning_rate
from tests.runs import ROOT, equal, last_line

CONFIGS = runpy.run_path(str(ROOT / 'run' / 'qat' / 'config_train.py'))['CONFIGS']
SHAPE = ('--strides', '1', '2', '--num_layer_list', '1', '1', '--num_channel_list', '8', '16', '--stem_channel', '8',
         '--header_channel', '32')
TINY = ('--dataset', 'digits', '--image_size', '8', *SHAPE, '--workers', '0', '--device', 'cpu', '--train_batch', '80')
LISTS = ('--layer_wbit', '8x4,16', '--layer_abit', '32,8x4')
FLOAT = ('--layer_wbit', '32x5', '--layer_abit', '32x5')


def log_of(folder):
    """The rows of log.txt, as numbers."""
    return [list(map(float, line.split())) for line in (folder / 'log.txt').read_text().splitlines()[1:]]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The folder in which the user works."""
    return tmp_path_factory.mktemp('qat')


@pytest.fixture(scope='module')
def quantized(place, succeed):
    """A run of two epochs from scratch, modified PACT; with a normalization that is not the default."""
    options = (*TINY, *LISTS, '--normalize', 'imagenet', '--epochs', '2')
    done = succeed('qat_train.py', *options, '-c', 'quantized', cwd=place)
    return SimpleNamespace(done=done, options=options, folder=place / 'quantized',
                           checkpoint=place / 'quantized' / 'checkpoint.pth.tar')


@pytest.fixture(scope='module')
def floating(place, succeed):
    """A float run of one epoch."""
    done = succeed('qat_train.py', '--config', 'toynet_float', *TINY, *FLOAT, '--epochs', '1', '--lr', '0.1', '-c',
                   'floating', cwd=place)
    return SimpleNamespace(done=done, checkpoint=place / 'floating' / 'checkpoint.pth.tar')


# ---- a run

def test_a_run_leaves_what_every_training_leaves(quantized, read_json):
    results = read_json(quantized.folder / 'results.json')
    lists = {'layer_wbit': [8] * 4 + [16], 'layer_abit': [32] + [8] * 4}
    numbers = 9 * 3 * 8 + (9 * 8 + 2 * 8 * 32) + (4 * 8 * 16 + 9 * 16 + 2 * 16 * 64) + 16 * 32  # but for the classifier
    bits = 8 * numbers + 16 * 32 * 10
    assert results['quantization'] == 'qat' and results['strategy'] == lists and results['arch'] == 'toynet'
    assert results['cost'] == bits / 8 and results['ratio'] == bits / 32 / (numbers + 32 * 10)
    assert f'weights take {bits / 8000:.1f} kB' in quantized.done.out
    assert last_line(quantized.done) == (f'toynet on digits: top-1 {results["top1"]:.2f} %  top-5 '
                                         f'{results["top5"]:.2f} %  loss {results["loss"]:.4f}')
    rows = log_of(quantized.folder)
    rates = [0.01, 0.001 + 0.009 * (1 + math.cos(math.pi / 2)) / 2]  # the cosine ends at lr_min
    assert [row[0] for row in rows] == pytest.approx(rates, abs=1e-6)
    assert rows[1][1] < rows[0][1] and rows[-1][4] == pytest.approx(results['top1'], abs=1e-3)
    assert results['best_top1'] == pytest.approx(max(row[4] for row in rows), abs=1e-3)
    names = {path.name for path in quantized.folder.iterdir()}
    assert names == {'args.json', 'checkpoint.pth.tar', 'log.txt', 'logs', 'model_best.pth.tar', 'results.json',
                     'training.png'}, 'no strategy.json: the lists are none of layers'


def test_a_checkpoint_rebuilds_the_network(quantized):
    saved = read_checkpoint(quantized.checkpoint)
    assert saved['quantization'] == 'qat' and saved['epoch'] == 2
    assert saved['strategy'] == {'layer_wbit': [8] * 4 + [16], 'layer_abit': [32] + [8] * 4}
    assert saved['qat']['arch'] == 'toynet' and saved['qat']['normalize'] == 'imagenet'
    model = models.create_model(saved['qat']['arch'], num_classes=10, **saved['qat']['network'])
    quantize_blocks(model, **saved['strategy'], quantizers=Quantizers.from_dict(saved['qat']['quantizers']))
    model.load_state_dict(saved['state_dict'])  # strictly
    clips = {name: quantizer.range.item() for name, quantizer in activation_quantizers(model).items()}
    assert len(clips) == 1 + 2 * 3 + 1 + 2 and all(clip not in (6, 10) for clip in clips.values()), 'they learn'


# ---- resuming and evaluating

def test_killed_and_resumed_is_never_stopped(quantized, succeed, crash, place):
    crash('checkpoint.pth.tar', 2, 'qat_train.py', *quantized.options, '-c', 'resumed', cwd=place)
    assert read_checkpoint(place / 'resumed' / 'checkpoint.pth.tar')['epoch'] == 1
    succeed('qat_train.py', '--resume', 'resumed/checkpoint.pth.tar', cwd=place)
    for name in ('log.txt', 'results.json'):
        assert (place / 'resumed' / name).read_bytes() == (quantized.folder / name).read_bytes()
    for name in ('checkpoint.pth.tar', 'model_best.pth.tar'):
        assert equal(*(read_checkpoint(folder / name) for folder in (place / 'resumed', quantized.folder)))


def test_a_checkpoint_is_evaluated_to_the_logged_accuracy(quantized, succeed, place):
    expected = last_line(quantized.done)
    assert last_line(succeed('qat_train.py', '--resume', quantized.checkpoint, '--eval', cwd=place)) == expected
    (place / 'alone').mkdir()
    alone = shutil.copy(quantized.checkpoint, place / 'alone')  # without the settings of its run
    done = succeed('qat_train.py', '--resume', alone, '--eval', '--dataset', 'digits', '--image_size', '8', '--device',
                   'cpu', '--act_quantizer', 'pact', cwd=place)
    assert last_line(done) == expected
    assert 'mpact activations' in done.out, 'network, bits, quantizers and normalization are those it was saved with'
    assert {path.name for path in (place / 'alone').iterdir()} == {'checkpoint.pth.tar'}


def test_a_resumed_run_keeps_its_settings(quantized, refused, place):
    resume = ('qat_train.py', '--resume', quantized.checkpoint)
    (place / 'lone').mkdir()
    lone = shutil.copy(quantized.checkpoint, place / 'lone')
    other = 'is a checkpoint of toynet, this is a run of '
    for command, words in (
            ((*resume, '--act_quantizer', 'pact'), '--act_quantizer was mpact, now pact'),
            ((*resume, '--eval', '--layer_wbit', '4x7', '--strategy', 'uniform:4'),
             'has a network, bits and quantizers of its own: leave --layer_wbit, --strategy out'),
            ((*resume, '--eval', '--arch', 'resnet20'), f'{other}resnet20: give --arch toynet'),
            (('qat_train.py', '--resume', lone, '--eval', '--config', 'resnet20_cfg1_star', '--dataset', 'digits'),
             f'{other}resnet20_projection'),
            (('qat_train.py', *quantized.options, '-c', 'quantized'), 'already holds a run')):
        refused(place, [words], *command)


def test_checkpoints_of_other_scripts_and_theirs_of_ours(quantized, refused, place):
    torch.save({'state_dict': models.create_model('toynet', num_classes=10).state_dict(), 'epoch': 1,
                'quantization': 'kmeans', 'strategy': [4] * 33}, place / 'kmeans.pth.tar')
    refused(place, ['kmeans.pth.tar is no checkpoint of qat_train.py: start from its weights with --weights'],
            'qat_train.py', *TINY, '--resume', 'kmeans.pth.tar', '--eval')
    for script, *more in (('finetune.py', '--resume', quantized.checkpoint, '--eval'),
                          ('finetune.py', '--arch', 'toynet', '--weights', quantized.checkpoint, '--eval'),
                          ('pretrain.py', '--resume', quantized.checkpoint, '--eval')):
        refused(place, ['is a checkpoint of qat_train.py'], script, '--dataset', 'digits', '--image_size', '8', *more)


@pytest.mark.parametrize(('group', 'key', 'value', 'said'), [
    ('quantizers', 'weights', 10.0, 'weights: 10.0 is not known'), ('network', 'strides', [1], 'strides has 1'),
    ('network', 'stem_channel', 'x', 'cannot be built'), ('network', 'x', 3, 'does not know the option x'),
    ('strategy', 'layer_abit', [8], 'layer_abit has 1 entries'),
    ('state_dict', 'blocks.1.output.range', None, 'is damaged: it has no blocks.1.output.range'),
])
def test_damaged_settings_of_an_earlier_version_are_named(quantized, refused, place, group, key, value, said):
    saved = torch.load(quantized.checkpoint, weights_only=True)
    holder = saved['qat'].get(group, saved.get(group))
    holder[key] = value
    if value is None:
        del holder[key]
    (place / 'old').mkdir(exist_ok=True)
    torch.save({key: saved[key] for key in saved if key not in ('digest', 'run')}, place / 'old' / 'checkpoint.pth.tar')
    options = ('--resume', 'old/checkpoint.pth.tar', '--dataset', 'digits', '--image_size', '8', '--workers', '0')
    for command in (('qat_train.py', *options, '--eval'), ('export.py', '--integer', *options, '--images', '0')):
        refused(place, [said, 'old/checkpoint.pth.tar'], *command)


# ---- starting weights

def test_the_weights_of_a_float_run(floating, succeed, place):
    """At 32 bits they give its accuracy; under quantizers the clips begin where the options say."""
    options = (*TINY, '--weights', floating.checkpoint)
    assert last_line(succeed('qat_train.py', *options, *FLOAT, '--eval', cwd=place)) == last_line(floating.done)
    succeed('qat_train.py', *options, *LISTS, '--alpha', '3', '--epochs', '1', '--lr', '1e-9', '--lr_min', '0', '-c',
            'from_float', cwd=place)
    theirs, ours = (read_checkpoint(path)['state_dict'] for path in
                    (floating.checkpoint, place / 'from_float' / 'checkpoint.pth.tar'))
    assert torch.allclose(theirs['blocks.1.expand.weight'], ours['blocks.1.expand.weight'], atol=1e-6)
    assert ours['blocks.1.output.range'] == pytest.approx(3) and ours['stem.output.range'] == pytest.approx(6)


@pytest.fixture
def started():
    """`started(saved, quantizers, lists)`: the state of a small network with other clips that starts from `saved`."""
    import _weights

    def start(path, quantizers, bits=4):
        model = models.create_model('toynet', num_classes=10, num_layer_list=(1,), num_channel_list=(8,), strides=(1,))
        names, strategy = set(model.state_dict()), {'layer_wbit': [bits] * 4, 'layer_abit': [bits] * 4}
        quantize_blocks(model, **strategy, quantizers=quantizers)
        start = _weights.Start(weights=path)
        _weights.load_quantized(model, read_checkpoint(path), path, start, {'quantizers': quantizers.to_dict()},
                                 strategy, names)
        return model.state_dict(), strategy
    return start


@pytest.mark.parametrize(('before', 'after', 'bits', 'kept'), [
    (Quantizers(alpha=5), Quantizers(alpha=7), 8, True),  # learned, of the same kind
    (Quantizers(alpha=5), Quantizers(activations='pact', alpha=7), 4, False),
    (Quantizers(alpha=5), Quantizers(activations='lsq'), 4, False),
    (Quantizers(activations='fixed_pact', alpha=5), Quantizers(activations='fixed_pact', alpha=7), 4, False),
    (Quantizers(alpha=5), Quantizers(alpha=7), 32, False),  # of a float run
])
def test_clips_come_with_the_weights_where_they_mean_the_same(started, tmp_path, before, after, bits, kept):
    model = models.create_model('toynet', num_classes=10, num_layer_list=(1,), num_channel_list=(8,), strides=(1,))
    strategy = {'layer_wbit': [bits] * 4, 'layer_abit': [bits] * 4}
    quantize_blocks(model, **strategy, quantizers=before)
    torch.save({'state_dict': model.state_dict(), 'strategy': strategy, 'qat': {'quantizers': before.to_dict()}},
               tmp_path / 'saved')
    state, _ = started(tmp_path / 'saved', after)
    assert torch.equal(state['blocks.0.expand.weight'], model.blocks[0].expand.weight)
    if after.activations == 'lsq':
        assert state['blocks.0.output.step'] == 0 and state['blocks.0.output._extra_state'] == -1  # to be found
        return
    assert state['blocks.0.output.range'] == (5 if kept else 7)
    assert state['blocks.0.output._extra_state'] == (after.activations == 'mpact'), 'the sign is not taken over'


@pytest.mark.parametrize(('bits', 'kept'), [(4, True), (8, False)])
def test_steps_come_with_the_weights_under_the_same_bits(started, tmp_path, bits, kept):
    quantizers, strategy = Quantizers('lsq', 'lsq'), {'layer_wbit': [bits] * 4, 'layer_abit': [bits] * 4}
    model = models.create_model('toynet', num_classes=10, num_layer_list=(1,), num_channel_list=(8,), strides=(1,))
    quantize_blocks(model, **strategy, quantizers=quantizers)
    model(torch.randn(2, 3, 8, 8))
    torch.save({'state_dict': model.state_dict(), 'strategy': strategy, 'qat': {'quantizers': quantizers.to_dict()}},
               tmp_path / 'saved')
    state, _ = started(tmp_path / 'saved', quantizers)
    for name in ('fc.weight_quantizer.step', 'blocks.0.output.step'):
        assert state[name] == (model.state_dict()[name] if kept else 0) and model.state_dict()[name] > 0


def test_weights_of_the_linear_flow(started, tmp_path):
    state = models.create_model('toynet', num_classes=10, num_layer_list=(1,), num_channel_list=(8,),
                                strides=(1,)).state_dict()
    torch.save({'state_dict': {**state, 'fc.weight_quantizer.range': torch.ones(1), 'fc.input_quantizer.range':
                               torch.ones(1)}, 'quantization': 'linear', 'strategy': [[4, 4]] * 6}, tmp_path / 'linear')
    found, _ = started(tmp_path / 'linear', Quantizers())
    assert torch.equal(found['fc.weight'], state['fc.weight']) and 'fc.weight_quantizer.range' not in found
    torch.save({**state, 'other.weight': torch.ones(1)}, tmp_path / 'other')
    with pytest.raises(ValueError, match=r'1 unexpected \(other.weight\)'):
        started(tmp_path / 'other', Quantizers())


# ---- bits

def test_lsq_and_adam(succeed, place):
    succeed('qat_train.py', *TINY, *LISTS, '--weight_quantizer', 'lsq', '--act_quantizer', 'lsq', '--opt', 'Adam',
            '--lr', '1e-3', '--epochs', '1', '-c', 'lsq', cwd=place)
    saved = read_checkpoint(place / 'lsq' / 'checkpoint.pth.tar')
    assert all('exp_avg' in state for state in saved['optimizer']['state'].values())
    assert saved['optimizer']['param_groups'][0]['betas'] == (0.5, 0.999)
    steps = {key: step.item() for key, step in saved['state_dict'].items() if key.endswith('.step')}
    assert all(step > 0 or key == 'image.step' for key, step in steps.items())
    assert saved['state_dict']['blocks.0.expand_output._extra_state'] == 0, 'behind a ReLU'
    again = succeed('qat_train.py', '--resume', 'lsq/checkpoint.pth.tar', '--eval', cwd=place)
    assert f'top-1 {saved["acc"]:.2f} %' in last_line(again)


def test_what_suits_a_trained_start_resumed(succeed, crash, place):
    """All switches of a modern training at once, killed after its first epoch."""
    options = (*TINY, *LISTS, '--weight_quantizer', 'lsq', '--act_quantizer', 'lsq', '--epochs', '2', '--lr', '0.005',
               '--lsq_init', 'least_squares', '--decay_steps', 'False', '--bn_batches', '2', '--ema_decay', '0.9',
               '--dampening', '0.001')
    succeed('qat_train.py', *options, '-c', 'whole', cwd=place)
    crash('checkpoint.pth.tar', 2, 'qat_train.py', *options, '-c', 'run', cwd=place)
    succeed('qat_train.py', '--resume', 'run/checkpoint.pth.tar', cwd=place)
    for name in ('log.txt', 'results.json'):
        assert (place / 'run' / name).read_bytes() == (place / 'whole' / name).read_bytes()
    saved = read_checkpoint(place / 'run' / 'checkpoint.pth.tar')
    assert saved['qat']['quantizers']['lsq_init'] == 'least_squares' and 'ema' in saved
    again = succeed('qat_train.py', '--resume', 'run/checkpoint.pth.tar', '--eval', cwd=place)
    assert f'top-1 {saved["acc"]:.2f} %' in last_line(again)


def test_a_strategy_of_a_linear_search(succeed, place, read_json):
    """With a configuration of one's own."""
    network = models.create_model('toynet', num_layer_list=(1,), num_channel_list=(8,), strides=(1,), stem_channel=8)
    layers = [name for name, module in network.named_modules() if hasattr(module, 'weight') and 'norm' not in name]
    strategy = [[8, -1], [4, 6], [3, 5], [2, 4], [5, 3], [8, 8]]
    (place / 'strategy.json').write_text(json.dumps({'strategy': strategy, 'layers': layers}))
    settings = {'model': 'ToyNet', 'dataset': 'digits', 'image_size': 8, 'num_layer_list': [1], 'num_channel_list': [8],
                'strides': (1,), 'stem_channel': 8, 'header_channel': 16, 'batch_size': 256, 'num_workers': 0,
                'device': 'cpu', 'nepochs': 1, 'lr': 0.05, 'opt': 'Sgd', 'lr_schedule': 'exponential',
                'act_quantizer': 'pact', 'weight_quantizer': 'dorefa', 'strategy': 'strategy.json',
                'pretrain': str(place / 'mine')}
    (place / 'mine.py').write_text(f'from easydict import EasyDict\nMINE = EasyDict({settings!r})\n')
    done = succeed('qat_train.py', '--config', 'mine.py:MINE', '--lr', '0.02', cwd=place)
    assert 'strategy.json: bits of 6 layers, the bit lists of the configuration are not used' in done.out
    assert 'toynet, dorefa weights, pact activations' in done.out
    results, saved = read_json(place / 'mine' / 'results.json'), read_json(place / 'mine' / 'strategy.json')
    assert results['strategy'] == saved['strategy'] == strategy and results['layers'] == saved['layers'] == layers
    assert log_of(place / 'mine')[0][0] == pytest.approx(0.02)  # the option, not the configuration
    again = succeed('qat_train.py', '--resume', 'mine/checkpoint.pth.tar', '--eval', cwd=place)
    assert last_line(again) == last_line(done)
    state = read_checkpoint(place / 'mine' / 'checkpoint.pth.tar')['state_dict']
    signs = [state[f'{name}.input_quantizer._extra_state'].item() for name in layers]
    assert signs == [1, 1, 1, 0, 1, 1], 'ToyNet has one ReLU in a block, before the last convolution'


def test_weight_bits_of_a_kmeans_search_and_uniform_bits(succeed, place):
    done = succeed('qat_train.py', *TINY, '--strategy', [4] * 10, '--input_bits', '6', '--eval', cwd=place)
    assert 'bits of 10 layers' in done.out and '0.1250 of float' in done.out
    done = succeed('qat_train.py', '--arch', 'resnet20', '--strategy', 'uniform:4', *TINY[:4], '--device', 'cpu',
                   '--eval', cwd=place)
    assert 'uniform:4: bits of 20 layers' in done.out, "another network than the configuration's"
    done = succeed('qat_train.py', '--arch', 'resnet20_projection', '--layer_wbit', '8x9', '--layer_abit', '4x9',
                   *TINY[:4], '--device', 'cpu', '--eval', cwd=place)
    assert 'resnet20_projection, dorefa_symmetric weights, mpact activations' in done.out


# ---- configurations

@pytest.fixture(scope='module')
def options_of(names):
    """`options_of(*command line)`: the options after the configuration was read."""
    script = names('qat_train.py')

    def parse(*argv):
        parser = script['make_qat_parser']()
        parser.set_defaults(**script['configure'](parser.parse_args(argv), parser))
        return parser.parse_args(argv)
    return parse


@pytest.mark.parametrize('name', CONFIGS)
def test_a_configuration_builds(name, options_of):
    """Its lists fit its network; its names and keys are those of the original, or ours."""
    args = options_of('--config', name)
    network = {key: value for key, value in CONFIGS[name].items() if key in (
        'strides', 'num_layer_list', 'num_channel_list', 'stem_channel', 'header_channel')}
    model = models.create_model(args.arch, num_classes=10, **network)
    quantizers = Quantizers(args.weight_quantizer, args.act_quantizer, rescale=args.rescale, branch_out=args.branch_out)
    lists = quantize_blocks(model, args.layer_wbit, args.layer_abit, quantizers, args.arch)
    assert all(set(bits) == {32} for bits in lists) == name.endswith('_float')
    assert sum(p.numel() for key, p in model.named_parameters() if 'range' not in key) in (203_626, 2_383_050, 272_474)
    assert args.checkpoint == f'checkpoints/qat/{name}' and args.dataset == 'cifar10' and args.normalize == 'cifar'
    assert (args.epochs, args.lr_type, args.lr_min, args.weight_decay) == (300, 'cos', 0.001, 5e-4)
    assert (args.lr, args.train_batch) == ((0.1, 256) if args.arch == 'resnet20_projection' else
                                           (0.01, 256 if 'large' in name else 128))


def test_the_lists_of_the_original():
    for name, weights, activations in (
        ('toynet_cfg1', [32] + [8] * 10 + [16, 16], [32] + [8] * 10 + [32, 32]),
        ('toynet_cfg1_star', [8] * 13, [32] + [8] * 11 + [16]),
        ('toynet_cfg2', [32, 8] + [6] * 6 + [8] * 3 + [16, 16], [32] + [8] * 10 + [32, 32]),
        ('toynet_cfg3', [32, 8] + [6] * 9 + [16, 16], [32, 8] + [6] * 9 + [32, 32]),
        ('mobilenetv2_cfg1_star', [32] + [8] * 17 + [16, 16], [32] + [8] * 17 + [32, 32]),
        ('resnet20_cfg1_star', [8] * 9, [8] * 9),
    ):
        assert (CONFIGS[name].layer_wbit, CONFIGS[name].layer_abit) == (weights, activations), name


def test_options_go_before_the_configuration(options_of):
    plain = options_of()
    assert plain.config == 'toynet_cfg1_star' and plain.arch == 'toynet' and plain.epochs == 300
    args = options_of('--config', 'resnet20_cfg1_star_no_branch', '--nepochs', '3', '-b', '32', '--branch_out',
                      '--layer_wbit', '4x9', '--dataset_path', 'mine', '--lr_type', 'fixed', '--opt', 'Adam')
    assert (args.arch, args.epochs, args.train_batch, args.branch_out) == ('resnet20_projection', 3, 32, True)
    assert args.layer_wbit == [4] * 9 and args.layer_abit == [8] * 9 and args.dataset_root == 'mine'
    assert args.lr_type == 'fixed' and args.opt == 'adam' and args.momentum == 0.9


def test_another_network_leaves_shape_bits_and_folder_of_the_configuration(options_of):
    for other in (('--arch', 'resnet20'), ('--model_file', 'my.py:build')):
        args = options_of('--config', 'toynet_cfg3', *other)
        assert args.strides is args.num_layer_list is args.layer_wbit is args.layer_abit is None
        assert args.checkpoint == 'checkpoint' and args.epochs == 300 and args.lr_min == 0.001
    args = options_of('--config', 'resnet20_cfg1_star', '--arch', 'resnet20_projection')
    assert args.layer_wbit == [8] * 9 and args.checkpoint == 'checkpoints/qat/resnet20_cfg1_star'


@pytest.mark.parametrize(('entries', 'said'), [
    ("{'bits': 3}", 'there is no setting bits; known are act_quantizer, activation_grid, alpha'),
    ("{'model': 3}", 'model is 3: expected a text'),
    ("{'lr_schedule': 'linear'}", "lr_schedule is 'linear': expected one of cos, exp, step3, fixed"),
    ("{'act_quantizer': None}", 'act_quantizer is None: expected one of dorefa, pact'),
    ("{'batch_size': 0}", 'batch_size is 0: 0 is too small, expected at least 1'),
    ("{'nepochs': 1.5}", 'nepochs is 1.5: '), ("{'lr': 'fast'}", "lr is 'fast': "), ("{'lr': -1}", 'lr is -1: '),
    ("{'branch_out': 'no'}", "branch_out is 'no': expected True or False"),
    ("{'num_layer_list': 3}", 'num_layer_list is 3: expected a list of numbers'),
    ("{'strides': [1, 0]}", 'strides is [1, 0]: 0 is too small'),
    ("{'layer_wbit': '8,a'}", "layer_wbit is '8,a': 8,a: 'a' is no number of bits"),
    ('3', 'is a int: expected an EasyDict'), ('nothing', 'fails with NameError'),
])
def test_a_configuration_that_is_wrong(entries, said, options_of, tmp_path):
    (tmp_path / 'own.py').write_text(f'CONFIG = {entries}\n')
    with pytest.raises(ValueError, match='^--config ') as error:
        options_of('--config', f'{tmp_path / "own.py"}:CONFIG')
    assert said in str(error.value) and '\n' not in str(error.value)


def test_a_configuration_that_is_not_there(options_of, tmp_path):
    for name, said in (('toynet_cfg9', 'expected FILE.py:NAME or one of toynet_float, toynet_cfg1, '),
                       ('own.py', 'expected FILE.py:NAME or one of'), (f'{tmp_path}/own.py:A', 'there is no file')):
        with pytest.raises((ValueError, OSError), match=re.escape(f'--config {name}: {said}')):
            options_of('--config', name)


def test_a_configuration_of_ones_own(options_of, tmp_path):
    (tmp_path / 'own.py').write_text("OWN = dict(model='RN20', layer_abit=(8,) * 9, layer_wbit='4x9', lr=1, half=True,"
                                     " normalize=None, lr_schedule='multistep', schedule=[80, 120], opt='Adam')\n")
    args = options_of('--config', f'{tmp_path / "own.py"}:OWN', '--gamma', '0.5')
    assert args.arch == 'resnet20_projection' and args.layer_abit == [8] * 9 and args.layer_wbit == [4] * 9
    assert args.lr == 1 and args.half is True and args.normalize is None and args.schedule == [80, 120]
    assert args.lr_type == 'step3' and args.opt == 'adam' and args.gamma == 0.5


# ---- what it needed elsewhere

def test_a_cosine_that_ends_above_zero():
    rates = [learning_rate(epoch, lr=0.1, epochs=300, lr_min=0.001) for epoch in (0, 150, 300)]
    assert rates == pytest.approx([0.1, (0.1 + 0.001) / 2, 0.001])
    assert learning_rate(150, lr=0.1, epochs=300) == pytest.approx(0.05)


def test_the_statistics_of_the_cifar_images():
    row = renormalised(dataset_spec('digits'), 'cifar')
    assert row.mean == (0.4914, 0.4822, 0.4465) and row.std == (0.2023, 0.1994, 0.2010)
    assert renormalised(dataset_spec('digits'), None) == dataset_spec('digits') != row
