"""Folding of whole networks: the same output, and nothing folded that may not be."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lib.network.batch_norm_folding import examine_batch_norms, fold_batch_norms, foldable_batch_norms
from lib.network.hooks import batch_norms
from lib.quantize.layers import calibrating
from lib.utils.quantize_utils import convert_to_quantized, quantized_layers
from models.mobilenetv3 import MobileNetV3
from models.resnet_cifar import CifarResNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def with_statistics(net, images):
    """The network with the statistics of its activations, and affine parameters that matter, in training mode."""
    for norm in batch_norms(net).values():
        norm.momentum = None
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.2)
    with torch.no_grad():
        net.train()(images)
    return net


@torch.no_grad()
def fold_and_compare(net, images):
    """Folds a network and checks that its output stays the same, to 1e-5 of its largest value, 1e-10 in float64."""
    tolerance = 1e-10 if images.dtype == torch.float64 else 1e-5
    expected = net.eval()(images)
    expected = expected.clone() if isinstance(expected, torch.Tensor) else [tensor.clone() for tensor in expected]
    pairs = fold_batch_norms(net.train(), images[:2])
    assert all(module.training for module in net.modules())
    output = net.eval()(images)
    scale = max(tensor.abs().max().item() for tensor in expected)
    for a, b in zip(output, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)
    return pairs


TORCHVISION = {
    'resnet18': (20, 0),
    'mobilenet_v2': (52, 0),
    'densenet121': (59, 62),  # of each dense layer norm2 follows conv1, norm1 does not follow a convolution
}


@pytest.mark.parametrize('name', TORCHVISION)
def test_torchvision(name):
    net, images = torchvision.models.get_model(name, num_classes=10).double(), torch.randn(4, 3, 32, 32).double()
    fresh = copy.deepcopy(net)  # in float32 a random MobileNetV2 itself is 3e-5 from its float64 output
    pairs = fold_and_compare(with_statistics(net, images), images)
    assert (len(pairs), len(batch_norms(net))) == TORCHVISION[name]
    rebuilt = fresh.to('meta')
    assert fold_batch_norms(rebuilt, images[:1].to('meta')) == pairs
    rebuilt.to_empty(device='cpu').load_state_dict(net.state_dict(), strict=True)
    assert torch.equal(rebuilt.eval()(images), net(images))


def test_resnet18_agrees_with_torch():
    net, images = torchvision.models.resnet18(num_classes=10), torch.randn(2, 3, 32, 32)
    original = copy.deepcopy(with_statistics(net, images)).eval()
    pairs = fold_batch_norms(net, images)
    assert pairs[:3] == [('conv1', 'bn1'), ('layer1.0.conv1', 'layer1.0.bn1'), ('layer1.0.conv2', 'layer1.0.bn2')]
    assert ('layer2.0.downsample.0', 'layer2.0.downsample.1') in pairs
    for conv, norm in pairs:
        expected = fuse_conv_bn_eval(original.get_submodule(conv), original.get_submodule(norm))
        own = net.get_submodule(conv)
        torch.testing.assert_close(own.weight, expected.weight)
        torch.testing.assert_close(own.bias, expected.bias)
        assert type(net.get_submodule(norm)) is nn.Identity


@pytest.mark.parametrize('make, count', [(lambda: CifarResNet(3), 19), (lambda: MobileNetV3(num_classes=10), 35)])
def test_own_networks(make, count):
    images = torch.randn(4, 3, 32, 32)
    net = with_statistics(make(), images)
    assert len(fold_and_compare(net, images)) == count and not batch_norms(net)


def test_converted_networks_fold_alike():
    images = torch.randn(4, 3, 32, 32)
    net = with_statistics(CifarResNet(3), images)
    converted = convert_to_quantized(copy.deepcopy(net), images[:2])
    assert fold_and_compare(converted, images) == fold_and_compare(net, images)
    late = convert_to_quantized(net, images[:2]).state_dict()
    assert all(torch.equal(value, late[key]) for key, value in converted.state_dict().items() if 'signed' not in key)
    for layer in quantized_layers(converted).values():
        layer.w_bit, layer.a_bit = 4, 4
    with calibrating(converted, method='max'):
        converted(images)
    layer = converted.layer1[0].conv1
    assert layer.weight_quantizer.range == layer.weight.abs().max()  # of the folded weight


class Passing(torch.autograd.Function):
    """An operation that no TorchFunctionMode sees."""

    @staticmethod
    def forward(ctx, x):
        return x * 2


class Own(nn.Module):
    """Convolutions `c` and BatchNorms `n`, used as a function of (net, x) says."""

    def __init__(self, course, kinds=(nn.Conv2d, nn.BatchNorm2d)):
        super().__init__()
        conv, norm = kinds
        self.c = nn.ModuleList(conv(4, 4, 1) for _ in range(2))
        self.n = nn.ModuleList(norm(4) for _ in range(2))
        self.act, self.drop, self.course, self.kept = nn.ReLU(inplace=True), nn.Dropout(), course, None

    def forward(self, x):
        return self.course(self, x)


def inplace_residual(net, x):
    y = net.act(net.n[0](net.c[0](x)))
    z = net.n[1](net.c[1](y))
    z += y
    return net.act(z)


def through_identity(net, x):
    y = net.n[0](input=nn.Identity()(net.c[0](x)))
    return y if y.shape[1] == 1 else net.n[1](net.c[1](y))


def after_views(net, x):
    return net.n[1](net.c[1](net.n[0](net.c[0](x)).flip(2).contiguous())).flatten(1)


def data_of_last_output_dies(net, x):
    for conv, norm in zip(net.c, net.n, strict=True):  # ids and memory of dead tensors are used again
        x = torch.relu(norm(conv(x)))
    return x


def branch(net, x):
    y = net.c[0](x)
    return net.n[0](y) + y


def two_norms(net, x):
    y = net.c[0](x)
    return net.n[0](y) + net.n[1](y)


def returned_too(net, x):
    y = net.c[0](x)
    return net.n[0](y), y


def remembered(net, x):
    net.kept = net.c[0](x)
    return net.n[0](net.kept)


def next_layer_too(net, x):
    y = net.c[0](x)
    return net.n[0](y) + net.c[1](y)


def inplace_before(net, x):
    return net.n[0](net.c[0](x).relu_())


def inplace_later(net, x):
    y = net.c[0](x)
    z = net.n[0](y)
    return z + y.relu_()


def view_before(net, x):
    return net.n[0](net.c[0](x)[:, :, ::2])


def data_of(net, x):
    y = net.c[0](x)
    return net.n[0](y) + y.data


def custom_function(net, x):
    y = net.c[0](x)
    return net.n[0](y) + Passing.apply(y)


def concatenated(net, x):
    y = net.c[0](x)
    return torch.cat([net.n[0](y), y], 1)


def shared_norm(net, x):
    return net.n[0](net.c[0](x)) + net.n[0](net.c[1](x))


def conv_twice(net, x):
    return net.n[1](net.c[0](torch.relu(net.n[0](net.c[0](x)))))


def conv_twice_once_without(net, x):
    return net.c[0](net.n[0](net.c[0](x)))


def after_addition(net, x):
    return net.n[0](net.c[0](x) + x)


def before_conv(net, x):
    return net.c[0](net.n[0](x))


def functional(net, x):
    n = net.n[0]
    return F.batch_norm(net.c[0](x), n.running_mean, n.running_var, n.weight, n.bias)


def weight_elsewhere(net, x):
    return net.n[0](net.c[0](x)) + F.conv2d(x, net.c[0].weight)


def batch_norm_of_itself(net, x):
    return net.n[0](net.n[1](net.c[0](x)))


COURSES = {
    inplace_residual: [(0, 0), (1, 1)], through_identity: [(0, 0), (1, 1)], after_views: [(0, 0), (1, 1)],
    data_of_last_output_dies: [(0, 0), (1, 1)], batch_norm_of_itself: [(0, 1)], branch: [], two_norms: [],
    returned_too: [], remembered: [], next_layer_too: [], inplace_before: [], inplace_later: [], view_before: [],
    data_of: [], custom_function: [], concatenated: [], shared_norm: [], conv_twice: [], conv_twice_once_without: [],
    after_addition: [], before_conv: [], functional: [], weight_elsewhere: [],
}  # fmt: skip


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('course', COURSES, ids=lambda course: course.__name__)
def test_what_may_be_folded(course):
    images = torch.randn(5, 4, 6, 6)
    net = with_statistics(Own(course), images)
    state = copy.deepcopy(net.state_dict())
    net.kept = None
    expected = [(f'c.{conv}', f'n.{norm}') for conv, norm in COURSES[course]]
    assert foldable_batch_norms(net, images) == expected
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not any(hasattr(p, '_consumers') for p in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    net.kept = None
    assert fold_and_compare(net, images) == expected


def test_marks_leave_no_trace_after_an_error():
    net = Own(lambda net, x: net.n[0](net.c[0](x)) + torch.zeros(77))
    with pytest.raises(RuntimeError):
        fold_batch_norms(net, torch.randn(2, 4, 6, 6))
    assert net.training and not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert not any(hasattr(p, '_consumers') for p in net.parameters())


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Renamed(nn.Conv2d):
    """A subclass with the forward of its base."""


def straight(net, x):
    return net.n[0](net.c[0](x))


def test_layers_with_a_forward_of_their_own():
    images = torch.randn(5, 4, 6, 6)
    assert not fold_and_compare(with_statistics(Own(straight, (Doubled, nn.BatchNorm2d)), images), images)
    assert fold_and_compare(with_statistics(Own(straight, (Renamed, nn.SyncBatchNorm)), images), images)
    net = with_statistics(Own(straight), images)
    net.c[0].forward = lambda x: F.conv2d(x, net.c[0].weight).sin()
    assert not fold_and_compare(net, images)
    net = with_statistics(Own(straight), images)
    net.c[0].register_forward_hook(lambda module, args, output: output.sin())
    assert not fold_and_compare(net, images)
    net = with_statistics(Own(straight), images)
    parametrizations.weight_norm(net.c[0])
    assert not fold_and_compare(net, images)
    net = with_statistics(Own(lambda net, x: straight(net, x) + net.c[1](x)), images)
    net.c[1].weight = net.c[0].weight
    assert not fold_and_compare(net, images)


def test_linear_layers_and_their_dimensions():
    kinds = (lambda *sizes: nn.Linear(*sizes[:2], bias=False), nn.BatchNorm1d)
    images = torch.randn(9, 4)
    assert fold_and_compare(with_statistics(Own(straight, kinds), images), images) == [('c.0', 'n.0')]
    rows = torch.randn(9, 4, 4)  # here BatchNorm1d normalises the rows, not the features
    assert fold_and_compare(with_statistics(Own(straight, kinds), rows), rows) == []
    kinds = (nn.Conv1d, nn.BatchNorm1d)
    unbatched = torch.randn(4, 4)  # (channels, length), which BatchNorm1d takes for (N, channels)
    assert fold_batch_norms(with_statistics(Own(straight, kinds), unbatched), unbatched) == []


def test_transposed_convolutions_and_norms_without_statistics():
    images = torch.randn(3, 4, 6, 6)
    kinds = (lambda *sizes: nn.ConvTranspose2d(4, 4, 3, groups=2), lambda size: nn.BatchNorm2d(size, affine=False))
    assert fold_and_compare(with_statistics(Own(straight, kinds), images), images) == []
    kinds = (nn.Conv2d, lambda size: nn.BatchNorm2d(size, track_running_stats=False))
    assert fold_batch_norms(Own(straight, kinds), images) == []


def test_modules_with_several_names():
    images = torch.randn(5, 4, 6, 6)
    net = with_statistics(Own(straight), images)
    net.alias, net.norm_alias, net.n[1] = net.c[0], net.n[0], net.n[0]
    assert fold_and_compare(net, images) == [('c.0', 'n.0')]
    assert net.alias is net.c[0] and type(net.n[0]) is nn.Identity
    assert net.norm_alias is net.n[0] and net.n[1] is net.n[0]


def test_the_mode_stays():
    images = torch.randn(5, 4, 6, 6)
    net = with_statistics(Own(straight), images).eval()
    net.n[1].train()
    fold_batch_norms(net, images)
    assert [name for name, module in net.named_modules() if module.training] == ['n.1']


def test_a_network_without_batch_norm():
    assert fold_batch_norms(nn.Sequential(nn.Conv2d(4, 4, 1)), torch.randn(1, 4, 3, 3)) == []


# ---- BatchNorms and layers with a forward of their own, and why one stays


class Fused(nn.BatchNorm2d):
    """A BatchNorm with its activation, as in timm."""

    def __init__(self, channels, act=nn.PReLU):
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(), act()

    def forward(self, x):
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(y))


class Squared(Fused):
    def forward(self, x):
        return super().forward(x).square()


class Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 1, 0)), self.weight, self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def dropped(net, x):
    return nn.Identity()(net.n[0](F.dropout2d(net.drop(net.c[0](x)), 0.5, net.training)))


def flattened(net, x):
    y = net.c[0](x)
    return net.n[0](y.flatten(0, 1)).reshape_as(y)


def wrongly_flattened(net, x):
    return net.n[0](net.c[0](x).flatten(0, 2))


def not_at_all(net, x):
    return net.c[0](x)


def half(size):
    return nn.BatchNorm2d(size, track_running_stats=False)


@pytest.mark.parametrize(('kinds', 'course', 'reason'), [
    ((nn.Conv2d, Fused), straight, None),
    ((Same, Fused), dropped, None),
    ((nn.Conv2d, nn.BatchNorm2d), dropped, None),
    ((lambda *sizes: nn.Linear(4, 4), nn.BatchNorm1d), flattened, None),
    ((nn.Conv2d, Squared), straight, 'has a forward of its own that computes something else'),
    ((Standardised, nn.BatchNorm2d), straight, 'follows c.0, which computes another weight from its Parameter'),
    ((lambda *sizes: nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d), straight, 'c.0, which is a transposed convolution'),
    ((nn.Conv2d, nn.BatchNorm2d), concatenated, 'follows c.0, whose output something else takes, too'),
    ((nn.Conv2d, nn.BatchNorm2d), weight_elsewhere, 'follows c.0, whose weight something else reads, too'),
    ((nn.Conv2d, nn.BatchNorm2d), after_addition, r'follows no convolution or linear layer \(add\)'),
    ((nn.Conv2d, nn.BatchNorm2d), before_conv, r'no convolution or linear layer \(input of the network\)'),
    ((nn.Conv2d, nn.BatchNorm2d), shared_norm, 'is called 2 times'),
    ((nn.Conv2d, nn.BatchNorm2d), not_at_all, 'is never called'),
    ((nn.Conv2d, half), straight, 'keeps no running statistics'),
    ((nn.Conv2d, nn.BatchNorm1d), wrongly_flattened, r'follows no convolution or linear layer \(view\)'),
])
def test_why_a_batch_norm_stays(kinds, course, reason):
    images = torch.randn(5, 4, 6, 4)
    images = images[..., 0].mT if course is flattened else images
    net = with_statistics(Own(course, kinds), images)
    layer, said = examine_batch_norms(net, images)['n.0']
    assert (layer is None) == bool(reason) and (re.search(reason, said) if reason else not said), said
    on_meta = examine_batch_norms(copy.deepcopy(net).to('meta'), images.to('meta'))['n.0']
    assert on_meta == (layer, said)
    again = copy.deepcopy(net)
    assert bool(fold_and_compare(net.double(), images.double())) == (reason is None)
    fold_batch_norms(again, images)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_what_is_left_of_a_fused_batch_norm_learns_and_trains():
    images = torch.randn(5, 4, 6, 6)
    net = with_statistics(Own(straight, (nn.Conv2d, Fused)), images)
    act = net.n[0].act
    assert foldable_batch_norms(net, images) == [], 'who keeps the BatchNorm for training has no use for it'
    fold_batch_norms(net, images)
    assert net.n[0].act is act and not batch_norms(net).keys() & {'n.0'} and net.n[0].training


@pytest.mark.parametrize(('name', 'folded', 'left'), [
    ('mobilenetv2_035', 52, {}), ('tf_efficientnet_lite0', 49, {}),
    ('levit_128s', 50, {'head.bn': 'mean', 'head_dist.bn': 'mean'})])
def test_networks_of_timm(name, folded, left):
    timm = pytest.importorskip('timm')
    net = timm.create_model(name, num_classes=3).double()
    images = torch.randn(2, 3, *[224 if 'levit' in name else 64] * 2).double()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    assert len(fold_and_compare(net, images)) == folded
    assert {norm: reason for norm, (_, reason) in examine_batch_norms(net, images).items()} == {
        norm: f'follows no convolution or linear layer ({maker})' for norm, maker in left.items()}
