"""Integers beyond plain ReLU networks: joined channels, products, tables, BatchNorms with an activation; refusals."""

import re
import shutil
import subprocess

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.layers import BatchNormAct2d
from timm.models.dla import DLA, DlaBasic
from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from lib.integer.activations import ENTRIES, table_of
from lib.integer.compare import compare_codes
from lib.integer.lowering import lower_network
from lib.integer.network import IntegerNetwork
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers
from tests.integer.scenarios import batch
from tests.tiny import sample

CLASSES, SHAPE = 4, (3, 8, 8)
ACTIVATIONS = (nn.Hardswish, nn.SiLU, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Mish)


def images_of(side, count=8):
    return sample(count, 3, side, side, seed=1).clamp_(-8, 8)


@torch.no_grad()
def quantized(model, images, bits):
    """The network in HAQ's linear flow, with random BatchNorms that have the statistics of the images."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)
            module.momentum = None
    model.train()(images)
    convert_to_quantized(model.eval(), images, quiet=True)
    LinearQuantization(model, [[bits, bits]] * len(quantized_layers(model)), images, method='max')
    return model.eval()


def check_codes(model, images):
    """Every operation alone gives the codes of the fake-quantized network, within 1; returns the network."""
    network = lower_network(model, images.shape[1:])
    found = compare_codes(model, network, images)
    assert len(found) == len(quantized_layers(model))
    assert max(difference.largest for difference in found.values()) <= 1
    assert sum(difference.equal for difference in found.values()) / len(found) > 0.999
    return network


# ---- operation by operation, against the float network

class Says(nn.Module):
    """A function between two layers."""

    def __init__(self, body, channels=8, positions=64):
        super().__init__()
        self.body, self.conv, self.head = body, nn.Conv2d(3, 8, 3, padding=1), nn.Linear(channels * positions, CLASSES)

    def forward(self, x):
        return self.head(self.body(self.conv(x)).flatten(1))


def shuffled(x, groups, back):
    batch_size, channels, height, width = x.size()
    x = x.view(batch_size, groups, channels // groups, height, width).transpose(1, 2).contiguous()
    return x.view(batch_size, -1, height, width) if back == 'view' else x.flatten(1, 2)


BODIES = {
    'cat': (lambda x: torch.cat([x, F.relu(x), 0.01 * x], 1), 24),
    'cat, far apart': (lambda x: torch.cat((x, 3000 * F.relu(x[:, :3]), F.relu6(x)), dim=-3) * 0.001, 19),
    'cat of cats': (lambda x: torch.cat([torch.cat([x, F.relu(x)], 1), x], 1), 24),
    'chunk': (lambda x: (lambda parts: torch.cat([x, F.relu(parts[0]) + parts[1]], 1))(x.chunk(3, dim=1)), 11),
    'split': (lambda x: torch.split(x, [5, 3], 1)[1], 3),
    'split evenly': (lambda x: x.split(3, dim=1)[2], 2),
    'shuffle by view': (lambda x: shuffled(x, 2, 'view')[:, :5], 5),
    'shuffle by flatten': (lambda x: shuffled(x, 4, 'flatten')[:, :5], 5),
    'shuffle by function': (lambda x: F.channel_shuffle(F.relu(x), 4)[:, :5], 5),
    'gate': (lambda x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x, 8),
    'gate with offset': (lambda x: x.mul(F.relu6(x.mean((2, 3), keepdim=True) + 3) / 6), 8),
    'product': (lambda x: F.relu(x) * (1 - x), 8),
    'square, in place': (lambda x: (lambda y: y.mul_(x))(x + 0), 8),
    'numbers': (lambda x: (2 * x - 1) / 4 + (3 - x), 8),
    'difference': (lambda x: F.relu(x) - x * 2, 8),
}


@pytest.mark.parametrize('kind', BODIES)
def test_operations_on_a_float_network(kind):
    body, channels = BODIES[kind]
    torch.manual_seed(0)
    model, images = Says(body, channels).eval(), images_of(8)
    network = lower_network(model, SHAPE)
    with torch.no_grad():
        expected = model(images).double()
    torch.testing.assert_close(network(images).double() * network.scale, expected, atol=2e-4, rtol=0)
    for operation in network.operations:  # nothing left its bounds, and both arithmetics agree
        assert operation.bound < 2**63
    assert network(images).equal(network(images, arithmetic='float64'))

    def inside(operation, result):
        assert int(result.abs().amax()) <= operation.bound, operation.name

    network.forward(network.encode(8 * images.sign()), watch=inside)


@pytest.mark.parametrize('kind', ACTIVATIONS)
@pytest.mark.parametrize('gain', [1, 40])
def test_activations(kind, gain):
    """Also far outside of the table's inputs, where x f(x) is x or 0."""
    torch.manual_seed(0)
    model, images = Says(kind()).eval(), images_of(8)
    with torch.no_grad():
        model.conv.weight.mul_(gain)
        expected = model(images).double()
    network = lower_network(model, SHAPE)
    torch.testing.assert_close(network(images).double() * network.scale, expected, atol=2e-4 * gain, rtol=0)


