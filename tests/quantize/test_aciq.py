"""What is special to ACIQ: constants by numeric minimisation and samples, bits of channels by brute force, clips."""

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
from tests.tiny import sample

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
    density = {'laplace': lambda x: math.exp(-x) / 2,
               'gauss': lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)}[prior]

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
    with pytest.raises(ValueError, match='4 channels'):
        quantizer(sample(5, 30))
    layer = QConv2d(3, 4, 2, weight_quantizer=ACIQWeightQuantizer(3, per_channel=True))
    layer.load_state_dict(nn.Conv2d(3, 4, 2).state_dict())  # without a map: that of the loaded weight is found
    assert torch.equal(layer.weight_quantizer(layer.weight), ACIQWeightQuantizer(3, per_channel=True)(layer.weight))


# --- activations


def test_refuses_what_has_no_map():
    for bad in ([[1.0, math.nan]], [[1.0, math.inf]]):
        for quantizer in (ACIQWeightQuantizer(4), ACIQActivationQuantizer(4, signed=False)):
            with pytest.raises(ValueError, match='cannot find'):
                quantizer(torch.tensor(bad))
    quantizer = ACIQActivationQuantizer(4, signed=False)
    for clip in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match='clip'):
            quantizer.set_clip(clip)
    with pytest.raises(ValueError, match='integer codes'):
        ACIQActivationQuantizer().statistics(sample(5))


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
    assert quantizer.statistics(x) == (pytest.approx(expected, rel=1e-4), 0) and quantizer.clip.item() == 0
    assert quantizer.signed is False
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


def test_large_tensors_are_sampled_the_same_way_each_time():
    x = torch.distributions.Exponential(1.0).sample((2**20 + 5, 3))
    quantizer = ACIQActivationQuantizer(4, signed=False)
    clip = quantizer.statistics(x)[0]
    exact = (x - x.median()).abs().mean().item() * TABLE['laplace', True][3]
    assert clip == pytest.approx(exact, rel=1e-4) and clip == quantizer.statistics(x)[0]


def test_calibration_caps_and_grows():
    x, quantizer = sample(500).relu(), ACIQActivationQuantizer(4)
    clip = quantizer.statistics(x)[0]
    quantizer.calibrate(x, cap=0.7)
    assert quantizer.clip.item() == pytest.approx(0.7)
    quantizer.calibrate(x, cap=70, method='mse')
    quantizer.calibrate(x / 2, grow=True)
    assert quantizer.clip.item() == pytest.approx(clip)
    quantizer.calibrate(3 * x, grow=True)
    assert quantizer.clip.item() == pytest.approx(3 * clip, rel=1e-5)


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
