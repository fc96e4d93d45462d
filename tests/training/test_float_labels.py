"""Images without labels: the float network's classes stand in for them."""

import copy

import pytest
import torch
from torch import nn

from lib.data.batches import EpochBatches, Loader
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.float_labels import FloatLabels
from lib.training.loop import evaluate, loss_function
from lib.training.moments import calibration_batches


class Images(Loader):
    """Ten images that differ from epoch to epoch, in batches of 4."""

    labelled = False

    def __init__(self, shuffle=False):
        super().__init__(EpochBatches(10, 4, shuffle=shuffle), (3, 4, 4))
        self.images = torch.randn(10, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def _serve(self, batches):
        for picked in batches:
            yield self.images[picked] + self.batches.epoch, torch.full((len(picked),), -1)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def counted(network):
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize('shuffle', [False, True])
def test_labels_are_the_classes_of_the_network_and_found_once_an_epoch(network, shuffle):
    loader, calls = FloatLabels(Images(shuffle), network, 'cpu'), counted(network)
    for epoch in (0, 7, 0, 7):
        loader.set_epoch(epoch)
        for images, labels in loader:
            assert labels.tolist() == network.eval()(images).argmax(1).tolist()
    assert len(calls) == 6 + 12, 'once for either epoch, and what this test asks for'
    assert (len(loader), loader.num_images, loader.input_shape, loader.labelled) == (3, 10, (3, 4, 4), False)
    assert len(copy.copy(loader)) == 3


def test_accuracy_is_agreement(network):
    loader = FloatLabels(Images(), copy.deepcopy(network), 'cpu')
    assert evaluate(network, loader, loss_function(), 'cpu').top1 == 100
    with torch.no_grad():
        network[0].weight.neg_()
    images = loader.images_alone.images
    agreed = (network.eval()(images).argmax(1) == loader.network(images).argmax(1)).float().mean() * 100
    assert evaluate(network, loader, loss_function(), 'cpu').top1 == pytest.approx(agreed.item())


def test_a_sample_has_the_labels_of_its_images(network):
    loader = FloatLabels(Images(), network, 'cpu')
    list(loader)
    loader.sample(3)
    (images, labels), = loader
    assert labels.tolist() == network(images).argmax(1).tolist()


def test_who_reads_no_labels_asks_for_none(network):
    judge = copy.deepcopy(network)
    loader, calls = FloatLabels(Images(), judge, 'cpu'), counted(judge)
    assert len(torch.cat(calibration_batches(loader, 6))) == 6
    assert reestimate_batch_norm(network, loader, 2, 'cpu') == 2
    assert not calls
