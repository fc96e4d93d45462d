"""DoReFa against the paper's formulas in plain autograd, its level sets, and what rescaling changes."""

import pytest
import torch
from torch import nn

from lib.quantize import DoReFaActivationQuantizer, DoReFaWeightQuantizer, PACTActivationQuantizer, QLinear

ALL_BITS = range(1, 9)
SEVERAL_BITS = range(2, 9)


def sample(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rounded(x):
    """Rounding with the gradient of the identity."""
    return x + (x.round() - x).detach()


def formula(weight, bits, symmetric, detach=False):
    """The paper's equation 9, or its form with symmetric codes, in plain autograd."""
    largest = weight.tanh().abs().max()
    t = weight.tanh() / (largest.detach() if detach else largest)
    if symmetric:
        n = 2 ** (bits - 1) - 1
        return rounded(t * n) / n
    n = 2**bits - 1
    return 2 * rounded((t / 2 + 1 / 2) * n) / n - 1


# --- weights


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits', SEVERAL_BITS)
def test_weights_and_their_gradient_are_those_of_the_formula(bits, symmetric):
    weight, direction = (sample(20, 3, 3, seed=seed, dtype=torch.float64) for seed in (0, 1))
    weight.requires_grad_()
    quantizer, expected = DoReFaWeightQuantizer(bits, symmetric=symmetric), formula(weight, bits, symmetric)
    torch.testing.assert_close(quantizer(weight), expected)
    ours, reference, detached = (torch.autograd.grad(q, weight, direction)[0] for q in
                                 (quantizer(weight), expected, formula(weight, bits, symmetric, detach=True)))
    torch.testing.assert_close(ours, reference)
    differs = ~torch.isclose(ours, detached)
    assert differs.sum() == 1 and differs.flatten()[weight.abs().argmax()]  # the maximum has a gradient of its own


@pytest.mark.parametrize('symmetric', [False, True])
def test_gradient_is_the_finite_difference_of_a_fine_grid(symmetric):
    weight = torch.tensor([-1.2, 0.3, 0.8, -0.05, 0.6], dtype=torch.float64, requires_grad=True)
    direction = torch.tensor([1.0, 2, -1, 3, 0.5], dtype=torch.float64)
    quantizer, step = DoReFaWeightQuantizer(16, symmetric=symmetric), 0.01

    def value(weight):
        return (quantizer(weight) * direction).sum()

    (ours,) = torch.autograd.grad(value(weight), weight)
    with torch.no_grad():
        slopes = [(value(weight + step * e) - value(weight - step * e)) / (2 * step) for e in torch.eye(5)]
    torch.testing.assert_close(ours, torch.stack(slopes), atol=0.01, rtol=0)


@pytest.mark.parametrize('bits', SEVERAL_BITS)
def test_level_sets(bits):
    weight = torch.linspace(-0.99, 0.99, 4001).atanh()
    n = 2**bits - 1
    paper, symmetric = (DoReFaWeightQuantizer(bits, symmetric=s)(weight).unique() for s in (False, True))
    torch.testing.assert_close(paper, torch.arange(-n, n + 1, 2) / n)
    n = 2 ** (bits - 1) - 1
    torch.testing.assert_close(symmetric, torch.arange(-n, n + 1) / n)
    assert torch.equal(symmetric, -symmetric.flip(0)) and torch.equal(paper, -paper.flip(0))
    assert (len(paper), len(symmetric)) == (2**bits, 2**bits - 1)


def test_examples():
    weight = torch.tensor([-0.6, 0.12, 0.3]).atanh()
    torch.testing.assert_close(DoReFaWeightQuantizer(2)(weight), torch.tensor([-1, 1 / 3, 1 / 3]))
    assert DoReFaWeightQuantizer(2, symmetric=True)(weight).tolist() == [-1, 0, 0]


@pytest.mark.parametrize('symmetric', [False, True])
def test_one_bit_is_the_sign_times_the_mean(symmetric):
    weight = torch.tensor([-3.0, -0.0, 0.0, 1.0], requires_grad=True)
    direction = torch.tensor([1.0, 2.0, 3.0, 4.0])
    quantized = DoReFaWeightQuantizer(1, symmetric=symmetric)(weight)
    quantized.backward(direction)
    assert quantized.tolist() == [-1, 1, 1, 1] and torch.equal(weight.grad, direction)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_codes_and_scale_reproduce_the_weights(bits, symmetric, dtype):
    weight, quantizer = sample(500).to(dtype), DoReFaWeightQuantizer(bits, symmetric=symmetric)
    codes, scale = quantizer.to_int(weight)
    assert codes.dtype == torch.int32 and scale.shape == (1,)
    assert torch.equal(codes * scale, quantizer(weight)) and quantizer(weight).dtype == dtype
    assert codes.abs().max() == (1 if bits == 1 else 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1)
    assert symmetric or (codes % 2 == 1).all()


@pytest.mark.parametrize('bits', ALL_BITS)
def test_weights_of_zero_stay_finite(bits):
    for symmetric in (False, True):
        weight = torch.zeros(4, requires_grad=True)
        quantized = DoReFaWeightQuantizer(bits, symmetric=symmetric)(weight)
        quantized.sum().backward()
        assert torch.equal(weight.grad, torch.ones(4))
        level = 0.0 if symmetric or bits == 1 else 1 / (2**bits - 1)  # 0 is none of the paper's levels
        torch.testing.assert_close(quantized.abs(), torch.full((4,), level))


def test_weights_have_no_state_and_need_no_bits():
    weight = sample(5)
    for bits in (None, -1, 32):
        quantizer = DoReFaWeightQuantizer(bits)
        assert quantizer(weight) is weight and not quantizer.state_dict()
        with pytest.raises(ValueError, match='integer codes'):
            quantizer.to_int(weight)


# --- activations


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('factor', [0.1, 0.5, 1 / 6])
def test_activations_are_those_of_the_formula(bits, factor):
    x, direction = (sample(1000, seed=seed, dtype=torch.float64) for seed in (0, 1))
    x = (x / factor).requires_grad_()
    n = 2**bits - 1
    shrunk = rounded((factor * x).clamp(0, 1) * n) / n
    for rescale, expected in ((False, shrunk), (True, shrunk / factor)):
        quantizer = DoReFaActivationQuantizer(bits, factor=factor, rescale=rescale).double()
        torch.testing.assert_close(quantizer(x), expected)
        ours, reference = (torch.autograd.grad(q, x, direction, retain_graph=True)[0] for q in (quantizer(x), expected))
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize('bits', ALL_BITS)
def test_forward_codes_and_grid_are_one_map(check_map, bits):
    for factor in (0.1, 0.3, 1.0):
        for rescale in (False, True):
            check_map(DoReFaActivationQuantizer(bits, factor=factor, rescale=rescale), list(range(2**bits)))


@pytest.mark.parametrize('bits', ALL_BITS)
def test_is_a_pact_whose_alpha_is_fixed(bits):
    x = (sample(300) * 10).requires_grad_()
    quantizer, pact = DoReFaActivationQuantizer(bits), PACTActivationQuantizer(bits, alpha=10.0, trainable=False)
    assert torch.equal(quantizer(x), pact(x)) and quantizer.grid() == pact.grid()
    assert not any(p.requires_grad for p in quantizer.parameters())
    quantizer.calibrate(x)
    assert quantizer.range.item() == 10
    original = DoReFaActivationQuantizer(bits, rescale=False)
    torch.testing.assert_close(original(x) * 10, quantizer(x))
    assert original(x).max() == 1


def test_activation_example_and_a_float_one():
    x = torch.tensor([-1.0, 4.0, 20.0])
    torch.testing.assert_close(DoReFaActivationQuantizer(2)(x), torch.tensor([0, 10 / 3, 10]))
    torch.testing.assert_close(DoReFaActivationQuantizer(2, rescale=False)(x), torch.tensor([0, 1 / 3, 1]))
    assert DoReFaActivationQuantizer(32, rescale=False)(x) is x and DoReFaActivationQuantizer()(x) is x


@pytest.mark.parametrize('factor', [0.0, -0.1, 1001.0, float('nan')])
def test_refuses_a_factor(factor):
    with pytest.raises(ValueError, match='factor'):
        DoReFaActivationQuantizer(4, factor=factor)


@pytest.mark.parametrize('kind', [DoReFaWeightQuantizer, DoReFaActivationQuantizer])
@pytest.mark.parametrize('bits', [0, 17, 31, 4.0, '8', True])
def test_refuses_bits(kind, bits):
    with pytest.raises(ValueError, match='bits'):
        kind(bits)


def test_state_dict_round_trip():
    x = sample(100) * 5
    for rescale in (False, True):
        source, target = (DoReFaActivationQuantizer(3, factor=factor, rescale=rescale) for factor in (0.25, 0.1))
        target.load_state_dict(source.state_dict())
        assert torch.equal(target(x), source(x)) and target.grid() == source.grid()
    layer = QLinear(5, 3, weight_quantizer=DoReFaWeightQuantizer(4), input_quantizer=DoReFaActivationQuantizer(4))
    layer.load_state_dict(nn.Linear(5, 3).state_dict())
    layer.load_state_dict(layer.state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('rescale', [False, True])
def test_keeps_the_dtype_of_the_input(dtype, rescale):
    x = sample(100).to(dtype).requires_grad_()
    y = DoReFaActivationQuantizer(4, rescale=rescale)(x)
    y.sum().backward()
    assert y.dtype == dtype == x.grad.dtype


@pytest.mark.parametrize('bits', [1, 2])
def test_learns_through_it(loss_after_training, bits):
    for symmetric in (False, True):
        layer = QLinear(8, 32, bias=False, weight_quantizer=DoReFaWeightQuantizer(bits, symmetric=symmetric))
        assert loss_after_training(layer, nn.ReLU()) < 0.7
    for rescale in (False, True):
        assert loss_after_training(nn.Linear(8, 32), DoReFaActivationQuantizer(bits, factor=0.5, rescale=rescale)) < 0.7
