"""The progressive search as a user runs it: baseline, steps, choices, resuming, targets, messages."""

import csv
import json
import math
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import models
from lib.qat.parts import quantize_parts
from lib.qat.placement import Quantizers
from lib.record.checkpoint import read_checkpoint
from lib.runtime.seeds import derived_seed
from lib.search.candidates import balanced_batch, draw, gradient_score, lower
from lib.utils.data_utils import create_loaders
from tests.runs import ROOT, equal

NETWORK = """
from collections import namedtuple
from torch import nn
Part = namedtuple('Part', 'layer activation activation_first')

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
                                    for _ in range(5))
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.fc(self.pool(x).flatten(1))

    def quantized_parts(self):
        return [Part(f'blocks.{i}.2', f'blocks.{i}.1', True) for i in range(5)]

def build(num_classes=10):
    return Net(num_classes)
"""
DATA = ('--dataset', 'digits', '--image_size', '8', '--workers', '0', '--device', 'cpu', '--train_batch', '80')
TINY = ('--model_file', 'net.py:build', *DATA)
STEPS = ('--lam', '4', '--search_epochs', '1', '--lr', '0.003')
QUANT = ('--config', ROOT / 'run' / 'progressive' / 'config.py:quant')
LAYERS = 10  # quantizers


def rows_of(folder):
    """The rows of search_log.csv, without times."""
    with open(folder / 'search_log.csv', newline='') as file:
        return [{key: value for key, value in row.items() if key != 'step_time'} for row in csv.DictReader(file)]


