"""Signed or not: by structure where it proves something, else by a probe."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import models
from lib.network.conversion import all_layers
from lib.network.signedness import GATES, LEAST, find_input_ranges, probe_inputs
from models.mobilenetv3 import ROWS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(9))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        c = self.convs
        image = c[0](x)
        relu = F.relu(image)
        pooled = F.max_pool2d(c[1](relu) * 0 + relu, 2)  # 0 * y + relu: not provable, but never negative
        summed = torch.cat([relu, F.relu6(c[2](relu))], 1)[:, :3] + relu
        c[3](summed)
        c[4](F.hardswish(image))
        c[5](F.hardtanh(image, -1, 1))
        c[6](torch.sigmoid(image) * relu)
        c[7](relu - 100)
        return c[8](pooled)


def test_signs_of_every_input():
    net = Net()
    net.convs[3].eval()
    layers = {name: m for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    signed = probe_inputs(net, layers, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert 'unused' not in signed  # never called
    assert [signed[f'convs.{i}'] for i in range(9)] == [True, False, False, False, True, True, False, True, None]
    assert net.training and net.convs[0].training and not net.convs[3].training


def test_structure_alone_decides_on_the_meta_device():
    with torch.device('meta'):
        net = Net()
        layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        signed = probe_inputs(net, layers, torch.empty(2, 3, 8, 8))
    assert [signed[f'convs.{i}'] for i in range(9)] == [None, False, False, False, True, True, False, None, None]


class Through(nn.Module):
    """Gives a layer what `operation` makes of a non-negative and of any tensor, both (N, 4, 6, 6)."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.layer = operation, nn.Conv2d(4, 4, 1)

    def forward(self, x):
        self.layer(self.operation(F.relu(x), x))


def proven(operation):
    """Whether structure alone proves the result of an operation to be not negative."""
    with torch.device('meta'):
        net = Through(operation)
        signed = probe_inputs(net, {'layer': net.layer}, torch.empty(2, 4, 6, 6))
    return signed['layer'] is False


PROVEN = {
    'relu in place': lambda r, x: F.relu_(x),
    'relu of the tensor': lambda r, x: x.relu(),
    'sigmoid gate': lambda r, x: r * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    'hard sigmoid gate': lambda r, x: r * F.hardsigmoid(x),
    'softmax': lambda r, x: x.flatten(2).softmax(-1).unflatten(2, (6, 6)),
    'sum in place': lambda r, x: r.add_(F.relu(x)),
    'concatenation': lambda r, x: torch.cat([r, F.max_pool2d(r, 3, 1, 1)], 1)[:, ::2],
    'where': lambda r, x: torch.where(x > 1, r, 0.5),
    'masked': lambda r, x: r.masked_fill(x < 0, 2),
    'mask as a factor': lambda r, x: r * (x > 0),
    'product of matrices': lambda r, x: r @ r.transpose(-1, -2),
    'einsum': lambda r, x: torch.einsum('nchw,ndhw->ndhw', r, r),
    'patches': lambda r, x: r.unfold(2, 2, 2).permute(0, 1, 4, 2, 3).reshape(2, 4, 6, 6),
    'einops-like': lambda r, x: F.unfold(r, 3, padding=1).unflatten(1, (4, 9)).amax(2).view(2, 4, 6, 6),
    'divided': lambda r, x: r / 6,
    'clamp': lambda r, x: x.clamp(0, 6),
    'padded': lambda r, x: F.pad(r, (1, 1), value=1.0),
    'pixel shuffle': lambda r, x: F.pixel_shuffle(r, 2).expand(2, 4, 12, 12),
    'after a change in place': lambda r, x: r.sub_(1).relu_(),
    'a view that changed': lambda r, x: F.relu(x.view(-1).sub_(1).view_as(x)),
}


@pytest.mark.parametrize('name', PROVEN)
def test_structures_that_prove_it(name):
    assert proven(PROVEN[name])


FUNCTIONS = {'gelu': lambda x: F.gelu(x, approximate='tanh'), 'silu': F.silu, 'hardswish': F.hardswish, 'mish': F.mish,
             'sigmoid': lambda x: x * torch.sigmoid(x), 'hardsigmoid': lambda x: F.hardsigmoid(x).mul(x)}


@pytest.mark.parametrize('name', FUNCTIONS)
def test_least_values_are_those_of_the_functions(name):
    x = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    least, known = FUNCTIONS[name](x).amin().item(), {**LEAST, **GATES}[name]
    assert known <= least < known + 2e-6
    if name == 'gelu':
        assert known <= F.gelu(x).amin().item() == pytest.approx(-0.16997, abs=1e-5)


