"""The progressive search: what a candidate is, how it is judged, and the searcher on the bench."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lib.data.tensor_loader import TensorLoader
from lib.qat.parts import quantize_parts
from lib.qat.placement import Quantizers
from lib.record.checkpoint import read_checkpoint
from lib.search.candidates import balanced_batch, best_candidate, draw, gradient_score, lower, num_drawn
from lib.search.log import StepLog, step_path
from lib.search.progressive import ProgressiveSearch, ProgressiveSearcher, StepSettings
from lib.simulator.budget import Constraint
from lib.simulator.cost import CostTable
from lib.simulator.layer_bits import LayerBits
from tests.spaces import ranged_space

CLASSES = 4


# ---- candidates

@pytest.mark.parametrize(('count', 'ratio', 'expected'), [
    (36, 0.5, 18), (36, 1, 36), (7, 0.5, 3), (100, 0.29, 29), (10, 0.3, 3), (3, 0.34, 1),
])
def test_exactly_a_fraction_is_drawn_without_repetition(count, ratio, expected):
    rng = np.random.default_rng(0)
    draws = [draw(rng, count, ratio) for _ in range(200)]
    assert num_drawn(count, ratio) == expected
    assert all(len(set(chosen)) == len(chosen) == expected and set(chosen) <= set(range(count)) for chosen in draws)
    share = np.bincount(np.concatenate(draws), minlength=count) / 200
    assert np.abs(share - expected / count).max() < 0.2, 'each as often as the others'


@pytest.mark.parametrize('ratio', [0, 0.02, 1.1, -1])
def test_a_ratio_that_draws_nothing_or_too_much_is_refused(ratio):
    with pytest.raises(ValueError, match=r'of 36 quantizers at a time: expected at least 0.02778, and at most 1'):
        draw(np.random.default_rng(0), 36, ratio)


def test_bits_never_rise_and_never_go_below_two():
    bits = [8, 5, 3, 2, 1]
    assert lower(bits, [0, 2, 3, 4], 1, [range(2, 9)] * 5) == [7, 5, 2, 2, 1]
    assert lower(bits, [0, 1, 2, 3], 4, [range(2, 9)] * 5) == [4, 2, 2, 2, 1]
    assert lower(bits, range(5), 2, [range(4, 9)] * 5) == [6, 4, 3, 2, 1]
    assert lower(bits, range(5), 1, [(2, 4, 8), (4, 8), (3,), (1, 2), (1, 8)]) == [4, 4, 3, 1, 1]
    assert lower(bits, range(5), 4, [(2, 5, 8)] * 5) == [2, 2, 2, 2, 1]
    assert bits == [8, 5, 3, 2, 1], 'a copy is lowered'


@pytest.mark.parametrize('interval', [1, 2, 4])
def test_the_best_candidate_is_the_one_with_the_smallest_score(interval):
    start, seen = [8, 4, 2, 6, 3, 8], []

    def judge(bits):
        seen.append((list(bits), float(np.dot(bits, [3, -1, 4, -1, 5, -9]) % 7)))
        return seen[-1][1]
    able = [range(2, 9)] * 6
    best = best_candidate(start, judge, 30, rng=np.random.default_rng(5), ratio=0.5, interval=interval, able=able)
    rng, scores = np.random.default_rng(5), [score for _, score in seen]
    assert [bits for bits, _ in seen] == [lower(start, draw(rng, 6, 0.5), interval, able) for _ in range(30)]
    assert best == seen[int(np.argmin(scores))], 'the first of equals'


# ---- score

class Network(nn.Module):
    """Convolution, batch norm, dropout, linear layer; one parameter that takes no part."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(6, CLASSES)
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.linear(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


@pytest.fixture
def problem():
    """(network, images, labels)."""
    torch.manual_seed(3)
    return Network(), torch.randn(12, 3, 6, 6), torch.arange(12) % CLASSES


def step_of_adam(model, images, labels, clip, lr, beta1, beta2, eps):
    """The original's score: the network is trained for a step, by the formulas of Adam, and the change is measured."""
    model.train()
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(images), labels).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    info = 0.0
    for parameter in model.parameters():
        if parameter.grad is None:
            continue
        gradient, before = parameter.grad.double(), parameter.detach().double()
        first, second = (1 - beta1) * gradient, (1 - beta2) * gradient**2
        rate = lr * math.sqrt(1 - beta2) / (1 - beta1)
        after = before - rate * first / (second.sqrt() + eps)
        info += ((second.sqrt() + eps) * (before - after) ** 2).sum().item()
    return info


