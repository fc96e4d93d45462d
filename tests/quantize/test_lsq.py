"""LSQ against its formula in plain autograd, all its codes, and the life of its step: found, saved, loaded, kept."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.quantize import LSQQuantizer, QConv2d, QLinear, calibrating
from lib.quantize.lsq import MIN_STEP, code_range

ALL_BITS = range(1, 9)
KINDS = [(bits, signed) for bits in ALL_BITS for signed in (False, True)]


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_step(quantizer, step):
    with torch.no_grad():
        quantizer.step.fill_(step)
    return quantizer


def limits(bits, signed):
    """Q_N and Q_P of the paper; one signed bit, which has none there, has 1 and 1."""
    if signed and bits == 1:
        return 1, 1
    return (2 ** (bits - 1), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def formula(v, step, bits, signed, count):
    """The pseudocode of the paper's appendix: gradscale and roundpass by detaching."""
    q_n, q_p = limits(bits, signed)
    scale = 1 / math.sqrt(count * q_p)
    s = (step - step * scale).detach() + step * scale
    if signed and bits == 1:
        passed = v.clamp(-s.item(), s.item())
        sign = torch.where(v >= 0, 1.0, -1.0).double()
        return sign * s + (passed - passed.detach())
    clipped = (v / s).clamp(-q_n, q_p)
    return (clipped + (clipped.round() - clipped).detach()) * s


def initial_step(v, bits, signed):
    mean = (v if signed else v.relu()).abs().mean().item()
    return mean if signed and bits == 1 else 2 * mean / math.sqrt(limits(bits, signed)[1])


# --- codes


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
@pytest.mark.parametrize('step', [0.25, -0.3, 1e-4])
def test_forward_codes_and_grid_are_one_map(check_map, bits, signed, step):
    q_n, q_p = limits(bits, signed)
    codes = [-1, 1] if signed and bits == 1 else list(range(-q_n, q_p + 1))
    assert code_range(bits, signed) == (-q_n, q_p) and len(codes) == 2**bits
    check_map(with_step(LSQQuantizer(bits, signed=signed), step), codes)


def test_examples():
    v = torch.tensor([-1.0, 0.6, 2.0])
    assert with_step(LSQQuantizer(2, signed=True), 0.5)(v).tolist() == [-1, 0.5, 0.5]
    assert with_step(LSQQuantizer(2, signed=False), 0.5)(v).tolist() == [0, 0.5, 1.5]
    assert with_step(LSQQuantizer(1, signed=True), 0.5)(v).tolist() == [-0.5, 0.5, 0.5]


# --- gradients


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
@pytest.mark.parametrize('per', ['weights', 'features'])
def test_gradients_are_those_of_the_formula(bits, signed, per):
    v, direction = (sample(6, 5, 2, 4, seed=seed, dtype=torch.float64) for seed in (0, 1))
    v.requires_grad_()
    quantizer = LSQQuantizer(bits, signed=signed, per=per).double()
    quantizer = with_step(quantizer, 1.5 / limits(bits, signed)[1])
    expected = formula(v, quantizer.step, bits, signed, {'weights': 240, 'features': 40}[per])
    torch.testing.assert_close(quantizer(v), expected)
    ours, reference = (torch.autograd.grad(q, (v, quantizer.step), direction) for q in (quantizer(v), expected))
    torch.testing.assert_close(ours, reference)
    assert (ours[0] == 0).any() and (ours[0] != 0).any()


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
def test_gradient_of_clipped_values_is_the_finite_difference(bits, signed):
    v = torch.tensor([-9.0, -7.0, 8.0, 9.0], dtype=torch.float64)
    g = torch.tensor([1.0, 2.0, -0.5, 4.0], dtype=torch.float64)
    quantizer, q_p = LSQQuantizer(bits, signed=signed).double(), limits(bits, signed)[1]
    step, h = 3 / (q_p + 1), 1e-4 / q_p

    def value(step):
        return (g * with_step(quantizer, step)(v)).sum()

    (ours,) = torch.autograd.grad(value(step), quantizer.step)
    slope = (value(step + h) - value(step - h)).item() / (2 * h)
    assert ours.item() == pytest.approx(slope / math.sqrt(4 * q_p))


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
def test_negative_step_is_its_magnitude(bits, signed):
    v = sample(200)
    good, bad = (with_step(LSQQuantizer(bits, signed=signed), step) for step in (0.2, -0.2))
    assert torch.equal(good(v), bad(v)) and good.grid() == bad.grid()
    good(v).backward(sample(200, seed=1))
    bad(v).backward(sample(200, seed=1))
    assert good.step.grad.item() == -bad.step.grad.item() != 0


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


def test_keeps_nothing_but_its_input_for_the_backward_pass():
    kept, v = [], sample(1000).requires_grad_()
    quantizer = with_step(LSQQuantizer(4, signed=True), 0.1)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantizer(v)
    large = [t for t in kept if t.numel() > 1]
    assert len(large) == 1 and large[0].data_ptr() == v.data_ptr()


