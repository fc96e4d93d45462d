"""The Fisher diagonal against the gradient of every image, and K-means that is weighted by it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.network.gradients import fisher_diagonal
from lib.quantize.kmeans import fit_codebook
from lib.utils.quantize_utils import KMeansQuantization, quantizable_layers
from tests.env.environments import kmeans_env
from tests.tiny import TinyLoader, TinyNet


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = TinyNet()
    net.stem.weight.requires_grad_(False)
    return net


def plain(net, images, labels):
    """{name: mean over the images of the squared gradient}."""
    net, sums = copy.deepcopy(net).requires_grad_(True).eval(), {}
    for image, label in zip(images, labels, strict=True):
        net.zero_grad()
        F.cross_entropy(net(image[None]), label[None]).backward()
        for name, layer in quantizable_layers(net).items():
            sums[name] = sums.get(name, 0) + layer.weight.grad ** 2
    return {name: total / len(images) for name, total in sums.items()}


@pytest.mark.parametrize('count', [16, 20, 48])
def test_it_is_the_mean_squared_gradient_of_the_first_images(net, count):
    loader, before = TinyLoader(), copy.deepcopy(net.state_dict())
    images, labels = (torch.cat(parts)[:count] for parts in zip(*loader, strict=True))
    found = fisher_diagonal(net, quantizable_layers(net), loader, count)
    for name, expected in plain(net, images, labels).items():
        torch.testing.assert_close(found[name], expected)
    assert net.training and not net.stem.weight.requires_grad and net.head.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_that_takes_no_single_image_is_named(net):
    squeezing = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Flatten(0))
    with pytest.raises(ValueError, match='gradient of each image'):
        fisher_diagonal(squeezing, {'1': squeezing[1]}, TinyLoader(), 4)


def test_clusters_are_weighted_by_it(net):
    loaders = TinyLoader(), TinyLoader(seed=1)
    importance = fisher_diagonal(net, quantizable_layers(net), loaders[0], 48)
    expected = {name: fit_codebook(layer.weight, 2, importance=importance[name]).decode()
                for name, layer in quantizable_layers(net).items()}
    assert not torch.equal(expected['head'], fit_codebook(net.head.weight, 2).decode())
    env = kmeans_env(copy.deepcopy(net), loaders, kmeans_weights='fisher', finetune_flag=False)
    env.quantize([2] * 4)
    KMeansQuantization(net, [2] * 4, importance=importance, max_iter=3)
    for name, weight in expected.items():
        assert torch.equal(quantizable_layers(net)[name].weight, weight)
        assert torch.equal(env.layers()[name].weight, weight)
    assert env.describe_quantizers()['kmeans_weights'] == 'fisher'
