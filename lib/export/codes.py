"""A quantized weight as codes and the few numbers that turn them back into the very same floating point numbers.

    weight = codebook[code]                     K-means
    weight = (code - zero) * scale [+ shift]    every other quantizer, each operation in float32

`zero` is half of all codes, 2^(bits-1), if nothing else is said. `scale`, `zero` and `shift` are one number, or one of
each output channel. Pruned weights are 0 and have no code.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.export.bits import pack, packed_words, unpack
from lib.export.huffman import code_lengths, decode, encode
from lib.quantize.codebook import Codebook
from lib.quantize.quantizer import MAX_QUANTIZER_BITS, Quantizer

MASK_BITS = 1
NUMBERS = ('scale', 'zero', 'shift')
KEYS = ('packed', 'huffman', 'lengths', 'shape', 'bits', *NUMBERS, 'codebook', 'mask')  # behind `<layer>.weight_`


@dataclass(frozen=True)
class CodedWeight:
    """Codes of a weight, and how they are read.

    Attributes:
        codes: unsigned integers of the weight's shape; those of pruned weights mean nothing.
        bits: uint8 (1,), or (out,) where channels differ.
        numbers: {'scale', 'zero', 'shift'}: float32 (1,) or (out,); those that are not needed are missing.
        codebook: float32 (k,), or None.
        kept: bool of the weight's shape, False where it is pruned, or None.
    """

    codes: np.ndarray
    bits: np.ndarray
    numbers: Mapping[str, np.ndarray]
    codebook: np.ndarray | None = None
    kept: np.ndarray | None = None

    def decode(self) -> np.ndarray:
        """Return the weight, float32."""
        if self.codebook is not None:
            values = np.take(self.codebook, self.codes)
        else:
            across = (-1, *[1] * (self.codes.ndim - 1))
            each = {name: number.reshape(across if number.size > 1 else ()) for name, number in self.numbers.items()}
            values = self.codes.astype(np.float32)
            values -= each.get('zero', np.float32(2.0 ** (int(self.bits.max()) - 1)))
            values *= each['scale']
            if 'shift' in each:
                values += each['shift']
        return values if self.kept is None else np.where(self.kept, values, np.float32(0))

    def tensors(self, entropy: bool = False) -> dict[str, np.ndarray]:
        """Return what a file has of it, {key: array}; with `entropy` a Huffman stream where that is shorter."""
        found = {'shape': np.array(self.codes.shape, np.int32), 'bits': self.bits, **self.numbers}
        if self.codebook is not None:
            found['codebook'] = self.codebook
        return found | (min(self._dense(), self._huffman(), key=_bytes) if entropy else self._dense())

    def bytes_of_codes(self) -> tuple[int, int]:
        """Return the bytes of the codes without and with `entropy`."""
        dense, coded = _bytes(self._dense()), _bytes(self._huffman())
        return dense, min(dense, coded)

    def _dense(self) -> dict[str, np.ndarray]:
        dense = {'packed': np.concatenate([pack(codes, bits) for codes, bits in self._segments()], 1)}
        return dense if self.kept is None else {**dense, 'mask': pack(self.kept.reshape(-1), MASK_BITS)}

    def _segments(self) -> Iterator[tuple[np.ndarray, int]]:
        """Yield (codes in a row, bits): all that are kept, or the channels of each width together."""
        if len(self.bits) > 1:
            for width in np.unique(self.bits).tolist():
                yield self.codes[self.bits == width].reshape(-1), width
        else:
            yield (self.codes.reshape(-1) if self.kept is None else self.codes[self.kept]), int(self.bits[0])

    def _huffman(self) -> dict[str, np.ndarray]:
        if len(self.bits) > 1 or not self.codes.size:  # the widths of channels say most of it
            return self._dense()
        symbols = self.codes.reshape(-1).astype(np.uint16)
        if self.kept is not None:  # a pruned weight is a symbol more
            symbols[~self.kept.reshape(-1)] = len(self.codebook)
        lengths = code_lengths(np.bincount(symbols))
        return {'huffman': encode(symbols, lengths), 'lengths': lengths}


def _bytes(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in tensors.values())


# ---- from quantizers and codebooks

def code_codebook(book: Codebook) -> CodedWeight:
    """Return the `CodedWeight` of a K-means layer."""
    kept = None if book.kept is None else book.kept.cpu().numpy()
    return CodedWeight(book.labels.cpu().numpy(), np.array([book.bits], np.uint8), {},
                       book.centroids.float().cpu().numpy(), kept)


@torch.no_grad()
def code_quantized(quantizer: Quantizer, weight: Tensor, values: Tensor) -> CodedWeight:
    """Return the `CodedWeight` of what a quantizer makes of a weight, whatever kind of quantizer it is.

    Args:
        quantizer: an active one.
        weight: what it gets, (out, ...).
        values: what it returns, the same shape.

    Raises:
        ValueError: these values are not those of its codes, neither by scale and zero point nor as a list of levels.
    """
    wanted = values.float().cpu().numpy()
    found = _by_scale(quantizer, weight, wanted)
    if found is None:
        levels, codes = np.unique(wanted, return_inverse=True)
        if len(levels) > 2**quantizer.bits:
            raise ValueError(f'a {type(quantizer).__name__} of {quantizer.bits} bits gives {len(levels)} values, which '
                             'are no codes times a scale plus a shift: it cannot be packed')
        width = max(int(len(levels) - 1).bit_length(), 1)
        kind = np.uint8 if width <= 8 else np.uint16
        found = CodedWeight(codes.reshape(wanted.shape).astype(kind), np.array([width], np.uint8), {}, levels)
    return found


def _by_scale(quantizer, weight, wanted) -> CodedWeight | None:
    """Return the codes with a scale, and a zero point or a shift; None where they do not give the very same numbers."""
    try:
        affine = quantizer.to_affine(weight)
    except NotImplementedError:
        return None
    scale, zero = (_per_channel(number, wanted) for number in (affine.scale, affine.zero_point))
    if scale is None or zero is None or not 1 <= affine.bits <= MAX_QUANTIZER_BITS:
        return None
    codes, half = affine.codes.cpu().numpy(), 2.0 ** (affine.bits - 1)
    if not zero.any() and codes.max(initial=0) < half:  # no code is negative, by chance
        codes, zero = codes + int(half), zero + half
    codes = codes.astype(np.uint8 if affine.bits <= 8 else np.uint16)
    bits, shift = np.array([affine.bits], np.uint8), (-scale * zero).astype(np.float32)
    scale, zero = scale.astype(np.float32), zero.astype(np.float32)
    exact = _equal_rows(CodedWeight(codes, bits, {'scale': scale, 'zero': zero}), wanted)
    if exact.all():
        numbers = {'scale': scale} if (zero == half).all() else {'scale': scale, 'zero': zero}
    else:
        rows = exact if max(scale.size, zero.size) > 1 else np.zeros(1, bool)
        numbers = {'scale': scale, 'zero': np.where(rows, zero, 0).astype(np.float32),
                   'shift': np.where(rows, 0, shift).astype(np.float32)}
        bits = _widths(codes, bits)
    numbers = {name: number[:1] if (number == number[0]).all() else number for name, number in numbers.items()}
    found = CodedWeight(codes, bits, numbers)
    return found if _equal_rows(found, wanted).all() else None


def _per_channel(number: Tensor, wanted: np.ndarray) -> np.ndarray | None:
    """Return a tensor of one number, or of one for each output channel, as a vector; None of another shape."""
    plain = number.numel() == 1 or wanted.ndim and number.shape[:1] == wanted.shape[:1] == (number.numel(),)
    return number.double().reshape(-1).cpu().numpy() if plain else None


def _equal_rows(coded: CodedWeight, wanted: np.ndarray) -> np.ndarray:
    return (coded.decode() == wanted).reshape(len(wanted), -1).all(1)


def _widths(codes: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Return the bits that each channel needs where that saves more than it takes to say so, else those of all."""
    rows = codes.reshape(len(codes), -1)
    widths = np.maximum(np.ceil(np.log2(rows.max(1, initial=0) + 1.0)), 1).astype(np.uint8)
    saved = rows.shape[1] * (int(bits[0]) * len(rows) - int(widths.sum(dtype=np.int64))) // 8
    return widths if saved > len(rows) + 4 * len(np.unique(widths)) else bits


