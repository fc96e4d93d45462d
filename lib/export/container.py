"""The file: a header in JSON and tensors, as safetensors lays them out; written, and read with every check.

    8 bytes   N, the length of the header, little-endian
    N bytes   {"__metadata__": {"haq": text}, name: {"dtype", "shape", "data_offsets": [first, end]}, ...}, and spaces
    the rest  the tensors, one behind the other, little-endian, in C order

`text` is JSON of its own: what the file says of itself. Small tensors, whose lines in the header would be longer than
they are, lie in one tensor, `__small__`; `text` has their names, types and shapes. The reader needs NumPy alone,
believes nothing, and allocates nothing before it knows that the file is as large as it says.
"""

import base64
import hashlib
import json
import math
import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lib.record.files import atomic_path, file_size, parse_json

KEY, SMALL, SHA256 = 'haq', '__small__', 'sha256'
MAX_HEADER = 1 << 24  # bytes of the header, and of the list of small tensors
MAX_TENSORS, MAX_DIMENSIONS, MAX_NAME = 1 << 17, 8, 512
SMALL_BYTES = 1 << 12  # below these a tensor is small
FEW = 2  # small tensors take no less together
KINDS = {'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'I64': '<i8', 'I32': '<i4', 'I16': '<i2', 'I8': '|i1', 'U8': '|u1',
         'U16': '<u2', 'BOOL': '|b1'}
NAMES = {np.dtype(kind): name for name, kind in KINDS.items()}
ZEROS = '0' * 64  # in the place of the digest, while it is computed


# ---- writing

def to_bytes(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    """Return the file that holds these tensors and says this of itself.

    Raises:
        ValueError: a tensor is of a type that such files have not.
    """
    tensors = {name: np.asarray(array) for name, array in tensors.items()}
    for name, array in tensors.items():
        if array.dtype not in NAMES:
            raise ValueError(f'{name} is of type {array.dtype}, which no packed file has')
    small = {name: array for name, array in tensors.items() if array.nbytes < SMALL_BYTES}
    small = small if len(small) > FEW else {}
    large = {name: array for name, array in tensors.items() if name not in small}
    about = {name: value for name, value in about.items() if name not in (SMALL, SHA256)}
    if small:
        rows = [[name, NAMES[array.dtype], list(array.shape)] for name, array in small.items()]
        about[SMALL] = base64.b64encode(zlib.compress(_json(rows).encode(), 9)).decode()
        large[SMALL] = np.frombuffer(b''.join(array.tobytes() for array in small.values()), np.uint8)
    header, start = {'__metadata__': {KEY: _json({**about, SHA256: ZEROS})}}, 0
    for name, array in large.items():
        header[name] = {'dtype': NAMES[array.dtype], 'shape': list(array.shape),
                        'data_offsets': [start, start := start + array.nbytes]}
    text = _json(header).encode()
    text += b' ' * (-len(text) % 8)
    parts = [struct.pack('<Q', len(text)), text, *(np.ascontiguousarray(array).data for array in large.values())]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    parts[1] = text.replace(ZEROS.encode(), digest.hexdigest().encode(), 1)
    return b''.join(parts)


def _json(value: Any) -> str:
    return json.dumps(value, separators=(',', ':'), ensure_ascii=False, allow_nan=False)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path, needed=len(data)) as temporary:
        temporary.write_bytes(data)


# ---- reading

def is_packed(path: str | Path) -> bool:
    """Return whether a file begins as a packed file does: a header that names it."""
    try:
        with open(path, 'rb') as file:
            head = file.read(256)
    except OSError:
        return False
    return head[8:].lstrip().startswith(f'{{"__metadata__":{{"{KEY}":'.encode())


