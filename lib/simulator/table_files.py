"""Saved tables: the numbers (.npy) and, beside them, how they were made (.json)."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lib.simulator.cost import CostTable, as_table
from lib.simulator.layer import LayerRecord

VERSION = 1  # of the .json
REMAKE = 'make a table for this network with scripts/make_lookup_table.py'


def save_table(path: str | Path, table: CostTable, about: Mapping | None = None) -> None:
    """Write the table to `path` (.npy) and how it was made to the .json beside it, each complete or not at all.

    `about` is added to `table.about`; its `layers`, a list of `LayerRecord.to_dict`, is what `load_table` checks.
    """
    facts = {
        'name': table.name,
        'unit': table.unit,
        'cell': 'table[layer][w_bit - 1][a_bit - 1]',
        'meaning': table.meaning,
        'combine': table.combine,
        'reference': table.reference,
        'version': VERSION,
        'sha256': checksum(table.table),
    }
    write_files(npy_path(path), table.table, {**facts, **table.about, **(about or {}), **facts})


def load_table(path: str | Path, layers: Sequence[LayerRecord] | None = None) -> CostTable:
    """Read a table written by `save_table`, or a bare .npy of shape (layers, 8, 8) such as the original's.

    Args:
        path: the .npy file. Name, unit and reference come from the .json beside it; without one the unit is unknown and
            the reference is the cost at 8/8 bits.
        layers: the network the table is to be used with. Names and shapes must be those in the .json, or the number of
            layers must agree where there is none.

    Raises:
        FileNotFoundError: no such table.
        ValueError: not a complete table, or made for another network (names the first layer that differs).
    """
    path = npy_path(path)
    array = as_table(read_array(path), path)
    about = read_about(path)
    if about.get('sha256', checksum(array)) != checksum(array):
        raise ValueError(f'{path} is not the table that the .json beside it describes; {REMAKE} (--overwrite)')
    saved = [LayerRecord.from_dict(entries) for entries in about.get('layers', [])]
    if layers is not None:
        _check_same_network(path, saved, layers, num_rows=len(array))
    return CostTable(
        array,
        reference=about.get('reference', array[:, -1, -1].sum().item()),
        name=about.get('name', path.stem),
        unit=about.get('unit', 'units'),
        meaning=about.get('meaning', ''),
        combine=about.get('combine', 'sum'),
        layer_names=[layer.name for layer in saved or layers or []] or None,
        about=about,
    )


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


def _check_same_network(path, saved, layers, num_rows) -> None:
    """Raise ValueError, naming the first layer that differs, unless the table's layers are the network's."""
    if not saved and num_rows != len(layers):  # a bare .npy: all that can be compared
        raise ValueError(f'{path} has {num_rows} layers, the network has {len(layers)}; {REMAKE}')
    for index, (theirs, ours) in enumerate(itertools.zip_longest(saved, layers) if saved else ()):
        if theirs != ours:
            name = (ours or theirs).name
            raise ValueError(
                f'{path} was made for another network: layer {index} ({name}): {_difference(theirs, ours)}; {REMAKE}'
            )


def _difference(theirs, ours) -> str:
    if theirs is None or ours is None:
        return f"only the {'network' if theirs is None else 'table'} has it"
    key = next(field.name for field in fields(LayerRecord) if getattr(theirs, field.name) != getattr(ours, field.name))
    return f'{key} is {getattr(theirs, key)!r} in the table and {getattr(ours, key)!r} in the network'
