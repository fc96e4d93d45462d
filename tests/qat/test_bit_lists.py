"""The bit lists: how they are read from the command line, what they may hold, and what a wrong one is told."""

from functools import cache
from typing import NamedTuple

import pytest

import models
from lib.qat.bit_lists import ALLOWED, MAX_DESCRIBED, check_bit_lists, check_bits, meaning, parse_bit_list


class Entry(NamedTuple):
    name: str
    layers: tuple
    activations: tuple
    implied: tuple | None = None


THREE = [Entry('stem', ('stem.conv',), ('image',), (32, 16)),
         Entry('middle', ('middle.a', 'middle.b'), ('stem.output',)), Entry('last', ('last',), ())]


@cache
def entries(name):
    return models.create_model(name, num_classes=10).bit_entries()


@pytest.mark.parametrize(('text', 'bits'), [
    ('32,8x3,16', [32, 8, 8, 8, 16]), ('[32, 8, 8]', [32, 8, 8]), ('[32,8,8]', [32, 8, 8]), ('4', [4]),
    ('8x2,4x1', [8, 8, 4]), ('32 8 8', [32, 8, 8]), (' 8x13 ', [8] * 13), ([8, 6], [8, 6]),
    ('99', [99]),  # whether these are bits is the network's question
])
def test_lists_are_read(text, bits):
    assert parse_bit_list(text) == bits


@pytest.mark.parametrize('text', ['', '[]', '8x0', 'a', '8,b', '8x', 'x8', '8x2x2', '-8', '8.5', '8;8', '[8, true]',
                                  '²', '8x²', '8*3'])
def test_what_is_no_list_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match='expected a list like 32,8,8,16 or 32,8x10,16'):
        parse_bit_list(text)


def test_the_bits_that_are_allowed():
    assert ALLOWED == (1, 2, 3, 4, 5, 6, 7, 8, 16, 32)
    for bits in ALLOWED:
        check_bits(bits, 'here')
    for bits in (0, -1, 9, 15, 17, 31, 33, True, False, 8.0, '8', 'a', None, [8]):
        with pytest.raises(ValueError, match='^there is .* expected 1 to 8 or 16 bits, or 32 to leave it float$'):
            check_bits(bits, 'there')


@pytest.mark.parametrize('bits', [0, 9, 15, 33, True, 'a'])
@pytest.mark.parametrize(('name', 'which'), [('layer_wbit', 0), ('layer_abit', 1)])
def test_wrong_bits_are_named_with_their_entry(bits, name, which):
    lists = [[8] * 13, [8] * 13]
    lists[which][2] = bits
    with pytest.raises(ValueError) as refused:
        check_bit_lists(entries('toynet'), *lists, 'toynet')
    assert str(refused.value).startswith(f'{name}: entry 2 (blocks.1) is {bits!r}: expected 1 to 8')


def test_a_full_list_comes_back_as_it_is():
    weights, activations = [32, *range(1, 9), 16, 8, 8, 16], [32, 8, *[6] * 9, 32, 32]
    assert check_bit_lists(entries('toynet'), tuple(weights), activations) == (weights, activations)
    assert check_bit_lists(entries('mobilenetv2_cifar'), *[[32] * 20] * 2) == ([32] * 20,) * 2


def test_resnet20_takes_nine_or_eleven_entries_and_each_list_by_itself():
    rows = entries('resnet20_projection')
    nine, eleven = [1, 2, 3, 4, 5, 6, 7, 8, 16], [8, *[4] * 9, 6]
    assert check_bit_lists(rows, nine, nine) == ([32, *nine, 16], [32, *nine, 32])
    assert check_bit_lists(rows, eleven, nine) == (eleven, [32, *nine, 32])
    assert check_bit_lists(rows, nine, eleven) == ([32, *nine, 16], eleven)
    meanings = r'0 stem \(conv1, 32 where left out\); 1 blocks.0 \(conv1, conv2\); .*; 10 fc \(fc, 16 where left out\)$'
    with pytest.raises(ValueError, match=f'layer_wbit has 10 entries, RN20 takes 9 or 11: {meanings}'):
        check_bit_lists(rows, [8] * 10, [8] * 9, 'RN20')


def test_a_wrong_length_is_told_what_the_entries_mean():
    with pytest.raises(ValueError) as refused:
        check_bit_lists(THREE, [8, 8], [8], 'it')
    assert str(refused.value) == ('layer_abit has 1 entries, it takes 2 or 3: 0 stem (image, 16 where left out); '
                                  '1 middle (stem.output); 2 last (nothing)')
    assert meaning(THREE, 0) == '0 stem (conv, 32 where left out); 1 middle (a, b); 2 last (last)'
    with pytest.raises(ValueError, match='layer_wbit has 12 entries, toynet takes 13: 0 stem .*12 fc'):
        check_bit_lists(entries('toynet'), [8] * 12, [8] * 13, 'toynet')
    assert meaning(THREE * 40, 0).endswith(f'; {MAX_DESCRIBED - 1} middle (a, b); ...')  # not all of a deep network


@pytest.mark.parametrize('given', [None, 8, '8x13', {}])
def test_what_is_no_list_of_python_is_refused(given):
    with pytest.raises(ValueError, match='layer_wbit is .*: expected a list of 13 numbers of bits, .*: 0 stem'):
        check_bit_lists(entries('toynet'), given, [8] * 13)
