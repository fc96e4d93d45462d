"""Golden numbers, layer tables, state-dict keys and structure of the float networks."""

import pytest
import torch
from torch import nn

import models
from tests.meta import on_meta

OWN = {
    'mobilenet': ('mobilenet', {}),
    'mobilenetv2': ('mobilenetv2', {}),
    'mobilenetv3-small': ('mobilenetv3', {'mode': 'small'}),
    'mobilenetv3-large': ('mobilenetv3', {'mode': 'large'}),
    'resnet20': ('resnet20', {'num_classes': 10}),
}


def build(key, **options):
    name, own_options = OWN.get(key, (key, {}))
    return models.create_model(name, **{**own_options, **options})


def hook_layers(model, resolution, types=(nn.Conv2d, nn.Linear)):
    """(name, module, output shape) of every layer of the given types, in the order in which they run."""
    calls = []
    for name, module in model.named_modules():
        if isinstance(module, types):
            module.register_forward_hook(lambda m, x, y, name=name: calls.append((name, m, tuple(y.shape))))
    device = next(model.parameters()).device
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, resolution, resolution, device=device))
    return calls


def layer_rows(name, resolution):
    """(kind, in channels, out channels, output side, kernel) of every layer, shapes only."""
    with on_meta():
        calls = hook_layers(build(name), resolution)
    rows = []
    for _, layer, shape in calls:
        if isinstance(layer, nn.Linear):
            rows.append(('fc', layer.in_features, layer.out_features, 1, 1))
            continue
        kernel = layer.kernel_size[0]
        kind = 'dw' if layer.groups == layer.in_channels else 'pw' if kernel == 1 else 'conv'
        assert layer.kernel_size == (kernel, kernel)
        assert shape[2] == shape[3]
        rows.append((kind, layer.in_channels, layer.out_channels, shape[2], kernel))
    return rows


def count_macs(name, resolution):
    """Multiply-accumulates of the convolutions and linear layers for one image."""
    with on_meta():
        calls = hook_layers(build(name), resolution)
    # every output number is a dot product of as many terms as one output channel has weights
    return sum(torch.Size(shape).numel() * layer.weight[0].numel() for _, layer, shape in calls)


# ---------------------------------------------------------------------------------------------------- golden numbers


@pytest.mark.parametrize(
    ('name', 'num_classes', 'parameters', 'layers', 'weights'),
    [
        ('mobilenet', 1000, 4_231_976, 28, 4_209_088),
        ('mobilenetv2', 1000, 3_504_872, 53, 3_469_760),
        ('mobilenetv3-small', 1000, 2_938_368, 55, 2_923_944),
        ('mobilenetv3-large', 1000, 5_476_416, 65, 5_449_704),
        ('resnet20', 10, 269_722, 20, 268_336),
        ('resnet32', 10, 464_154, 32, 461_872),
        ('resnet44', 10, 658_586, 44, 655_408),
        ('resnet56', 10, 853_018, 56, 848_944),
        ('resnet50', 1000, 25_557_032, 54, 25_502_912),
        ('mobilenet_v2', 1000, 3_504_872, 53, 3_469_760),
    ],
)
def test_counts(name, num_classes, parameters, layers, weights):
    with on_meta():
        model = build(name, num_classes=num_classes)
    quantizable = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(quantizable) == layers
    assert sum(m.weight.numel() for m in quantizable) == weights


@pytest.mark.parametrize(
    ('name', 'resolution', 'macs'),
    [
        ('mobilenet', 224, 568_740_352),  # paper, table 4: 569M
        ('mobilenetv2', 224, 300_774_272),  # paper, table 4: 300M
        ('mobilenetv3-small', 224, 60_119_520),  # paper: 56M without an expansion in the first block
        ('mobilenetv3-large', 224, 219_799_200),  # paper, table 3: 219M
        ('resnet50', 224, 4_089_184_256),  # torchvision: 4.09G
        ('resnet20', 32, 40_551_040),
    ],
)
def test_macs(name, resolution, macs):
    assert count_macs(name, resolution) == macs