REACHING = {  # what structure alone says that no element is below
    'gelu': (lambda r, x: F.gelu(x), -0.170041), 'module': (lambda r, x: nn.SiLU(inplace=True)(x.clone()), -0.278465),
    'hard swish': (lambda r, x: F.hardswish(x, inplace=True), -0.375), 'clamp': (lambda r, x: x.clamp(-0.5, 2), -0.5),
    'swish by hand': (lambda r, x: torch.sigmoid(x).mul(x), -0.278465),
    'in place': (lambda r, x: x.mul_(x.sigmoid()), -0.278465),
    'of what is not negative': (lambda r, x: F.silu(r), 0), 'of its own gate': (lambda r, x: r * r.sigmoid(), 0),
    'pooled': (lambda r, x: F.max_pool2d(F.silu(x), 3, 1, 1).flatten(2).unflatten(2, (6, 6)), -0.278465),
    'excited': (lambda r, x: F.silu(x) * F.hardsigmoid(x.mean((2, 3), keepdim=True)), -0.278465),
    'dropped': (lambda r, x: F.dropout(F.gelu(x), 0.1, False), -0.170041),
    'joined': (lambda r, x: torch.cat([F.gelu(x), F.silu(x)], 1)[:, ::2], -0.278465),
    'summed': (lambda r, x: F.silu(x) + r + F.hardswish(x), -0.653465),
    'scaled': (lambda r, x: F.silu(x) / 2, -0.1392325),
    'negated': (lambda r, x: -2 * torch.sigmoid(x), -2), 'product': (lambda r, x: F.silu(x) * r, None),
    'training drops': (lambda r, x: F.dropout(F.gelu(x), 0.1, True), None),
    'matrices': (lambda r, x: F.silu(x) @ r, None),
    'another gate': (lambda r, x: x * torch.sigmoid(-x), None),
    'total': (lambda r, x: F.gelu(x).sum(1, True).expand(2, 4, 6, 6), None),
    'another x': (lambda r, x: (lambda gate: x.sub_(1) * gate)(torch.sigmoid(x)), None),
    'changed': (lambda r, x: (lambda y: (y.sub_(1), y)[1])(F.gelu(x)), None),
    'normalised': (lambda r, x: F.layer_norm(F.gelu(x), (6,)), None), 'minimum': (lambda r, x: F.gelu(x).neg(), None),
    'greatest': (lambda r, x: F.gelu(x).max(1, keepdim=True)[0].expand(2, 4, 6, 6), -0.170041),
}


@pytest.mark.parametrize('name', REACHING)
def test_how_far_below_zero_structure_alone_says(name):
    operation, least = REACHING[name]
    for device in ('meta', 'cpu'):
        with torch.device(device):
            net = Through(operation)
            images = torch.empty(2, 4, 6, 6) if device == 'meta' else torch.randn(2, 4, 6, 6) * 3
            seen = []
            net.layer.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
            (found,) = find_input_ranges(net, {'layer': net.layer}, images).values()
        assert found.least == pytest.approx(least, abs=1e-9) and (least is None or found.signed is (least < 0))
        assert device == 'meta' or least is None or seen[0].amin() >= least


def changed(change):
    """Returns the operation that gives the non-negative tensor after `change`, whatever that returns."""
    def operation(r, x):
        change(r, x)
        return r
    return operation


def scripted():
    @torch.jit.script
    def minus(x):
        return x.sub_(1)
    return minus


