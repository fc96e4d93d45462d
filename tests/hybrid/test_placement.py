"""Hybrid quantization of networks: DSQ in training with folded BatchNorms, then ACIQ, against the parts alone."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import models
from lib.hybrid.config import default_config
from lib.hybrid.placement import (
    HybridQuantization,
    calibrate_after_training,
    finish_training,
    integer_weights,
    place_after_training,
    prepare_training,
    rebuild,
)
from lib.hybrid.plan import make_plan
from lib.network.conversion import activation_quantizers
from lib.network.hooks import batch_norms
from lib.qat.placement import weight_bits
from lib.quantize import ACIQWeightQuantizer, DSQQuantizer, QConv2d
from lib.quantize.folding import FoldingConv2d
from lib.record.checkpoint import load_weights

BLOCKS = [[4, 4, 1], [4, 8, 2], [8, 8, 1]]
IMAGES = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def network(name='hybrid_cnn', **options):
    torch.manual_seed(0)
    options = {'blocks': BLOCKS, **options} if name == 'hybrid_cnn' else options
    model = models.create_model(name, num_classes=5, **options)
    for norm in batch_norms(model).values():  # as after some training
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.running_mean.normal_(std=0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return model


def configured(**sections):
    config = default_config()
    for section, keys in sections.items():
        config[section].update(keys)
    return config


MIXED = configured(
    qat={'quantize_w_blocks': [0, 1], 'w_bit_width': [1, 3], 'quantize_a_blocks': [0], 'a_bit_width': [[2, 1]]},
    ptq={'post_quantize_w': True, 'post_quantize_w_layers': [-1, 2], 'post_quantize_a': True,
         'post_quantize_a_layers': [-1, 1, 2], 'post_image_bit_width': 8})


def trained(config=MIXED, steps=3):
    """A network in training under a configuration, after a few steps; (model, plan, quantization)."""
    model = network()
    plan = make_plan(model, config)
    prepare_training(model, plan, IMAGES[:2])
    quantization = HybridQuantization(model, plan, {}, qat=config['qat'], training=config['training'])
    optimizer = torch.optim.SGD(quantization.parameters(), lr=0.05)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        quantization.loss(model(IMAGES), torch.arange(6) % 5).backward()
        quantization.before_step()
        optimizer.step()
        quantization.after_step()
    return model, plan, quantization


def test_quantizers_add_three_numbers_each():
    model = models.create_model('hybrid_cnn', num_classes=10)
    config = configured(qat={'quantize_w_blocks': list(range(9)), 'quantize_a_blocks': list(range(9))})
    prepare_training(model, make_plan(model, config), IMAGES[:2])
    # The original also has three unused scalars for conv0 and relu0 each: 273,378 registered.
    assert sum(p.numel() for p in model.parameters()) == 273_378 - 2 * 3


def test_quantizers_sit_where_the_plan_says():
    model, plan, _ = trained(steps=0)
    assert isinstance(model.conv0, nn.Conv2d) and not isinstance(model.conv0, QConv2d)
    assert type(model.blocks[0].conv1) is FoldingConv2d and type(model.blocks[1].shortcut.conv) is FoldingConv2d
    assert model.blocks[0].conv2.w_bit == 1 and model.blocks[1].conv1.w_bit == 3
    assert {name: q.bits for name, q in activation_quantizers(model).items()} == {
        'blocks.0.relu1.quantizer': 2, 'blocks.0.relu2.quantizer': 1}
    assert plan.inputs['conv0']['signed'] is True


def test_folding_changes_nothing_of_a_trained_network():
    model, plan, _ = trained()
    model.eval()
    with torch.no_grad():
        before = model(IMAGES)
        pairs = finish_training(model, plan, IMAGES[:2])
        assert len(pairs) == 8 and not batch_norms(model)
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-4)
    assert type(model.blocks[0].conv1) is QConv2d


def test_weights_trained_without_folding_keep_their_batch_norm():
    config = deepcopy(MIXED)
    config['qat']['fold_bn'] = False
    model, plan, _ = trained(config)
    assert type(model.blocks[0].conv1) is QConv2d
    model.eval()
    with torch.no_grad():
        before = model(IMAGES)
        pairs = finish_training(model, plan, IMAGES[:2])
        torch.testing.assert_close(model(IMAGES), before, rtol=1e-4, atol=1e-4)
    assert {layer for layer, _ in pairs} == {'conv0', 'blocks.2.conv1', 'blocks.2.conv2'}
    assert len(batch_norms(model)) == 5


def test_training_reaches_weights_norms_bounds_and_slopes():
    model, plan, _ = trained()
    model.train()
    model.zero_grad()
    nn.functional.cross_entropy(model(IMAGES), torch.arange(6) % 5).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and '.shortcut.' not in name:
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
    slopes = [model.get_submodule(name).weight_quantizer.slope.grad for name in plan.of('dsq').weights]
    assert len(slopes) == 5 and all(slope.abs() > 0 for slope in slopes)


def test_learned_values_stay_in_their_ranges():
    config = deepcopy(MIXED)
    config['qat'].update(clip_a_upper_range=[1.5, 1.75], slope_a_range=[3, 4], slope_w_range=[5, 6])
    model, plan, _ = trained(config, steps=1)
    for name in plan.of('dsq').activations:
        quantizer = model.get_submodule(name).quantizer
        assert 1.5 <= quantizer.upper.item() <= 1.75 and 3 <= quantizer.slope.item() <= 4
    for name in plan.of('dsq').weights:
        assert 5 <= model.get_submodule(name).weight_quantizer.slope.item() <= 6


def test_slopes_that_are_not_learned_follow_the_schedule():
    config = deepcopy(MIXED)
    config['qat'].update(learn_w_slope=False, w_slope=6.0)
    config['training'].update(warmup_slope=2.0, slope_warmup_epochs=4)
    model, plan, quantization = trained(config, steps=0)
    found = []
    for epoch in (0, 1, 2, 4, 9):
        quantization.before_epoch(epoch, 10, None)
        found.append(model.blocks[0].conv1.weight_quantizer.slope.item())
    assert found == [2, 3, 4, 6, 6]
    assert not model.blocks[0].conv1.weight_quantizer.slope.requires_grad


def test_quantization_after_training_is_that_of_the_quantizers_alone():
    """Weights: of the folded weight. Activations: the mean of the batches' clips, while all else is quantized."""
    model, plan, _ = trained()
    finish_training(model, plan, IMAGES[:2])
    reference = deepcopy(model).eval()
    place_after_training(model, plan)
    batches = list(IMAGES.split(2))
    calibrate_after_training(model, plan, batches)
    weight = reference.blocks[2].conv1.weight
    alone = ACIQWeightQuantizer(4)
    alone.calibrate(weight)
    assert torch.equal(model.blocks[2].conv1.weight_quantizer(weight), alone(weight))
    for name, aciq in ((name, entry) for name, entry in plan.weights.items() if entry['method'] == 'aciq'):
        layer = reference.get_submodule(name)
        quantizer = ACIQWeightQuantizer(aciq['bits'])
        layer.weight.data = quantizer(layer.weight.data)
    seen = []
    reference.relu0.register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        for batch in batches:
            reference(batch)
    quantizer = model.relu0.quantizer
    clips = [quantizer.statistics(output)[0] for output in seen]
    assert quantizer.clip.item() == pytest.approx(sum(clips) / len(clips), rel=1e-5)
    assert len(set(clips)) == len(clips)