def test_a_table_has_every_code():
    x = torch.arange(-2**15, 2**15).double() / 2**11
    assert (table_of(torch.sigmoid) / 2**15 - 1 / (1 + (-x).exp())).abs().max() <= 2**-16
    assert table_of(torch.sigmoid) is table_of(torch.sigmoid) and len(table_of(torch.tanh)) == ENTRIES


def test_functions_do_what_modules_do():
    for function, module in ((F.silu, nn.SiLU()), (F.hardswish, nn.Hardswish()), (F.gelu, nn.GELU()),
                             (lambda x: F.gelu(x, approximate='tanh'), nn.GELU('tanh')), (torch.tanh, nn.Tanh()),
                             (lambda x: x * x.sigmoid(), nn.SiLU())):
        torch.manual_seed(0)
        one, other = Says(function).eval(), Says(module).eval()
        other.load_state_dict(one.state_dict())
        torch.testing.assert_close(*(lower_network(net, SHAPE)(images_of(8)) * lower_network(net, SHAPE).scale
                                     for net in (one, other)), atol=1e-4, rtol=0)


# ---- networks, code by code

def densenet():
    return torchvision.models.DenseNet(8, (2, 3), 8, num_classes=CLASSES)


def dla():
    return DLA([1, 1, 1, 2, 1, 1], [8, 8, 8, 8, 12, 16], block=DlaBasic, num_classes=CLASSES)


def efficientnet():
    return EfficientNet([MBConvConfig(1, 3, 1, 8, 8, 1, 1, 1), MBConvConfig(6, 5, 2, 8, 12, 2, 1, 1)], 0.2,
                        num_classes=CLASSES, last_channel=48)


NETWORKS = {
    'densenet': (densenet, 32, 8), 'dla': (dla, 64, 4),
    'shufflenet': (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=CLASSES), 32, 8),
    'mobilenet_v3': (lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES), 32, 4),
    'efficientnet': (efficientnet, 32, 8),
    'regnet_y': (lambda: timm.create_model('regnety_002', num_classes=CLASSES), 32, 8),
    'regnetx_002': (lambda: timm.create_model('regnetx_002', num_classes=CLASSES), 32, 4),
    'mobilenetv2': (lambda: timm.create_model('mobilenetv2_050', num_classes=CLASSES), 32, 8),
    'repvgg': (lambda: timm.create_model('repvgg_a0', num_classes=CLASSES, width_factor=0.25), 32, 4),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_networks_code_by_code(name):
    make, side, bits = NETWORKS[name]
    torch.manual_seed(0)
    images = images_of(side)
    check_codes(quantized(make(), images, bits), images)


