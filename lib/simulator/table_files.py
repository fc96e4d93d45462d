"""The two files of a saved table: the numbers (.npy) and, beside them, how they were made (.json)."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

VERSION = 1  # of the .json
REMAKE = 'make a table for this network with scripts/make_lookup_table.py'


def npy_path(path: str | Path) -> Path:
    """Return `path` as a Path, or raise ValueError when it does not end in .npy."""
    path = Path(path)
    if path.suffix != '.npy':
        raise ValueError(f'a lookup table is a .npy file, got {path}')
    return path


def read_array(path: Path) -> np.ndarray:
    """Read the .npy file; FileNotFoundError when it is missing, ValueError when it is damaged or something else."""
    if not path.is_file():
        raise FileNotFoundError(f'there is no lookup table {path}; {REMAKE}')
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f'{path} is not a complete .npy file ({error}); {REMAKE}') from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f'{path} is an archive of arrays, expected a single .npy array; {REMAKE}')
    return array


def read_about(path: Path) -> dict:
    """Read the .json of the table at `path`; empty when there is none, ValueError when it cannot be understood."""
    path = path.with_suffix('.json')
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is not valid JSON ({error}); {REMAKE}') from error
    if not isinstance(about, dict) or about.get('version') != VERSION:
        raise ValueError(f'{path} does not describe a lookup table of version {VERSION}; {REMAKE}')
    return about


def write_files(path: Path, array: np.ndarray, about: Mapping) -> None:
    """Write the .npy and its .json, each complete or not at all; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The description first: stopped in between, a new table is simply missing and an old one no longer fits its sha256.
    _replace(path.with_suffix('.json'), lambda file: file.write(_to_json(about).encode()))
    _replace(path, lambda file: np.save(file, array, allow_pickle=False))


def checksum(array: np.ndarray) -> str:
    """Return the SHA-256 of the cells, little-endian in C order."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder('<')).tobytes()).hexdigest()


def _to_json(about: Mapping) -> str:
    """Return indented JSON, with each layer on a line of its own."""
    head = json.dumps({key: value for key, value in about.items() if key != 'layers'}, indent=2)
    layers = ',\n    '.join(json.dumps(layer) for layer in about.get('layers', []))
    return f'{head[:-2]},\n  "layers": [\n    {layers}\n  ]\n}}\n'


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file in the same folder, then rename it over `path`."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with open(temporary, 'wb') as file:
            write(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