# ---- from a file

def from_tensors(name: str, tensors: Mapping[str, np.ndarray]) -> CodedWeight:
    """Return the `CodedWeight` of a layer, from `tensors`, {key: array}, as a file has them.

    Raises:
        ValueError: they do not belong together.
    """
    try:
        return _checked(dict(tensors))
    except (KeyError, ValueError) as error:
        said = f'has no weight_{error.args[0]}' if isinstance(error, KeyError) else str(error)
        raise ValueError(f'{name}: {said}') from error


def _checked(tensors: dict[str, np.ndarray]) -> CodedWeight:
    shape = tuple(_vector(tensors.pop('shape'), 'shape', '<i4').tolist())
    bits = _vector(tensors.pop('bits'), 'bits', '|u1')
    if not shape or min(shape) < 0 or len(shape) > 8:
        raise ValueError(f'a weight has no shape {shape}')
    if not len(bits) or len(bits) not in (1, shape[0]) or not 1 <= bits.min() <= bits.max() <= MAX_QUANTIZER_BITS:
        raise ValueError(f'{len(bits)} numbers of bits for a weight of shape {shape}: expected one, or one for each '
                         f'output channel, from 1 to {MAX_QUANTIZER_BITS}')
    codebook = _vector(tensors.pop('codebook'), 'codebook', '<f4') if 'codebook' in tensors else None
    numbers = {key: _vector(tensors.pop(key), key, '<f4') for key in NUMBERS if key in tensors}
    if (codebook is None) != ('scale' in numbers) or codebook is not None and (numbers or len(bits) > 1):
        raise ValueError('expected either a codebook or a scale')
    if any(len(number) not in (1, shape[0]) for number in numbers.values()):
        raise ValueError('scale, zero and shift are one number, or one for each output channel')
    numbers_of = [array for array in (codebook, *numbers.values()) if array is not None]
    if not all(np.isfinite(array).all() for array in numbers_of):
        raise ValueError('has numbers that are not finite')
    codes, kept = _codes(tensors, shape, bits, codebook)
    if tensors:
        raise ValueError(f'has a weight_{next(iter(tensors))}, which does not belong there')
    if codebook is not None and codes.max(initial=0) >= len(codebook):
        raise ValueError(f'code {codes.max()} of a codebook of {len(codebook)}')
    return CodedWeight(codes, bits, numbers, codebook, kept)


