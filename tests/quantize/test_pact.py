"""What is special to PACT: an alpha that goes astray, and calibration."""

import pytest
import torch

from lib.quantize import LinearActivationQuantizer, PACTActivationQuantizer, find_range
from lib.quantize.pact import MIN_ALPHA
from tests.tiny import sample


def with_alpha(quantizer, alpha):
    with torch.no_grad():
        quantizer.range.fill_(alpha)
    return quantizer


@pytest.mark.parametrize('bits', [1, 2, 8])
@pytest.mark.parametrize('signed', [False, True])
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