def bits_of(row):
    return [int(row[f'kbits{i + 1}']) for i in range(LAYERS)]


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The folder in which the user works."""
    folder = tmp_path_factory.mktemp('progressive')
    (folder / 'net.py').write_text(NETWORK)
    return folder


@pytest.fixture(scope='module')
def baseline(place, succeed):
    """A run of two epochs at 8 bits."""
    done = succeed('qat_train.py', *QUANT, *TINY, '--epochs', '2', '--lr', '0.02', '-c', 'quant8', cwd=place)
    return SimpleNamespace(done=done, checkpoint=place / 'quant8' / 'checkpoint.pth.tar')


@pytest.fixture(scope='module')
def searched(place, baseline, succeed):
    """A search of three steps."""
    options = (*TINY, *STEPS, '--weights', baseline.checkpoint, '--step', '3', '--output', 'save')
    done = succeed('progressive_search.py', *options, cwd=place)
    return SimpleNamespace(done=done, options=options, folder=place / 'save' / 'net_digits_progressive')


# ---- the baseline

def test_the_baseline_has_the_quantizers_of_the_search(baseline):
    saved = read_checkpoint(baseline.checkpoint)
    assert saved['strategy'] == {'layer_wbit': [8] * 5, 'layer_abit': [8] * 5} and saved['qat']['parts'] is True
    assert 'net, dorefa weights, pact activations' in baseline.done.out
    clips = [saved['state_dict'][f'blocks.{i}.1.range'].item() for i in range(5)]
    assert all(clip != 10 and abs(clip - 10) < 1 for clip in clips), 'they learn from 10 on'
    assert not any('quantizer' in key for key in saved['state_dict'])


def test_the_baseline_of_a_network_without_parts(succeed, call, place):
    done = succeed('qat_train.py', *QUANT, '--arch', 'resnet20', *DATA, '--k_bits', '4', '--eval', cwd=place)
    ratio = (4 * 267_264 + 32 * (432 + 640)) / 32 / (267_264 + 1072)
    assert f'{ratio:.4f} of float' in done.out
    done = call('qat_train.py', '--arch', 'preresnet20', *DATA, '--k_bits', '4', '--eval', cwd=place)
    assert done.code == 1 and 'mpact keeps negative values' in done.err


# ---- a search

def test_bits_go_down_step_by_step(searched):
    rows, before = rows_of(searched.folder), [8] * LAYERS
    assert [row['step'] for row in rows] == ['1', '2', '3']
    for row in rows:
        bits = bits_of(row)
        change = [old - new for old, new in zip(before, bits, strict=True)]
        assert set(change) <= {0, 1} and sum(change) == LAYERS // 2, 'exactly half of them, by one'
        assert float(row['cost']) == sum(bits[1::2]) / 5 / 32 and row['acc_info'] == ''  # layers of the same size
        assert float(row['hession_info']) > 0 and row['model_size'] == str(32 * 5 * 576) and row['lr'] == '0.003'
        before = bits
    assert float(rows[-1]['test_acc']) > 50


def test_every_step_leaves_a_checkpoint_with_its_bits(searched, succeed, place, read_json):
    rows = rows_of(searched.folder)
    for step, row in enumerate(rows, 1):
        saved = read_checkpoint(searched.folder / 'checkpoint' / f'{step}.pt')
        assert saved['kbits'] == bits_of(row) and saved['step'] == step and saved['cost'] == float(row['cost'])
        assert saved['strategy'] == {'layer_wbit': saved['kbits'][1::2], 'layer_abit': saved['kbits'][::2]}
        assert saved['test_prec1'] == float(row['test_acc'])
    done = succeed('qat_train.py', *TINY, '--eval', '--resume', searched.folder / 'checkpoint' / '2.pt', cwd=place)
    assert f'top-1 {float(rows[1]["test_acc"]):.2f} %' in done.out.splitlines()[-1], 'at the bits of that step'
    strategy, last = read_json(searched.folder / 'strategy.json'), bits_of(rows[-1])
    pairs = [list(pair) for pair in zip(last[1::2], last[::2], strict=True)]
    assert strategy['strategy'] == [[8, -1], *pairs, [8, -1]]
    assert strategy['layers'] == ['stem', *(f'blocks.{i}.2' for i in range(5)), 'fc']
    results = read_json(searched.folder / 'results.json')
    assert results['top1'] == float(rows[-1]['test_acc']) and results['ratio'] == float(rows[-1]['cost'])
    sizes = 576 * 5 + 216 + 320
    assert results['size_ratio'] == pytest.approx((sum(last[1::2]) * 576 + 32 * (216 + 320)) / 32 / sizes)
    names = {path.name.partition('.tfevents')[0] for path in searched.folder.iterdir()}
    assert names == {'args.json', 'checkpoint', 'events.out', 'log.txt', 'results.json', 'search_log.csv', 'steps.png',
                     'strategy.json', 'strategy.png', 'strategy.txt'}


def test_the_strategy_is_one_for_measure(searched, succeed, place):
    done = succeed('measure.py', '--model_file', 'net.py:build', '--dataset', 'digits', '--image_size', '8',
                   '--strategy', searched.folder / 'strategy.json', cwd=place)
    line = next(line for line in done.out.splitlines() if line.startswith('proqha_ratio'))
    assert f'= {float(rows_of(searched.folder)[-1]["cost"]):.4f}' in line


def test_the_choice_is_the_least_score_of_candidates_that_all_see_the_same_weights(searched, baseline, place):
    """Every candidate is judged anew here, from the checkpoint of the baseline, without the script."""
    sys.path.insert(0, str(place))
    try:
        model = runpy.run_path(str(place / 'net.py'))['build']()
    finally:
        sys.path.remove(str(place))
    loader, _, _ = create_loaders('digits', batch_size=80, test_batch_size=80, image_size=8, seed=234)
    parts = quantize_parts(model, 8, 8, Quantizers('dorefa', 'pact', gradient='ste'), torch.zeros(2, 3, 8, 8))
    images, labels = balanced_batch(loader, 80, derived_seed(234, 'candidates', 1))
    assert set(torch.bincount(labels).tolist()) == {8}
    rng, scores = np.random.default_rng(derived_seed(234, 'progressive', 1)), []
    for _ in range(4):
        parts.bits = lower([8] * LAYERS, draw(rng, LAYERS, 0.5), 1, [range(2, 9)] * LAYERS)
        model.load_state_dict(read_checkpoint(baseline.checkpoint)['state_dict'])
        scores.append((gradient_score(model, images, labels, lr=0.003), parts.bits))
    row = rows_of(searched.folder)[0]
    assert (float(row['hession_info']), bits_of(row)) == min(scores)


def test_by_accuracy_on_held_out_images(baseline, succeed, place):
    options = ('--weights', baseline.checkpoint, '--step', '1', '--info', 'acc', '--val_size', '100', '--interval', '4',
               '--suffix', 'acc', '--output', 'save')
    succeed('progressive_search.py', *TINY, *STEPS, *options, cwd=place)
    row, = rows_of(place / 'save' / 'net_digits_progressive_acc')
    assert row['hession_info'] == '' and float(row['acc_info']) in range(101), 'percent of a hundred images'
    assert sorted(bits_of(row)) == [4] * 5 + [8] * 5


def test_candidates_and_pins(baseline, succeed, refused, place):
    options = (*TINY, *STEPS, '--lam', '1', '--weights', baseline.checkpoint, '--output', 'save', '--suffix', 'pinned',
               '--candidates', '2,4,8', '--candidates', 'blocks.2.*=8,4/8', '--pin', 'blocks.1.2=5,3', '--ratio', '1')
    done = succeed('progressive_search.py', *options, '--step', '5', cwd=place)
    rows = [bits_of(row) for row in rows_of(place / 'save' / 'net_digits_progressive_pinned')]
    assert rows == [[4, 4, 3, 5, 8, 4, 4, 4, 4, 4], [2, 2, 3, 5, 8, 4, 2, 2, 2, 2]]
    assert 'all quantizers are at 2, 3, 4, 5, 8 bits: nothing is left to lower' in done.out
    for more, words in ((('--pin', 'stem=8,8'), ('--pin stem=8,8: no layer', 'blocks.0.2')),
                        (('--pin', 'blocks.0.2=8,-1'), ('--candidates or --pin: -1 bits, expected 2..8',)),
                        (('--cost', '0.05'), ('--cost 0.05 cannot be reached: the fewest bits of every',)),
                        (('--k_bits', '3'), ('blocks.2.2.weight starts from 3 bits, --candidates has 4,8',))):
        refused(place, words, 'progressive_search.py', *options, '--overwrite', *more)


# ---- the end, and resuming

def test_it_stops_at_the_target_and_at_two_bits(baseline, succeed, place):
    options = (*TINY, *STEPS, '--lam', '1', '--weights', baseline.checkpoint, '--output', 'ends', '--overwrite')
    done = succeed('progressive_search.py', *options, '--cost', '0.17', '--interval', '2', '--step', '9', cwd=place)
    costs = [float(row['cost']) for row in rows_of(place / 'ends' / 'net_digits_progressive')]
    assert costs[-1] <= 0.17 < costs[-2] and 'at most 0.17 is asked for: done' in done.out
    done = succeed('progressive_search.py', *options, '--ratio', '1', '--interval', '4', '--step', '5', cwd=place)
    rows = rows_of(place / 'ends' / 'net_digits_progressive')
    assert [bits_of(row) for row in rows] == [[4] * LAYERS, [2] * LAYERS]
    assert 'all quantizers are at 2 bits: nothing is left to lower' in done.out
    assert sorted(path.name for path in (place / 'ends' / 'net_digits_progressive' / 'checkpoint').iterdir()) == [
        '1.pt', '2.pt'], 'steps of the replaced run are gone'


@pytest.mark.parametrize(('victim', 'count'), [('1.pt', 1), ('search_log.csv', 2)])
def test_killed_and_resumed_is_never_stopped(searched, succeed, crash, place, victim, count):
    folder = place / f'killed_{victim}' / 'net_digits_progressive'
    crash(victim, count, 'progressive_search.py', *searched.options[:-1], folder.parent, cwd=place)
    done = succeed('progressive_search.py', '--resume', folder, cwd=place)
    assert 'warning' not in done.out.lower()
    assert rows_of(folder) == rows_of(searched.folder)
    for step in range(1, 4):
        assert equal(*(read_checkpoint(run / 'checkpoint' / f'{step}.pt') for run in (folder, searched.folder)),
                     but=['step_time'])
    assert (folder / 'results.json').read_bytes() == (searched.folder / 'results.json').read_bytes()


def test_a_step_that_diverges_is_taken_back(searched, succeed, call, place, monkeypatch):
    """It counts as the worst; the next one starts from the network before it, also after a resume."""
    from lib.search import progressive
    train_epoch = progressive.train_epoch

    def spoilt(model, loader, optimizer, epoch, *args, **options):
        if epoch == 1:  # of step 2
            for parameter in model.parameters():
                parameter.data.fill_(math.nan)
        return train_epoch(model, loader, optimizer, epoch, *args, **options)
    monkeypatch.setattr(progressive, 'train_epoch', spoilt)
    options = (*searched.options[:-1], 'wild')
    done = succeed('progressive_search.py', *options, cwd=place)
    assert 'step 2 diverged: ' in done.out
    folder = place / 'wild' / 'net_digits_progressive'
    first, second, third = (read_checkpoint(folder / 'checkpoint' / f'{step}.pt') for step in (1, 2, 3))
    assert equal(first['state_dict'], second['state_dict']) and first['kbits'] == second['kbits']
    assert (second['history'][1]['test_acc'], second['acc']) == (0.0, first['acc'])
    assert sum(third['kbits']) == sum(first['kbits']) - LAYERS // 2
    (folder / 'checkpoint' / '3.pt').unlink()
    succeed('progressive_search.py', '--resume', folder, cwd=place)
    again = read_checkpoint(folder / 'checkpoint' / '3.pt')
    assert equal(again['state_dict'], third['state_dict']) and again['kbits'] == third['kbits']
    monkeypatch.setattr(progressive, 'train_epoch', train_epoch)
    done = call('progressive_search.py', *options, '--lr', '1e30', '--suffix', 'all', cwd=place)
    assert done.code and 'steps diverged' in done.err and '--lr below 1e+30' in done.err


def test_a_finished_search_takes_more_steps_only(searched, refused, succeed, place):
    resume = ('progressive_search.py', '--resume', searched.folder)
    for command, words in (
            ((*resume, '--step', '2'), 'has 3 steps already, --step 2 are fewer: give at least 3'),
            ((*resume, '--lam', '9'), '--lam was 4, now 9'),
            (('progressive_search.py', *searched.options), 'already holds a run')):
        refused(place, [words], *command)
    done = succeed('progressive_search.py', '--resume', searched.folder, cwd=place)
    assert done.out.splitlines()[-1].startswith('3 steps: top-1 ')


@pytest.mark.parametrize('change', [lambda saved: 3, lambda saved: {**saved, 'kbits': saved['kbits'][1:]},
                                    lambda saved: {key: saved[key] for key in saved if key != 'kbits'}])
def test_a_damaged_step_of_an_earlier_version_is_named(searched, refused, tmp_path, change):
    folder = Path(shutil.copytree(searched.folder, tmp_path / 'old'))
    saved = torch.load(folder / 'checkpoint' / '3.pt', weights_only=True)
    torch.save(change({key: saved[key] for key in saved if key not in ('digest', 'run')}), folder / 'checkpoint/3.pt')
    settings = json.loads((folder / 'args.json').read_text())
    (folder / 'args.json').write_text(json.dumps({key: settings[key] for key in settings
                                                  if key not in ('digest', 'record')}))
    refused(folder, ['3.pt'], 'progressive_search.py', '--resume', folder)


# ---- what it starts from

def test_bits_to_start_from(searched, baseline, succeed, place):
    step = searched.folder / 'checkpoint' / '1.pt'
    first = bits_of(rows_of(searched.folder)[0])
    cases = [((), f'at cost {sum(first[1::2]) / 5 / 32:.4f}'), (('--k_bits', '6'), f'at cost {6 / 32:.4f}')]
    for more, said in cases:
        done = succeed('progressive_search.py', *TINY, '--weights', step, '--test_only', *more, cwd=place)
        assert said in done.out.splitlines()[-1]
        assert more or f'top-1 {float(rows_of(searched.folder)[0]["test_acc"]):.2f} %' in done.out
    options = (*TINY, *STEPS, '--step', '1', '--weights', baseline.checkpoint, '--suffix', 'mixed', '--output', 'save')
    succeed('progressive_search.py', *options, '--k_bits', '3', '--pre_k_bits', '8', '--ratio', '0.3', cwd=place)
    bits = bits_of(rows_of(place / 'save' / 'net_digits_progressive_mixed')[0])
    assert sum(value in (2, 3) for value in bits) == 3 and set(bits) <= {2, 3, 7, 8}


def test_float_weights_come_by_name_and_clips_begin_at_ten(succeed, place):
    succeed('pretrain.py', *TINY, '--epochs', '1', '--lr', '0.05', '-c', 'float', cwd=place)
    succeed('progressive_search.py', *TINY, '--lam', '1', '--search_epochs', '1', '--lr', '1e-30', '--step', '1',
            '--weights', 'float/checkpoint.pth.tar', '--suffix', 'float', '--output', 'save', cwd=place)
    theirs = read_checkpoint(place / 'float' / 'checkpoint.pth.tar')['state_dict']
    ours = read_checkpoint(place / 'save' / 'net_digits_progressive_float' / 'checkpoint' / '1.pt')['state_dict']
    weights = [key for key in theirs if 'running' not in key and 'tracked' not in key]
    assert all(torch.equal(theirs[key], ours[key]) for key in weights)
    assert all(ours[f'blocks.{i}.1.range'].item() == 10 for i in range(5))


# ---- names of the original

@pytest.fixture(scope='module')
def script(names):
    """The globals of the script and of its options."""
    import _cli
    import _proqha
    make = names('progressive_search.py')['make_progressive_parser']

    def parse(*argv):
        return make().parse_args(argv)
    return SimpleNamespace(parse=parse, make=make, networks=_proqha.networks, cli=_cli,
                           network=lambda *argv: _cli.pick(_proqha.NamedNetwork, parse(*argv)).registered)


@pytest.mark.parametrize(('argv', 'expected'), [
    ((), 'preresnet56'), (('--num_layers', '20'), 'preresnet20'), (('--arch', 'resnet20'), 'resnet20'),
    (('--arch', 'resnet20', '--num_layers', '20'), 'preresnet20'), (('--num_layers', '18'), 'preresnet18_cifar'),
    (('--num_layers', '18', '--dataset', 'imagenet'), 'postresnet18'), (('--arch', 'densenet'), 'densenet40'),
    (('--num_layers', '34', '--dataset', 'imagenet'), 'preresnet34'), (('--num_layers', '101'), 'preresnet101'),
    (('--arch', 'vgg', '--num_layers', '16'), 'prevgg16'), (('--arch', 'mobilenetv2'), 'mobilenetv2'),
    (('--arch', 'mobilenetv2', '--num_layers', '52'), 'premobilenetv2'), (('--arch', 'preresnet32'), 'preresnet32'),
    (('--arch', 'mobilenetv2', '--num_layers', '52', '--image_size', '224'), 'premobilenetv2_imagenet'),
])
def test_names_of_networks(script, argv, expected):
    assert script.network(*argv) == expected


def test_every_name_is_registered(script):
    known = set(models.list_models())
    for small in (True, False):
        assert all(set(depths.values()) <= known for depths in script.networks(small).values())


@pytest.mark.parametrize(('argv', 'said'), [
    (('--num_layers', '19'), 'resnet needs --num_layers 18/20/32/34/50/56/101/110/152, got 19'),
    (('--arch', 'vgg'), 'vgg needs --num_layers 11/16/19'),
    (('--arch', 'resnet50', '--num_layers', '50'), '--num_layers 50 belongs to --arch resnet, resnet20, vgg'),
])
def test_depths_that_do_not_exist(script, argv, said):
    with pytest.raises(ValueError, match=said):
        script.network(*argv)


def test_a_checkpoint_to_resume_is_one_to_start_from(script, tmp_path):
    """As in the original's search.sh; a folder is a search to go on with."""
    (tmp_path / '8bit.pth.tar').touch()
    for given, expected in ((tmp_path / '8bit.pth.tar', (str(tmp_path / '8bit.pth.tar'), None)),
                            (tmp_path, (None, str(tmp_path)))):
        parser = script.make()
        args = script.cli.parse(parser, [f'--resume={given}', '--archtype', 'quant'])
        *said, unused = parser.said
        assert (args.weights, args.resume) == expected and len(said) == (expected[1] is None)
        assert unused.startswith('without effect: --archtype (') and not hasattr(args, 'archtype')


