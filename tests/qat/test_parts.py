"""Where the progressive search puts its quantizers, what order their bits are in, and what these cost."""

import numpy as np
import pytest
import torch
from torch import nn

import models
from lib.network.conversion import activation_quantizers
from lib.network.records import profile_layers
from lib.qat.parts import ClippedReLU, PartQuantizers, find_parts, quantize_parts
from lib.qat.placement import Quantizers, weight_bits
from lib.quantize import DoReFaWeightQuantizer, PACTActivationQuantizer, QConv2d
from lib.search.candidates import draw, lower
from lib.search.log import STEP_COLUMNS, StepLog
from lib.simulator.counting import proqha_float_layers, proqha_ratio
from tests.meta import on_meta

QUANTIZERS = Quantizers('dorefa', 'pact', gradient='ste')
BUILDERS = sorted(name for name in models.list_models(quantized=False)
                  if name.startswith(('preresnet', 'prevgg', 'premobilenet', 'postresnet', 'densenet40')))
DEEP = {'preresnet101', 'preresnet110', 'preresnet152'}  # blocks as in preresnet50 and preresnet20, only more of them


def images(size=8, count=4):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def float_network(name='preresnet20', **options):
    """A network whose batch norms have seen something."""
    torch.manual_seed(0)
    model = models.create_model(name, **{'num_classes': 10, **options})
    with torch.no_grad():
        model.train()(images(count=16))
    return model.eval()


def prepared(weights=8, activations=8, *, quantizers=QUANTIZERS, name='preresnet20', **options):
    model = float_network(name, **options)
    return model, quantize_parts(model, weights, activations, quantizers, images(), name)


# ---- which layers, and what they cost

@pytest.mark.parametrize('name', [name for name in BUILDERS if name not in DEEP])
def test_every_builder_costs_k_of_32(name):
    """The parts of a network are the layers that the cost counts; bits of float layers do not matter."""
    with on_meta():
        model = models.create_model(name, num_classes=10)
        records = profile_layers(model, (3, 64, 64))
        parts = find_parts(model, (3, 64, 64))
        placed = PartQuantizers(model, quantize_parts(model, 8, 8, QUANTIZERS, torch.zeros(1, 3, 64, 64)).parts)
    float_layers, cost = proqha_float_layers(records), proqha_ratio(records)
    assert [part.layer for part in parts] == [record.name for record in records if record.name not in float_layers]
    assert len(placed) == 2 * len(parts) and placed.bits == [8] * len(placed)
    names = [record.name for record in records]
    for k in range(2, 9):
        assert placed.cost([k] * len(placed)) == placed.cost([k] * len(placed), odd_positions=True) == k / 32
        assert cost.ratio(placed.strategy([k] * len(placed), names)) == k / 32
    mixed = [2 + i % 7 for i in range(len(placed))]
    assert placed.cost(mixed) == pytest.approx(cost.ratio(placed.strategy(mixed, names)), rel=1e-12)


def test_there_are_builders():
    assert len(BUILDERS) >= 17


def test_the_cost_is_the_mean_of_the_bits_of_the_weights():
    model, parts = prepared()
    bits = [2 + i % 5 for i in range(36)]
    counts = [model.get_submodule(part.layer).weight.numel() for part in parts.parts]
    assert parts.cost(bits) == sum(n * b for n, b in zip(counts, bits[1::2], strict=True)) / 32 / 267_264
    parts.bits = bits
    total, full = weight_bits(model)
    rest = 16 * 27 + 640
    assert (total, full) == (32 * parts.cost(bits) * 267_264 + 32 * rest, 32 * (267_264 + rest))


def test_the_cost_of_random_choices_falls_as_in_the_original():
    """Its code gives these means over 200 runs, after 0 to 12 moves of half of all quantizers of ResNet-18 by a bit."""
    expected = [.250, .235, .219, .203, .187, .171, .156, .139, .124, .111, .101, .091, .083]
    with on_meta():
        parts = quantize_parts(models.create_model('postresnet18'), 8, 8, QUANTIZERS, torch.zeros(1, 3, 64, 64))
    rng, costs = np.random.default_rng(0), np.zeros((200, 13))
    for run in costs:
        bits = [8] * 32
        for move in range(13):
            run[move] = parts.cost(bits)
            bits = lower(bits, draw(rng, 32, 0.5), 1, [range(2, 9)] * 32)
    assert np.abs(costs.mean(axis=0) - expected).max() < 0.004


