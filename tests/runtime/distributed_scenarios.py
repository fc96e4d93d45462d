"""What test_distributed.py lets two processes do, and one: `python -m tests.runtime.distributed_scenarios FOLDER`."""

import contextlib
import logging
import os
import sys
from dataclasses import astuple
from pathlib import Path

import torch
from torch import nn

from lib.env.linear_quantize_env import LinearQuantizeEnv
from lib.env.quantize_env import QuantizeEnv
from lib.env.space import Space
from lib.network.records import profile_layers
from lib.network.sync_batch_norm import SyncBatchNorm2d, global_moments, synchronise_batch_norm
from lib.rl.ddpg import DDPG
from lib.runtime import distributed
from lib.runtime.seeds import seed_everything
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from lib.simulator.inventory import Inventory
from lib.training.compensation import Rounding, round_codebooks, round_linear
from lib.training.fit import fit
from lib.training.loop import Precision, evaluate, loss_function, train_one_epoch
from lib.training.settings import TrainingSettings
from lib.utils.quantize_utils import (
    KMeansQuantization,
    LinearQuantization,
    convert_to_quantized,
    quantized_layers,
    weight_counts,
)
from tests.tiny import TinyLoader, TinyNet

PROBE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Part:
    """The part of every batch of a `TinyLoader` that belongs to this process."""

    def __init__(self, **options):
        self.whole = TinyLoader(**options)

    def __len__(self):
        return len(self.whole)

    def set_epoch(self, epoch):
        self.whole.set_epoch(epoch)

    def first_batch(self):
        return self.whole.first_batch()

    def __iter__(self):
        rank, world = distributed.rank(), distributed.world_size()
        for images, labels in self.whole:
            own = slice(len(labels) * rank // world, len(labels) * (rank + 1) // world)
            if len(labels[own]):
                yield images[own], labels[own]


class SmallNet(nn.Module):
    """Both kinds of BatchNorm, one of them with a cumulative average; a layer that is never called, if asked for."""

    def __init__(self, unused=False):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.middle, self.bn1, self.head = nn.Linear(6, 7), nn.BatchNorm1d(7, momentum=None), nn.Linear(7, 4)
        if unused:
            self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.bn(self.conv(x)).relu().mean((2, 3))
        return self.head(self.bn1(self.middle(x)).relu())


def seeded(kind, **options):
    """A network with fixed weights."""
    torch.manual_seed(0)
    return kind(**options)


def quantized_net():
    """A `TinyNet` of quantized layers."""
    return convert_to_quantized(seeded(TinyNet), PROBE)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def evaluation(folder):
    """Metrics over 53 images in batches of 16: the last batch has 5, and 2 of them belong to process 0."""
    return astuple(evaluate(seeded(TinyNet), Part(images=53), loss_function(), 'cpu'))


def frozen_batch_norm(folder, unused=False):
    """Two steps, on 16 and 15 images, with BatchNorm in evaluation mode."""
    net = seeded(SmallNet, unused=unused)
    for bn in (net.bn.eval(), net.bn1.eval()):
        bn.train = lambda mode=True: None
    metrics = train_one_epoch(net, Part(images=31), loss_function(), sgd(net.parameters()), 'cpu')
    return net.state_dict(), astuple(metrics)


def unused_parameters(folder):
    """The same with a layer that is never called."""
    return frozen_batch_norm(folder, unused=True)


def synchronised_batch_norm(folder):
    """Two epochs of two steps each with `SyncBatchNorm`s, and what the network computes then."""
    net = seeded(SmallNet)
    turned = synchronise_batch_norm(net)
    optimizer, loader = sgd(net.parameters()), Part(images=31)
    losses = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        losses.append(astuple(train_one_epoch(net, loader, loss_function(), optimizer, 'cpu')))
    return net.state_dict(), losses, turned


def mixed_precision(folder):
    """An epoch of it in bfloat16, channels last."""
    net = seeded(SmallNet)
    synchronise_batch_norm(net)
    metrics = train_one_epoch(net, Part(images=31), loss_function(), sgd(net.parameters()), 'cpu',
                              precision=Precision('cpu', half=True, channels_last=True))
    return net.state_dict(), metrics.loss


def plain_batch_norm(folder):
    """An epoch with ordinary BatchNorms: each process has statistics of its own, averaged in the end."""
    net = seeded(SmallNet)
    train_one_epoch(net, Part(images=31), loss_function(), sgd(net.parameters()), 'cpu')
    return net.state_dict()


def averaged_weights(folder):
    """Two epochs with synchronised BatchNorm, trained centroids, smoothed labels, clipped gradients, their average."""
    net = seeded(SmallNet)
    synchronise_batch_norm(net)
    quantization = KMeansQuantization(net, [4, 3, 4])
    settings = TrainingSettings(epochs=2, lr=0.05, decay_norms=False, grad_clip=0.3, label_smoothing=0.1, ema_decay=0.5)
    average = settings.average(quantization)
    fit(net, (Part(images=31), Part(seed=1)), settings, quantization=quantization, average=average)
    with average.in_place() as state:
        return net.state_dict(), state['ema']['trained']


def batch_norm_layer(folder):
    """Output, gradients and statistics of one layer on 5 images far from 0, of which process 0 has 2."""
    x, direction = (torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    x = 3000 + 7 * torch.arange(5).view(-1, 1, 1, 1) + x
    own = slice(5 * distributed.rank() // distributed.world_size(),
                5 * (distributed.rank() + 1) // distributed.world_size())
    layer = SyncBatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    x = x[own].requires_grad_()
    y = layer(x)
    y.backward(direction[own])
    return {'y': y.detach(), 'dx': x.grad, 'dw': layer.weight.grad, 'db': layer.bias.grad,
            'moments': list(global_moments(x.detach())), 'state': layer.state_dict()}


def kmeans(folder):
    """Three epochs of `fit`; on process 1 other weights, and so other clusters, which must not matter."""
    net = seeded(TinyNet)
    synchronise_batch_norm(net)
    if not distributed.is_main():
        for parameter in net.parameters():
            parameter.data.mul_(1.5).add_(0.1)
    quantization = KMeansQuantization(net, [7, 3, 2, 4], free_high_bit=True, max_iter=1)
    result = fit_shortly(net, quantization, folder / 'kmeans')
    return *result, quantization.state()


def linear(folder):
    """Three epochs of `fit`; process 1 calibrates on other images and takes all inputs for signed."""
    net = quantized_net()
    synchronise_batch_norm(net)
    loader = Part(images=31)
    images = loader.first_batch()
    if not distributed.is_main():
        images = -2 * images
    quantization = LinearQuantization(net, [[8, -1], [4, 5], [3, 4], [8, 8]], images)
    start = [{key: value.clone() for key, value in layer.state_dict().items()}
             for layer in quantized_layers(net).values()]
    return *fit_shortly(net, quantization, folder / 'linear'), start


def compensated(folder):
    """Rounding with compensation, by 50 images in batches of 16, the last of 5: weights, codebooks, state."""
    rounding, loader = Rounding('compensated', calibration_images=50, bn_batches=4), Part(images=53)
    clustered, net = seeded(TinyNet), quantized_net()
    books = round_codebooks(clustered, dict.fromkeys(weight_counts(clustered), 3), rounding.batches(loader, 'cpu'),
                            rounding)
    LinearQuantization(net, [[4, -1], [3, 4], [3, 4], [4, 4]], loader.first_batch())
    round_linear(net, rounding.batches(loader, 'cpu'), rounding, float_model=seeded(TinyNet))
    weights = [dict(each.named_parameters()) for each in (clustered, net)]
    weights = [{name: value.detach().clone() for name, value in each.items()} for each in weights]
    for each in (clustered, net):
        rounding.estimate_batch_norm(each, loader, 'cpu')
    return weights, {name: book.state_dict() for name, book in books.items()}, [clustered.state_dict(),
                                                                                net.state_dict()]


def fit_shortly(net, quantization, folder):
    """Trains for three epochs; returns (state dict, metrics, best)."""
    metrics, best = fit(net, (Part(images=31), Part(images=21, seed=1)), TrainingSettings(epochs=3, seed=0),
                        optimizer=sgd(quantization.parameters()), folder=folder, rate=lambda epoch: 0.05 / (1 + epoch),
                        precision=Precision('cpu'), quantization=quantization)
    return net.state_dict(), astuple(metrics), best


def search(folder):
    """Four episodes in both environments, of which the agent learns in the last two."""
    results = []
    loaders = Part(images=31), Part(images=21, seed=1)
    for kind, net in ((QuantizeEnv, seeded(TinyNet)), (LinearQuantizeEnv, quantized_net())):
        constraints = [Constraint.of_ratio(model_size(list(weight_counts(net).values())), 0.2)]
        records = profile_layers(net, (3, 8, 8))
        space = Space.of(Inventory(records, linear=kind is LinearQuantizeEnv), constraints)
        env = kind(net, *loaders, space)
        agent = DDPG(num_states=space.num_states, hidden1=16, hidden2=16, capacity=64, warmup=1,
                     seed=distributed.rank())
        outcomes = [astuple(play(env, agent, episode)) for episode in range(4)]
        results.append((env.float_accuracy, outcomes, net.state_dict()))
    env = QuantizeEnv(seeded(TinyNet), *loaders, Space(constraints, records=env.space.records))
    agent = DDPG(num_states=env.space.num_states, hidden1=16, hidden2=16, capacity=64, warmup=1)
    outcomes = [astuple(play(env, agent, episode)) for episode in range(4)]
    return results, outcomes, agent.state_dict()


def play(env, agent, episode):
    """One episode, as scripts/rl_quantize.py has it."""
    acted, state, done = [], env.reset(), False
    while not done:
        action = distributed.broadcast(agent.act(state, episode))
        acted.append((state, action))
        state, _, done, outcome = env.step(action, episode)
    for step, (state, action) in enumerate(acted):
        agent.observe(state, action, outcome.reward, acted[min(step + 1, len(acted) - 1)][0], step == len(acted) - 1)
        if agent.learning(episode):
            agent.update_policy()
    return outcome


def talk(folder):
    """The small functions."""
    rank = distributed.rank()
    seed_everything(3, 'epoch', 1)
    tensors = [torch.full((2,), 1 + rank), torch.full((1, 2), 0.5 + rank), torch.full((), 7 + rank, dtype=torch.uint8)]
    distributed.broadcast_tensors(tensors)
    mean = torch.full((3,), float(rank))
    distributed.average_tensors([mean])
    path = folder.parent / 'made_first'

    def make():
        there = path.exists()
        path.touch()
        return there

    return {'rank': rank, 'random': torch.rand(2).tolist(), 'tensors': [tensor.tolist() for tensor in tensors],
            'total': distributed.total(2 ** 52 + rank, 0.5, True), 'mean': mean.tolist(),
            'gather': distributed.gather(torch.tensor(rank)).tolist(),
            'join': distributed.join(torch.full((rank + 1, 2), rank)).tolist(),
            'broadcast': distributed.broadcast([rank, 'a']),
            'on_main': distributed.on_main(lambda: distributed.rank() + 10),
            'made_before': distributed.main_first(make)}


def wrappers(folder):
    """Whether the wrapper is kept, and made anew where something else is trained, and then works."""
    net, images = seeded(SmallNet), PROBE
    first = distributed.data_parallel(net, images)
    same = distributed.data_parallel(net, images) is first
    net.middle.bias.requires_grad_(False)
    second = distributed.data_parallel(net, images)
    train_one_epoch(net, Part(images=31), loss_function(), sgd(net.parameters()), 'cpu')
    return same, second is first, getattr(first, 'find_unused_parameters', None), net.state_dict()


def refusals(folder):
    """What is raised where one process alone has a reason: [(kind, message, whether repeated)]."""
    found = []

    @contextlib.contextmanager
    def caught():
        try:
            yield
        except (ValueError, OSError, FloatingPointError) as error:
            found.append((type(error).__name__, str(error), getattr(error, 'repeated', False)))

    def held():
        raise FileExistsError('the folder is taken')

    class Spoilt(Part):
        def __iter__(self):
            for step, (images, labels) in enumerate(super().__iter__()):
                yield images / (step + distributed.is_main() > 0), labels  # the second half of the first batch

    with caught():
        distributed.on_main(held)
    with caught():
        distributed.main_first(lambda: int('x') if not distributed.is_main() else 0)
    for synchronised in (False, True):
        net = seeded(SmallNet)
        if synchronised:
            synchronise_batch_norm(net)
        with caught():
            train_one_epoch(net, Spoilt(images=31), loss_function(), sgd(net.parameters()), 'cpu')
    with caught():
        evaluate(seeded(SmallNet), Spoilt(images=31), loss_function(), 'cpu')
    with caught():
        train_one_epoch(net, Part(images=31 if distributed.is_main() else 15), loss_function(), None, 'cpu')
    return found


SCENARIOS = {each.__name__: each for each in (
    evaluation, frozen_batch_norm, unused_parameters, synchronised_batch_norm, mixed_precision, plain_batch_norm,
    averaged_weights, batch_norm_layer, kmeans, linear, compensated, search, talk, wrappers, refusals)}


def main(folder):
    """Runs everything in this process, writes the results, and sees the other process end without a word."""
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    distributed.start('cpu')
    folder = Path(folder) / f'process{distributed.rank()}'
    results = {name: scenario(folder) for name, scenario in SCENARIOS.items()}
    torch.save(results, folder.with_suffix('.pt'))
    if not distributed.is_main():
        os._exit(0)
    net = seeded(SmallNet)
    train_one_epoch(net, Part(images=31), loss_function(), sgd(net.parameters()), 'cpu')


if __name__ == '__main__':
    try:
        main(sys.argv[1])
    except OSError as end:
        sys.exit(f'{type(end).__name__}: {end}')
