"""Codes of 1 to 16 bits, packed one behind the other into 32-bit words, and taken out again."""

import numpy as np

WORD = 32
GROUP = 8  # codes that make whole bytes together, whatever their bits
FAST_BITS = 8  # up to which a group fits 64 bits


def packed_words(count: int, bits: int) -> int:
    """Return the 32-bit words that so many codes take."""
    return -(-count * bits // WORD)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return codes as int32 words (1, ceil(n bits / 32)): code i begins at bit i * bits, the least bit first.

    Args:
        codes: (n,) unsigned integers below 2^bits.
        bits: 1..16.
    """
    count = len(codes)
    if bits > FAST_BITS:
        planes = codes[:, None] >> np.arange(bits, dtype=codes.dtype) & 1  # (n, bits)
        data = np.packbits(planes.astype(np.uint8), bitorder='little')
    else:
        groups = np.zeros((-(-count // GROUP), GROUP), np.uint8)
        groups.reshape(-1)[:count] = codes
        joined = np.zeros(len(groups), '<u8')
        for i in range(GROUP):
            joined |= groups[:, i].astype('<u8') << np.uint64(i * bits)
        data = joined.view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
    words = np.zeros(4 * packed_words(count, bits), np.uint8)
    words[:len(data)] = data[:len(words)]
    return words.view('<i4').reshape(1, -1)


def unpack(words: np.ndarray, count: int, bits: int) -> np.ndarray:
    """Return the codes (count,) that `pack` put into words: uint8, or uint16 of more than 8 bits."""
    data = np.ascontiguousarray(words).reshape(-1).view(np.uint8)
    if bits > FAST_BITS:
        planes = np.unpackbits(data, count=count * bits, bitorder='little').reshape(count, bits)
        return (planes.astype(np.uint16) << np.arange(bits, dtype=np.uint16)).sum(1, dtype=np.uint16)
    groups = np.zeros((-(-count // GROUP), 8), np.uint8)
    flat = np.zeros(len(groups) * bits, np.uint8)
    flat[:len(data)] = data[:len(flat)]
    groups[:, :bits] = flat.reshape(-1, bits)
    joined, mask = groups.view('<u8').reshape(-1), np.uint64(2**bits - 1)
    codes = np.empty((len(groups), GROUP), np.uint8)
    for i in range(GROUP):
        codes[:, i] = joined >> np.uint64(i * bits) & mask
    return codes.reshape(-1)[:count]
