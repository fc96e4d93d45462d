"""Networks with quantizers put into them, against the same networks written down once more without modules."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

import models
from lib.network.conversion import activation_quantizers, quantized_layers
from lib.qat.placement import (
    ACTIVATION_QUANTIZERS,
    WEIGHT_QUANTIZERS,
    QATQuantization,
    Quantizers,
    find_steps,
    quantize_blocks,
    quantize_layers,
    weight_bits,
)
from lib.quantize import LSQQuantizer, PACTActivationQuantizer, Quantizer
from lib.training.fit import train_epoch
from lib.training.loop import Precision

SMALL = {'num_layer_list': (1, 1, 2, 1), 'num_channel_list': (8, 8, 8, 16), 'stem_channel': 8, 'header_channel': 24}
BITS = [3, 4, 5, 6, 2, 7, 8, 16, 4, 6, 5]  # no two neighbours alike


def random_network(name, **options):
    """A float network in evaluation mode whose every BatchNorm and bias says something."""
    torch.manual_seed(3)
    model = models.create_model(name, num_classes=10, **options).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.7, 1.3)
            module.bias.data.normal_(0, 0.2)
    model.fc.bias.data.normal_()
    return model


def images(count=4, side=8, seed=0):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def small_toynet():
    return random_network('toynet', **SMALL)


# ---- the networks without modules

class Plain:
    """The layers by name of a state dict, quantized as the formulas have it; 32 bits leave everything alone."""

    def __init__(self, state, quantize):
        self.state, self.quantize = state, quantize

    def weight(self, name, bits):
        weight = self.state[f'{name}.weight']
        if bits == 32:
            return weight
        n = 2 ** (bits - 1) - 1
        return (weight.tanh() / weight.tanh().abs().max() * n).round() / n

    def conv(self, x, name, bits, stride=1, **options):
        kernel = self.weight(name, bits)
        return F.conv2d(x, kernel, stride=stride, **{'padding': kernel.shape[-1] // 2, **options})

    def norm(self, x, name):
        mean, var, weight, bias = (self.state[f'{name}.{key}'].reshape(-1, 1, 1) for key in
                                   ('running_mean', 'running_var', 'weight', 'bias'))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def q(self, x, name, bits):
        return x if bits == 32 else self.quantize(self.state, x, name, bits)

    def classifier(self, x, w_bit, a_bit):
        return F.linear(self.q(x.mean((2, 3)), 'pool.output', a_bit), self.weight('fc', w_bit), self.state['fc.bias'])


def mpact(state, x, name, bits):
    alpha, n = state[f'{name}.range'].abs(), 2 ** (bits - 1) - 1
    return (x.clamp(-alpha, alpha) * n / alpha).round() * alpha / n


def pact(state, x, name, bits):
    alpha, n = state[f'{name}.range'].abs(), 2**bits - 1
    return (x.clamp(min=0).minimum(alpha) * n / alpha).round() * alpha / n


def dorefa(factor):
    """DoReFa with the factor that activations are multiplied with at the end."""
    return lambda state, x, name, bits: ((0.1 * x).clamp(0, 1) * (2**bits - 1)).round() / (2**bits - 1) * factor


def plain_toynet(net, x, w, a):
    x = net.q(x, 'image', a[0])
    x = net.q(net.norm(net.conv(x, 'stem.conv', w[0]), 'stem.norm'), 'stem.output', a[1])
    for j in range(1, len(w) - 2):
        block = f'blocks.{j - 1}'
        down = f'{block}.downsample'
        if f'{down}.conv.weight' in net.state:
            stride = net.state[f'{down}.conv.weight'].shape[-1]
            x = net.conv(net.norm(x, f'{down}.norm'), f'{down}.conv', w[j], stride, padding=0)
            x = net.q(x, f'{down}.output', a[j])
        y = net.norm(net.conv(x, f'{block}.depthwise', w[j], groups=x.shape[1]), f'{block}.norm')
        y = net.conv(net.q(y, f'{block}.depthwise_output', a[j]), f'{block}.expand', w[j])
        y = net.conv(net.q(y.relu(), f'{block}.expand_output', a[j]), f'{block}.project', w[j])
        x = net.q(x + y, f'{block}.output', a[j + 1])
    x = net.q(net.norm(net.conv(x, 'header.conv', w[-2]), 'header.norm'), 'header.output', a[-1])
    return net.classifier(x, w[-1], a[-1])


def plain_mobilenetv2(net, x, w, a):
    def part(x, name, bits, stride=1, **options):
        return net.norm(net.conv(x, f'{name}.conv', bits, stride, **options), f'{name}.norm')

    x = net.q(part(net.q(x, 'image', a[0]), 'stem', w[0]).relu(), 'stem.output', a[1])
    for j in range(1, 18):
        block, stride = f'blocks.{j - 1}', 2 if j in (4, 7, 14) else 1
        y = net.q(part(x, f'{block}.expand', w[j]).clamp(0, 6), f'{block}.expand.output', a[j])
        y = part(y, f'{block}.depthwise', w[j], stride, groups=y.shape[1]).clamp(0, 6)
        y = part(net.q(y, f'{block}.depthwise.output', a[j]), f'{block}.project', w[j])
        if stride == 1:
            y = y + net.q(part(x, f'{block}.shortcut', w[j]), f'{block}.shortcut.output', a[j])
        x = net.q(y, f'{block}.output', a[j + 1])
    return net.classifier(part(x, 'head', w[18]).relu(), w[19], a[19])


def plain_resnet20(net, x, w, a, branch_out=True):
    """`w` and `a` have 11 entries; the output of a block is quantized with its own bits."""
    x = net.q(net.norm(net.conv(x, 'conv1', w[0]), 'bn1').relu(), 'stem_output', a[0])
    for j in range(1, 10):
        block, stride = f'blocks.{j - 1}', 2 if j in (4, 7) else 1
        y = net.norm(net.conv(x, f'{block}.conv1', w[j], stride), f'{block}.bn1').relu()
        y = net.norm(net.conv(net.q(y, f'{block}.output1', a[j]), f'{block}.conv2', w[j]), f'{block}.bn2')
        if stride == 2:
            x = net.norm(net.conv(x, f'{block}.shortcut.conv', w[j], stride), f'{block}.shortcut.norm')
            x = net.q(x, f'{block}.shortcut.output', a[j] if branch_out else 32)
        x = net.q(x + y, f'{block}.output', a[j])
    return net.classifier(x, w[10], a[10])


def check_against_plain(model, plain, quantize, w, a, quantizers, **options):
    """In float64, where a sum in another order moves no number across the middle between two levels."""
    w, a = quantize_blocks(model, w, a, quantizers)
    model.double()
    generator = torch.Generator().manual_seed(1)
    for quantizer in activation_quantizers(model).values():
        if quantizer.trainable:
            quantizer.range.data.uniform_(0.7, 3, generator=generator)
    with torch.no_grad():
        ours = model(images().double())
        theirs = plain(Plain(model.state_dict(), quantize), images().double(), w, a, **options)
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('activations', [[32, *BITS[:7]], BITS[:8], [32, 8, 32, 8, 32, 8, 32, 8], [4] + [32] * 7])
def test_toynet_with_mpact(activations):
    check_against_plain(small_toynet(), plain_toynet, mpact, BITS[:8], activations, Quantizers())


@pytest.mark.parametrize('weights', [[32] * 8, [8] * 7 + [16], [2, 32] * 4])
def test_toynet_under_other_weight_bits(weights):
    check_against_plain(small_toynet(), plain_toynet, mpact, weights, BITS[:8], Quantizers())


def test_mobilenetv2_with_mpact():
    check_against_plain(random_network('mobilenetv2_cifar'), plain_mobilenetv2, mpact, (BITS * 2)[:20],
                        (BITS * 2)[1:21], Quantizers())


@pytest.mark.parametrize('branch_out', [True, False])
@pytest.mark.parametrize('rescale', [True, False])
def test_resnet20_with_dorefa(branch_out, rescale):
    quantizers = Quantizers(activations='dorefa', rescale=rescale, branch_out=branch_out)
    check_against_plain(random_network('resnet20_projection'), plain_resnet20, dorefa(10 if rescale else 1), BITS,
                        BITS[::-1], quantizers, branch_out=branch_out)


def test_resnet20_with_lists_of_nine():
    check_against_plain(random_network('resnet20_projection'), plain_resnet20, pact, BITS[:9], BITS[1:10],
                        Quantizers(activations='pact'))


# ---- float

@pytest.mark.parametrize(('name', 'quantizers'), [
    ('toynet', Quantizers()), ('toynet', Quantizers('lsq', 'lsq')), ('mobilenetv2_cifar', Quantizers('dorefa', 'pact')),
    ('resnet20_projection', Quantizers('linear', 'dorefa', rescale=False)),
])
def test_thirty_two_bits_change_nothing(name, quantizers):
    model = random_network(name)
    state, before = copy.deepcopy(model.state_dict()), model(images(2))
    quantize_blocks(model, *[[32] * len(model.bit_entries())] * 2, quantizers)
    assert torch.equal(model(images(2)), before)
    assert not activation_quantizers(model) and weight_bits(model)[0] == weight_bits(model)[1]
    for parameter in model.parameters():
        parameter.data.zero_()
    assert set(model.state_dict()) == set(state), 'every script takes its checkpoint for that of the float network'
    model.load_state_dict(state)
    assert torch.equal(model(images(2)), before)
    assert all(p.requires_grad == (name in state) for name, p in model.named_parameters())


def test_a_network_stays_in_its_mode():
    for training in (True, False):
        model = small_toynet().train(training)
        quantize_blocks(model, [8] * 8, [8] * 8, Quantizers())
        assert {module.training for module in model.modules()} == {training}


@pytest.mark.parametrize('training', [True, False])
def test_steps_are_found_before_training_and_nothing_else_changes(training):
    model = small_toynet().train(training)
    quantize_blocks(model, [4] * 8, [32] + [4] * 7, Quantizers('lsq', 'lsq'))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    find_steps(model, images(4))
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.rpartition('.')[2] for name in changed} == {'step', '_extra_state'}
    assert all(after[name] > 0 for name in changed if name.endswith('step'))
    assert model.training == training


# ---- which quantizer, where

def test_the_image_is_signed_and_mpact_is_everywhere():
    for name, signed_places in (('dorefa', {'image'}), ('pact', {'image'}), ('fixed_pact', {'image'}), ('mpact', None)):
        model = small_toynet()
        quantize_blocks(model, [8] * 8, [8] * 8, Quantizers(activations=name, alpha=7, end_alpha=3))
        found = activation_quantizers(model)
        assert {place for place, q in found.items() if q.signed} == (signed_places or set(found))
        alphas = {place: q.range.item() for place, q in found.items()}
        ends = ['image', 'stem.output', 'header.output', 'pool.output']
        if name == 'dorefa':
            assert alphas.pop('image') == 3 and set(alphas.values()) == {10}
        else:
            assert all(alpha == (3 if place in ends else 7) for place, alpha in alphas.items()) and len(alphas) == 21
        learned = [place for place, q in found.items() if q.range.requires_grad]
        assert learned == {'mpact': list(found), 'pact': list(found)}.get(name, ['image'])


def test_lsq_finds_sign_and_step_itself():
    model = small_toynet()
    quantize_blocks(model, [4] * 8, [4] * 8, Quantizers(weights='lsq', activations='lsq'))
    found = activation_quantizers(model)
    assert all(type(q) is LSQQuantizer and q.per == 'features' and q.signed is None for q in found.values())
    model(images())
    assert {place for place, q in found.items() if not q.signed} == {f'blocks.{i}.expand_output' for i in range(5)}
    assert all(q.step > 0 for q in found.values())
    for layer in quantized_layers(model).values():
        mean = layer.weight.detach().abs().mean()  # LSQ's start: 2 E|w| / sqrt(Q_P), with Q_P = 7 at 4 bits
        torch.testing.assert_close(layer.weight_quantizer.step.detach(), (2 * mean / math.sqrt(7)).reshape(1))
        assert layer.weight_quantizer.per == 'weights' and layer.weight_quantizer.signed


def test_the_inputs_of_layers_are_not_quantized_twice():
    model = small_toynet()
    quantize_blocks(model, [8] * 8, [8] * 8, Quantizers())
    assert {type(layer.input_quantizer) for layer in quantized_layers(model).values()} == {Quantizer}


def test_without_branch_out_only_the_shortcuts_stay_float():
    for name, entries, count in (('resnet20_projection', 11, 2), ('mobilenetv2_cifar', 20, 14)):
        model = random_network(name)
        places = {place for entry in model.bit_entries() for place in entry.activations}
        quantize_blocks(model, [8] * entries, [8] * entries, Quantizers(branch_out=False))
        left = places - set(activation_quantizers(model))
        assert len(left) == count and all(place.endswith('.shortcut.output') for place in left)


def test_settings_are_plain_values_and_unknown_ones_are_named():
    quantizers = Quantizers('lsq', 'pact', 5.0, 4.0, 'ste', False, False)
    assert Quantizers.from_dict(quantizers.to_dict()) == quantizers
    assert Quantizers.from_dict({}) == Quantizers() and Quantizers.from_dict({'alpha': 2.0, 'later': 1}).alpha == 2
    for wrong in ({'weights': 'pact'}, {'activations': 'dorefa_symmetric'}, {'gradient': 'exact'}):
        with pytest.raises(ValueError, match=f'{next(iter(wrong.values()))!r} is not known; expected one of'):
            Quantizers(**wrong)


def test_a_network_without_entries_is_refused():
    with pytest.raises(ValueError, match='resnet20 has no blocks that bit lists could belong to: .*--strategy'):
        quantize_blocks(models.create_model('resnet20'), [8] * 9, [8] * 9, Quantizers(), 'resnet20')


# ---- bits layer by layer

def signs_of_inputs(model, layers):
    """{name: whether any input is negative} of float layers, over some images."""
    lowest = {}
    hooks = [layer.register_forward_pre_hook(
        lambda m, x, name=name: lowest.update({name: min(lowest.get(name, 0), x[0].min().item())}))
        for name, layer in layers]
    with torch.no_grad():
        model(images(32, seed=5))
    for hook in hooks:
        hook.remove()
    return [value < 0 for value in lowest.values()]


RESNET20, MOBILENETV2 = ('resnet20', {}, 20), ('mobilenetv2', {'width_mult': 0.25}, 53)


@pytest.mark.parametrize(('network', 'activations'), [
    *((RESNET20, name) for name in ('dorefa', 'pact', 'mpact', 'fixed_pact', 'lsq')),
    *((MOBILENETV2, name) for name in ('dorefa', 'pact')),
])
def test_a_strategy_of_layers(network, activations):
    name, options, layers = network
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=10, **options).eval()
    named = [(name, module) for name, module in model.named_modules()
             if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]
    signs = signs_of_inputs(model, named)
    strategy = [[1 + i % 8, (i * 3) % 8 + 1] for i in range(layers)]
    strategy[0] = (8, -1)
    pairs = quantize_layers(model, strategy, Quantizers(activations=activations, alpha=5, end_alpha=2), images(2))
    assert pairs == [list(pair) for pair in strategy]
    found = list(quantized_layers(model).values())
    assert [[layer.w_bit, layer.a_bit] for layer in found] == pairs
    with torch.no_grad():
        assert torch.isfinite(model(images(2))).all()
    for i, (layer, signed) in enumerate(zip(found, signs, strict=True)):
        quantizer = layer.input_quantizer
        assert i == 0 or quantizer.signed == (activations == 'mpact' or signed)
        if isinstance(quantizer, PACTActivationQuantizer) and (activations != 'dorefa' or signed):
            assert quantizer.range == (2 if i in (0, layers - 1) else 5)
    assert sum(signs) == (1 if name == 'resnet20' else 18), 'the image; MobileNetV2: behind its linear bottlenecks, too'


def test_weight_bits_alone_leave_the_inputs_as_they_are():
    for entry, inputs in ((5, 0), ([5, 4], 20)):
        model = models.create_model('resnet20', num_classes=10)
        assert quantize_layers(model, [entry] * 20, Quantizers(), images(2)) == [[5, 4 if inputs else 32]] * 20
        assert len(activation_quantizers(model)) == inputs


@pytest.mark.parametrize(('strategy', 'said'), [
    ([[8, 8]] * 19, 'the strategy has 19 entries, the network has 20 layers that can be quantized'),
    ([[8, 8]] * 19 + [[8, 9]], r'the strategy: entry 19 \(.*\) is 9: expected 1 to 8 or 16'),
    ([0] + [8] * 19, r'the strategy: entry 0 \(conv1\) is 0: expected'),
])
def test_a_strategy_that_does_not_fit(strategy, said):
    with pytest.raises(ValueError, match=said):
        quantize_layers(models.create_model('resnet20', num_classes=10), strategy, Quantizers(), images(2))


# ---- training

def prepared(quantizers=None, **options):
    """(network in training mode, its `QATQuantization`)."""
    model = small_toynet().train()
    lists = quantize_blocks(model, [4] * 8, [4] * 8, quantizers or Quantizers())
    return model, QATQuantization(model, dict(zip(('layer_wbit', 'layer_abit'), lists, strict=True)), {}, **options)


def gradients(clip_decay):
    model, quantization = prepared(clip_decay=clip_decay)
    quantization.loss(model(images(8)), torch.arange(8)).backward()
    return {name: (p.detach().clone(), p.grad) for name, p in model.named_parameters()}


def test_the_penalty_adds_twice_alpha_to_the_gradient_of_every_clip():
    without, with_penalty = gradients(0), gradients(0.01)
    clips = [name for name in without if name.endswith('.range')]
    assert len(clips) == 21 and without.keys() == with_penalty.keys()
    for name, (value, grad) in without.items():
        expected = grad + 2 * 0.01 * value if name in clips else grad
        torch.testing.assert_close(with_penalty[name][1], expected, rtol=1e-5, atol=1e-7)
    assert any(without[name][1].abs() > 0 for name in clips)


@pytest.mark.parametrize(('activations', 'learned'), [('mpact', 17 * 100 + 4 * 36), ('fixed_pact', 36), ('dorefa', 36),
                                                      ('lsq', 0), ('linear', 0)])
def test_only_learned_clips_are_penalised(activations, learned):
    """alpha^2 = 100 in the blocks, 36 at image, stem, header and pooling; the image always has a learned clip."""
    model, quantization = prepared(Quantizers(activations=activations), clip_decay=1)
    logits, labels = model(images(8)), torch.arange(8)
    extra = quantization.loss(logits, labels) - F.cross_entropy(logits, labels)
    assert extra.item() == pytest.approx(learned, rel=1e-5)


def test_training_minimises_the_loss_with_the_penalty(tiny_loaders):
    """At a learning rate of 0 nothing else tells the two apart."""
    losses = []
    for clip_decay in (0, 1e-3):
        model, quantization = prepared(clip_decay=clip_decay)
        optimizer = torch.optim.SGD(quantization.parameters(), lr=1)
        metrics = train_epoch(model, tiny_loaders[0], optimizer, 0, 1, rate=0.0, device=torch.device('cpu'),
                              precision=Precision(torch.device('cpu')), seeds=(0, 'epoch', 0),
                              quantization=quantization)
        losses.append(metrics.loss)
    assert losses[1] - losses[0] == pytest.approx(1e-3 * (17 * 100 + 4 * 36), rel=1e-4)


@pytest.mark.parametrize('weights', WEIGHT_QUANTIZERS)
@pytest.mark.parametrize('activations', ACTIVATION_QUANTIZERS)
def test_loss_and_gradients_are_finite_under_any_pair_of_quantizers(weights, activations):
    for bits in (1, 2, 8):
        model = random_network('toynet', num_layer_list=(1, 1), num_channel_list=(8, 8), strides=(1, 2)).train()
        lists = quantize_blocks(model, [bits] * 5, [bits] * 5, Quantizers(weights, activations))
        quantization = QATQuantization(model, dict(zip(('layer_wbit', 'layer_abit'), lists, strict=True)), {})
        loss = quantization.loss(model(images(4)), torch.arange(4))
        loss.backward()
        assert torch.isfinite(loss)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert torch.isfinite(parameter.grad).all(), (bits, name)
    assert model.stem.conv.weight.grad.abs().sum() > 0, 'at 8 bits'


def test_what_a_checkpoint_carries():
    model, quantization = prepared()
    quantization.settings = {'arch': 'toynet'}
    assert quantization.state() == {'quantization': 'qat', 'qat': {'arch': 'toynet'},
                                    'strategy': {'layer_wbit': [4] * 8, 'layer_abit': [4] * 8}}
    assert quantization.complete and len(quantization.parameters()) == len(list(model.parameters()))


def test_the_bits_of_the_weights():
    """Stem 3 -> 8, blocks of 8 channels, the second and the last resized, header 16 -> 24, ten classes."""
    block = 9 * 8 + 2 * 8 * 32
    numbers = [9 * 3 * 8, block, 4 * 8 * 8 + block, block, block, 4 * 8 * 16 + 9 * 16 + 2 * 16 * 64, 16 * 24, 24 * 10]
    model = small_toynet()
    bits = [32, 8, 6, 1, 16, 4, 2, 32]
    quantize_blocks(model, bits, [8] * 8, Quantizers())
    assert weight_bits(model) == (sum(b * n for b, n in zip(bits, numbers, strict=True)), 32 * sum(numbers))


def test_dampening_adds_the_distances_and_rises_over_the_epochs():
    model, quantization = prepared(Quantizers(weights='lsq', activations='lsq'), dampening=0.1)
    logits, labels = model(images(8)), torch.arange(8)
    extra = []
    for epoch in range(5):
        quantization.before_epoch(epoch, 5, None)
        extra.append((quantization.loss(logits, labels) - F.cross_entropy(logits, labels)).item())
    distance = sum((layer.weight_quantizer(layer.weight) - layer.weight.clamp(
        *(code * layer.weight_quantizer.step.item() for code in (-8, 7)))).square().sum().item()
        for layer in quantized_layers(model).values())
    assert extra == pytest.approx([0.1 * distance * share for share in (0, 0.14644661, 0.5, 0.85355339, 1)], rel=1e-3)
    with pytest.raises(ValueError, match='dampening 0.1 needs learned steps'):
        prepared(dampening=0.1)


def test_a_first_step_needs_quantizers_that_have_one():
    with pytest.raises(ValueError, match='lsq_init'):
        Quantizers(lsq_init='least_squares')
    quantizers = Quantizers(weights='lsq', activations='lsq', lsq_init='least_squares')
    assert quantizers.weight(4, 3).init == quantizers.activation(4).init == 'least_squares'
    assert Quantizers.from_dict(quantizers.to_dict()) == quantizers
