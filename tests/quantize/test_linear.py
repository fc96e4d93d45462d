"""Linear quantizers against torch's fake quantization, all their codes, and the gradients of the formulas."""

import pytest
import torch
from torch import nn

from lib.quantize.calibrate import mse_range
from lib.quantize.kl import kl_threshold
from lib.quantize.linear import (
    LinearActivationQuantizer,
    LinearWeightQuantizer,
    choose_scale,
    dequantize,
    max_code,
    quantize,
)

ALL_BITS = range(1, 9)


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weight_quantizer(bits, clip, **options):
    quantizer = LinearWeightQuantizer(bits, **options)
    quantizer.range.fill_(clip)
    return quantizer


def activation_quantizer(bits, signed, clip, **options):
    return LinearActivationQuantizer(bits, signed=signed, initial_range=clip, **options)


def assert_equal_but_for_ties(ours, reference, x, scale):
    """Torch multiplies by 1 / scale where the definition divides: an exact tie may round to the other side."""
    tie = ((x / scale).frac().abs() - 0.5).abs() < 1e-4
    assert tie.float().mean() < 0.01
    torch.testing.assert_close(ours[~tie], reference[~tie], rtol=1e-6, atol=1e-7)


# --- levels and codes


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('signed', [True, False])
def test_every_code_is_hit_and_is_a_fixed_point(bits, signed):
    n = max_code(bits, signed)
    codes = torch.arange(-n if signed else 0, n + 1)
    if signed and bits == 1:
        codes = torch.tensor([-1, 1])
    assert len(codes) == (2 if bits == 1 else 2**bits - 1 if signed else 2**bits)
    for clip in (1.0, 0.3, 6.0, 1e-3):
        scale = choose_scale(torch.tensor([clip]), bits, signed)
        x = torch.linspace(-1.2 * clip, 1.2 * clip, 5001)
        assert torch.equal(quantize(x, scale, bits, signed).unique().int(), codes.int())
        levels = dequantize(codes.float(), scale)
        assert torch.equal(quantize(levels, scale, bits, signed), codes.float())
        assert levels[-1].item() == pytest.approx(clip) and (levels[0] == (-levels[-1] if signed else 0))


@pytest.mark.parametrize('bits', ALL_BITS)
def test_codes_and_scale_reproduce_the_fake_quantized_tensor(bits):
    x = sample(500)
    quantizers = [weight_quantizer(bits, 0.8)]
    quantizers += [activation_quantizer(bits, signed, 1.3) for signed in (True, False)]
    for quantizer in quantizers:
        codes, scale = quantizer.to_int(x)
        assert codes.dtype == torch.int32 and scale.shape == (1,)
        assert torch.equal(codes * scale, quantizer(x))


def test_docstring_examples():
    expected = torch.tensor([-1.0, 2.0, 3.0])
    assert torch.equal(quantize(torch.tensor([-0.4, 0.9, 7.0]), torch.tensor([0.5]), 3, True), expected)
    weights = weight_quantizer(3, 0.6)(torch.tensor([-0.4, 0.12, 0.7]))
    torch.testing.assert_close(weights, torch.tensor([-0.4, 0.2, 0.6]))
    x = torch.tensor([-1.0, 0.6, 2.0])
    torch.testing.assert_close(activation_quantizer(2, False, 1.5)(x), torch.tensor([0, 0.5, 1.5]))
    torch.testing.assert_close(activation_quantizer(2, True, 1.5)(x), torch.tensor([-1.5, 0, 1.5]))


# --- bits


@pytest.mark.parametrize('kind', [LinearWeightQuantizer, LinearActivationQuantizer])
def test_no_bits_leave_the_tensor_alone(kind):
    x = sample(10)
    for bits in (None, -1, 32, 64):
        quantizer = kind(bits)
        assert not quantizer.active and quantizer(x) is x
        quantizer.calibrate(x)
        assert quantizer.range.item() == (6 if kind is LinearActivationQuantizer else 0)
        with pytest.raises(ValueError, match='integer codes'):
            quantizer.to_int(x)


