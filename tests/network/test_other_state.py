"""Networks that remember more than their state dict says: every episode finds what the first one found."""

import copy
import random
import threading
from collections import deque

import numpy as np
import pytest
import torch

from lib.network.check import check_network
from lib.network.other_state import OtherState
from lib.search.candidates import gradient_score
from lib.training.loop import Precision
from tests.search.test_sensitivity import ENVS
from tests.tiny import TinyNet


class Remembering(TinyNet):
    """Scales its logits by `factor(self, x)`, and does something that changes the next factor."""

    def __init__(self, prepare, factor):
        super().__init__()
        prepare(self)
        self.factor = factor

    def forward(self, x):
        return super().forward(x) * (0.5 + float(self.factor(self, x)) % 1)


class Meter:
    """A counter in an object of its own."""

    def __init__(self):
        self.count = 0

    def step(self):
        self.count += 1
        return 0.01 * self.count


def buffer(persistent):
    return lambda net: net.register_buffer('seen', torch.zeros(1), persistent=persistent)


def add_to_buffer(net, x):
    net.seen += 0.01
    return net.seen


def grow_buffer(net, x):
    net.seen = torch.cat([net.seen, x.detach().mean().view(1)])
    return net.seen.mean()


def count(net, x):
    net.calls = getattr(net, 'calls', 0) + 1
    return 0.01 * net.calls


def remember(net, x):
    net.memory.append(x.detach().mean())
    return sum(net.memory)


def own_tensor(net, x):
    net.mean.mul_(0.9).add_(x.detach().mean())
    return net.mean


def view_of_buffer(net, x):
    net.view.add_(0.01)
    return net.seen.sum() + net.view.sum()


def unfreeze(net, x):
    net.calls += 1
    net.stem.weight.requires_grad_(net.calls > 3)
    return 0.0


CASES = {
    'buffer outside of the state dict': (buffer(False), add_to_buffer),
    'buffer that grows': (buffer(True), grow_buffer),
    'attribute that was not there': (lambda net: None, count),
    'attribute of a part': (lambda net: setattr(net.bn, 'calls', 0),
                            lambda net, x: setattr(net.bn, 'calls', net.bn.calls + 1) or 0.01 * net.bn.calls),
    'list': (lambda net: setattr(net, 'memory', []), remember),
    'queue': (lambda net: setattr(net, 'memory', deque(maxlen=50)), remember),
    'tensor': (lambda net: setattr(net, 'mean', torch.zeros(())), own_tensor),
    'view of a buffer': (lambda net: (buffer(False)(net), setattr(net, 'view', net.seen.view(1, 1))), view_of_buffer),
    'object': (lambda net: setattr(net, 'meter', Meter()), lambda net, x: net.meter.step()),
    'generator of torch': (lambda net: setattr(net, 'rng', torch.Generator().manual_seed(1)),
                           lambda net, x: torch.rand((), generator=net.rng)),
    'generator of numpy': (lambda net: setattr(net, 'rng', np.random.default_rng(1)), lambda net, x: net.rng.random()),
    'generator of python': (lambda net: setattr(net, 'rng', random.Random(1)), lambda net, x: net.rng.random()),
    'unfreezing': (lambda net: setattr(net, 'calls', 0), unfreeze),
    'noise in evaluation': (lambda net: None, lambda net, x: torch.rand(())),
}


@pytest.mark.parametrize('flow', ENVS)
@pytest.mark.parametrize('case', CASES)
def test_an_episode_is_the_same_whatever_came_before(case, flow, tiny_loaders):
    torch.manual_seed(0)
    net = Remembering(*CASES[case])
    fresh = ENVS[flow](copy.deepcopy(net), tiny_loaders, finetune_flag=True, finetune_lr=0.05)
    env = ENVS[flow](net, tiny_loaders, finetune_flag=True, finetune_lr=0.05)
    strategy, other = ([4] * 4, [2] * 4) if flow == 'kmeans' else ([[6, 6]] * 4, [[3, 3]] * 4)
    expected = fresh.evaluate_strategy(strategy, 5)
    found = []
    for episode in (5, 6, 5):
        found.append(env.evaluate_strategy(strategy, episode))
        with env.float_network() as model, torch.no_grad():
            model(next(iter(tiny_loaders[1]))[0])
        env.evaluate_strategy(other, 7)
    assert found[0] == found[2] == expected and found[1].loss != expected.loss


@pytest.mark.parametrize('flow', ENVS)
def test_a_look_before_an_episode_is_the_same_too(flow, tiny_loaders):
    env = ENVS[flow](Remembering(*CASES['noise in evaluation']), tiny_loaders, finetune_flag=True, screen=16)
    env.val_loader.batch_size = 16
    strategy = [4] * 4 if flow == 'kmeans' else [[6, 6]] * 4
    first = env.evaluate_strategy(strategy, 5)
    env.evaluate_strategy(strategy, 6)
    assert env.evaluate_strategy(strategy, 5) == first


@pytest.mark.parametrize('case', CASES)
def test_checks_and_scores_leave_everything_as_it_was(case):
    net = Remembering(*CASES[case])
    check_network(net, (3, 8, 8), 4)
    twin, images = copy.deepcopy(net), torch.randn(4, 3, 8, 8)
    gradient_score(net, images, torch.tensor([0, 1, 2, 3]))
    if case != 'noise in evaluation':
        assert torch.equal(net(images), twin(images))


def test_what_belongs_together_stays_together():
    net = Remembering(*CASES['view of a buffer'])
    net.order, net.lock, net.pair = [net.stem, net.head], threading.Lock(), [net.seen]
    state = OtherState(net)
    net.seen.fill_(3)
    net.order.reverse()
    state.restore()
    assert state.left == ['lock'] and net.order == [net.stem, net.head]
    assert net.seen == 0 and net.view.data_ptr() == net.seen.data_ptr() and net.pair[0] is net.seen


def test_the_factor_of_mixed_precision_begins_anew(tiny_net, tiny_loaders):
    precision = Precision('cpu')
    precision.scaler = torch.amp.GradScaler('cpu', init_scale=512.0, growth_interval=1)
    env = ENVS['kmeans'](tiny_net, tiny_loaders, finetune_flag=True, precision=precision)
    first = env.evaluate_strategy([4] * 4, 5)
    assert precision.scaler.get_scale() == 512 * 2**3  # it doubles with each of three batches
    assert env.evaluate_strategy([4] * 4, 5) == first and precision.scaler.get_scale() == 512 * 2**3
