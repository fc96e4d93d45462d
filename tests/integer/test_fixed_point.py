"""Fixed-point formats and shifts, against fractions of whole numbers."""

import math
import random
from fractions import Fraction

import pytest
import torch

from lib.integer.fixed_point import (
    FixedPoint,
    FixedPointOverflow,
    Mantissa,
    encode,
    encode_mantissa,
    parse_format,
    shift_right,
)

EDGES = [0, 1, -1, 2, -2, 3, -3, 5, -5, 7, -7, 2**52 + 1, -(2**52) - 1, 2**61, -(2**61), 2**61 + 12345, 1 - 2**61]


def expected_shift(value, shift, rounding):
    exact = Fraction(value, 2**shift)
    exact += Fraction(1, 2) if rounding == 'round' else 0
    return math.trunc(exact) if rounding == 'trunc' else math.floor(exact)


@pytest.mark.parametrize('rounding', ['round', 'floor', 'trunc'])
def test_shifts_are_exact_for_all_of_int64(rounding):
    draw = random.Random(0)
    values = EDGES + [draw.randrange(-2 ** draw.randrange(1, 62), 2 ** draw.randrange(1, 62)) for _ in range(300)]
    for shift in (0, 1, 2, 7, 22, 47, 60):
        expected = [expected_shift(value, shift, rounding) for value in values]
        given = torch.tensor(values)
        assert shift_right(given, shift, rounding).tolist() == expected
        assert given.tolist() == values  # left alone


@pytest.mark.parametrize('rounding', ['round', 'floor', 'trunc'])
def test_shifts_of_integers_in_double_precision(rounding):
    values = [value for value in EDGES if abs(value) < 2**52] + list(range(-40, 41))
    for shift in (0, 1, 3, 20):
        got = shift_right(torch.tensor(values, dtype=torch.float64), shift, rounding)
        assert got.tolist() == [expected_shift(value, shift, rounding) for value in values]


@pytest.mark.parametrize(('rounding', 'shift'), [('nearest', 3), ('round', 63), ('round', -1)])
def test_bad_shifts_are_refused(rounding, shift):
    with pytest.raises(ValueError, match='expected'):
        shift_right(torch.tensor([1]), shift, rounding)


@pytest.mark.parametrize('text', ['32,10', '<32,10>', ' 32, 10 '])
def test_fixed_point_by_name(text):
    assert parse_format(text) == FixedPoint(32, 10)
    assert parse_format(text).fraction == 22 and str(parse_format(text)) == '<32,10>'


def test_mantissas_by_name():
    assert parse_format('mantissa') == Mantissa(16) and parse_format('mantissa:24') == Mantissa(24)


@pytest.mark.parametrize('text', ['', '32', '8,9', '8,0', '64,10', 'mantissa:1', 'mantissa:64', 'mantissa:x', '32;10'])
def test_other_formats_are_refused(text):
    with pytest.raises(ValueError, match='number format'):
        parse_format(text)


def test_every_code_of_a_format_encodes_to_itself():
    form = FixedPoint(8, 3)
    codes = torch.arange(-128, 128)
    assert encode(codes / 32, form)[0].equal(codes)
    assert encode(codes / 32 + 0.4 / 32, form)[0].equal(codes)
    assert encode(torch.tensor([1.3]), form) == (torch.tensor([42]), 0)


@pytest.mark.parametrize('value', [4.0, -4.1, 1e30, -math.inf])
def test_overflow_carries_the_value_and_saturates_on_demand(value):
    values = torch.tensor([0.5, value], dtype=torch.float64)
    with pytest.raises(FixedPointOverflow, match=r'gain .* does not fit <8,3>') as caught:
        encode(values, FixedPoint(8, 3), what='gain')
    assert caught.value.value == value and isinstance(caught.value, ValueError)
    codes, clipped = encode(values, FixedPoint(8, 3), saturate=True)
    assert codes.tolist() == [16, 127 if value > 0 else -128] and clipped == 1


def test_a_number_that_is_none_never_fits():
    with pytest.raises(FixedPointOverflow):
        encode(torch.tensor([math.nan]), FixedPoint(8, 3), saturate=True)


def test_a_mantissa_is_the_best_shared_point():
    draw = random.Random(1)
    for bits in (4, 8, 16, 24):
        for _ in range(50):
            values = [draw.uniform(-1, 1) * 2.0 ** draw.randrange(-30, 30) for _ in range(4)]
            codes, fraction = encode_mantissa(torch.tensor(values, dtype=torch.float64), bits)
            exact = [Fraction(value) * Fraction(2) ** fraction for value in values]
            assert codes.tolist() == [round(value) for value in exact]
            assert max(map(abs, codes.tolist())) < 2 ** (bits - 1)
            assert max(round(abs(2 * value)) for value in exact) >= 2 ** (bits - 1)  # one bit more does not fit


def test_mantissas_at_the_edge():
    assert encode_mantissa(torch.tensor([0.3, -0.01]), 8)[0].tolist() == [77, -3]
    codes, fraction = encode_mantissa(torch.tensor([255 / 256]), 8)  # 127.5 would round to 128
    assert (codes.item(), fraction) == (64, 6)
    codes, fraction = encode_mantissa(torch.zeros(3), 8)
    assert codes.tolist() == [0, 0, 0] and fraction == 0