@pytest.mark.parametrize(
    'name',
    ['mobilenet_v2', 'mobilenet_v3_small', 'resnet50', 'resnext50_32x4d', 'vgg11', 'densenet121', 'squeezenet1_1']
    + ['mnasnet1_0', 'shufflenet_v2_x1_0', 'googlenet', 'inception_v3', 'efficientnet_b0', 'alexnet'],
)
def test_macs_equal_those_torchvision_publishes(name):
    published = models.torchvision_weights(name).meta['_ops']  # 10^9, rounded to three places
    assert count_macs(name, models.default_resolution(name)) / 1e9 == pytest.approx(published, abs=1.5e-3)


def test_mobilenet_layer_table():
    expected = [('conv', 3, 32, 112, 3)]
    sides = [112, 56, 56, 28, 28, 14, 14, 14, 14, 14, 14, 7, 7]
    widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    for side, before, after in zip(sides, widths[:-1], widths[1:], strict=True):
        expected += [('dw', before, before, side, 3), ('pw', before, after, side, 1)]
    expected.append(('fc', 1024, 1000, 1, 1))
    assert layer_rows('mobilenet', 224) == expected


@pytest.mark.parametrize('name', ['mobilenetv2', 'mobilenet_v2'])
def test_mobilenetv2_layer_table(name):
    # per block: hidden channels, output channels, sides of its input and output
    blocks = [(32, 16, 112, 112), (96, 24, 112, 56), (144, 24, 56, 56), (144, 32, 56, 28), *[(192, 32, 28, 28)] * 2]
    blocks += [(192, 64, 28, 14), *[(384, 64, 14, 14)] * 3, (384, 96, 14, 14), *[(576, 96, 14, 14)] * 2]
    blocks += [(576, 160, 14, 7), *[(960, 160, 7, 7)] * 2, (960, 320, 7, 7)]
    expected, channels = [('conv', 3, 32, 112, 3)], 32
    for hidden, out, side_in, side_out in blocks:
        if hidden != channels:
            expected.append(('pw', channels, hidden, side_in, 1))
        expected += [('dw', hidden, hidden, side_out, 3), ('pw', hidden, out, side_out, 1)]
        channels = out
    expected += [('pw', 320, 1280, 7, 1), ('fc', 1280, 1000, 1, 1)]
    assert layer_rows(name, 224) == expected


def test_widths_round_up_to_multiples_of_eight():
    with on_meta():
        narrow, wide = (models.create_model('mobilenetv2', width_mult=width) for width in (0.3, 1.4))
        v1 = models.create_model('mobilenet', width_mult=0.25)
        v3 = models.create_model('mobilenetv3', width_mult=0.75)
    # 0.3 * (16, 24, 64, 320) = (4.8, 7.2, 19.2, 96)
    assert [narrow.features[i].conv[-1].num_features for i in (1, 2, 7, 17)] == [8, 8, 24, 96]
    assert (narrow.features[0][0].out_channels, narrow.classifier.in_features) == (32, 1280)  # stem and head stay
    assert (wide.features[0][0].out_channels, wide.classifier.in_features) == (32, 1792)  # the head grows
    assert (v1.conv1[0].out_channels, v1.classifier[0].in_features) == (8, 256)
    # block 9: 0.75 * (288, 96) = (216, 72); gate of 216 // 4 = 54 hidden units, not rounded
    assert (v3.features[9].conv[0].out_channels, v3.features[9].conv[7].out_channels) == (216, 72)
    assert v3.features[9].conv[5].fc[0].out_features == 54


# ------------------------------------------------------------------------------------- structure: keys, modules, order