# ---- order

def test_activations_come_first_or_last_as_the_network_has_them():
    _, parts = prepared()
    assert parts.labels[:4] == ['layer1.0.relu1', 'layer1.0.conv1.weight', 'layer1.0.relu2', 'layer1.0.conv2.weight']
    with on_meta():
        post = models.create_model('postresnet18')
        behind = quantize_parts(post, 8, 4, QUANTIZERS, torch.zeros(1, 3, 64, 64))
    assert behind.bits == [8, 4] * 16 and behind.labels[0].endswith('conv1.weight')
    assert behind.cost(behind.bits) == 8 / 32
    assert behind.cost(behind.bits, odd_positions=True) == 4 / 32, "the original's rule reads the activations"
    for each in (parts, behind):
        mixed = [2 + i % 7 for i in range(len(each))]
        assert each.joined(**each.lists(mixed)) == mixed
    lists = behind.lists([8, 4] * 16)
    assert lists == {'layer_wbit': [8] * 16, 'layer_abit': [4] * 16}


def test_a_strategy_has_the_bits_of_the_inputs():
    """Pre-activation: those of the part; post-activation: those behind the part before; float layers keep theirs."""
    model, parts = prepared()
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    strategy = parts.strategy([3, 5] * 18, names)
    assert strategy == [[8, -1], *[[5, 3]] * 18, [8, -1]]
    with on_meta():
        post = models.create_model('postresnet18')
        behind = quantize_parts(post, 8, 8, QUANTIZERS, torch.zeros(1, 3, 64, 64))
    bits = [8] * 32
    bits[1::2] = range(16)  # activations
    entries = behind.strategy(bits, [part.layer for part in behind.parts])
    assert entries == [[8, before] for before in (-1, *range(15))]


# ---- what the network computes

@pytest.mark.parametrize(('w_bit', 'a_bit'), [(2, 2), (3, 4)])
def test_weights_and_activations_are_on_their_grids(w_bit, a_bit):
    model, parts = prepared(w_bit, a_bit)
    seen = {}
    for part in parts.parts:
        model.get_submodule(part.layer).register_forward_pre_hook(
            lambda m, x, name=part.layer: seen.update({name: x[0]}))
    model(images())
    for part in parts.parts:
        layer, alpha = model.get_submodule(part.layer), model.get_submodule(part.activation).range
        assert isinstance(layer, QConv2d) and isinstance(layer.weight_quantizer, DoReFaWeightQuantizer)
        codes = seen[part.layer] / alpha * (2**a_bit - 1)
        assert torch.allclose(codes, codes.round(), atol=1e-4) and codes.min() == 0 and alpha == 10
        levels = layer.weight_quantizer(layer.weight).unique()
        assert len(levels) <= 2**w_bit and levels.abs().max() == 1
    assert type(model.conv1) is nn.Conv2d and type(model.relu) is nn.ReLU, 'stem and classifier stay float'


@pytest.mark.parametrize('alpha', [0.5, 10.0])
def test_at_32_bits_weights_are_left_alone_and_activations_still_clip(alpha):
    model, parts = prepared(32, 32, quantizers=Quantizers('dorefa', 'pact', alpha=alpha, gradient='ste'))
    reference = float_network()
    for part in parts.parts:
        parent, _, name = part.activation.rpartition('.')
        setattr(reference.get_submodule(parent), name, nn.Hardtanh(0, alpha))
    assert torch.allclose(model(images()), reference(images()), atol=1e-5)
    clipped = ClippedReLU(32, alpha=alpha)
    x = torch.tensor([-1.0, alpha / 2, alpha, 2 * alpha, 3 * alpha], requires_grad=True)
    clipped(x).sum().backward()
    assert clipped.range.grad.item() == 3 and x.grad.tolist() == [0, 1, 0, 0, 0]
    for bits in (4, 32):
        assert ClippedReLU(bits, alpha=alpha)(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]
    assert torch.allclose(prepared(16, 16)[0](images()).softmax(1), prepared(16, 32)[0](images()).softmax(1), atol=1e-2)


