"""What is special to DSQ: its soft curve, gradients at the edges of bins, and bounds found, learned or degenerate."""

import copy
import math

import pytest
import torch

from lib.quantize import DSQQuantizer
from tests.tiny import sample

ALL_BITS = range(1, 9)
LEARN_ALL = {'learn_lower': True, 'learn_upper': True, 'learn_slope': True}


def soft(x, lower, upper, bits, slope):
    """The soft curve of DSQ, differentiable in `x`, both bounds and the slope."""
    top = 2**bits - 1
    step = (upper - lower) / top
    slope = torch.as_tensor(slope, dtype=x.dtype)
    z = ((x - lower) / step).clamp(0, top)
    middle = z.detach().floor() + 0.5  # at `upper` that of a piece too many, with the same value and slope there
    return lower + step * (middle + torch.tanh(slope * (z - middle)) / (2 * torch.tanh(slope / 2)))


def doubles(*values):
    return [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in values]


def paper_form(x, lower, upper, bits, slope):
    """Q_S of the paper, bin by bin: phi = s tanh(k (x - m_i)) with s = 1 / tanh(k D / 2), here with k = slope / D."""
    delta = (upper - lower) / (2**bits - 1)
    out = torch.where(x < lower, lower, upper)
    for i in range(2**bits - 1):
        left, right, middle = lower + i * delta, lower + (i + 1) * delta, lower + (i + 0.5) * delta
        phi = torch.tanh(slope / delta * (x - middle)) / torch.tanh(slope / 2)
        out = torch.where((x >= left) & (x <= right), lower + delta * (i + (phi + 1) / 2), out)
    return out


# --- the curve


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('slope', [0.1, 2.0, 10.0])
def test_soft_curve_is_the_papers(bits, slope):
    x = 2 * sample(500, dtype=torch.float64)
    lower, upper, k = doubles(-1.3, 1.9, slope)
    edges = lower + torch.arange(2**bits) * (upper - lower) / (2**bits - 1)
    torch.testing.assert_close(soft(x, lower, upper, bits, k), paper_form(x, lower, upper, bits, k))
    torch.testing.assert_close(soft(edges, lower, upper, bits, k), edges)
    assert torch.equal(soft(x, -1.3, 1.9, bits, slope), soft(x, lower, upper, bits, k).detach())


@pytest.mark.parametrize('bits', [1, 2, 3, 8])
@pytest.mark.parametrize('slope', [0.1, 1.0, 5.0, 10.0])
def test_gradients_of_the_soft_curve_are_finite_differences(bits, slope):
    x = torch.tensor([-2.0, -0.93, -0.31, 0.02, 0.4, 0.77, 1.1, 1.83, 2.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: soft(t[0], t[1], t[2], bits, t[3]), (x, *doubles(-1.3, 1.9, slope)))


def test_slope_goes_from_identity_to_staircase():
    x = torch.linspace(-1, 2, 1001, dtype=torch.float64)
    z = x + 1
    assert (soft(x, -1.0, 2.0, 2, 0.1) - x).abs().max() < 1e-3
    away = (z - z.floor() - 0.5).abs() > 0.25
    assert (soft(x, -1.0, 2.0, 2, 10.0) - (z.round() - 1))[away].abs().max() < 0.01
    gaps = [(soft(x, -1.0, 2.0, 2, slope) - (z.round() - 1)).abs().mean() for slope in (0.1, 1, 2, 5, 10)]
    assert gaps == sorted(gaps, reverse=True)


def test_codes_need_a_lower_bound_of_zero_or_an_affine_map():
    signed, minmax, x = DSQQuantizer(4, lower=-1.0), DSQQuantizer(4, bounds='minmax'), sample(10)
    for quantizer in (signed, minmax):
        with pytest.raises(ValueError, match='to_affine'):
            quantizer.to_int(x)
    assert minmax.to_int(x.relu())[0].max() == 15
    with pytest.raises(ValueError, match='-1'):
        signed.grid()
    with pytest.raises(ValueError, match='minmax'):
        minmax.grid()


# --- gradients


@pytest.mark.parametrize('slope', [0.1, 1.0, 5.0, 10.0])
def test_gradients_in_single_precision(slope):
    x, direction, results = sample(2000), sample(2000, seed=1), []
    for dtype in (torch.float32, torch.float64):
        quantizer = DSQQuantizer(3, lower=-1.0, slope=slope, **LEARN_ALL).to(dtype)
        inputs = x.to(dtype).requires_grad_(), quantizer.lower, quantizer.upper, quantizer.slope
        results.append([g.double() for g in torch.autograd.grad(quantizer(inputs[0]), inputs, direction.to(dtype))])
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('bits', ALL_BITS)
def test_gradient_at_the_edges_of_bins(bits):
    """At every level, both bounds included, the curve has the slope that it has at the end of a piece."""
    top = 2**bits - 1
    x = torch.arange(top + 1, dtype=torch.float64).requires_grad_()
    quantizer = DSQQuantizer(bits, upper=float(top), slope=2.0).double()
    quantizer(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x.grad, (1 - math.tanh(1) ** 2) / math.tanh(1)))


