"""The three networks with bit lists: golden numbers, the places of their quantizers, and what each bit stands for."""

from collections import Counter

import pytest
import torch
from torch import nn

import models
from lib.network.conversion import activation_quantizers
from lib.qat.placement import Quantizers, quantize_blocks
from lib.quantize import PACTActivationQuantizer

NETWORKS = ['toynet', 'mobilenetv2_cifar', 'resnet20_projection']


def build(name, **options):
    torch.manual_seed(0)
    return models.create_model(name, num_classes=10, **options)


def hooked(model, types, side=32):
    """[(name, module, shape of its input, shape of its output)] of every call of these modules, in order, one image."""
    calls = []
    hooks = [module.register_forward_hook(lambda m, x, y, name=name: calls.append((name, m, x[0].shape, y.shape)))
             for name, module in model.named_modules() if isinstance(module, types)]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side))
    for hook in hooks:
        hook.remove()
    return calls


# ---- golden numbers

# Multiply-accumulates of the convolutions and linear layers: kernel x channels in x channels out x positions.
TOYNET_MACS = [
    9 * 3 * 16 * 32 * 32,  # stem
    9 * 16 * 32 * 32 + 2 * 16 * 64 * 32 * 32,  # block 1: depthwise, to four times the channels and back
    4 * 16 * 32 * 16 * 16 + 6 * (9 * 32 * 16 * 16 + 2 * 32 * 128 * 16 * 16),  # downsample 2x2, blocks 2 to 7
    4 * 32 * 64 * 8 * 8 + 3 * (9 * 64 * 8 * 8 + 2 * 64 * 256 * 8 * 8),  # downsample 2x2, blocks 8 to 10
    64 * 512 * 8 * 8 + 512 * 10,  # header, classifier
]
RESNET20_MACS = [
    9 * 3 * 16 * 32 * 32,
    6 * 9 * 16 * 16 * 32 * 32,
    9 * 16 * 32 * 16 * 16 + 16 * 32 * 16 * 16 + 5 * 9 * 32 * 32 * 16 * 16,  # the first block has the 1x1 shortcut
    9 * 32 * 64 * 8 * 8 + 32 * 64 * 8 * 8 + 5 * 9 * 64 * 64 * 8 * 8,
    64 * 10,
]


def mobilenetv2():
    """Returns (multiply-accumulates, numbers that enter a BatchNorm) of every part, from the paper's table of rows."""
    rows = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    side, before, macs, norms = 32, 32, [9 * 3 * 32 * 32 * 32], [32 * 32 * 32]
    for expansion, channels, repeats, first in rows:
        for stride in [first] + [1] * (repeats - 1):
            hidden, after = before * expansion, side // stride
            macs.append(before * hidden * side**2 + 9 * hidden * after**2 + hidden * channels * after**2)
            norms.append(hidden * side**2 + hidden * after**2 + channels * after**2)
            if stride == 1:  # a convolution on every such shortcut
                macs.append(before * channels * after**2)
                norms.append(channels * after**2)
            side, before = after, channels
    return [*macs, 320 * 1280 * 4 * 4, 1280 * 10], sum(norms) + 1280 * 4 * 4


