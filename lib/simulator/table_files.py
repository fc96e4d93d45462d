"""Tables in files: the numbers (.npy) with how they were made (.json), or a CSV of the user's own numbers."""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from math import isclose
from pathlib import Path

import numpy as np

from lib.record.arrays import read_npy
from lib.record.digest import digest_of_array
from lib.record.files import DIGEST, atomic_path, is_file, parse_json, read_csv, read_text, sealed, unsealed, write_text
from lib.record.values import TEXT, above, check_values, list_of, member_of, one_of
from lib.simulator.cost import COMBINE, MAX_BIT, CostTable, as_table
from lib.simulator.layer import LayerRecord

VERSION, SEALED = 2, 2  # of the .json; from which one on it has a digest of everything
MAX_TABLE = 1 << 28  # bytes of a .npy
COLUMNS = ('layer', 'w_bit', 'a_bit', 'cost')  # of a CSV
NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?')  # no 1_0, no digits of other scripts
WHOLE = re.compile('[0-9]{1,9}')
ANY = '*'  # in a bits column: the line is meant for all bits that have no line of their own
REMAKE = 'make a table for this network with scripts/make_lookup_table.py'
RULES = {
    **dict.fromkeys(('name', 'unit', 'meaning'), TEXT), 'combine': member_of(COMBINE, ' or '.join(COMBINE)),
    'reference': above(0), 'layers': list_of(one_of(dict)), 'hardware': one_of(dict),
}


def save_table(path: str | Path, table: CostTable) -> None:
    """Write the table to `path` (.npy) and how it was made to the .json beside it, each complete or not at all.

    The `layers` in `table.about`, a list of `LayerRecord.to_dict`, are what `load_table` checks. The .json has a digest
    of everything in both files.
    """
    facts = {
        'name': table.name,
        'unit': table.unit,
        'cell': 'table[layer][w_bit - 1][a_bit - 1]',
        'meaning': table.meaning,
        'combine': table.combine,
        'reference': table.reference,
        'version': VERSION,
        'cells': digest_of_array(table.table),
    }
    others = {key: value for key, value in table.about.items() if key not in ('sha256', DIGEST)}
    path, text = npy_path(path), _to_json(sealed({**facts, 'layers': [], **others, **facts}))
    # The description first: stopped in between, a new table is simply missing and an old one no longer fits its digest.
    write_text(path.with_suffix('.json'), text)
    with atomic_path(path) as temporary:
        np.save(temporary, table.table, allow_pickle=False)


def load_table(path: str | Path, layers: Sequence[LayerRecord] | None = None) -> CostTable:
    """Read a table written by `save_table`, or a bare .npy of shape (layers, 8, 8) such as the original's.

    Args:
        path: the .npy file. Name, unit and reference come from the .json beside it; without one the unit is unknown and
            the reference is the cost at 8/8 bits.
        layers: the network the table is to be used with. Names and shapes must be those in the .json, or the number of
            layers must agree where there is none.

    Raises:
        FileNotFoundError: no such table.
        ValueError: not a complete table, changed since it was written, or made for another network (names the first
            layer that differs).
    """
    path = npy_path(path)
    if not is_file(path):
        raise FileNotFoundError(f'there is no lookup table {path}; {REMAKE}')
    array = _with_advice(read_array, path)
    about = _with_advice(read_about, path)
    _check_cells(path, array, about)
    saved = _with_advice(saved_layers, path, about)
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
    """Return the cells of the .npy file, (layers, 8, 8)."""
    return as_table(read_npy(path, 'lookup table', MAX_TABLE), path)


def read_about(path: Path) -> dict:
    """Return what the .json of the table at `path` says; empty when there is none.

    Raises:
        ValueError: it cannot be understood, or its digest is of something else.
    """
    path = path.with_suffix('.json')
    if not is_file(path):
        return {}
    about = parse_json(read_text(path, 'description of a lookup table'), str(path))
    version = about.get('version') if isinstance(about, dict) else None
    if type(version) is not int or not 1 <= version <= VERSION:
        raise ValueError(f'{path} does not describe a lookup table of version 1 to {VERSION}')
    if version >= SEALED and DIGEST not in about:
        raise ValueError(f'{path} has lost its digest')
    about = unsealed(about, str(path))
    check_values(about, {key: rule for key, rule in RULES.items() if key in about}, str(path))
    return about


def saved_layers(path: Path, about: Mapping) -> list[LayerRecord]:
    """Return the layers of the network that the table described by `about` was made for; none where it does not say."""
    try:
        return [LayerRecord.from_dict(entries) for entries in about.get('layers', [])]
    except ValueError as error:
        raise ValueError(f"{path.with_suffix('.json')}: {error}") from error


