"""DSQ against the paper's formula in plain autograd, all its codes, and bounds found, learned or degenerate."""

import copy
import math

import pytest
import torch
from torch import nn

from lib.quantize import DSQQuantizer, QConv2d, QLinear, alpha_of_slope, calibrating, slope_of_alpha
from lib.quantize.dsq import soft

ALL_BITS = range(1, 9)
LEARN_ALL = {'learn_lower': True, 'learn_upper': True, 'learn_slope': True}


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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


def training_form(x, lower, upper, bits, slope):
    """Soft in steps, clipped, rounded straight through, times the step, plus l: what a program in autograd does."""
    top = 2**bits - 1
    delta = (upper - lower) / top
    z = (x - lower) / delta
    f = z.detach().floor()
    steps = (f + 0.5 + 0.5 / torch.tanh(slope / 2) * torch.tanh(slope * (z - f - 0.5))).clamp(0, top)
    return (steps + (steps.round() - steps).detach()) * delta + lower


# --- the curve


def test_slope_and_alpha():
    for slope, alpha in ((2, 0.238), (2.197, 0.2), (5, 0.0134), (10, 9.1e-5), (0.1, 0.95)):
        assert alpha_of_slope(slope) == pytest.approx(alpha, rel=5e-3) == 1 - math.tanh(slope / 2)
        assert slope_of_alpha(alpha_of_slope(slope)) == pytest.approx(slope)
    assert slope_of_alpha(0.2) == pytest.approx(math.log(9)) and alpha_of_slope(1e4) == 0
    for alpha in (0.0, 1.0, -0.1, 2.0, math.nan):
        with pytest.raises(ValueError, match='alpha'):
            slope_of_alpha(alpha)
    with pytest.raises(ValueError, match='slope'):
        alpha_of_slope(0)


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


# --- codes


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('upper', [2.0, 0.7, 1e-4])
def test_forward_codes_and_grid_are_one_map(check_map, bits, upper):
    check_map(DSQQuantizer(bits, upper=upper), list(range(2**bits)))


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize(('lower', 'upper'), [(-1.0, 1.0), (-0.2, 3.1), (0.5, 0.75)])
def test_forward_is_uniform_rounding(bits, lower, upper):
    quantizer = DSQQuantizer(bits, lower=lower, upper=upper).double()
    low, high = quantizer.lower.detach(), quantizer.upper.detach()
    delta = (high - low) / (2**bits - 1)
    edges = low + torch.arange(-3, 2 ** (bits + 1) + 3) * delta / 2
    x = torch.cat([edges - 1e-9, edges + 1e-9, low, high, 2 * sample(500, dtype=torch.float64), edges.new_tensor([
        math.inf, -math.inf, 1e300])])
    expected = low + delta * ((x.clamp(low, high) - low) / delta).round()
    torch.testing.assert_close(quantizer(x), expected)
    torch.testing.assert_close(quantizer(x.requires_grad_()).detach(), expected)
    affine = quantizer.to_affine(x)
    assert affine.codes.unique().tolist() == list(range(2**bits)) and affine.bits == bits
    torch.testing.assert_close(affine.scale * (affine.codes - affine.zero_point), expected)
    assert quantizer(x).unique().numel() == 2**bits


