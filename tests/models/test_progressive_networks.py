"""The networks of the progressive search: counts, their parts, and what they compute, against other implementations."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

import models
from lib.network.conversion import convert_to_quantized, quantized_layers
from models.preactivation import Bottleneck, PreActResNet
from tests.meta import on_meta

# name: (layers quantized, their weights), as counted in the code of ProQHA
COUNTS = {
    'postresnet18': (16, 10_985_472), 'preresnet18': (16, 10_985_472), 'preresnet18_cifar': (16, 10_985_472),
    'preresnet34': (32, 21_086_208), 'preresnet34_cifar': (32, 21_086_208),
    'preresnet50': (48, 20_676_608), 'preresnet50_cifar': (48, 20_676_608),
    'preresnet101': (99, 39_616_512), 'preresnet152': (150, 55_214_080),
    'preresnet20': (18, 267_264), 'preresnet32': (30, 460_800), 'preresnet56': (54, 847_872),
    'preresnet110': (108, 1_718_784),
    'premobilenetv2': (50, 1_779_296), 'premobilenetv2_imagenet': (50, 1_779_296),
    'densenet40': (38, 1_035_360),
    'prevgg11': (9, 128_753_664), 'prevgg16': (14, 134_246_400), 'prevgg19': (17, 139_554_816),
}
DEEP = {'preresnet101', 'preresnet110', 'preresnet152'}  # blocks as in preresnet50 and preresnet20, only more of them
LAYERS = (nn.Conv2d, nn.Linear)


@functools.cache
def build(name, **options):
    """A network that no test may change."""
    with on_meta():
        return models.create_model(name, **options)


def run(model, side, batch=1):
    """[(name, module, input, output)] of every call of a leaf module, in order, and the network's output."""
    calls = []
    hooks = [module.register_forward_hook(lambda m, x, y, name=name: calls.append((name, m, x[0], y)))
             for name, module in model.named_modules() if not list(module.children())]
    device = next(model.parameters()).device
    with torch.no_grad():
        output = model.eval()(torch.zeros(batch, 3, side, side, device=device))
    for hook in hooks:
        hook.remove()
    return calls, output


def macs(name, side):
    """Every output number of a layer is a dot product of as many terms as an output channel has weights."""
    return sum(y.numel() * layer.weight[0].numel() for _, layer, _, y in run(build(name, num_classes=1000), side)[0]
               if isinstance(layer, LAYERS))


# ---- counts

@pytest.mark.parametrize('name', COUNTS)
def test_quantized_layers_and_weights(name):
    model = build(name)
    parts = model.quantized_parts()
    assert (len(parts), sum(model.get_submodule(part.layer).weight.numel() for part in parts)) == COUNTS[name]


@pytest.mark.parametrize(('name', 'parameters'), [
    ('preresnet20', 269_626),  # each stage's first batch norm has the channels of the stage before: 2 * (16 + 32) less
    ('postresnet18', 11_689_512),
])
def test_parameters(name, parameters):
    classes = {} if name == 'postresnet18' else {'num_classes': 10}
    assert sum(p.numel() for p in build(name, **classes).parameters()) == parameters


TWINS = {'postresnet18': 'resnet18', 'premobilenetv2_imagenet': 'mobilenetv2',
         **{f'preresnet{depth}': f'resnet{depth}' for depth in (18, 34, 50)},
         **{f'prevgg{depth}': f'vgg{depth}' for depth in (11, 19)}}


@pytest.mark.parametrize('name', TWINS)
def test_weights_and_macs_are_those_of_the_usual_order(name):
    ours, usual = build(name), build(TWINS[name])
    shapes = [sorted(m.weight.shape for m in model.modules() if isinstance(m, LAYERS)) for model in (ours, usual)]
    assert shapes[0] == shapes[1]
    assert macs(name, 224) == macs(TWINS[name], 224)


def densenet_macs():
    total, channels, side = 9 * 3 * 24 * 32**2, 24, 32
    for block in range(3):
        for _ in range(12):
            total += 9 * channels * 12 * side**2
            channels += 12
        if block < 2:
            total += channels**2 * side**2
            side //= 2
    return total + channels * 1000


def mobilenet_macs():
    rows = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    total, channels, side = 9 * 3 * 32 * 32**2, 32, 32
    for expansion, out, repeats, first in rows:
        for stride in [first] + [1] * (repeats - 1):
            hidden = channels * expansion
            total += (expansion > 1) * channels * hidden * side**2
            side //= stride
            total, channels = total + (9 * hidden + hidden * out) * side**2, out
    return total + channels * 1280 * side**2 + 1280 * 1000


@pytest.mark.parametrize(('name', 'expected'), [
    ('preresnet20', 40_551_040 + 64 * 990), ('densenet40', densenet_macs()), ('premobilenetv2', mobilenet_macs()),
])
def test_macs_of_the_small_ones(name, expected):
    assert macs(name, 32) == expected


# ---- parts

