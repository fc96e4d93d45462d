"""What can be lowered to integers: HAQ's linear flow, functional forms, odd parameters; and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.integer import shapes as shapes
from lib.integer.compare import compare_codes
from lib.integer.layers import Weight, accumulate
from lib.integer.lowering import lower_network
from lib.integer.values import Program, value_of
from lib.quantize.layers import QConv2d, QLinear
from lib.quantize.pact import PACTActivationQuantizer
from lib.quantize.quantizer import Quantizer
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers
from models.registry import create_model
from models.resnet_cifar import CifarResNet

SHAPE = (3, 8, 8)
CLASSES = 4


@pytest.fixture
def images():
    return torch.randn(24, *SHAPE, generator=torch.Generator().manual_seed(0)).clamp_(-8, 8)


@torch.no_grad()
def warmed(model, images):
    """Batch norms with random parameters, of either sign, and the statistics of `images`."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(-1.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)
            module.momentum = None
    model.train()(images)
    return model.eval()


def quantized(model, images, bits=8):
    """The model of HAQ's linear flow: every input and weight of a layer quantized, ranges from `images`."""
    warmed(model, images)
    convert_to_quantized(model, images)
    LinearQuantization(model, [[bits, bits]] * len(quantized_layers(model)), images, method='max')
    return model.eval()


def vgg():
    layers, before = [], 3
    for channels in (8, 'M', 12, 'M'):
        layers += [nn.MaxPool2d(2)] if channels == 'M' else [
            nn.Conv2d(before, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
        before = before if channels == 'M' else channels
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES))


NETWORKS = {'resnet8': lambda: CifarResNet(1, CLASSES), 'vgg': vgg,
            'mobilenetv2': lambda: create_model('mobilenetv2', num_classes=CLASSES, width_mult=0.1)}


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_of_the_linear_flow(name, images):
    torch.manual_seed(0)
    images = torch.randn(12, 3, 32, 32).clamp_(-8, 8) if name == 'mobilenetv2' else images
    model = quantized(NETWORKS[name](), images)
    network = lower_network(model, images.shape[1:], block_format='mantissa:24')
    found = compare_codes(model, network, images)
    assert len(found) == len(quantized_layers(model))
    assert max(difference.largest for difference in found.values()) <= 1
    assert min(difference.equal for difference in found.values()) > 0.998
    logits = network(images)
    assert logits.equal(network(images, arithmetic='float64'))
    with torch.no_grad():
        expected = model(images).double()
    assert (logits * network.scale - expected).std() < 0.3 * expected.std()


class Functional(nn.Module):
    """Says with functions and methods what the other networks say with modules."""

    def __init__(self, variant):
        super().__init__()
        self.variant = variant
        self.conv1 = nn.Conv2d(3, 6, 3, padding='same')
        self.conv2 = nn.Conv2d(6, 6, 3, padding='valid', dilation=2, groups=3)
        self.fc = nn.Linear(6 if variant else 10 * 4, CLASSES)

    def forward(self, x):
        x = F.relu6(self.conv1(x), inplace=True)
        y = F.pad(self.conv2(x), (2, 2, 2, 2))
        y += x
        y = F.avg_pool2d(F.dropout(y.relu(), training=self.training), 2)
        if self.variant == 0:
            y = F.pad(y[:, :5, ::2, 1::2], (0, 0, 0, 0, 2, 3))  # (10, 2, 2)
            return self.fc(torch.flatten(y, 1))
        if self.variant == 1:
            return self.fc(F.max_pool2d(y, 3, 2, 1).mean([2, 3]))
        if self.variant == 2:
            return self.fc(F.adaptive_avg_pool2d(torch.relu(torch.add(y, y)), 1).view(y.size(0), -1))
        return self.fc(torch.mean(y[..., 1:3], (-2, -1), keepdim=True).reshape(y.shape[0], -1))


