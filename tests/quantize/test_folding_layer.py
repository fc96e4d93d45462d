"""A convolution that is trained with its BatchNorm folded in, against the two of them on their own."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from lib.quantize import QConv2d, Quantizer
from lib.quantize.folding import FoldedAwayBatchNorm2d, FoldingConv2d, start_folding, stop_folding


def pair(bias=True, **options):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=bias, **options), nn.BatchNorm2d(6))
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].bias.normal_()
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2)
    return net


def folding(net, weight_quantizer=None):
    net = deepcopy(net)
    QConv2d.convert(net[0], weight_quantizer=weight_quantizer or Quantizer(), input_quantizer=Quantizer())
    start_folding(net[0], net[1])
    return net


@pytest.mark.parametrize('options', [{}, {'bias': False}, {'groups': 2, 'stride': 2}])
def test_evaluation_equals_the_two_modules(options):
    net, x = pair(**options), torch.randn(3, 4, 8, 8)
    twin = folding(net)
    assert twin.state_dict().keys() == net.state_dict().keys()
    torch.testing.assert_close(twin.eval()(x), net.eval()(x), rtol=1e-5, atol=1e-5)


def test_training_moves_the_statistics_first_and_folds_those():
    net, x = pair(), torch.randn(5, 4, 8, 8)
    twin = folding(net)
    output = twin.train()(x)
    net.train()(x)  # moves the statistics of the reference
    torch.testing.assert_close(twin[1].running_mean, net[1].running_mean)
    torch.testing.assert_close(twin[1].running_var, net[1].running_var)
    torch.testing.assert_close(output, net.eval()(x), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_a_batch_norm_with_fixed_statistics():
    net, x = pair(), torch.randn(5, 4, 8, 8)
    twin = folding(net)
    weights = torch.randn(5, 6, 8, 8)
    (twin.train()(x) * weights).sum().backward()
    net.load_state_dict(twin.state_dict())
    (net.eval()(x) * weights).sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(dict(twin.named_parameters())[name].grad, parameter.grad, rtol=1e-4, atol=1e-4)


def test_the_quantizer_sees_the_folded_weight():
    seen = []

    class Spy(Quantizer):
        def fake_quantize(self, x):
            seen.append(x.detach().clone())
            return x

    net = pair()
    folding(net, Spy(4)).eval()(torch.randn(1, 4, 8, 8))
    factor = net[1].weight / torch.sqrt(net[1].running_var + net[1].eps)
    torch.testing.assert_close(seen[0], net[0].weight * factor.view(-1, 1, 1, 1))


def test_copies_fold_their_own_batch_norm():
    twin = deepcopy(folding(pair()))
    assert twin[0]._norm[0] is twin[1]


def test_folding_ends_where_it_began():
    net = pair()
    twin = folding(net)
    stop_folding(twin)
    assert type(twin[0]) is QConv2d and type(twin[1]) is nn.BatchNorm2d and not hasattr(twin[0], '_norm')
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(twin.eval()(x), net.eval()(x))


def test_other_modules_are_refused():
    net = pair()
    with pytest.raises(ValueError, match='expected a QConv2d and a BatchNorm2d'):
        start_folding(net[0], net[1])
    twin = folding(net)
    assert isinstance(twin[0], FoldingConv2d) and isinstance(twin[1], FoldedAwayBatchNorm2d)
    with pytest.raises(ValueError, match='expected a QConv2d and a BatchNorm2d'):
        start_folding(twin[0], twin[1])
    QConv2d.convert(net[0])
    with pytest.raises(ValueError, match='no running statistics'):
        start_folding(net[0], nn.BatchNorm2d(6, track_running_stats=False))
