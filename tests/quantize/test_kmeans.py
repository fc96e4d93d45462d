"""K-means against brute force, scikit-learn and the definition."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from lib.quantize.kmeans import CodebookCache, fit_codebook

SAMPLERS = {
    'normal': lambda rng, n: rng.normal(size=n),
    'laplace': lambda rng, n: rng.laplace(size=n),
    'student': lambda rng, n: rng.standard_t(3, size=n),
}


def sample(name, n, seed=0):
    return torch.from_numpy(SAMPLERS[name](np.random.default_rng(seed), n)).float()


def squared_error(weight, codebook, importance=1):
    return (importance * (weight.double() - codebook.decode().double()) ** 2).sum().item()


def least_error(values, k, counts=None):
    """Error of the best partition of sorted `values` into at most k intervals, by dynamic programming over all."""
    n, counts = len(values), np.ones(len(values)) if counts is None else counts
    cost = np.full((n + 1, n + 1), np.inf)  # of an interval from a up to b
    for a in range(n):
        count, total, square = (np.cumsum(counts[a:] * (values[a:] - values[a])**power) for power in range(3))
        cost[a, a + 1:] = square - np.divide(total**2, count, where=count > 0, out=np.zeros(n - a))
    best = cost[0]
    for _ in range(k - 1):
        best = np.minimum(best, (best[:, None] + cost).min(0))
    return best[n]


def least_of_all(values, k, counts):
    """The same by trying every partition."""
    def error(a, b):
        mean = np.average(values[a:b], weights=counts[a:b])
        return counts[a:b] @ (values[a:b] - mean)**2
    return min(sum(error(a, b) for a, b in pairwise([0, *cuts, len(values)]))
               for cuts in combinations(range(1, len(values)), k - 1))


@pytest.mark.parametrize('bits', [1, 2, 3])
@pytest.mark.parametrize('seed', range(5))
def test_few_weights_are_divided_as_well_as_they_can_be(bits, seed):
    weight, counts = sample('student', 12, seed).sort()[0], np.random.default_rng(seed).uniform(0.1, 3, 12)
    for importance in (np.ones(12), counts):
        best = least_of_all(weight.double().numpy(), 2**bits, importance)
        assert least_error(weight.double().numpy(), 2**bits, importance) == pytest.approx(best)
        importance = torch.from_numpy(importance)
        book = fit_codebook(weight, bits, importance=importance, max_iter=50)
        assert squared_error(weight, book, importance) == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize('name', SAMPLERS)
@pytest.mark.parametrize('bits', range(1, 9))
def test_error_is_within_a_hundredth_of_the_least(name, bits):
    for n in (2**bits + 1, 2**bits + 40, 600):
        weight = sample(name, n, bits)
        best = least_error(weight.double().sort()[0].numpy(), 2**bits)
        assert 1 - 1e-4 < squared_error(weight, fit_codebook(weight, bits)) / best < 1.01


def exponents(rng, n):
    return 10 ** rng.uniform(-6, 6, n)


IMPORTANCES = {
    'alike': lambda rng, n: rng.uniform(1, 2, n),
    'many magnitudes': exponents,
    'some count nothing': lambda rng, n: rng.uniform(0, 1, n) * (rng.random(n) < 0.4),
}


@pytest.mark.parametrize('importance', IMPORTANCES)
@pytest.mark.parametrize('bits', [1, 2, 3, 5])
def test_error_is_close_to_that_of_the_best_weighted_partition(importance, bits):
    ratios = []
    for seed in range(10):
        weight = sample('normal', 200, seed).sort()[0]
        counts = torch.from_numpy(IMPORTANCES[importance](np.random.default_rng(seed), 200))
        best = least_error(weight.double().numpy(), 2**bits, counts.numpy())
        ratios.append(squared_error(weight, fit_codebook(weight, bits, importance=counts, max_iter=50), counts) / best)
    assert min(ratios) > 1 - 1e-4
    assert np.mean(ratios) < 1.01


def test_importance_counts_as_that_many_equal_weights():
    """Order, shape, scale and pruning as without it; an importance of each input broadcasts."""
    rng = np.random.default_rng(0)
    weight, inputs = sample('laplace', 3000).view(30, 100), torch.from_numpy(rng.integers(1, 5, 100))
    weight[weight.abs() < 0.3] = 0
    for is_pruned in (False, True):
        repeated = fit_codebook(weight.repeat_interleave(inputs, 1), 4, is_pruned=is_pruned, max_iter=1000)
        for counts in (inputs, inputs.expand(30, 100) * 1e-30, inputs[None].float() * 1e30):
            book = fit_codebook(weight, 4, is_pruned=is_pruned, importance=counts, max_iter=1000)
            torch.testing.assert_close(book.centroids, repeated.centroids, rtol=1e-5, atol=1e-6)
            assert torch.equal(book.labels.repeat_interleave(inputs, 1), repeated.labels)
    plain = fit_codebook(weight, 4)
    for none in (None, torch.zeros(1), torch.tensor(3.0)):
        assert torch.equal(fit_codebook(weight, 4, importance=none).labels, plain.labels)


@pytest.mark.parametrize(('importance', 'message'), [
    (torch.ones(2, 4), r'\(2, 4\) of a weight \(4,\)'),
    (torch.tensor([1.0, -1.0, 1.0, 1.0]), 'from -1 to 1'),
    (torch.tensor([1.0, float('nan'), 1.0, 1.0]), 'from nan'),
    (torch.tensor([1.0, float('inf'), 1.0, 1.0]), 'to inf'),
])
def test_refuses_importance(importance, message):
    with pytest.raises(ValueError, match=message):
        fit_codebook(torch.arange(4.0), 1, importance=importance)


@pytest.mark.parametrize('name', SAMPLERS)
def test_error_is_not_above_scikit_learns_after_fifty_iterations(name):
    weight = sample(name, 30_000)
    for bits in (4, 6):
        reference = [KMeans(2**bits, n_init=1, max_iter=50, random_state=seed).fit(weight[:, None].double().numpy())
                     for seed in range(2)]
        assert squared_error(weight, fit_codebook(weight, bits)) <= np.mean([run.inertia_ for run in reference])


def test_iterations_are_those_of_scikit_learn():
    weight = sample('laplace', 5000)
    start = fit_codebook(weight, 4, max_iter=1).centroids.double().numpy()[:, None]
    reference = KMeans(16, init=start, n_init=1, max_iter=5, tol=0).fit(weight[:, None].double().numpy())
    codebook = fit_codebook(weight, 4, max_iter=6)
    np.testing.assert_allclose(codebook.centroids, reference.cluster_centers_.ravel(), rtol=1e-5)
    assert len(np.unique(reference.labels_ * 16 + codebook.labels.numpy())) == 16  # the same clusters


def test_error_falls_with_every_iteration_until_each_weight_has_the_nearest_centroid():
    weight = sample('student', 20_000)
    errors = [squared_error(weight, fit_codebook(weight, 5, max_iter=n)) for n in (1, 2, 3, 5, 10, 1000)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0]
    codebook = fit_codebook(weight, 5, max_iter=1000)
    nearest = (weight[:, None] - codebook.centroids).abs().amin(1)
    torch.testing.assert_close((weight - codebook.decode()).abs(), nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize('bits', range(1, 9))
def test_codebook_of_a_convolution(bits):
    weight = sample('normal', 24 * 8 * 9).view(24, 8, 3, 3)
    codebook = fit_codebook(weight, bits)
    assert codebook.labels.shape == weight.shape and codebook.labels.dtype == torch.uint8 and codebook.kept is None
    assert codebook.centroids.dtype == torch.float32 and len(codebook.centroids) == 2**bits
    assert (codebook.centroids.diff() > 0).all()
    for label, centroid in enumerate(codebook.centroids):
        torch.testing.assert_close(centroid, weight[codebook.labels == label].mean(), rtol=1e-5, atol=1e-7)
        assert (codebook.decode()[codebook.labels == label] == centroid).all()


@pytest.mark.parametrize('options', [{}, {'is_pruned': True}, {'importance': sample('normal', 40_000).square()}])
def test_nothing_in_it_is_random(options):
    weight = sample('normal', 40_000)
    weight[::3] = 0
    first = fit_codebook(weight, 6, **options)
    torch.rand(7), np.random.rand(7)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    second = fit_codebook(weight, 6, **options)
    assert torch.equal(first.centroids, second.centroids) and torch.equal(first.labels, second.labels)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize(
    'weight',
    [
        torch.full((4, 3, 3, 3), 0.25),
        torch.zeros(10, 5),
        torch.tensor([0.7]),
        torch.tensor([3.0, -1.0, 3.0, 0.0, -1.0]),
        torch.arange(256.0).view(16, 16).repeat(3, 1),
        torch.tensor([1e-30, 2e-30, -1e30]),
    ],
)
def test_no_more_values_than_clusters_are_reproduced_exactly(weight):
    codebook = fit_codebook(weight, 8)
    assert torch.equal(codebook.centroids, weight.unique())
    assert torch.equal(codebook.decode(), weight)


def test_mostly_zeros():
    weight = sample('normal', 4000)
    weight[torch.randperm(4000, generator=torch.Generator().manual_seed(0))[:3800]] = 0
    codebook = fit_codebook(weight, 6)
    assert len(codebook.centroids) == 64 and codebook.decode().isfinite().all()
    assert squared_error(weight, codebook) < 0.02 * weight.double().square().sum()


@pytest.mark.parametrize('scale', [1e-30, 1e-6, 1e30])
def test_scale_of_the_weights_does_not_matter(scale):
    weight = sample('normal', 3000)
    plain, scaled = fit_codebook(weight, 4), fit_codebook(weight.double() * scale, 4)
    torch.testing.assert_close(scaled.centroids.double() / scale, plain.centroids.double(), rtol=1e-5, atol=1e-6)


def test_one_far_outlier_among_equal_weights_near_zero():
    weight = torch.cat([sample('normal', 5000) * 1e-20, torch.tensor([1e15])])
    codebook = fit_codebook(weight, 2)
    assert codebook.centroids.isfinite().all() and codebook.centroids[-1] == 1e15


def test_pruned_weights_stay_zero_and_do_not_move_a_centroid():
    weight = sample('normal', 3000).view(30, 100)
    weight[weight.abs() < 0.5] = 0
    codebook = fit_codebook(weight, 3, is_pruned=True)
    assert torch.equal(codebook.kept, weight != 0)
    assert torch.equal(codebook.decode() == 0, weight == 0)
    dense = fit_codebook(weight[weight != 0], 3)
    assert torch.equal(codebook.centroids, dense.centroids)
    assert torch.equal(codebook.decode()[weight != 0], dense.decode())


def test_all_weights_pruned():
    codebook = fit_codebook(torch.zeros(3, 4), 4, is_pruned=True)
    assert len(codebook.centroids) == 0 and not codebook.kept.any()
    assert torch.equal(codebook.decode(), torch.zeros(3, 4))


def test_memory_layout_and_dtype_do_not_matter():
    weight = sample('laplace', 16 * 8 * 9).view(16, 8, 3, 3)
    plain = fit_codebook(weight, 4)
    channels_last = fit_codebook(weight.to(memory_format=torch.channels_last), 4)
    assert torch.equal(plain.labels, channels_last.labels)
    assert torch.equal(plain.labels, fit_codebook(weight.double(), 4).labels)
    assert torch.equal(fit_codebook(weight.bfloat16(), 4).labels, fit_codebook(weight.bfloat16().float(), 4).labels)
    assert torch.equal(plain.labels, fit_codebook(torch.nn.Parameter(weight), 4).labels)


@pytest.mark.parametrize('bits', [0, 9, -1, 4.5, None])
def test_refuses_bits(bits):
    with pytest.raises(ValueError, match='bits'):
        fit_codebook(torch.ones(4), bits)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_refuses_weights_that_are_not_finite(bad):
    for bits in range(1, 9):
        with pytest.raises(ValueError, match='not finite'):
            fit_codebook(torch.tensor([1.0, bad, 2.0]), bits)


def test_refuses_nothing_to_do():
    with pytest.raises(ValueError, match='empty'):
        fit_codebook(torch.empty(0, 3), 2)
    with pytest.raises(ValueError, match='max_iter'):
        fit_codebook(torch.ones(3), 2, max_iter=0)


def test_cache_fits_once_for_every_layer_and_bits():
    cache = CodebookCache(max_iter=5)
    weights = {'a': sample('normal', 500), 'b': sample('laplace', 400)}
    for _ in range(3):
        books = [cache.get(name, weight, bits) for name, weight in weights.items() for bits in (2, 3)]
    assert cache.get('a', weights['a'], 2) is books[0] and cache.get('b', weights['b'], 3) is books[3]
    assert torch.equal(books[1].centroids, fit_codebook(weights['a'], 3, max_iter=5).centroids)
