"""Every fast path of a search against the straightforward way: clusters, steps, ranges, losses, images, episodes."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import truncnorm
from torch.nn import functional as F

from benchmarks import straightforward
from lib.env.linear_quantize_env import LinearQuantizeEnv
from lib.env.quantize_env import QuantizeEnv
from lib.env.space import Space
from lib.network.records import profile_layers
from lib.quantize.kmeans import CentroidTrainer, Codebook, fit_codebook
from lib.quantize.linear import LinearActivationQuantizer, LinearWeightQuantizer
from lib.quantize.ranges import find_range, kl_threshold
from lib.rl.ddpg import DDPG, truncated_normal
from lib.simulator import budget
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from lib.simulator.counting import bit_operations, model_size
from lib.simulator.inventory import Inventory
from lib.utils.data_utils import create_search_loaders, search_split
from lib.utils.quantize_utils import convert_to_quantized, quantizable_layers, quantized_layers
from tests.spaces import ranged


def heavy_tailed(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) / torch.rand(shape, generator=generator).clamp_min(0.05)


def student(*shape, seed=0):
    """Returns Student's t numbers of four degrees of freedom, tails like those of trained weights."""
    generator = torch.Generator().manual_seed(seed)
    chi2 = torch.randn((4, *shape), generator=generator).square().mean(0)
    return torch.randn(shape, generator=generator) / chi2.sqrt()


# ---- K-means


def test_separated_clusters_are_those_of_scikit_learn():
    centres = torch.tensor([-3.0, -1.0, 0.5, 4.0])
    weight = (centres[torch.arange(240) % 4] + 0.05 * torch.randn(240, generator=torch.manual_seed(0))).view(6, 4, 10)
    centroids, labels = straightforward.cluster(weight, 2, max_iter=50)
    torch.testing.assert_close(fit_codebook(weight, 2).decode(), centroids[labels])


@pytest.mark.parametrize('bits', [4, 6, 8])
def test_three_iterations_reach_the_error_of_fifty(bits):
    ours, other = 0.0, 0.0
    for seed in range(3):
        weight = student(64, 32, 3, seed=seed)
        centroids, labels = straightforward.cluster(weight, bits, max_iter=50)
        ours += float((weight - fit_codebook(weight, bits, max_iter=3).decode()).double().square().sum())
        other += float((weight - centroids[labels]).double().square().sum())
    assert ours <= other


