"""Digests: what a thing holds, told by its content and never by its path."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the rest of this file works without NumPy
    import numpy as np

CHUNK = 1 << 20  # bytes


def digest_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of_value(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hexadecimal; the order of keys makes no difference."""
    text = json.dumps(value, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_array(array: 'np.ndarray') -> str:
    """Return the SHA-256 of an array's shape, kind and values (little-endian, in C order), in hexadecimal."""
    array = array.astype(array.dtype.newbyteorder('<'), copy=False)
    digest = hashlib.sha256(f'{array.dtype.str}{array.shape}'.encode())
    digest.update(array.tobytes())
    return digest.hexdigest()
