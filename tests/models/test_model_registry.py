"""The registry: names, errors, quantized twins, and that every float network can be built."""

import importlib
import sys

import pytest
import torch
import torchvision.models
from torch import nn

import models
from models.registry import REGISTRY
from tests.meta import NoInitialValues, on_meta

TORCHVISION = torchvision.models.list_models(module=torchvision.models)


class ParametersOnMeta(NoInitialValues):
    """Creates parameters on the meta device and leaves arithmetic alone: RegNets compute their widths with tensors."""

    CREATORS = {torch.empty, torch.zeros, torch.ones}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = {**(kwargs or {}), 'device': 'meta'} if func in self.CREATORS else (kwargs or {})
        return super().__torch_function__(func, types, args, kwargs)


@pytest.fixture
def registry():
    """Lets a test register names and takes them back afterwards."""
    before = dict(REGISTRY)
    yield REGISTRY
    REGISTRY.clear()
    REGISTRY.update(before)


@pytest.mark.parametrize('name', models.list_models(quantized=False))
def test_every_float_model_builds_with_the_asked_number_of_classes(name):
    with ParametersOnMeta():
        model = models.create_model(name, num_classes=7)
    assert all(parameter.is_meta for parameter in model.parameters())
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 7]
    heads += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels == 7]  # SqueezeNet
    assert len(heads) == 1  # one head: no auxiliary ones


@pytest.mark.parametrize('name', list(REGISTRY))
def test_own_models_build_under_the_meta_device(name):
    with on_meta():
        model = models.create_model(name)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_names_are_those_of_torchvision_ours_and_their_twins():
    own = {'mobilenet', 'mobilenetv2', 'mobilenetv3', 'mobilenet_v3', 'resnet20', 'resnet32', 'resnet44', 'resnet56',
           'mobilenetv2_cifar', 'resnet20_projection', 'toynet', 'hybrid_cnn', 'densenet40', 'postresnet18',
           'premobilenetv2', 'premobilenetv2_imagenet', *(f'prevgg{depth}' for depth in (11, 16, 19)),
           *(f'preresnet{depth}' for depth in (20, 32, 56, 110, 18, 34, 50, 101, 152)),
           *(f'preresnet{depth}_cifar' for depth in (18, 34, 50))}
    floats = models.list_models(quantized=False)
    assert set(REGISTRY) == own
    assert floats == sorted(own | set(TORCHVISION))
    assert len(floats) == len(own) + len(TORCHVISION)  # no name of ours hides one of torchvision's
    assert not [name for name in floats if name.startswith('q')]
    assert models.list_models() == sorted(floats + ['q' + name for name in floats])


def test_own_names_and_torchvision_names_give_the_respective_network():
    with on_meta():
        haq, torchvisions = models.create_model('mobilenetv2'), models.create_model('mobilenet_v2')
        assert type(models.create_model('mobilenet_v3')) is type(models.create_model('mobilenetv3'))
    assert isinstance(haq.classifier, nn.Linear)
    assert [type(m) for m in torchvisions.classifier] == [nn.Dropout, nn.Linear]


def test_a_twin_is_the_converted_float_model():
    seen = []

    def convert(model):
        seen.append(model)
        return nn.Sequential(model)

    twin = models.create_model('qresnet20', convert=convert, num_classes=3)
    assert twin[0] is seen[0]
    assert seen[0].linear.out_features == 3
    models.create_model('resnet20', convert=convert)
    assert len(seen) == 1  # a float name is not converted


def test_a_twin_without_convert_is_refused():
    with pytest.raises(ValueError, match="'qmobilenetv2'.*convert=.*'mobilenetv2'"):
        models.create_model('qmobilenetv2')


@pytest.mark.parametrize(
    ('name', 'near'),
    [
        ('mobilenetv22', 'mobilenetv2'),
        ('resnet5O', 'resnet50'),
        ('qmobilnet_v2', 'qmobilenet_v2'),
        ('Resnet18', 'resnet18'),
    ],
)
@pytest.mark.parametrize('ask', [models.create_model, models.default_resolution, models.torchvision_weights])
def test_an_unknown_name_lists_near_names_and_all_own_ones(ask, name, near):
    with pytest.raises(ValueError, match=f"unknown model '{name}'; did you mean [^?]*{near}") as error:
        ask(name)
    assert ', '.join(REGISTRY) in str(error.value)