@pytest.mark.parametrize('name', COUNTS)
def test_parts_name_layers_and_relus_in_order_each_once(name):
    model = build(name)
    parts, order = model.quantized_parts(), list(dict(model.named_modules()))
    assert all(isinstance(model.get_submodule(part.layer), LAYERS) for part in parts)
    assert all(type(model.get_submodule(part.activation)) is nn.ReLU for part in parts)
    pairs = [(p.activation, p.layer) if p.activation_first else (p.layer, p.activation) for p in parts]
    places = [order.index(module) for pair in pairs for module in pair]
    assert places == sorted(set(places))


# What stays float: layers, and activations.
LEFT = {
    'preresnet20': ({'conv1', 'linear'}, {'relu'}),
    'preresnet110': ({'conv1', 'linear'}, {'relu'}),
    'preresnet18': ({'conv1', 'fc', *(f'layer{i}.0.shortcut' for i in (2, 3, 4))}, {'relu'}),
    'preresnet50_cifar': ({'conv1', 'fc', *(f'layer{i}.0.shortcut' for i in (1, 2, 3, 4))}, {'relu'}),
    'postresnet18': ({'conv1', 'fc', *(f'layer{i}.0.downsample.0' for i in (2, 3, 4))}, {'relu'}),
    'densenet40': ({'conv1', 'linear'}, {'relu'}),
    'prevgg16': ({'features.stage1.0.conv', 'classifier.output'}, {'features.stage1.0.relu', 'classifier.relu3'}),
    'premobilenetv2': ({'features.0.0', 'features.18.0', 'classifier'}, {'features.0.2', 'features.18.2'}),
}


@pytest.mark.parametrize('name', LEFT)
def test_what_stays_float(name):
    model = build(name)
    layers = {key for key, module in model.named_modules() if isinstance(module, LAYERS)}
    activations = {key for key, module in model.named_modules() if isinstance(module, (nn.ReLU, nn.ReLU6))}
    parts = model.quantized_parts()
    assert (layers - {p.layer for p in parts}, activations - {p.activation for p in parts}) == LEFT[name]


@pytest.mark.parametrize('name', sorted(COUNTS.keys() - DEEP))
def test_every_module_runs_once_in_order_and_each_activation_belongs_to_its_layer(name):
    """Before the layer: the very tensor that comes out of the ReLU goes in. After it: the ReLU is the next to run."""
    model = build(name, num_classes=7)
    calls, output = run(model, 32, batch=2)  # at 224 pixels they run in the test of the MACs
    assert output.shape == (2, 7)
    leaves = [key for key, module in model.named_modules() if not list(module.children())]
    assert sorted(key for key, *_ in calls) == sorted(leaves)
    weighted = [key for key, module, *_ in calls if isinstance(module, LAYERS)]
    assert weighted == [key for key, module in model.named_modules() if isinstance(module, LAYERS)]
    seen = {key: (x, y) for key, _, x, y in calls}
    order = [key for key, module, *_ in calls if isinstance(module, (*LAYERS, nn.ReLU)) and 'downsample' not in key]
    for part in model.quantized_parts():
        if part.activation_first:
            assert seen[part.layer][0] is seen[part.activation][1]
        else:
            assert order[order.index(part.layer) + 1] == part.activation


@pytest.mark.parametrize('name', ['preresnet20', 'preresnet50', 'densenet40', 'prevgg11', 'premobilenetv2',
                                  'postresnet18'])
def test_parts_keep_their_names_and_pre_activation_inputs_are_unsigned_when_converted(name):
    model = copy.deepcopy(build(name))
    parts = model.quantized_parts()
    with on_meta():
        convert_to_quantized(model, torch.empty(2, 3, 32, 32))
    assert model.quantized_parts() == parts
    layers = quantized_layers(model)
    assert {layers[part.layer].input_quantizer.signed for part in parts} == {False}


@pytest.mark.parametrize('name', COUNTS)
def test_nothing_works_in_place(name):
    assert not [key for key, module in build(name).named_modules() if getattr(module, 'inplace', False)]


# ---- what they compute

