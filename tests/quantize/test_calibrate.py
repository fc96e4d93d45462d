"""Clipping ranges against the definition, a loop over all thresholds, and against brute force."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lib.quantize import ranges
from lib.quantize.ranges import find_range, kl_threshold, max_range, mse_range
from lib.quantize.uniform import choose_scale, fake_quantize

SAMPLERS = {
    'normal': lambda rng, n: rng.normal(size=n),
    'laplace': lambda rng, n: rng.laplace(size=n),
    'relu': lambda rng, n: np.maximum(rng.normal(size=n), 0),
    'student': lambda rng, n: rng.standard_t(3, size=n),
    'away from zero': lambda rng, n: 2 + rng.random(size=n),
}


def sample(name, n, seed=0):
    return torch.from_numpy(SAMPLERS[name](np.random.default_rng(seed), n)).float()


def threshold_by_loop(x, bits, bins='sqrt'):
    """The definition, one threshold after the other; returns it in bins, and the bin width."""
    x = np.abs(x.double().numpy())
    n = 2 ** (bits - 1)
    counts, edges = np.histogram(x, bins=bins, range=(0, x.max()))
    c = np.cumsum(counts / counts.sum())
    distances = {}
    for i in range(n + 1, len(counts) + 1):
        p = c.copy()
        p[i - 1 :] = 1
        down = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, i), p[:i])
        q = p.copy()
        q[:i] = np.interp(np.linspace(0, 1, i), np.linspace(0, 1, n), down)
        distances[i] = np.sum((c - q) * np.log2(np.maximum(c, 1e-12) / np.maximum(q, 1e-12)))
    return min(distances, key=distances.get) + 0.5, edges[1]


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize(('bits', 'n'), [*itertools.product([1, 2, 3, 4], [300, 20_000]), (1, 500_000), (4, 500_000)])
def test_kl_threshold_is_that_of_the_loop(name, bits, n):
    """Of 500 000 values there are some 710 bins, more than FEW_BINS."""
    x = sample(name, n)
    threshold, width = threshold_by_loop(x, bits)
    assert kl_threshold(x, bits) / width == pytest.approx(threshold, abs=1e-4)


def test_kl_threshold_with_empty_first_bins():
    x = torch.cat([sample('normal', 500) * 0.01 + 1, torch.tensor([0.2])])
    threshold, width = threshold_by_loop(x, 3)
    assert kl_threshold(x, 3) / width == pytest.approx(threshold, abs=1e-4)


HISTOGRAMS = {
    'spikes': lambda rng: rng.random(400) ** 30,
    'empty first bins': lambda rng: np.where(np.arange(400) < 150, 0, rng.random(400)),
    'most in one bin': lambda rng: np.where(np.arange(400) == 200, 1e6, rng.random(400)),
    'two humps': lambda rng: sum(np.exp(-(((np.arange(400) - at) / 15) ** 2)) for at in (60, 350)),
    'zeros of a relu': lambda rng: np.where(np.arange(400) == 0, 500, rng.random(400)),
}


@pytest.mark.parametrize('name', HISTOGRAMS)
@pytest.mark.parametrize('levels', [1, 2, 4, 8])
def test_bounds_are_below_the_distances_and_lose_none(name, levels, monkeypatch):
    monkeypatch.setattr(ranges, 'FEW_BINS', 0)
    counts = HISTOGRAMS[name](np.random.default_rng(3))
    distances = ranges._Distances(torch.from_numpy(counts / counts.sum()).cumsum(0), levels)
    exact, bounds = distances.of(distances.thresholds), distances.bounds()
    assert (bounds <= exact * (1 + 1e-9) + 1e-12).all()
    assert (bounds > 0.1 * exact).float().mean() > 0.5  # not the trivial ones
    assert exact[distances.least() - levels - 1] == exact.min()


def test_kl_threshold_with_too_many_bins_uses_wider_ones(monkeypatch):
    monkeypatch.setattr(ranges, 'MAX_BINS', 60)
    x = sample('laplace', 10_000)
    threshold, width = threshold_by_loop(x, 3, bins=60)
    assert kl_threshold(x, 3) / width == pytest.approx(threshold, abs=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_values_at_the_edges_of_bins_are_counted_exactly(dtype):
    rng = np.random.default_rng(0)
    for bins in (*rng.integers(2, ranges.MAX_BINS, 4).tolist(), 4096, ranges.MAX_BINS):
        top = torch.tensor(rng.exponential(), dtype=dtype)
        edges = (torch.arange(bins + 1) * (top.double() / bins)).to(dtype)
        x = torch.cat([edges, *(torch.nextafter(edges, torch.full_like(edges, to)) for to in (0, math.inf)), top[None]])
        x = x[x <= top]
        exact = [min(Fraction(value) * bins // Fraction(top.item()), bins - 1) for value in x.tolist()]
        exact = torch.bincount(torch.tensor(exact), minlength=bins).double()
        assert torch.equal(ranges._histogram(x, bins, top.item()), exact)


def test_kl_threshold_of_few_values_is_the_maximum():
    assert kl_threshold(torch.tensor([0.5, -2.0, 1.0]), 4) == 2
    assert kl_threshold(torch.full((1000,), -3.0), 2) == 3
    assert kl_threshold(torch.zeros(1000), 2) == 0
    assert kl_threshold(torch.tensor(1.5), 3) == 1.5


def test_kl_threshold_of_any_layout_and_dtype():
    x = sample('normal', 4 * 3 * 8 * 8).view(4, 3, 8, 8)
    assert kl_threshold(x.to(memory_format=torch.channels_last), 3) == kl_threshold(x, 3) == kl_threshold(x.double(), 3)
    assert kl_threshold(x.bfloat16(), 3) == kl_threshold(x.bfloat16().float(), 3)


def mean_squared_error(x, clip, bits, signed):
    scale = choose_scale(torch.tensor([clip], dtype=torch.float64), bits, signed)
    return (fake_quantize(x.double(), scale, bits, signed) - x).square().mean().item()


@pytest.mark.parametrize('name', ['normal', 'laplace', 'relu', 'student'])
@pytest.mark.parametrize('bits', [1, 2, 4, 8])
@pytest.mark.parametrize('signed', [True, False])
def test_mse_range_is_the_best_of_all(name, bits, signed):
    x = sample(name, 4000)
    ours = mean_squared_error(x, mse_range(x, bits, signed), bits, signed)
    top = max_range(x)
    brute = min(mean_squared_error(x, clip, bits, signed) for clip in np.linspace(top / 300, top, 300))
    assert ours <= brute * 1.001
    assert ours <= mean_squared_error(x, top, bits, signed)
    if bits <= 4:
        assert ours <= mean_squared_error(x, kl_threshold(x, bits), bits, signed) * 1.001


def test_mse_range_of_one_signed_bit_is_the_mean():
    x = sample('laplace', 1000)
    assert mse_range(x, 1, True) == pytest.approx(x.abs().mean().item())
    assert mse_range(torch.zeros(9), 4, False) == 0


def test_mse_range_from_a_sample(monkeypatch):
    x = sample('laplace', 40_000)
    whole = mse_range(x, 4, True)
    monkeypatch.setattr(ranges, 'MSE_SAMPLE', 10_000)
    assert mse_range(x, 4, True) == pytest.approx(whole, rel=0.05)
    assert mse_range(x, 4, True) != whole


def test_find_range():
    x = sample('laplace', 5000)
    top = x.abs().max().item()
    assert find_range(x, 4, signed=True) == kl_threshold(x, 4) != top
    assert find_range(x, 5, signed=True) == top
    assert find_range(x, 5, signed=True, kl_bits=4) == kl_threshold(x, 4)
    assert find_range(x, 4, signed=True, method='max') == top
    assert find_range(x, 6, signed=True, method='mse') == mse_range(x, 6, True) < top
    assert find_range(x, 1, signed=True) == pytest.approx(x.abs().mean().item())


def test_refuses_what_has_no_range():
    with pytest.raises(ValueError, match='entropy'):
        find_range(torch.ones(3), 4, signed=True, method='entropy')
    with pytest.raises(ValueError, match='empty'):
        kl_threshold(torch.empty(0), 4)
    for bad in (float('nan'), float('inf'), -float('inf')):
        for method in ranges.METHODS:
            with pytest.raises(ValueError, match='finite'):
                find_range(torch.tensor([1.0, bad]), 3, signed=True, method=method)
