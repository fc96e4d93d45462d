"""Networks of many kinds, unchanged, through everything: profile, conversion, calibration, both flows."""

import copy

import pytest
import torch
from torch import nn

from lib.network.check import check_network
from lib.network.conversion import all_layers, convert_to_quantized, convertible_layers, quantizable_layers
from lib.network.hooks import hooked
from lib.network.reach import Following, slow_attention
from lib.network.records import profile_layers
from lib.network.signedness import probe_inputs
from lib.quantize import QConv2d, QLinear, QuantizedLayer
from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization, quantized_layers
from tests.own_models import CLASSES, ZOO, SameConv, warmed_up


@pytest.fixture(params=ZOO)
def case(request):
    """Every network of the zoo."""
    return ZOO[request.param]


def error(net, images, expected):
    """Distance of the logits from the expected ones, in units of how far these differ between images."""
    with torch.no_grad():
        return float((net(images) - expected).norm() / (expected - expected.mean(0)).norm())


def step(quantization, net, images):
    """One step of training, in the order of `train_one_epoch`; returns the parameters that it changed."""
    before = [(p, p.detach().clone()) for p in net.parameters()]
    optimizer = torch.optim.SGD(quantization.parameters(), lr=0.05)
    loss = nn.functional.cross_entropy(net.train()(images), torch.arange(len(images)) % CLASSES)
    loss.backward()
    quantization.before_step()
    optimizer.step()
    quantization.after_step()
    assert torch.isfinite(loss)
    return {id(p) for p, old in before if not torch.equal(p, old)}


def test_the_network_is_accepted_and_left_as_it_was(case):
    net, _ = warmed_up(case)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    check_network(net, case.shape, CLASSES)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and not net.training
    assert not any(layer._forward_pre_hooks for layer in all_layers(net).values())


def test_signs_are_those_found_by_reading_the_network(case):
    net, images = warmed_up(case)
    assert probe_inputs(net, all_layers(net), images[:2]) == case.signs


def test_no_input_called_unsigned_is_ever_negative(case):
    net, images = warmed_up(case)
    lowest, names = dict.fromkeys(case.signs, 0.0), {layer: name for name, layer in all_layers(net).items()}

    def note(name, _layer, x):
        lowest[name] = min(lowest[name], x.min().item())

    with torch.no_grad(), hooked(all_layers(net), before=note), slow_attention(), \
            Following(lambda use, x, _: note(names[use.layer], None, x)).through(net):
        for _ in range(5):
            for parameter in net.parameters():
                parameter.normal_()
            net(10 * torch.randn_like(images))
    assert {name for name, low in lowest.items() if low < 0} == {name for name, signed in case.signs.items() if signed}


def test_conversion_keeps_names_outputs_and_objects(case, caplog):
    net, images = warmed_up(case)
    with torch.no_grad():
        expected = net(images)
    state, layers = net.state_dict(), all_layers(net)
    keys = {name: module for name, module in net.named_modules(remove_duplicate=False)}
    convert_to_quantized(net, images[:2])
    with torch.no_grad():
        torch.testing.assert_close(net(images), expected)
    assert all_layers(net) == layers
    assert keys.items() <= dict(net.named_modules(remove_duplicate=False)).items()
    assert list(quantized_layers(net)) == [name for name in layers if name not in case.float_layers]
    assert all(name in caplog.text for name in case.float_layers)
    assert not caplog.text or case.float_layers
    net.load_state_dict(state, strict=True)


def test_both_flows_agree_on_the_layers_before_and_after_conversion(case):
    net, images = warmed_up(case)
    records = profile_layers(net, case.shape)
    chosen = list(convertible_layers(net, records)), list(quantizable_layers(net))
    assert chosen[0] == [name for name in all_layers(net) if name not in case.float_layers]
    assert chosen[1] == [name for name in all_layers(net) if name not in case.computed]
    convert_to_quantized(net, images[:2])
    assert profile_layers(net, case.shape) == records
    assert (list(convertible_layers(net, records)), list(quantizable_layers(net))) == chosen
    assert list(quantized_layers(net)) == chosen[0]


def test_linear_quantization_comes_closer_with_every_bit(case):
    net, images = warmed_up(case)
    with torch.no_grad():
        expected = net(images)
    convert_to_quantized(net, images[:2])
    errors = []
    for bits in (8, 6, 4, 2):
        LinearQuantization(net, [[bits, bits]] * len(quantized_layers(net)), images, method='max')
        errors.append(error(net, images, expected))
    assert errors == sorted(errors) and 0 < errors[0] < 0.1 < errors[3], errors


def test_the_bits_of_every_layer_count_in_evaluation(case):
    net, images = warmed_up(case)
    convert_to_quantized(net, images[:2])
    with torch.no_grad():
        expected = net(images)
        for name, layer in quantized_layers(net).items():
            for which in ('w_bit', 'a_bit'):
                setattr(layer, which, 2)
                assert error(net, images, expected) > 0, (name, which)
                setattr(layer, which, None)
        assert torch.equal(net(images), expected)