KEYS = {
    'mobilenet': 'conv1.0.weight features.0.0.weight features.12.3.weight features.12.4.bias classifier.0.weight',
    'mobilenetv2': 'features.0.0.weight features.1.conv.3.weight features.17.conv.6.weight features.18.0.weight '
    'classifier.weight',
    'mobilenetv3-small': 'features.0.0.weight features.1.conv.5.fc.0.weight features.1.conv.5.fc.2.weight '
    'features.11.conv.0.weight features.11.conv.1.bias features.11.conv.3.weight features.11.conv.4.bias '
    'features.11.conv.7.weight features.11.conv.8.bias features.12.0.weight features.12.1.weight features.14.weight '
    'features.14.bias classifier.1.weight classifier.1.bias',
    'mobilenetv3-large': 'features.4.conv.5.fc.2.weight features.15.conv.7.weight features.18.bias classifier.1.bias',
    'resnet20': 'conv1.weight bn1.bias layer1.0.conv1.weight layer3.2.bn2.running_mean linear.weight',
}


@pytest.mark.parametrize('name', OWN)
def test_state_dict_keys(name):
    keys = set(build(name).state_dict())
    assert set(KEYS[name].split()) <= keys
    assert not [key for key in keys for word in ('branch', 'output', 'pool', 'relu', 'shortcut') if word in key]


def test_cifar_resnet_has_exactly_the_keys_of_the_public_checkpoints():
    norm = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    expected = ['conv1.weight', *[f'bn1.{k}' for k in norm]]
    for block in [f'layer{stage}.{i}' for stage in (1, 2, 3) for i in range(3)]:
        for i in (1, 2):
            expected += [f'{block}.conv{i}.weight', *[f'{block}.bn{i}.{k}' for k in norm]]
    assert list(build('resnet20').state_dict()) == [*expected, 'linear.weight', 'linear.bias']


@pytest.mark.parametrize('name', OWN)
def test_every_leaf_module_runs_once_and_layers_run_in_module_order(name):
    """Nothing is shared between two places, nothing happens behind the modules' back, and a strategy's order is the
    order of execution."""
    model = build(name)
    leaves = [key for key, module in model.named_modules() if not list(module.children())]
    executed = [key for key, _, _ in hook_layers(model, 32, types=nn.Module) if key in leaves]
    assert sorted(executed) == sorted(leaves)
    layers = [key for key, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [key for key in executed if key in layers] == layers


@pytest.mark.parametrize('name', OWN)
def test_no_module_works_in_place(name):
    model = build(name)
    assert not [key for key, module in model.named_modules() if getattr(module, 'inplace', False)]
    tensors = []
    for module in model.modules():
        module.register_forward_hook(lambda m, x, y: tensors.append((y, y.clone())))
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(now, then) for now, then in tensors)


def test_activations():
    def kinds(module):
        return [type(m) for m in module.modules() if type(m).__module__ == nn.ReLU.__module__]

    v1 = build('mobilenet')
    assert kinds(v1.conv1) == [nn.ReLU]
    assert kinds(v1.features) == [nn.ReLU6] * 26
    assert kinds(build('mobilenetv2')) == [nn.ReLU6] * (1 + 1 + 16 * 2 + 1)
    assert kinds(build('resnet20')) == [nn.ReLU] * 19


@pytest.mark.parametrize(
    ('name', 'shortcuts'), [('mobilenetv2', 10), ('mobilenetv3-small', 6), ('mobilenetv3-large', 10)]
)
def test_branches_and_sums_have_a_place_for_a_quantizer(name, shortcuts):
    """A module put at `branch` acts before the addition, one at `output` after it."""
    blocks = [m for m in build(name).eval().modules() if hasattr(m, 'branch')]
    residual = [block for block in blocks if block.branch is not None]
    assert len(residual) == shortcuts
    block, channels = residual[0], residual[0].conv[-1].num_features
    x = torch.randn(1, channels, 8, 8)
    branch = block.conv(x)
    block.branch, block.output = nn.Threshold(0.0, -7.0), nn.Hardtanh()
    expected = (x + torch.where(branch > 0, branch, torch.tensor(-7.0))).clamp(-1, 1)
    torch.testing.assert_close(block(x), expected)