def test_the_options_of_the_original(script):
    command = ('--step=25 --lam=500 --interval=1 --ratio=0.5 --search_epochs=30 --dataset=imagenet '
               '--arch=resnet --lr=0.001 --num_layers=18 --k_bits=8 --gpus=0 --data_dir x --clip --mission=m '
               '--job_dir=out --train_batch_size=256 --eval_batch_size 50 --base_data_dir y --workers 3 '
               '--archtype quant --batchnorm True --cutout False --weight_decay 2e-4 --momentum .9 '
               '--print_freq 10 --eval_freq 2 --train_epochs 3 --reset')
    args = script.parse(*command.split())
    assert (args.step, args.lam, args.search_epochs, args.gpu_id, args.dataset_root) == (25, 500, 30, '0', 'x')
    assert (args.suffix, args.output, args.train_batch, args.test_batch, args.overwrite) == ('m', 'out', 256, 50, True)
    defaults = script.parse()
    assert (defaults.dataset, defaults.arch, defaults.info) == ('cifar10', 'resnet', 'hession')
    assert (defaults.step, defaults.lam, defaults.ratio, defaults.interval) == (20, 100, 0.5, 1)
    assert (defaults.search_epochs, defaults.train_batch, defaults.test_batch, defaults.workers) == (30, 128, 100, 8)
    assert (defaults.beta1, defaults.beta2, defaults.epsilon, defaults.grad_clip) == (0.9, 0.999, 1e-7, 5.0)
    assert defaults.cost is None and defaults.k_bits is None and defaults.lr == 1e-3