def test_calibration_needs_images_and_leaves_the_mode_and_hooks():
    model, plan, _ = trained()
    finish_training(model, plan, IMAGES[:2])
    place_after_training(model, plan)
    with pytest.raises(ValueError, match='saw no images'):
        calibrate_after_training(model, plan, [])
    model.train()
    calibrate_after_training(model, plan, [IMAGES])
    assert model.training and not model.relu0.quantizer._forward_hooks


def finished():
    model, plan, quantization = trained()
    finish_training(model, plan, IMAGES[:2])
    place_after_training(model, plan)
    calibrate_after_training(model, plan, [IMAGES])
    return model.eval(), plan, quantization


@pytest.mark.parametrize('quantized', [False, True])
def test_a_checkpoint_gives_the_same_network_again(quantized):
    model, plan, _ = finished() if quantized else trained()
    twin = network()
    rebuild(twin, type(plan)(**deepcopy(plan.to_dict())), IMAGES[:2], quantized=quantized)
    load_weights(twin, model.state_dict())
    with torch.no_grad():
        assert torch.equal(twin.eval()(IMAGES), model.eval()(IMAGES))


def test_float_weights_fit_a_prepared_network():
    model = network()
    prepared = network()
    prepare_training(prepared, make_plan(prepared, MIXED), IMAGES[:2])
    load_weights(prepared, model.state_dict())
    assert torch.equal(prepared.blocks[0].bn1.running_mean, model.blocks[0].bn1.running_mean)


