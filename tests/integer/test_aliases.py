"""Operations in place: the integer network follows every tensor that they change, or names them."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib.integer.aliases import Aliases
from lib.integer.compare import check_on_noise
from lib.integer.lowering import lower_network
from lib.quantize.pact import PACTActivationQuantizer

SHAPE = (3, 6, 6)
IMAGES = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1)).clamp_(-8, 8)


class Net(nn.Module):
    """`body(self, x)` between two layers: from 4 channels of 6 x 6 to a tensor of as many numbers."""

    def __init__(self, body, features=144):
        super().__init__()
        torch.manual_seed(0)
        self.body = body
        self.conv, self.again, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(features, 3)
        self.relu, self.relu6, self.same = nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.Identity()
        self.dropout, self.off = nn.Dropout(inplace=True), PACTActivationQuantizer(32)

    def forward(self, x):
        return self.fc(self.body(self, self.conv(x)).flatten(1))


def changes(x, *operations):
    """Return x; the operations are there for what they do to their arguments."""
    return x


def iadd(x, y):
    x += y
    return x


def assign(x):
    x[:, 0] = 0
    return x


FOLLOWED = {
    'method': lambda net, x: net.again(x.relu_()) + x,
    'function': lambda net, x: net.again(torch.relu_(x)) + x,
    'functional': lambda net, x: changes(x, F.relu(x, inplace=True)),
    'relu6': lambda net, x: net.again(F.relu6(x, True)) + x,
    'module': lambda net, x: net.again(net.relu(x)) + x,
    'module, result dropped': lambda net, x: changes(x, net.relu6(x)),
    'augmented': lambda net, x: iadd(x, net.again(x)) + x,
    'operator': lambda net, x: operator.iadd(x, net.again(x)) + x,
    'add_': lambda net, x: x.add_(net.again(x)) + x,
    'of itself': lambda net, x: changes(x, iadd(x, x)),
    'identity': lambda net, x: changes(x, net.same(x).relu_()),
    'dropout': lambda net, x: changes(x, F.dropout(net.dropout(x), 0.5, net.training).relu_()),
    'contiguous': lambda net, x: changes(x, x.contiguous().relu_()),
    'quantizer that is off': lambda net, x: changes(x, net.off(x).relu_()),
    'product': lambda net, x: changes(x, x.mul_(2)),
    'view of the same form': lambda net, x: (lambda flat: changes(flat, flat.view(flat.size(0), -1).relu_()))(
        x.flatten(1)),
    'value of before': lambda net, x: (lambda y: y + x.relu_())(net.again(x)),
    'copy': lambda net, x: (lambda y: y + x.relu_()[:, :, ::2].flatten(1))(x[:, :, ::2].reshape(x.size(0), -1)),
    'view that is not read': lambda net, x: changes(x, x.flatten(1)).relu_(),
    'view beside': lambda net, x: (lambda left, right: left.relu_() + right)(x[:, :2], x[:, 2:]),
    'read before': lambda net, x: (lambda y: net.again(x) + y.relu_())(x.add(net.again(x))),
}


@pytest.mark.parametrize('kind', FOLLOWED)
def test_what_works_in_place_is_followed(kind):
    halves = ('copy', 'view beside')
    net = Net(FOLLOWED[kind], 72 if kind in halves else 144).eval()
    network = lower_network(net, SHAPE)
    with torch.no_grad():
        expected = net(IMAGES.clone()).double()
    torch.testing.assert_close(network(IMAGES).double() * network.scale, expected, atol=1e-4, rtol=0)


def test_images_changed_in_place():
    net = nn.Sequential(nn.ReLU(inplace=True), Net(lambda net, x: x)).eval()
    network = lower_network(net, SHAPE)
    with torch.no_grad():
        expected = net(IMAGES.clone()).double()
    torch.testing.assert_close(network(IMAGES).double() * network.scale, expected, atol=1e-4, rtol=0)


REFUSED = {
    'flattened before': (lambda net, x: (lambda y: changes(y, x.relu_()))(x.flatten(1)),
                         r'relu_ \(relu_\) changes flatten \(flatten\) in place, which flatten_1 '),
    'flattened': (lambda net, x: changes(x, x.flatten(1).relu_()), r'relu_ \(relu_\) changes conv in place'),
    'view': (lambda net, x: changes(x, x.view(x.size(0), -1).relu_()), r'relu_ \(relu_\) changes conv in place'),
    'reshape': (lambda net, x: changes(x, net.relu(x.reshape(x.shape[0], -1))), 'relu changes conv in place'),
    'slice': (lambda net, x: changes(x, F.relu(x[:, 1:3], inplace=True)), r'relu \(relu\) changes conv in place'),
    'slices that overlap': (lambda net, x: (lambda left, right: left.relu_() + right)(x[:, :3], x[:, 1:]),
                            r'relu_ \(relu_\) changes getitem_1 \(getitem\) in place'),
    'augmented slice': (lambda net, x: changes(x, iadd(x[:, :2], x[:, 2:])), r'iadd \(iadd\) changes conv in place'),
    'out': (lambda net, x: changes(x, torch.add(x, x, out=x)), r'add \(add\) with out has no integer form'),
    'assignment': (lambda net, x: assign(x), 'cannot be traced.* item assignment'),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_what_cannot_be_followed_is_named(kind):
    body, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        lower_network(Net(body, 108 if kind == 'slices that overlap' else 144), SHAPE)


@pytest.mark.parametrize('kind', ['method', 'module, result dropped', 'augmented'])
def test_the_check_on_noise_finds_what_is_lowered_wrongly(kind, monkeypatch):
    net = Net(FOLLOWED[kind]).eval()
    right = check_on_noise(net, lower_network(net, SHAPE))
    assert right.agreement == 100 and right.difference < 1e-3
    monkeypatch.setattr(Aliases, 'run', lambda self, node: [])
    assert check_on_noise(net, lower_network(net, SHAPE)).difference > 0.25
