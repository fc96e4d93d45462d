"""Linear quantizers: against torch's fake quantization, their ranges, and what they keep for the backward pass."""

import pytest
import torch
from torch import nn

from lib.quantize.linear import (
    LinearActivationQuantizer,
    LinearWeightQuantizer,
    max_code,
    quantize,
)
from lib.quantize.ranges import kl_threshold, mse_range
from tests.tiny import sample

ALL_BITS = range(1, 9)


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


def test_docstring_example():
    codes = quantize(torch.tensor([-0.4, 0.9, 7.0]), torch.tensor([0.5]), 3, True)
    assert codes.tolist() == [-1, 2, 3]


# --- weights


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('clip', [0.5, 1.7, 5.0])
def test_weights_equal_torch(bits, clip):
    weight = sample(64, 32, 3, 3)
    n = 2 ** (bits - 1) - 1
    reference = torch.fake_quantize_per_tensor_affine(weight, clip / n, 0, -n, n)
    assert_equal_but_for_ties(weight_quantizer(bits, clip)(weight), reference, weight, clip / n)


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


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('clip', [0.9, 1.0, 0.0, -1.0])
@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('on_device', [False, True])
def test_what_is_kept_does_not_matter_to_the_gradients(monkeypatch, dtype, clip, signed, on_device):
    """From the region and from what a ReLU keeps, by numbers and by tensors (as on a GPU)."""
    x = torch.cat((sample(1000), torch.tensor([0.0, 1.0, 0.5]))).to(dtype).requires_grad_()
    direction = sample(1003, seed=1).to(dtype)
    if on_device:
        monkeypatch.setattr('lib.quantize.uniform._takes_numbers', lambda x: False)
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


@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('bits', [1, 2, 8])
@pytest.mark.parametrize('clip', [0.0, -3.0])
@pytest.mark.parametrize('range_gradient', ['clip', 'exact'])
def test_range_that_is_not_positive_gives_zeros_and_learns_its_way_back(signed, bits, clip, range_gradient):
    quantizer = activation_quantizer(bits, signed, clip, range_gradient=range_gradient)
    x = torch.tensor([-2.0, -0.0, 0.0, 0.5, 2.0], requires_grad=True)
    assert (quantizer(x) == 0).all() and (quantizer(x.detach()) == 0).all()
    assert (quantizer.to_int(x)[0] * quantizer.to_int(x)[1] == 0).all()
    assert quantizer.grid().step == quantizer.grid().scale == 0
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


def test_a_signed_input_keeps_its_zero_point_for_a_tensor_without_negative_values():
    quantizer = LinearActivationQuantizer(4, signed=True)
    assert quantizer.to_affine(torch.tensor([0.5, 1.0])).zero_point.item() == 8