@pytest.mark.parametrize(('clip', 'lr', 'beta2', 'eps'), [(5.0, 1e-3, 0.999, 1e-7), (0.01, 0.1, 0.9, 1e-3)])
def test_the_score_is_that_of_a_step_of_adam(problem, clip, lr, beta2, eps):
    model, images, labels = problem
    score = gradient_score(model, images, labels, clip=clip, lr=lr, beta2=beta2, eps=eps)
    assert score == pytest.approx(step_of_adam(model, images, labels, clip, lr, 0.9, beta2, eps), rel=1e-4)


def test_the_score_is_near_the_norm_of_the_gradient_and_near_that_of_the_optimizer(problem):
    model, images, labels = problem
    score = gradient_score(model, images, labels, clip=None)
    model.train()
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(images), labels).backward()
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = sum(p.grad.abs().sum().item() for p in trained)
    assert score == pytest.approx(1e-6 * math.sqrt(1e-3) * norm, rel=1e-3)
    before, optimizer = [p.detach().double().clone() for p in trained], torch.optim.Adam(trained, lr=1e-3, eps=1e-7)
    optimizer.step()
    info = sum(((optimizer.state[p]['exp_avg_sq'].double().sqrt() + 1e-7) * (p.detach().double() - old) ** 2).sum()
               for p, old in zip(trained, before, strict=True))
    assert score == pytest.approx(info.item(), rel=1e-2)


def test_the_score_changes_nothing_and_is_the_same_again(problem):
    model, images, labels = problem
    model.eval()
    model.norm.train()  # a mixture of modes comes back, too
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    first = gradient_score(model, images, labels)
    with torch.no_grad():
        assert gradient_score(model, images, labels) == first, 'dropout is the same for all'
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters()) and model.norm.training and not model.conv.training
    with torch.no_grad():
        model.linear.weight[0, 0] = math.inf
    assert gradient_score(model, images, labels) == math.inf


# ---- the batch

def loader_of(labels, *, shuffle, batch=8, seed=0):
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()
    return TensorLoader(images, labels, batch_size=batch, shuffle=shuffle, seed=seed, mean=(0,) * 3, std=(1 / 255,) * 3)


@pytest.mark.parametrize('shuffle', [False, True])
def test_a_batch_has_the_same_number_of_each_class(shuffle):
    labels = torch.arange(4).repeat_interleave(50)  # sorted by class, as folders are
    loader = loader_of(labels, shuffle=shuffle)
    images, found = balanced_batch(loader, 20, seed=1)
    assert images.shape == (20, 3, 2, 2) and torch.bincount(found).tolist() == [5] * 4
    numbers = images[:, 0, 0, 0].round().long()
    assert len(set(numbers.tolist())) == 20 and torch.equal(labels[numbers], found)
    again = balanced_batch(loader, 20, seed=1)
    assert torch.equal(images, again[0]) and torch.equal(found, again[1])
    other = balanced_batch(loader, 20, seed=2)
    assert not torch.equal(images, other[0])
    uneven = balanced_batch(loader, 6, seed=1)[1]
    assert sorted(torch.bincount(uneven, minlength=4).tolist()) == [1, 1, 2, 2]


def test_small_classes_are_filled_up_from_others():
    loader = loader_of(torch.tensor([0] * 30 + [1] * 2), shuffle=False)
    assert torch.bincount(balanced_batch(loader, 10)[1]).tolist() == [8, 2]
    images, labels = balanced_batch(loader, 100)
    assert len(images) == len(labels) == 32


# ---- the searcher

def space_of(ratio, *, pairs=False, layers=6, min_bit=1, max_bit=8, fixed=None):
    sizes = np.arange(1, layers + 1)[:, None, None] * np.arange(1, 9)[:, None]
    table = np.broadcast_to(sizes, (layers, 8, 8)) * (np.arange(1, 9) if pairs else np.ones(8, int))
    reference = int(table[:, -1, -1].sum())
    cost = CostTable(table, reference=reference, name='size', unit='bits')
    budget = Constraint(cost, ratio * reference)
    return ranged_space([budget], min_bit=min_bit, max_bit=max_bit, fixed=fixed, pairs=pairs)


