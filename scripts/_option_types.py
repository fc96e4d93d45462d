"""Types of options, actions of argparse, and how a value of Python is read as its option would read it."""

import argparse
import math
import re
import sys


class RepositoryPath(str):
    """A default path, relative to the repository; a path that the user types is relative to the current folder."""


class DefaultFloat(float):
    """A default number, told apart from the same number typed by the user."""


class BooleanOption(argparse.Action):
    """`--x`, `--no-x`, `--x True` and `--x False`."""

    WORDS = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}

    def __init__(self, option_strings, dest, default=False, **kwargs):
        options = [*option_strings, *(f'--no-{o[2:]}' for o in option_strings if o.startswith('--'))]
        super().__init__(options, dest, nargs='?', default=default, metavar='True|False', **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        value = self.WORDS.get(str(True if values is None else values).lower())
        if value is None:
            parser.error(f'{option_string} {values}: expected True or False')
        setattr(namespace, self.dest, value != option_string.startswith('--no-'))


class CollectedOption(argparse._AppendAction):
    """Collects what is given several times, in place of what a resumed run has."""

    def __call__(self, parser, namespace, values, option_string=None):
        given = getattr(namespace, self.dest)
        earlier = [] if given is None or given is parser.get_default(self.dest) else given
        setattr(namespace, self.dest, [*earlier, values])


def checked(action, value):
    """Returns a value of Python as its option would read it from the command line.

    Raises:
        ValueError, TypeError, argparse.ArgumentTypeError: the option does not take it.
    """
    if value is None and action.default is None:
        return None
    if isinstance(action, BooleanOption):
        if not isinstance(value, bool):
            raise ValueError('expected True or False')
        return value
    if action.nargs == '+' or isinstance(action, argparse._AppendAction):
        if not isinstance(value, (list, tuple)) or not (value or action.default == []):
            numbers = getattr(action.type, '__name__', '') in ('int', 'float', 'whole number', 'number')
            raise ValueError(f'expected a list of {"numbers" if numbers else "values"}')
        return [_checked_text(action, entry) for entry in value]
    if isinstance(value, (list, tuple)) and getattr(action.type, 'takes_list', False):
        return list(value)
    return _checked_text(action, value)


def _checked_text(action, value):
    value = action.type(str(value)) if action.type else value
    if action.choices and value not in action.choices:
        raise ValueError(f'expected one of {", ".join(map(str, action.choices))}')
    if not action.type and not isinstance(value, str):
        raise ValueError('expected a text')
    return value


# Bounds of what a command line may ask for, before anything is allocated.
MAX_COUNT = 2**31 - 1
MAX_CLASSES, MAX_SIDE, MAX_WIDTH, MAX_UNITS, MAX_SEED = 10**7, 2**14, 1000, 2**14, 2**63 - 1


def at_least(minimum, kind=int, maximum=None):
    """Returns an option type: a finite number of this kind from `minimum` to `maximum` (of whole ones: `MAX_COUNT`)."""
    maximum = maximum or {int: MAX_COUNT, float: sys.float_info.max}[kind]

    def number(text):
        value = kind(text)
        if not value >= minimum:
            raise argparse.ArgumentTypeError(f'{text} is too small, expected at least {minimum}')
        if value > maximum:
            raise argparse.ArgumentTypeError(f'{text:.40} is too large, expected at most {maximum}')
        return value
    number.__name__ = {int: 'whole number', float: 'number'}[kind]  # argparse names it where the text is no number
    return number


def positive(text):
    """Option type: a number above 0."""
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text} is out of range, expected a number above 0')
    return value


def ratio(text):
    """Option type: a number, or `uniform:K` for what K bits in every layer cost."""
    if re.fullmatch('uniform:[1-8]', text):
        return text
    value = float(text)
    if math.isinf(value):
        raise ValueError(f'{text} is no budget')
    return value


def input_shape(text):
    """Option type: `224`, or `1x28x28` for (channels, height, width)."""
    try:
        sizes = [int(size) for size in text.lower().split('x')]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or min(sizes) < 1 or max(sizes) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f'{text:.60}: expected a side such as 224, or channels x height x width such '
                                         f'as 1x28x28, at most {MAX_SIDE} each')
    return tuple(sizes) if len(sizes) == 3 else (3, sizes[0], sizes[0])


def fraction(text):
    """Option type: a number above 0 and at most 1."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f'{text} is out of range, expected a number above 0 and at most 1')
    return value


def share(text):
    """Option type: a number of at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f'{text} is out of range, expected a number of at least 0 and below 1')
    return value