@pytest.mark.parametrize('bits', ALL_BITS)
def test_largest_and_smallest_weight_learn(bits):
    for seed in range(50):
        weight = sample(40, seed=seed).requires_grad_()
        DSQQuantizer(bits, bounds='minmax', slope=1.0)(weight).sum().backward()
        assert (weight.grad > 0.5).all()


def test_each_parameter_learns_alone_what_it_learns_with_the_others():
    x, quantizer = sample(100), DSQQuantizer(2, **LEARN_ALL)
    quantizer(x).sum().backward()
    for name in ('lower', 'upper', 'slope'):
        one = DSQQuantizer(2, **{f'learn_{name}': True})
        assert [n for n, p in one.named_parameters() if p.requires_grad] == [name]
        one(x).sum().backward()
        torch.testing.assert_close(getattr(one, name).grad, getattr(quantizer, name).grad)


@pytest.mark.parametrize('slope', [0.0, -3.0, 1e4])
def test_a_slope_gone_astray(slope):
    x, quantizer = sample(100).requires_grad_(), DSQQuantizer(2, **LEARN_ALL)
    with torch.no_grad():
        quantizer.slope.fill_(slope)
    quantizer(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in quantizer.parameters())
    if slope == 0:  # the identity inside
        assert torch.allclose(x.grad, ((x >= 0) & (x <= 2)).float(), atol=1e-4)
    if slope == -3:
        twin = DSQQuantizer(2, slope=3.0, **LEARN_ALL)
        twin(sample(100)).sum().backward()
        assert quantizer.slope.grad.item() == -twin.slope.grad.item() != 0


# --- bounds


@pytest.mark.parametrize('bits', [1, 2, 8])
@pytest.mark.parametrize(('lower', 'upper'), [(0.0, 0.0), (0.0, -1.0), (0.5, 0.5), (0.5, 0.2)])
def test_an_empty_range_recovers(bits, lower, upper):
    x, quantizer = torch.tensor([0.5, 1.0, 2.0], requires_grad=True), DSQQuantizer(bits, **LEARN_ALL)
    with torch.no_grad():
        quantizer.lower.fill_(lower)
        quantizer.upper.fill_(upper)
    y = quantizer(x)
    y.sum().backward()
    assert torch.allclose(y, torch.full_like(y, lower), atol=1e-5)
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in quantizer.parameters())
    assert quantizer.to_affine(x).zero_point.isfinite().all()
    optimizer = torch.optim.SGD([quantizer.lower, quantizer.upper], lr=0.1)
    for _ in range(50):
        optimizer.zero_grad()
        ((quantizer(x) - x.detach()) ** 2).sum().backward()
        optimizer.step()
    assert quantizer.upper - quantizer.lower > 1