def test_examples():
    x = torch.tensor([-1.0, 0.6, 2.0])
    assert DSQQuantizer(2, upper=1.5)(x).tolist() == [0, 0.5, 1.5]
    assert DSQQuantizer(1, lower=-1.5, upper=1.5)(x).tolist() == [-1.5, 1.5, 1.5]
    assert DSQQuantizer(2, bounds='minmax', lower=9, upper=10)(x).tolist() == [-1, 1, 2]


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


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('slope', [0.1, 1.0, 5.0, 10.0])
@pytest.mark.parametrize(('lower', 'upper'), [(0.0, 1.4), (-1.1, 0.9)])
def test_gradients_are_those_of_the_formula(bits, slope, lower, upper):
    x, direction = (sample(6, 5, 2, 4, seed=seed, dtype=torch.float64) for seed in (0, 1))
    x.requires_grad_()
    quantizer = DSQQuantizer(bits, lower=lower, upper=upper, slope=slope, **LEARN_ALL).double()
    inputs = x, quantizer.lower, quantizer.upper, quantizer.slope
    expected = training_form(*inputs[:3], bits, inputs[3])
    torch.testing.assert_close(quantizer(x), expected)
    ours, reference = (torch.autograd.grad(q, inputs, direction) for q in (quantizer(x), expected))
    torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-8)
    assert (ours[0] == 0).any() and (ours[0] != 0).any() and all(grad.abs().sum() > 0 for grad in ours[1:])


@pytest.mark.parametrize('slope', [0.1, 1.0, 5.0, 10.0])
def test_gradients_in_single_precision(slope):
    x, direction, results = sample(2000), sample(2000, seed=1), []
    for dtype in (torch.float32, torch.float64):
        quantizer = DSQQuantizer(3, lower=-1.0, slope=slope, **LEARN_ALL).to(dtype)
        inputs = x.to(dtype).requires_grad_(), quantizer.lower, quantizer.upper, quantizer.slope
        results.append([g.double() for g in torch.autograd.grad(quantizer(inputs[0]), inputs, direction.to(dtype))])
    torch.testing.assert_close(*results, rtol=2e-3, atol=2e-3)


