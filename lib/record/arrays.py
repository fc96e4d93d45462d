"""Files of arrays: .npy, and .npz with a digest of everything; what a file only claims is not allocated."""

import io
import json
import math
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from lib.record.digest import digest_of_array, digest_of_value
from lib.record.files import DIGEST, atomic_path, read_bytes

MAX_ARRAYS = 1 << 32  # bytes of a file of arrays, and of the arrays in it


def parse_npy(data: bytes, source: str) -> np.ndarray:
    """Return the array of the bytes of a .npy file: numbers, truth values or text, no objects.

    Raises:
        ValueError: they are no complete .npy file; `source` is named.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read_header[version](file)
        count, rest = math.prod(shape), len(data) - file.tell()
        if dtype.hasobject or dtype.names or min(shape, default=0) < 0 or count * dtype.itemsize != rest:
            raise ValueError(f'a header of {shape} {dtype} before {rest} bytes')
        array = np.frombuffer(data, dtype, count, file.tell()) if count else np.zeros(0, dtype)
        return array.reshape(shape, order='F' if fortran else 'C').copy()
    except Exception as error:  # a damaged header makes NumPy's parser raise nearly anything
        raise ValueError(f'{source} is not a complete .npy file ({_brief(error)})') from error


def read_npy(path: str | Path, what: str = 'array', limit: int = MAX_ARRAYS) -> np.ndarray:
    """Return the array of a .npy file.

    Raises:
        ValueError: it cannot be read, is larger than `limit` bytes, or damaged.
    """
    return parse_npy(read_bytes(path, what, limit), f'{what} {path}')


def write_npz(path: str | Path, arrays: Mapping, *, compress: bool = False) -> None:
    """Write arrays and the digest of them all to an .npz file, atomically."""
    arrays = {name: np.asarray(array) for name, array in arrays.items() if name != DIGEST}
    save = np.savez_compressed if compress else np.savez
    with atomic_path(path) as temporary, temporary.open('wb') as file:
        save(file, **{DIGEST: np.array(digest_of_arrays(arrays))}, **arrays)  # first: what loses the end has it still


def read_npz(path: str | Path, what: str = 'archive of arrays', limit: int = MAX_ARRAYS,
             added: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return {name: array} of an .npz file; the digest of one of `write_npz` is checked and left out.

    Args:
        limit: bytes that the file and its arrays may take.
        added: names of arrays that others may put into a file of ours.

    Raises:
        ValueError: it cannot be read, is damaged, was changed, or its arrays take more than `limit` bytes.
    """
    data, source = read_bytes(path, what, limit), f'{what} {path}'
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            if (size := sum(member.file_size for member in members)) > limit:
                raise ValueError(f'its arrays would take {size} bytes, expected at most {limit}')
            names = [member.filename.removesuffix('.npy') for member in members]
            if len(set(names)) != len(names):
                raise ValueError('an array is there twice')
            parts = {name: _member(archive, member) for name, member in zip(names, members, strict=True)}
    except Exception as error:  # as above, and zipfile's
        raise ValueError(f'{source} cannot be read as an .npz file: it is truncated, damaged or of another kind '
                         f'({_brief(error)})') from error
    arrays = {name: parse_npy(part, f'{name} in {source}') for name, part in parts.items()}
    digest = arrays.pop(DIGEST, None)
    ours = {name: array for name, array in arrays.items() if name not in added}
    if digest is not None and str(digest) != digest_of_arrays(ours):
        raise ValueError(f'{source} is damaged or was changed: its digest is of other values; restore it, or delete it '
                         'and make it again')
    return arrays


def _member(archive, member) -> bytes:
    with archive.open(member) as file:
        data = file.read(member.file_size + 1)  # not what the compressed data would give, which may be far more
    if len(data) != member.file_size:
        raise ValueError(f'{member.filename} has another size than it says')
    return data


def digest_of_arrays(arrays: Mapping) -> str:
    """Return the SHA-256 of named arrays, in hexadecimal."""
    return digest_of_value({name: digest_of_array(array) for name, array in arrays.items()})


def json_array(value) -> np.ndarray:
    """Return a value as an array of the bytes of its JSON text, for an .npz file."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _brief(error) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
