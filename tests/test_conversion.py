"""Every family of networks becomes a quantized twin: the layers, their signs, and a forward pass with bits."""

import pytest
import torch

import models
from lib.utils.quantize_utils import (
    LinearQuantization,
    convert_to_quantized,
    quantizable_layers,
    quantized_layers,
)
from tests.meta import on_meta

# network: (convolutions and linear layers, those of them that the linear flow quantizes)
FAMILIES = {'mobilenet': (28, 28), 'mobilenetv2': (53, 53), 'mobilenetv3': (55, 55), 'resnet20': (20, 20),
            'preresnet20': (20, 20), 'preresnet50': (54, 54), 'preresnet18_cifar': (21, 21), 'postresnet18': (21, 21),
            'densenet40': (40, 40), 'prevgg19': (19, 19), 'premobilenetv2': (53, 53),
            'resnet18': (21, 21), 'alexnet': (8, 8), 'vgg11': (11, 11), 'densenet121': (121, 121),
            'squeezenet1_0': (26, 26), 'googlenet': (58, 58), 'inception_v3': (95, 95), 'mnasnet0_5': (53, 53),
            'shufflenet_v2_x0_5': (57, 57), 'mobilenet_v2': (53, 53), 'mobilenet_v3_small': (54, 54),
            'efficientnet_b0': (82, 82), 'convnext_tiny': (59, 59), 'vit_b_16': (50, 50)}


@pytest.mark.parametrize('name', FAMILIES)
def test_families_convert_on_the_meta_device(name):
    with on_meta():
        side = models.default_resolution(name)
        probe = torch.empty(2, 3, side, side)
        net = models.create_model('q' + name, convert=lambda net: convert_to_quantized(net, probe))
    assert (len(quantizable_layers(net)), len(quantized_layers(net))) == FAMILIES[name]


def test_signed_inputs_of_mobilenetv2():
    with on_meta():
        net = convert_to_quantized(models.create_model('mobilenetv2'), torch.empty(2, 3, 224, 224))
    unsigned = [m.input_quantizer.signed is False for m in quantized_layers(net).values()]
    # conv1; dw, pw; 16 blocks of expand (a linear bottleneck goes in), dw, pw; last 1x1 (the same); classifier
    assert unsigned == [False, True, True, *[False, True, True] * 16, False, True]


@pytest.mark.parametrize(('name', 'side'), [('mobilenetv2', 32), ('mobilenetv3', 32), ('resnet20', 32),
                                            ('preresnet20', 32), ('shufflenet_v2_x0_5', 64)])
def test_twins_run_quantized_and_more_bits_come_closer(name, side):
    torch.manual_seed(0)
    images = torch.randn(4, 3, side, side)
    net = models.create_model(name, num_classes=10).eval()
    with torch.no_grad():
        for _ in range(3):  # BatchNorm with statistics of its own, or untrained networks die out
            net.train()(images)
        expected = net.eval()(images)
        convert_to_quantized(net, images)
        errors = []
        for bits in (3, 8):
            LinearQuantization(net, [[bits, bits]] * len(quantized_layers(net)), images, method='max')
            errors.append(float((net(images) - expected).norm() / expected.norm()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.25
