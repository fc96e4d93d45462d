"""The bits that each layer may have: what walls, integer programs, agents and checks of feasibility hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from lib.simulator.cost import MAX_BIT, UNTOUCHED, bits_of, check_bit_range


@dataclass(frozen=True)
class LayerBits:
    """The bits of one layer: any of its `weights` with any of its `inputs`; a fixed layer has one of each.

    Attributes:
        weights: 1..8, ascending.
        inputs: bits of its activations, 1..8, ascending; (-1,) leaves the input alone, as weights-only entries do.

    Raises:
        ValueError: there are none, one is given twice, or one is out of range.
    """

    weights: tuple[int, ...]
    inputs: tuple[int, ...] = (UNTOUCHED,)

    def __post_init__(self):
        for name, bits in (('weights', self.weights), ('inputs', self.inputs)):
            known = all(type(bit) is int and 1 <= bit <= MAX_BIT for bit in bits)
            if not bits or not known and (name == 'weights' or tuple(bits) != (UNTOUCHED,)):
                raise ValueError(f'bits of the {name} are {_listed(bits)}, expected some of 1..{MAX_BIT}'
                                 + (f', or {UNTOUCHED} alone, which leaves the input alone' * (name == 'inputs')))
            if len(set(bits)) < len(bits):
                raise ValueError(f'bits of the {name} are {_listed(bits)}: one is given twice')
            object.__setattr__(self, name, tuple(sorted(bits)))

    @classmethod
    def span(cls, min_bit: int, max_bit: int = MAX_BIT, *, pairs: bool = True) -> 'LayerBits':
        """Return all bits from `min_bit` to `max_bit`; only those of weights without `pairs`."""
        check_bit_range(min_bit, max_bit)
        bits = tuple(range(min_bit, max_bit + 1))
        return cls(bits, bits if pairs else (UNTOUCHED,))

    @classmethod
    def of(cls, entry: int | Sequence[int]) -> 'LayerBits':
        """Return those of a fixed layer: the entry of a strategy, weight bits or a pair."""
        w_bit, a_bit = bits_of(entry)
        return cls((w_bit,), (a_bit,))

    @property
    def sides(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Those of the weights, those of the input."""
        return self.weights, self.inputs

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.weights) == len(self.inputs) == 1

    def entries(self, *, pairs: bool = True) -> list:
        """Return the entries of a strategy that a layer may have, fewest bits first; weights alone without `pairs`."""
        return [[w, a] for w, a in product(self.weights, self.inputs)] if pairs else list(self.weights)

    def at_least(self, bits: int) -> 'LayerBits':
        """Return those of at least so many bits; the most of a side that has none."""
        return LayerBits(*(tuple(bit for bit in side if bit >= bits) or side[-1:] for side in self.sides))

    def __str__(self):
        same = self.inputs in (self.weights, (UNTOUCHED,))
        return _listed(self.weights) + ('' if same else f'/{_listed(self.inputs)}')


def _listed(bits) -> str:
    if len(bits) > 1 and tuple(bits) == tuple(range(bits[0], bits[-1] + 1)):
        return f'{bits[0]}..{bits[-1]}'
    return ','.join(map(str, bits)) or 'none'


def bits_of_layers(count: int, usual: LayerBits, own: Mapping[int, LayerBits] | None = None) -> list[LayerBits]:
    """Return those of so many layers: the `usual` ones, but where a layer, by its index, has its `own`."""
    own = dict(own or {})
    if wrong := [index for index in own if not 0 <= index < count]:
        raise ValueError(f'bits are given for layer {wrong[0]}, the strategy has layers 0..{count - 1}')
    return [own.get(index, usual) for index in range(count)]


def in_words(bits: Sequence[LayerBits]) -> str:
    """Return what layers may have, for messages: `2..8 bits with 2 layers fixed`."""
    free = list(dict.fromkeys(str(each) for each in bits if not each.fixed))
    fixed = sum(each.fixed for each in bits)
    alike = list(dict.fromkeys(str(each) for each in bits))
    if not free:
        return f'{alike[0]} bits' if len(alike) == 1 else 'bits that are all fixed'
    return f'{" or ".join(free[:4])}{" ..." * (len(free) > 4)} bits' + f' with {fixed} layers fixed' * bool(fixed)
