"""Multiply-accumulates of whole networks, against torch's own counter, published numbers and sums by hand."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import models
from lib.network.records import profile_network
from tests.meta import on_meta
from tests.own_models import ZOO


def torchs_macs(net, shape):
    """What torch counts for one image: two operations a multiply-accumulate; it sees attention only as products."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            net.eval()(torch.randn(1, *shape))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize('name', ZOO)
def test_networks_as_users_write_them(name):
    case = ZOO[name]
    net = case.build()
    assert profile_network(net, case.shape).macs == torchs_macs(net, case.shape)


@pytest.mark.parametrize('name', ['vit_b_16', 'swin_t', 'convnext_tiny', 'mobilenet_v3_large', 'shufflenet_v2_x1_0'])
def test_networks_of_torchvision(name):
    """Published in billions, with three digits."""
    with on_meta():
        net = torchvision.models.get_model(name)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta['_ops']
    assert round(profile_network(net, (3, 224, 224)).macs / 1e9, 3) == published


class Functional(nn.Module):
    """Weights of its own, as convolution, on either side of a product, and in a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.right, self.left = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(5, 4))
        self.mixing, self.volume = nn.GRU(4, 7, batch_first=True), nn.Conv3d(1, 2, (1, 3, 3))
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = F.conv2d(x, self.kernel, stride=2)  # (N, 6, 4, 4)
        tokens = x.flatten(2).transpose(1, 2) @ self.right  # (N, 16, 4)
        rows = torch.einsum('of,nlf->nol', self.left, tokens)  # (N, 5, 16)
        tokens = self.mixing(tokens)[0]  # (N, 16, 7)
        return self.head(tokens.mean(1)) + rows.sum(2) + self.volume(x[:, None]).mean()


def test_weights_that_no_layer_has():
    """Kernel 27 x 6 to 16 pixels; 16 positions of 6 x 4 and of 4 x 5; a GRU of 3 (4 + 7) 7 a step; 9 x 2 in 3-d."""
    net = Functional().eval()
    profile = profile_network(net, (3, 9, 9))
    found = {other.record.name: other.record.macs for other in profile.others}
    assert [found[name] for name in ('kernel', 'right', 'left')] == [16 * 162, 16 * 24, 16 * 20]
    assert sum(macs for name, macs in found.items() if name.startswith('mixing')) == 16 * 3 * (4 + 7) * 7
    assert found['volume.weight'] == 9 * 2 * 6 * 2 * 2
    assert profile.macs == sum(found.values()) + 35
    weights = {other.record.name: other.weight for other in profile.others}
    assert weights['left'] is net.left and weights['kernel'] is net.kernel


class Subclasses(nn.Module):
    """Layers with forwards of their own: one adds a product, one cuts its work into parts, one does something else."""

    class LowRank(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x @ self.down @ self.up

    class Chunked(nn.Linear):
        def forward(self, x):
            return torch.cat([F.linear(x, part) for part in self.weight.chunk(2)], -1)

    class Twice(nn.Linear):
        def forward(self, x):
            return F.linear(torch.cat([x, x], 0), self.weight)[:len(x)]

    def __init__(self):
        super().__init__()
        self.low, self.chunked, self.twice = self.LowRank(12, 8), self.Chunked(8, 6), self.Twice(6, 4)
        self.low.down, self.low.up = nn.Parameter(torch.randn(12, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, x):
        return self.twice(self.chunked(self.low(x.flatten(1))))


def test_forwards_of_their_own():
    net = Subclasses()
    profile = profile_network(net, (3, 2, 2))
    assert profile.macs == torchs_macs(net, (3, 2, 2)) == 96 + 24 + 16 + 48 + 2 * 24
    assert {record.name: record.macs for record in profile.layers} == {'low': 96, 'chunked': 48, 'twice': 0}
    assert [other.record.name for other in profile.others] == ['low.down', 'low.up', 'twice.weight']


@pytest.mark.parametrize(('name', 'madds'), [('toynet', 25_601_536), ('mobilenetv2_cifar', 98_645_504),
                                             ('resnet20_projection', 41_214_656)])
def test_madds_of_the_qat_system(name, madds):
    """As its counter (thop) has them: 2 per input of a BatchNorm, and the pooling as the original wrote it."""
    with on_meta():
        profile = profile_network(models.create_model(name, num_classes=10), (3, 32, 32))
    assert profile.macs + profile.extras == madds


def test_madds_of_pools():
    """Adaptive: the additions and a division for each output; fixed: one for each output; largest values: none."""
    net = nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2))
    assert profile_network(net, (3, 16, 16)).extras == 2 * 3 * 256 + 3 * 16 + 3 * 4 * (2 * 2 + 1)


def test_the_fast_path_of_transformers_is_as_it_was():
    net = ZOO['TorchTransformer'].build()
    for fast in (True, False):
        torch.backends.mha.set_fastpath_enabled(fast)
        profile_network(net, (3, 32, 32))
        assert torch.backends.mha.get_fastpath_enabled() is fast
    torch.backends.mha.set_fastpath_enabled(True)
