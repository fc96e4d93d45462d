"""The strategy that is furthest inside several budgets, exactly: what decides whether they can be met at all."""

from collections.abc import Sequence
from itertools import product

import numpy as np

from lib.simulator.cost import MAX_BIT, UNTOUCHED


def choices_of(entry, min_bit: int, max_bit: int) -> list:
    """Return the entries that a free layer can have, in the form of `entry` (int, [w, -1] or [w, a])."""
    bits = range(min_bit, max_bit + 1)
    if isinstance(entry, int):
        return list(bits)
    return [[w, UNTOUCHED] for w in bits] if entry[1] == UNTOUCHED else [[w, a] for w, a in product(bits, bits)]


def cheapest(constraints: Sequence, choices: Sequence[Sequence]) -> list:
    """Return the strategy whose largest cost / limit over all constraints is least.

    Args:
        constraints: `Constraint`s on tables of the same layers.
        choices: the entries that each layer may have, fewest bits first.

    A choice that another one of the layer beats in every constraint is dropped first; one is left in each layer for a
    single constraint, and for tables that are monotone. What remains is a small integer program, solved exactly.
    """
    tables = [np.array([[_cell(c.cost, layer, entry) / c.scale for c in constraints] for entry in entries])
              for layer, entries in enumerate(choices)]  # each (choices, constraints)
    kept = [_not_dominated(cells) for cells in tables]
    if all(len(indices) == 1 for indices in kept):
        picks = [indices[0] for indices in kept]
    else:
        sums = [c.cost.combine == 'sum' for c in constraints]
        rests = [c.cost.rest / c.scale for c in constraints]
        chosen = _solve([cells[indices] for cells, indices in zip(tables, kept, strict=True)], sums, rests)
        picks = [indices[pick] for indices, pick in zip(kept, chosen, strict=True)]
    return [entries[pick] for entries, pick in zip(choices, picks, strict=True)]


def _cell(cost, layer, entry) -> float:
    w_bit, a_bit = (entry, UNTOUCHED) if isinstance(entry, int) else entry
    return cost.table[layer, w_bit - 1, (MAX_BIT if a_bit == UNTOUCHED else a_bit) - 1].item()


def _not_dominated(cells: np.ndarray) -> list[int]:
    """Return the rows of (choices, constraints) that no other beats or equals in every column; of equals the first."""
    kept = []
    for index in np.lexsort(cells.T[::-1]).tolist():  # a row can only be beaten by one before it
        if not any((cells[other] <= cells[index]).all() for other in kept):
            kept.append(index)
    return sorted(kept)


def _solve(cells: list[np.ndarray], sums: list[bool], rests: list[float]) -> list[int]:
    """Return the choice per layer that minimizes the largest column: its sum, or its maximum where `sums` is False.

    A column's `rests` belongs to its sum, or to its maximum, whatever is chosen.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = [len(rows) for rows in cells]
    owner = np.repeat(np.arange(len(cells)), sizes)
    one_per_layer = np.hstack([owner == np.arange(len(cells))[:, None], np.zeros((len(cells), 1))])
    below, bounds = [], []  # each row: cost - t <= minus the rest
    for column, is_sum in enumerate(sums):
        values = np.concatenate([rows[:, column] for rows in cells])
        rows = values[None] if is_sum else values * (owner == np.arange(len(cells))[:, None])
        below.append(np.hstack([rows, -np.ones((len(rows), 1))]))
        bounds += [-rests[column] if is_sum else 0.0] * len(rows)
    variables = len(owner)
    result = milp(
        c=np.append(np.zeros(variables), 1.0),
        constraints=[LinearConstraint(one_per_layer, 1, 1), LinearConstraint(np.vstack(below), -np.inf, bounds)],
        integrality=np.append(np.ones(variables), 0),
        bounds=Bounds(np.append(np.zeros(variables), max(rests)), np.append(np.ones(variables), np.inf)),
        options={'mip_rel_gap': 0},
    )
    picked = result.x[:-1]
    return [int(np.argmax(picked[owner == layer])) for layer in range(len(cells))]
