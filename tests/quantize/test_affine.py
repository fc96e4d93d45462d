"""The machine form of every quantizer's codes: never negative, within the width, and of the same values."""

import pytest
import torch

from lib.quantize import (
    ACIQActivationQuantizer,
    ACIQWeightQuantizer,
    DoReFaActivationQuantizer,
    DoReFaWeightQuantizer,
    DSQQuantizer,
    LinearActivationQuantizer,
    LinearWeightQuantizer,
    LSQQuantizer,
    PACTActivationQuantizer,
)

BITS = [1, 2, 3, 4, 5, 8]
WEIGHTS = [LinearWeightQuantizer, DoReFaWeightQuantizer, LSQQuantizer,
           lambda bits: DoReFaWeightQuantizer(bits, symmetric=True),
           lambda bits: DSQQuantizer(bits, bounds='minmax'), ACIQWeightQuantizer,
           lambda bits: ACIQWeightQuantizer(bits, bias_corr=False)]
ACTIVATIONS = [lambda bits: LinearActivationQuantizer(bits, signed=False),
               lambda bits: LinearActivationQuantizer(bits, signed=True),
               lambda bits: PACTActivationQuantizer(bits, alpha=2.0), DoReFaActivationQuantizer,
               lambda bits: LSQQuantizer(bits, signed=True, per='features'),
               DSQQuantizer, lambda bits: DSQQuantizer(bits, lower=-0.7, upper=1.1),
               lambda bits: ACIQActivationQuantizer(bits, signed=False),
               lambda bits: ACIQActivationQuantizer(bits, signed=True)]


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('make', WEIGHTS + ACTIVATIONS)
def test_affine_codes_stand_for_the_fake_quantized_values(make, bits):
    x = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(bits))
    quantizer = make(bits).eval()
    values = quantizer(x)
    affine = quantizer.to_affine(x)
    assert affine.codes.min() >= 0 and affine.codes.max() < 2**bits and affine.bits == bits
    assert affine.codes.unique().numel() == values.unique().numel()
    torch.testing.assert_close(affine.scale * (affine.codes - affine.zero_point), values.double(), rtol=1e-6, atol=1e-6)


def test_a_signed_input_keeps_its_zero_point_for_a_tensor_without_negative_values():
    quantizer = LinearActivationQuantizer(4, signed=True)
    assert quantizer.to_affine(torch.tensor([0.5, 1.0])).zero_point.item() == 8