MINUS = {
    'subtraction': lambda r, x: r - 1,
    'sum with a negative number': lambda r, x: r + -1.0,
    'sum with a numpy number': lambda r, x: r + np.float32(-1),
    'sum with a negative factor': lambda r, x: torch.add(r, r, alpha=-2),
    'product with a negative number': lambda r, x: -0.5 * r,
    'negation': lambda r, x: -r,
    'division': lambda r, x: r / -2,
    'padding': lambda r, x: F.pad(r, (1, 1), value=-1.0),
    'where': lambda r, x: torch.where(x > 0, r, -1.0),
    'masked': lambda r, x: r.masked_fill(x < 0, -1),
    'clamped to less': lambda r, x: x.clamp(0, -2),
    'clamped from below': lambda r, x: x.clamp_min(-2),
    'concatenation with any': lambda r, x: torch.cat([r, x], 1)[:, ::2],
    'gate on any': lambda r, x: x * torch.sigmoid(x),
    'product of matrices': lambda r, x: r.flatten(2).softmax(-1).unflatten(2, (6, 6)) @ x,
    'einsum': lambda r, x: torch.einsum('nchw,ndhw->ndhw', r, x),
    'gelu': lambda r, x: F.gelu(x), 'silu': lambda r, x: F.silu(x), 'hardswish': lambda r, x: F.hardswish(x),
    'elu': lambda r, x: F.elu(x), 'leaky': lambda r, x: F.leaky_relu(x), 'tanh': lambda r, x: torch.tanh(x),
    'log softmax': lambda r, x: x.log_softmax(1),
    'layer norm': lambda r, x: F.layer_norm(r, (6,)),
    'resize': lambda r, x: F.interpolate(r, scale_factor=2, mode='bicubic'),
    'sub_': changed(lambda r, x: r.sub_(1)),
    'mul_': changed(lambda r, x: r.mul_(-1)),
    'neg_': changed(lambda r, x: r.neg_()),
    '+=': changed(lambda r, x: r.__iadd__(x)),
    'copy_': changed(lambda r, x: r.copy_(x)),
    'item': changed(lambda r, x: r.__setitem__((slice(None), 0), -1)),
    'item of a view': changed(lambda r, x: r.view(-1).__setitem__(slice(None), -1)),
    'view': changed(lambda r, x: r[:, 0].sub_(1)),
    'chunk': changed(lambda r, x: r.chunk(2, 1)[1].mul_(-1)),
    'detached': changed(lambda r, x: r.detach().sub_(1)),
    'data': changed(lambda r, x: r.data.sub_(1)),
    'out': changed(lambda r, x: torch.sub(r, 1, out=r)),
    'out of a sum': changed(lambda r, x: torch.add(r.clone(), x, out=r)),
    'relu of another, in place': changed(lambda r, x: F.relu(r[:, :2].sub_(3), inplace=False)),
    'script': changed(lambda r, x: scripted()(r)),
    'foreach': changed(lambda r, x: torch._foreach_sub_([r], 1.0)),
    'add_ of any': changed(lambda r, x: r.add_(x)),
    'the base of a view': lambda r, x: (lambda view: (r.sub_(1), view)[1])(r.view(2, 4, 6, 6)),
}


@pytest.mark.filterwarnings('ignore:.*jit.script:FutureWarning')
@pytest.mark.parametrize('name', MINUS)
def test_what_can_be_negative_is_never_called_unsigned(name):
    assert not proven(MINUS[name])
    net = Through(MINUS[name])
    assert probe_inputs(net, {'layer': net.layer}, torch.randn(2, 4, 6, 6))['layer'] is True


def test_numpy_on_the_same_memory():
    def operation(r, x):
        r.numpy()[:] = -1
        return r
    net = Through(operation)
    assert probe_inputs(net, {'layer': net.layer}, torch.randn(2, 4, 6, 6))['layer'] is True


def test_inference_mode_within_the_network():
    class Frozen(Through):
        @torch.inference_mode()
        def forward(self, x):
            self.layer(F.relu(x))

    net = Frozen(None)
    assert probe_inputs(net, {'layer': net.layer}, torch.randn(2, 4, 6, 6))['layer'] is None


def test_the_probe_keeps_its_images():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1))
    images = torch.randn(2, 3, 4, 4)
    before = images.clone()
    assert probe_inputs(net, {'1': net[1]}, images) == {'1': False}
    assert torch.equal(images, before)


@pytest.mark.parametrize('mode', ['small', 'large'])
def test_mobilenetv3_as_its_table_says(mode):
    """Signed: image, bottlenecks, what BatchNorm gives to a gate, h-swish. Unsigned: what ReLU gives."""
    torch.manual_seed(0)
    net = models.create_model('mobilenetv3', mode=mode, num_classes=10)
    images = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            net.train()(images)
    expected = {'features.0.0': True}
    for i, (_, _, _, excite, activation, _) in enumerate(ROWS[mode], 1):
        after = activation == 'HS'
        expected |= {f'features.{i}.conv.0': True, f'features.{i}.conv.3': after}
        expected |= {f'features.{i}.conv.5.fc.0': True, f'features.{i}.conv.5.fc.2': False} if excite else {}
        expected |= {f'features.{i}.conv.7': after}
    i = len(ROWS[mode]) + 1
    expected |= {f'features.{i}.0': True, f'features.{i + 2}': True, 'classifier.1': True}
    assert probe_inputs(net, all_layers(net), images) == expected

    lowest = {}
    for name, layer in all_layers(net).items():
        layer.register_forward_pre_hook(lambda _, x, name=name: lowest.update({name: x[0].min().item()}))
    with torch.no_grad():
        net.eval()(images)
    assert {name for name, low in lowest.items() if low < 0} == {name for name, signed in expected.items() if signed}
