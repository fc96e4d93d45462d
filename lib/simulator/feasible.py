"""The strategy that is furthest inside several budgets, exactly: what decides whether they can be met at all."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

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
    kept = [undominated(cells) for cells in tables]
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


def undominated(cells: np.ndarray) -> np.ndarray:
    """Return the rows of (choices, columns) that no other beats or equals in every column; of equals the first."""
    as_good = (cells[None] <= cells[:, None]).all(2)  # [i, j]: j is as good as i
    before = np.tri(len(cells), k=-1, dtype=bool)  # [i, j]: j comes before i
    return np.flatnonzero(~(as_good & (~as_good.T | before)).any(1))


def _solve(cells: list[np.ndarray], sums: list[bool], rests: list[float]) -> list[int]:
    """Return the choice per layer that minimizes the largest column: its sum, or its maximum where `sums` is False.

    A column's `rests` belongs to its sum, or to its maximum, whatever is chosen.
    """
    owner = np.repeat(np.arange(len(cells)), [len(rows) for rows in cells])
    rows, upper = [], []
    for column, is_sum in enumerate(sums):
        values = np.concatenate([layer[:, column] for layer in cells])
        each = values[None] if is_sum else values * (owner == np.arange(len(cells))[:, None])
        rows.append(each)
        upper += [-rests[column] if is_sum else 0.0] * len(each)
    return pick_one_each(owner, np.vstack(rows), upper, lowest=max(rests))


def pick_one_each(owner: np.ndarray, rows: np.ndarray, upper: Sequence[float], objective: np.ndarray | None = None, *,
                  lowest: float = 0.0) -> list[int]:
    """Pick a choice of every layer: the integer program of all that chooses bits, solved exactly by HiGHS.

    With x in {0, 1} for each choice, it minimizes `objective @ x` with `rows @ x <= upper`; without an objective the
    largest entry of `rows @ x - upper`, as far as it is above `lowest`.

    Args:
        owner: (choices,), the layer of each choice, ascending from 0.
        rows: (rows, choices).
        upper: (rows,).

    Returns:
        For each layer the number of its choice, among its own.

    Raises:
        RuntimeError: there is no solution, or none was found.
    """
    one_each = owner == np.arange(owner[-1] + 1)[:, None]
    largest = objective is None  # one variable more, which is as large as every row
    if largest:
        objective = np.append(np.zeros(len(owner)), 1.0)
        one_each = np.hstack([one_each, np.zeros((len(one_each), 1))])
        rows = np.hstack([rows, -np.ones((len(rows), 1))])
    more = np.ones(int(largest))
    result = milp(
        c=objective,
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(rows, -np.inf, upper)],
        integrality=np.append(np.ones(len(owner)), 0 * more),
        bounds=Bounds(np.append(np.zeros(len(owner)), lowest * more), np.append(np.ones(len(owner)), np.inf * more)),
        options={'mip_rel_gap': 0},
    )
    if result.x is None:
        raise RuntimeError(result.message)
    picked = result.x[:len(owner)]
    return [int(np.argmax(picked[owner == layer])) for layer in range(owner[-1] + 1)]