@pytest.mark.parametrize('bits', [0, -2, 17, 31, 4.0, '8', True])
def test_refuses_bits(bits):
    with pytest.raises(ValueError, match='bits'):
        LinearWeightQuantizer(bits)
    quantizer = LinearActivationQuantizer(4)
    with pytest.raises(ValueError, match='bits'):
        quantizer.bits = bits
    assert quantizer.bits == 4


# --- weights


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('clip', [0.5, 1.7, 5.0])
def test_weights_equal_torch(bits, clip):
    weight = sample(64, 32, 3, 3)
    n = 2 ** (bits - 1) - 1
    reference = torch.fake_quantize_per_tensor_affine(weight, clip / n, 0, -n, n)
    assert_equal_but_for_ties(weight_quantizer(bits, clip)(weight), reference, weight, clip / n)


@pytest.mark.parametrize('bits', ALL_BITS)
def test_weight_gradient_passes_straight_through(bits):
    weight = sample(100).requires_grad_()
    direction = sample(100, seed=1)
    weight_quantizer(bits, 0.5)(weight).backward(direction)
    assert torch.equal(weight.grad, direction)  # also of the weights outside the range
    assert not weight_quantizer(bits, 0.5, fix_weight=True)(weight).requires_grad


def test_binary_weights():
    quantizer, weight = weight_quantizer(1, 7.0), torch.tensor([-3.0, -0.0, 0.0, 1.0])
    quantizer.calibrate(weight)
    assert quantizer(weight).tolist() == [-1, 1, 1, 1] and quantizer.range.item() == 7


def test_uncalibrated_weight_range_is_the_maximum_of_the_first_forward():
    quantizer, weight = LinearWeightQuantizer(4), sample(50)
    assert (quantizer(torch.zeros(3)) == 0).all() and quantizer.range.item() == 0
    quantizer(weight)
    assert quantizer.range.item() == weight.abs().max()
    quantizer(weight * 3)
    assert quantizer.range.item() == weight.abs().max()
    quantizer.load_state_dict({'range': torch.zeros(1)})
    quantizer(weight * 3)
    assert quantizer.range.item() == weight.abs().max() * 3


def test_calibration_of_weights():
    weight = sample(4000)
    top = weight.abs().max().item()
    ranges = {}
    for bits in (2, 3, 4, 5, 8):
        for method in ('kl', 'max', 'mse'):
            quantizer = weight_quantizer(bits, 100.0)
            quantizer.calibrate(weight.clone().requires_grad_(), method=method)
            ranges[bits, method] = quantizer.range.item()
    for bits in (2, 3, 4, 5, 8):
        kl = top if bits >= 5 else kl_threshold(weight, bits)
        expected = kl, top, mse_range(weight, bits, True)
        assert [ranges[bits, method] for method in ('kl', 'max', 'mse')] == pytest.approx(expected)


# --- activations


@pytest.mark.parametrize(('bits', 'signed'), [(b, False) for b in ALL_BITS] + [(b, True) for b in range(2, 9)])
@pytest.mark.parametrize('clip', [0.5, 2.0, 6.0])
def test_activations_equal_torch(bits, signed, clip):
    x = sample(4, 8, 16, 16)
    n = max_code(bits, signed)
    reference = torch.fake_quantize_per_tensor_affine(x, clip / n, 0, -n if signed else 0, n)
    assert_equal_but_for_ties(activation_quantizer(bits, signed, clip)(x), reference, x, clip / n)