def checksum(array: np.ndarray) -> str:
    """Return the SHA-256 of the cells, little-endian in C order: that of tables of version 1."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder('<')).tobytes()).hexdigest()


def _with_advice(read, path, *arguments):
    try:
        return read(path, *arguments)
    except ValueError as error:
        raise ValueError(f'{error}; {REMAKE}') from error


def _check_cells(path, array, about) -> None:
    """Raise ValueError unless these are the cells that the description is of."""
    known = {'cells': digest_of_array, 'sha256': checksum}
    wrong = any(about.get(key, of(array)) != of(array) for key, of in known.items())
    if about.get('version') == 1 and 'hardware' in about:  # no digest: what `make_table` gave every such table
        total = array[:, -1, -1].sum().item()
        wrong |= about.get('combine', 'sum') != 'sum' or not isclose(about.get('reference', total), total, rel_tol=1e-9)
    if wrong or ('layers' in about and about['layers'] and len(about['layers']) != len(array)):
        raise ValueError(f'{path} is not the table that the .json beside it describes; {REMAKE} (--overwrite)')


def _to_json(about: Mapping) -> str:
    """Return indented JSON, with each layer on a line of its own."""
    head = json.dumps({key: value for key, value in about.items() if key != 'layers'}, indent=2)
    layers = ',\n    '.join(json.dumps(layer) for layer in about['layers'])
    return f'{head[:-2]},\n  "layers": [\n    {layers}\n  ]\n}}\n'


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


def check_replaceable(path: str | Path, table: CostTable, overwrite: bool) -> None:
    """Raise FileExistsError when `path` holds a table with other cells and may not be overwritten."""
    if overwrite or not is_file(path):
        return
    try:
        same = np.array_equal(load_table(path).table, table.table)
    except ValueError:
        same = False
    if not same:
        raise FileExistsError(f'{path} exists and holds another table: give --overwrite to replace it, or another '
                              '--output')


# ---- the user's own numbers

def read_csv_table(path: str | Path, layers: Sequence[LayerRecord], *, unit: str, name: str,
                   about: Mapping | None = None) -> CostTable:
    """Return the table of a CSV file with the columns layer, w_bit, a_bit, cost.

    `layer` is the name of a layer or its number from 0; `*` as w_bit or a_bit stands for all bits that have no line of
    their own (a machine that only knows int8 needs one line per layer). The reference is the cost at 8/8 bits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a column is missing, a line cannot be understood, a layer is unknown, a cell is given twice or not
            at all; the message names line, layer and bits.
    """
    cells = {}
    for number, row in read_csv(path, COLUMNS):
        where = f'{path}, line {number}'
        key = (_layer_index(row['layer'], layers, where), _bits(row['w_bit'], where), _bits(row['a_bit'], where))
        if key in cells:
            raise ValueError(f'{where}: {row["layer"]} at {row["w_bit"]}/{row["a_bit"]} bits is there twice')
        cells[key] = _cost(row['cost'], where)
    table = np.array([[[_find(cells, layer, w, a, layers, path) for a in range(1, MAX_BIT + 1)]
                       for w in range(1, MAX_BIT + 1)] for layer in range(len(layers))])
    return CostTable(
        table, reference=table[:, -1, -1].sum().item(), name=name, unit=unit,
        meaning=f'{unit} of one layer at w weight and a activation bits, as given in {Path(path).name}',
        layer_names=[layer.name for layer in layers],
        about={**(about or {}), 'source': Path(path).name, 'layers': [layer.to_dict() for layer in layers]},
    )


def _layer_index(text, layers, where) -> int:
    names = [layer.name for layer in layers]
    if text in names:
        return names.index(text)
    if WHOLE.fullmatch(text) and int(text) < len(layers):
        return int(text)
    raise ValueError(f'{where}: unknown layer {text!r:.60}, expected a name ({names[0]} ... {names[-1]}) or a number '
                     f'from 0 to {len(names) - 1}')


def _bits(text, where):
    if text == ANY:
        return ANY
    if WHOLE.fullmatch(text) and 1 <= int(text) <= MAX_BIT:
        return int(text)
    raise ValueError(f'{where}: bits {text!r:.60}, expected 1..{MAX_BIT} or {ANY}')


def _cost(text, where) -> float:
    value = float(text) if NUMBER.fullmatch(text) else float('nan')
    if not 0 <= value < float('inf'):
        raise ValueError(f'{where}: cost {text!r:.60}, expected a number that is not negative')
    return value


def _find(cells, layer, w_bit, a_bit, layers, path) -> float:
    for key in ((layer, w_bit, a_bit), (layer, w_bit, ANY), (layer, ANY, a_bit), (layer, ANY, ANY)):
        if key in cells:
            return cells[key]
    raise ValueError(f'{path} has no line for {layers[layer].name} at {w_bit} weight and {a_bit} activation bits '
                     f'(a * in a bits column stands for all others)')
