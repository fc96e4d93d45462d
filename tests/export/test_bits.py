"""Packed codes and Huffman streams, decoded by programs written another way."""

import numpy as np
import pytest

from lib.export.bits import pack, packed_words, unpack
from lib.export.huffman import LONGEST, canonical_words, code_lengths, decode, encode

COUNTS = (1, 7, 8, 9, 31, 32, 33, 1000)


def unpack_from_int32(words, bits, count):
    """Codes around 0 of int32 words (1, m), as the function of that name in compressed-tensors has them.

    Code i, plus 2^(b-1), is in the bits i * b to (i + 1) * b - 1 of all words in a row.
    """
    number = sum((int(word) & 0xffffffff) << 32 * i for i, word in enumerate(words[0]))
    return [(number >> i * bits & 2**bits - 1) - 2 ** (bits - 1) for i in range(count)]


@pytest.mark.parametrize('bits', range(1, 17))
def test_codes_are_packed_without_gaps_the_least_bit_first(bits):
    rng = np.random.default_rng(bits)
    for count in COUNTS:
        codes = rng.integers(0, 2**bits, count).astype(np.uint8 if bits <= 8 else np.uint16)
        words = pack(codes, bits)
        assert words.dtype == np.int32 and words.shape == (1, packed_words(count, bits)) == (1, -(-count * bits // 32))
        assert unpack_from_int32(words, bits, count) == (codes.astype(int) - 2 ** (bits - 1)).tolist()
        assert np.array_equal(unpack(words, count, bits), codes)


def prefix_walk(stream, lengths):
    """Symbols of a stream, bit by bit, with the words numbered as RFC 1951 does."""
    word, table = 0, {}
    for length in range(1, int(max(lengths)) + 1):
        word *= 2
        for symbol, own in enumerate(lengths):
            if own == length:
                table[format(word, f'0{length}b')] = symbol
                word += 1
    symbols, text = [], ''
    for bit in np.unpackbits(stream).tolist():
        text += str(bit)
        if text in table:
            symbols.append(table[text])
            text = ''
    return symbols


@pytest.mark.parametrize(('kinds', 'count'), [(1, 1), (1, 40), (2, 3), (5, 2), (17, 900), (256, 3000), (257, 20_000)])
def test_huffman_streams(kinds, count):
    rng = np.random.default_rng(kinds)
    symbols = rng.choice(kinds, count, p=rng.dirichlet(np.full(kinds, 0.3)))
    counts = np.bincount(symbols, minlength=kinds)
    lengths = code_lengths(counts)
    stream = encode(symbols, lengths)
    assert prefix_walk(stream, lengths)[:count] == symbols.tolist()
    assert np.array_equal(decode(stream, lengths, count), symbols)
    share = counts[counts > 0] / count
    entropy, mean = -(share * np.log2(share)).sum(), (lengths * counts).sum() / count
    assert mean == 1 if (counts > 0).sum() == 1 else entropy <= mean + 1e-9 < entropy + 1


def test_long_words_are_cut_to_what_the_table_holds():
    fibonacci = np.array([1, 1, *[0] * 28])
    for i in range(2, 30):
        fibonacci[i] = fibonacci[i - 1] + fibonacci[i - 2]
    lengths = code_lengths(fibonacci)
    assert lengths.max() == LONGEST and (2.0 ** -lengths.astype(float)).sum() == 1


def test_a_stream_longer_than_a_block():
    symbols = np.random.default_rng(0).integers(0, 200, 300_000)
    lengths = code_lengths(np.bincount(symbols))
    assert np.array_equal(decode(encode(symbols, lengths), lengths, len(symbols)), symbols)


@pytest.mark.parametrize('lengths', [[1, 1, 1], [2, 2, 2], [16, 1], [0, 0], [], [255] * 3])
def test_lengths_of_no_code_are_refused(lengths):
    with pytest.raises(ValueError, match='no Huffman code'):
        canonical_words(np.array(lengths, np.uint8))


@pytest.mark.parametrize(('stream', 'count'), [([], 1), ([0], 9), ([0, 0], 8), ([0xff] * 2, 3)])
def test_a_stream_of_another_length_is_refused(stream, count):
    with pytest.raises(ValueError, match='do not hold'):
        decode(np.array(stream, np.uint8), np.array([1, 1], np.uint8), count)
