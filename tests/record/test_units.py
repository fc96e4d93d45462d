"""Quantities with units: what they are in another unit, and what is refused."""

from itertools import pairwise
from math import inf, isnan, nan

import pytest

from lib.record.units import UNITS, parse_quantity


@pytest.mark.parametrize(('text', 'unit', 'number'), [
    ('0.3 GHz', 'MHz', 300), ('300000 kHz', 'MHz', 300), ('0.3GHz', 'MHz', 300), (' 200 ', 'MHz', 200),
    ('2e8 Hz', 'MHz', 200), ('+1.5e-1 GHz', 'MHz', 150), ('1 ms', 'us', 1000), ('640 ps', 'ns', 0.64),
    ('0.64 nJ', 'pJ', 640), ('15 pJ/bit', 'pJ/bit', 15), ('0.02 nJ/bit', 'pJ/bit', 20), ('500 mV', 'V', 0.5),
    ('20 mW', 'W', 0.02), ('100 uS', 'mS', 0.1),
    ('12.8 GB/s', 'GB/s', 12.8), ('102.4 Gbit/s', 'GB/s', 12.8), ('1500 MB/s', 'GB/s', 1.5),
    ('21 TOPS', 'GMAC/s', 10_500),  # a multiply-accumulate is two operations
    ('1 TMAC/s', 'GMAC/s', 1000), ('64 KiB', 'bytes', 65_536), ('256 bits', 'bytes', 32), ('2 MiB', 'KiB', 2048),
    ('1 B', 'bits', 8), ('16', '', 16), ('1e3', '', 1000),
])
def test_a_quantity_in_the_unit_of_the_parameter(text, unit, number):
    assert parse_quantity(text, unit) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize('unit', UNITS)
def test_to_another_unit_of_its_kind_and_back(unit):
    kind = UNITS[unit][0]
    for other in (name for name in UNITS if UNITS[name][0] == kind):
        there = parse_quantity(f'3 {unit}', other)
        assert parse_quantity(f'{there!r} {other}', unit) == pytest.approx(3, rel=1e-12)


def test_prefixes_are_powers_of_a_thousand():
    for line in ('Hz kHz MHz GHz', 'ps ns us ms s', 'fJ pJ nJ uJ mJ J', 'fJ/bit pJ/bit nJ/bit', 'uW mW W', 'mV V',
                 'nS uS mS S', 'MAC/s kMAC/s MMAC/s GMAC/s TMAC/s', 'GOPS TOPS', 'B/s kB/s MB/s GB/s TB/s',
                 'bit/s kbit/s Mbit/s Gbit/s Tbit/s'):
        for smaller, larger in pairwise(line.split()):
            assert parse_quantity(f'1 {larger}', smaller) == 1000


@pytest.mark.parametrize('number', [5, 0.25, -3, 0])
def test_a_plain_number_is_in_the_unit_already(number):
    assert parse_quantity(number, 'MHz') is number


def test_whole_numbers_become_ints():
    """1 ms is 1000.0000000000001 us in floating point; a parameter that counts must not refuse it."""
    assert 1 * (1e-3 / 1e-6) != 1000
    assert [type(parse_quantity(text, 'us')) for text in ('200', '200.0', '1 ms', '7 ms', '0.007 s')] == [int] * 5
    assert parse_quantity('1 ms', 'us') == 1000
    assert isinstance(parse_quantity('0.5', 'us'), float)
    assert parse_quantity('1.0000001 ms', 'us') != 1000


@pytest.mark.parametrize(('text', 'unit', 'words'), [
    ('0.3 V', 'MHz', ['0.3 V', 'wrong unit', 'MHz', 'Hz, kHz, MHz, GHz']),
    ('20 pJ', 'pJ/bit', ['wrong unit', 'pJ/bit', 'nJ/bit']),
    ('200 Mhz', 'MHz', ['wrong unit', 'GHz']), ('64 KB', 'bytes', ['wrong unit', 'KiB']),
    ('16 images', '', ['wrong unit', 'a plain number']), ('1,000', 'MHz', ['1,000', 'MHz']),
    ('3 mHz', 'MHz', ['wrong unit']),
])
def test_a_unit_of_something_else(text, unit, words):
    with pytest.raises(ValueError) as error:
        parse_quantity(text, unit)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('value', ['fast', '', 'MHz', '.', '1.2.3 MHz', '--5', '5 MHz MHz', None, True, [200], {}])
def test_no_quantity(value):
    with pytest.raises(ValueError, match='no quantity, expected a number of MHz'):
        parse_quantity(value, 'MHz')


@pytest.mark.parametrize('text', ['1e999', '1e999 GHz', '1e308 GHz', '-1e999'])
def test_more_than_a_float_can_hold(text):
    with pytest.raises(ValueError, match='too large, expected a number of MHz'):
        parse_quantity(text, 'MHz')


def test_numbers_that_are_none_are_left_to_the_range_of_the_parameter():
    assert parse_quantity(inf, 'MHz') == inf and isnan(parse_quantity(nan, 'MHz'))
