"""Learning from a teacher: the loss against its formula in NumPy, what the teacher gets, and episodes of a search."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from lib.search.bench import Bench
from lib.training.distillation import Distillation
from lib.training.loop import evaluate, loss_function, train_one_epoch
from lib.training.mixing import Mixing
from tests.env.environments import ENVS
from tests.tiny import TinyLoader, TinyNet, sample


def softmax(logits):
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def formula(logits, targets, taught, temperature, weight):
    """The mean over images of (1 - a) CE + a T^2 KL(p || q), and its gradient in the logits."""
    p, q, plain = softmax(taught / temperature), softmax(logits / temperature), softmax(logits)
    loss = (1 - weight) * -(targets * np.log(plain)).sum(1) + weight * temperature**2 * (p * np.log(p / q)).sum(1)
    gradient = (1 - weight) * (plain - targets) + weight * temperature * (q - p)
    return loss.mean(), gradient / len(logits)


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize(('temperature', 'weight'), [(4.0, 1.0), (1.0, 1.0), (4.0, 0.5), (20.0, 0.1), (0.5, 0.9)])
def test_loss_and_gradient_are_those_of_the_formula(temperature, weight, soft):
    logits, taught = sample(7, 5).mul(3).requires_grad_(), sample(7, 5, seed=1) * 3
    labels = torch.arange(7) % 5
    targets = sample(7, 5, seed=2).softmax(1) if soft else nn.functional.one_hot(labels, 5).float()
    loss = Distillation(nn.Identity(), temperature, weight).on(taught)(logits, targets if soft else labels)
    expected, gradient = formula(*(each.detach().double().numpy() for each in (logits, targets, taught)),
                                 temperature, weight)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)


def test_the_example_of_its_docstring():
    loss = Distillation(nn.Identity()).on(torch.tensor([[4.0, 0.0]]))(torch.tensor([[2.0, 0.0]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(0.4215, abs=5e-5)


@pytest.mark.parametrize('options', [{'temperature': 0}, {'temperature': float('nan')}, {'weight': 0}, {'weight': 1.1}])
def test_refuses(options):
    with pytest.raises(ValueError, match='distill_temperature .* distill_weight'):
        Distillation(nn.Identity(), **options)


def test_the_teacher_gets_the_images_of_the_network_and_stays_as_it_is():
    torch.manual_seed(0)
    teacher, model = TinyNet(), TinyNet()
    before, seen = copy.deepcopy(teacher.state_dict()), {teacher: [], model: []}
    for net in (teacher, model):
        net.register_forward_pre_hook(lambda net, images: seen[net].append(images[0].clone()))
    train_one_epoch(model, TinyLoader(), loss_of, torch.optim.SGD(model.parameters(), lr=0.1), 'cpu',
                    mixing=Mixing(mixup=0.5, smoothing=0.1), distillation=Distillation(teacher, weight=0.5))
    assert len(seen[teacher]) == 3 and all(map(torch.equal, seen[teacher], seen[model]))
    assert not any(torch.equal(image, raw) for image, (raw, _) in zip(seen[teacher], TinyLoader(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def loss_of(logits, labels, task):
    return task(logits, labels)


def test_a_network_comes_to_the_outputs_of_its_teacher_whatever_the_labels():
    """Labels are wrong throughout; the teacher tells the colours apart."""
    torch.manual_seed(0)
    teacher, model, loader = TinyNet(), TinyNet(), TinyLoader(images=96)

    def train(net, criterion, distillation=None):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for epoch in range(25):
            loader.set_epoch(epoch)
            train_one_epoch(net, loader, criterion, optimizer, 'cpu', distillation=distillation)
        return evaluate(net, loader, loss_function(), 'cpu').top1

    assert train(teacher, loss_function()) > 90
    assert train(model, lambda logits, labels, task: task(logits, (labels + 1) % 4), Distillation(teacher)) > 90


@pytest.mark.parametrize('flow', ENVS)
def test_an_episode_learns_from_the_float_network(flow):
    def environment(**settings):
        torch.manual_seed(0)
        return ENVS[flow](TinyNet(), (TinyLoader(), TinyLoader(seed=1)), finetune_lr=0.05, **settings)

    env, labels = environment(distill='float', distill_weight=0.5), environment()
    strategy = env.space.within_budget(env.space.uniform(4))
    images = TinyLoader().images
    with labels.float_network() as model, torch.no_grad():
        expected = model(images)
    outcomes = [dataclasses.asdict(env.evaluate_strategy(strategy, episode)) for episode in (0, 1, 0)]
    torch.testing.assert_close(env.distillation.teacher(images), expected, rtol=0, atol=0)
    assert outcomes[0] == outcomes[2] != outcomes[1]
    assert outcomes[0]['loss'] != labels.evaluate_strategy(strategy, 0).loss


def test_the_images_of_the_teacher_are_counted():
    torch.manual_seed(0)
    loaders = TinyLoader(), TinyLoader(seed=1, images=24)
    for loader in loaders:
        loader.num_images, loader.batch_size = len(loader.labels), loader.batch
    env = ENVS['kmeans'](TinyNet(), loaders, distill='float')
    bench = Bench(env, 1)
    env.evaluate_strategy(env.space.within_budget(env.space.uniform(4)))
    forwards, backwards = bench.counter.counts
    assert (forwards, backwards) == (24 + 48 + 48, 48)
    assert bench.evaluation_images == forwards + 2 * backwards  # a backward pass costs as much as two forward
