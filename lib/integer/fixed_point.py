"""Fixed-point numbers: real constants as integers of a given format, and the shift that ends every multiplication."""

import re
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDINGS = ('round', 'floor', 'trunc')


class FixedPoint(NamedTuple):
    """Format <T,I>: T bits with sign, I of them before the binary point; the integer v stands for v / 2^(T-I).

    Example: <8,3> has 5 fraction bits, steps of 1/32 from -4 to 3.96875; 1.3 becomes 42, which is 1.3125.
    """

    word: int
    integer: int

    @property
    def fraction(self) -> int:
        """Bits behind the binary point."""
        return self.word - self.integer

    def __str__(self) -> str:
        return f'<{self.word},{self.integer}>'


class Mantissa(NamedTuple):
    """Integers of `bits` bits with sign that share one binary point, placed so that the largest fills the word."""

    bits: int

    def __str__(self) -> str:
        return f'mantissa:{self.bits}'


class FixedPointOverflow(ValueError):
    """A real number lies outside its format; `value` is the one furthest outside."""

    def __init__(self, message: str, value: float):
        super().__init__(message)
        self.value = value


def parse_format(text: str) -> FixedPoint | Mantissa:
    """Return the format that `text` names: '32,10' or '<32,10>', or 'mantissa:16' ('mantissa' = 16 bits).

    Raises:
        ValueError: another text, a word beyond 2..48 bits, or no bit before or a negative number behind the point.
    """
    if found := re.fullmatch(r'<?(\d+),(\d+)>?', text.replace(' ', '')):
        word, integer = map(int, found.groups())
        if 2 <= word <= 48 and 1 <= integer <= word:
            return FixedPoint(word, integer)
    elif found := re.fullmatch(r'mantissa(?::(\d+))?', text.strip()):
        bits = int(found[1] or 16)
        if 2 <= bits <= 32:
            return Mantissa(bits)
    raise ValueError(f"number format is {text!r}; expected '<T,I>' with 1 <= I <= T and T in 2..48, such as '32,10', "
                     "or 'mantissa:BITS' with 2..32 bits")


def encode(values: Tensor, form: FixedPoint, *, what: str = 'value', saturate: bool = False) -> tuple[Tensor, int]:
    """Return (round(v 2^(T-I)) as int64, how many were clipped) for real numbers, in double precision, ties to even.

    Args:
        what: what the numbers are, for the message.
        saturate: clip what does not fit instead of raising.

    Raises:
        FixedPointOverflow: a number does not fit (a ValueError; NaN never fits).
    """
    codes = (values.double() * 2.0**form.fraction).round()
    top = 2.0 ** (form.word - 1)
    fits = (codes >= -top) & (codes <= top - 1)
    count = int((~fits).sum())
    if count and (not saturate or codes.isnan().any()):
        outside = values[~fits]
        worst = outside[outside.abs().argmax()].item()
        raise FixedPointOverflow(f'{what} {worst:g} does not fit {form}, which holds {-2.0 ** (form.integer - 1):g} to '
                                 f'{(top - 1) / 2.0**form.fraction:g}', worst)
    return codes.clamp_(-top, top - 1).long(), count


def encode_mantissa(values: Tensor, bits: int) -> tuple[Tensor, int]:
    """Return (int64 codes, fraction bits F), v ~ codes / 2^F, with the largest F that keeps |codes| < 2^(bits-1).

    F is negative where numbers are large. All zero: F = 0. Example: (0.3, -0.01) in 8 bits: (77, -3), F = 8.
    """
    values = values.double()
    largest = values.abs().amax().item()
    if largest == 0:
        return torch.zeros_like(values, dtype=torch.int64), 0
    fraction = bits - 1 - torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent.item()
    if round(largest * 2.0**fraction) >= 2 ** (bits - 1):  # the rounding of the largest carried
        fraction -= 1
    return (values * 2.0**fraction).round().long(), fraction


def shift_right(values: Tensor, shift: int, rounding: str = 'round') -> Tensor:
    """Return v / 2^shift as integers, exactly and without any floating-point number where `values` are integers.

    'round' is to nearest with ties up, floor((v + 2^(shift-1)) / 2^shift), 'floor' the bare arithmetic shift, 'trunc'
    towards zero. Example: -5 by 1 is -2, -3, -2. Integers held in floating point work alike, as long as v and
    v + 2^(shift-1) are exact in their type.

    Raises:
        ValueError: another rounding, or a shift beyond 0..62.
    """
    return shift_right_(values.clone(), shift, rounding)


def shift_right_(values: Tensor, shift: int, rounding: str = 'round') -> Tensor:
    """Do the same in place."""
    if rounding not in ROUNDINGS:
        raise ValueError(f'rounding is {rounding!r}; expected one of {", ".join(ROUNDINGS)}')
    if not 0 <= shift <= 62:
        raise ValueError(f'shift is {shift}; expected 0..62')
    if shift == 0:
        return values
    if rounding == 'round':
        values += 1 << (shift - 1)
    if values.is_floating_point():
        values *= 2.0**-shift
        return values.trunc_() if rounding == 'trunc' else values.floor_()
    if rounding == 'trunc':
        values += (values < 0).to(values.dtype) * ((1 << shift) - 1)
    return values.bitwise_right_shift_(shift)