def test_a_name_near_to_nothing_still_lists_the_own_names():
    with pytest.raises(ValueError, match=r"unknown model 'zzzz'\. Our own are densenet40, hybrid_cnn, mobilenet, "):
        models.create_model('zzzz')


@pytest.mark.parametrize('name', ['qqresnet20', 'q', ''])
def test_degenerate_names_are_unknown(name):
    with pytest.raises(ValueError, match='unknown model'):
        models.create_model(name, convert=nn.Identity)


def test_a_new_name_is_registered_once(registry):
    @models.register('tiny', 'tiny_alias', resolution=8)
    def tiny(num_classes=10):
        return nn.Linear(4, num_classes)

    assert models.create_model('tiny_alias', num_classes=5).out_features == 5
    assert models.default_resolution('qtiny') == 8
    for taken in ('tiny', 'mobilenet', 'quick'):
        with pytest.raises(ValueError, match=f"cannot register '{taken}'"):
            models.register('new', taken)(tiny)
    assert 'new' not in registry
    assert registry['tiny'].build is tiny


@pytest.mark.parametrize('name', ['resnet20', 'resnet50', 'convnext_tiny', 'qvit_b_16'])
def test_a_width_is_refused_where_there_is_none(name):
    with pytest.raises(ValueError, match='no width multiplier, width_mult=0.5 was given'):
        models.create_model(name, width_mult=0.5, convert=nn.Identity)


@pytest.mark.parametrize('name', ['mobilenet', 'mobilenetv2', 'mobilenetv3', 'premobilenetv2', 'mobilenet_v2',
                                  'mobilenet_v3_large'])
def test_a_width_is_passed_on_where_there_is_one(name):
    def weights(width):
        return sum(p.numel() for p in models.create_model(name, width_mult=width).parameters())

    with on_meta():
        assert weights(0.5) < 0.7 * weights(1.0)
        assert weights(1.5) > 1.4 * weights(1.0)
        with pytest.raises(ValueError, match='positive'):
            weights(-1)


@pytest.mark.parametrize(
    ('name', 'option'),
    [
        ('mobilenetv2', {'n_class': 10}),
        ('resnet20', {'mode': 'small'}),
        ('resnet50', {'pretrained': True}),
        ('resnet50', {'weights': 'DEFAULT'}),
        ('convnext_tiny', {'drop': 0.1}),  # torchvision's class would swallow it
        ('mobilenet_v3_small', {'drop': 0.1}),
    ],
)
def test_an_unknown_option_is_refused(name, option):
    with pytest.raises(ValueError, match=f'{name} does not know the option {next(iter(option))}; it knows '):
        models.create_model(name, **option)


def test_known_options_arrive():
    with on_meta():
        assert models.create_model('vit_b_32', image_size=64, num_classes=2).image_size == 64
        assert models.create_model('mobilenetv3', dropout=0.5).classifier[0].p == 0.5
    with pytest.raises(ValueError, match="no mode 'medium'.*large, small"):
        models.create_model('mobilenetv3', mode='medium')


def test_default_resolutions():
    sizes = {name: models.default_resolution(name) for name in models.list_models()}
    assert {name for name, size in sizes.items() if size == 299} == {'inception_v3', 'qinception_v3'}
    small = ('resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet20_projection', 'toynet', 'mobilenetv2_cifar',
             'hybrid_cnn', 'densenet40', 'premobilenetv2', *(f'preresnet{depth}' for depth in (20, 32, 56, 110)),
             *(f'preresnet{depth}_cifar' for depth in (18, 34, 50)))
    cifar = {q + name for q in ('', 'q') for name in small}
    assert {name for name, size in sizes.items() if size == 32} == cifar
    assert set(sizes.values()) == {32, 224, 299}


def test_torchvision_weights():
    weights = torchvision.models.ResNet50_Weights
    assert models.torchvision_weights('resnet50') is weights.DEFAULT
    assert models.torchvision_weights('qresnet50', 'IMAGENET1K_V1') is weights.IMAGENET1K_V1
    assert models.torchvision_weights('mobilenetv2') is None
    with pytest.raises(ValueError, match="resnet50 has no weights 'V3'.*IMAGENET1K_V1, IMAGENET1K_V2"):
        models.torchvision_weights('resnet50', 'V3')


def test_own_models_do_not_import_torchvision(monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] in ('models', 'torchvision')]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module('models').create_model('qresnet20', convert=id)
    assert 'models.resnet_cifar' in sys.modules and 'torchvision' not in sys.modules
