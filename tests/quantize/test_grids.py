"""Grids with a zero point and scales per channel: against torch's, brute force, and LSQ+'s formula by autograd."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.network.coverage import inventory_of
from lib.quantize import Grids, LinearActivationQuantizer, LinearWeightQuantizer, LSQQuantizer, find_range
from lib.quantize.affine import find_ends, mse_ends
from lib.quantize.lsq import code_range
from lib.quantize.ranges import METHODS, find_channel_ranges
from lib.simulator.counting import file_size
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers
from tests.quantize.rows import telling

ALL_BITS, MANY = range(1, 9), range(2, 9)
WEIGHT = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [0.1, 1, 3, 0.02, 1, 0]).view(-1, 1, 1, 1)  # channels of unlike spreads, one of zeros


def filled(quantizer, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(quantizer, name).copy_(torch.as_tensor(value))
    return quantizer


def affine_pair(bits, zero, step):
    """Both affine quantizers with this zero point and step."""
    top = 2**bits - 1
    return [filled(LinearActivationQuantizer(bits, signed=True, affine=True), range=(top - zero) * step,
                   low=-zero * step),
            filled(LSQQuantizer(bits, signed=True, per='features', affine=True), step=step, low=-zero * step)]


@pytest.mark.parametrize('bits', MANY)
def test_every_code_of_every_zero_point_is_torchs(bits):
    top, step = 2**bits - 1, 0.25
    for zero in range(0, top + 1, max(1, top // 40)):
        x = torch.from_numpy(telling((np.arange(top + 1) - zero) * step)).float()
        x = x[x.abs() < 1e6]
        expected = torch.fake_quantize_per_tensor_affine(x, step, zero, 0, top)
        for quantizer in affine_pair(bits, zero, step):
            codes, scale = quantizer.to_int(x)
            affine, grid = quantizer.to_affine(x), quantizer.grid()
            assert torch.equal(quantizer(x).detach(), expected) and torch.equal(codes * scale, expected)
            assert affine.codes.unique().tolist() == list(range(top + 1)) and affine.zero_point.item() == zero
            assert (grid.low, grid.high, grid.zero_point) == (-zero, top - zero, zero)
            assert quantizer(torch.zeros(3)).count_nonzero() == 0  # what padding adds


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('kind', ['linear', 'lsq'])
def test_weights_per_channel_are_torchs(bits, kind):
    if kind == 'linear':
        quantizer = LinearWeightQuantizer(bits, channels=len(WEIGHT))
        quantizer.calibrate(WEIGHT, method='max')
        low, high = -max(2 ** (bits - 1) - 1, 1), max(2 ** (bits - 1) - 1, 1)
    else:
        quantizer = LSQQuantizer(bits, channels=len(WEIGHT))
        low, high = code_range(bits, signed=True)
    codes, scale = quantizer.to_int(WEIGHT)
    assert scale.shape == (6, 1, 1, 1) and torch.equal(codes * scale, quantizer(WEIGHT))
    if bits == 1:
        magnitude = WEIGHT.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-8 * (kind == 'lsq'))
        torch.testing.assert_close(quantizer(WEIGHT), torch.where(WEIGHT >= 0, magnitude, -magnitude))
        return
    zeros = torch.zeros(6, dtype=torch.int32)
    safe = scale.flatten().detach().clamp_min(1e-12)
    expected = torch.fake_quantize_per_channel_affine(WEIGHT, safe, zeros, 0, low, high)
    off = (quantizer(WEIGHT) - expected).abs() / scale.clamp_min(1e-12)
    assert (off > 1e-4).float().mean() < 0.005  # torch multiplies by 1 / scale: a tie may go to the other side
    affine = quantizer.to_affine(WEIGHT)
    assert affine.codes.min() >= 0 and affine.codes.max() < 2**bits
    torch.testing.assert_close(affine.scale * (affine.codes - affine.zero_point), quantizer(WEIGHT).double())


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('method', METHODS)
def test_channels_are_quantized_as_weights_of_their_own(bits, method):
    ranges = find_channel_ranges(WEIGHT, bits, method=method)
    alone = [find_range(channel, bits, signed=True, method=method) for channel in WEIGHT]
    assert ranges.tolist() == pytest.approx(alone, rel=2e-3, abs=1e-8)
    quantizer = LinearWeightQuantizer(bits, channels=6)
    quantizer.calibrate(WEIGHT, method=method)
    assert quantizer.range.shape == (6,) and quantizer(WEIGHT)[5].count_nonzero() == 0
    with pytest.raises(ValueError, match='6 scales for a weight of 4 channels'):
        quantizer(WEIGHT[:4])
    whole = LinearWeightQuantizer(bits)
    whole.calibrate(WEIGHT, method=method)
    if method == 'mse':
        assert (quantizer(WEIGHT) - WEIGHT).square().sum() < 0.8 * (whole(WEIGHT) - WEIGHT).square().sum()


def test_lsq_per_channel_is_lsq_of_each_channel():
    """Steps, values and gradients, N of a step being the weights that it has."""
    weight, g = WEIGHT[:5].clone().requires_grad_(), torch.randn(5, 4, 3, 3)
    quantizer = LSQQuantizer(3, channels=5)
    quantizer(weight).backward(g)
    for i in range(5):
        alone, own = LSQQuantizer(3), WEIGHT[i:i + 1].clone().requires_grad_()
        alone(own).backward(g[i:i + 1])
        torch.testing.assert_close(quantizer.step[i:i + 1].detach(), alone.step.detach())
        torch.testing.assert_close(quantizer.step.grad[i:i + 1], alone.step.grad)
        torch.testing.assert_close(weight.grad[i:i + 1], own.grad)


@pytest.mark.parametrize('bits', MANY)
@pytest.mark.parametrize('off', [0.0, 0.3, -0.4])
def test_lsq_plus_has_the_gradients_of_its_formula(bits, off):
    """Of round(clip((v - b) / s, 0, n)) s + b by autograd in float64; b is the level next to `low`."""
    torch.manual_seed(bits)
    n, step, zero = 2**bits - 1, torch.tensor([0.2], dtype=torch.float64), 2**bits // 3
    v, g = torch.randn(40, 3, 2, dtype=torch.float64) * step * n / 3, torch.randn(40, 3, 2, dtype=torch.float64)
    quantizer = LSQQuantizer(bits, signed=True, per='features', affine=True).double()
    filled(quantizer, step=step, low=-(zero + off) * step)
    ours = v.clone().requires_grad_()
    out = quantizer(ours)
    out.backward(g)
    s, b, x = step.clone().requires_grad_(), (-zero * step).requires_grad_(), v.clone().requires_grad_()
    u = ((x - b) / s).clamp(0, n)
    expected = (u + (u.round() - u).detach()) * s + b
    expected.backward(g)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(ours.grad, x.grad)
    scale = 1 / np.sqrt(6 * n)
    torch.testing.assert_close(quantizer.step.grad, s.grad * scale)
    torch.testing.assert_close(quantizer.low.grad, b.grad * scale)


def test_grids_of_layers_and_what_their_numbers_take():
    """As chosen, found again, and counted in a packed file: a scale a channel, both ends of a range."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4))
    net = convert_to_quantized(net, torch.randn(2, 3, 8, 8))
    layers, sizes = quantized_layers(net).values(), {}
    for grids in (Grids(), Grids('affine'), Grids('symmetric', 'channel'), Grids('affine', 'channel'), Grids()):
        grids.use(layers)
        LinearQuantization(net, [[4, 4], [4, 4]], torch.randn(8, 3, 8, 8))
        assert Grids.of(layers) == grids == Grids.from_dict(grids.to_dict())
        assert [layer.input_quantizer.has_zero_point for layer in layers] == [grids.activation_grid == 'affine', False]
        sizes[grids] = file_size(inventory_of(net, (3, 8, 8), linear=True)).cost([[4, 4], [4, 4]])
    assert [size - sizes[Grids()] for size in sizes.values()] == [0, 2 * 4, (5 + 3) * 4, (5 + 3 + 2) * 4]
    assert Grids.from_dict({'activation_grid': None, 'other': 1}) == Grids()
    for wrong in ({'activation_grid': 'log'}, {'weight_scales': 'group'}):
        with pytest.raises(ValueError, match=f'{next(iter(wrong))} is .*expected one of'):
            Grids(**wrong)


