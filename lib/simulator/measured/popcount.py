"""Products of integer matrices by AND and popcount of bit planes, in NumPy: a bit-serial machine in software.

With two's complement codes of w and a bits, x_i and w_j their bit planes and s = -1 for a sign plane, else 1,

    y = sum_i sum_j s_i s_j 2^(i + j) popcount(x_i & w_j)

so one 64-bit word is 64 one-bit products, and the work is w a ceil(K / 64) words per dot product of K values. Rows of
up to 8, 16 or 32 values (depthwise layers) are packed in words of that size.
"""

from collections.abc import Iterator

import numpy as np

WORDS = (np.uint8, np.uint16, np.uint32, np.uint64)
MAX_K = 2**15  # the 32-bit results of 8 x 8 bits are exact up to here
TILE_WORDS = 2**15  # of one pass, so that its buffers stay in the cache (the fastest of 2^12 .. 2^16, measured)


def pack_planes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return the lowest `bits` bit planes of 8-bit codes (groups, rows, K) as (bits, words, groups, rows).

    Negative codes are taken as two's complement. K is filled up to whole words with zeros, which add nothing.
    """
    groups, rows, k = codes.shape
    word = next((word for word in WORDS if k <= _size(word)), WORDS[-1])
    octets, words = -(-k // 8), -(-k // _size(word))
    padded = np.zeros((groups, rows, 8 * octets), np.uint8)  # whole bytes: packing flat is many times faster
    padded[..., :k] = codes.view(np.uint8)
    planes = np.zeros((bits, groups, rows, words * _size(word) // 8), np.uint8)
    for bit in range(bits):
        packed = np.packbits(padded.ravel() & np.uint8(1 << bit), bitorder='little')  # nonzero counts as 1
        planes[bit, ..., :octets] = packed.reshape(groups, rows, octets)
    return np.ascontiguousarray(planes.view(word).transpose(0, 3, 1, 2))


def popcount_matmul(x_planes: np.ndarray, w_planes: np.ndarray, *, x_signed: bool = False,
                    w_signed: bool = True) -> np.ndarray:
    """Return the products y[g, n, m] = sum_k x[g, m, k] w[g, n, k] as int32 (groups, weight rows, activation rows).

    Args:
        x_planes: activations by `pack_planes`, (a, words, groups, M).
        w_planes: weights, (w, words, groups, N).
        x_signed, w_signed: whether the highest plane is that of the sign.

    Raises:
        ValueError: rows of more than MAX_K values, whose sum may not fit 32 bits.
    """
    values = x_planes.shape[1] * _size(x_planes.dtype)
    if values > MAX_K:
        raise ValueError(f'rows of {values} values: the sum of at most {MAX_K} products of 8 bits fits 32 bits')
    groups, m, n = *x_planes.shape[2:], w_planes.shape[3]
    if n > m:  # the longer of the two runs along memory
        return popcount_matmul(w_planes, x_planes, x_signed=w_signed, w_signed=x_signed).transpose(0, 2, 1)
    result = np.empty((groups, n, m), np.int32)
    pairs = _pairs_by_weight(len(x_planes), len(w_planes), x_signed, w_signed)
    for g, rows, columns in _tiles(groups, n, m):
        x, w = x_planes[:, :, g, None, columns], w_planes[:, :, g, rows, None]
        result[g, rows, columns] = _tile_product(x, w, pairs)
    return result


def count_bits(words: np.ndarray, out: np.ndarray) -> None:
    """Write the number of ones in each word to `out` (uint8)."""
    if hasattr(np, 'bitwise_count'):  # NumPy 2
        np.bitwise_count(words, out=out)
    else:
        count_bits_by_masks(words, out)


def count_bits_by_masks(words: np.ndarray, out: np.ndarray) -> None:
    """Do what `count_bits` does without a popcount instruction, for NumPy 1: sums of 2, 4, then 8 bits side by side."""
    words = words.astype(np.uint64)
    pairs = words - ((words >> np.uint64(1)) & np.uint64(0x5555555555555555))
    nibbles = (pairs & np.uint64(0x3333333333333333)) + ((pairs >> np.uint64(2)) & np.uint64(0x3333333333333333))
    octets = (nibbles + (nibbles >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    out[...] = (octets * np.uint64(0x0101010101010101)) >> np.uint64(56)


def _pairs_by_weight(a_bit, w_bit, x_signed, w_signed) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return {(shift, sign): [(i, j), ...]}: the pairs of planes whose counts may be added before they are weighted."""
    pairs = {}
    for i in range(a_bit):
        for j in range(w_bit):
            negative = (x_signed and i == a_bit - 1) != (w_signed and j == w_bit - 1)
            pairs.setdefault((i + j, -1 if negative else 1), []).append((i, j))
    return pairs


def _tiles(groups, n, m) -> Iterator[tuple[slice, slice, slice]]:
    """Cut (groups, weight rows, activation rows) into tiles of about TILE_WORDS, the activation rows last."""
    m_step = min(m, TILE_WORDS)
    n_step = min(n, max(1, TILE_WORDS // m_step))
    g_step = max(1, TILE_WORDS // (m_step * n_step))
    for g in range(0, groups, g_step):
        for row in range(0, n, n_step):
            for column in range(0, m, m_step):
                yield slice(g, g + g_step), slice(row, row + n_step), slice(column, column + m_step)


def _size(word) -> int:
    """Return the bits of a word type."""
    return 8 * np.dtype(word).itemsize


def _tile_product(x, w, pairs) -> np.ndarray:
    shape = np.broadcast_shapes(x.shape[2:], w.shape[2:])
    words = x.shape[1]
    total = np.zeros(shape, np.int32)
    both, ones = np.empty(shape, x.dtype), np.empty(shape, np.uint8)
    for (shift, sign), planes in pairs.items():
        small = len(planes) * words * _size(x.dtype) < 2**16
        count = np.zeros(shape, np.uint16 if small else np.int32)
        for i, j in planes:
            for word in range(words):
                np.bitwise_and(x[i, word], w[j, word], out=both)
                count_bits(both, ones)
                np.add(count, ones, out=count)
        total += count * np.int32(sign << shift)
    return total