def test_integer_weights_stand_for_the_quantized_ones():
    model, plan, _ = finished()
    arrays = integer_weights(model)
    for name in plan.weights:
        layer = model.get_submodule(name)
        values = arrays[f'{name}.scale'] * (arrays[f'{name}.codes'].astype(float) - arrays[f'{name}.zero_point'])
        expected = layer.weight_quantizer(layer.weight).detach().double()
        torch.testing.assert_close(torch.from_numpy(values), expected, rtol=1e-5, atol=1e-6)
        assert arrays[f'{name}.codes'].max() < 2 ** plan.weights[name]['bits']
    bits, full = weight_bits(model)
    counts = {name: model.get_submodule(name).weight.numel() for name in plan.weights}
    assert bits == sum(plan.weights[name]['bits'] * n for name, n in counts.items()) + 32 * model.fc.weight.numel()
    assert full == 32 * (sum(counts.values()) + model.fc.weight.numel())


def test_a_strategy_quantizes_the_inputs_of_layers():
    config = configured(layers={'conv1': [8, 8], 'layer1.0.conv1': [2, 3], 'layer1.0.conv2': [3, 4], 'linear': [8, 2]})
    model = network('resnet20')
    plan = make_plan(model, config)
    prepare_training(model, plan, IMAGES[:2])
    assert isinstance(model.layer1[0].conv1.input_quantizer, DSQQuantizer)
    assert plan.inputs['layer1.0.conv1']['signed'] is False and plan.inputs['conv1']['signed'] is True
    finish_training(model, plan, IMAGES[:2])
    place_after_training(model, plan)
    calibrate_after_training(model, plan, [IMAGES])
    assert model.conv1.input_quantizer.signed and model.layer1[0].conv2.input_quantizer.bits == 4
    assert torch.isfinite(model.eval()(IMAGES)).all()


def test_one_bit_inputs_with_a_sign_are_refused():
    model = network('resnet20')
    plan = make_plan(model, configured(layers={'conv1': [8, 1]}))
    with pytest.raises(ValueError, match='conv1 gets 1-bit inputs that can be negative'):
        prepare_training(model, plan, IMAGES[:2])
    signed = make_plan(model, configured(layers={'conv1': [8, 2]}))
    prepare_training(model, signed, IMAGES[:2])
    assert model.conv1.input_quantizer.lower.item() == -2 and model.conv1.input_quantizer.lower.requires_grad


def test_an_activation_that_is_called_twice_has_one_quantizer():
    model = network('resnet18')
    config = configured(qat={'quantize_a_blocks': [0]}, ptq={'post_quantize_a': True, 'post_quantize_a_layers': [1]})
    plan = make_plan(model, config)
    images = torch.randn(2, 3, 32, 32)
    prepare_training(model, plan, images)
    finish_training(model, plan, images)
    place_after_training(model, plan)
    calibrate_after_training(model, plan, [images])
    assert list(activation_quantizers(model)) == ['layer1.0.relu.quantizer', 'layer1.1.relu.quantizer']
    assert torch.isfinite(model.eval()(images)).all()


