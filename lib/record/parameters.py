"""Parameters as the fields of a frozen dataclass: each with its meaning, unit and range, checked when it is made."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from typing import Any

from lib.record.units import parse_quantity
from lib.record.values import TEXT, Rule, is_number

MAX_COUNT = 2**40  # of anything that is counted
MAX_NUMBER = 1e18  # of any other parameter


def parameter(meaning: str, unit: str = '', *, default: Any = MISSING, minimum: float | None = None,
              maximum: float | None = None, choices: tuple[str, ...] | None = None) -> Any:
    """Return a dataclass field: what it means, its unit, and its range (default: above 0, to what no machine has)."""
    return field(default=default, kw_only=True, metadata={
        'meaning': meaning, 'unit': unit, 'minimum': minimum, 'maximum': maximum, 'choices': choices})


def without_default(cls: type, name: str) -> Any:
    """Return the field of a base class anew, for a subclass in which it has to be given."""
    (inherited,) = [f for f in fields(cls) if f.name == name]
    return field(kw_only=True, metadata=inherited.metadata)


@dataclass(frozen=True)
class Parameters:
    """Base of frozen dataclasses whose fields are made by `parameter` and have the types int, float or str.

    A default of None allows None, which stands for no value. Whole numbers may be given as floats (32.0).

    Raises:
        ValueError: a parameter out of its range (names it).
    """

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None is f.default:
                continue
            unit, meaning = f.metadata['unit'], f.metadata['meaning']
            rule = self.rule(f, value)
            where, words = self.owner(f.name), f'{rule.expected}{unit and f" {unit}"}{meaning and f" ({meaning})"}'
            Rule(rule.accepts, words).check(f'{where}: {f.name}' if where else f.name, value)
            if _kind(f) == 'int':
                object.__setattr__(self, f.name, int(value))
            elif _kind(f) == 'float' and abs(value) > 2**20:
                object.__setattr__(self, f.name, float(value))  # products of large ints could wrap around

    def owner(self, name: str) -> str:
        """Return whose parameter it is, for messages; empty where that is plain."""
        return ''

    def rule(self, f: Field, value: Any) -> Rule:
        """Return what is expected of a field."""
        minimum, maximum, choices = (f.metadata[key] for key in ('minimum', 'maximum', 'choices'))
        if choices:
            return Rule(lambda value: isinstance(value, str) and value in choices, ' or '.join(choices))
        if _kind(f) == 'str':
            return TEXT
        is_whole = _kind(f) == 'int'
        highest = maximum or (MAX_COUNT if is_whole else MAX_NUMBER)

        def accepts(value):
            above = is_number(value) and (value > 0 if minimum is None else value >= minimum)
            return above and value <= highest and (not is_whole or value == int(value))
        bounds = f' of at least {minimum}' if minimum is not None else ' above 0'
        if maximum and minimum is not None:
            bounds = f' from {minimum} to {maximum}'
        elif is_number(value) and value > highest:
            bounds += f' and at most {highest}'
        return Rule(accepts, f"a {'whole ' * is_whole}number{bounds}")

    def to_dict(self) -> dict:
        """Return all parameters as plain values, for JSON and YAML."""
        return asdict(self)


def parse_parameters(cls: type[Parameters], values: Mapping, owner: str) -> dict:
    """Return parameters by name as numbers, from numbers or texts with a unit such as `200 MHz`.

    Args:
        cls: whose parameters they are.
        values: some of them by name.
        owner: who has parameters, with its verb, for messages.

    Raises:
        ValueError: an unknown parameter, or a wrong unit; by name.
    """
    known = {f.name: f for f in fields(cls)}
    if unknown := sorted(str(key) for key in values if key not in known):
        raise ValueError(f"{owner} no parameter {', '.join(unknown)}, expected {', '.join(known)}")
    return {name: _parsed(known[name], value) for name, value in values.items()}


def _parsed(f, value):
    if _kind(f) == 'str' or value is None is f.default:
        return value
    try:
        return parse_quantity(value, f.metadata['unit'])
    except ValueError as error:
        raise ValueError(f'{f.name}: {error}') from error


def _kind(f) -> str:
    """Return 'int', 'float' or 'str'; a type may be written as a string, or with ` | None`."""
    name = f.type if isinstance(f.type, str) else getattr(f.type, '__name__', str(f.type))
    return name.partition(' ')[0]
