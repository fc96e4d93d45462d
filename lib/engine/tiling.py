"""How a matrix of whole numbers lies on arrays: tiles of rows and columns, groups on the diagonal, slices of cells."""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.engine.array import ArrayConfig
from lib.simulator.gemm import ceil_div


class Tile(NamedTuple):
    """What one array holds."""

    rows: slice  # of the inputs
    columns: slice  # of the outputs
    values: Tensor  # (rows, columns) of the matrix


def count_slices(values: Tensor, config: ArrayConfig) -> int:
    """Return the cells that the largest magnitude needs, c bits each; at least one."""
    bits = int(values.abs().max()).bit_length()
    return max(1, ceil_div(bits, config.cell_bits))


def slice_cells(values: Tensor, slices: int, config: ArrayConfig) -> Tensor:
    """Return the levels of the cells of a tile, (2 or 1, K, N * slices): lowest slice first, a weight's side by side.

    'balanced': positive values in the first, magnitudes of negative ones in the second. Example: -6 in slices of 2 bits
    has levels (0, 0) and (2, 1).
    """
    signs = [values, -values] if config.signed else [values]
    magnitudes = torch.stack([sign.clamp(min=0) for sign in signs])
    shifts = config.cell_bits * torch.arange(slices)
    return ((magnitudes.unsqueeze(-1) >> shifts) & (2**config.cell_bits - 1)).flatten(2)


def make_tiles(values: Tensor, slices: int, unit: int, config: ArrayConfig) -> list[list[Tile]]:
    """Return the tiles of (groups, K, N) independent matrices; those of the same inputs are in one list.

    The slices of a weight share the array whose shift-and-add joins them, `unit` rows (a kernel's inputs of one
    channel) the array whose input drivers hold them. Groups share neither rows nor columns: as many as fit lie on the
    diagonal of one array, with cells of level 0 around them.

    Raises:
        ValueError: an array cannot hold one weight, or one unit of rows.
    """
    groups, k, n = values.shape
    widest, highest = config.outputs // slices, config.rows // unit * unit
    if not widest:
        cells = 2 * slices if config.signed else slices
        raise ValueError(f'an array of {config.columns} columns cannot hold one weight: its {slices} slices of '
                         f'{config.cell_bits} bits take {cells} columns ({config.mapping}): use more columns or more '
                         'bits per cell')
    if not highest:
        raise ValueError(f'an array of {config.rows} rows cannot hold one kernel column, the {unit} weights of a '
                         'filter for one channel: use more rows')
    on_diagonal = min(highest // k, widest // n)
    if on_diagonal:
        return [[_diagonal(values, start, on_diagonal)] for start in range(0, groups, on_diagonal)]
    return [
        [Tile(slice(g * k + top, g * k + min(top + highest, k)), slice(g * n + left, g * n + min(left + widest, n)),
              values[g, top:top + highest, left:left + widest]) for left in range(0, n, widest)]
        for g in range(groups) for top in range(0, k, highest)
    ]


def _diagonal(values, start, count) -> Tile:
    groups, k, n = values.shape
    stop = min(start + count, groups)
    return Tile(slice(start * k, stop * k), slice(start * n, stop * n), torch.block_diag(*values[start:stop]))
