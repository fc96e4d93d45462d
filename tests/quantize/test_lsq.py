"""What is special to LSQ: the life of its step, found, recovered, capped, loaded."""

import copy
import math

import pytest
import torch

from lib.quantize import LSQQuantizer
from lib.quantize.lsq import MIN_STEP, code_range
from tests.tiny import sample

ALL_BITS = range(1, 9)
KINDS = [(bits, signed) for bits in ALL_BITS for signed in (False, True)]


def with_step(quantizer, step):
    with torch.no_grad():
        quantizer.step.fill_(step)
    return quantizer


def limits(bits, signed):
    """Q_N and Q_P of the paper; one signed bit, which has none there, has 1 and 1."""
    if signed and bits == 1:
        return 1, 1
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def initial_step(v, bits, signed):
    mean = (v if signed else v.relu()).abs().mean().item()
    return mean if signed and bits == 1 else 2 * mean / math.sqrt(limits(bits, signed)[1])


@pytest.mark.parametrize(('bits', 'signed'), [(bits, signed) for bits, signed in KINDS if bits in (1, 2, 8)])
@pytest.mark.parametrize('step', [0.0, 1e-12, -1e-12])
def test_step_of_zero_recovers(bits, signed, step):
    v = torch.tensor([-2.0, 0.5, 2.0], requires_grad=True)
    quantizer = LSQQuantizer(bits, signed=signed)
    quantizer(v)
    with_step(quantizer, step)
    assert quantizer(v).abs().max().item() == pytest.approx(limits(bits, signed)[0 if signed else 1] * MIN_STEP)
    optimizer = torch.optim.SGD([quantizer.step], lr=0.1 / limits(bits, signed)[1] ** 1.5)
    for _ in range(25):
        optimizer.zero_grad()
        ((quantizer(v) - (v if signed else v.relu()).detach()) ** 2).sum().backward()
        optimizer.step()
    assert abs(quantizer.step.item()) * limits(bits, signed)[1] > 0.5 and v.grad.isfinite().all()


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
@pytest.mark.parametrize('first', ['training', 'evaluation', 'calibrate', 'to_int'])
def test_first_tensor_gives_the_step(bits, signed, first):
    v, quantizer = sample(200), LSQQuantizer(bits, signed=signed).train(first == 'training')
    if first == 'evaluation':
        with torch.no_grad():
            quantizer(v)
    else:
        {'training': quantizer, 'calibrate': quantizer.calibrate, 'to_int': quantizer.to_int}[first](
            v.clone().requires_grad_())
    expected = initial_step(v, bits, signed)
    if first == 'calibrate' and not signed:  # calibration corrects a sign
        expected = initial_step(v, bits, True)
    assert quantizer.step.item() == pytest.approx(expected) and quantizer.step.requires_grad
    quantizer(3 * v)
    quantizer.to_int(3 * v)
    assert quantizer.step.item() == pytest.approx(expected)


def test_zeros_give_no_step():
    quantizer = LSQQuantizer(4, signed=True)
    assert (quantizer(torch.zeros(5)) == 0).all() and quantizer.step.item() == 0
    with pytest.raises(ValueError, match='calibrate'):
        quantizer.grid()
    quantizer(sample(50))
    assert quantizer.step.item() == pytest.approx(initial_step(sample(50), 4, True))
    for bad in (torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])):
        with pytest.raises(ValueError, match='cannot find a step'):
            LSQQuantizer(4)(bad)


def test_calibration_caps_and_grows():
    v, quantizer = sample(500), LSQQuantizer(4, signed=True)
    quantizer.calibrate(v, cap=0.7)
    assert quantizer.step.item() == pytest.approx(0.1)
    quantizer.calibrate(v, cap=70, method='mse')
    assert quantizer.step.item() == pytest.approx(initial_step(v, 4, True))
    with_step(quantizer, -5.0).calibrate(v, grow=True)
    assert quantizer.step.item() == 5
    quantizer.calibrate(v)
    assert quantizer.step.item() == pytest.approx(initial_step(v, 4, True))


@pytest.mark.parametrize('signed', [False, True])
def test_loaded_step_is_not_found_again(signed):
    v, source = sample(100) if signed else sample(100).abs(), LSQQuantizer(4, per='features')
    source(v)
    for target in (LSQQuantizer(4, per='features'), LSQQuantizer(per='features'), with_step(copy.deepcopy(source), 9)):
        target.load_state_dict(source.state_dict())
        target.bits = 4
        assert torch.equal(target(5 * v), source(5 * v)) and target.signed is signed
        assert target.step.item() == source.step.item() == pytest.approx(initial_step(v, 4, signed))
    target.load_state_dict(LSQQuantizer().state_dict())  # one without a step
    target(5 * v)
    assert target.step.item() == pytest.approx(5 * initial_step(v, 4, True))


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_the_first_step_may_be_that_of_the_least_squared_error(bits, signed):
    """Against a fine scan of all steps; per channel as each channel by itself."""
    x = sample(6, 500, seed=bits, dtype=torch.float64) * torch.logspace(-3, 2, 6)[:, None].double()
    low, high = code_range(bits, signed)

    def error(values, step):
        return ((values / step).round().clamp(low, high) * step - values).square().sum().item()

    def found(values, **options):
        quantizer = LSQQuantizer(bits, signed=signed, init='least_squares', **options).double()
        quantizer(values)
        return quantizer.step.detach()

    steps = found(x, channels=6)
    for row, step in zip(x, steps, strict=True):
        torch.testing.assert_close(found(row), step.reshape(1))
        scanned = min(error(row, candidate) for candidate in torch.linspace(0.002, 1.5, 1500) * row.abs().max())
        assert error(row, step) <= 1.01 * scanned
        plain = LSQQuantizer(bits, signed=signed).double()
        plain(row)
        assert error(row, step) <= error(row, plain.step.detach())


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_the_distance_of_weights_from_their_levels(bits):
    weight = sample(40, 50)
    weight[:, 0] *= 20
    weight.requires_grad_()
    quantizer = LSQQuantizer(bits, channels=40)
    levels = quantizer(weight).detach()
    low, high = (code * quantizer.step.detach()[:, None] for code in code_range(bits, True))
    inside = (weight > low) & (weight < high)
    distance = quantizer.distance(weight)
    expected = torch.where(inside, (levels - weight) ** 2, (levels - weight.clamp(low, high)) ** 2)
    torch.testing.assert_close(distance, expected.sum())
    distance.backward()
    torch.testing.assert_close(weight.grad, torch.where(inside, -2 * (levels - weight), 0.0).detach())
    assert quantizer.step.grad is None and not inside.all()
