import itertools

import pytest
import torch

from lib.quantize.compensate import Moments, Problem, compensate, compensate_codebook
from lib.quantize.kmeans import fit_codebook


def problem(groups=1, outputs=3, size=4, seed=0, diagonal=False, **more):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(groups, 200, size, generator=generator, dtype=torch.float64)
    inputs = inputs @ (torch.eye(size) + 0.7 * torch.randn(groups, size, size, generator=generator)).double()
    second = inputs.mT @ inputs / 200
    if diagonal:
        second = torch.diag_embed(second.diagonal(dim1=1, dim2=2))
    weight = torch.randn(groups, outputs, size, generator=generator, dtype=torch.float64)
    return Problem(weight, Moments(second, inputs.mean(1)), **more), inputs


def to_grid(step, top):
    return lambda column: (column / step).round().clamp(-top, top) * step


def plainly(weight, metric, nearest):
    """The column loop of the reference page, one group, nothing in blocks."""
    rest, inverse = weight.clone(), torch.linalg.inv(metric)
    upper = torch.linalg.cholesky(inverse).mT
    chosen = torch.zeros_like(rest)
    for j in range(rest.shape[1]):
        chosen[:, j] = nearest(rest[:, j])
        error = (rest[:, j] - chosen[:, j]) / upper[j, j]
        for k in range(j + 1, rest.shape[1]):
            rest[:, k] -= error * upper[j, k]
    return chosen


@pytest.mark.parametrize('block', [1, 5, 128])
@pytest.mark.parametrize('groups', [1, 3])
def test_blocks_change_nothing(block, groups):
    each, _ = problem(groups, outputs=4, size=12)
    found = each.round(to_grid(0.5, 3), block)
    for group in range(groups):
        plain = plainly(each.weight[group], each.metric[group], to_grid(0.5, 3))
        torch.testing.assert_close(found[group], plain, rtol=0, atol=1e-12)


def test_between_rounding_and_the_best_of_all_codes():
    step, top, better = 0.8, 1, 0
    levels = torch.tensor([-step, 0.0, step], dtype=torch.float64)
    for seed in range(12):
        each, _ = problem(seed=seed)
        codes = torch.tensor(list(itertools.product(levels, repeat=4)), dtype=torch.float64)
        nearest = to_grid(step, top)
        rounded, chosen = nearest(each.weight), compensate(each, nearest)
        for row in range(3):
            rest = each.weight[0, row] - codes
            best = ((rest @ each.metric[0]) * rest).sum(1).min()
            ours, theirs = each.errors(chosen)[0, row], each.errors(rounded)[0, row]
            assert best - 1e-12 <= ours <= theirs + 1e-12
            better += bool(ours < theirs - 1e-9)
    assert better > 5


def test_a_diagonal_metric_is_rounding():
    each, _ = problem(diagonal=True)
    assert torch.equal(each.round(to_grid(0.5, 3)), to_grid(0.5, 3)(each.weight))


def test_asymmetric_target_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(1)
    theirs = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    ours = theirs + 0.3 * torch.randn(300, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    moments = Moments((ours.mT @ ours / 300)[None], ours.mean(0)[None], (theirs.mT @ ours / 300)[None],
                      theirs.mean(0)[None])
    expected = torch.linalg.lstsq(ours, theirs @ weight.mT).solution.mT
    torch.testing.assert_close(Problem(weight[None], moments, damping=1e-12).weight[0], expected, rtol=0, atol=1e-8)


def test_error_is_that_of_the_outputs():
    each, inputs = problem(damping=1e-14)
    rounded = to_grid(0.5, 3)(each.weight)
    outputs = inputs[0] @ (each.weight - rounded)[0].mT
    assert each.error(rounded) == pytest.approx(float(outputs.square().sum() / len(inputs[0])))


def test_dead_inputs_have_weights_of_0_and_groups_without_inputs_are_rounded():
    each, _ = problem()
    second = each.metric.clone()
    second[:, 1] = second[:, :, 1] = 0
    rounded = Problem(each.weight, Moments(second, torch.zeros(1, 4))).round(to_grid(0.5, 3))
    assert not rounded[..., 1].any() and rounded[..., 0].any()
    nothing = Problem(each.weight, Moments(torch.zeros(1, 4, 4), torch.zeros(1, 4)))
    assert nothing.round(to_grid(0.5, 3)).isfinite().all()


@pytest.mark.parametrize('second, message', [(torch.eye(3)[None], 'shape'),
                                             (torch.full((1, 4, 4), torch.nan), 'finite')])
def test_moments_that_do_not_fit_are_refused(second, message):
    with pytest.raises(ValueError, match=message):
        Problem(torch.zeros(1, 2, 4), Moments(second, torch.zeros(1, 4)))


@pytest.mark.parametrize('groups, outputs, size', [(1, 8, 20), (6, 1, 9)])
@pytest.mark.parametrize('bits', [1, 2, 4])
def test_codebooks_are_better_than_k_means(groups, outputs, size, bits):
    each, _ = problem(groups, outputs, size)
    plain = fit_codebook(each.weight.float(), bits, max_iter=50)
    centroids, labels = compensate_codebook(each, bits)
    assert labels.shape == each.weight.shape and len(centroids) <= 2**bits and (centroids.diff() >= 0).all()
    assert each.error(centroids.double()[labels.long()]) < each.error(plain.decode().double())


def test_centroids_are_the_solution_of_the_linear_system():
    each, _ = problem(outputs=5, size=8)
    centroids, labels = compensate_codebook(each, 2, rounds=1)
    ones = torch.nn.functional.one_hot(labels.long(), len(centroids)).double()[0]  # (O, d, K)
    matrix = torch.einsum('oik,ij,ojl->kl', ones, each.metric[0], ones)
    right = torch.einsum('oik,ij,oj->k', ones, each.metric[0], each.weight[0])
    torch.testing.assert_close(centroids.double(), torch.linalg.solve(matrix, right), rtol=1e-5, atol=1e-6)


def test_pruned_zeros_stay_and_have_no_centroid():
    each, _ = problem(outputs=6, size=10)
    kept = torch.rand(each.weight.shape, generator=torch.Generator().manual_seed(3)) > 0.4
    pruned = Problem(each.weight * kept, Moments(each.metric, torch.zeros(1, 10)))
    centroids, labels = compensate_codebook(pruned, 2, kept=kept)
    plain = fit_codebook(pruned.weight.float(), 2, is_pruned=True, max_iter=50).decode().double()
    assert pruned.error(centroids.double()[labels.long()] * kept) < pruned.error(plain)