def formula(x, clip, bits, signed, exact):
    """HAQ's definition in plain autograd, rounding detached; `exact` lets the gradient pass through the scale too."""
    n = max_code(bits, signed)
    y = 0.5 * ((x + clip).abs() - (x - clip).abs()) if signed else 0.5 * (x.abs() - (x - clip).abs() + clip)
    scale = clip / n
    code = (y / scale).detach().round() if bits > 1 or not signed else torch.where(x >= 0, 1.0, -1.0).double()
    if exact:
        return (y / scale + (code - y / scale).detach()) * scale
    return y + (code * scale - y).detach()


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('range_gradient', ['clip', 'exact'])
def test_activation_gradients_are_those_of_the_formula(bits, signed, range_gradient):
    x = sample(1000, dtype=torch.float64).requires_grad_()
    quantizer = activation_quantizer(bits, signed, 0.9, range_gradient=range_gradient).double()
    expected = formula(x, quantizer.range, bits, signed, range_gradient == 'exact')
    torch.testing.assert_close(quantizer(x), expected)
    direction = sample(1000, seed=1, dtype=torch.float64)
    ours = torch.autograd.grad(quantizer(x), (x, quantizer.range), direction)
    reference = torch.autograd.grad(expected, (x, quantizer.range), direction)
    torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('clip', [0.9, 1.0, 0.0, -1.0])
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('on_device', [False, True])
def test_what_is_kept_does_not_matter_to_the_gradients(monkeypatch, dtype, clip, signed, on_device):
    """From the region and from what a ReLU keeps, by numbers and by tensors (as on a GPU)."""
    x = torch.cat((sample(1000), torch.tensor([0.0, 1.0, 0.5]))).to(dtype).requires_grad_()
    direction = sample(1003, seed=1).to(dtype)
    if on_device:
        monkeypatch.setattr('lib.quantize.linear._takes_numbers', lambda x: False)
    for keeps_input in (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(0, 1), nn.Hardtanh(0, 0.95), nn.Hardtanh(0, 0.9)):
        found = []
        for make_input in (keeps_input, lambda x, clipped=keeps_input: clipped(x).abs()):
            quantizer = activation_quantizer(4, signed, clip)
            y = make_input(x)
            y.retain_grad()
            quantizer(y).backward(direction)
            found.append((y.grad, quantizer.range.grad))
        assert torch.equal(found[0][0], found[1][0])
        torch.testing.assert_close(found[0][1], found[1][1])


def test_values_on_the_range_count_as_outside():
    x = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    for signed, gradient, total in ((True, [0, 1, 0], 0), (False, [0, 1, 0], 1)):
        quantizer = activation_quantizer(8, signed, 2.0)
        grad_x, grad_range = torch.autograd.grad(quantizer(x).sum(), (x, quantizer.range))
        assert grad_x.tolist() == gradient and grad_range.tolist() == [total]


def test_forward_is_the_same_without_gradient():
    x = sample(300)
    for bits in ALL_BITS:
        for signed in (True, False):
            quantizer = activation_quantizer(bits, signed, 1.1)
            with torch.no_grad():
                plain = quantizer(x)
            assert not plain.requires_grad and torch.equal(plain, quantizer(x))


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('bits', [1, 2, 8])
@pytest.mark.parametrize('clip', [0.0, -3.0])
@pytest.mark.parametrize('range_gradient', ['clip', 'exact'])
def test_range_that_is_not_positive_gives_zeros_and_learns_its_way_back(signed, bits, clip, range_gradient):
    quantizer = activation_quantizer(bits, signed, clip, range_gradient=range_gradient)
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5, 2.0], requires_grad=True)
    assert (quantizer(x) == 0).all() and (quantizer(x.detach()) == 0).all()
    assert (quantizer.to_int(x)[0] * quantizer.to_int(x)[1] == 0).all()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    target = x.detach() if signed else x.detach().relu()
    for _ in range(60):
        optimizer.zero_grad()
        ((quantizer(x) - target) ** 2).sum().backward()
        assert x.grad.isfinite().all()
        optimizer.step()
    assert quantizer.range.item() > 0.5


def kept_by(make_input):
    """Returns the input of a quantizer and what it keeps of it and of the range for the backward pass."""
    quantizer, kept = activation_quantizer(4, False, 1.0), []
    x = make_input(sample(1000).requires_grad_())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantizer(x)
    return x, [t for t in kept if t.data_ptr() != quantizer.range.data_ptr()]


def test_keeps_one_byte_per_element_for_the_backward_pass():
    for make_input in (lambda x: x, torch.abs, nn.Hardtanh(-1, 1)):
        _, (region,) = kept_by(make_input)
        assert region.nbytes == 1000


def test_keeps_an_input_that_a_relu_keeps_anyway():
    for relu in (nn.ReLU(), nn.ReLU(inplace=True)):
        x, (kept,) = kept_by(lambda x, relu=relu: relu(x + 0))
        assert kept.data_ptr() == x.data_ptr()


