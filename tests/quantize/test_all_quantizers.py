"""Every quantizer against its formula in NumPy, at all widths: values, codes, gradients; the table is in rows.py."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

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
    QLinear,
)
from tests.quantize.formulas import Nearest, Through
from tests.quantize.rows import EXACT, ROWS, SOME

every_row = pytest.mark.parametrize('name', ROWS)
all_bits = pytest.mark.parametrize('bits', range(1, 9))


# --- values, levels, codes


@every_row
@all_bits
def test_values_are_those_of_the_formula(name, bits):
    """Number for number where the arithmetic is exact; else, at the edge between two codes, that of either side."""
    row = ROWS[name]
    for size in row.sizes:
        levels = row.levels(bits, size)
        x = row.sample(levels, abs(size))
        for dtype, nudge in ((torch.float32, 1e-4), (torch.float64, 1e-9)):
            quantizer, tensor = row.made(bits, size, dtype), torch.from_numpy(x).to(dtype)
            values, parameters = quantizer(tensor), row.values(bits, size)
            nudge *= not (row.exact and size == EXACT)
            sides = np.stack([row.formula(x, bits, Nearest(side * nudge), **parameters) for side in (-1, 1)])
            off = np.abs(values.detach().double().numpy() - sides).min(0)
            assert (off <= 2e-6 * np.abs(sides).max()).all(), (size, dtype)
            if levels is not None:
                assert np.allclose(values.detach().unique(), levels, rtol=1e-6, atol=1e-6 * np.abs(levels).max())
                assert len(levels) in (2**bits, 2**bits - 1)
            if row.again:
                assert torch.allclose(quantizer(values), values, rtol=1e-6, atol=1e-6)
            with torch.no_grad():
                assert torch.equal(quantizer(tensor.requires_grad_()), values)


@every_row
@all_bits
def test_codes_and_grid_are_the_same_map(name, bits):
    row = ROWS[name]
    for size in row.sizes:
        levels = row.levels(bits, size)
        x = row.sample(levels, abs(size))
        quantizer, x = row.made(bits, size), torch.from_numpy(x).float()
        values = quantizer(x).detach()
        affine = quantizer.to_affine(x)
        assert affine.codes.min() >= 0 and affine.codes.max() < 2**affine.bits
        assert affine.bits == bits or name.endswith('allocated') and affine.bits >= bits
        assert affine.scale.dtype == affine.zero_point.dtype == torch.float64 and affine.codes.dtype == torch.int64
        rebuilt = affine.scale * (affine.codes - affine.zero_point)
        assert torch.allclose(rebuilt, values.double(), rtol=1e-6, atol=1e-6)
        if levels is not None:
            assert affine.codes.unique().numel() == len(levels)
        if not row.codes:
            with pytest.raises(ValueError, match='to_affine'):
                quantizer.to_int(x)
            continue
        codes, scale = quantizer.to_int(x)
        assert codes.dtype == torch.int32 and scale.shape == (1,) and torch.equal(codes * scale, values)
        if row.grid:
            grid = quantizer.grid()
            assert (grid.low, grid.high) == (codes.min(), codes.max())
            assert grid.binary == (codes.unique().tolist() == [-1, 1])
            nearest = torch.where(x >= 0, 1, -1) if grid.binary else (x / grid.step).round().clamp(grid.low, grid.high)
            assert torch.equal(codes, nearest.int()) and scale.item() == pytest.approx(grid.scale, rel=1e-6)


EXAMPLES = [  # of the docstrings
    (LinearWeightQuantizer(3), {'range': 0.6}, (-0.4, 0.12, 0.7), (-0.4, 0.2, 0.6)),
    (LinearActivationQuantizer(2, signed=False), {'range': 1.5}, (-1, 0.6, 2), (0, 0.5, 1.5)),
    (LinearActivationQuantizer(2, signed=True), {'range': 1.5}, (-1, 0.6, 2), (-1.5, 0, 1.5)),
    (DoReFaWeightQuantizer(2), {}, np.arctanh((-0.6, 0.12, 0.3)), (-1, 1 / 3, 1 / 3)),
    (DoReFaWeightQuantizer(2, symmetric=True), {}, np.arctanh((-0.6, 0.12, 0.3)), (-1, 0, 0)),
    (DoReFaActivationQuantizer(2), {}, (-1, 4, 20), (0, 10 / 3, 10)),
    (DoReFaActivationQuantizer(2, rescale=False), {}, (-1, 4, 20), (0, 1 / 3, 1)),
    (PACTActivationQuantizer(2, alpha=1.5), {}, (-1, 0.6, 2), (0, 0.5, 1.5)),
    (PACTActivationQuantizer(2, alpha=1.5, signed=True), {}, (-1, 0.6, 2), (-1.5, 0, 1.5)),
    (LSQQuantizer(2, signed=True), {'step': 0.5}, (-1, 0.6, 2), (-1, 0.5, 0.5)),
    (LSQQuantizer(2, signed=False), {'step': 0.5}, (-1, 0.6, 2), (0, 0.5, 1.5)),
    (DSQQuantizer(2, upper=1.5), {}, (-1, 0.6, 2), (0, 0.5, 1.5)),
    (DSQQuantizer(2, bounds='minmax', lower=9, upper=10), {}, (-1, 0.6, 2), (-1, 1, 2)),
    (ACIQActivationQuantizer(2, signed=False), {'clip': 2}, (-0.8, 0.6, 2), (0, 0.5, 1.5)),
    (ACIQActivationQuantizer(2, signed=True), {'clip': 2}, (-0.8, 0.6, 2), (-1, 1, 1)),
    (ACIQWeightQuantizer(2, bias_corr=False), {}, (-1, 0.2, 1), (-0.75, 0.25, 0.75)),
]


@pytest.mark.parametrize(('quantizer', 'values', 'x', 'expected'), EXAMPLES)
def test_examples(quantizer, values, x, expected):
    with torch.no_grad():
        for key, value in values.items():
            getattr(quantizer, key).fill_(value)
        torch.testing.assert_close(quantizer(torch.tensor(x).float()), torch.tensor(expected).float())


# --- gradients


def slopes(function, x, g, h):
    """d(g function(x)) / dx by central differences, and where both sides differ: at a kink."""
    slope, kink = np.zeros(x.size), np.zeros(x.size, bool)
    middle = g * function(x)
    for i in range(x.size):
        shift = np.zeros(x.size)
        shift[i] = h
        ends = [(g * function(x + side * shift.reshape(x.shape)) - middle).sum() / h for side in (-1, 1)]
        slope[i], kink[i] = (ends[1] - ends[0]) / 2, abs(ends[0] + ends[1]) > 0.01 * np.abs(ends).max() + 1e-6
    return slope.reshape(x.shape), kink.reshape(x.shape)


@every_row
@all_bits
def test_gradients_are_those_of_the_formula(name, bits):
    """With a straight-through rounding, by finite differences; of inputs and of parameters."""
    row = ROWS[name]
    for size in row.sizes:
        quantizer, parameters = row.made(bits, size, torch.float64), row.values(bits, size)
        x, g = row.random((4, 5), bits, size).requires_grad_(), row.random((4, 5), seed=2) + 0.1
        learned = {key: getattr(quantizer, key) for key in parameters if getattr(quantizer, key).requires_grad}
        ours = torch.autograd.grad(quantizer(x), (x, *learned.values()), g)
        ste, numbers, h = Through(), x.detach().numpy(), 4e-6 * abs(size)

        def formula(x, **changed):
            return row.formula(x, bits, ste, **{**parameters, **changed})  # noqa: B023

        expected, kink = slopes(formula, numbers, g.numpy(), h)
        assert kink.sum() <= 2  # the smallest and the largest weight, where they are the range
        assert np.allclose(ours[0].numpy()[~kink], expected[~kink], rtol=1e-5, atol=1e-5)
        for (key, parameter), grad in zip(learned.items(), ours[1:], strict=True):
            slope, _ = slopes(lambda value, key=key: formula(numbers, **{key: value}),  # noqa: B023
                              parameter.detach().numpy(), g.numpy(), h)
            assert np.allclose(grad, slope * row.gradient_scale(bits, x.shape), rtol=1e-5, atol=1e-4), key
        if learned:  # an input without gradient teaches them as well
            alone = torch.autograd.grad(quantizer(x.detach()), tuple(learned.values()), g)
            assert all(map(torch.allclose, alone, ours[1:]))


@pytest.mark.parametrize('name', [name for name in SOME if not name.startswith(('dsq', 'aciq weights'))])
def test_gradient_is_the_finite_difference_of_a_fine_grid(name):
    """Of the quantizer's own values, at 16 bits, away from the ends of the range."""
    row, h = ROWS[name], 0.01
    quantizer = row.made(16, 2.0**-14 / (2 if 'unsigned' in name else 1), torch.float64)
    x = torch.tensor([-0.9, -0.45, 0.27, 0.63, 1.26], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([1.0, -2, 3, 0.5, 4], dtype=torch.float64)
    (ours,) = torch.autograd.grad(quantizer(x), x, g)
    with torch.no_grad():
        slopes = [((quantizer(x + h * e) - quantizer(x - h * e)) * g).sum() / (2 * h) for e in torch.eye(5).double()]
    torch.testing.assert_close(ours, torch.stack(slopes), atol=0.05, rtol=0)


class Problem(nn.Module):
    """A layer that learns, a quantizer, and a fixed head: the loss can fall by gradients through the quantizer only."""

    def __init__(self, layer, quantizer):
        super().__init__()
        self.layer, self.quantizer, self.head = layer, quantizer, nn.Linear(32, 3).requires_grad_(False)

    def forward(self, x):
        return self.head(self.quantizer(self.layer(x)))


@pytest.mark.parametrize('name', [name for name in SOME if not name.startswith('aciq weights')])
@pytest.mark.parametrize('bits', [1, 2])
def test_learns_through_it(name, bits):
    row, quantizer = ROWS[name], ROWS[name].made(bits, 1.0 / 2 ** (bits - 1))
    torch.manual_seed(0)
    layer = QLinear(8, 32, bias=False, weight_quantizer=quantizer) if row.weights else nn.Linear(8, 32)
    net, x = Problem(layer, nn.ReLU() if row.weights else quantizer), torch.randn(128, 8)
    labels = (x @ torch.randn(8, 3)).argmax(1)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(net(x), labels))
        losses[-1].backward()
        optimizer.step()
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]