def test_an_input_without_gradient_still_teaches_the_step():
    quantizer = with_step(LSQQuantizer(4, signed=True), 0.1)
    v = sample(100)
    quantizer(v).sum().backward()
    expected = formula(v.double(), step := torch.tensor([0.1], dtype=torch.float64, requires_grad=True), 4, True, 100)
    expected.sum().backward()
    torch.testing.assert_close(quantizer.step.grad.double(), step.grad, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert torch.equal(quantizer(v), quantizer(v.clone().requires_grad_()))


# --- the first step


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
    for bad in (torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf]), torch.zeros(0)):
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


def test_sign_is_found_in_the_first_input_and_corrected_by_calibration(caplog):
    assert LSQQuantizer(4).signed is True and LSQQuantizer(4, per='features').signed is None
    for v, signed in ((sample(20), True), (sample(20).abs(), False)):
        quantizer = LSQQuantizer(4, per='features')
        quantizer(v)
        assert quantizer.signed is signed
    quantizer.calibrate(sample(20).abs())
    assert quantizer.signed is False and not caplog.records
    quantizer.calibrate(sample(20))
    assert quantizer.signed is True and 'signed' in caplog.text


# --- width, state, layers


@pytest.mark.parametrize('per', ['weights', 'features'])
def test_no_bits_leave_the_tensor_alone(per):
    v = sample(10)
    for bits in (None, -1, 32):
        quantizer = LSQQuantizer(bits, per=per)
        quantizer.calibrate(v)
        assert quantizer(v) is v and quantizer.step.item() == 0 and not quantizer.step.requires_grad
        for verb in (quantizer.grid, lambda: quantizer.to_int(v)):  # noqa: B023
            with pytest.raises(ValueError, match='integer codes'):
                verb()
        quantizer.bits = 4
        assert quantizer.step.requires_grad
        quantizer.bits = bits
        assert not quantizer.step.requires_grad


@pytest.mark.parametrize('bits', [0, 17, 31, 4.0, '8', True])
def test_refuses_bits_and_words(bits):
    with pytest.raises(ValueError, match='bits'):
        LSQQuantizer(bits)
    with pytest.raises(ValueError, match="'images'"):
        LSQQuantizer(4, per='images')


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


def layers(bits):
    make = (lambda **q: QConv2d(4, 6, 3, bias=False, **q), (2, 4, 7, 7)), (lambda **q: QLinear(5, 3, **q), (7, 5))
    for build, shape in make:
        torch.manual_seed(0)
        yield build(weight_quantizer=LSQQuantizer(bits), input_quantizer=LSQQuantizer(bits, per='features')), shape


@pytest.mark.parametrize('bits', [1, 3, 8])
def test_in_layers(bits):
    for layer, shape in layers(bits):
        x = sample(*shape)
        y = layer(x)
        y.square().sum().backward()
        weight, inputs = layer.weight_quantizer, layer.input_quantizer
        with torch.no_grad():
            torch.testing.assert_close(y, layer.compute(inputs(x), weight(layer.weight)))
        assert weight.step.grad.item() != 0 != inputs.step.grad.item() and layer.weight.grad.abs().sum() > 0
        assert weight.step.item() == pytest.approx(initial_step(layer.weight, bits, True))
        assert inputs.step.item() == pytest.approx(initial_step(x, bits, True))


def test_layers_load_calibrate_and_keep():
    for layer, shape in layers(4):
        float_layer = nn.Conv2d(4, 6, 3, bias=False) if len(shape) == 4 else nn.Linear(5, 3)
        layer.load_state_dict(float_layer.state_dict())
        x = sample(*shape)
        with calibrating(layer, method='mse'):
            torch.testing.assert_close(layer(x), float_layer(x))
        steps = layer.weight_quantizer.step.item(), layer.input_quantizer.step.item()
        assert steps == pytest.approx((initial_step(layer.weight, 4, True), initial_step(x, 4, True)))
        twin = copy.deepcopy(layer)
        twin.load_state_dict(layer.state_dict())
        assert torch.equal(twin(2 * x), layer(2 * x)) and steps[1] == twin.input_quantizer.step.item()


def test_integer_convolution_gives_the_same_output():
    layer, shape = next(layers(4))
    x = sample(*shape)
    inputs, input_scale = layer.input_quantizer.to_int(x)
    weights, weight_scale = layer.weight_quantizer.to_int(layer.weight)
    integers = F.conv2d(inputs.double(), weights.double()) * input_scale.double() * weight_scale.double()
    torch.testing.assert_close(layer(x).double(), integers, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype_of_the_input(dtype):
    for bits, signed in ((1, True), (4, True), (4, False)):
        v = sample(100).to(dtype).requires_grad_()
        for quantizer in (LSQQuantizer(bits, signed=signed), LSQQuantizer(bits, signed=signed).to(dtype)):
            y = quantizer(v)
            y.sum().backward()
            assert y.dtype == dtype == v.grad.dtype and quantizer.step.grad.dtype == quantizer.step.dtype


@pytest.mark.parametrize('bits', [1, 2])
def test_learns_through_it(loss_after_training, bits):
    layer = QLinear(8, 32, bias=False, weight_quantizer=LSQQuantizer(bits))
    assert loss_after_training(layer, nn.ReLU()) < 0.7
    for signed in (False, True):
        quantizer = LSQQuantizer(bits, signed=signed, per='features')
        assert loss_after_training(nn.Linear(8, 32), quantizer) < 0.7