def randomise(model, seed=0):
    """Weights and statistics that leave no layer trivial and no activation dead; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if 'running_var' in name or (tensor.dim() == 1 and name.endswith('weight')):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.dim() == 1:
            tensor.normal_(generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
    return model.eval()


class Functional:
    """Layers straight from a state dict."""

    def __init__(self, model):
        self.state = model.state_dict()

    def conv(self, x, key, stride=1, depthwise=False):
        weight = self.state[key + '.weight']
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight) if depthwise else 1)

    def norm(self, x, key):
        weight, bias, mean, var = (self.state[f'{key}.{k}'] for k in ('weight', 'bias', 'running_mean', 'running_var'))
        return F.batch_norm(x, mean, var, weight, bias)

    def active(self, x, key):
        return F.relu(self.norm(x, key))

    def unit(self, x, key, **options):
        return self.conv(self.active(x, f'{key}.norm'), f'{key}.conv', **options)

    def linear(self, x, key):
        return F.linear(x, self.state[f'{key}.weight'], self.state[f'{key}.bias'])


def agree(model, expected, images):
    assert expected.std() > 0.01  # else anything agrees
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_cifar_family():
    model = randomise(models.create_model('preresnet20', num_classes=10))
    f = Functional(model)
    x = F.relu(f.norm(f.conv(images(), 'conv1'), 'bn1'))
    for stage in (1, 2, 3):
        for i in range(3):
            block, stride = f'layer{stage}.{i}', 2 if stage > 1 and i == 0 else 1
            out = f.active(x, f'{block}.bn1')
            y = f.conv(f.active(f.conv(out, f'{block}.conv1', stride), f'{block}.bn2'), f'{block}.conv2')
            if stride == 2:  # option A: a quarter of the new channels as zeros before, another behind
                zeros = torch.zeros_like(y[:, : y.shape[1] // 4])
                out = torch.cat([zeros, F.max_pool2d(out, 1, 2), zeros], dim=1)
            x = y + out  # also where the size stays: the shortcut begins behind the activation
    agree(model, f.linear(x.mean((2, 3)), 'linear'), images())


@pytest.mark.parametrize(('depth', 'small'), [(18, True), (18, False), (14, False)])
def test_four_stages(depth, small):
    """Depth 14: one bottleneck in each stage but two in the first."""
    basic = depth == 18
    name = 'preresnet18_cifar' if small else 'preresnet18'
    model = models.create_model(name, num_classes=10) if basic else \
        PreActResNet(Bottleneck, (2, 1, 1, 1), num_classes=10)
    f = Functional(randomise(model))
    x = f.active(f.conv(images(64), 'conv1', 1 if small else 2), 'bn1')
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        for i in range(2 if basic or stage == 1 else 1):
            block, stride = f'layer{stage}.{i}', 2 if stage > 1 and i == 0 else 1
            y = out = f.active(x, f'{block}.bn1')
            strides = [stride, 1] if basic else [1, stride, 1]
            for j, step in enumerate(strides, start=1):
                y = f.conv(y if j == 1 else f.active(y, f'{block}.bn{j}'), f'{block}.conv{j}', step)
            resized = f'{block}.shortcut.weight' in f.state
            assert resized == (i == 0 and (stage > 1 or not basic))
            x = y + (f.conv(out, f'{block}.shortcut', stride) if resized else x)
    agree(model, f.linear(x.mean((2, 3)), 'fc'), images(64))


def test_densenet():
    model = randomise(models.create_model('densenet40', num_classes=10))
    f = Functional(model)
    x = f.conv(images(), 'conv1')
    for block in (1, 2, 3):
        for i in range(12):
            x = torch.cat([x, f.unit(x, f'block{block}.{i}')], dim=1)
        if block < 3:
            x = F.avg_pool2d(f.unit(x, f'transition{block}.unit'), 2)
    agree(model, f.linear(F.avg_pool2d(f.active(x, 'norm'), 8).flatten(1), 'linear'), images())


@pytest.mark.parametrize('small', [True, False])
def test_mobilenet(small):
    model = randomise(models.create_model('premobilenetv2', num_classes=10, small_images=small))
    f = Functional(model)
    x = F.relu6(f.norm(f.conv(images(), 'features.0.0', 1 if small else 2), 'features.0.1'))
    halved = {7, 14} | ({4} if small else {2, 4})  # blocks that begin with stride 2, counted from 1
    for i in range(1, 18):
        y, units = x, 2 if i == 1 else 3
        for j in range(units):
            middle = j == units - 2
            y = f.unit(y, f'features.{i}.conv.{j}', stride=2 if middle and i in halved else 1, depthwise=middle)
        x = x + y if x.shape == y.shape else y
    x = F.relu6(f.norm(f.conv(x, 'features.18.0'), 'features.18.1'))
    agree(model, f.linear(x.mean((2, 3)), 'classifier'), images())


def test_vgg():
    """Convolutions against the functions; the classifier (of 120 million weights) by the order of its modules."""
    model = copy.deepcopy(build('prevgg11'))
    assert [key for key, _ in model.classifier.named_children()] == [
        'relu1', 'linear1', 'relu2', 'linear2', 'relu3', 'output']
    features = randomise(model.features.to_empty(device='cpu'))
    f, x = Functional(features), images()
    for stage, convolutions in enumerate((1, 1, 2, 2, 2), start=1):
        for i in range(convolutions):
            x = f.unit(x, f'stage{stage}.{i}')
        x = F.max_pool2d(x, 2)
    agree(features, x, images())


def test_torchvisions_weights_load_strictly_and_give_the_same():
    theirs = randomise(torchvision.models.resnet18())
    ours = models.create_model('postresnet18').eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        agree(ours, theirs(images(64)), images(64))


# ---- training

@pytest.mark.parametrize('name', ['preresnet20', 'preresnet18_cifar', 'postresnet18', 'densenet40', 'premobilenetv2'])
def test_every_parameter_is_trained(name):
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=5).train()
    F.cross_entropy(model(images()), torch.tensor([1, 3])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(('name', 'fan_in'), [('preresnet20', True), ('preresnet18_cifar', False),
                                              ('densenet40', False), ('premobilenetv2', False)])
def test_initial_weights(name, fan_in):
    torch.manual_seed(0)
    for module in models.create_model(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan = module.weight[0].numel() if fan_in else module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.1)
