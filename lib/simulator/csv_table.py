"""A cost table from the user's own numbers: a CSV file with one line per layer, weight bits and activation bits."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib.record.files import read_csv
from lib.simulator.cost import MAX_BIT, CostTable
from lib.simulator.layer import LayerRecord

COLUMNS = ('layer', 'w_bit', 'a_bit', 'cost')
NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?')  # no 1_0, no digits of other scripts
WHOLE = re.compile('[0-9]{1,9}')
ANY = '*'  # in a bits column: the line is meant for all bits that have no line of their own


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
