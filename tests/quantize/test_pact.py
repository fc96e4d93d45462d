"""PACT against its formula in plain autograd, the paper's gradient, all its codes, and an alpha that goes astray."""

import copy

import pytest
import torch
from torch import nn

from lib.quantize import LinearActivationQuantizer, PACTActivationQuantizer, QLinear, find_range
from lib.quantize.pact import MIN_ALPHA

ALL_BITS = range(1, 9)
KINDS = [(bits, signed) for bits in ALL_BITS for signed in (False, True)]


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_alpha(quantizer, alpha):
    with torch.no_grad():
        quantizer.range.fill_(alpha)
    return quantizer


def levels_per_side(bits, signed):
    return max(2 ** (bits - 1) - 1, 1) if signed else 2**bits - 1


def rounded(x, binary):
    """Rounding, or the sign, with the gradient of the identity."""
    return x + ((torch.where(x >= 0, 1.0, -1.0) if binary else x.round()) - x).detach()


def formula(x, alpha, bits, signed):
    """Both papers' clip, then round(y n / alpha) alpha / n with a straight-through rounding, in plain autograd."""
    n = levels_per_side(bits, signed)
    y = 0.5 * ((x + alpha).abs() - (x - alpha).abs()) if signed else 0.5 * (x.abs() - (x - alpha).abs() + alpha)
    return rounded(y * n / alpha, signed and bits == 1) * alpha / n


# --- codes


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
@pytest.mark.parametrize('alpha', [10.0, -0.7, 1.1])
def test_forward_codes_and_grid_are_one_map(check_map, bits, signed, alpha):
    n = levels_per_side(bits, signed)
    codes = list(range(-n, n + 1)) if signed else list(range(n + 1))
    check_map(with_alpha(PACTActivationQuantizer(bits, signed=signed), alpha), [-1, 1] if len(codes) == 3 and bits == 1
              else codes)


def test_examples():
    x = torch.tensor([-1.0, 0.6, 2.0])
    torch.testing.assert_close(PACTActivationQuantizer(2, alpha=1.5)(x), torch.tensor([0, 0.5, 1.5]))
    torch.testing.assert_close(PACTActivationQuantizer(2, alpha=1.5, signed=True)(x), torch.tensor([-1.5, 0, 1.5]))
    assert PACTActivationQuantizer(1, alpha=1.5, signed=True)(x).tolist() == [-1.5, 1.5, 1.5]


# --- gradients


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
@pytest.mark.parametrize('alpha', [0.9, -0.9])
def test_ste_gradient_is_that_of_the_formula(bits, signed, alpha):
    x, direction = sample(800, dtype=torch.float64).requires_grad_(), sample(800, seed=1, dtype=torch.float64)
    quantizer = with_alpha(PACTActivationQuantizer(bits, signed=signed, gradient='ste').double(), alpha)
    expected = formula(x, quantizer.range.abs(), bits, signed)
    torch.testing.assert_close(quantizer(x), expected)
    ours, reference = (torch.autograd.grad(q, (x, quantizer.range), direction) for q in (quantizer(x), expected))
    torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
@pytest.mark.parametrize('alpha', [0.9, -0.9])
def test_paper_gradient_counts_what_is_clipped(bits, signed, alpha):
    x, g = sample(800, dtype=torch.float64).requires_grad_(), sample(800, seed=1, dtype=torch.float64)
    quantizer = with_alpha(PACTActivationQuantizer(bits, signed=signed).double(), alpha)
    torch.testing.assert_close(quantizer(x), formula(x, quantizer.range.abs(), bits, signed))
    grad_x, grad_alpha = torch.autograd.grad(quantizer(x), (x, quantizer.range), g)
    above, below = (x >= 0.9).double(), (x <= -0.9).double()
    inside = (x.abs() < 0.9) if signed else (x >= 0) & (x < 0.9)
    assert torch.equal(grad_x, g * inside)
    d_alpha = (g * (above - below if signed else above)).sum()
    assert grad_alpha.item() == pytest.approx(d_alpha.item() if alpha > 0 else -d_alpha.item())


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('alpha', [0.9, -0.9])
def test_gradients_are_finite_differences_of_a_fine_grid(signed, alpha):
    step = 0.01
    x = torch.tensor([-2.0, -0.5, 0.3, 0.7, 1.4, 2.2], dtype=torch.float64).requires_grad_()
    g = torch.tensor([1.0, -2, 3, 0.5, 4, 0.25], dtype=torch.float64)
    quantizer = PACTActivationQuantizer(16, signed=signed).double()

    def value(x, alpha):
        return (g * with_alpha(quantizer, alpha)(x)).sum()

    grad_x, grad_alpha = torch.autograd.grad(value(x, alpha), (x, quantizer.range))
    with torch.no_grad():
        slopes = [(value(x + step * e, alpha) - value(x - step * e, alpha)) / (2 * step) for e in torch.eye(6)]
        slope = (value(x, alpha + step) - value(x, alpha - step)) / (2 * step)
    torch.testing.assert_close(grad_x, torch.stack(slopes), atol=0.02, rtol=0)
    torch.testing.assert_close(grad_alpha[0], slope, atol=0.02, rtol=0)


