"""Quantized weights as constants of an ONNX graph: INT8 codes, INT4 codes, or bits that the graph itself unpacks."""

import numpy as np

from lib.export.onnx_packages import ir
from lib.export.onnx_twin import WeightCodes
from lib.quantize.codebook import Codebook

STORAGE = ('int8', 'int4', 'packed')
LARGEST_BIAS = 2**30  # of an int32 sum; the products have the rest


def integer_constants(weight: WeightCodes, step: float) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """Return (codes, k, scale, bias) of a layer whose input has the given scale: value = scale * k * codes / k.

    Codes of few bits are stored k = 127 // n times as large, n being the largest, with a scale k times as small: the
    bias is a multiple of input scale times weight scale, and so is k times as fine.

    A channel whose scale is so small that its bias would leave int32, as behind a BatchNorm whose factor is nearly 0,
    gets the smallest scale that holds the bias, and the codes nearest to the old values.

    Returns:
        codes: int64 of the weight's shape, before they are multiplied by k.
        k: the factor.
        scale: float32 (out,), of codes * k.
        bias: int32 (out,), in units of step * scale.
    """
    codes, bias = weight.codes.numpy(), weight.bias.numpy()
    k = 127 // max(int(np.abs(codes).max(initial=0)), 1)
    old = weight.scale.numpy() / k
    least = np.abs(bias) / (LARGEST_BIAS * step)
    scale = np.maximum(np.maximum(old, least), np.finfo(np.float32).tiny).astype(np.float32)
    coarse = scale > old * (1 + 1e-6)
    rows = codes.reshape(len(codes), -1).copy()
    rows[coarse] = np.rint(rows[coarse] * (old[coarse] / scale[coarse])[:, None])
    units = np.rint(bias / (np.float64(np.float32(step)) * scale)).clip(-LARGEST_BIAS, LARGEST_BIAS)
    return rows.reshape(codes.shape), k, scale, units.astype(np.int32)


def stored_codes(tape, name: str, codes: np.ndarray, k: int, storage: str):
    """Return the INT8 value codes * k, stored as `storage` says where that is smaller."""
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if storage == 'packed':
        bits = max((high - low).bit_length(), 1)
        table = ((np.arange(2**bits) + low) * k).clip(-128, 127).astype(np.int8)
        return unpacked(tape, name, codes - low, bits, table)
    if storage == 'int4' and low >= -8 and high <= 7:
        import ml_dtypes  # comes with onnx-ir

        small = constant(tape, name, ir.tensor(codes.astype(ml_dtypes.int4)))
        return small if k == 1 else _stretched(tape, name, small, k)
    return constant(tape, name, (codes * k).astype(np.int8))


def _stretched(tape, name, small, k):
    wide = tape.op('Cast', [small], {'to': ir.DataType.INT32})
    product = tape.op('Mul', [wide, constant(tape, f'{name}.k', np.int32(k))])
    return tape.op('Cast', [product], {'to': ir.DataType.INT8})


def constant(tape, name: str, array):
    """Return an initializer; an array of NumPy, or a tensor of onnx-ir."""
    tensor = array if isinstance(array, ir.TensorProtocol) else ir.tensor(np.asarray(array))
    return tape.initializer(tensor, name=name)


def codebook_weight(tape, name: str, book: Codebook):
    """Return the float32 value of a clustered weight: packed indices, and a Gather from the centroids."""
    table = book.centroids.float().numpy()
    if book.kept is not None and not book.kept.all():
        table = np.append(table, np.float32(0))
    bits = max((len(table) - 1).bit_length(), 1)
    return unpacked(tape, name, book.index.numpy(), bits, table)


def pack(index: np.ndarray, bits: int) -> np.ndarray:
    """Return non-negative numbers below 2^bits as bytes (bits, n), dense; ends with zeros up to a multiple of 8.

    Column i is a little-endian number of 8 fields of `bits` bits: the numbers i, n + i, 2 n + i, ...
    """
    n = -(-index.size // 8)
    flat = np.zeros(8 * n, np.uint8)
    flat[:index.size] = index.reshape(-1)
    fields = (flat.reshape(8, n).T[:, :, None] >> np.arange(bits, dtype=np.uint8)) & 1  # (n, 8, bits)
    return np.ascontiguousarray(np.packbits(fields.reshape(n, -1), axis=1, bitorder='little').T)


def unpacked(tape, name: str, index: np.ndarray, bits: int, table: np.ndarray):
    """Return the value table[index]; the file holds `pack(index)`, and nodes that runtimes fold when they load it.

    Field j begins in byte b = j bits // 8 of its column, s = j bits % 8, and has `rest` bits in the next one:
    (byte[b] / 2^s + byte[b + 1] mod 2^rest * 2^(bits - rest)) mod 2^bits, in int32. OpenVINO does not fold BitShift.
    """
    lanes = np.arange(8) * bits
    byte, shift = lanes // 8, lanes % 8
    rest = (shift + bits - 8).clip(min=0)
    stored = constant(tape, f'{name}.packed', pack(index, bits))
    data = tape.op('Cast', [stored], {'to': ir.DataType.INT32})

    def numbers(what, values):
        return constant(tape, f'{name}.{what}', np.asarray(values, np.int32).reshape(-1, 1))

    def rows(what, which):
        return tape.op('Gather', [data, constant(tape, f'{name}.{what}', which.astype(np.int64))], {'axis': 0})

    fields = tape.op('Div', [rows('first', byte), numbers('shift', 2**shift)])
    if rest.any():
        ends = tape.op('Mod', [rows('next', np.where(rest, byte + 1, byte)), numbers('ends', 2**rest)])
        fields = tape.op('Add', [fields, tape.op('Mul', [ends, numbers('raise', 2**(bits - rest))])])
    fields = tape.op('Mod', [fields, numbers('size', [2**bits])])
    flat = tape.op('Reshape', [fields, constant(tape, f'{name}.flat', np.array([-1], np.int64))])
    if index.size % 8:
        ranges = [constant(tape, f'{name}.{what}', np.array([at], np.int64))
                  for what, at in (('begin', 0), ('end', index.size))]
        flat = tape.op('Slice', [flat, *ranges])
    values = tape.op('Gather', [constant(tape, f'{name}.table', table), flat], {'axis': 0})
    return tape.op('Reshape', [values, constant(tape, f'{name}.shape', np.array(index.shape, np.int64))])


def float_weight(tape, name: str, weight: WeightCodes, storage: str):
    """Return scale * (codes - zero) as a float32 value, for a layer whose input is no 8-bit tensor.

    By Cast and Mul, for a MatMul with a DequantizeLinear would run with 8-bit inputs of its own in onnxruntime.
    """
    codes, shape = weight.codes.numpy(), (-1, *[1] * (weight.codes.dim() - 1))
    low, high = int(codes.min(initial=0)), int(codes.max(initial=0))
    if storage == 'packed' and high - low < 256:
        bits = max((high - low).bit_length(), 1)
        value = unpacked(tape, name, codes - low, bits, (np.arange(2**bits) + low).astype(np.float32))
    else:
        kind = next(kind for kind in (np.int8, np.uint8, np.int16, np.int32)
                    if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
        value = tape.op('Cast', [constant(tape, name, codes.astype(kind))], {'to': ir.DataType.FLOAT})
    if weight.zero is not None:
        zero = weight.zero.numpy().astype(np.float32).reshape(shape)
        value = tape.op('Sub', [value, constant(tape, f'{name}.zero', zero)])
    scale = weight.scale.numpy().astype(np.float32).reshape(shape)
    return tape.op('Mul', [value, constant(tape, f'{name}.scale', scale)])