def test_centroid_steps_are_steps_with_a_projection(tiny_net):
    """Three steps of SGD with momentum and weight decay, other parameters included."""
    plain, images = copy.deepcopy(tiny_net), torch.randn(8, 3, 8, 8, generator=torch.manual_seed(1))
    layers, plain_layers = quantizable_layers(tiny_net), quantizable_layers(plain)
    books = straightforward.cluster_network(plain_layers, [2] * len(layers))
    codebooks = {name: Codebook(*_centroids(plain_layers[name].weight, *book)) for name, book in books.items()}
    trainer = CentroidTrainer({name: (layer.weight, codebooks[name]) for name, layer in layers.items()})
    weights = {id(layer.weight) for layer in layers.values()}
    rest = [p for p in tiny_net.parameters() if id(p) not in weights]
    optimizers = [torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)
                  for parameters in ([*trainer.parameters(), *rest], plain.parameters())]
    for step in range(3):
        for net, optimizer in zip((tiny_net, plain), optimizers, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(net(images), (torch.arange(8) + step) % 4).backward()
            if net is tiny_net:
                trainer.before_step()
            optimizer.step()
        trainer.after_step()
        straightforward.project(plain_layers, books)
    for ours, other in zip(tiny_net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)


def _centroids(weight, count, labels):
    values = torch.stack([weight.detach()[labels == label].mean() for label in range(count)])
    return values, labels.to(torch.uint8)


# ---- linear quantization


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_the_activation_quantizer_is_its_formula(bits, signed):
    ours = LinearActivationQuantizer(bits, signed=signed)
    ours.range.data.fill_(1.37)
    formula = straightforward.ActivationFormula(bits, signed, ours.range)
    x = heavy_tailed(4000, seed=bits)
    gradient, results = torch.randn(x.shape, generator=torch.manual_seed(2)), []
    for quantizer in (ours, formula):
        leaf = x.clone().requires_grad_()
        out = quantizer(leaf)
        out.backward(gradient)
        results.append((out.detach(), leaf.grad, quantizer.range.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_the_weight_quantizer_is_its_formula(bits):
    ours = LinearWeightQuantizer(bits)
    ours.range.fill_(0.9)
    weight, results = heavy_tailed(500), []
    for quantizer in (ours, straightforward.WeightFormula(bits, ours.range)):
        leaf = weight.clone().requires_grad_()
        out = quantizer(leaf)
        (out * weight).sum().backward()
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize('bits', [1, 2, 3, 4])
@pytest.mark.parametrize('kind', ['heavy', 'normal', 'half'])
def test_the_threshold_is_that_of_the_loop(bits, kind):
    x = heavy_tailed(20000) if kind == 'heavy' else torch.randn(20000, generator=torch.manual_seed(3))
    x = x.relu() if kind == 'half' else x
    assert kl_threshold(x, bits) == pytest.approx(straightforward.kl_threshold(x, bits), rel=1e-6)


def test_from_five_bits_on_the_range_is_the_maximum():
    x = heavy_tailed(1000)
    assert find_range(x, 5, signed=True) == straightforward.find_range(x, 5) == x.abs().max()


# ---- agent and wall


def test_updates_of_the_agent_are_those_of_plain_ddpg():
    """On fewer transitions than a batch both see all of them at every update."""
    ours, plain, rng = DDPG(num_states=5, capacity=100), straightforward.Agent(5, 100), np.random.default_rng(0)
    plain.actor.load_state_dict(ours.actor.state_dict())
    plain.critic.load_state_dict(ours.critic.state_dict())
    plain.copy_targets()
    for index in range(40):
        transition = rng.random(5), rng.random(), rng.normal(), rng.random(5), index % 10 == 9
        ours.observe(*transition)
        plain.observe(*transition)
    for _ in range(20):
        assert ours.update_policy() == pytest.approx(plain.update_policy(), rel=1e-3, abs=1e-5)
    state = rng.random(5)
    assert ours.select_action(state, 0, deterministic=True) == pytest.approx(plain.select_action(state, 0), abs=1e-4)


def test_exploration_is_the_truncated_normal_of_scipy():
    for mean, sigma, uniform in [(0.5, 0.5, 0.1), (0.02, 0.3, 0.7), (0.97, 0.05, 0.999), (0.3, 0.01, 0.5)]:
        expected = truncnorm.ppf(uniform, -mean / sigma, (1 - mean) / sigma, loc=mean, scale=sigma)
        assert truncated_normal(mean, sigma, uniform) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('pairs', [True, False])
def test_the_wall_is_the_one_that_sums_after_every_bit(pairs):
    rng = np.random.default_rng(4)
    cells = np.cumsum(np.cumsum(rng.integers(0, 9, (12, 8, 8)), axis=1), axis=2) + 1
    cells = cells if pairs else np.repeat(cells[:, :, :1], 8, axis=2)
    table = CostTable(cells, reference=int(cells[:, -1, -1].sum()), name='cost', unit='cycles')
    constraint = Constraint.of_ratio(table, 0.4)
    fixed = {0: [8, -1], 11: [8, 8]} if pairs else {}
    for _ in range(20):
        strategy = rng.integers(1, 9, (12, 2) if pairs else 12).tolist()
        fitted = budget.fit(strategy, [constraint], ranged(12, fixed=fixed))
        entries = [entry if pairs else [entry, -1] for entry in strategy]
        plain, price = straightforward.wall(entries, table.table, constraint.limit, 1, fixed)
        assert fitted == (plain if pairs else [w for w, _ in plain])
        assert table.cost(fitted) == price <= constraint.limit


# ---- images


def test_held_images_are_those_of_a_data_loader(tmp_path):
    rng = np.random.default_rng(5)
    for index in range(6):
        folder = tmp_path / 'train' / f'class{index % 2}'
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (250, 300, 3), dtype=np.uint8)).save(folder / f'{index}.png')
    training, validation, _ = create_search_loaders('folder', tmp_path, train_size=4, val_size=2, batch_size=2,
                                                    workers=0, cache='ram')
    picked, held = search_split(6, 4, 2)
    plain_training, plain = straightforward.photograph_loaders(tmp_path, picked.tolist(), held.tolist(), batch=2,
                                                               workers=0)
    (images, labels), (plain_images, plain_labels) = *validation, *plain
    torch.testing.assert_close(images, plain_images)
    assert labels.tolist() == plain_labels.tolist()
    assert sorted(label for _, labels in training for label in labels.tolist()) == \
        sorted(label for _, labels in plain_training for label in labels.tolist())


# ---- episodes


class Ordered:
    """Loader whose batches are the same in every epoch."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def set_epoch(self, epoch):
        pass

    def first_batch(self):
        return self.batches[0][0]


@pytest.fixture
def ordered_loaders(tiny_loaders):
    return [Ordered(list(loader)) for loader in tiny_loaders]


def test_a_kmeans_episode_is_the_straightforward_one(tiny_net, ordered_loaders):
    """From the clusters of scikit-learn, which the environment finds in its cache."""
    records, strategy = profile_layers(tiny_net, (3, 8, 8)), [3, 2, 4, 1]
    plain = copy.deepcopy(tiny_net)
    layers = quantizable_layers(plain)
    books = straightforward.cluster_network(layers, strategy)
    size = Constraint.of_ratio(model_size([record.num_weights for record in records]), 0.5)
    env = QuantizeEnv(tiny_net, *ordered_loaders, Space([size], records=records))
    for (name, book), bits in zip(books.items(), strategy, strict=True):
        env.cache._codebooks[name, bits] = Codebook(*_centroids(layers[name].weight, *book))
    accuracy = straightforward.kmeans_episode(plain, layers, None, strategy, ordered_loaders, 'cpu', books)
    assert env.evaluate_strategy(strategy).accuracy == accuracy
    _assert_same_network(tiny_net, plain)


def test_a_linear_episode_is_the_straightforward_one(tiny_net, ordered_loaders):
    records, strategy = profile_layers(tiny_net, (3, 8, 8)), [[8, -1], [4, 4], [3, 6], [8, 8]]
    images = ordered_loaders[0].first_batch()
    net, plain = (convert_to_quantized(copy.deepcopy(tiny_net), images[:2]) for _ in range(2))
    bits = Constraint.of_ratio(bit_operations(records), 1.0)
    env = LinearQuantizeEnv(net, *ordered_loaders, Space.of(Inventory(records, linear=True), [bits]))
    outcome = env.evaluate_strategy(strategy)
    signs = {name: layer.input_quantizer.signed for name, layer in quantized_layers(net).items()}
    accuracy = straightforward.linear_episode(plain, quantized_layers(plain), tiny_net.state_dict(), strategy, signs,
                                              images, ordered_loaders, 'cpu')
    assert outcome.accuracy == accuracy
    _assert_same_network(net, plain)


def _assert_same_network(net, plain):
    """Compares what the two networks both have: weights, biases, BatchNorms."""
    other = plain.state_dict()
    shared = {name: value for name, value in net.state_dict().items() if name in other and 'quantizer' not in name}
    assert len(shared) > 8
    for name, value in shared.items():
        assert torch.allclose(value, other[name], rtol=2e-3, atol=2e-5), name
