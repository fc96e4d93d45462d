"""Files in the form in which the originals published theirs load as they are, and compute what they computed.

The weights here are random: what is checked is names, prefixes, ranges and the arithmetic.
"""

import json

import pytest
import torch
from torch import nn

import models
from lib.record.checkpoint import load_weights, read_checkpoint, state_dict_of
from lib.utils.quantize_utils import (
    KMeansQuantization,
    LinearQuantization,
    convert_to_quantized,
    has_ranges,
    quantizable_layers,
    quantized_layers,
)
from tests.meta import on_meta
from tests.small import build

NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
ROWS = [(1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)]  # of MobileNetV2


def original_file(path, state_dict, **more):
    """Saves a state dict as the originals did, from a network inside DataParallel."""
    state_dict = {f'module.{key}': value for key, value in state_dict.items()}
    torch.save({'epoch': 30, 'state_dict': state_dict, 'acc': 71.2, 'best_acc': 71.23, 'optimizer': {}, **more}, path)
    return path


def mobilenetv2_keys():
    """The keys of HAQ's MobileNetV2, from its table of blocks."""
    layers, block = [('features.0.0', 'features.0.1')], 1
    for expansion, _, repeats in ROWS:
        for _ in range(repeats):
            places = [0, 3] if expansion == 1 else [0, 3, 6]
            layers += [(f'features.{block}.conv.{i}', f'features.{block}.conv.{i + 1}') for i in places]
            block += 1
    layers.append((f'features.{block}.0', f'features.{block}.1'))
    keys = [key for conv, norm in layers for key in (f'{conv}.weight', *(f'{norm}.{part}' for part in NORM))]
    return [*keys, 'classifier.weight', 'classifier.bias']


def test_mobilenetv2_150(tmp_path):
    net = models.create_model('mobilenetv2')
    state = {key: torch.rand_like(value.float()).to(value.dtype) for key, value in net.state_dict().items()}
    assert sorted(state) == sorted(mobilenetv2_keys())
    path = original_file(tmp_path / 'mobilenetv2-150.pth.tar', state)
    load_weights(net, state_dict_of(read_checkpoint(path)), path)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_mobilenetv3small_f3be529c(tmp_path):
    net = models.create_model('mobilenetv3')
    state = {key: torch.rand_like(value.float()).to(value.dtype) for key, value in net.state_dict().items()}
    assert {'features.0.0.weight', 'features.1.conv.5.fc.0.weight', 'features.11.conv.7.weight', 'features.12.0.weight',
            'features.14.bias', 'classifier.1.weight'} <= state.keys()
    torch.save(state, tmp_path / 'mobilenetv3small-f3be529c.pth')
    load_weights(net, state_dict_of(read_checkpoint(tmp_path / 'mobilenetv3small-f3be529c.pth')))
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


class OriginalConv(nn.Module):
    """The definition of reference formulas: clip and round weight and input, then convolve; in the input's dtype."""

    def __init__(self, layer, w_bit, a_bit, half_wave, weight_range, activation_range):
        super().__init__()
        self.layer, self.w_bit, self.a_bit, self.half_wave = layer, w_bit, a_bit, half_wave
        self.weight_range, self.activation_range = weight_range, activation_range

    def forward(self, x):
        weight, x = self.quantized_weight(), self.quantized_input(x)
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, self.layer.bias)
        layer = self.layer
        return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    def quantized_weight(self):
        scale = self.weight_range / (2 ** (self.w_bit - 1) - 1)
        return torch.round(self.layer.weight.clamp(-self.weight_range, self.weight_range) / scale) * scale

    def quantized_input(self, x):
        r = self.activation_range
        if self.a_bit == -1:
            return x
        if self.half_wave:
            y, scale = 0.5 * (x.abs() - (x - r).abs() + r), r / (2 ** self.a_bit - 1)
        else:
            y, scale = 0.5 * ((-x - r).abs() - (x - r).abs()), r / (2 ** (self.a_bit - 1) - 1)
        return torch.round(y / scale) * scale


def is_full_wave(name):
    """The expand 1x1 of every inverted residual, and the last 1x1: their inputs come from linear bottlenecks."""
    parts = name.split('.')
    return name == 'features.18.0' or (parts[0] == 'features' and parts[2] == 'conv' and parts[3] == '0'
                                       and parts[1] != '1')


@pytest.fixture(scope='module')
def strategy(names):
    """The published linear strategy."""
    return names('finetune.py')['STRATEGIES']['qmobilenetv2']