SAMPLES = {
    'gelu': lambda x: torch.nn.functional.gelu(x), 'hardswish': lambda x: torch.nn.functional.hardswish(2 * x),
    'normal': lambda x: x, 'shifted': lambda x: x + 2, 'negative': lambda x: -x.abs(), 'relu': lambda x: x.relu(),
    'zeros': lambda x: 0 * x,
}


@pytest.mark.parametrize('name', SAMPLES)
@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_ends_of_least_error_beat_brute_force(name, bits):
    x, top = SAMPLES[name](torch.randn(400, generator=torch.Generator().manual_seed(1))).double(), 2**bits - 1

    def error(low, high):
        step = (high - low) / top
        zero = round(-low / step) if step else 0
        codes = (x / (step or 1)).round().clamp(-zero, top - zero)
        return (codes * step - x).square().sum().item()

    low, high = mse_ends(x, bits)
    steps = np.linspace(0.02, 1, 60) * max(x.amax().item() - x.amin().item(), x.abs().amax().item(), 1e-9) / top
    zeros = range(0, top + 1, max(1, top // 60))
    best = min(error(-zero * step, (top - zero) * step) for step in steps for zero in zeros)
    assert low <= 0 <= high and error(low, high) <= best * 1.03 + 1e-9


def test_ends_by_method():
    x = SAMPLES['gelu'](torch.randn(5000, generator=torch.Generator().manual_seed(1)))
    seen, top = x.amin().item(), x.amax().item()
    assert find_ends(x, 4, method='max') == (seen, top)
    assert find_ends(x, 4, method='max', least=-0.1701) == (-0.1701, top)  # what the function tells, not the batch
    assert find_ends(x, 8, method='kl') == (seen, top)
    low, high = find_ends(x, 3, method='kl')
    assert low == seen and -low < high < top
    balanced = torch.cat([x, -x])
    low, high = find_ends(balanced, 3)
    assert -low == high == pytest.approx(find_range(balanced, 3, signed=True, kl_bits=2))  # as of a symmetric grid
    for bad in (torch.tensor([1.0, torch.nan]), torch.zeros(0)):
        with pytest.raises(ValueError, match='cannot choose a clipping range'):
            find_ends(bad, 4)


def test_unsigned_inputs_stay_as_they_are_and_cap_and_grow_hold():
    x = torch.randn(500, generator=torch.Generator().manual_seed(2))
    for kind in (LinearActivationQuantizer, lambda *args, **options: LSQQuantizer(*args, per='features', **options)):
        plain, affine = kind(4, signed=False), kind(4, signed=False, affine=True)
        for quantizer in (plain, affine):
            quantizer.calibrate(x.relu())
        assert torch.equal(plain(x.relu()), affine(x.relu())) and not affine.low.requires_grad
        affine = kind(4, affine=True)
        affine.calibrate(x + 1, method='mse')
        assert affine.signed and affine.low.requires_grad and affine.low.item() < 0
        affine.calibrate(x + 1, method='mse', cap=1.5)
        assert affine(x).amax() <= 1.75 and affine(x).amin() >= -1.75
        affine.calibrate(3 * (x + 1), method='mse', grow=True)
        assert affine(torch.tensor([9.0])).item() > 3
        affine.bits = 1
        assert not affine.low.requires_grad and affine(x).unique().numel() == 2  # the sign, as of a symmetric grid