# --- an alpha that goes astray


@pytest.mark.parametrize(('bits', 'signed'), KINDS)
def test_negative_alpha_is_its_magnitude(bits, signed):
    x = sample(300)
    good, bad = (with_alpha(PACTActivationQuantizer(bits, signed=signed), alpha) for alpha in (0.8, -0.8))
    assert torch.equal(good(x), bad(x)) and good.grid() == bad.grid()
    assert torch.equal(good.to_int(x)[1], bad.to_int(x)[1])


@pytest.mark.parametrize(('bits', 'signed'), [(bits, signed) for bits, signed in KINDS if bits in (1, 2, 8)])
@pytest.mark.parametrize('alpha', [0.0, 1e-9, -1e-9])
@pytest.mark.parametrize('gradient', ['paper', 'ste'])
def test_alpha_of_zero_recovers(bits, signed, alpha, gradient):
    quantizer = with_alpha(PACTActivationQuantizer(bits, signed=signed, gradient=gradient), alpha)
    x = torch.tensor([-2.0, 0.5, 2.0], requires_grad=True)
    assert quantizer(x).isfinite().all() and quantizer.clip().item() == pytest.approx(MIN_ALPHA)
    optimizer = torch.optim.SGD([quantizer.range], lr=0.1)
    for _ in range(15):
        optimizer.zero_grad()
        ((quantizer(x) - (x if signed else x.relu()).detach()) ** 2).sum().backward()
        optimizer.step()
    assert abs(quantizer.range.item()) > 0.5 and x.grad.isfinite().all()


# --- calibration, width, state


@pytest.mark.parametrize('signed', [False, True])
def test_calibration_is_that_of_the_linear_quantizer(signed, caplog):
    x = sample(2000)
    for bits in (2, 4, 8):
        for method in ('kl', 'mse', 'max'):
            quantizer = PACTActivationQuantizer(bits, signed=signed)
            linear = LinearActivationQuantizer(bits, signed=signed)
            quantizer.calibrate(x, method=method)
            linear.calibrate(x if signed else x.relu(), method=method)
            assert quantizer.range.item() == linear.range.item() > 0
    assert quantizer.signed is signed and not caplog.records
    with_alpha(quantizer, -50.0).calibrate(x, method='max', grow=True)
    assert quantizer.range.item() == 50
    fixed = PACTActivationQuantizer(4, alpha=6.0, trainable=False)
    fixed.calibrate(x, method='max')
    assert fixed.range.item() == 6 and not fixed.range.requires_grad
    assert find_range(x.relu(), 8, signed=False, method='max') == x.max()


@pytest.mark.parametrize('signed', [False, True])
def test_no_bits_leave_the_tensor_alone(signed):
    x = sample(10)
    for bits in (None, -1, 32):
        quantizer = PACTActivationQuantizer(bits, signed=signed)
        assert quantizer(x) is x and not quantizer.range.requires_grad
        with pytest.raises(ValueError, match='integer codes'):
            quantizer.grid()
        quantizer.bits = 4
        assert quantizer.range.requires_grad


@pytest.mark.parametrize('bits', [0, 17, 31, 4.0, '8', True])
def test_refuses_bits(bits):
    with pytest.raises(ValueError, match='bits'):
        PACTActivationQuantizer(bits)


@pytest.mark.parametrize('options', [{'alpha': 0.0}, {'alpha': -1.0}, {'alpha': 1e-4}, {'alpha': float('nan')},
                                     {'alpha': float('inf')}, {'gradient': 'lsq'}])
def test_refuses_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        PACTActivationQuantizer(4, **options)


def test_state_dict_round_trip():
    source = with_alpha(PACTActivationQuantizer(4, signed=True), 0.3)
    target = PACTActivationQuantizer(4)
    target.load_state_dict(source.state_dict())
    x = sample(100)
    assert target.signed is True and torch.equal(target(x), source(x))
    assert torch.equal(copy.deepcopy(target)(x), source(x))
    layer = QLinear(5, 3, a_bit=4, input_quantizer=PACTActivationQuantizer(alpha=2.0))
    layer.load_state_dict(nn.Linear(5, 3).state_dict())
    assert layer.input_quantizer.range.item() == 2


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_keeps_the_dtype_of_the_input(dtype):
    x = sample(100).to(dtype).requires_grad_()
    for signed in (False, True):
        y = PACTActivationQuantizer(4, signed=signed, alpha=1.0)(x)
        y.sum().backward()
        assert y.dtype == dtype == x.grad.dtype


@pytest.mark.parametrize('bits', [1, 2])
@pytest.mark.parametrize('options', [{}, {'signed': True}, {'gradient': 'ste'}, {'signed': True, 'gradient': 'ste'},
                                     {'trainable': False}], ids=str)
def test_learns_through_it(loss_after_training, bits, options):
    assert loss_after_training(nn.Linear(8, 32), PACTActivationQuantizer(bits, alpha=2.0, **options)) < 0.7