@torch.no_grad()
def test_qmobilenetv2_060_gives_the_logits_of_the_original(tmp_path, strategy):
    torch.manual_seed(0)
    net = models.create_model('mobilenetv2').eval()
    images = torch.randn(2, 3, 64, 64)
    for module in net.modules():  # statistics of a network that has seen data, so that signals stay in range
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.train()
    net(images)
    net.eval()
    state = dict(net.state_dict())
    names = list(quantizable_layers(net))
    ranges = {name: (layer.weight.abs().max() * (0.6 + 0.4 * torch.rand(1)), 0.5 + 3 * torch.rand(1))
              for name, layer in quantizable_layers(net).items()}
    for name, (weight_range, activation_range) in ranges.items():
        state |= {f'{name}.weight_range': weight_range, f'{name}.activation_range': activation_range}
    path = original_file(tmp_path / 'qmobilenetv2_0.6_71.23.pth.tar', state)

    ours = convert_to_quantized(models.create_model('mobilenetv2').eval(), images)
    loaded = state_dict_of(read_checkpoint(path), path)
    load_weights(ours, loaded, path)
    assert has_ranges(ours, loaded)
    LinearQuantization(ours, strategy)
    signs = {name: layer.input_quantizer.signed for name, layer in quantized_layers(ours).items()}
    assert {name for name in names[1:] if signs[name]} == {name for name in names if is_full_wave(name)}

    for name, (w_bit, a_bit) in zip(names, strategy, strict=True):
        parent, _, last = name.rpartition('.')
        layer = OriginalConv(net.get_submodule(name), w_bit, a_bit, not is_full_wave(name), *ranges[name])
        setattr(net.get_submodule(parent), last, layer)
    # In float64 no code falls differently for rounding errors, so all logits can be compared.
    for module in net.modules():
        if isinstance(module, OriginalConv):
            module.weight_range = module.weight_range.double()
            module.activation_range = module.activation_range.double()
    expected, found = net.double()(images.double()), ours.double()(images.double())
    assert expected.std() > 0.01
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_kmeans_weights_are_recognised_and_trained_without_clustering_anew(tmp_path, succeed, small, small_weights):
    net = build(10)
    load_weights(net, state_dict_of(read_checkpoint(small_weights)))
    bits = [4, 3, 2, 5, 4]
    KMeansQuantization(net, bits)
    path = original_file(tmp_path / 'small_0.1.pth.tar', net.state_dict())
    options = (*small, '--weights', path)
    done = succeed('finetune.py', *options, '--eval', cwd=tmp_path)
    assert 'taken as the centroids' in done.out
    sizes = [layer.weight.numel() for layer in quantizable_layers(net).values()]
    ratio = sum(b * n for b, n in zip(bits, sizes, strict=True)) / (32 * sum(sizes))
    assert f'model_size is {ratio:.4f}' in done.out

    succeed('finetune.py', *options, '--epochs', '1', '--lr', '0.01', '-c', tmp_path / 'run', cwd=tmp_path)
    trained = read_checkpoint(tmp_path / 'run' / 'checkpoint.pth.tar')
    assert trained['strategy'] == bits
    for name, layer in quantizable_layers(net).items():
        labels = layer.weight.unique(return_inverse=True)[1]
        assert torch.equal(trained['codebooks'][name]['labels'].long(), labels), name
    assert json.loads((tmp_path / 'run' / 'results.json').read_text())['top1'] > 20


@pytest.mark.parametrize('name', ['resnet18', 'densenet121', 'googlenet', 'inception_v3', 'mnasnet0_5', 'vit_b_16'])
def test_files_of_torchvision_and_our_own_of_the_same_network_load(name, tmp_path):
    with on_meta():
        reference = models.create_model(name)
    state = reference.state_dict()
    old = type(state)((key.replace('norm1', 'norm.1').replace('conv2.weight', 'conv.2.weight')
                       if 'denselayer' in key else key, value) for key, value in state.items())
    old._metadata = state._metadata
    if name in ('googlenet', 'inception_v3'):
        old['AuxLogits.fc.weight' if name == 'inception_v3' else 'aux1.fc1.weight'] = torch.empty(3, 3, device='meta')
    with on_meta():
        load_weights(models.create_model(name), state_dict_of(old), name)
        load_weights(models.create_model(name), state_dict_of({'state_dict': state}), name)
