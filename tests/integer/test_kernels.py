"""Every operation of an integer network, against loops over Python's own integers and fractions."""

import itertools
import math
import random
from fractions import Fraction

import pytest
import torch

from lib.integer.kernels import KERNELS

TYPES = [torch.int64, torch.int32, torch.float64, torch.float32]


def draw(*shape, top=9, seed=0):
    return torch.randint(-top, top + 1, shape, generator=torch.Generator().manual_seed(seed))


def plain_windows(x, kernel, stride, padding, dilation):
    """Yields (image, row, column of the output, {(i, j): {channel: input}}), with what lies outside left out."""
    count, channels, height, width = x.shape
    rows, columns = ((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in
                     zip((height, width), kernel, stride, padding, dilation, strict=True))
    for n, row, column in itertools.product(range(count), range(rows), range(columns)):
        found = {}
        for i, j in itertools.product(*map(range, kernel)):
            y, z = (at * s - p + k * d for at, s, p, k, d in
                    zip((row, column), stride, padding, (i, j), dilation, strict=True))
            if 0 <= y < height and 0 <= z < width:
                found[i, j] = [int(x[n, c, y, z]) for c in range(channels)]
        yield n, row, column, found


def filled(entries):
    """Returns the tensor of {index: value}."""
    shape = [1 + max(index[axis] for index in entries) for axis in range(4)]
    return torch.tensor([entries[index] for index in itertools.product(*map(range, shape))]).view(shape)


CONVOLUTIONS = [
    # in, out, groups, kernel, stride, padding, dilation
    (3, 4, 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    (3, 4, 1, (1, 1), (2, 2), (0, 0), (1, 1)),
    (3, 2, 1, (1, 1), (1, 1), (1, 1), (1, 1)),
    (2, 3, 1, (3, 3), (2, 1), (1, 0), (1, 1)),
    (4, 4, 4, (3, 3), (1, 1), (1, 1), (1, 1)),
    (4, 4, 4, (3, 2), (2, 1), (2, 1), (2, 1)),
    (4, 8, 4, (3, 3), (2, 2), (1, 1), (1, 1)),
    (4, 6, 2, (2, 2), (2, 2), (0, 0), (1, 1)),
    (4, 6, 2, (3, 2), (1, 2), (1, 0), (2, 3)),
]


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_convolutions(case):
    channels, out, groups, kernel, stride, padding, dilation = case
    x, weight = draw(2, channels, 7, 6), draw(out, channels // groups, *kernel, seed=1)
    expected = {}
    for n, row, column, found in plain_windows(x, kernel, stride, padding, dilation):
        for o in range(out):
            first = o // (out // groups) * (channels // groups)
            expected[n, o, row, column] = sum(int(weight[o, c, i, j]) * values[first + c] for (i, j), values in
                                              found.items() for c in range(channels // groups))
    for dtype in TYPES:
        got = KERNELS['conv'](x.to(dtype), weight.to(dtype), stride=stride, padding=padding, dilation=dilation,
                              groups=groups)
        assert got.dtype == dtype and got.long().equal(filled(expected))


@pytest.mark.parametrize(('kernel', 'stride'), [((2, 2), (2, 2)), ((3, 2), (1, 2)), ((6, 6), (6, 6))])
def test_sums_over_windows(kernel, stride):
    x = draw(2, 3, 6, 6)
    expected = {(n, c, row, column): sum(values[c] for values in found.values()) for n, row, column, found in
                plain_windows(x, kernel, stride, (0, 0), (1, 1)) for c in range(3)}
    for dtype in TYPES:
        assert KERNELS['sum_pool'](x.to(dtype), kernel=kernel, stride=stride).long().equal(filled(expected))


@pytest.mark.parametrize(('kernel', 'stride', 'padding'), [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1))])
def test_largest_of_windows(kernel, stride, padding):
    x = draw(2, 3, 6, 5) - 20  # all negative: padding must not win
    expected = {(n, c, row, column): max(values[c] for values in found.values()) for n, row, column, found in
                plain_windows(x, kernel, stride, padding, (1, 1)) for c in range(3)}
    for dtype in TYPES:
        got = KERNELS['max_pool'](x.to(dtype), kernel=kernel, stride=stride, padding=padding, dilation=(1, 1))
        assert got.long().equal(filled(expected))


def test_products():
    x, weight = draw(3, 5), draw(4, 5, seed=1)
    expected = [[sum(int(a) * int(b) for a, b in zip(row, w, strict=True)) for w in weight] for row in x]
    for dtype in TYPES:
        assert KERNELS['linear'](x.to(dtype), weight.to(dtype)).long().tolist() == expected


@pytest.mark.parametrize('rounding', ['round', 'floor', 'trunc'])
@pytest.mark.parametrize(('shift', 'bits'), [(0, 3), (1, 3), (5, 6), (22, 24), (40, 24)])
def test_requantization(rounding, shift, bits):
    x = [draw(2, 3, 2, 2, top=2**7, seed=seed) for seed in range(2)]
    factors = [draw(3, top=2**bits, seed=2), draw(1, top=2**bits, seed=3)]
    offset = draw(3, top=2**(bits + 5), seed=4)
    expected = []
    for index in itertools.product(*map(range, x[0].shape)):
        total = sum(int(part[index]) * int(factor[index[1] % len(factor)])
                    for part, factor in zip(x, factors, strict=True)) + int(offset[index[1]])
        exact = Fraction(total, 2**shift) + (Fraction(1, 2) if rounding == 'round' else 0)
        code = math.trunc(exact) if rounding == 'trunc' else math.floor(exact)
        expected.append(max(-100, min(90, code)))
    for dtype in TYPES if bits + 12 < 24 else TYPES[::2]:
        constants = {'multiplier0': factors[0].to(dtype), 'multiplier1': factors[1].to(dtype),
                     'offset': offset.to(dtype)}
        inputs = [part.to(dtype) for part in x]
        got = KERNELS['requantize'](*inputs, **constants, shift=shift, rounding=rounding, low=-100, high=90)
        assert got.dtype == dtype and got.flatten().tolist() == expected
        assert all(part.equal(before) for part, before in zip(inputs, x, strict=True))  # others may read them, too


def test_one_bit_is_the_sign():
    x = torch.tensor([[-3], [-2], [-1], [0], [5]])
    got = KERNELS['requantize'](x, multiplier0=torch.tensor([1]), offset=torch.tensor([2]), shift=4, rounding='round',
                                low=-1, high=1, binary=True)
    assert got.flatten().tolist() == [-1, 1, 1, 1, 1]


def test_moving():
    x = draw(2, 4, 5, 6)
    assert KERNELS['flatten'](x).equal(x.reshape(2, 120))
    slices = ((1, None, None), (None, None, 2), (0, 4, 3))
    assert KERNELS['take'](x, slices=slices).equal(x[:, 1:, ::2, 0:4:3])
    got = KERNELS['pad'](x, widths=(1, 2, 0, 1, 3, 0))
    assert got.shape == (2, 7, 6, 9) and got[:, 3:, :5, 1:7].equal(x) and got.abs().sum() == x.abs().sum()


def test_largest_numbers_do_not_pass_through_floating_point():
    random.seed(0)
    a, b = (random.randrange(2**30, 2**31) for _ in range(2))
    x, w = torch.tensor([[a, 1]]), torch.tensor([[b, 1]])
    assert KERNELS['linear'](x, w).item() == a * b + 1
    assert KERNELS['conv'](x[:, :, None, None], w[:, :, None, None], stride=(1, 1), padding=(0, 0), dilation=(1, 1),
                           groups=1).item() == a * b + 1
    got = KERNELS['requantize'](x, multiplier0=torch.tensor([b]), offset=torch.tensor([1]), shift=0, rounding='round')
    assert got.tolist() == [[a * b + 1, b + 1]]
