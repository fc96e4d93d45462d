"""No quantizer makes a number of NaN: a network that diverged must be seen to have diverged."""

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
from lib.quantize.kmeans import fit_codebook
from lib.utils.progressive import ClippedReLU

QUANTIZERS = {
    'linear weights': LinearWeightQuantizer,
    'linear unsigned': lambda bits: LinearActivationQuantizer(bits, signed=False),
    'linear signed': lambda bits: LinearActivationQuantizer(bits, signed=True),
    'linear exact': lambda bits: LinearActivationQuantizer(bits, signed=True, range_gradient='exact'),
    'dorefa weights': DoReFaWeightQuantizer,
    'dorefa symmetric': lambda bits: DoReFaWeightQuantizer(bits, symmetric=True),
    'dorefa': DoReFaActivationQuantizer,
    'dorefa shrunk': lambda bits: DoReFaActivationQuantizer(bits, rescale=False),
    'pact': PACTActivationQuantizer,
    'mpact': lambda bits: PACTActivationQuantizer(bits, signed=True, gradient='ste'),
    'clipped relu': ClippedReLU,
    'lsq weights': LSQQuantizer,
    'lsq unsigned': lambda bits: LSQQuantizer(bits, signed=False, per='features'),
    'dsq weights': lambda bits: DSQQuantizer(bits, bounds='minmax'),
    'dsq fixed': DSQQuantizer,
    'dsq learned': lambda bits: DSQQuantizer(bits, bounds='minmax', learn_lower=True, learn_upper=True),
    'aciq weights': lambda bits: ACIQWeightQuantizer(bits, per_channel=True, bit_alloc=True),
    'aciq unsigned': lambda bits: ACIQActivationQuantizer(bits, signed=False),
    'aciq signed': lambda bits: ACIQActivationQuantizer(bits, signed=True),
}


@pytest.mark.parametrize('name', QUANTIZERS)
def test_nan_stays_nan_and_has_no_code(name):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    bad = x.clone()
    bad[1, 2] = bad[3, 0] = torch.nan
    for bits in (*range(1, 9), *([32] if name == 'clipped relu' else [])):
        quantizer = QUANTIZERS[name](bits)
        quantizer.calibrate(x)
        assert torch.isfinite(quantizer(x)).all()
        with torch.no_grad():
            assert quantizer(bad)[bad.isnan()].isnan().all(), bits
        assert quantizer(bad.clone().requires_grad_())[bad.isnan()].isnan().all(), bits
        for codes in () if bits == 32 else (quantizer.to_int, quantizer.to_affine):
            with pytest.raises(ValueError, match='are NaN: no code|multiples of a scale|lower bound is'):
                codes(bad)


@pytest.mark.parametrize('make', [LinearActivationQuantizer, LSQQuantizer, ACIQActivationQuantizer])
def test_a_sign_is_not_learned_from_nan(make):
    quantizer = make(4, per='features') if make is LSQQuantizer else make(4)
    quantizer._find_sign(torch.tensor([torch.nan, -1.0]))
    assert quantizer.signed is None and quantizer._find_sign(torch.tensor([-1.0])) is True


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_no_centroids_without_values(value):
    for bits in range(1, 9):
        with pytest.raises(ValueError, match='not finite'):
            fit_codebook(torch.tensor([1.0, value, 2.0]), bits)
