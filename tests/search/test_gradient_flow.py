"""Networks that keep gradients from some layers: these are found and named, and nothing else is."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lib.search.candidates import gradient_score
from lib.search.gradient_flow import blocked_layers
from lib.search.sensitivity import measure_sensitivity
from tests.search.test_sensitivity import ENVS, IMAGES


class Net(nn.Module):
    """Stem, body and head; `course(self, x)` is the forward pass."""

    def __init__(self, course):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.body = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.course = course

    def forward(self, x):
        return self.course(self, x)

    def end(self, x):
        return self.head(x.mean((2, 3)))


def without_gradient(function):
    return torch.no_grad()(function)


def plain(net, x):
    x = torch.relu(net.stem(x))
    return net.end(net.body(x) * net.gate(x))


def by_keyword(net, x):
    x = torch.relu(input=net.stem(input=x))
    return net.head(input=(net.body(input=x) * net.gate(input=x)).mean((2, 3)))


def frozen_backbone(net, x):
    return net.end(without_gradient(lambda: net.gate(net.body(net.stem(x))))())


def detached_backbone(net, x):
    return net.end(net.gate(net.body(net.stem(x)).detach()))


def reentrant(net, x):
    return net.end(net.gate(checkpoint(net.body, net.stem(x), use_reentrant=True)))


def detached_gate(net, x):
    x = torch.relu(net.stem(x))
    return net.end(net.body(x) * net.gate(x).detach())


def one_call_of_two(net, x):
    x = torch.relu(net.stem(x))
    x = net.body(x) + without_gradient(net.body)(net.gate(x))
    return net.end(x)


def detached_branch(net, x):
    x = torch.relu(net.stem(x))
    return net.end(x + net.gate(net.body(x.detach())))


def rounded(net, x):
    return net.end(net.gate(net.body(net.stem(x)).mul(4).round()))


def whole(net, x):
    return without_gradient(plain)(net, x)


BLOCKED = {  # the layers whose effect the gradient does not see, or not all of it
    frozen_backbone: {'stem', 'body', 'gate'}, detached_backbone: {'stem', 'body'}, reentrant: {'body'},
    detached_gate: {'gate'}, one_call_of_two: {'body', 'gate'}, detached_branch: {'body'}, rounded: {'stem', 'body'},
    whole: {'stem', 'body', 'gate', 'head'},
}


@pytest.mark.parametrize('flow', ENVS)
@pytest.mark.parametrize('course', BLOCKED, ids=lambda course: course.__name__)
def test_layers_that_no_gradient_arrives_at_are_named(course, flow, tiny_loaders):
    env = ENVS[flow](Net(course), tiny_loaders)
    for kind in ('hessian', 'fisher'):
        with pytest.raises(ValueError, match='no gradient arrives .* sensitivity kl or loss, the searcher') as error:
            measure_sensitivity(env, kind, num_images=4)
        named = set(str(error.value).split(' arrives at ')[1].split(', on which')[0].split(', '))
        free = {'stem', 'body', 'gate', 'head'} if flow == 'kmeans' else {'body', 'gate'}  # the others are fixed
        assert named == BLOCKED[course] & free
    assert np.nanmax(abs(measure_sensitivity(env, 'loss', num_images=IMAGES).table[1])) > 0  # the way that is advised


def unused_teacher(net, x):
    without_gradient(net.gate)(net.stem(x))
    return net.end(net.body(torch.relu(net.stem(x))))


def noisy(net, x):
    return net.end(net.gate(F.dropout(net.body(net.stem(x)))))


def constant_input(net, x):
    x = net.stem(x)
    return net.end(net.body(x) + net.gate(torch.ones_like(x)))


@pytest.mark.parametrize('course', [plain, by_keyword, unused_teacher, noisy, constant_input])
def test_nothing_else_is_refused(course, tiny_loaders):
    net = Net(course).eval()
    layers = {name: layer for name, layer in net.named_children()}
    assert blocked_layers(net, layers, torch.randn(1, 3, 8, 8), layers) == []
    if course is not noisy:
        for make in ENVS.values():
            measure_sensitivity(make(Net(course), tiny_loaders), 'hessian', num_images=4)


@pytest.mark.parametrize('flow', ENVS)
def test_layers_called_by_keyword_have_the_same_sensitivities(flow, tiny_loaders):
    for kind in ('loss', 'hessian', 'fisher'):
        one, other = (measure_sensitivity(ENVS[flow](Net(course), tiny_loaders), kind, num_images=8).table
                      for course in (plain, by_keyword))
        assert torch.equal(torch.from_numpy(one).nan_to_num(), torch.from_numpy(other).nan_to_num())


def test_a_branch_that_is_dead_needs_no_bits_and_is_not_refused(tiny_loaders):
    def dead(net, x):
        return net.end(torch.relu(net.stem(x)) + torch.relu(net.gate(x.new_zeros(len(x), 8, 4, 4))))

    net = Net(dead)
    nn.init.constant_(net.gate.bias, -1)
    table = measure_sensitivity(ENVS['kmeans'](net, tiny_loaders), 'hessian', num_images=4).table
    assert (table[2, :, 7] == 0).all() and (table[0, :4, 7] > 0).all()


def test_a_network_of_one_image_without_a_batch_is_refused(tiny_loaders):
    net = Net(lambda net, x: net.head(net.stem(x).mean((2, 3)).squeeze()))
    with pytest.raises(ValueError, match=r'shape \(4,\) for one image.*take flatten'):
        measure_sensitivity(ENVS['kmeans'](net, tiny_loaders), 'fisher', num_images=4)


@pytest.mark.parametrize('course', [whole, reentrant])
def test_a_score_of_gradients_needs_gradients(course):
    images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    net = Net(course).requires_grad_(course is not whole)
    with pytest.raises(ValueError, match='no gradient arrives at any .*another searcher'):
        gradient_score(net, images, labels)