def _codes(tensors, shape, bits, codebook):
    """Return codes and mask; nothing is allocated before the sizes are found to be right."""
    count = math.prod(shape)
    if 'huffman' in tensors:
        stream, lengths = _vector(tensors.pop('huffman'), 'huffman', '|u1'), _vector(
            tensors.pop('lengths'), 'lengths', '|u1')
        if count > 8 * len(stream) or len(bits) > 1 or len(lengths) > 2 ** int(bits[0]) + 1:
            raise ValueError(f'{len(stream)} bytes cannot hold {count} weights')
        symbols = decode(stream, lengths, count).reshape(shape)
        pruned = None if codebook is None or len(lengths) <= len(codebook) else symbols == len(codebook)
        codes = symbols if pruned is None else np.where(pruned, 0, symbols)
        return codes.astype(np.uint8 if bits[0] <= 8 else np.uint16), None if pruned is None else ~pruned
    kept = None
    if 'mask' in tensors:
        if codebook is None:
            raise ValueError('has a mask without a codebook')
        mask = _words(tensors.pop('mask'), 'mask', packed_words(count, MASK_BITS))
        kept = unpack(mask, count, MASK_BITS).astype(bool).reshape(shape)
    counts = _segment_counts(shape, bits, count if kept is None else int(kept.sum()))
    words = _words(tensors.pop('packed'), 'packed', sum(packed_words(n, width) for _, n, width in counts))
    codes = np.zeros(shape, np.uint8 if bits.max() <= 8 else np.uint16)
    start = 0
    for rows, n, width in counts:
        end = start + packed_words(n, width)
        part, start = unpack(words[start:end], n, width), end
        if rows is not None:
            codes[rows] = part.reshape(-1, *shape[1:])
        elif kept is not None:
            codes[kept] = part
        else:
            codes = part.reshape(shape)
    return codes, kept


def _segment_counts(shape, bits, count):
    """Return [(channels or None for all, number of codes, bits)] of the segments of `packed`."""
    if len(bits) == 1:
        return [(None, count, int(bits[0]))]
    row = math.prod(shape[1:])
    return [(bits == width, int((bits == width).sum()) * row, width) for width in np.unique(bits).tolist()]


def _vector(array: np.ndarray, key: str, kind: str) -> np.ndarray:
    if array.ndim != 1 or array.dtype != np.dtype(kind):
        raise ValueError(f'weight_{key} is {array.dtype} of shape {array.shape}: expected a vector of {np.dtype(kind)}')
    return array


def _words(array: np.ndarray, key: str, count: int) -> np.ndarray:
    if array.dtype != np.dtype('<i4') or array.shape != (1, count):
        raise ValueError(f'weight_{key} is {array.dtype} of shape {array.shape}: expected int32 of shape {(1, count)}')
    return array.reshape(-1)