def read_file(path: str | Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Return (what the file says of itself, {name: tensor}) of a packed file.

    Raises:
        ValueError: it is damaged, or no such file.
    """
    size, source = file_size(path, 'packed file'), f'packed file {path}'
    with open(path, 'rb') as file:
        head = file.read(8)
        header = file.read(_header_bytes(head, size, source))
        about, rows = _header(header, size - len(head) - len(header), source)
        return _tensors(about, rows, head + header, file.read(), source)


def parse(data: bytes, source: str = 'packed file') -> tuple[dict, dict[str, np.ndarray]]:
    """Return the same of the bytes of a packed file."""
    end = 8 + _header_bytes(data[:8], len(data), source)
    about, rows = _header(data[8:end], len(data) - end, source)
    return _tensors(about, rows, data[:end], data[end:], source)


def _header_bytes(head: bytes, size: int, source: str) -> int:
    if size < 8 or (length := struct.unpack('<Q', head)[0]) > min(size - 8, MAX_HEADER):
        raise ValueError(f'{source} is no packed file, or cut off: its {size} bytes do not hold the header')
    return length


def _header(text: bytes, data_bytes: int, source: str) -> tuple[dict, list]:
    """Return what the file says of itself and [(name, type, shape, first byte, end)] of its tensors."""
    header = _parsed(text, f'the header of {source}', dict)
    metadata = header.pop('__metadata__', None)
    if not isinstance(metadata, dict) or metadata.keys() != {KEY} or not isinstance(metadata[KEY], str):
        raise ValueError(f'{source} is no packed file: its metadata has no "{KEY}" alone')
    about = _parsed(metadata[KEY].encode(), f'what {source} says of itself', dict)
    rows, start = [], 0
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {'dtype', 'shape', 'data_offsets'}:
            raise ValueError(f'{source}: {name[:80]!r} has no dtype, shape and data_offsets')
        kind, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
        size = _checked_bytes(name, kind, shape, source)
        if offsets != [start, start + size] or any(type(offset) is not int for offset in offsets):
            raise ValueError(f'{source}: {name} lies at {str(offsets)[:60]}, expected {[start, start + size]}')
        rows.append((name, kind, shape, start, start := start + size))
    if start != data_bytes:
        raise ValueError(f'{source} has {data_bytes} bytes of tensors, its header says {start}: it is cut off or '
                         'damaged')
    return about, rows


def _parsed(text: bytes, source: str, kind: type) -> Any:
    try:
        value = parse_json(text.decode('utf-8'), source)
    except UnicodeDecodeError as error:
        raise ValueError(f'{source} is no UTF-8 text') from error
    if not isinstance(value, kind) or len(value) > MAX_TENSORS:
        raise ValueError(f'{source} is no {kind.__name__} of at most {MAX_TENSORS} entries')
    return value


def _checked_bytes(name: Any, kind: Any, shape: Any, source: str) -> int:
    """Return the bytes of a tensor; ValueError unless its name, type and shape can be."""
    if not isinstance(name, str) or not name.isprintable() or not re.fullmatch(r'[^./\\]+(\.[^./\\]+)*', name) \
            or len(name) > MAX_NAME:
        raise ValueError(f'{source}: {str(name)[:80]!r} is no name of a tensor')
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f'{source}: {name} is of type {str(kind)[:20]!r}, expected one of {", ".join(KINDS)}')
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(
            type(size) is int and 0 <= size < 1 << 40 for size in shape):
        raise ValueError(f'{source}: {name} has no shape {str(shape)[:60]}')
    return np.dtype(KINDS[kind]).itemsize * math.prod(shape)


def _tensors(about, rows, head, data, source):
    digest = about.pop(SHA256, None)
    if not isinstance(digest, str) or not re.fullmatch('[0-9a-f]{64}', digest) or head.count(digest.encode()) != 1:
        raise ValueError(f'{source} has no SHA-256 of its own')
    found = hashlib.sha256(head.replace(digest.encode(), ZEROS.encode()))
    found.update(data)
    if found.hexdigest() != digest:
        raise ValueError(f'{source} is damaged or was changed: its SHA-256 differs; copy or make it again')
    tensors = {name: _tensor(data, first, kind, shape) for name, kind, shape, first, _ in rows}
    if listed := about.pop(SMALL, None):
        small = _small_tensors(tensors.pop(SMALL, None), listed, source)
        if twice := tensors.keys() & small.keys():
            raise ValueError(f'{source}: {min(twice)} is there twice')
        tensors |= small
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f'{source} has {len(tensors)} tensors, expected at most {MAX_TENSORS}')
    for name, array in tensors.items():
        if array.dtype.kind == 'f' and np.isnan(array).any():
            raise ValueError(f'{source}: {name} has values that are not numbers')
        if array.dtype.kind == 'b' and array.view(np.uint8).max(initial=0) > 1:
            raise ValueError(f'{source}: {name} has values that are neither true nor false')
    return about, tensors


def _small_tensors(blob, listed, source):
    what, tensors, start = f'the list of small tensors of {source}', {}, 0
    try:
        opened = zlib.decompressobj()
        text = opened.decompress(base64.b64decode(listed, validate=True), MAX_HEADER)
    except (ValueError, TypeError, zlib.error) as error:
        raise ValueError(f'{what} cannot be read ({error})') from error
    if not opened.eof or opened.unused_data:
        raise ValueError(f'{what} is too long, or cut off')
    if blob is None or blob.dtype != np.uint8 or blob.ndim != 1:
        raise ValueError(f'{what} is there without them')
    for row in _parsed(text, what, list):
        if not isinstance(row, list) or len(row) != 3:
            raise ValueError(f'{what}: {str(row)[:60]} is no name, type and shape')
        end = start + _checked_bytes(*row, source)
        if end > len(blob) or row[0] in tensors:
            raise ValueError(f'{what}: {row[0]} is there twice, or not at all')
        tensors[row[0]], start = _tensor(blob.data, start, *row[1:]), end
    if start != len(blob):
        raise ValueError(f'{what} says {start} bytes, they have {len(blob)}')
    return tensors


def _tensor(data, first, kind, shape):
    count = math.prod(shape)
    return np.frombuffer(data, KINDS[kind], count, first).reshape(shape) if count else np.zeros(shape, KINDS[kind])
