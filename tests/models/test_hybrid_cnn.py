"""The network of the hybrid system, whose blocks are a list: golden numbers, other shapes, messages."""

import pytest
import torch
from torch import nn

import models
from lib.network.records import profile_layers


def test_counts():
    """Those of ResNet-20 with projection shortcuts, and 784 biases of convolutions."""
    model = models.create_model('hybrid_cnn', num_classes=10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 272_474 + 784 == 273_258
    assert sum(record.macs for record in profile_layers(model, (3, 32, 32))) == 40_813_184


def test_it_takes_other_blocks_kernels_and_images():
    model = models.create_model('hybrid_cnn', num_classes=7, blocks=[[8, 16, 1], [16, 32, 2]], kernel_size=5,
                                bottleneck_type=True, in_channels=1)
    assert model(torch.randn(2, 1, 12, 12)).shape == (2, 7)
    assert model.blocks[1].conv2.kernel_size == (5, 5) and model.blocks[1].conv2.in_channels == 8
    assert [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)] == [
        'relu0', *(f'blocks.{i}.relu{j}' for i in (0, 1) for j in (1, 2, 3))]


@pytest.mark.parametrize(('options', 'message'), [
    ({'blocks': []}, 'expected a list of'), ({'blocks': [[8, 8]]}, r'block 0 is \[8, 8\]'),
    ({'blocks': [[8, 8, 1], [16, 16, 1]]}, 'block 1 takes 16 channels, block 0 gives 8'),
    ({'blocks': [[8, 6, 1]], 'bottleneck_type': True}, 'a multiple of 4'), ({'kernel_size': 4}, 'an odd number'),
])
def test_it_refuses_what_makes_no_network(options, message):
    with pytest.raises(ValueError, match=message):
        models.create_model('hybrid_cnn', **options)