def flat(strategy):
    return np.array(strategy).ravel()


def shaped(bits, pairs):
    return bits.reshape(-1, 2).tolist() if pairs else bits.tolist()


def course(space, score, seed, **options):
    """Returns what a search judges, and its strategy."""
    judged = []

    def judge(strategy):
        judged.append(strategy)
        return score(strategy)
    searcher = ProgressiveSearcher(space, judge, seed, **options)
    strategy = searcher.propose()
    assert searcher.judged == len(judged) and searcher.best() == strategy
    searcher.observe(strategy, 0.0)
    assert searcher.propose() is None and searcher.judged == len(judged)
    return judged, strategy


@pytest.mark.parametrize('pairs', [False, True])
def test_a_search_goes_down_to_the_budget(pairs):
    space, lam = space_of(0.4, pairs=pairs), 4
    judged, strategy = course(space, lambda strategy: -float(flat(strategy)[0]), 7, lam=lam)
    assert len(judged) % lam == 0
    state, width = flat(space.uniform(8)), len(flat(space.uniform(8)))
    for i in range(0, len(judged), lam):
        assert not space.holds(shaped(state, pairs))
        for candidate in judged[i:i + lam]:
            change = state - flat(candidate)
            assert set(change) <= {0, 1} and min(flat(candidate)) >= 2
            assert change.sum() == width // 2 or space.holds(candidate) and 0 < change.sum() <= width // 2
            if space.holds(candidate):  # it stops at once: without some lowering, the last one, it would not hold
                undone = (flat(candidate) + one for one in np.diag(change) if one.any())
                assert not all(space.holds(shaped(bits, pairs)) for bits in undone)
        scores = [-flat(candidate)[0] for candidate in judged[i:i + lam]]
        state = flat(judged[i + int(np.argmin(scores))])
    assert (flat(strategy) == state).all() and space.holds(strategy)


def test_fixed_layers_stay_and_a_search_is_a_function_of_seed_and_scores():
    space = space_of(0.5, pairs=True, fixed={0: [8, -1], 5: [8, 8]})

    def score(strategy):
        return float(np.dot(flat(strategy), np.arange(12) % 5))
    judged, strategy = course(space, score, 1, lam=3)
    assert all(entries[0] == [8, -1] and entries[5] == [8, 8] for entries in judged)
    assert course(space, score, 1, lam=3) == (judged, strategy)
    assert course(space, score, 2, lam=3)[0] != judged


def test_the_floor_and_the_lowest_budget():
    """Every bit has to go down to 2; a search that has only some left to lower lowers these."""
    _, strategy = course(space_of(2 / 8), lambda strategy: -float(sum(strategy)), 3, lam=5)
    assert strategy == [2] * 6
    with pytest.raises(ValueError, match=r'0\.2'):
        ProgressiveSearcher(space_of(0.2), None)
    judged, _ = course(space_of(0.7, min_bit=4, max_bit=7), lambda strategy: 0.0, 3, lam=2)
    assert min(map(min, judged)) >= 4 and max(map(max, judged)) <= 7


def test_a_search_among_candidates_goes_from_one_to_the_next():
    own = {0: LayerBits((8, 4, 2), (2, 8)), 1: LayerBits((1, 4), (4,)), 2: LayerBits((1,), (1,))}
    space = replace(space_of(0.2, pairs=True, layers=3), own=own)
    judged, strategy = course(space, lambda strategy: -float(flat(strategy)[0]), 3, lam=3)
    able = [{8, 4, 2}, {2, 8}, {4}, {4}, {1}, {1}]  # 2 bits at least, but what is fixed
    assert all(bit in able[place] for candidate in judged for place, bit in enumerate(flat(candidate)))
    assert space.holds(strategy) and strategy == [[8, 2], [4, 4], [1, 1]] and len(judged) == 3
    _, strategy = course(replace(space_of(0.104, pairs=True, layers=3), own=own), lambda strategy: 0.0, 3, lam=3)
    assert strategy[0] == [2, 2]