# ---- modules that are called or registered several times

class SharedBlock(nn.Module):
    """A block whose second activation is ten times the first; one ReLU may serve both."""

    def __init__(self, shared):
        super().__init__()
        self.conv1, self.conv2, self.relu = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()
        if shared != 'called twice':
            self.relu2 = self.relu if shared == 'two names' else nn.ReLU()

    def forward(self, x):
        y = self.relu(self.conv1(x))
        return getattr(self, 'relu2', self.relu)(10 * self.conv2(y) + x)


def shared_network(shared):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), SharedBlock(shared), nn.Flatten(), nn.Linear(400, 5)).eval()


def calibrated(model, config, change_plan=lambda plan: None):
    plan = make_plan(model, config)
    change_plan(plan)
    prepare_training(model, plan, IMAGES[:2])
    finish_training(model, plan, IMAGES[:2])
    place_after_training(model, plan)
    calibrate_after_training(model, plan, IMAGES.split(3))
    return model


@pytest.mark.parametrize('shared', ['called twice', 'two names'])
@pytest.mark.parametrize('method', ['minmax', 'aciq'])
def test_the_range_of_a_shared_activation_is_the_largest_of_its_calls(shared, method):
    config = configured(ptq={'post_quantize_a': True, 'post_quantize_a_layers': [0], 'activation_method': method})
    apart = calibrated(shared_network('own'), config)[1]
    together = calibrated(shared_network(shared), config)[1]
    assert apart.relu.quantizer.clip < apart.relu2.quantizer.clip / 3
    assert together.relu.quantizer.clip == pytest.approx(apart.relu2.quantizer.clip.item())  # in both batches
    assert getattr(together, 'relu2', together.relu) is together.relu


@pytest.mark.parametrize('part', ['qat', 'ptq'])
def test_an_activation_of_two_names_is_quantized_under_both_and_in_old_plans_under_one(part):
    config = configured(**{part: {'quantize_a_blocks': [0]} if part == 'qat' else
                           {'post_quantize_a': True, 'post_quantize_a_layers': [0]}})
    net = calibrated(shared_network('two names'), config)[1]
    assert type(net.relu).__name__ == 'QuantizedActivation' and net.relu2 is net.relu
    old = calibrated(shared_network('two names'), config, lambda plan: plan.activations['1.relu'].pop('names'))[1]
    assert type(old.relu).__name__ == 'QuantizedActivation' and type(old.relu2) is nn.ReLU


def test_the_range_of_signed_inputs_covers_all_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return (self.conv(x) + self.conv(5 - 3 * x)).mean((2, 3))

    config = configured(layers={'conv': [-1, 8]}, ptq={'activation_method': 'minmax'})
    quantizer = calibrated(Twice(), config).conv.input_quantizer
    calls = [torch.cat([batch, 5 - 3 * batch]) for batch in IMAGES.split(3)]
    low, high = (sum(x).item() / 2 for x in zip(*(call.aminmax() for call in calls), strict=True))  # of two batches
    assert quantizer.clip.item() == pytest.approx((high - low) / 2, rel=1e-5)
    assert quantizer.middle.item() == pytest.approx((high + low) / 2, rel=1e-5)


def test_an_activation_that_is_never_called_is_named():
    model = shared_network('own')
    model[1].__class__ = type('Idle', (SharedBlock,), {'forward': lambda self, x: self.relu(self.conv1(x))})
    config = configured(ptq={'post_quantize_a': True, 'post_quantize_a_layers': [0]})
    with pytest.raises(ValueError, match='1.relu2 is never called .*take it out'):
        calibrated(model, config)
