"""Spaces of strategies between two numbers of bits, for tests."""

from lib.env.space import Space
from lib.simulator.layer_bits import LayerBits, bits_of_layers


def fixed_bits(fixed):
    return {layer: LayerBits.of(entry) for layer, entry in (fixed or {}).items()}


def ranged(count, min_bit=1, max_bit=8, fixed=None, *, pairs=True):
    """Bits of so many layers: a range, but for the fixed entries {layer: entry}."""
    return bits_of_layers(count, LayerBits.span(min_bit, max_bit, pairs=pairs), fixed_bits(fixed))


def ranged_space(constraints, *, min_bit=1, max_bit=8, fixed=None, pairs=False, **settings):
    """The `Space` of these."""
    return Space(constraints, LayerBits.span(min_bit, max_bit, pairs=pairs), fixed_bits(fixed), pairs=pairs, **settings)


def drawn(rng, count, *, pairs, most=4):
    """Random candidates of so many layers, some of them fixed."""
    def side():
        return tuple(map(int, rng.choice(range(1, 9), rng.integers(1, most + 1), replace=False)))
    return [LayerBits(side(), (side() if rng.random() < 0.85 else (-1,)) if pairs else (-1,)) for _ in range(count)]