@pytest.mark.parametrize('variant', range(4))
def test_functional_forms(variant, images):
    torch.manual_seed(variant)
    model = Functional(variant).eval()
    with torch.no_grad():
        model.conv1.weight.mul_(12)  # so that 6 is reached
    network = lower_network(model, SHAPE)  # not quantized at all: wide integers all through
    with torch.no_grad():
        assert (model.conv1(images) > 6).double().mean() > 0.1
        expected = model(images).double()
    torch.testing.assert_close(network(images).double() * network.scale, expected, atol=1e-4, rtol=0)
    found = compare_codes(quantized(model, images), lower_network(model, SHAPE, block_format='mantissa:24'), images)
    assert len(found) == 3 and min(difference.equal for difference in found.values()) > 0.999


@pytest.mark.parametrize('fraction', [0.2, 0.0])
def test_batch_norm_of_a_negative_scale_before_max_pooling(fraction, images):
    model = nn.Sequential(QConv2d(3, 4, 1, bias=False, w_bit=4), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Flatten(),
                          nn.Linear(64, CLASSES))
    warmed(model, images)
    with torch.no_grad():
        model[1].weight.fill_(-0.5)
        model[1].running_mean.fill_(fraction)
        model[1].bias.zero_()  # without offsets, the accumulators are codes of one scale, below 0
        model[1].running_var.fill_(1.0)
        expected = model(images).double()
    network = lower_network(model, SHAPE)
    torch.testing.assert_close(network(images).double() * network.scale, expected, atol=1e-3, rtol=0)


def test_bounds_of_accumulators_are_those_of_all_inputs():
    cases = [('conv', (4, 1, 1, 2), 2, 0), ('conv', (2, 2, 1, 1), 1, 1), ('linear', (3, 2), 1, 2)]
    for kind, shape, groups, seed in cases:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(-9, 10, shape, generator=generator)
        low, high = [-3, 0], [2, 5]
        program = Program('round', False)
        term = value_of(program.register((2, 1, 2), torch.tensor(low), torch.tensor(high)), 1.0).terms[0]
        scale = torch.ones(shape[0], dtype=torch.float64)
        layer = nn.Linear(2, shape[0], bias=False) if kind == 'linear' else nn.Conv2d(2, shape[0], 1, bias=False)
        weight = Weight(codes, 5, scale, 0)
        value = accumulate(program, 'layer', layer, weight, term, kind, (shape[0], 1, 1), groups=groups)
        register, per_output = value.terms[0].register, codes.reshape(shape[0], shape[1], -1)
        for o in range(shape[0]):
            inputs = [o // (shape[0] // groups) * shape[1] + c for c in range(shape[1])]  # channels that it sees
            ends = [[(low[c] * w, high[c] * w) for w in per_output[o, i].tolist()] for i, c in enumerate(inputs)]
            assert register.low[o] == sum(min(pair) for row in ends for pair in row)
            assert register.high[o] == sum(max(pair) for row in ends for pair in row)


def test_bounds_of_padded_and_sliced_channels():
    program = Program('round', False)
    value = value_of(program.register((2, 3, 3), torch.tensor([-5, 1]), torch.tensor([7, 4])), 0.5)
    padded = shapes.pad(program, 'pad', value.terms[0], (0, 1, 2, 0, 1, 2)).terms[0].register
    assert padded.shape == (5, 5, 4)
    assert padded.low.tolist() == [0, -5, 0, 0, 0] and padded.high.tolist() == [0, 7, 4, 0, 0]
    taken = shapes.take(program, 'take', value, (slice(None), slice(1, None), slice(0, 2))).terms[0].register
    assert taken.shape == (1, 2, 3) and (taken.low.item(), taken.high.item()) == (1, 4)


def net(*modules):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *modules, nn.Flatten(), nn.LazyLinear(CLASSES))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.quantizer = PACTActivationQuantizer(8, signed=True, alpha=2.0)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))

    def forward(self, x):
        return self.head(self.quantizer(self.conv(self.quantizer(x))))


def test_a_quantizer_that_is_called_twice(images):
    torch.manual_seed(0)
    model = Shared().eval()
    found = compare_codes(model, lower_network(model, SHAPE, block_format='mantissa:24'), images)
    assert list(found) == ['quantizer', 'quantizer#2']
    assert all(difference.equal > 0.999 and difference.largest <= 1 for difference in found.values())