class Everything(nn.Module):
    """A squeeze-excitation, h-swish, SiLU, a shuffle and joined channels, on colours that a classifier tells apart."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False),
                                  BatchNormAct2d(12, act_layer=nn.Hardswish))
        self.squeeze = torchvision.ops.SqueezeExcitation(12, 4, scale_activation=nn.Hardsigmoid)
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.head = nn.Linear(18, CLASSES)

    def features(self, x):
        x = self.squeeze(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([left, self.branch(right), x[:, ::2]], 1)
        return F.channel_shuffle(x, 2).mean((2, 3))

    def forward(self, x):
        return self.head(self.features(x))


@pytest.fixture(scope='module')
def everything():
    """(fake-quantized network, integer network, images)."""
    torch.manual_seed(0)
    images, model = batch(64), Everything()
    quantized(model, images, 8)
    with torch.no_grad():
        features = model.features(images)
        means = features.unflatten(0, (-1, CLASSES)).mean(0)
        model.head.weight.copy_((means - means.mean(0)) / features.std())
    LinearQuantization(model, [[8, 8]] * 5, images, method='max')
    return model, check_codes(model, images), batch(64, seed=7)


@torch.no_grad()
def test_predictions_are_those_of_the_fake_quantized_network(everything):
    model, network, images = everything
    expected, found = model(images), network(images)
    assert found.argmax(1).equal(expected.argmax(1)) and len(expected.argmax(1).unique()) > 2
    assert (found * network.scale - expected).abs().max() < 0.02 * expected.std()


def test_files_hold_a_shared_table_once(everything, tmp_path):
    _, network, images = everything
    network.save(tmp_path / 'net.npz')
    again = IntegerNetwork.load(tmp_path / 'net.npz')
    assert again(images).equal(network(images))
    model = Says(lambda x: torch.sigmoid(torch.sigmoid(x))).eval()
    lower_network(model, SHAPE).write_header(tmp_path / 'twice.h')
    text = (tmp_path / 'twice.h').read_text()
    assert len(re.findall(r'_table\[65536\]', text)) == 1 == len(re.findall(r'#define \w+_table \w+_table\n', text))
    network.write_header(tmp_path / 'net.h')
    assert all(f': {kind}, ' in (tmp_path / 'net.h').read_text() for kind in ('product', 'lookup', 'cat', 'permute'))
    compiler = shutil.which('gcc') or shutil.which('cc')
    if compiler is None:
        pytest.skip('no C compiler')
    for name in ('twice.h', 'net.h'):
        subprocess.run([compiler, '-fsyntax-only', '-Wall', '-Wextra', '-Werror', '-Wno-unused-const-variable', '-x',
                        'c', tmp_path / name], check=True)


# ---- what is refused

class Odd(BatchNormAct2d):
    def forward(self, x):
        return 2 * super().forward(x)


def net(*modules):
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *modules, nn.Flatten(), nn.LazyLinear(CLASSES))


REFUSED = {
    'LayerNorm': (lambda: net(nn.LayerNorm(8)),
                  r'Sequential has no integer form: it has LayerNorm in 1 layers \(1 first\)'),
    'softmax': (lambda: net(nn.Softmax(1)), r'Sequential has no integer form: it has softmax in 1 layers \(1 first\)'),
    'softmax of a function': (lambda: Says(lambda x: x.softmax(1)), r'softmax \(softmax\) has no integer form, and the '
                              'network calls it'),
    'transformer': (lambda: torchvision.models.VisionTransformer(8, 4, 1, 2, 8, 8, num_classes=CLASSES),
                    'VisionTransformer has no integer form: it has LayerNorm in 3 layers .*, attention'),
    'timm': (lambda: timm.create_model('vit_tiny_patch16_224', img_size=8, patch_size=4, depth=1),
             r'has no integer form.* LayerNorm in 3 layers \(blocks.0.norm1 first\), attention \(a softmax\) in 1 '),
    'a BatchNorm that does more': (lambda: net(Odd(4)), r'1 \(Odd\) is a BatchNorm with a forward of its own'),
    'shapes': (lambda: Says(lambda x: x * x.mean(1, keepdim=True)), 'no integer form'),
    'rows': (lambda: Says(lambda x: torch.cat([x, x], 2)), r'cat \(cat\) has no integer form'),
    'infinite': (lambda: Says(lambda x: x * float('inf')), 'only finite numbers'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_has_no_integer_form_is_named(kind):
    make, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        lower_network(make().eval(), SHAPE)
