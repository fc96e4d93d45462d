"""What is true of every quantizer as a module: its width, its state, tensors of all kinds; the table is in rows.py."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.quantize import (
    ACIQActivationQuantizer,
    ACIQWeightQuantizer,
    DoReFaActivationQuantizer,
    DSQQuantizer,
    LinearActivationQuantizer,
    LSQQuantizer,
    PACTActivationQuantizer,
    QConv2d,
    QLinear,
    calibrating,
)
from tests.quantize.rows import OTHER, ROWS, SOME

some_rows = pytest.mark.parametrize('name', SOME)


# --- width, state


@some_rows
def test_no_bits_leave_the_tensor_alone(name):
    row = ROWS[name]
    x = row.random((5, 4)).float().abs()
    learned = [key for key, parameter in row.make(4).named_parameters() if parameter.requires_grad]
    for bits in (None, -1, 32, 64):
        quantizer = row.make(bits)
        before = copy.deepcopy(quantizer.state_dict())
        quantizer.calibrate(x)
        assert quantizer(x) is x and not quantizer.active
        assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
        for verb in (lambda: quantizer.to_int(x), lambda: quantizer.to_affine(x), quantizer.grid)[:2 + row.grid]:  # noqa: B023
            with pytest.raises(ValueError, match='integer codes'):
                verb()
        for width, expected in ((bits, []), (4, learned), (bits, [])):
            quantizer.bits = width
            assert [key for key, parameter in quantizer.named_parameters() if parameter.requires_grad] == expected


@some_rows
def test_refuses_bits(name):
    quantizer = ROWS[name].make(4)
    for bits in (0, -2, 17, 31, 4.0, '8', True):
        with pytest.raises(ValueError, match='bits'):
            ROWS[name].make(bits)
        with pytest.raises(ValueError, match='bits'):
            quantizer.bits = bits
        assert quantizer.bits == 4


REFUSED = [
    (LinearActivationQuantizer, "range_gradient is 'lsq'", {'range_gradient': 'lsq'}),
    (DoReFaActivationQuantizer, 'factor', *({'factor': factor} for factor in (0.0, -0.1, 1001.0, np.nan))),
    (PACTActivationQuantizer, 'alpha', *({'alpha': alpha} for alpha in (0.0, -1.0, 1e-4, np.nan, np.inf))),
    (PACTActivationQuantizer, 'gradient', {'gradient': 'lsq'}),
    (LSQQuantizer, "'images'", {'per': 'images'}),
    (DSQQuantizer, 'expected', {'bounds': 'learned'}, {'slope': 0.0}, {'slope': np.nan}, {'lower': 2.0},
     {'upper': 0.0}, {'upper': np.inf}, {'lower': np.nan}, {'bounds': 'minmax', 'lower': 1.0, 'upper': -1.0}),
    (ACIQWeightQuantizer, 'expected one of', {'method': 'kl'}, {'prior': 'uniform'}),
    (ACIQWeightQuantizer, 'per_channel', {'bit_alloc': True}),
    (ACIQActivationQuantizer, 'expected one of', {'prior': 'uniform'}, {'center': 'median'}, {'spread': 'relu'},
     {'method': 'max'}),
]


@pytest.mark.parametrize(('kind', 'message', 'options'),
                         [(kind, message, each) for kind, message, *options in REFUSED for each in options], ids=str)
def test_refuses_options(kind, message, options):
    with pytest.raises(ValueError, match=message):
        kind(4, **options)


@some_rows
@pytest.mark.parametrize('bits', [1, 4])
def test_state_dict_round_trip(name, bits):
    row = ROWS[name]
    x, other = row.random((4, 6), bits).float(), row.random((4, 6), bits, seed=3).float()
    source = row.made(bits, OTHER)
    source(x)
    assert all(torch.is_tensor(value) for value in source.state_dict().values())
    empty, known = row.made(None), row.made(bits)
    known(torch.cat((5 * x, x)))  # of more channels, too
    for target in (empty, known, copy.deepcopy(known), copy.deepcopy(source)):
        target.load_state_dict(copy.deepcopy(source.state_dict()), strict=True)
        target.bits = bits
        assert torch.equal(target(other), source(other))
    layer = QLinear(6, 4, **{'weight_quantizer' if row.weights else 'input_quantizer': source})
    before = copy.deepcopy(source.state_dict())
    layer.load_state_dict(nn.Linear(6, 4).state_dict(), strict=True)  # a float network's has none of these keys
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())


# --- tensors of all kinds


@some_rows
def test_nan_stays_nan_and_has_no_code(name):
    row = ROWS[name]
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    bad = x.clone()
    bad[1, 2] = bad[3, 0] = torch.nan
    for bits in range(1, 9):
        quantizer = row.make(bits)
        quantizer.calibrate(x)
        assert quantizer(x).isfinite().all()
        with torch.no_grad():
            assert quantizer(bad)[bad.isnan()].isnan().all(), bits
        assert quantizer(bad.clone().requires_grad_())[bad.isnan()].isnan().all(), bits
        for codes in (quantizer.to_int, quantizer.to_affine):
            with pytest.raises(ValueError, match='are NaN: no code|multiples of a scale|lower bound is'):
                codes(bad)


@some_rows
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_keeps_the_dtype_of_the_input(name, dtype):
    row = ROWS[name]
    for bits in (1, 4):
        for kind in (torch.float32, dtype):
            quantizer, x = row.made(bits, dtype=kind), row.random((5, 4), bits).to(dtype).requires_grad_()
            y = quantizer(x)
            y.sum().backward()
            assert y.dtype == dtype == x.grad.dtype and x.grad.isfinite().all()
            single = row.made(bits)(x.detach().float()).detach()  # to a level, and what its dtype can tell
            assert ((y - single).abs() <= 1.02 * single.unique().diff().max() + 0.02 * single.abs().max()).all()
            assert all(p.grad.dtype == p.dtype and p.grad.isfinite().all() for p in quantizer.parameters()
                       if p.requires_grad)
            if row.codes:
                codes, scale = quantizer.to_int(x)
                assert torch.allclose((codes * scale).to(dtype), y, rtol=torch.finfo(dtype).eps, atol=1e-6)


@some_rows
def test_order_in_memory_does_not_matter(name):
    row = ROWS[name]
    x, g, results = row.random((2, 5, 4, 3)).float(), torch.linspace(-1, 2, 120).view(2, 5, 4, 3), []
    for tensor in (x, x.to(memory_format=torch.channels_last), x.transpose(1, 2).contiguous().transpose(1, 2)):
        quantizer, leaf = row.made(3), tensor.clone().requires_grad_()
        y = quantizer(leaf)
        y.backward(g)
        assert y.stride() == tensor.stride()
        results.append((y, leaf.grad, *(p.grad for p in quantizer.parameters() if p.requires_grad)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('name', [name for name, row in ROWS.items() if not row.weights])
@pytest.mark.parametrize('bits', [1, 4])
def test_an_empty_input_stays_empty(name, bits):
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    quantizer = ROWS[name].made(bits)
    quantizer(x).sum().backward()
    assert quantizer(x).shape == x.shape == x.grad.shape and quantizer.to_affine(x).codes.shape == x.shape


@pytest.mark.parametrize('name', ['lsq signed', 'dsq'])
def test_keeps_nothing_but_its_input_for_the_backward_pass(name):
    kept, x, quantizer = [], torch.randn(10, 100, requires_grad=True), ROWS[name].made(4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        quantizer(x)
    assert [t.data_ptr() for t in kept if t.numel() > 1] == [x.data_ptr()]


@pytest.mark.parametrize('make', [LinearActivationQuantizer, ACIQActivationQuantizer,
                                  lambda bits=None: LSQQuantizer(bits, per='features')])
def test_sign_is_found_in_the_first_input_saved_and_corrected_by_calibration(make, caplog):
    x = torch.linspace(-1, 2, 20)
    assert make(4).signed is None and make().get_extra_state() == -1
    sources = []
    for values, signed in ((x, True), (x.abs(), False)):
        sources.append(make(4))
        sources[-1](values)
        assert sources[-1].signed is signed
    for source in (*sources, make(4)):
        target = make(4)
        target.signed = True
        target.load_state_dict(source.state_dict())
        assert target.signed is source.signed
    for quantizer in (sources[1], make()):
        quantizer.calibrate(x.abs())
        assert quantizer.signed is False and not caplog.records
        quantizer.calibrate(x)
        assert quantizer.signed is True and 'signed' in caplog.text
        caplog.clear()
        quantizer.calibrate(x.abs())
        assert quantizer.signed is True
    unknown = make(4)
    unknown._find_sign(torch.tensor([torch.nan, -1.0]))  # tells nothing of the tensors to come
    assert unknown.signed is None and unknown._find_sign(x) is True
    with pytest.raises(ValueError, match='not known yet'):
        make(4).grid()


@pytest.mark.parametrize('name', ROWS)
def test_an_empty_tensor_stays_and_gives_no_range(name):
    quantizer, empty = ROWS[name].make(4), torch.zeros(0, 3, 2, 2)
    assert quantizer(empty).shape == empty.shape
    with contextlib.suppress(ValueError):
        quantizer.calibrate(empty)


# --- in a layer


@some_rows
@pytest.mark.parametrize('bits', [1, 3, 8])
def test_in_a_layer(name, bits):
    row, quantizer = ROWS[name], ROWS[name].make(bits)
    torch.manual_seed(0)
    plain, x = nn.Conv2d(4, 6, 3, bias=False), 5 * torch.randn(2, 4, 7, 7)
    layer = QConv2d(4, 6, 3, bias=False, **{'weight_quantizer' if row.weights else 'input_quantizer': quantizer})
    layer.load_state_dict(plain.state_dict())
    with calibrating(layer, method='mse'):
        torch.testing.assert_close(layer(x), plain(x))
    x = 1.2 * x  # some of it beyond every range
    y = layer(x)
    y.square().sum().backward()
    weight = layer.weight.detach()
    with torch.no_grad():
        expected = F.conv2d(x, quantizer(weight)) if row.weights else F.conv2d(quantizer(x), weight)
    torch.testing.assert_close(y.detach(), expected)
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters() if p.requires_grad)
    if row.codes:
        codes, scale = quantizer.to_int(weight if row.weights else x)
        integers = F.conv2d(x.double(), codes.double()) if row.weights else F.conv2d(codes.double(), weight.double())
        torch.testing.assert_close(y.double(), integers * scale.double(), rtol=1e-5, atol=1e-4)
