"""Budgets: the final action wall, which lowers a strategy's bits until it holds them, and whether any strategy does."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from numbers import Integral

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from lib.simulator.cost import UNTOUCHED, CostTable, bits_of, column
from lib.simulator.layer_bits import LayerBits, in_words

WALLS = ('rounds', 'greedy')


@dataclass(frozen=True)
class Constraint:
    """A hard budget: a strategy must not cost more than `limit`, in the unit of `cost`."""

    cost: CostTable
    limit: float
    option: str = '--preserve_ratio'  # as the user gave it, for messages

    @classmethod
    def of_ratio(cls, cost: CostTable, ratio: float, option: str = '--preserve_ratio') -> 'Constraint':
        """Return the budget of a fraction of the reference cost."""
        return cls(cost, ratio * cost.reference, option)

    @property
    def ratio(self) -> float:
        """The limit relative to the reference of the cost."""
        return self.limit / self.cost.reference

    @property
    def scale(self) -> float:
        """What an excess is measured by: the limit, or the reference where the limit is not above 0."""
        return self.limit if self.limit > 0 else self.cost.reference

    @property
    def room(self) -> float:
        """What the layers of a strategy may use of the limit: what stays float has its part already."""
        return self.limit - (self.cost.rest if self.cost.combine == 'sum' else 0)

    def met_by(self, strategy: Sequence) -> bool:
        """Whether the strategy holds the budget."""
        return self.cost.cost(strategy) <= self.limit


def fit(strategy: Sequence, constraints: Sequence[Constraint], layer_bits: Sequence[LayerBits], *,
        wall: str = 'rounds') -> list:
    """Return a new strategy that holds every constraint, or the one closest to it when none does.

    `rounds`, HAQ's wall, goes round the layers from the last to the first and lowers each that is above its fewest bits
    to its next fewer ones, of a pair first the activation bits, then the weight bits, until every budget holds; they
    are checked after every single lowering. Bits that no exceeded budget depends on are left alone (activation bits
    when only the model size is too large), and so are activation bits of -1. `greedy` lowers, each time, the weight or
    activation bits of one layer to where most is saved per bit, relative to the limits that are exceeded; where nothing
    saves, it goes on in rounds.

    A table need not be monotone: where the wall ends above a limit, the strategy that is furthest inside the budgets
    replaces its result, if it is better.

    Args:
        strategy: one int or pair per layer; unchanged.
        constraints: at least one; all on tables of the same layers.
        layer_bits: what each layer may have; one that is fixed gets it, whatever the strategy says.
        wall: 'rounds' or 'greedy'.

    Raises:
        ValueError: an entry outside its layer's bits, or one that a cost refuses; an unknown wall.
    """
    if wall not in WALLS:
        raise ValueError(f"unknown wall {wall!r}, expected {' or '.join(WALLS)}")
    if any(math.isnan(constraint.limit) for constraint in constraints):
        raise ValueError('a budget is not a number (nan): check the ratio and the reference cost')
    bits = _checked_bits(strategy, constraints[0].cost, layer_bits)
    sides = [(each.weights, (UNTOUCHED,) if a_bit == UNTOUCHED else each.inputs)
             for each, (_, a_bit) in zip(layer_bits, bits, strict=True)]

    meters = [_Meter(constraint, bits) for constraint in constraints]
    if wall == 'greedy':
        _greedy(bits, sides, meters)
    _walk(bits, sides, meters)
    alone = [isinstance(entry, Integral) for entry in strategy]
    fitted = [pair[0] if is_alone else pair for is_alone, pair in zip(alone, bits, strict=True)]
    if all(constraint.met_by(fitted) for constraint in constraints):
        return fitted
    choices = [LayerBits(*each).entries(pairs=not is_alone) for each, is_alone in zip(sides, alone, strict=True)]
    return min(fitted, cheapest(constraints, choices), key=lambda candidate: excess(candidate, constraints))


def _checked_bits(strategy, cost, layer_bits) -> list[list[int]]:
    """Return the strategy as [weight bits, activation bits] of each layer, those of fixed layers in their places."""
    bits = [list(pair) for pair in cost.bits(strategy)]
    if len(layer_bits) != len(bits):
        raise ValueError(f'bits are given for {len(layer_bits)} layers, the strategy has {len(bits)}')
    for index, each in enumerate(layer_bits):
        if each.fixed:
            bits[index] = [each.weights[0], each.inputs[0]]
        elif bits[index][0] not in each.weights or bits[index][1] not in (*each.inputs, UNTOUCHED):
            raise ValueError(f'{cost.label(index)} has {strategy[index]!r}, expected bits in {each}')
    return bits


def excess(strategy: Sequence, constraints: Sequence[Constraint]) -> float:
    """Return by how much a strategy exceeds the budgets: the largest (cost - limit) / limit, at most 0 if all hold."""
    return max((c.cost.cost(strategy) - c.limit) / c.scale for c in constraints)


def check_feasible(constraints: Sequence[Constraint], layer_bits: Sequence[LayerBits]) -> None:
    """Raise ValueError, with the lowest reachable ratio, when no strategy of these bits holds all constraints."""
    choices, bits = [each.entries() for each in layer_bits], in_words(layer_bits)
    for constraint in constraints:
        _check_alone(constraint, choices, bits)
    best = cheapest(constraints, choices)
    if all(constraint.met_by(best) for constraint in constraints):
        return
    given = ', '.join(f'{c.option} {c.ratio:g}' for c in constraints)
    ratios = ', '.join(f'{c.cost.name} {_round_up(c.cost.cost(best), c.cost.reference):.5f}' for c in constraints)
    raise ValueError(f'{given} cannot be met together, though each of them can: the strategy that comes closest in '
                     f'{bits} has {ratios}')


def _check_alone(constraint, choices, bits) -> None:
    cost = constraint.cost
    lowest, _ = cost.minimum(choices)
    if constraint.limit > 0 and lowest <= constraint.limit:
        return
    if cost.rest > max(constraint.limit, 0):
        raise ValueError(
            f'{constraint.option} {constraint.ratio:g} cannot be met: what stays float costs {cost.rest} of '
            f'{cost.reference} {cost.unit} ({cost.name}) alone, {_round_up(cost.rest, cost.reference):.5f}, whatever '
            f'the strategy: {", ".join(cost.rest_names[:6])}{" ..." * (len(cost.rest_names) > 6)}; the lowest possible '
            f'is {_round_up(lowest, cost.reference):.5f}')
    raise ValueError(
        f'{constraint.option} {constraint.ratio:g} cannot be met: the cheapest strategy of {bits} costs {lowest} of '
        f'{cost.reference} {cost.unit} ({cost.name}), the lowest possible is {_round_up(lowest, cost.reference):.5f}'
    )


def _round_up(cost, reference) -> float:
    """Return cost / reference to five digits, so that this much of the reference is enough."""
    possible = math.ceil(cost / reference * 1e5) / 1e5
    return possible + 1e-5 if possible * reference < cost else possible  # the division rounded down


class _Meter:
    """The running cost of a strategy under one constraint."""

    def __init__(self, constraint: Constraint, bits: list[list[int]]):
        table = constraint.cost.table
        self.cost, self.limit, self.scale = constraint.cost, constraint.limit, constraint.scale
        self.table = table.tolist()  # plain numbers: ten times faster to index than an array
        self.depends = (bool((table != table[:, :1]).any()), bool((table != table[:, :, :1]).any()))  # on w, on a
        self.prices = [self.price(index, pair) for index, pair in enumerate(bits)]
        self.total = self.cost.total(self.prices)

    def price(self, index: int, pair: list[int]) -> int | float:
        return self.table[index][pair[0] - 1][column(pair[1])]

    def update(self, index: int, pair: list[int]) -> None:
        price = self.price(index, pair)
        self.total += price - self.prices[index]
        self.prices[index] = price
        if self.cost.combine != 'sum' or self.total <= self.limit:
            self.total = self.cost.total(self.prices)  # a running sum of floats drifts

    @property
    def exceeded(self) -> bool:
        return self.total > self.limit


def _walk(bits: list[list[int]], sides: list[tuple], meters: list[_Meter]) -> None:
    """Lower `bits`, [weight bits, activation bits] per layer, in place until they hold the limits or none is left."""
    lowered = True
    while lowered and (exceeded := [meter for meter in meters if meter.exceeded]):
        lowered = False
        for index, which in product(reversed(range(len(bits))), (1, 0)):  # the activation bits first
            side, bit = sides[index][which], bits[index][which]
            if bit == side[0] or not any(meter.depends[which] for meter in exceeded):
                continue
            bits[index][which] = side[side.index(bit) - 1]
            lowered = True
            for meter in meters:
                meter.update(index, bits[index])
            if not (exceeded := [meter for meter in meters if meter.exceeded]):
                return


def _greedy(bits: list[list[int]], sides: list[tuple], meters: list[_Meter]) -> None:
    """Lower `bits` in place, always where most is saved per bit, until they hold the limits or nothing saves."""
    while exceeded := [meter for meter in meters if meter.exceeded]:
        best, most = None, 0.0
        for index, which in product(reversed(range(len(bits))), (1, 0)):
            pair, side = bits[index], sides[index][which]
            for bit in reversed(side[:side.index(pair[which])]):
                lower = [pair[0], bit] if which else [bit, pair[1]]
                saved = sum((meter.prices[index] - meter.price(index, lower)) / meter.scale for meter in exceeded)
                if saved / (pair[which] - bit) > most:
                    best, most = (index, lower), saved / (pair[which] - bit)
        if best is None:
            return
        index, bits[index] = best
        for meter in meters:
            meter.update(index, bits[index])


# ---- the strategy that is furthest inside several budgets, exactly: it decides whether they can be met at all

def cheapest(constraints: Sequence[Constraint], choices: Sequence[Sequence]) -> list:
    """Return the strategy whose largest cost / limit over all constraints is least.

    Args:
        constraints: on tables of the same layers.
        choices: the entries that each layer may have, fewest bits first.

    A choice that another one of the layer beats in every constraint is dropped first; one is left in each layer for a
    single constraint, and for tables that are monotone. What remains is a small integer program, solved exactly.
    """
    tables = []  # of each layer, (choices, constraints)
    for layer, entries in enumerate(choices):
        w_bits, a_bits = np.array([bits_of(entry) for entry in entries]).T
        tables.append(np.stack([c.cost.table[layer, w_bits - 1, column(a_bits)] / c.scale for c in constraints], 1))
    kept = [undominated(cells) for cells in tables]
    if all(len(indices) == 1 for indices in kept):
        picks = [indices[0] for indices in kept]
    else:
        sums = [c.cost.combine == 'sum' for c in constraints]
        rests = [c.cost.rest / c.scale for c in constraints]
        chosen = _solve([cells[indices] for cells, indices in zip(tables, kept, strict=True)], sums, rests)
        picks = [indices[pick] for indices, pick in zip(kept, chosen, strict=True)]
    return [entries[pick] for entries, pick in zip(choices, picks, strict=True)]


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
    for number, is_sum in enumerate(sums):
        values = np.concatenate([layer[:, number] for layer in cells])
        each = values[None] if is_sum else values * (owner == np.arange(len(cells))[:, None])
        rows.append(each)
        upper += [-rests[number] if is_sum else 0.0] * len(each)
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
    with _silent():
        result = milp(
            c=objective,
            constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(rows, -np.inf, upper)],
            integrality=np.append(np.ones(len(owner)), 0 * more),
            bounds=Bounds(np.append(np.zeros(len(owner)), lowest * more),
                          np.append(np.ones(len(owner)), np.inf * more)),
            options={'mip_rel_gap': 0},
        )
    if result.x is None:
        raise RuntimeError(result.message)
    picked = result.x[:len(owner)]
    return [int(np.argmax(picked[owner == layer])) for layer in range(owner[-1] + 1)]


@contextmanager
def _silent() -> Iterator[None]:
    """Let the process print nothing: HiGHS leaves lines of its own debugging on the standard output now and then."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)
