"""The strategies among which a search chooses, and the steps in which an agent chooses one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from lib.env.layer_choices import Asked, own_bits, texts_of, usual_bits
from lib.env.state import action_from_bits, layer_features
from lib.simulator import budget
from lib.simulator.cost import MAX_BIT, UNTOUCHED, CostTable
from lib.simulator.inventory import Inventory
from lib.simulator.layer import LayerRecord
from lib.simulator.layer_bits import LayerBits, bits_of_layers

FIRST_BITS = 4  # what the agent sees as the choice before the first one, where it chooses weight bits alone


@dataclass(frozen=True)
class Space:
    """Layers, the bits they may have, and the budgets that a strategy must hold.

    An agent chooses the bits of one layer after the other, for fixed layers too, which have their own all the same. It
    sees the eight features of the layer and its last choice: weight bits as they are, 4 at first. Of pairs it chooses
    the weight bits, then the activation bits; it sees the last choice divided by the most bits, 1 at first, and then 1
    for a choice of weight bits, 0 for one of activation bits.

    Attributes:
        constraints: the budgets, at least one; all on costs of the same layers. The first one's cost is the search's.
        usual: the bits of all layers that have none of their own.
        own: {layer index: bits} of those that have; a layer with one candidate is fixed.
        pairs: whether an entry is a pair [weight bits, activation bits] or a number of weight bits.
        wall: how bits above the budgets are lowered, 'rounds' as in HAQ or 'greedy', see `budget.fit`.
        records: `LayerRecord` of each layer; only agents ask for them.
        asked: what a user asked for beside a range of bits, {'candidates': texts, 'pins': texts}, for records.

    Raises:
        ValueError: the bits are out of range, a cost has other layers, or no strategy holds the budgets (the message
            has the lowest ratio that can be reached).
    """

    constraints: Sequence[budget.Constraint]
    usual: LayerBits = LayerBits.span(1, pairs=False)  # noqa: RUF009
    own: Mapping[int, LayerBits] = field(default_factory=dict)
    pairs: bool = False
    wall: str = 'rounds'
    records: Sequence[LayerRecord] = ()
    asked: Mapping = field(default_factory=dict)

    def __post_init__(self):
        for cost in (constraint.cost for constraint in self.constraints):
            if self.records and cost.num_layers != len(self.records):
                raise ValueError(f'{cost.name} has {cost.num_layers} layers, the network has {len(self.records)} '
                                 'quantized layers: make the table of this network with scripts/make_lookup_table.py')
        if not self.pairs and any(each.inputs != (UNTOUCHED,) for each in self.layer_bits):
            raise ValueError('activation bits are given for strategies of weight bits alone')
        budget.check_feasible(self.constraints, self.layer_bits)

    @classmethod
    def of(cls, inventory: Inventory, constraints: Sequence[budget.Constraint], *, min_bit: int = 1,
           max_bit: int = MAX_BIT, candidates: Asked = (), pins: Asked = (), **settings) -> 'Space':
        """Return that of a network; in the linear flow pairs, the first layer [8, -1] and the last one [8, 8].

        Args:
            inventory: its layers.
            constraints: the budgets.
            min_bit, max_bit: the range of the bits of a layer, 1..8.
            candidates, pins: bits in place of the range, for all layers or by name, see `layer_choices`.
            settings: `wall`.
        """
        pairs, ends = inventory.linear, inventory.ends if inventory.linear else ((), ())
        asked = {name: texts for name, given in (('candidates', candidates), ('pins', pins))
                 if (texts := texts_of(given))}
        span, usual = LayerBits.span(min_bit, max_bit, pairs=pairs), usual_bits(asked.get('candidates', ()), pairs)
        if usual and (min_bit, max_bit) != (1, MAX_BIT):
            raise ValueError(f'candidates {usual} take the place of the range min_bit {min_bit} .. max_bit {max_bit}: '
                             'give one of them')
        own = {**dict.fromkeys(ends[0], LayerBits.of([MAX_BIT, UNTOUCHED])),
               **dict.fromkeys(ends[1], LayerBits.of([MAX_BIT, MAX_BIT]))}
        own = own_bits(inventory.names, own, pairs=pairs, **asked)
        return cls(constraints, usual or span, own, pairs=pairs, records=inventory.layers, asked=asked, **settings)

    def with_constraints(self, constraints: Sequence[budget.Constraint]) -> 'Space':
        """Return the space of the same layers and bits under other budgets; errors as of a new one."""
        return replace(self, constraints=list(constraints))

    def at_least(self, bits: int) -> 'Space':
        """Return the space without fewer bits than these where a layer has others; fixed layers keep theirs."""
        own = {layer: each if each.fixed else each.at_least(bits) for layer, each in self.own.items()}
        return replace(self, usual=self.usual.at_least(bits), own=own)

    @property
    def cost(self) -> CostTable:
        """The cost of the first budget."""
        return self.constraints[0].cost

    @property
    def num_layers(self) -> int:
        """Number of entries of a strategy."""
        return self.cost.num_layers

    @cached_property
    def layer_bits(self) -> list[LayerBits]:
        """What each layer may have."""
        return bits_of_layers(self.num_layers, self.usual, self.own)

    @cached_property
    def free(self) -> list[int]:
        """The layers that are not fixed."""
        return [layer for layer, bits in enumerate(self.layer_bits) if not bits.fixed]

    @property
    def fixed(self) -> dict[int, list | int]:
        """{layer index: entry} of the others."""
        return {layer: bits.entries(pairs=self.pairs)[0] for layer, bits in enumerate(self.layer_bits) if bits.fixed}

    @property
    def range(self) -> tuple[int, int]:
        """The fewest and the most of the usual weight bits."""
        return self.usual.weights[0], self.usual.weights[-1]

    # ---- strategies

    def choices(self, layer: int) -> list:
        """Return the entries that a layer may have, fewest bits first."""
        return self.layer_bits[layer].entries(pairs=self.pairs)

    def uniform(self, bits: int) -> list:
        """Return the strategy of the same bits everywhere but in fixed layers; it may cost too much.

        Where a layer cannot have as many, it has the next fewer ones, or its fewest.
        """
        return self.of_bits([max((bit for bit in able if bit <= bits), default=able[0]) for able in self.steps])

    def random(self, rng: np.random.Generator) -> list:
        """Draw the bits of every free layer uniformly; the strategy may cost too much."""
        counts = np.array([len(able) for able in self.steps]).reshape(self.num_layers, -1).T
        alike = len(np.unique(counts)) == 1
        drawn = rng.integers(0, counts.flat[0] if alike else counts, (2 if alike else len(counts), self.num_layers))
        drawn = (drawn.T.ravel() if self.pairs else drawn[0]).tolist()
        return self.of_bits([able[number] for able, number in zip(self.steps, drawn, strict=True)])

    def of_bits(self, bits: Sequence[int]) -> list:
        """Return the strategy of so many bits, in the order in which they are chosen; fixed layers have their own."""
        entries = [list(pair) for pair in zip(bits[::2], bits[1::2], strict=True)] if self.pairs else list(bits)
        return [self.choices(layer)[0] if each.fixed else entry
                for layer, (each, entry) in enumerate(zip(self.layer_bits, entries, strict=True))]

    def within_budget(self, strategy: Sequence) -> list:
        """Return the strategy after the final action wall: lowered until every budget holds."""
        return budget.fit(strategy, self.constraints, self.layer_bits, wall=self.wall)

    def holds(self, strategy: Sequence) -> bool:
        """Return whether the strategy holds every budget."""
        return all(constraint.met_by(strategy) for constraint in self.constraints)

    # ---- the steps of an agent

    @cached_property
    def steps(self) -> list[tuple[int, ...]]:
        """The bits among which each choice is made; the usual ones for fixed layers, which do not heed it."""
        able = [self.usual if each.fixed else each for each in self.layer_bits]
        return [side for each in able for side in each.sides[:1 + self.pairs]]

    @cached_property
    def all_bits(self) -> list[int]:
        """All bits that anything may have that is not fixed, ascending."""
        return sorted({bit for side in self.steps for bit in side} - {UNTOUCHED})

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
        previous = (MAX_BIT if chosen[step - 1] == UNTOUCHED else chosen[step - 1]) / self.all_bits[-1] if step else 1.0
        return [*self.features[step // 2], previous, float(step % 2 == 0)]

    def trajectory(self, strategy: Sequence) -> list[tuple[list[float], float]]:
        """Return [(state, action)] of an agent that chooses `strategy` step by step."""
        chosen = [MAX_BIT if bits == UNTOUCHED else bits for entry in strategy
                  for bits in (entry if self.pairs else [entry])]
        return [(self.state(chosen[:step]), action_from_bits(bits, self.steps[step]))
                for step, bits in enumerate(chosen)]
