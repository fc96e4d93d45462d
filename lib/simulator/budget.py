"""The final action wall: lower the bits of a strategy until its cost holds the budget."""

import itertools
import math
from collections.abc import Mapping, Sequence
from numbers import Integral

from lib.simulator.cost import MAX_BIT, UNTOUCHED, CostTable, check_bit_range, exact_sum


def fit(
    strategy: Sequence,
    cost: CostTable,
    limit: float,
    *,
    min_bit: int,
    max_bit: int = MAX_BIT,
    fixed: Mapping | None = None,
) -> list:
    """Return a new strategy that costs at most `limit`, or the cheapest there is when none does.

    Goes round the layers from the last to the first and lowers each that is above `min_bit` by one bit, of a pair first
    the activation bits, then the weight bits, until the budget holds; it is checked after every single lowering.
    Activation bits of -1 stay. A table need not be monotone: where the walk ends above the limit, the cheapest bits of
    every layer replace its result if they cost less.

    Args:
        strategy: one int or pair per layer; unchanged.
        limit: highest allowed cost, in the unit of `cost`.
        min_bit, max_bit: range of the bits of all layers that are not fixed.
        fixed: {layer index: entry} of layers that get this entry and are never lowered.

    Raises:
        ValueError: an entry outside min_bit..max_bit, or one that `cost` refuses; `limit` not a number.
    """
    check_bit_range(min_bit, max_bit)
    if math.isnan(limit):
        raise ValueError('the budget is not a number (nan): check the ratio and the reference cost')
    fixed = dict(fixed or {})
    strategy = cost.with_fixed(strategy, fixed)
    bits = [list(pair) for pair in cost.bits(strategy)]
    free = [index for index in range(len(bits)) if index not in fixed]
    for index in free:
        if not all(min_bit <= bit <= max_bit for bit in bits[index] if bit != UNTOUCHED):
            raise ValueError(f'{cost.label(index)} has {strategy[index]!r}, expected bits in {min_bit}..{max_bit}')

    _walk(bits, free, cost, limit, min_bit)
    fitted = [pair if _is_pair(entry) else pair[0] for entry, pair in zip(strategy, bits, strict=True)]
    if (reached := cost.cost(fitted)) > limit:
        cheapest = _cheapest(fitted, free, cost, min_bit, max_bit)
        if cost.cost(cheapest) < reached:
            return cheapest
    return fitted


def check_feasible(
    cost: CostTable,
    ratio: float,
    min_bit: int,
    max_bit: int = MAX_BIT,
    fixed: Mapping | None = None,
    *,
    pairs: bool = True,
) -> None:
    """Raise ValueError, with the lowest reachable ratio, when no strategy costs `ratio * cost.reference` or less."""
    lowest, _ = cost.minimum(min_bit, max_bit, fixed, pairs=pairs)
    if ratio > 0 and lowest <= ratio * cost.reference:
        return
    possible = math.ceil(lowest / cost.reference * 1e5) / 1e5
    if possible * cost.reference < lowest:  # the division rounded down
        possible += 1e-5
    pinned = f' with {len(fixed)} layers fixed' if fixed else ''
    raise ValueError(
        f'--preserve_ratio {ratio:g} cannot be met: the cheapest strategy of {min_bit}..{max_bit} bits{pinned} costs '
        f'{lowest} of {cost.reference} {cost.unit} ({cost.name}), the lowest possible is {possible:.5f}'
    )


def _walk(bits: list[list[int]], free: list[int], cost: CostTable, limit: float, min_bit: int) -> None:
    """Lower `bits`, a [weight bits, activation bits] per layer, in place until they hold the limit or none is left."""
    table = cost.table.tolist()  # plain numbers: ten times faster to index than an array

    def price(index):
        w_bit, a_bit = bits[index]
        return table[index][w_bit - 1][(MAX_BIT if a_bit == UNTOUCHED else a_bit) - 1]

    prices = [price(index) for index in range(len(bits))]
    total = exact_sum(prices)
    lowered = True
    while lowered and total > limit:
        lowered = False
        for index, which in itertools.product(reversed(free), (1, 0)):  # the activation bits first
            if bits[index][which] <= min_bit:  # so is -1, the input left alone and the weights-only entry
                continue
            bits[index][which] -= 1
            lowered = True
            total += price(index) - prices[index]
            prices[index] = price(index)
            if total <= limit:
                total = exact_sum(prices)  # a running sum of floats drifts
                if total <= limit:
                    return


def _cheapest(strategy: list, free: list[int], cost: CostTable, min_bit: int, max_bit: int) -> list:
    """Return `strategy` with the cheapest entry in every free layer; entries keep their form, and an a_bit of -1."""
    _, weights_only = cost.minimum(min_bit, max_bit, pairs=False)
    _, pairs = cost.minimum(min_bit, max_bit)
    cheapest = list(strategy)
    for index in free:
        if not _is_pair(strategy[index]):
            cheapest[index] = weights_only[index]
        elif strategy[index][1] == UNTOUCHED:
            cheapest[index] = [weights_only[index], UNTOUCHED]
        else:
            cheapest[index] = pairs[index]
    return cheapest


def _is_pair(entry) -> bool:
    return not isinstance(entry, Integral)