def test_kmeans_comes_closer_with_every_bit(case):
    net, images = warmed_up(case)
    with torch.no_grad():
        expected = net(images)
    state, errors = copy.deepcopy(net.state_dict()), []
    for bits in (8, 5, 3, 1):
        net.load_state_dict(state)
        KMeansQuantization(net, [bits] * len(quantizable_layers(net)))
        errors.append(error(net, images, expected))
    assert errors == sorted(errors) and errors[0] < 0.03 and errors[3] > 0.1, errors


def test_a_step_of_linear_training_moves_every_weight_and_range(case):
    net, images = warmed_up(case)
    convert_to_quantized(net, images[:2])
    moved = step(LinearQuantization(net, [[6, 6]] * len(quantized_layers(net)), images), net, images)
    for name, layer in quantized_layers(net).items():
        weights = [p for key, p in layer.named_parameters() if 'quantizer' not in key and 'bias' not in key]
        assert any(id(weight) in moved for weight in weights), name
        assert layer.input_quantizer.range.grad is not None, name
        with torch.no_grad():
            assert len(layer.weight_quantizer(layer.weight).unique()) <= 2 ** 6 - 1


def test_a_step_of_centroid_training_moves_every_weight_and_keeps_the_codebooks(case):
    net, images = warmed_up(case)
    layers = quantizable_layers(net)
    moved = step(KMeansQuantization(net, [4] * len(layers)), net, images)
    for name, layer in layers.items():
        assert len(layer.weight.unique()) <= 2 ** 4
        assert (id(layer.weight) in moved) == (name in case.signs or 'out_proj' in name), name


# ---- layers that are not plain


def test_a_subclass_keeps_what_is_its_own():
    layer = SameConv(4, 6, 3, 2)
    layer.before, calls, x = 1, [], torch.randn(2, 4, 8, 8)
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    layer.marker = object()
    expected = layer(x)
    twin = QConv2d.from_float(layer)
    assert type(layer) is SameConv and isinstance(twin, SameConv) and isinstance(twin, QConv2d)
    assert twin.marker is layer.marker and twin.weight is layer.weight and 'weight_quantizer' not in layer._modules
    assert torch.equal(twin(x), expected) and len(calls) == 2
    handle.remove()
    twin(x)
    assert len(calls) == 2, 'who holds the handle can still remove the hook'
    twin.w_bit, twin.a_bit = 3, 3
    same = copy.deepcopy(layer)
    with torch.no_grad():
        same.weight.copy_(twin.weight_quantizer(layer.weight))
        assert torch.equal(twin(x), same(twin.input_quantizer(x)))
        assert torch.equal(copy.deepcopy(twin)(x), twin(x))
    assert type(QConv2d.convert(SameConv(1, 1, 1))) is type(twin), 'one class for all layers of a class'


def test_the_weight_of_a_parametrized_layer_is_quantized_after_it_is_computed():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(3)
        weight = layer.weight.clone()
    QLinear.convert(layer, w_bit=3)
    x = torch.randn(5, 6)
    scale = weight.abs().max() / 3
    torch.testing.assert_close(layer(x), nn.functional.linear(x, (weight / scale).round() * scale, layer.bias))
    layer(x).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parametrizations.weight.parameters())


def test_layers_that_cannot_be_converted_say_why():
    class Reader(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return nn.functional.conv2d(x, self.weight, bias)

    class Computing(nn.Linear):
        def compute(self):
            return 1

    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x
    for layer, reason in ((Reader(2, 2, 1), 'reads self.weight'), (Computing(2, 2), 'has a compute of its own'),
                          (patched, 'has a forward of its own'), (nn.ConvTranspose2d(2, 2, 1), 'of another type')):
        kind = QLinear if isinstance(layer, nn.Linear) else QConv2d
        with pytest.raises(ValueError, match=f'this {type(layer).__name__} {reason}|{reason}'):
            kind.convert(layer)
        assert not isinstance(layer, QuantizedLayer)


@pytest.mark.filterwarnings('ignore:.*weight_norm:FutureWarning')
def test_hooks_of_the_old_weight_norm_keep_working():
    layer = nn.utils.weight_norm(nn.Conv2d(2, 3, 3))
    net, x = nn.Sequential(layer, nn.Flatten(), nn.Linear(108, CLASSES)), torch.randn(2, 2, 8, 8)
    assert list(quantizable_layers(net)) == ['2'], 'its weight is computed anew in every call'
    expected = net(x)
    convert_to_quantized(net, x)
    torch.testing.assert_close(net(x), expected)
    layer.w_bit = 8
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected, rtol=0, atol=0.05)
        layer.weight_g.mul_(2)
        layer(x)
        assert layer.weight.abs().max() > 1.9 * layer.weight_quantizer.range
    net(x).sum().backward()
    assert layer.weight_v.grad.abs().sum() > 0


def test_a_weight_that_two_layers_share_is_clustered_once():
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    net[2].weight = net[0].weight
    assert list(quantizable_layers(net)) == ['0']
    KMeansQuantization(net, [2])
    assert len(net[2].weight.unique()) <= 4
    convert_to_quantized(net, torch.randn(2, 6))
    assert list(quantized_layers(net)) == ['0', '2'], 'their inputs are not the same'


def test_nothing_to_convert_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x):
            return x @ self.fc.weight.detach().clone()

    with pytest.raises(ValueError, match='none of the 1 convolutions and linear layers of Net can be quantized'):
        convert_to_quantized(Net(), torch.randn(2, 3))
