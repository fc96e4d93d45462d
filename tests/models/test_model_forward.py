"""Forward passes: against independent re-computations, and that one network of each family trains or runs."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.models
from torch import nn

import models

OWN = [
    ('mobilenet', {}),
    ('mobilenetv2', {}),
    ('mobilenetv3', {'mode': 'small'}),
    ('mobilenetv3', {'mode': 'large'}),
    ('resnet20', {}),
]


def randomise(model):
    """Weights and batch-norm statistics that leave no layer trivial and no activation dead."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if 'running_var' in name or (tensor.dim() == 1 and name.endswith('weight')):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.dim() == 1:
            tensor.normal_(generator=generator)
        elif tensor.dim() > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
    return model.eval()


def random_images(side=32):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def agree(model, images, expected):
    assert expected.std() > 0.01  # else anything agrees
    with torch.no_grad():
        torch.testing.assert_close(model(images), expected)


class Functional:
    """Convolution and batch norm straight from a state dict."""

    def __init__(self, model):
        self.state = model.state_dict()

    def conv(self, x, key, stride=1, norm=None, bias=None, depthwise=False):
        weight = self.state[key + '.weight']
        x = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=len(weight) if depthwise else 1)
        if norm is None:
            return x
        weight, bias, mean, var = (self.state[f'{norm}.{k}'] for k in ('weight', 'bias', 'running_mean', 'running_var'))
        return F.batch_norm(x, mean, var, weight, bias)


def test_mobilenetv2_computes_what_torchvisions_does():
    ours, theirs = randomise(models.create_model('mobilenetv2')), models.create_model('mobilenet_v2').eval()
    state = dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    agree(ours, random_images(64), theirs(random_images(64)))


def test_mobilenet_forward():
    model = randomise(models.create_model('mobilenet', num_classes=10))
    f = Functional(model)
    x = F.relu(f.conv(random_images(), 'conv1.0', 2, 'conv1.1'))
    for i in range(13):
        stride = 2 if i in (1, 3, 5, 11) else 1
        x = F.relu6(f.conv(x, f'features.{i}.0', stride, f'features.{i}.1', depthwise=True))
        x = F.relu6(f.conv(x, f'features.{i}.3', 1, f'features.{i}.4'))
    expected = F.linear(x.mean((2, 3)), f.state['classifier.0.weight'], f.state['classifier.0.bias'])
    agree(model, random_images(), expected)