def test_bits_change_in_place_and_come_back_bit_by_bit():
    model, parts = prepared()
    before, state = model(images()), {key: value.clone() for key, value in model.state_dict().items()}
    parts.bits = [2, 3] * 18
    assert parts.bits == [2, 3] * 18 and model.layer1[0].conv1.w_bit == 3 and model.layer1[0].relu1.bits == 2
    assert not torch.equal(model(images()), before)
    parts.bits = [8] * 36
    assert torch.equal(model(images()), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match='argument 2 is shorter'):
        parts.bits = [8] * 35


# ---- networks without parts

def test_other_networks_are_quantized_at_the_inputs_of_their_layers():
    model, parts = prepared(4, 6, name='resnet20')
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)][1:]
    assert [part.layer for part in parts.parts] == layers and parts.labels[0] == 'layer1.0.conv1.input'
    assert parts.bits == [6, 4] * 18 and len(activation_quantizers(model)) == 18
    assert weight_bits(model)[0] == 32 * (432 + 640) + 4 * 267_264
    keys = set(model.state_dict()) - set(float_network('resnet20').state_dict())
    assert {key.rpartition('.')[0].rpartition('.')[0] for key in keys} == set(layers), 'float layers hold nothing more'
    float_stem = float_network('resnet20').conv1(images())
    assert torch.allclose(model.conv1(images()), float_stem)


def test_signed_inputs_get_a_signed_clip():
    model, parts = prepared(4, 6, name='toynet')
    signs = {part.layer: model.get_submodule(part.layer).input_quantizer.signed for part in parts.parts}
    assert not signs['blocks.0.project'], 'behind the only ReLU of a block'
    assert signs['blocks.1.depthwise'] and all(isinstance(q, PACTActivationQuantizer)
                                               for q in activation_quantizers(model).values())


def test_what_cannot_be_prepared_is_refused():
    ends = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(ValueError, match='Sequential has no layer to quantize: its 2 convolutions'):
        quantize_parts(ends, 8, 8, QUANTIZERS, images())
    with pytest.raises(ValueError, match='mpact keeps negative values'):
        prepared(quantizers=Quantizers('dorefa', 'mpact'))
    with pytest.raises(ValueError, match=r'layer_wbit has 3 entries, preresnet20 takes 18: 0 layer1.0.conv1'):
        prepared([8, 8, 8], 8)
    with pytest.raises(ValueError, match=r'layer_abit: entry 0 \(layer1.0.conv1\) is 9'):
        prepared(8, 9)
    assert prepared(quantizers=Quantizers('lsq', 'lsq'))[0](images()).isfinite().all()


# ---- the record

def test_the_record_of_a_search(tmp_path):
    _, parts = prepared()
    names = ['conv1', *(part.layer for part in parts.parts), 'linear']
    options = {'parts': parts, 'kinds': ['conv'] * 18, 'layer_names': names, 'about': {'arch': 'preresnet20'},
               'start': {'cost': 0.25, 'test_acc': 90.0}}
    row = dict(zip(STEP_COLUMNS, (1, 2.0, 7, 0.5, None, 0.2, 80.0, 81.5, 0.001), strict=True), kbits=[7, 8] * 18)
    log = StepLog(tmp_path, **options)
    log.add(row)
    log = StepLog(tmp_path, **options, history=log.history)
    log.add({**row, 'step': 2, 'hession_info': None, 'acc_info': 77.0})
    log.plot()
    lines = (tmp_path / 'search_log.csv').read_text().splitlines()
    assert lines[0] == ','.join([*STEP_COLUMNS, *(f'kbits{i}' for i in range(1, 37))])
    assert lines[1:] == ['1,2.0,7,0.5,,0.2,80.0,81.5,0.001' + ',7,8' * 18, '2,2.0,7,,77.0,0.2,80.0,81.5,0.001' +
                         ',7,8' * 18]
    text = (tmp_path / 'log.txt').read_text()
    assert text.startswith('step 1: score 0.5 cost 0.2000 mean bits 8.00/7.00 train acc 80.00 test acc 81.50 2.0 s\n')
    assert (tmp_path / 'steps.png').stat().st_size > 5000 and (tmp_path / 'strategy.png').stat().st_size > 5000
