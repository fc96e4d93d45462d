"""ACIQ: constants against numeric minimisation and samples, bits of channels by brute force, weights, activations."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import nn

from lib.quantize import (
    ACIQActivationQuantizer,
    ACIQWeightQuantizer,
    QConv2d,
    QLinear,
    aciq_constant,
    allocate_bits,
    calibrating,
)

ALL_BITS = range(1, 9)
TABLE = {  # of the paper's equations, bits 1 to 8
    ('laplace', False): (1.8628, 2.8307, 3.8972, 5.0286, 6.2048, 7.4131, 8.6456, 9.8968),
    ('laplace', True): (2.8307, 3.8972, 5.0286, 6.2048, 7.4131, 8.6456, 9.8968, 11.1627),
    ('gauss', False): (1.2399, 1.7106, 2.1516, 2.5591, 2.9362, 3.2869, 3.6151, 3.9240),
    ('gauss', True): (1.7106, 2.1516, 2.5591, 2.9362, 3.2869, 3.6151, 3.9240, 4.2163),
}
DENSITY = {'laplace': stats.laplace, 'gauss': stats.norm}
WEIGHT_OPTIONS = [dict(zip(('method', 'prior', 'per_channel', 'bias_corr'), options, strict=True))
                  for options in itertools.product(('minmax', 'aciq'), ('laplace', 'gauss'), (False, True),
                                                   (False, True))]


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawn(prior, count, seed=0):
    """Values of spread 1 around 0."""
    return torch.from_numpy(DENSITY[prior].rvs(size=count, random_state=seed))


def channels(*spreads, columns=200):
    return sample(len(spreads), columns) * torch.tensor(spreads)[:, None] + 0.1


def mse(x, y):
    return ((x - y).double() ** 2).mean().item()


def rebuilt(affine):
    return affine.scale * (affine.codes - affine.zero_point)


# --- constants


def test_constants_are_those_of_the_table():
    for (prior, one_sided), values in TABLE.items():
        for bits, value in zip(ALL_BITS, values, strict=True):
            assert aciq_constant(bits, prior, one_sided) == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(('prior', 'one_sided'), list(TABLE))
@pytest.mark.parametrize('bits', [1, 2, 4, 8, 12])
def test_constants_minimise_the_error(prior, one_sided, bits):
    """The error is what is clipped, by numeric integration of the density, and step^2 / 12 all over the range."""
    density = DENSITY[prior].pdf

    def error(a):
        clipped = integrate.quad(lambda x: (x - a) ** 2 * density(x), a, a + 50)[0]
        step = a * (1 if one_sided else 2) / 2**bits
        return clipped + step**2 / 24 if one_sided else 2 * clipped + step**2 / 12

    best = optimize.minimize_scalar(error, bounds=(0.5, 30), method='bounded', options={'xatol': 1e-7}).x
    assert aciq_constant(bits, prior, one_sided) == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(('prior', 'one_sided'), list(TABLE))
@pytest.mark.parametrize('bits', [2, 3, 4, 5, 6])
def test_clip_of_samples_is_near_the_best(prior, one_sided, bits):
    """The equations take errors for uniform in a step, which gets true with the bits."""
    x, quantizer = 3 * drawn(prior, 100_000), ACIQActivationQuantizer(bits, signed=not one_sided)
    x = x.relu() if one_sided else x

    def error(factor):
        quantizer.set_clip(factor * 3 * aciq_constant(bits, prior, one_sided))
        return mse(x, quantizer(x))

    errors = {factor: error(factor) for factor in (0.8, 0.9, 1.0, 1.1, 1.2, 1.4)}
    assert errors[1.0] < 1.2 * min(errors.values()) and errors[1.0] < errors[0.9]
    if bits >= 5:
        assert errors[1.0] < 1.05 * min(errors.values()) and errors[1.0] < errors[1.2]
    if bits == 6:
        assert errors[1.0] == min(errors.values())


@pytest.mark.parametrize('prior', ['laplace', 'gauss'])
@pytest.mark.parametrize('bits', [4, 5, 6])
def test_spread_before_the_relu_gives_the_best_clip_behind_it(prior, bits):
    x, errors = 3 * drawn(prior, 100_000).relu(), {}
    for spread in ('after_relu', 'before_relu'):
        quantizer = ACIQActivationQuantizer(bits, prior=prior, spread=spread)
        quantizer.calibrate(x)
        errors[spread] = mse(x, quantizer(x))
    assert quantizer.clip.item() == pytest.approx(3 * aciq_constant(bits, prior, one_sided=True), rel=0.01)
    assert errors['before_relu'] < 0.7 * errors['after_relu']
    for clip in np.linspace(0.3, 2, 18) * quantizer.clip.item():
        quantizer.set_clip(clip)
        assert errors['before_relu'] < 1.06 * mse(x, quantizer(x))


def test_refuses_what_has_no_constant():
    for bits in (0, 17, 4.0, True, '4'):
        with pytest.raises(ValueError, match='bits'):
            aciq_constant(bits)
    with pytest.raises(ValueError, match="'cauchy'"):
        aciq_constant(4, 'cauchy')
    assert aciq_constant(np.int64(16), one_sided=True) == pytest.approx(21.593, abs=1e-3)


# --- bits of each channel


def rounded_bits(spreads, m):
    """round(log2 B_i) within 0 and 8, for one mean or, in a column, for many."""
    share = spreads ** (2 / 3)
    return (len(spreads) * 2.0**m * share / share.sum()).log2().round().clamp(0, 8)


@pytest.mark.parametrize('seed', range(10))
def test_bits_are_the_rounded_ones_of_the_moved_mean(seed):
    spreads = sample(24, seed=seed, dtype=torch.float64).mul(1.5).exp()
    share = spreads ** (2 / 3)
    jumps = (torch.arange(8)[:, None] + 0.5 - (24 * share / share.sum()).log2()).flatten().sort().values
    between = torch.cat([(jumps[1:] + jumps[:-1]) / 2, jumps[-1:] + 1])  # the rounding jumps at `jumps`
    moved = rounded_bits(spreads, between[:, None])
    for bits in range(1, 9):
        ours = allocate_bits(spreads, bits)
        assert ours.dtype == torch.int64 and ours.sum() == 24 * bits and ours.min() >= 0 and ours.max() <= 8
        assert (moved == ours).all(1).any()


@pytest.mark.parametrize('seed', range(5))
def test_bits_by_brute_force(seed):
    """Rounding log2 B and moving M is least sum of a_i^(4/3) / 4^(M_i) among all allocations of the mean."""
    spreads = sample(4, seed=seed, dtype=torch.float64).exp()
    every = torch.tensor([bits for bits in itertools.product(range(9), repeat=4) if sum(bits) == 12])
    best = every[(spreads ** (4 / 3) / 4.0**every).sum(1).argmin()]
    ours = allocate_bits(spreads, 3)
    assert torch.equal(ours, best)
    assert (spreads**2 / 4.0**ours).sum() <= (spreads**2 / 4.0**3).sum()  # the error of 3 bits for all


def test_examples_of_bits():
    assert rounded_bits(torch.tensor([1.0, 2, 32]), 2).tolist() == [0, 1, 3]
    assert allocate_bits(torch.tensor([1.0, 2, 32]), 2).tolist() == [1, 1, 4]
    assert allocate_bits(torch.tensor([1e-30, 1, 1, 1e30]), 3).tolist() == [0, 2, 2, 8]
    for bits in ALL_BITS:
        assert allocate_bits(torch.full((5,), 0.3), bits).tolist() == [bits] * 5
    assert allocate_bits(torch.tensor([0.0, 1.0, 1.0]), 4).tolist() == [0, 6, 6]
    assert allocate_bits(torch.tensor([0.0, 1.0]), 6).tolist() == [0, 8]  # below the mean: a constant needs no bits
    assert allocate_bits(torch.zeros(3), 4).tolist() == [0, 0, 0]


def test_refuses_to_allocate():
    for spreads in (torch.tensor([1.0, -1.0]), torch.tensor([math.nan]), torch.tensor([math.inf]), torch.zeros(0),
                    torch.ones(2, 2)):
        with pytest.raises(ValueError, match='spreads'):
            allocate_bits(spreads, 4)
    for bits in (0, 9, 2.5):
        with pytest.raises(ValueError, match='bits'):
            allocate_bits(torch.ones(3), bits)


# --- weights


def plain_range(weight, bits, method, prior):
    """Lower end and step of one range, in NumPy."""
    if method == 'minmax':
        return weight.min(), (weight.max() - weight.min()) / 2**bits
    center = np.sort(weight, axis=None)[(weight.size - 1) // 2] if prior == 'laplace' else weight.mean()
    spread = np.abs(weight - center).mean() if prior == 'laplace' else weight.std()
    clip = spread * TABLE[prior, False][bits - 1]
    return center - clip, 2 * clip / 2**bits


@pytest.mark.parametrize('options', WEIGHT_OPTIONS, ids=str)
@pytest.mark.parametrize('bits', ALL_BITS)
def test_weights_are_those_of_the_formulas(options, bits):
    weight = sample(5, 4, 3, 3, dtype=torch.float64) * torch.tensor([1.0, 0.1, 3.0, 1.0, 1.0]).view(-1, 1, 1, 1) + 0.2
    quantizer = ACIQWeightQuantizer(bits, **options)
    values, affine = quantizer(weight), quantizer.to_affine(weight)
    parts = zip(weight, values, affine.codes, strict=True) if options['per_channel'] else [
        (weight, values, affine.codes)]
    for part in parts:
        w, value, codes = (tensor.numpy() for tensor in part)
        low, step = plain_range(w, bits, options['method'], options['prior'])
        position = (w - low) / step - 0.5
        assert (np.abs(codes - position.clip(0, 2**bits - 1)) < 0.501).all()  # the median is in the middle of two codes
        expected = low + (codes + 0.5) * step
        if options['bias_corr']:
            xi = np.linalg.norm(w - w.mean()) / np.linalg.norm(expected - expected.mean())
            expected = xi * expected + w.mean() - xi * expected.mean()
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-4)  # TABLE has four digits
    torch.testing.assert_close(rebuilt(affine), values)
    assert affine.bits == bits and affine.codes.min() >= 0 and affine.codes.max() < 2**bits
    assert affine.scale.dtype == affine.zero_point.dtype == torch.float64


@pytest.mark.parametrize('per_channel', [False, True])
def test_minmax_is_never_off_by_more_than_half_a_step(per_channel):
    weight = channels(1.0, 0.2, 5.0).double()
    for bits in ALL_BITS:
        quantizer = ACIQWeightQuantizer(bits, per_channel=per_channel, bias_corr=False)
        error = (quantizer(weight) - weight).abs()
        assert (error <= quantizer.step / 2 * (1 + 1e-9)).all()
        steps = (weight.amax(1) - weight.amin(1)) if per_channel else weight.amax() - weight.amin()
        assert torch.allclose(quantizer.step.flatten(), steps / 2**bits)
        codes = quantizer.to_affine(weight).codes
        assert codes.flatten()[weight.argmin()] == 0 and codes.flatten()[weight.argmax()] == 2**bits - 1


@pytest.mark.parametrize('method', ['minmax', 'aciq'])
@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('kind', ['tensor', 'channel', 'alloc'])
def test_correction_gives_back_mean_and_norm(method, bits, kind):
    weight = channels(1.0, 0.2, 5.0, 2.0)
    quantizer = ACIQWeightQuantizer(bits, method=method, per_channel=kind != 'tensor', bit_alloc=kind == 'alloc')
    values, dims = quantizer(weight).double(), None if kind == 'tensor' else 1
    w = weight.double()
    torch.testing.assert_close(values.mean(dims), w.mean(dims), rtol=1e-5, atol=1e-6)
    live = quantizer.widths.flatten() > 0
    deviation = [(t - t.mean(dims, keepdim=True)).norm(dim=dims).reshape(-1) for t in (values, w)]
    torch.testing.assert_close(deviation[0][live], deviation[1][live], rtol=1e-5, atol=1e-6)
    assert (deviation[0][~live] < 1e-5).all()
    uncorrected = ACIQWeightQuantizer(bits, method=method, per_channel=kind != 'tensor', bit_alloc=kind == 'alloc',
                                      bias_corr=False)
    assert torch.equal(uncorrected.to_affine(weight).codes, quantizer.to_affine(weight).codes)


def test_channels_with_bits_of_their_own():
    weight = channels(1e-4, 1.0, 1.0, 30.0)
    quantizer = ACIQWeightQuantizer(3, per_channel=True, bit_alloc=True)
    values, affine = quantizer(weight), quantizer.to_affine(weight)
    expected = allocate_bits((weight - weight.median(1, keepdim=True).values).abs().mean(1), 3)
    assert quantizer.widths.flatten().tolist() == expected.tolist() == [0, 3, 3, 6]
    assert values[0].unique().numel() == 1 and values[3].unique().numel() > 32
    assert (affine.codes.amax(1) == 2**expected - 1).all() and (affine.codes.amin(1) == 0).all()
    assert affine.bits == 6 and affine.scale.shape == (4, 1) == affine.zero_point.shape
    torch.testing.assert_close(rebuilt(affine), values.double(), rtol=1e-5, atol=1e-5)
    assert values[0, 0].item() == pytest.approx(weight[0].mean().item())
    uniform = ACIQWeightQuantizer(3, per_channel=True)
    assert mse(values, weight) < mse(uniform(weight), weight)
    five = ACIQWeightQuantizer(5, per_channel=True, bit_alloc=True)
    assert torch.equal(five(weight), ACIQWeightQuantizer(5, per_channel=True)(weight))  # not above 4 bits
    with pytest.raises(ValueError, match='per_channel'):
        ACIQWeightQuantizer(3, bit_alloc=True)


@pytest.mark.parametrize('options', WEIGHT_OPTIONS, ids=str)
@pytest.mark.parametrize('value', [0.0, 0.3, -7e-5])
def test_constants_stay_what_they_are(options, value):
    weight = torch.full((3, 6), value)
    if options['per_channel']:
        weight[1:] = sample(2, 6)
    for bits in (1, 4, 8):
        quantizer = ACIQWeightQuantizer(bits, **options)
        values = quantizer(weight)
        constant = values[0] if options['per_channel'] else values
        assert values.isfinite().all() and torch.equal(constant, torch.full_like(constant, value))
        affine = quantizer.to_affine(weight)
        assert (affine.scale > 0).all() and affine.zero_point.flatten()[0] == -np.sign(value)
        torch.testing.assert_close(rebuilt(affine), values.double(), rtol=1e-6, atol=1e-6)
        assert torch.equal(rebuilt(affine)[0].float(), values[0])


def test_one_bit_of_an_outlier_keeps_the_mean():
    for outlier, options in itertools.product((1.0, -1.0), WEIGHT_OPTIONS):  # -1 has the code of the median: no spread
        weight, quantizer = torch.tensor([[0.0] * 99 + [outlier]]), ACIQWeightQuantizer(1, **options)
        values = quantizer(weight)
        torch.testing.assert_close(rebuilt(quantizer.to_affine(weight)), values.double(), rtol=1e-6, atol=1e-6)
        if options['bias_corr']:
            assert values.mean().item() == pytest.approx(outlier / 100, abs=1e-6)


def test_weight_map_is_found_once_and_again_for_other_bits():
    weight, quantizer = sample(4, 30), ACIQWeightQuantizer(4, per_channel=True)
    with torch.no_grad():
        quantizer(weight)
    scale = quantizer.scale.clone()
    quantizer(3 * weight)
    assert torch.equal(quantizer.scale, scale) and quantizer(3 * weight).abs().max() < weight.abs().max() * 1.2
    quantizer.calibrate(3 * weight, method='kl', cap=0.1)
    torch.testing.assert_close(quantizer.scale, 3 * scale)
    quantizer.bits = 8
    assert torch.equal(quantizer(weight), ACIQWeightQuantizer(8, per_channel=True)(weight))
    assert (quantizer.step < scale / 8).all()


@pytest.mark.parametrize('options', [*WEIGHT_OPTIONS[::3], {'per_channel': True, 'bit_alloc': True}], ids=str)
def test_weight_state_dict_round_trip(options):
    weight, source = sample(4, 3, 2, 2), ACIQWeightQuantizer(3, **options)
    values = source(weight)
    for bits in (3, None):
        target = ACIQWeightQuantizer(bits, **options)
        target.load_state_dict(copy.deepcopy(source.state_dict()))
        target.bits = 3
        assert torch.equal(target(weight), values) and torch.equal(target(2 * weight), source(2 * weight))
        assert torch.equal(copy.deepcopy(target)(weight), values)
    other = ACIQWeightQuantizer(3, **options)
    other(sample(7, 3))
    other.load_state_dict(source.state_dict())
    assert torch.equal(other(weight), values)
    layer = QConv2d(3, 4, 2, weight_quantizer=ACIQWeightQuantizer(3, **options))
    layer.load_state_dict(nn.Conv2d(3, 4, 2).state_dict())
    assert torch.equal(layer.weight_quantizer(layer.weight), ACIQWeightQuantizer(3, **options)(layer.weight))
    if options['per_channel']:
        with pytest.raises(ValueError, match='4 channels'):
            source(sample(5, 3, 2, 2))


def test_weight_gradient_passes_straight_through():
    for options in WEIGHT_OPTIONS:
        weight, direction = sample(4, 5).requires_grad_(), sample(4, 5, seed=1)
        ACIQWeightQuantizer(2, **options)(weight).backward(direction)
        assert torch.equal(weight.grad, direction)


def test_weights_of_other_types_and_layouts():
    weight = sample(4, 3, 5, 5)
    for options in WEIGHT_OPTIONS:
        values = ACIQWeightQuantizer(4, **options)(weight)
        last = ACIQWeightQuantizer(4, **options)(weight.to(memory_format=torch.channels_last))
        assert torch.equal(last, values) and last.is_contiguous(memory_format=torch.channels_last)
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            other = ACIQWeightQuantizer(4, **options)(weight.to(dtype))
            assert other.dtype == dtype
            torch.testing.assert_close(other.float(), values, atol=0.6, rtol=0)  # a code more or less


def test_weight_refuses():
    for options in ({'method': 'kl'}, {'prior': 'uniform'}):
        with pytest.raises(ValueError, match='expected one of'):
            ACIQWeightQuantizer(4, **options)
    with pytest.raises(ValueError, match='to_affine'):
        ACIQWeightQuantizer(4).to_int(sample(3, 3))
    for bad in (torch.tensor([[1.0, math.nan]]), torch.zeros(0, 3)):
        with pytest.raises(ValueError, match='cannot find a map'):
            ACIQWeightQuantizer(4)(bad)


# --- activations


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('clip', [2.0, 0.37, 1e-4])
@pytest.mark.parametrize('signed', [False, True])
def test_forward_codes_and_grid_are_one_map(check_map, bits, clip, signed):
    quantizer = ACIQActivationQuantizer(bits, signed=signed)
    quantizer.set_clip(clip)
    if not signed:
        assert quantizer.grid().step == pytest.approx(clip / 2**bits)
        check_map(quantizer, list(range(2**bits)))
    elif bits == 1:
        check_map(quantizer, [-1, 1])
    else:
        low = quantizer.grid().low
        assert low in (-2 ** (bits - 1), 1 - 2 ** (bits - 1))  # 0 lies between the two middle steps
        check_map(quantizer, list(range(low, low + 2**bits)))


def test_examples():
    x = torch.tensor([-0.8, 0.6, 2.0])
    for signed, expected in ((False, [0, 0.5, 1.5]), (True, [-1, 1, 1])):
        quantizer = ACIQActivationQuantizer(2, signed=signed)
        quantizer.set_clip(2.0)
        assert quantizer(x).tolist() == expected
    assert ACIQWeightQuantizer(2, bias_corr=False)(torch.tensor([-1, 0.2, 1.0])).tolist() == [-0.75, 0.25, 0.75]


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('middle', [0.25, -1.2, 4.0])
def test_signed_levels_are_the_nearest_of_a_grid_with_zero(bits, middle):
    """The grid: multiples of the step, 2^bits of them, as near to the range as any such; by search over all of them."""
    quantizer = ACIQActivationQuantizer(bits, signed=True).double()
    quantizer.set_clip(1.5, middle)
    x = torch.linspace(-4, 7, 2001, dtype=torch.float64)
    step = 3 / 2**bits
    centers = {zero: ((2**bits - 1) / 2 - zero) * step for zero in range(2**bits)}
    zero = min(centers, key=lambda zero: abs(centers[zero] - middle))
    assert abs(centers[zero] - middle) <= step / 2 or zero in (0, 2**bits - 1)
    levels = (torch.arange(2**bits, dtype=torch.float64) - zero) * step
    expected = levels[(x[:, None] - levels).abs().argmin(1)]
    values, affine = quantizer(x), quantizer.to_affine(x)
    between = ((x / step) % 1 - 0.5).abs() < 1e-6  # ties round to even
    torch.testing.assert_close(values[~between], expected[~between])
    torch.testing.assert_close(rebuilt(affine), values)
    assert affine.zero_point.item() == zero and 0 in levels and affine.bits == bits
    assert affine.codes.unique().tolist() == list(range(2**bits))


@pytest.mark.parametrize('prior', ['laplace', 'gauss'])
@pytest.mark.parametrize('center', ['none', 'mean'])
@pytest.mark.parametrize('bits', [1, 4, 8])
def test_clip_behind_a_relu(prior, center, bits):
    x = sample(4001).add(0.3).relu()
    values, quantizer = x.double().numpy(), ACIQActivationQuantizer(bits, prior=prior, center=center)
    spread = np.abs(values - np.median(values)).mean() if prior == 'laplace' else values.std()
    expected = spread * TABLE[prior, True][bits - 1] + (values.mean() if center == 'mean' else 0)
    expected = min(expected, values.max())
    assert quantizer.clip_of(x) == pytest.approx(expected, rel=1e-4) and quantizer.clip.item() == 0
    assert quantizer.statistics(x)[1] == 0 and quantizer.signed is False
    quantizer.calibrate(x)
    assert quantizer.clip.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('prior', ['laplace', 'gauss'])
def test_range_of_a_signed_input(prior):
    x = drawn(prior, 5001).float() - 1
    quantizer = ACIQActivationQuantizer(4, prior=prior)
    quantizer(x)
    values = x.double().numpy()
    center = np.median(values) if prior == 'laplace' else values.mean()
    spread = np.abs(values - center).mean() if prior == 'laplace' else values.std()
    assert quantizer.signed is True and quantizer.middle.item() == pytest.approx(center, abs=1e-4)
    assert quantizer.clip.item() == pytest.approx(spread * TABLE[prior, False][3], rel=1e-4)
    one = ACIQActivationQuantizer(1, prior=prior)
    assert one(x).unique().tolist() == pytest.approx([-x.abs().mean().item(), x.abs().mean().item()])


@pytest.mark.parametrize('bits', [2, 8])
def test_minmax_activations_lose_no_value(bits):
    for x in (sample(500), sample(500).relu()):
        quantizer = ACIQActivationQuantizer(bits, method='minmax')
        y = quantizer(x)
        span = (x.max() - x.min()).item()
        low = x.min().item() if quantizer.signed else 0.0
        assert quantizer.clip.item() == pytest.approx(span / 2 if quantizer.signed else x.max().item())
        assert quantizer.signed is (low < 0) and quantizer.middle.item() == pytest.approx(
            (x.max() + x.min()).item() / 2 if quantizer.signed else 0)
        assert (y - x).abs().max() <= 1.001 * span / 2**bits  # half a step, and half for 0 as a level
    with pytest.raises(ValueError, match='method'):
        ACIQActivationQuantizer(4, method='max')


def test_large_tensors_are_sampled_the_same_way_each_time():
    x = torch.distributions.Exponential(1.0).sample((2**20 + 5, 3))
    quantizer = ACIQActivationQuantizer(4, signed=False)
    clip = quantizer.clip_of(x)
    exact = (x - x.median()).abs().mean().item() * TABLE['laplace', True][3]
    assert clip == pytest.approx(exact, rel=1e-4) and clip == quantizer.clip_of(x)


def test_calibration_caps_and_grows():
    x, quantizer = sample(500).relu(), ACIQActivationQuantizer(4)
    clip = quantizer.clip_of(x)
    quantizer.calibrate(x, cap=0.7)
    assert quantizer.clip.item() == pytest.approx(0.7)
    quantizer.calibrate(x, cap=70, method='mse')
    quantizer.calibrate(x / 2, grow=True)
    assert quantizer.clip.item() == pytest.approx(clip)
    quantizer.calibrate(3 * x, grow=True)
    assert quantizer.clip.item() == pytest.approx(3 * clip, rel=1e-5)


def test_sign_is_found_in_the_first_input_and_corrected_by_calibration(caplog):
    for x, signed in ((sample(50), True), (sample(50).abs(), False)):
        quantizer = ACIQActivationQuantizer(4)
        quantizer(x)
        assert quantizer.signed is signed
    ACIQActivationQuantizer(4, signed=False)(sample(50))
    quantizer.clip_of(sample(50).abs())
    assert not caplog.records
    quantizer.clip_of(sample(50))
    assert quantizer.signed is True and 'signed' in caplog.text
    quantizer = ACIQActivationQuantizer()
    quantizer.calibrate(sample(50))
    assert quantizer.signed is True and quantizer.clip.item() == 0


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('bits', [1, 4])
def test_gradient_is_that_of_the_clip(signed, bits):
    x = torch.linspace(-3, 3, 601).requires_grad_()
    quantizer = ACIQActivationQuantizer(bits, signed=signed)
    quantizer.set_clip(1.005, 0.5)
    quantizer(x).sum().backward()
    middle = 0.5 if signed and bits > 1 else 0
    low, high = (middle - 1.005, middle + 1.005) if signed else (-1e-6, 1.005)
    if signed and bits > 1:  # whole steps from 0
        step = 2.01 / 2**bits
        low = round((low + step / 2) / step) * step - step / 2
        high = low + 2.01
    assert torch.equal(x.grad, ((x > low) & (x < high)).float())
    with torch.no_grad():
        assert torch.equal(quantizer(x), quantizer(x.clone().requires_grad_()))


def test_constant_inputs():
    for value in (0.0, 2.5, -2.5):
        x = torch.full((3, 4), value)
        for bits, spread in itertools.product((1, 4, 8), ('after_relu', 'before_relu')):
            quantizer = ACIQActivationQuantizer(bits, spread=spread)
            y = quantizer(x)
            assert y.isfinite().all() and (spread == 'before_relu' or (y - x).abs().max() <= abs(value) / 2**bits)
            torch.testing.assert_close(rebuilt(quantizer.to_affine(x)), y.double())
    quantizer = ACIQActivationQuantizer(4)
    quantizer(torch.zeros(5))
    with pytest.raises(ValueError, match='calibrate'):
        quantizer.grid()
    quantizer(torch.arange(5.0))
    assert quantizer.clip.item() > 0


def test_activation_refuses():
    for options in ({'prior': 'uniform'}, {'center': 'median'}, {'spread': 'relu'}):
        with pytest.raises(ValueError, match='expected one of'):
            ACIQActivationQuantizer(4, **options)
    quantizer = ACIQActivationQuantizer(4, signed=False)
    for clip in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match='clip'):
            quantizer.set_clip(clip)
    for bad in (torch.tensor([1.0, math.nan]), torch.tensor([1.0, math.inf]), torch.zeros(0)):
        with pytest.raises(ValueError, match='cannot find'):
            quantizer(bad)
    with pytest.raises(ValueError, match='calibrate'):
        ACIQActivationQuantizer(4).grid()


def test_no_bits_leave_the_tensor_alone():
    x = sample(6, 2)
    for bits in (None, -1, 32):
        for quantizer in (ACIQWeightQuantizer(bits), ACIQActivationQuantizer(bits)):
            quantizer.calibrate(x)
            assert quantizer(x) is x
            for verb in (lambda: quantizer.to_int(x), lambda: quantizer.to_affine(x)):  # noqa: B023
                with pytest.raises(ValueError, match='integer codes'):
                    verb()
        with pytest.raises(ValueError, match='integer codes'):
            ACIQActivationQuantizer(bits).clip_of(x)


@pytest.mark.parametrize('signed', [False, True])
def test_activation_state_dict_round_trip(signed):
    x, source = sample(300) if signed else sample(300).abs(), ACIQActivationQuantizer(4)
    source(x)
    for target in (ACIQActivationQuantizer(4), ACIQActivationQuantizer(), copy.deepcopy(source)):
        target.load_state_dict(source.state_dict())
        target.bits = 4
        assert torch.equal(target(5 * x), source(5 * x)) and target.signed is signed
        assert target.clip.item() == source.clip.item() > 0


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_activation_types_and_layouts(dtype):
    x = sample(2, 3, 5, 5).to(dtype)
    for values in (x, x.abs()):
        for bits in (1, 4):
            leaf = values.clone().requires_grad_()
            y = ACIQActivationQuantizer(bits)(leaf)
            y.sum().backward()
            assert y.dtype == dtype == leaf.grad.dtype
            last = ACIQActivationQuantizer(bits)(values.to(memory_format=torch.channels_last))
            torch.testing.assert_close(last, y.detach()) and last.is_contiguous(memory_format=torch.channels_last)


def test_in_layers():
    layer = QLinear(6, 3, w_bit=8, a_bit=8, weight_quantizer=ACIQWeightQuantizer(per_channel=True),
                    input_quantizer=ACIQActivationQuantizer())
    x = sample(40, 6)
    float_layer = nn.Linear(6, 3)
    layer.load_state_dict(float_layer.state_dict())
    with calibrating(layer):
        assert torch.equal(layer(x), float_layer(x))
    assert layer.weight_quantizer.step.shape == (3, 1) and layer.input_quantizer.signed is True
    assert (layer(x) - float_layer(x)).abs().max() < 0.1
    layer(x).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_calibration_is_taken_from_a_cache():
    cache, x = {}, sample(10, 6)
    for _ in range(2):
        layer = QLinear(6, 3, w_bit=4, a_bit=4, weight_quantizer=ACIQWeightQuantizer(per_channel=True),
                        input_quantizer=ACIQActivationQuantizer())
        layer.load_state_dict({'weight': sample(3, 6), 'bias': torch.zeros(3)})
        with calibrating(layer, cache=cache) as needed:
            if needed:
                layer(x)
        assert layer.weight_quantizer.found_bits.item() == 4 and layer.input_quantizer.clip.item() > 0
