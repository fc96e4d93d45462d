"""The published strategies in finetune.py cost what the authors say."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from lib.simulator.counting import model_size
from lib.simulator.table_files import load_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def strategies():
    """The STRATEGIES block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / 'scripts')
        return runpy.run_path(str(ROOT / 'scripts' / 'finetune.py'), run_name='finetune')['STRATEGIES']


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