def test_cifar_resnet_forward():
    model = randomise(models.create_model('resnet20', num_classes=10))
    f = Functional(model)
    x = F.relu(f.conv(random_images(), 'conv1', 1, 'bn1'))
    for stage in (1, 2, 3):
        for i in range(3):
            block, stride = f'layer{stage}.{i}', 2 if stage > 1 and i == 0 else 1
            y = F.relu(f.conv(x, f'{block}.conv1', stride, f'{block}.bn1'))
            y = f.conv(y, f'{block}.conv2', 1, f'{block}.bn2')
            if stride == 2:  # option A: channels // 2 zeros before and behind
                zeros = torch.zeros_like(y[:, : y.shape[1] // 4])
                x = torch.cat([zeros, F.max_pool2d(x, 1, 2), zeros], dim=1)
            x = F.relu(x + y)
    expected = F.linear(x.mean((2, 3)), f.state['linear.weight'], f.state['linear.bias'])
    agree(model, random_images(), expected)


# strides, squeeze-and-excitation and the first block with h-swish, from tables 1 and 2 of the paper
V3_STRIDES = {'small': [2, 2, 1, 2, 1, 1, 1, 1, 2, 1, 1], 'large': [1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]}
V3_EXCITED = {'small': {1, 4, 5, 6, 7, 8, 9, 10, 11}, 'large': {4, 5, 6, 11, 12, 13, 14, 15}}
V3_FIRST_SWISH = {'small': 4, 'large': 7}


@pytest.mark.parametrize('mode', ['small', 'large'])
def test_mobilenetv3_forward(mode):
    model = randomise(models.create_model('mobilenetv3', mode=mode, num_classes=10))
    f = Functional(model)

    def swish(x):
        return x * F.relu6(x + 3) / 6

    x = swish(f.conv(random_images(64), 'features.0.0', 2, 'features.0.1'))
    for i, stride in enumerate(V3_STRIDES[mode], start=1):
        key, act = f'features.{i}.conv', swish if i >= V3_FIRST_SWISH[mode] else F.relu
        y = act(f.conv(x, f'{key}.0', 1, f'{key}.1'))
        y = f.conv(y, f'{key}.3', stride, f'{key}.4', depthwise=True)
        if i in V3_EXCITED[mode]:
            gate = F.relu(y.mean((2, 3)) @ f.state[f'{key}.5.fc.0.weight'].T) @ f.state[f'{key}.5.fc.2.weight'].T
            y = y * (F.relu6(gate + 3) / 6)[:, :, None, None]
        y = f.conv(act(y), f'{key}.7', 1, f'{key}.8')
        x = x + y if x.shape == y.shape else y
    last = len(V3_STRIDES[mode]) + 1
    x = swish(f.conv(x, f'features.{last}.0', 1, f'features.{last}.1')).mean((2, 3), keepdim=True)
    x = swish(f.conv(x, f'features.{last + 2}', bias=f.state[f'features.{last + 2}.bias'])).flatten(1)
    expected = F.linear(x, f.state['classifier.1.weight'], f.state['classifier.1.bias'])
    agree(model, random_images(64), expected)


@pytest.mark.parametrize(('name', 'options'), OWN)
def test_own_models_train(name, options):
    model = models.create_model(name, num_classes=5, **options).train()
    loss = F.cross_entropy(model(random_images()), torch.tensor([1, 3]))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.state_dict()[next(k for k in model.state_dict() if 'running_mean' in k)].abs().sum() > 0


@pytest.mark.parametrize(('name', 'options'), OWN)
def test_initial_weights(name, options):
    model = models.create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.eq(1).all()
        if isinstance(module, nn.Linear) and module.weight.numel() > 2000:
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
        if getattr(module, 'bias', None) is not None:
            assert module.bias.eq(0).all()


# the smallest member of each torchvision family, a side in pixels it can take and options it needs for that
SMALL = [
    ('alexnet', 63, {}),
    ('convnext_tiny', 32, {}),
    ('densenet121', 32, {}),
    ('efficientnet_b0', 32, {}),
    ('efficientnet_v2_s', 32, {}),
    ('googlenet', 32, {}),
    ('inception_v3', 75, {}),
    ('maxvit_t', 224, {}),
    ('mnasnet0_5', 32, {}),
    ('mobilenet_v2', 32, {}),
    ('mobilenet_v3_small', 32, {}),
    ('regnet_y_400mf', 32, {}),
    ('resnet18', 32, {}),
    ('resnext50_32x4d', 32, {}),
    ('shufflenet_v2_x0_5', 32, {}),
    ('squeezenet1_1', 32, {}),
    ('swin_t', 32, {}),
    ('swin_v2_t', 32, {}),
    ('vgg11', 32, {'init_weights': False}),
    ('vit_b_32', 32, {'image_size': 32}),
]


@pytest.mark.parametrize(('name', 'side', 'options'), SMALL)
def test_one_torchvision_model_of_each_family_runs(name, side, options):
    model = models.create_model(name, num_classes=7, **options).eval()
    with torch.no_grad():
        logits = model(random_images(side))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_every_torchvision_family_is_in_the_list_above():
    def module(name):
        return torchvision.models.get_model_builder(name).__module__

    names = set(torchvision.models.list_models(module=torchvision.models))
    assert {module(name) for name, _, _ in SMALL} == {module(name) for name in names}