@pytest.mark.parametrize(('options', 'said'), [
    ({'lam': 0}, 'lam is 0'), ({'space': space_of(1, fixed={i: 8 for i in range(5)})}, 'lowers 0 of 1'),
    ({'space': space_of(1, fixed={i: 8 for i in range(6)})}, 'nothing to lower'),
])
def test_what_makes_no_search_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        ProgressiveSearcher(**{'space': space_of(0.5), 'judge': None, **options})


@pytest.mark.parametrize('evaluations', [1, 60, 1000])
def test_the_affordable_number_of_candidates(evaluations):
    space = space_of(0.4)
    lam = ProgressiveSearcher.affordable(space, 5, evaluations)
    taken = len(course(space, lambda strategy: -float(strategy[0]), 5, lam=lam)[0])
    assert lam == 1 if evaluations == 1 else 0.5 * evaluations < taken <= 1.3 * evaluations


# ---- the search of a network

@pytest.fixture
def lowered(monkeypatch):
    """`lowered(**settings)` -> (search of a small network, [(rate, norm of the gradient)] of every step of Adam)."""
    steps, adam = [], torch.optim.Adam.step

    def step(optimizer, *args, **kwargs):
        group = optimizer.param_groups[0]
        norm = torch.stack([p.grad.norm() for p in group['params'] if p.grad is not None]).norm()
        steps.append((group['lr'], norm.item()))
        return adam(optimizer, *args, **kwargs)
    monkeypatch.setattr(torch.optim.Adam, 'step', step)

    def start(**settings):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
        parts = quantize_parts(net, 8, 8, Quantizers('dorefa', 'pact'), torch.randn(2, 3, 12, 12))
        loader = loader_of(torch.arange(32) % CLASSES, shuffle=False)
        loader.images = torch.randint(256, (32, 3, 12, 12), dtype=torch.uint8)
        options = {'step': 3, 'lam': 4, 'search_epochs': 2, 'train_batch': 16, **settings}
        qat = {'arch': 'net', 'network': {}, 'normalize': None, 'parts': True, 'ends': 'called', 'quantizers': {
            'weights': 'dorefa', 'activations': 'pact', 'alpha': 10.0, 'end_alpha': 10.0, 'gradient': 'ste',
            'rescale': True, 'branch_out': True}}
        return ProgressiveSearch(net, parts, (loader, loader), StepSettings(**options), qat=qat, held_out=loader), steps
    return start


@pytest.mark.parametrize('info', ['hession', 'acc'])
def test_a_network_is_lowered_and_trained_step_by_step(lowered, info, tmp_path):
    search, steps = lowered(info=info, lr=0.01, grad_clip=0.05)
    log = StepLog(tmp_path, search.parts, kinds=['conv'] * 2, layer_names=['2', '4'], about={'arch': 'net'},
                  start={'cost': search.cost, 'test_acc': 25.0})
    search.run(log)
    assert [record['step'] for record in log.history] == [1, 2, 3]
    assert all(sum(before) - sum(after) == len(before) // 2 for before, after in zip(
        [[8] * 4, *(record['kbits'] for record in log.history)], [record['kbits'] for record in log.history],
        strict=False))
    rates = [0.005 * (1 + math.cos(math.pi * batch / 8)) for batch in range(8)]  # two epochs of four batches
    assert [rate for rate, _ in steps] == pytest.approx(rates * 3)
    assert max(norm for _, norm in steps) <= 0.05 + 1e-6
    assert search.parts.bits == search.bits == log.last['kbits'] and search.cost == log.last['cost']
    saved = read_checkpoint(step_path(tmp_path, 2))
    assert saved['kbits'] == log.history[1]['kbits'] and saved['step'] == 2 and len(saved['history']) == 2


def test_a_step_that_diverges_is_taken_back(lowered):
    search, _ = lowered(lr=1e30)
    before = {name: value.clone() for name, value in search.model.state_dict().items()}
    found = search.step(1)
    assert found['diverged'] and found['test_acc'] == 0 and found['kbits'] != search.bits == [8] * 4
    assert all(torch.equal(before[name], value) for name, value in search.model.state_dict().items())


def test_a_search_ends_at_its_cost_and_at_two_bits(lowered):
    search, _ = lowered(step=9, cost=7 / 32, search_epochs=1)
    search.run()
    assert search.cost <= 7 / 32 < 8 / 32
    search, _ = lowered(step=9, interval=4, ratio=1.0, search_epochs=1)
    search.run()
    assert search.bits == [2] * 4
