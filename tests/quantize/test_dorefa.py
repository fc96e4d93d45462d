"""What is special to DoReFa: odd codes, weights of zero, and activations that are a PACT with a fixed alpha."""

import pytest
import torch

from lib.quantize import DoReFaActivationQuantizer, DoReFaWeightQuantizer, PACTActivationQuantizer
from tests.tiny import sample

ALL_BITS = range(1, 9)


@pytest.mark.parametrize('bits', ALL_BITS)
def test_codes_of_the_papers_levels_are_odd(bits):
    paper, symmetric = (DoReFaWeightQuantizer(bits, symmetric=symmetric) for symmetric in (False, True))
    codes = paper.to_int(sample(500))[0]
    assert (codes % 2 == 1).all() and codes.abs().max() == 2**bits - 1
    assert symmetric.to_int(sample(500))[0].abs().max() == max(2 ** (bits - 1) - 1, 1)
    assert not paper.state_dict() and not symmetric.state_dict()


@pytest.mark.parametrize('bits', ALL_BITS)
def test_weights_of_zero_stay_finite(bits):
    for symmetric in (False, True):
        weight = torch.zeros(4, requires_grad=True)
        quantized = DoReFaWeightQuantizer(bits, symmetric=symmetric)(weight)
        quantized.sum().backward()
        assert torch.equal(weight.grad, torch.ones(4))
        level = 0.0 if symmetric or bits == 1 else 1 / (2**bits - 1)  # 0 is none of the paper's levels
        torch.testing.assert_close(quantized.abs(), torch.full((4,), level))


@pytest.mark.parametrize('bits', ALL_BITS)
@pytest.mark.parametrize('factor', [0.1, 0.25])
def test_is_a_pact_whose_alpha_is_fixed(bits, factor):
    x = (sample(300) * 10).requires_grad_()
    quantizer = DoReFaActivationQuantizer(bits, factor=factor)
    pact = PACTActivationQuantizer(bits, alpha=1 / factor, trainable=False)
    assert torch.equal(quantizer(x), pact(x)) and quantizer.grid() == pact.grid()
    assert not any(p.requires_grad for p in quantizer.parameters())
    quantizer.calibrate(x)
    assert quantizer.range.item() == 1 / factor
    original = DoReFaActivationQuantizer(bits, factor=factor, rescale=False)
    torch.testing.assert_close(original(x) / factor, quantizer(x))
    assert original(x).max() == 1
