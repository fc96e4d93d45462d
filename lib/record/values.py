"""Rules for values that were read: type and range, with the words for a message."""

import math
import reprlib
from collections.abc import Callable, Container, Mapping
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What is accepted as a value, and the same in words."""

    accepts: Callable[[Any], bool]
    expected: str

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError, naming the value, unless it is accepted."""
        if not self.accepts(value):
            raise ValueError(f'{name} is {_shown(value)}, expected {self.expected}')


def _shown(value: Any) -> str:
    """Return a value in words: large ones by their kind and size."""
    if hasattr(value, 'shape'):
        return f'a tensor of shape {tuple(value.shape)}'
    if isinstance(value, Mapping) and value:
        return f'a dict of {len(value)} entries, {reprlib.repr(next(iter(value)))} first'
    return reprlib.repr(value)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Return whether a value is a finite number from `low` to `high`, no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high \
        and -math.inf < value < math.inf


def real(low: float = -math.inf, high: float = math.inf) -> Rule:
    """Return the rule of a number in a range."""
    bounds = '' if (low, high) == (-math.inf, math.inf) else f' from {low:g} to {high:g}'.replace(' to inf', ' on')
    return Rule(lambda value: is_number(value, low, high), f'a number{bounds}')


def above(low: float) -> Rule:
    """Return the rule of a number above a bound."""
    return Rule(lambda value: is_number(value) and value > low, f'a number above {low:g}')


def whole(low: int = 0, high: int = 2**53) -> Rule:
    """Return the rule of a whole number in a range."""
    return Rule(lambda value: type(value) is int and low <= value <= high,
                f'a whole number from {low} ' + ('on' if high == 2**53 else f'to {high}'))


def one_of(*kinds: type) -> Rule:
    """Return the rule of a value of one of some types."""
    return Rule(lambda value: isinstance(value, kinds), f"a {' or a '.join(kind.__name__ for kind in kinds)}")


def member_of(values: Container[str], words: str) -> Rule:
    """Return the rule of a text that is one of some."""
    return Rule(lambda value: isinstance(value, str) and value in values, words)


def dict_with(words: str, *keys: str) -> Rule:
    """Return the rule of a dict that has these keys, and perhaps others."""
    return Rule(lambda value: isinstance(value, dict) and set(keys) <= value.keys(), words)


def list_of(rule: Rule, length: int | None = None, words: str | None = None) -> Rule:
    """Return the rule of a list, of a length if one is given, whose entries all follow a rule."""
    return Rule(lambda value: isinstance(value, list) and length in (None, len(value))
                and all(map(rule.accepts, value)),
                words or f"a list of {'' if length is None else f'{length} times '}{rule.expected}")


def optional(rule: Rule) -> Rule:
    """Return the rule of a value that may be None."""
    return Rule(lambda value: value is None or rule.accepts(value), f'{rule.expected}, or nothing')


TEXT = Rule(lambda value: isinstance(value, str), 'a text')
BOOL = Rule(lambda value: isinstance(value, bool), 'true or false')
BITS = Rule(lambda value: type(value) is int and 1 <= value <= 8, 'a number of bits from 1 to 8')
RANGE = Rule(lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
             and value[0] < value[1], 'a range [lower, upper]')
PERCENT = real(0, 100)
STRATEGY = list_of(Rule(lambda entry: _is_bits(entry) or isinstance(entry, list) and len(entry) == 2
                        and all(map(_is_bits, entry)), 'bits, or pairs of bits'))


def _is_bits(value: Any) -> bool:
    return type(value) is int and -1 <= value <= 32


def check_values(values: Mapping, rules: Mapping[str, Rule], source: str) -> None:
    """Raise ValueError, naming `source` and the first value that breaks its rule."""
    for key, rule in rules.items():
        if key not in values and not rule.accepts(None):
            raise ValueError(f'{source} has no {key}, expected {rule.expected}')
        rule.check(f'{source}: {key}', values.get(key))
