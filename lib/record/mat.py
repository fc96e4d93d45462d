"""MATLAB's .mat files of versions 5 and 7 in plain Python: SciPy's reader crashes the process on some damaged ones."""

import math
import struct
import zlib
from pathlib import Path
from typing import Any

from lib.record.files import read_bytes

NUMBERS = {1: 'b', 2: 'B', 3: 'h', 4: 'H', 5: 'i', 6: 'I', 7: 'f', 9: 'd', 12: 'q', 13: 'Q'}  # types of data
TEXTS = {1: 'latin-1', 2: 'latin-1', 4: 'utf-16', 16: 'utf-8', 17: 'utf-16', 18: 'utf-32'}
MATRIX, COMPRESSED = 14, 15
STRUCT, CHAR, NUMERIC = 2, 4, range(6, 16)  # classes of arrays
HEADER = 128  # bytes


def read_mat(path: str | Path, what: str = 'MATLAB file', limit: int = 1 << 26) -> dict[str, Any]:
    """Return the variables of a MATLAB file by name, arrays in MATLAB's order.

    An array of numbers is a list, one of characters a text, one of structures a list of dicts; others are None.

    Args:
        limit: bytes of the file, and of what is packed in it.

    Raises:
        ValueError: it cannot be read.
    """
    data = read_bytes(path, what, limit)
    try:
        order = {b'IM': '<', b'MI': '>'}[data[HEADER - 2:HEADER]]
        variables, at = {}, HEADER
        while at < len(data):
            kind, content, at = _element(data, at, order)
            if kind == COMPRESSED:
                kind, content, _ = _element(_unpacked(content, limit), 0, order)
            if kind == MATRIX:
                name, value = _matrix(content, order)
                variables[name] = value
    except (ValueError, LookupError, struct.error, zlib.error, RecursionError) as error:
        raise ValueError(f'{what} {path} cannot be read: it is truncated, damaged or of another kind '
                         f'({type(error).__name__}: {" ".join(str(error).split())[:200]})') from error
    return variables


def _unpacked(content: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(content, limit)
    if not unpacker.eof:
        raise ValueError('packed data are cut off or too large')
    return data


def _element(data: bytes, at: int, order: str) -> tuple[int, bytes, int]:
    """Return (type, content, where the next one is) of the element at a place; up to 4 bytes lie within its tag."""
    kind, size = struct.unpack_from(f'{order}2I', data, at)
    if kind >> 16:
        kind, size, start, after = kind & 0xffff, kind >> 16, at + 4, at + 8
    else:
        start = at + 8
        after = start + size + (0 if kind == COMPRESSED else -size % 8)
    if start + size > min(after, len(data)):
        raise ValueError('an element goes beyond its end')
    return kind, data[start:start + size], after


def _matrix(content: bytes, order: str) -> tuple[str, Any]:
    """Return (name, value) of an array."""
    if not content:
        return '', None
    _, flags, at = _element(content, 0, order)
    _, dims, at = _element(content, at, order)
    _, name, at = _element(content, at, order)
    kind = struct.unpack(f'{order}2I', flags)[0] & 0xff
    if kind == STRUCT:
        return name.decode('latin-1'), _structures(content, at, order, math.prod(_numbers(5, dims, order)))
    if kind == CHAR or kind in NUMERIC:
        stored, values, _ = _element(content, at, order)
        return name.decode('latin-1'), _text(stored, values, order) if kind == CHAR else _numbers(stored, values, order)
    return name.decode('latin-1'), None


def _structures(content: bytes, at: int, order: str, count: int) -> list[dict]:
    _, length, at = _element(content, at, order)
    _, names, at = _element(content, at, order)
    width = _numbers(5, length, order)[0]
    if width < 1:
        raise ValueError(f'names of {width} bytes')
    fields = [names[i:i + width].split(b'\0')[0].decode('latin-1') for i in range(0, len(names), width)]
    found: list[dict] = []
    while fields and len(found) < count:
        found.append({})
        for field in fields:
            kind, value, at = _element(content, at, order)
            if kind != MATRIX:
                raise ValueError(f'an element of type {kind} in a structure')
            found[-1][field] = _matrix(value, order)[1]
    return found


def _numbers(kind: int, data: bytes, order: str) -> list:
    code = NUMBERS[kind]
    return list(struct.unpack(f'{order}{len(data) // struct.calcsize(code)}{code}', data))


def _text(kind: int, data: bytes, order: str) -> str:
    encoding = TEXTS[kind]
    return data.decode(encoding if encoding in ('latin-1', 'utf-8') else encoding + {'<': '-le', '>': '-be'}[order])
