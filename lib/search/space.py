"""The strategies among which a search chooses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lib.simulator import budget
from lib.simulator.feasible import choices_of


@dataclass(frozen=True)
class Space:
    """Layers, the bits they may have, and the budgets that a strategy must hold.

    Attributes:
        constraints: the budgets, at least one; all on costs of the same layers.
        min_bit, max_bit: range of the bits of layers that are free, 1..8.
        fixed: {layer index: entry} of layers that are not.
        pairs: whether an entry is a pair [weight bits, activation bits] or a number of weight bits.
        wall: how bits above the budgets are lowered, see `budget.fit`.
    """

    constraints: Sequence[budget.Constraint]
    min_bit: int = 1
    max_bit: int = 8
    fixed: Mapping = field(default_factory=dict)
    pairs: bool = False
    wall: str = 'rounds'

    @classmethod
    def of(cls, env) -> 'Space':
        """Return that of a `SearchEnv`."""
        return cls(env.constraints, env.min_bit, env.max_bit, env.fixed, env.pairs, env.wall)

    @property
    def num_layers(self) -> int:
        """Number of entries of a strategy."""
        return self.constraints[0].cost.num_layers

    @property
    def free(self) -> list[int]:
        """The layers that are not fixed."""
        return [layer for layer in range(self.num_layers) if layer not in self.fixed]

    def choices(self, layer: int) -> list:
        """Return the entries that a layer may have, fewest bits first."""
        if layer in self.fixed:
            return [self.fixed[layer]]
        return choices_of([self.min_bit, self.min_bit] if self.pairs else self.min_bit, self.min_bit, self.max_bit)

    def uniform(self, bits: int) -> list:
        """Return the strategy of the same bits everywhere but in fixed layers; it may cost too much."""
        return self._complete([bits] * self.num_layers, [bits] * self.num_layers)

    def random(self, rng: np.random.Generator) -> list:
        """Draw the bits of every free layer uniformly; the strategy may cost too much."""
        w_bits, a_bits = rng.integers(self.min_bit, self.max_bit, (2, self.num_layers), endpoint=True).tolist()
        return self._complete(w_bits, a_bits)

    def _complete(self, w_bits, a_bits):
        entries = [[w, a] for w, a in zip(w_bits, a_bits, strict=True)] if self.pairs else list(w_bits)
        return self.constraints[0].cost.with_fixed(entries, self.fixed)

    def fit(self, strategy: Sequence) -> list:
        """Return the strategy after the final action wall: lowered until every budget holds."""
        return budget.fit(strategy, self.constraints, min_bit=self.min_bit, max_bit=self.max_bit, fixed=self.fixed,
                          wall=self.wall)

    def holds(self, strategy: Sequence) -> bool:
        """Return whether the strategy holds every budget."""
        return all(constraint.met_by(strategy) for constraint in self.constraints)

    def check_feasible(self) -> None:
        """Raise ValueError, with the lowest reachable ratio, where no strategy holds the budgets."""
        budget.check_feasible(self.constraints, self.min_bit, self.max_bit, self.fixed, pairs=self.pairs)
