import itertools

import numpy as np
import pytest

from lib.simulator.measured import popcount
from lib.simulator.measured.popcount import MAX_K, WORDS, count_bits, count_bits_by_masks, pack_planes, popcount_matmul


def draw(generator, shape, bits, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    return generator.integers(low, low + 2**bits, shape).astype(np.int8 if signed else np.uint8)


def product(x, w, a_bit, w_bit, x_signed, w_signed):
    return popcount_matmul(pack_planes(x, a_bit), pack_planes(w, w_bit), x_signed=x_signed, w_signed=w_signed)


def matmul(x, w):
    return np.einsum('gmk,gnk->gnm', x.astype(np.int64), w.astype(np.int64))


@pytest.mark.parametrize('x_signed, w_signed', itertools.product((False, True), repeat=2))
def test_equals_the_integer_product_at_all_bits(x_signed, w_signed):
    generator = np.random.default_rng(0)
    for a_bit, w_bit in itertools.product(range(1, 9), repeat=2):
        x, w = draw(generator, (2, 5, 70), a_bit, x_signed), draw(generator, (2, 3, 70), w_bit, w_signed)
        assert np.array_equal(product(x, w, a_bit, w_bit, x_signed, w_signed), matmul(x, w)), (a_bit, w_bit)


@pytest.mark.parametrize('k', [1, 7, 8, 9, 16, 17, 32, 33, 64, 65, 128, 200])
@pytest.mark.parametrize('m, n', [(1, 1), (1, 6), (6, 1), (11, 4)])
def test_equals_the_integer_product_at_all_sizes(k, m, n, monkeypatch):
    monkeypatch.setattr(popcount, 'TILE_WORDS', 4)  # cuts in all three directions
    generator = np.random.default_rng(k)
    x, w = draw(generator, (3, m, k), 3, False), draw(generator, (3, n, k), 5, True)
    assert np.array_equal(product(x, w, 3, 5, False, True), matmul(x, w))


def test_the_largest_sums_fit():
    x, low = np.full((1, 1, MAX_K), 255, np.uint8), np.full((1, 1, MAX_K), -128, np.int8)
    assert product(x, x, 8, 8, False, False).item() == 255 * 255 * MAX_K
    assert product(x, low, 8, 8, False, True).item() == -128 * 255 * MAX_K
    with pytest.raises(ValueError, match='32832 values'):
        product(np.zeros((1, 1, MAX_K + 1), np.uint8), np.zeros((1, 1, MAX_K + 1), np.uint8), 1, 1, False, False)


def test_planes_hold_the_lowest_bits_in_the_smallest_word():
    codes = np.array([[[5, 2, 255]]], np.uint8)
    assert pack_planes(codes, 3).tolist() == [[[[0b101]]], [[[0b110]]], [[[0b101]]]]
    assert np.array_equal(pack_planes(codes.view(np.int8), 3), pack_planes(codes, 3))
    sizes = [(pack_planes(np.zeros((1, 2, k), np.uint8), 1)) for k in (8, 9, 17, 33, 65)]
    assert [(planes.dtype, planes.shape[1]) for planes in sizes] == [
        (np.uint8, 1), (np.uint16, 1), (np.uint32, 1), (np.uint64, 1), (np.uint64, 2)
    ]  # fmt: skip


@pytest.mark.parametrize('word', WORDS)
def test_counts_with_and_without_the_instruction(word, monkeypatch):
    words = np.random.default_rng(0).integers(0, np.iinfo(word).max, 500, dtype=word, endpoint=True)
    words[:2] = 0, np.iinfo(word).max
    expected = [int(value).bit_count() for value in words]
    out = np.empty(500, np.uint8)
    for count in (count_bits, count_bits_by_masks):
        count(words, out)
        assert out.tolist() == expected
    monkeypatch.delattr(np, 'bitwise_count', raising=False)
    out[:] = 0
    count_bits(words, out)
    assert out.tolist() == expected