@pytest.mark.parametrize('value', [0.0, 0.3, -1e-3, 1e6])
def test_weights_that_are_all_equal(value):
    weight = torch.full((4, 3), value, requires_grad=True)
    for bits in (1, 3, 16):
        quantizer = DSQQuantizer(bits, bounds='minmax', slope=1.0, learn_slope=True)
        y = quantizer(weight)
        (grad,) = torch.autograd.grad(y.sum(), weight)
        assert torch.equal(y, weight) and (grad > 0.5).all()
        affine = quantizer.to_affine(weight)
        torch.testing.assert_close(affine.scale * (affine.codes - affine.zero_point), weight.detach().double())


@pytest.mark.parametrize('scale', [1e-30, 1e-8, 1e20])
def test_weights_of_any_magnitude(scale):
    weight = sample(50)
    quantizer = DSQQuantizer(3, bounds='minmax')
    torch.testing.assert_close(quantizer(weight * scale) / scale, quantizer(weight))


def test_minmax_bounds_are_those_of_the_tensor_unless_learned():
    weight, given = sample(60), {'lower': -0.2, 'upper': 0.2}
    quantizer = DSQQuantizer(2, bounds='minmax', **given)
    assert (quantizer(weight).min(), quantizer(weight).max()) == (weight.min(), weight.max())
    assert quantizer(3 * weight).max() == 3 * weight.max() and not any(p.requires_grad for p in quantizer.parameters())
    quantizer = DSQQuantizer(2, bounds='minmax', learn_upper=True, **given)
    y = quantizer(weight)
    y.sum().backward()
    assert y.max().item() == pytest.approx(0.2) and y.min() == weight.min()
    assert quantizer.upper.grad.item() >= (weight > 0.2).sum().item() and quantizer.lower.grad is None
    quantizer = DSQQuantizer(2, bounds='minmax', learn_lower=True, learn_upper=True, **given)
    assert quantizer(weight).unique().tolist() == pytest.approx([-0.2, -0.2 / 3, 0.2 / 3, 0.2])


@pytest.mark.parametrize('first', ['training', 'evaluation', 'calibrate', 'to_affine'])
def test_learned_minmax_bounds_begin_at_those_of_the_first_tensor(first):
    weight, quantizer = sample(60), DSQQuantizer(4, bounds='minmax', learn_lower=True, learn_upper=True)
    quantizer.clamp_(lower=(-5, 5), upper=(-5, 5))
    assert quantizer.lower.isinf() and quantizer.upper.isinf()
    with torch.set_grad_enabled(first == 'training'):
        {'calibrate': quantizer.calibrate, 'to_affine': quantizer.to_affine}.get(first, quantizer)(weight)
    bounds = weight.min().item(), weight.max().item()
    quantizer.calibrate(3 * weight)
    quantizer(3 * weight)
    assert (quantizer.lower.item(), quantizer.upper.item()) == bounds
    for twin in (copy.deepcopy(quantizer), DSQQuantizer(4, bounds='minmax', learn_lower=True, learn_upper=True)):
        twin.load_state_dict(quantizer.state_dict())
        assert torch.equal(twin(3 * weight), quantizer(3 * weight)) and twin.upper.item() == bounds[1]


def test_calibration_leaves_configured_bounds():
    quantizer = DSQQuantizer(4, **LEARN_ALL)
    quantizer.calibrate(10 * sample(100), method='max', cap=1.0)
    assert (quantizer.lower.item(), quantizer.upper.item(), quantizer.slope.item()) == (0, 2, 5)


def test_clamps_what_is_learned():
    quantizer = DSQQuantizer(4, upper=9.0, slope=20.0, learn_upper=True, learn_slope=True)
    slope = quantizer.slope
    quantizer.clamp_(slope=(0.1, 10), lower=(1, 2), upper=(1, 6))
    assert (quantizer.lower.item(), quantizer.upper.item(), quantizer.slope.item()) == (0, 6, 10)
    assert quantizer.slope is slope
    fixed = DSQQuantizer(4, upper=9.0, slope=20.0)
    fixed.clamp_(slope=(0.1, 10), upper=(1, 6))
    assert (fixed.upper.item(), fixed.slope.item()) == (9, 20)
