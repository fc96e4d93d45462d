"""Checkpoints of networks that have diverged are not written; constants that are infinite do no harm."""

import math

import pytest
import torch

from lib.quantize import DSQQuantizer
from lib.record.checkpoint import save_checkpoint
from tests.tiny import TinyNet


def with_value(name, value):
    state = TinyNet().state_dict()
    state[name].view(-1)[-1] = value
    return state


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(('name', 'checkpoint'), [
    ('stem.weight', lambda v: {'state_dict': with_value('stem.weight', v)}),
    ('bn.running_var', lambda v: {'state_dict': with_value('bn.running_var', v)}),
    ('head.bias', lambda v: with_value('head.bias', v)),
    ('optimizer.state.3.exp_avg', lambda v: {'optimizer': {'state': {3: {'exp_avg': torch.tensor(v)}}}}),
    ('codebooks.stem.centroids', lambda v: {'codebooks': {'stem': {'centroids': torch.tensor([1, v])}}}),
    ('agent.replay.1', lambda v: {'agent': {'replay': [torch.zeros(2), torch.tensor([abs(v)], dtype=torch.half)]}}),
])
def test_what_diverged_is_not_written(tmp_path, name, checkpoint, value):
    path = tmp_path / 'checkpoint.pth.tar'
    save_checkpoint(path, {'epoch': 1, 'state_dict': TinyNet().state_dict()})
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match=rf'checkpoint.pth.tar is not written: {name} holds 1 of .*lower the'):
        save_checkpoint(path, checkpoint(value))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_what_may_be_infinite_is_written(tmp_path):
    mask = torch.full((4, 4), -math.inf).triu(1)
    quantizer = DSQQuantizer(2, bounds='minmax', learn_lower=True, learn_upper=True)
    bounds = {f'conv.weight_quantizer.{key}': value for key, value in quantizer.state_dict().items()}
    assert bounds['conv.weight_quantizer.upper'].isinf()
    save_checkpoint(tmp_path / 'c', {'state_dict': {'mask': mask, **bounds}, 'acc': math.nan, 'epoch': 3,
                                     'rng': torch.get_rng_state(), 'empty': torch.zeros(0)})
    with pytest.raises(FloatingPointError, match='mask holds 1 of 16'):
        mask[0, 0] = math.nan
        save_checkpoint(tmp_path / 'c', {'state_dict': {'mask': mask}})