# (parameters, multiply-accumulates, numbers that enter a BatchNorm, operations of the pooling as the original's
# counter has them: the adaptive one all additions and a division, the fixed one its outputs, a function none; its sum)
GOLDEN = {
    'toynet': (203_626, TOYNET_MACS, 16 * 32**2 * 2 + (16 * 32**2 + 6 * 32 * 16**2) + (32 * 16**2 + 3 * 64 * 8**2)
               + 512 * 8**2, 512 * (8 * 8 + 1), 25_265_152, 25_601_536),
    'mobilenetv2_cifar': (2_383_050, *mobilenetv2(), 0, 95_054_336, 98_645_504),
    'resnet20_projection': (272_474, RESNET20_MACS, 7 * 16 * 32**2 + 7 * 32 * 16**2 + 7 * 64 * 8**2, 64, 40_813_184,
                            41_214_656),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_parameters_and_operations(name):
    parameters, products, norm_inputs, pooling, macs, published = GOLDEN[name]
    model = build(name)
    layers, norms = hooked(model, (nn.Conv2d, nn.Linear)), hooked(model, nn.BatchNorm2d)
    assert sum(p.numel() for p in model.parameters()) == parameters
    counted = sum(output.numel() * layer.weight[0].numel() for _, layer, _, output in layers)
    assert counted == sum(products) == macs
    assert sum(given.numel() for _, _, given, _ in norms) == norm_inputs
    assert counted + 2 * norm_inputs + pooling == published


def test_the_resolutions_of_toynet():
    rows = hooked(build('toynet'), nn.Conv2d)
    depthwise = [(shape[1], shape[2]) for name, _, _, shape in rows if name.endswith('depthwise')]
    assert depthwise == [(16, 32)] + [(32, 16)] * 6 + [(64, 8)] * 3
    downsample = [(name, layer.kernel_size, layer.stride, layer.padding) for name, layer, _, _ in rows
                  if 'downsample' in name]
    assert downsample == [(f'blocks.{i}.downsample.conv', (2, 2), (2, 2), (0, 0)) for i in (1, 7)]


# ---- bit entries

@pytest.mark.parametrize(('name', 'entries'), [('toynet', 13), ('mobilenetv2_cifar', 20), ('resnet20_projection', 11)])
def test_every_layer_has_one_entry_and_every_activation_is_a_place_on_the_way(name, entries):
    model = build(name)
    rows = model.bit_entries()
    assert len(rows) == entries and [row.name for row in rows].count('fc') == 1
    layers = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert Counter(layer for row in rows for layer in row.layers) == Counter(layers)
    called = Counter(name for name, *_ in hooked(model, nn.Identity, side=16))
    places = [place for row in rows for place in row.activations]
    assert len(set(places)) == len(places)
    assert all(isinstance(model.get_submodule(place), nn.Identity) and called[place] == 1 for place in places)


def test_only_these_identities_are_no_places():
    left = {}
    for name in NETWORKS:
        model = build(name)
        places = {place for row in model.bit_entries() for place in row.activations}
        left[name] = {name for name, module in model.named_modules() if isinstance(module, nn.Identity)} - places
    assert not left['toynet']
    assert left['resnet20_projection'] == {f'blocks.{i}.relu2' for i in range(9)}
    assert left['mobilenetv2_cifar'] == {'head.output'} | {f'blocks.{i}.project.output' for i in range(17)}


def test_which_bits_a_block_of_toynet_has():
    """Entry j: weights of block j (1 to 10), its input and what is inside; its output is the next entry's."""
    rows = build('toynet').bit_entries()
    assert [row.name for row in rows] == ['stem', *(f'blocks.{i}' for i in range(10)), 'header', 'fc']
    assert rows[0][1:] == (('stem.conv',), ('image',), None)
    assert rows[1][1:3] == (('blocks.0.depthwise', 'blocks.0.expand', 'blocks.0.project'),
                            ('stem.output', 'blocks.0.depthwise_output', 'blocks.0.expand_output'))
    assert rows[2][1:3] == (
        ('blocks.1.downsample.conv', 'blocks.1.depthwise', 'blocks.1.expand', 'blocks.1.project'),
        ('blocks.0.output', 'blocks.1.downsample.output', 'blocks.1.depthwise_output', 'blocks.1.expand_output'),
    )
    assert rows[11][1:3] == (('header.conv',), ('blocks.9.output',))
    assert rows[12][1:3] == (('fc',), ('header.output', 'pool.output'))


def test_which_bits_a_block_of_mobilenetv2_has():
    rows = build('mobilenetv2_cifar').bit_entries()
    assert rows[2][1:3] == (
        tuple(f'blocks.1.{part}.conv' for part in ('expand', 'depthwise', 'project', 'shortcut')),
        ('blocks.0.output', *(f'blocks.1.{part}.output' for part in ('expand', 'depthwise', 'shortcut'))),
    )
    assert rows[4][1:3] == (  # stride 2: no shortcut
        tuple(f'blocks.3.{part}.conv' for part in ('expand', 'depthwise', 'project')),
        ('blocks.2.output', 'blocks.3.expand.output', 'blocks.3.depthwise.output'),
    )
    assert rows[18][1:3] == (('head.conv',), ('blocks.16.output',))
    assert rows[19][1:3] == (('fc',), ('pool.output',))
    assert all(row.implied is None for row in rows)


def test_which_bits_a_block_of_resnet20_has():
    """A block's entry is that of its output, too; stem and classifier may be left out."""
    rows = build('resnet20_projection').bit_entries()
    assert [row.implied for row in rows] == [(32, 32), *[None] * 9, (16, 32)]
    assert rows[0][:3] == ('stem', ('conv1',), ('stem_output',)) and rows[10][:3] == ('fc', ('fc',), ('pool.output',))
    assert rows[1][1:3] == (('blocks.0.conv1', 'blocks.0.conv2'), ('blocks.0.output1', 'blocks.0.output'))
    assert rows[4][1:3] == (('blocks.3.conv1', 'blocks.3.conv2', 'blocks.3.shortcut.conv'),
                            ('blocks.3.output1', 'blocks.3.shortcut.output', 'blocks.3.output'))


@pytest.mark.parametrize(('name', 'image_bits', 'clips'), [('toynet', 32, 35), ('toynet', 8, 36),
                                                           ('mobilenetv2_cifar', 32, 67)])
def test_the_number_of_learned_clips(name, image_bits, clips):
    """MobileNetV2: 17 blocks of 3 quantizers, 14 more on the shortcuts, stem and pooled output."""
    model = build(name)
    entries = len(model.bit_entries())
    quantize_blocks(model, [8] * entries, [image_bits] + [8] * (entries - 1), Quantizers(activations='mpact'))
    quantizers = activation_quantizers(model).values()
    assert len(quantizers) == clips
    assert all(type(quantizer) is PACTActivationQuantizer and quantizer.range.requires_grad for quantizer in quantizers)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == GOLDEN[name][0] + clips


# ---- options

def test_relu_after_the_sums_of_resnet20():
    plain, with_relu = build('resnet20_projection').eval(), build('resnet20_projection', relu_after_add=True).eval()
    with_relu.load_state_dict(plain.state_dict())  # the same keys
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lowest = {}
    for name, model in (('plain', plain), ('relu', with_relu)):
        for block in model.blocks:
            block.output.register_forward_hook(lambda m, x, y, name=name: lowest.setdefault(name, []).append(y.min()))
    assert not torch.equal(plain(images), with_relu(images))
    assert min(lowest['plain']) < 0 and lowest['relu'] == [0] * 9


@pytest.mark.parametrize(('options', 'blocks', 'downsample'), [
    ({'num_layer_list': (1, 1, 1, 1), 'num_channel_list': (8, 8, 16, 16), 'stem_channel': 8, 'header_channel': 24}, 4,
     {1: (2, 8, 8), 2: (1, 8, 16), 3: (2, 16, 16)}),
    ({'num_layer_list': (2, 1), 'num_channel_list': (8, 12), 'strides': (1, 2), 'expansion': 2}, 3,
     {0: (1, 16, 8), 2: (2, 8, 12)}),
    ({'num_layer_list': (1,), 'num_channel_list': (16,), 'strides': (1,), 'expansion': 1}, 1, {}),
])
def test_other_shapes_of_toynet(options, blocks, downsample):
    """A block is resized where its stride is not 1 or its channels change; {block: (kernel = stride, from, to)}."""
    model = build('toynet', **options)
    assert len(model.blocks) == blocks and len(model.bit_entries()) == blocks + 3
    found = {i: block.downsample.conv for i, block in enumerate(model.blocks) if block.downsample is not None}
    assert {i: (conv.stride[0], conv.in_channels, conv.out_channels) for i, conv in found.items()} == downsample
    assert all(conv.kernel_size == conv.stride for conv in found.values())
    wide = {block.expand.out_channels // block.expand.in_channels for block in model.blocks}
    assert wide == {options.get('expansion', 4)}
    assert model.eval()(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
    assert model.fc.in_features == options.get('header_channel', 512)


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match='strides has 4 entries, num_layer_list 3, num_channel_list 4; expected one'):
        build('toynet', num_layer_list=(1, 3, 3))
    with pytest.raises(ValueError, match='toynet does not know the option relu_after_add; it knows expansion'):
        build('toynet', relu_after_add=True)
    with pytest.raises(ValueError, match='mobilenetv2_cifar does not know the option strides'):
        build('mobilenetv2_cifar', strides=(1, 2))