def test_keeps_the_input_that_a_relu6_keeps_anyway():
    for relu in (nn.ReLU6(), nn.ReLU6(inplace=True)):
        x, (kept,) = kept_by(lambda x, relu=relu: relu(x + 0))
        assert kept.data_ptr() == x.grad_fn._saved_self.data_ptr()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype_of_the_input(dtype):
    x = sample(100).to(dtype).requires_grad_()
    for quantizer in (activation_quantizer(4, True, 1.0), activation_quantizer(1, True, 1.0), weight_quantizer(4, 1.0)):
        y = quantizer(x)
        y.sum().backward()
        assert y.dtype == dtype and x.grad.dtype == dtype


def test_range_asks_for_a_gradient_only_where_it_gets_one():
    quantizer = LinearActivationQuantizer()
    assert not quantizer.range.requires_grad
    quantizer.bits = 4
    assert quantizer.range.requires_grad
    quantizer.trainable = False
    assert not quantizer.range.requires_grad
    quantizer.bits = 8
    assert not quantizer.range.requires_grad
    x = sample(5).requires_grad_()
    quantizer(x * 1).sum().backward()
    assert quantizer.range.grad is None and x.grad is not None


def test_sign_is_found_in_the_first_input_and_saved():
    quantizer = LinearActivationQuantizer(8)
    assert quantizer.signed is None and LinearActivationQuantizer().get_extra_state() == -1
    quantizer(sample(20).abs())
    assert quantizer.signed is False
    other = LinearActivationQuantizer(8)
    other(sample(20))
    assert other.signed is True
    for source in (quantizer, other, LinearActivationQuantizer(8)):
        state = source.state_dict()
        assert all(torch.is_tensor(value) for value in state.values())
        target = LinearActivationQuantizer(8, signed=True)
        target.load_state_dict(state)
        assert target.signed is source.signed


def test_calibration_finds_the_sign_and_corrects_a_wrong_one(caplog):
    quantizer = LinearActivationQuantizer()
    quantizer.calibrate(sample(10).abs())
    assert quantizer.signed is False and not caplog.records
    quantizer.calibrate(sample(10))
    assert quantizer.signed is True and 'signed' in caplog.text
    quantizer.calibrate(sample(10).abs())
    assert quantizer.signed is True


def test_calibration_of_activations():
    x = sample(4000)
    top, positive = x.abs().max().item(), x.relu()

    def calibrated(x, bits, **options):
        quantizer = LinearActivationQuantizer(bits)
        quantizer.calibrate(x, **options)
        return quantizer.range.item()

    for bits in ALL_BITS:
        unsigned = positive.max().item() if bits >= 5 else kl_threshold(positive, bits)
        assert calibrated(positive, bits) == pytest.approx(min(unsigned, positive.max().item()))
        if bits > 1:  # one bit is the sign, the threshold is for the others
            signed = top if bits - 1 >= 5 else kl_threshold(x, bits - 1)
            assert calibrated(x, bits) == pytest.approx(min(signed, top))
        assert calibrated(positive, bits, method='mse') == pytest.approx(mse_range(positive, bits, False))
    assert calibrated(x, 1) == pytest.approx(x.abs().mean().item())
    assert calibrated(x, 3, method='max') == top
    assert calibrated(x * 8, 8) == 8 * top and calibrated(x * 8, 8, cap=6) == 6
    assert calibrated(x, 8, cap=6) == top
    assert calibrated(torch.zeros(100), 4) == 0
    uniform = torch.linspace(0, 2, 5000)
    assert kl_threshold(uniform, 4) > 2 and calibrated(uniform, 4) == 2


def test_refuses_an_unknown_range_gradient():
    with pytest.raises(ValueError, match="'lsq'"):
        LinearActivationQuantizer(4, range_gradient='lsq')


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('signed', [True, False])
def test_forward_codes_and_grid_are_one_map(check_map, bits, signed):
    n = max_code(bits, signed)
    codes = [-1, 1] if signed and bits == 1 else list(range(-n if signed else 0, n + 1))
    for clip in (6.0, 0.7, 1e-3):
        check_map(activation_quantizer(bits, signed, clip), codes)
    empty = activation_quantizer(bits, signed, -1.0).grid()
    assert empty.step == empty.scale == 0
    with pytest.raises(ValueError, match='not known yet'):
        LinearActivationQuantizer(bits).grid()
