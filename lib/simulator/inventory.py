"""What a network consists of under a strategy: the layers that have an entry, and everything that stays float."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lib.simulator.layer import FLOWING, LayerRecord, ends

# What is counted, and who is first and last, see `ends`; searches begun under 1 did not price what stays float, under 2
# the order of the calls said who is first and last, and they go on so.
PRICING = FLOWING
LOW = 0.9  # below this coverage the layers that stay float are named


class Coverage(NamedTuple):
    """The shares of a network's weights and of its multiply-accumulates that a strategy has entries for."""

    weights: float
    macs: float

    @property
    def low(self) -> bool:
        """Whether so much stays float that ratios say little about what was searched."""
        return min(self) < LOW

    def to_dict(self) -> dict:
        """Return plain values, for JSON."""
        return {name: round(value, 6) for name, value in self._asdict().items()}

    def __str__(self):
        return f'{self.weights:.1%} of the weights and {self.macs:.1%} of the multiply-accumulates'


@dataclass(frozen=True)
class Inventory:
    """All of a network that costs something, as a strategy of one flow divides it.

    Attributes:
        layers: `LayerRecord`s of the layers with an entry, in module order.
        floats: those of what stays float: other layers, and products outside of layers.
        weights: stored weights of each entry. Layers that share a Parameter have a part each, so that it counts once.
        kept: those that are not zero, in a pruned network; else None.
        float_weights: number of weights that stay float.
        float_names: of the layers and Parameters that stay float, the largest first.
        file_rest: bytes in a packed file of all that is neither a quantized weight nor belongs to its quantizers.
        linear: whether an entry is a pair of the linear flow, or weight bits of the K-means flow.
        pricing: `PRICING`, or what it was when a search was begun.
        scales: numbers stored beside the codes of each entry, of the linear flow: scales of the weights and the ends of
            the input's range; None: 2, one of each.
    """

    layers: Sequence[LayerRecord]
    floats: Sequence[LayerRecord] = ()
    weights: Sequence[int] | None = None
    kept: Sequence[int] | None = None
    float_weights: int = 0
    float_names: Sequence[str] = ()
    file_rest: int = 0
    linear: bool = False
    pricing: int = PRICING
    scales: Sequence[int] | None = None

    def __post_init__(self):
        if self.weights is None:
            object.__setattr__(self, 'weights', [layer.num_weights for layer in self.layers])

    @property
    def names(self) -> list[str]:
        """Names of the layers with an entry."""
        return [layer.name for layer in self.layers]

    @property
    def counted(self) -> Sequence[int]:
        """Weights of each entry that cost bits: all, or those that are not pruned."""
        return self.weights if self.kept is None else self.kept

    @property
    def ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Indices of the first layers and of the last ones."""
        return ends(self.layers, self.pricing)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, of the whole network."""
        return sum(record.macs for record in (*self.layers, *self.floats))

    @property
    def coverage(self) -> Coverage:
        """The shares under the strategy; 1 of nothing."""
        weights, macs = sum(self.weights), sum(layer.macs for layer in self.layers)
        total = weights + self.float_weights
        return Coverage(weights / total if total else 1.0, macs / self.macs if self.macs else 1.0)