def test_a_range_of_zero_gives_zeros(images):
    torch.manual_seed(0)
    model = quantized(vgg(), images)
    with torch.no_grad():
        model[4].input_quantizer.range.zero_()
        expected = model(images).double()
    network = lower_network(model, SHAPE)
    assert not network.codes(images)['4.input_quantizer'].any()
    assert (network(images) * network.scale - expected).abs().max() < 0.05


class Depends(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


REFUSED = {
    'softplus': (net(nn.Softplus()), r'1 \(Softplus\) has no integer form: replace it'),
    'control flow': (net(Depends()), 'cannot be traced'),
    'statistics': (net(nn.BatchNorm2d(4, track_running_stats=False)), '1 has no running statistics'),
    'windows': (net(nn.AdaptiveAvgPool2d(3)), r'1 makes \(3, 3\) of \(8, 8\): its windows differ'),
    'padded pool': (net(nn.AvgPool2d(2, padding=1)), '1: average pooling has an integer form without padding'),
    'ceiled pool': (net(nn.MaxPool2d(3, ceil_mode=True)), '1: max pooling'),
    'reflection': (net(nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect')), "1 pads with 'reflect'"),
    'no vector': (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 4)), r'1 gets \(8, 8, 8\) an image'),
    'no grid': (net(type('Odd', (Quantizer,), {'fake_quantize': lambda self, x: x})(4)), '1: a Odd has no fixed grid'),
    'unknown sign': (net(QConv2d(4, 4, 1, w_bit=8, a_bit=8)), r'1\.input_quantizer: whether the input is signed'),
    'no codes': (net(QConv2d(4, 4, 1, w_bit=8, weight_quantizer=type('Odd', (Quantizer,), {})())),
                 '1: a Odd has no integer codes'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_has_no_integer_form_is_named(kind):
    model, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        lower_network(model.train(), SHAPE)
    assert model.training


@pytest.mark.parametrize(('options', 'message'), [
    ({'rounding': 'nearest'}, 'rounding'), ({'block_format': '10,32'}, 'number format'),
    ({'end_format': 'double'}, 'number format'), ({'wide_word': 64}, 'wide_word is 64')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        lower_network(net(), SHAPE, **options)


def test_sums_beyond_int64_are_refused_by_name(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 8, 3), PACTActivationQuantizer(8, signed=True),
                          nn.Flatten(), nn.Linear(288, CLASSES)).eval()
    assert lower_network(model, SHAPE)(images).shape == (24, CLASSES)
    model[1] = QConv2d.from_float(model[1], w_bit=16)
    with pytest.raises(ValueError, match=r'1: its weights add up to \d+, which leaves \d+ bits'):
        lower_network(model, SHAPE, end_format='mantissa:32')
    with pytest.raises(ValueError, match=r'2: \|acc \* M \+ C\| may reach .* beyond int64'):
        lower_network(model, SHAPE, block_format='original', end_format='48,8')
    with torch.no_grad():
        model[4].bias.fill_(1e30)
        with pytest.raises(ValueError, match='output: accumulator and bias may reach .* beyond int64'):
            lower_network(model, SHAPE)


@pytest.mark.parametrize('form', ['mantissa:32', 'original'])
def test_the_last_layer_leaves_no_room_for_multipliers(form, images):
    torch.manual_seed(0)
    head = QLinear(800, CLASSES, w_bit=16)  # its weights add up to 2^22: with 32-bit multipliers 8 bits would be left
    model = nn.Sequential(nn.Conv2d(3, 800, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()
    with torch.no_grad():
        expected = model(images).double()
    network = lower_network(model, SHAPE, block_format=form)
    torch.testing.assert_close(network(images).double() * network.scale, expected, atol=1e-4, rtol=0)


def test_bounds_that_leave_images_no_bits_are_refused():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 1)]
    for _ in range(8):
        layers += [nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, CLASSES))
    with pytest.raises(ValueError, match=r'\d+: its input is not quantized, .* quantize an activation'):
        lower_network(model, SHAPE)


def test_weights_that_are_not_finite():
    model = nn.Sequential(nn.Flatten(), QLinear(192, CLASSES))
    with torch.no_grad():
        model[1].weight[0, 0] = float('nan')
    with pytest.raises(ValueError, match='1 has weights that are not finite'):
        lower_network(model, SHAPE)
