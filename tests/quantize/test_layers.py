"""Quantized layers: what they compute, and what they share, save and load."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.quantize import QConv2d, QLinear, Quantizer, RangeChoice, calibrating, straight_through

FLOAT_LAYERS = [
    lambda: (nn.Conv2d(4, 6, 3, padding=1), (2, 4, 7, 7)),
    lambda: (nn.Conv2d(4, 8, (3, 2), stride=(2, 1), groups=4, bias=False), (2, 4, 7, 7)),
    lambda: (nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode='reflect'), (2, 4, 7, 7)),
    lambda: (nn.Conv2d(4, 4, 3, padding='same', padding_mode='circular'), (2, 4, 7, 7)),
    lambda: (nn.Linear(5, 3), (2, 5)),
    lambda: (nn.Linear(5, 3, bias=False), (2, 4, 5)),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def twin_of(layer, **quantization):
    return (QConv2d if isinstance(layer, nn.Conv2d) else QLinear).from_float(layer, **quantization)


def small_network(quantized):
    layers = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    if quantized:
        layers = [twin_of(layer) if isinstance(layer, (nn.Conv2d, nn.Linear)) else layer for layer in layers]
    return nn.Sequential(nn.Sequential(*layers[:3]), *layers[3:])


def set_bits(net, w_bit, a_bit):
    for layer in (net[0][0], net[2]):
        layer.w_bit, layer.a_bit = w_bit, a_bit


@pytest.mark.parametrize('make', FLOAT_LAYERS)
def test_twin_without_bits_is_the_float_layer(make):
    layer, shape = make()
    twin = twin_of(layer.eval())
    x = torch.randn(shape)
    assert torch.equal(twin(x), layer(x))
    assert twin.weight is layer.weight and twin.bias is layer.bias and not twin.training
    assert twin.w_bit is None and twin.a_bit is None
    assert {id(p) for p in layer.parameters()} <= {id(p) for p in twin.parameters()}


@pytest.mark.parametrize('make', FLOAT_LAYERS)
def test_output_is_the_layer_on_quantized_operands(make):
    layer, shape = make()
    twin = twin_of(layer, w_bit=3, a_bit=4)
    x = torch.randn(shape)
    with torch.no_grad():
        twin.weight.copy_(twin.weight_quantizer(twin.weight))
        assert torch.equal(twin(x), layer(twin.input_quantizer(x)))


def test_integer_convolution_gives_the_same_output():
    layer = QConv2d(4, 6, 3, stride=2, padding=1, bias=False, w_bit=4, a_bit=5)
    x = torch.randn(2, 4, 9, 9)
    (inputs, input_scale), (weights, weight_scale) = (
        layer.input_quantizer.to_int(x),
        layer.weight_quantizer.to_int(layer.weight),
    )
    integers = F.conv2d(inputs.double(), weights.double(), stride=2, padding=1)
    torch.testing.assert_close(
        layer(x).double(), integers * input_scale.double() * weight_scale.double(), rtol=1e-5, atol=1e-6
    )


def test_built_like_the_float_layer():
    layer = QConv2d(3, 8, 3, 2, 1, groups=1, bias=False, w_bit=8, a_bit=-1, dtype=torch.float64)
    assert layer.stride == (2, 2) and layer.padding == (1, 1) and layer.weight.dtype == torch.float64
    assert (layer.w_bit, layer.a_bit) == (8, -1) and 'w_bit=8, a_bit=-1' not in repr(nn.Conv2d(1, 1, 1))
    assert 'bits=8' in repr(layer)
    with pytest.raises(ValueError, match='bits'):
        layer.w_bit = 0


def test_from_float_refuses_other_layers():
    class Gated(nn.Linear):
        def forward(self, x):
            return super().forward(x).sigmoid()

    for kind, layer in ((QConv2d, nn.Linear(2, 2)), (QLinear, nn.Conv2d(2, 2, 1)), (QLinear, Gated(2, 2)),
                        (QLinear, QLinear(2, 2))):
        with pytest.raises(ValueError, match=type(layer).__name__):
            kind.from_float(layer)


def test_conversion_draws_no_random_numbers():
    layer = nn.Conv2d(3, 3, 3)
    before = torch.get_rng_state()
    QConv2d.from_float(layer)
    assert torch.equal(before, torch.get_rng_state())


def test_trains_weight_bias_and_range():
    layer = QLinear(6, 3, w_bit=4, a_bit=4)
    layer.input_quantizer.range.data.fill_(0.5)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(8, 6)).square().sum().backward()
    optimizer.step()
    assert len(before) == 3 and all((p != q).any() for p, q in zip(layer.parameters(), before, strict=True))


def test_float_state_dict_loads_unchanged_and_keeps_the_ranges():
    source, target = small_network(quantized=False), small_network(quantized=True)
    set_bits(target, 4, 4)
    x = torch.randn(4, 3, 5, 5)
    with calibrating(target):
        target(x)
    ranges = [layer.input_quantizer.range.item() for layer in (target[0][0], target[2])]
    target.load_state_dict(source.state_dict(), strict=True)
    assert [layer.input_quantizer.range.item() for layer in (target[0][0], target[2])] == ranges
    set_bits(target, None, None)
    torch.testing.assert_close(target.eval()(x), source.eval()(x))


def test_state_dict_of_the_original_loads():
    target = small_network(quantized=True)
    source = dict(small_network(quantized=False).state_dict())
    for index, name in enumerate(('0.0', '2')):
        source[f'{name}.weight_range'] = torch.tensor([0.5 + index])
        source[f'{name}.activation_range'] = torch.tensor([2.5 + index])
    keys = list(source)
    target.load_state_dict(source, strict=True)
    assert list(source) == keys  # the caller's dictionary is left alone
    for index, layer in enumerate((target[0][0], target[2])):
        assert layer.weight_quantizer.range.item() == 0.5 + index
        assert layer.input_quantizer.range.item() == 2.5 + index
    alone = {name.removeprefix('2.'): value for name, value in source.items() if name.startswith('2.')}
    layer = QLinear(36, 5)
    layer.load_state_dict(alone, strict=True)
    assert layer.weight_quantizer.range.item() == 1.5


def test_other_missing_and_unknown_keys_are_still_errors():
    state = small_network(quantized=False).state_dict()
    with pytest.raises(RuntimeError, match='scale'):
        small_network(quantized=True).load_state_dict(state | {'2.scale': torch.ones(1)})
    del state['2.weight']
    with pytest.raises(RuntimeError, match='2.weight'):
        small_network(quantized=True).load_state_dict(state)


def test_round_trip_keeps_ranges_and_signs(tmp_path):
    source, x = small_network(quantized=True), torch.randn(4, 3, 5, 5)
    set_bits(source, 3, 4)
    with calibrating(source.eval()):
        source(x)
    torch.save(source.state_dict(), tmp_path / 'net.pt')
    target = small_network(quantized=True).eval()
    set_bits(target, 3, 4)
    target.load_state_dict(torch.load(tmp_path / 'net.pt', weights_only=True), strict=True)
    assert [layer.input_quantizer.signed for layer in (target[0][0], target[2])] == [True, False]
    assert torch.equal(target(x), source(x))


def test_deepcopy_is_independent():
    layer = QLinear(4, 2, w_bit=4, a_bit=4)
    x = torch.randn(3, 4)
    other = copy.deepcopy(layer)
    assert torch.equal(layer(x), other(x))
    other.w_bit = 2
    other.input_quantizer.range.data.fill_(0.1)
    assert layer.w_bit == 4 and layer.input_quantizer.range.item() == 6


def test_calibration_passes_floats_and_sets_the_ranges():
    net, x = small_network(quantized=True).eval(), 9 * torch.randn(4, 3, 5, 5)
    plain, hidden = net(x), net[1](net[0](x))
    set_bits(net, 4, 8)
    with calibrating(net, method='max', cap=6):
        assert net[0][0].calibration == RangeChoice('max', 6)
        assert torch.equal(net(x), plain)
    first, last = net[0][0], net[2]
    assert first.calibration is None and last.calibration is None
    assert first.weight_quantizer.range.item() == first.weight.abs().max()
    assert first.input_quantizer.range.item() == 6 and first.input_quantizer.signed is True
    assert not torch.equal(net(x), plain)
    with calibrating(net, method='max'):
        net(x)
    assert first.input_quantizer.range.item() == x.abs().max()
    assert last.input_quantizer.range.item() == hidden.max() and last.input_quantizer.signed is False


def test_a_cache_of_ranges_gives_what_calibration_gives_and_spares_the_forward():
    torch.manual_seed(0)
    net = nn.Sequential(QConv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), QLinear(6 * 36, 4)).eval()
    x, start, cache = torch.randn(5, 3, 8, 8), copy.deepcopy(net.state_dict()), {}

    def calibrate(bits, cache):
        net.load_state_dict(start)
        for layer, (w_bit, a_bit) in zip((net[0], net[3]), bits, strict=True):
            layer.w_bit, layer.a_bit = w_bit, a_bit
        with calibrating(net, method='mse', cache=cache) as needed:
            if needed:
                net(x)
        return needed, copy.deepcopy(net.state_dict()), net(x)

    found = []
    for bits in ([(4, 3), (2, 5)], [(3, 3), (2, 4)], [(4, 3), (2, 4)], [(1, -1), (8, 8)], [(1, -1), (2, 5)]):
        _, state, output = calibrate(bits, None)
        needed, cached_state, cached_output = calibrate(bits, cache)
        found.append(needed)
        assert all(torch.equal(state[key], cached_state[key]) for key in state)
        assert torch.equal(output, cached_output)
    assert found == [True, True, False, True, False]


def test_calibration_ends_with_an_error_too():
    net = small_network(quantized=True)
    with pytest.raises(ValueError, match='entropy'), calibrating(net, method='entropy'):
        set_bits(net, 4, 4)
        net(torch.randn(4, 3, 5, 5))
    assert net[0][0].calibration is None


class Fixed(Quantizer):
    """The quantizer of another system: a parameter of its own, nothing to calibrate."""

    def __init__(self, bits=None):
        super().__init__(bits)
        self.step = nn.Parameter(torch.tensor(0.25))

    def fake_quantize(self, x):
        return straight_through(x, (x / self.step).round() * self.step).detach() + 0 * self.step

    def to_int(self, x):
        return (x / self.step).round().int(), self.step


def test_other_quantizers_fit_in():
    layer = nn.Linear(4, 3)
    twin = QLinear.from_float(layer, weight_quantizer=Fixed(), input_quantizer=Fixed(2), w_bit=4)
    assert (twin.w_bit, twin.a_bit) == (4, 2)
    x = torch.randn(5, 4)
    expected = F.linear((x * 4).round() / 4, (layer.weight * 4).round() / 4, layer.bias)
    torch.testing.assert_close(twin(x), expected)
    twin.load_state_dict(layer.state_dict(), strict=True)
    with calibrating(twin):
        torch.testing.assert_close(twin(x), layer(x))
    with pytest.raises(RuntimeError, match='weight_range'):  # there is no place for it
        twin.load_state_dict(dict(layer.state_dict()) | {'weight_range': torch.ones(1)})


def test_a_layer_called_twice_takes_the_larger_range():
    torch.manual_seed(0)
    layer, small, large = QLinear(4, 4, a_bit=8, w_bit=8), torch.rand(5, 4), 3 * torch.rand(5, 4)
    for order in ((small, large), (large, small)):
        with torch.no_grad(), calibrating(layer, method='max'):
            for x in order:
                layer(x)
        assert layer.input_quantizer.range.item() == large.max().item()
    with torch.no_grad(), calibrating(layer, method='max'):
        layer(small)  # a new calibration starts anew
    assert layer.input_quantizer.range.item() == small.max().item()