def test_clipped_values_move_the_bounds_alone():
    x = torch.tensor([-2.0, -1.5, 2.5, 3.0], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    quantizer = DSQQuantizer(3, lower=-1.0, **LEARN_ALL).double()
    quantizer(x).backward(g)
    assert x.grad.tolist() == [0] * 4 and quantizer.slope.grad.item() == pytest.approx(0, abs=1e-12)
    assert quantizer.lower.grad.item() == pytest.approx(3) and quantizer.upper.grad.item() == pytest.approx(12)


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


def test_gradient_of_a_weight_is_the_finite_difference_of_the_soft_curve():
    weight = sample(30, dtype=torch.float64).requires_grad_()
    quantizer = DSQQuantizer(2, bounds='minmax', slope=3.0, learn_slope=True).double()
    low, high, h = weight.min().item(), weight.max().item(), 1e-6
    quantizer(weight).sum().backward()
    inner = (weight > low) & (weight < high)
    with torch.no_grad():
        difference = soft(weight + h, low, high, 2, 3.0) - soft(weight - h, low, high, 2, 3.0)
        wider = soft(weight, low, high, 2, 3.0 + h) - soft(weight, low, high, 2, 3.0 - h)
    torch.testing.assert_close(weight.grad[inner], (difference / (2 * h))[inner], rtol=1e-6, atol=1e-6)
    assert quantizer.slope.grad.item() == pytest.approx(wider.sum().item() / (2 * h), rel=1e-4) != 0


def test_an_input_without_gradient_still_teaches():
    x, quantizer = sample(100), DSQQuantizer(2, **LEARN_ALL)
    quantizer(x).sum().backward()
    assert all(p.grad.item() != 0 for p in quantizer.parameters())
    for name in ('lower', 'upper', 'slope'):
        one = DSQQuantizer(2, **{f'learn_{name}': True})
        assert [n for n, p in one.named_parameters() if p.requires_grad] == [name]
        one(x).sum().backward()
        torch.testing.assert_close(getattr(one, name).grad, getattr(quantizer, name).grad)


def test_keeps_nothing_but_its_input_for_the_backward_pass():
    kept, x = [], sample(1000).requires_grad_()
    quantizer = DSQQuantizer(4, **LEARN_ALL)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantizer(x)
    large = [t for t in kept if t.numel() > 1]
    assert len(large) == 1 and large[0].data_ptr() == x.data_ptr()


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


# --- width, state, layers


def test_no_bits_leave_the_tensor_alone():
    x = sample(10)
    for bits in (None, -1, 32):
        for bounds in ('fixed', 'minmax'):
            quantizer = DSQQuantizer(bits, bounds=bounds, **LEARN_ALL)
            quantizer.calibrate(x)
            assert quantizer(x) is x and not any(p.requires_grad for p in quantizer.parameters())
            for verb in (quantizer.grid, lambda: quantizer.to_int(x), lambda: quantizer.to_affine(x)):  # noqa: B023
                with pytest.raises(ValueError, match='integer codes'):
                    verb()
            quantizer.bits = 4
            assert all(p.requires_grad for p in quantizer.parameters())


@pytest.mark.parametrize('options', [{'bounds': 'learned'}, {'slope': 0.0}, {'slope': math.nan}, {'lower': 2.0},
                                     {'upper': 0.0}, {'upper': math.inf}, {'lower': math.nan},
                                     {'bounds': 'minmax', 'lower': 1.0, 'upper': -1.0}], ids=str)
def test_refuses_options(options):
    with pytest.raises(ValueError, match='expected'):
        DSQQuantizer(4, **options)


def test_state_dict_round_trip_and_float_state():
    source, x = DSQQuantizer(3, lower=-0.5, upper=0.8, slope=7.0), sample(50)
    target = DSQQuantizer()
    target.load_state_dict(source.state_dict())
    target.bits = 3
    assert torch.equal(target(x), source(x)) and target.slope.item() == 7
    layer = QLinear(5, 3, input_quantizer=DSQQuantizer(4, upper=1.5), weight_quantizer=DSQQuantizer(2, bounds='minmax'))
    layer.load_state_dict(nn.Linear(5, 3).state_dict())
    assert layer.input_quantizer.upper.item() == 1.5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('bounds', ['fixed', 'minmax'])
def test_keeps_the_dtype_of_the_input(dtype, bounds):
    for bits in (1, 4):
        for kind in (torch.float32, dtype):
            x, quantizer = sample(100).to(dtype).requires_grad_(), DSQQuantizer(bits, bounds=bounds, **LEARN_ALL)
            y = quantizer.to(kind)(x)
            y.sum().backward()
            assert y.dtype == dtype == x.grad.dtype and y.isfinite().all() and x.grad.isfinite().all()
            assert all(p.grad.dtype == p.dtype and p.grad.isfinite() for p in quantizer.parameters())


def test_memory_formats():
    x, quantizer = sample(2, 5, 4, 3), DSQQuantizer(3, lower=-1.0, **LEARN_ALL)
    last, g = x.to(memory_format=torch.channels_last), sample(2, 5, 4, 3, seed=1)
    results = []
    for tensor in (x, last, x.transpose(1, 2).contiguous().transpose(1, 2)):
        leaf = tensor.clone().requires_grad_()
        y = quantizer(leaf)
        assert y.stride() == leaf.stride()
        results.append((y, *torch.autograd.grad(y, (leaf, *quantizer.parameters()), g)))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_in_a_layer():
    layer = QConv2d(4, 6, 3, weight_quantizer=DSQQuantizer(2, bounds='minmax', learn_slope=True),
                    input_quantizer=DSQQuantizer(2, learn_upper=True, learn_slope=True))
    x = sample(2, 4, 7, 7)
    with calibrating(layer):
        layer(x)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters() if p.requires_grad)
    assert layer.weight_quantizer(layer.weight).unique().numel() == 4


@pytest.mark.parametrize('bits', [1, 2])
def test_learns_through_it(loss_after_training, bits):
    quantizer = DSQQuantizer(bits, bounds='minmax', slope=2.0, learn_slope=True)
    assert loss_after_training(QLinear(8, 32, bias=False, weight_quantizer=quantizer), nn.ReLU()) < 0.7
    quantizer = DSQQuantizer(bits, slope=2.0, learn_upper=True, learn_slope=True)
    assert loss_after_training(nn.Linear(8, 32), quantizer) < 0.7
