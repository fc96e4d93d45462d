"""What the layers that stay float cost on a machine: the same under every strategy, at the widest bits of a table."""

import logging
from collections.abc import Callable, Sequence

from lib.simulator.backends import BACKENDS
from lib.simulator.cost import CostTable
from lib.simulator.counting import widest
from lib.simulator.hardware import make_table, with_parameters
from lib.simulator.layer import LayerRecord

logger = logging.getLogger(__name__)


def float_cost(floats: Sequence[LayerRecord], table: CostTable) -> int | float | None:
    """Return what these layers cost at 8/8 bits on the machine of a table, None where that cannot be known.

    It is what the table says of exactly these layers; else what its machine makes of them, unless that was measured.
    """
    saved = table.about.get('floats')
    if saved and saved['layers'] == [layer.to_dict() for layer in floats]:
        return saved['cost']
    described = dict(table.about.get('hardware') or {})
    backend = BACKENDS.get(described.pop('backend', None))
    if backend is None or backend.backend == 'measured':
        return None
    return make_table(floats, with_parameters(backend, described), table.about['metric']).reference


def with_rest(table: CostTable, floats: Sequence[LayerRecord], cost: int | float) -> CostTable:
    """Return a table of a machine in which `floats`, the layers that stay float, have this cost beside every strategy.

    It is part of the reference, too. A table is saved without it: see `noted`.
    """
    return table.derive(
        reference=table.reference + cost if table.combine == 'sum' else max(table.reference, cost), rest=cost,
        rest_names=list(dict.fromkeys(layer.name for layer in floats)), meaning=table.meaning + widest(floats))


def price_floats(table: CostTable, floats: Sequence[LayerRecord], make: Callable[[], CostTable] | None = None
                 ) -> CostTable:
    """Return a table of a machine with the cost of the layers that stay float; say so where it cannot be known.

    `make` returns a table of these layers, for a machine that was measured; any other prices them by itself.
    """
    if not floats:
        return table
    cost = float_cost(floats, table)
    if cost is None and make:
        cost = make().reference
    if cost is None:
        logger.warning('%s has no price for what stays float (%s ...): its ratios are about the layers of the strategy '
                       'alone', table.name, floats[0].name)
        return table
    return with_rest(table, floats, cost)


def noted(table: CostTable, floats: Sequence[LayerRecord], cost: int | float) -> CostTable:
    """Return the same table with the cost of what stays float in its description, where `float_cost` finds it."""
    note = {'layers': [layer.to_dict() for layer in floats], 'cost': cost}
    return table.derive(about={**table.about, 'floats': note})
