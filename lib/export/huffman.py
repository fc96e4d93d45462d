"""Canonical Huffman codes of symbols that are not equally frequent, such as K-means indices; the streams are bytes.

A code is told by the lengths of its words alone: words are numbered by length, then by symbol (RFC 1951, section
3.2.2). They stand in the stream one behind the other, the most significant bit first. No word has more than `LONGEST`
bits, so a table of all windows of that width decodes it.
"""

import heapq

import numpy as np

LONGEST = 15
BLOCK = 1 << 17  # bytes of a stream that are looked at together


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Return the bits of each symbol's word, uint8, 0 of one that never comes; where a word gets too long, of flatter
    counts."""
    present = np.flatnonzero(counts)
    weights = counts[present].astype(np.int64)
    while True:
        depths = _depths(weights.tolist())
        if max(depths, default=0) <= LONGEST:
            break
        weights = (weights + 1) // 2
    lengths = np.zeros(len(counts), np.uint8)
    lengths[present] = depths
    return lengths


def _depths(weights: list[int]) -> list[int]:
    """Return the depth of each leaf of a Huffman tree, at least 1."""
    if len(weights) < 2:
        return [1] * len(weights)
    heap = [(weight, index) for index, weight in enumerate(weights)]
    heapq.heapify(heap)
    parent = {}
    for node in range(len(weights), 2 * len(weights) - 1):
        (first, a), (second, b) = heapq.heappop(heap), heapq.heappop(heap)
        parent[a] = parent[b] = node
        heapq.heappush(heap, (first + second, node))
    depth = {2 * len(weights) - 2: 0}
    for node in sorted(parent, reverse=True):  # a parent has a larger number than its children
        depth[node] = depth[parent[node]] + 1
    return [depth[leaf] for leaf in range(len(weights))]


def canonical_words(lengths: np.ndarray) -> np.ndarray:
    """Return the word of each symbol as an integer.

    Raises:
        ValueError: a length is above `LONGEST`, or no prefix code has such lengths.
    """
    order = [symbol for symbol in np.lexsort((np.arange(len(lengths)), lengths)) if lengths[symbol]]
    words, word, before = np.zeros(len(lengths), np.int64), 0, 0
    for symbol in order:
        length = int(lengths[symbol])
        word <<= length - before
        words[symbol], before = word, length
        word += 1
    if before > LONGEST or word > 1 << before or not order or (word < 1 << before and len(order) > 1):
        raise ValueError(f'{len(order)} lengths of up to {before} bits are those of no Huffman code')
    return words


def encode(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Return the stream (uint8) of symbols (n,)."""
    words, sizes = canonical_words(lengths)[symbols], lengths[symbols].astype(np.int64)
    ends = np.cumsum(sizes)
    stream = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    for bit in range(int(lengths.max(initial=0))):  # counted from the end of each word
        has = sizes > bit
        stream[ends[has] - 1 - bit] = words[has] >> bit & 1
    return np.packbits(stream)


def decode(stream: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """Return `count` symbols, uint16, of a stream.

    Raises:
        ValueError: the lengths are of no code, or the stream does not have exactly as many symbols.
    """
    symbol_at, length_at = _windows(lengths)
    padded = np.append(stream, np.zeros(3, np.uint8)).astype(np.uint32)
    symbols, done, place = np.empty(count, np.uint16), 0, 0  # `place`: the bit at which the next word begins
    while done < count:
        first = place // 8
        block = padded[first:first + BLOCK + 3]
        if len(block) < 4:
            break
        three = block[:-3] << 16 | block[1:-2] << 8 | block[2:-1]
        window = three[:, None] >> np.arange(24 - LONGEST, 16 - LONGEST, -1, dtype=np.uint32) & (1 << LONGEST) - 1
        window = window.reshape(-1)  # of every bit of the block
        steps, starts, position = length_at[window].tobytes(), [], place - 8 * first
        end, left = len(steps), count - done
        while position < end and left:
            starts.append(position)
            position += steps[position]
            left -= 1
        symbols[done:done + len(starts)] = symbol_at[window[starts]]
        done, place = done + len(starts), 8 * first + position
    if done < count or -(-place // 8) != len(stream):
        raise ValueError(f'{len(stream)} bytes do not hold {count} symbols')
    return symbols


def _windows(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (symbol, bits of its word) by the `LONGEST` bits that begin with the word."""
    words = canonical_words(lengths)
    symbol_at, length_at = np.zeros(1 << LONGEST, np.uint16), np.ones(1 << LONGEST, np.uint8)
    for symbol in np.flatnonzero(lengths):
        free = LONGEST - int(lengths[symbol])
        part = slice(int(words[symbol]) << free, int(words[symbol]) + 1 << free)
        symbol_at[part], length_at[part] = symbol, lengths[symbol]
    return symbol_at, length_at
