"""The strategies among which a search chooses, and the steps in which an agent chooses one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from lib.env.state import action_from_bits, layer_features
from lib.simulator import budget
from lib.simulator.cost import MAX_BIT, UNTOUCHED, CostTable, check_bit_range
from lib.simulator.inventory import Inventory
from lib.simulator.layer import LayerRecord

FIRST_BITS = 4  # what the agent sees as the choice before the first one, where it chooses weight bits alone


@dataclass(frozen=True)
class Space:
    """Layers, the bits they may have, and the budgets that a strategy must hold.

    An agent chooses the bits of one layer after the other. It sees the eight features of the layer and its last choice:
    weight bits as they are, 4 at first. Of pairs it chooses the weight bits, then the activation bits; it sees the last
    choice divided by `max_bit`, 1 at first, and then 1 for a choice of weight bits, 0 for one of activation bits.

    Attributes:
        constraints: the budgets, at least one; all on costs of the same layers. The first one's cost is the search's.
        min_bit, max_bit: range of the bits of layers that are free, 1..8.
        fixed: {layer index: entry} of layers that are not.
        pairs: whether an entry is a pair [weight bits, activation bits] or a number of weight bits.
        wall: how bits above the budgets are lowered, 'rounds' as in HAQ or 'greedy', see `budget.fit`.
        records: `LayerRecord` of each layer; only agents ask for them.

    Raises:
        ValueError: the bits are out of range, a cost has other layers, or no strategy holds the budgets (the message
            has the lowest ratio that can be reached).
    """

    constraints: Sequence[budget.Constraint]
    min_bit: int = 1
    max_bit: int = MAX_BIT
    fixed: Mapping = field(default_factory=dict)
    pairs: bool = False
    wall: str = 'rounds'
    records: Sequence[LayerRecord] = ()

    def __post_init__(self):
        check_bit_range(self.min_bit, self.max_bit)
        for cost in (constraint.cost for constraint in self.constraints):
            if self.records and cost.num_layers != len(self.records):
                raise ValueError(f'{cost.name} has {cost.num_layers} layers, the network has {len(self.records)} '
                                 'quantized layers: make the table of this network with scripts/make_lookup_table.py')
        budget.check_feasible(self.constraints, self.min_bit, self.max_bit, self.fixed, pairs=self.pairs)

    @classmethod
    def of(cls, inventory: Inventory, constraints: Sequence[budget.Constraint], **settings) -> 'Space':
        """Return that of a network; in the linear flow pairs, the first layer [8, -1] and the last one [8, 8]."""
        first, last = inventory.ends
        fixed = {first: [MAX_BIT, UNTOUCHED], last: [MAX_BIT, MAX_BIT]} if inventory.linear else {}
        return cls(constraints, fixed=fixed, pairs=inventory.linear, records=inventory.layers, **settings)

    def with_constraints(self, constraints: Sequence[budget.Constraint]) -> 'Space':
        """Return the space of the same layers and bits under other budgets; errors as of a new one."""
        return replace(self, constraints=list(constraints))

    @property
    def cost(self) -> CostTable:
        """The cost of the first budget."""
        return self.constraints[0].cost

    @property
    def num_layers(self) -> int:
        """Number of entries of a strategy."""
        return self.cost.num_layers

    @property
    def free(self) -> list[int]:
        """The layers that are not fixed."""
        return [layer for layer in range(self.num_layers) if layer not in self.fixed]

    # ---- strategies

    def choices(self, layer: int) -> list:
        """Return the entries that a layer may have, fewest bits first."""
        if layer in self.fixed:
            return [self.fixed[layer]]
        lowest = [self.min_bit, self.min_bit] if self.pairs else self.min_bit
        return budget.choices_of(lowest, self.min_bit, self.max_bit)

    def uniform(self, bits: int) -> list:
        """Return the strategy of the same bits everywhere but in fixed layers; it may cost too much."""
        return self.of_bits([bits] * self.num_steps)

    def random(self, rng: np.random.Generator) -> list:
        """Draw the bits of every free layer uniformly; the strategy may cost too much."""
        drawn = rng.integers(self.min_bit, self.max_bit, (2, self.num_layers), endpoint=True)
        return self.of_bits((drawn.T.ravel() if self.pairs else drawn[0]).tolist())

    def of_bits(self, bits: Sequence[int]) -> list:
        """Return the strategy of so many bits, in the order in which they are chosen; fixed layers have their own."""
        entries = [list(pair) for pair in zip(bits[::2], bits[1::2], strict=True)] if self.pairs else list(bits)
        return self.cost.with_fixed(entries, self.fixed)

    def within_budget(self, strategy: Sequence) -> list:
        """Return the strategy after the final action wall: lowered until every budget holds."""
        return budget.fit(strategy, self.constraints, min_bit=self.min_bit, max_bit=self.max_bit, fixed=self.fixed,
                          wall=self.wall)

    def holds(self, strategy: Sequence) -> bool:
        """Return whether the strategy holds every budget."""
        return all(constraint.met_by(strategy) for constraint in self.constraints)

    # ---- the steps of an agent

    @property
    def num_steps(self) -> int:
        """Number of choices that make a strategy."""
        return self.num_layers * (1 + self.pairs)

    @property
    def num_states(self) -> int:
        """Numbers in a state."""
        return 9 + self.pairs

    @cached_property
    def features(self) -> np.ndarray:
        """The fixed part of the states, (layers, 8)."""
        return layer_features(self.records)

    def state(self, chosen: Sequence[int]) -> list[float]:
        """Return what an agent sees that chose so many bits; after the last choice what it saw before it."""
        step = min(len(chosen), self.num_steps - 1)
        if not self.pairs:
            return [*self.features[step], chosen[step - 1] if step else FIRST_BITS]
        previous = chosen[step - 1] / self.max_bit if step else 1.0
        return [*self.features[step // 2], previous, float(step % 2 == 0)]

    def trajectory(self, strategy: Sequence) -> list[tuple[list[float], float]]:
        """Return [(state, action)] of an agent that chooses `strategy` step by step."""
        chosen = [MAX_BIT if bits == UNTOUCHED else bits for entry in strategy
                  for bits in (entry if self.pairs else [entry])]
        return [(self.state(chosen[:step]), action_from_bits(bits, self.min_bit, self.max_bit))
                for step, bits in enumerate(chosen)]
