"""The published strategies in finetune.py cost what the authors say, and every script takes them."""

import json

import pytest
import torch
from torch import nn

import models
from lib.hybrid.config import read_config
from lib.simulator.counting import model_size
from lib.simulator.table_files import load_table
from tests.runs import ROOT

NET = """
from torch import nn
def deep(num_classes, layers):
    convolutions = [nn.Conv2d(3, 4, 3, padding=1)] + [nn.Conv2d(4, 4, 1) for _ in range(layers - 2)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes))
def resnet50(num_classes):
    return deep(num_classes, 54)
def qmobilenetv2(num_classes):
    return deep(num_classes, 53)
"""


@pytest.fixture(scope='module')
def strategies(names):
    """The STRATEGIES block."""
    return names('finetune.py')['STRATEGIES']


@pytest.mark.parametrize(('name', 'ratio'), [('resnet50', 0.09958), ('resnet50_finetune', 0.09884)])
def test_size_of_resnet50(name, ratio, strategies):
    with torch.device('meta'):
        net = models.create_model('resnet50')
    counts = [m.weight.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert round(model_size(counts).ratio(strategies[name]), 5) == ratio


def test_latency_of_mobilenetv2(strategies):
    cost = load_table(ROOT / 'lib/simulator/lookup_tables/qmobilenetv2_imagenet100_batch16_latency_table.npy')
    strategy = strategies['qmobilenetv2']
    assert round(cost.ratio(strategy), 4) == 0.5965
    assert round(cost.ratio([[8, 7], *strategy[1:]]), 4) == 0.5914  # the image in the 7-bit column, as in the original


@pytest.fixture(params=['resnet50', 'qmobilenetv2'])
def given(request, tmp_path, strategies, succeed):
    """A list, the forms a person gives it in, and `run(script, *options)` on a small network of so many layers."""
    (tmp_path / 'net.py').write_text(NET)
    strategy, name = strategies[request.param], request.param
    text = json.dumps(strategy)  # longer than the name of a file may be

    def run(script, *options):
        return succeed(script, '--model_file', f'net.py:{name}', '--dataset', 'digits', '--image_size', '8', *options,
                       cwd=tmp_path).out
    return strategy, (text, f'{text[:-1]},\n]', name), run


def test_measure_takes_them(given):
    strategy, forms, run = given
    for form in forms:
        report = json.loads(run('measure.py', '--strategy', form, '--compare', form, '--json'))
        assert report['strategy'] == report['compare']['strategy'] == strategy


def test_finetune_takes_them(given, tmp_path, read_json):
    strategy, forms, run = given
    flow = ('--linear_quantization', '--cost', 'bitops', '--calibrate', 'max') if '[[' in forms[0] else ()
    run('finetune.py', *flow, '--strategy', forms[0], '--device', 'cpu', '--epochs', '1', '--train_batch', '479',
        '-c', 'run')
    assert read_json(tmp_path / 'run' / 'strategy.json')['strategy'] == strategy


def test_qat_train_takes_them(given, tmp_path, read_json):
    strategy, forms, run = given
    run('qat_train.py', '--strategy', forms[0], '--input_bits', '6', '--device', 'cpu', '--epochs', '1',
        '--train_batch', '479', '-c', 'run')
    assert read_json(tmp_path / 'run' / 'strategy.json')['strategy'] == as_pairs(strategy, 6)


def test_hybrid_train_takes_them(given, tmp_path):
    strategy, forms, run = given
    for form in forms:
        run('hybrid_train.py', '--strategy', form, '--device', 'cpu', '--write_config', 'made.yaml')
        assert list(read_config(tmp_path / 'made.yaml')['layers'].values()) == as_pairs(strategy, -1)


def as_pairs(strategy, input_bits):
    return [entry if isinstance(entry, list) else [entry, input_bits] for entry in strategy]
