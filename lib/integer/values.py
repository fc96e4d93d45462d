"""What a tensor is while a network is lowered: integers that exist, and the real numbers that they stand for."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lib.integer.fixed_point import FixedPoint, FixedPointOverflow, Mantissa, encode, encode_mantissa, shift_right

logger = logging.getLogger(__name__)

Bound = Tensor | int | None
INT64 = 2.0**63
MAX_SHIFT = 60
MIN_SHIFT = 12  # so that an offset keeps so many bits behind the point
WIDE_MANTISSA = 24
OFFSET_FRACTION = 16
MIN_WIDE_MANTISSA = 10
MOVES = ('max_pool', 'flatten', 'take', 'pad')  # operations whose integers are some of those that go in, or 0


@dataclass
class Operation:
    """One step of an integer program: kernel `kind` on the registers `inputs`, into the register `output`.

    `bound` is the largest magnitude that anything inside it can take. `note` says what the numbers mean, for readers.
    A product of weights has `operand_bits`, those of the weights and of the input.
    """

    kind: str
    name: str
    inputs: list[int]
    output: int
    options: dict
    arrays: dict[str, Tensor]
    bound: int
    note: str = ''
    operand_bits: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Register:
    """An integer tensor of `shape` per image; channel c lies in low[c] .. high[c] (int64)."""

    index: int
    shape: tuple[int, ...]
    low: Tensor
    high: Tensor

    @property
    def magnitude(self) -> Tensor:
        """The largest absolute integer of each channel."""
        return torch.maximum(self.low.abs(), self.high.abs())


@dataclass(frozen=True, eq=False)
class Term:
    """The real numbers register * multiplier[channel].

    Of the multiplier (double), a factor 2^-exponent comes from fixed-point images, wide tensors or float weights.
    """

    register: Register
    multiplier: Tensor
    exponent: int = 0


@dataclass(eq=False)
class Value:
    """The real tensor clip(sum of terms + offset[channel], low, high), not yet computed; `wide` once it was."""

    shape: tuple[int, ...]
    terms: list[Term]
    offset: Tensor
    low: float = -math.inf
    high: float = math.inf
    wide: 'Value | None' = field(default=None, repr=False)

    @property
    def clipped(self) -> bool:
        """Whether a ReLU bounds it."""
        return self.low > -math.inf or self.high < math.inf

    def codes(self) -> Term | None:
        """Return the only term if it alone, with one scale for all channels, is the whole value."""
        term = self.terms[0]
        alone = len(self.terms) == 1 and not self.clipped and not self.offset.any()
        scale = term.multiplier[0]  # of a negative one, larger codes would be smaller values
        return term if alone and scale >= 0 and (term.multiplier == scale).all() else None

    def affine(self, factor: float, shift: float) -> 'Value':
        """Return factor * value + shift."""
        terms = [Term(term.register, term.multiplier * factor, term.exponent) for term in self.terms]
        ends = sorted(end * factor + shift for end in (self.low, self.high)) if factor else (shift, shift)
        return Value(self.shape, terms, self.offset * factor + shift, *ends)

    def largest(self) -> float:
        """Return the largest magnitude that the bounds of the registers allow."""
        low = self.offset + sum(torch.minimum(t.multiplier * t.register.low, t.multiplier * t.register.high)
                                for t in self.terms)
        high = self.offset + sum(torch.maximum(t.multiplier * t.register.low, t.multiplier * t.register.high)
                                 for t in self.terms)
        return torch.stack([low, high]).clamp(self.low, self.high).abs().amax().item()


def value_of(register: Register, scale: float, exponent: int = 0) -> Value:
    """Return the value register * scale."""
    channels = register.shape[0]
    return Value(register.shape, [Term(register, torch.full((channels,), scale, dtype=torch.float64), exponent)],
                 torch.zeros(channels, dtype=torch.float64))


class Program:
    """The operations so far; adding one proves that nothing in it leaves int64."""

    def __init__(self, rounding: str, saturate: bool):
        self.rounding, self.saturate = rounding, saturate
        self.operations: list[Operation] = []
        self.registers = 0
        self.stored: dict[int, int] = {}  # {register of codes of an affine grid: its bits}

    def register(self, shape: Sequence[int], low: Bound, high: Bound) -> Register:
        """Return a new register; `low` and `high` are int64 vectors over the channels, or one integer for all."""
        self.registers += 1
        low, high = (torch.as_tensor(bound).expand(shape[0]) for bound in (low, high))
        return Register(self.registers - 1, tuple(shape), low, high)

    def add(self, kind: str, name: str, inputs: Sequence[Register], shape: Sequence[int], low: Bound, high: Bound, /, *,
            arrays: dict[str, Tensor] | None = None, bound: float = 0, note: str = '',
            operand_bits: tuple[int, int] | None = None, **options) -> Register:
        """Append an operation and return its output; `bound` is the largest magnitude inside it."""
        output = self.register(shape, low, high)
        arrays = arrays or {}
        tensors = [*(register.magnitude for register in (*inputs, output)), *(array.abs() for array in arrays.values())]
        bound = max(math.ceil(bound) + 1, *(int(tensor.amax()) for tensor in tensors))
        self.operations.append(Operation(kind, name, [register.index for register in inputs], output.index, options,
                                         arrays, bound, note, operand_bits))
        return output

    def width(self, register: Register) -> int:
        """Return how many bits the integers of a register take; a sign alone, +-1, is one.

        The codes of an affine grid are stored with its zero point added, in the bits of their quantizer.
        """
        low, high = int(register.low.amin()), int(register.high.amax())
        makers = {operation.output: operation for operation in self.operations}
        index = register.index
        while index in makers and makers[index].kind in MOVES:
            index = makers[index].inputs[0]
        if index in self.stored:
            return self.stored[index]
        made_by = [makers[register.index]] if register.index in makers else []
        if made_by and made_by[0].options.get('binary'):
            return 1
        return max(high.bit_length(), 1) if low >= 0 else max(high.bit_length(), (-low - 1).bit_length()) + 1

    def requantize(self, value: Value, name: str, form: FixedPoint | Mantissa | None, *, step: float, low: Bound = None,
                   high: Bound = None, binary: bool = False) -> Register:
        """Add round(value / step), clipped to the integers low .. high and by the clip of the value itself.

        Args:
            form: a `FixedPoint` or `Mantissa`; None, for wide results: the mantissa takes the bits that int64 leaves.
        """
        step = step or 1.0  # of a range of 0, whose codes are all 0
        constants = _Constants(value, name, form, step, self.saturate)
        multipliers, offset, shift = constants.multipliers, constants.offset, constants.shift
        if not binary:
            low, high = _tighter(max, low, value.low, step), _tighter(min, high, value.high, step)
        least, most = _range(value, multipliers, offset)
        if binary:
            low = 1 if value.low >= 0 else low  # behind a ReLU nothing is negative
            least, most = torch.full_like(least, low), torch.full_like(most, high)
        else:
            least, most = (shift_right(bound, shift, self.rounding) for bound in (least, most))
            if low is not None or high is not None:
                least, most = least.clamp(low, high), most.clamp(low, high)
        arrays = {f'multiplier{i}': _short(vector) for i, vector in enumerate(multipliers)}
        return self.add('requantize', name, [term.register for term in value.terms], value.shape, least, most,
                        arrays={**arrays, 'offset': _short(offset)}, bound=constants.bound, shift=shift,
                        rounding=self.rounding, low=low, high=high, binary=binary,
                        note=f'step {step:.9g}, {form or "wide"}')

    def add_offset(self, register: Register, offset: Tensor, name: str) -> tuple[Register, int]:
        """Add (register + offset[channel]) * 2^k, rounded; returns the register and k.

        The unit of an accumulator of few bits is coarse: up to 16 bits behind its point keep the offset.
        """
        largest = (register.magnitude.double() + offset.abs()).amax().item()
        fraction = min(OFFSET_FRACTION, 62 - math.frexp(largest)[1])
        if fraction < 0:
            raise ValueError(f'{name}: accumulator and bias may reach {largest:.3g}, beyond int64 (9.2e18): quantize '
                             'the weight or the input of the layer to fewer bits')
        codes, factor = (offset * 2.0**fraction).round().long(), torch.tensor([2**fraction])
        low, high = register.low * factor + codes, register.high * factor + codes
        return self.add('requantize', name, [register], register.shape, low, high, bound=largest * 2.0**fraction + 1,
                        arrays={'multiplier0': factor, 'offset': _short(codes)}, shift=0, rounding=self.rounding,
                        note='the bias'), fraction


def _tighter(choose, bound, real, step):
    if not math.isfinite(real):
        return bound
    code = round(real / step)
    return code if bound is None else choose(bound, code)


def _short(vector):
    return vector[:1].clone() if (vector == vector[0]).all() else vector


def _range(value, multipliers, offset):
    """Return the bounds of acc * M + C, exactly; `_Constants` has shown that they fit int64."""
    least, most = offset.clone(), offset.clone()
    for term, factor in zip(value.terms, multipliers, strict=True):
        ends = torch.stack([term.register.low * factor, term.register.high * factor])
        least, most = least + ends.amin(0), most + ends.amax(0)
    return least, most


class _Constants:
    """Integer multipliers, offset and shift with sum(acc * M) + C ~ value / step * 2^shift, and the bound of the sum.

    Fixed point <T,I>: a multiplier is encoded without the factor 2^-exponent of its term, which lengthens the shift
    instead; else the multipliers behind an image in steps of 2^-16 would all be 0. Mantissas: each term has a point of
    its own, and those with fewer bits behind it are shifted left to the common one.
    """

    def __init__(self, value: Value, name: str, form: FixedPoint | Mantissa | None, step: float, saturate: bool):
        self.value, self.name, self.form, self.step = value, name, form, step
        if isinstance(form, FixedPoint):
            self._fixed_point(saturate)
        else:
            self._mantissa()
        self.bound = self._bound()
        if self.bound >= 0.99 * INT64:  # it is a double itself
            raise self._too_large(self.bound)

    def _fixed_point(self, saturate):
        fraction = self.form.fraction
        deepest = max(0, *(term.exponent for term in self.value.terms))
        self.shift = fraction + deepest
        if self.shift > MAX_SHIFT:
            raise self._too_large(2.0**self.shift)
        self.multipliers = [self._encode(term.multiplier * 2.0**term.exponent / self.step, 'multiplier', saturate)
                            << (deepest - term.exponent) for term in self.value.terms]
        self.offset = self._encode(self.value.offset / self.step, 'offset', saturate) << deepest

    def _encode(self, values, what, saturate):
        try:
            codes, clipped = encode(values, self.form, what=f'{self.name}: {what}', saturate=saturate)
        except FixedPointOverflow as error:
            raise FixedPointOverflow(f'{error}; take a format with more integer bits, a mantissa ("mantissa:16"), or '
                                     'saturate=True to clip it', error.value) from error
        if clipped:
            logger.warning('%s: %d of %d %ss do not fit %s and were clipped', self.name, clipped, len(codes), what,
                           self.form)
        lost = int(((codes == 0) & (values != 0)).sum()) if what == 'multiplier' else 0
        if lost:
            logger.warning('%s: %d of %d multipliers are too small for %s and became 0: the output does not depend on '
                           'what they multiply', self.name, lost, len(codes), self.form)
        return codes

    def _mantissa(self):
        bits = self.form.bits if self.form else WIDE_MANTISSA
        real = [term.multiplier / self.step for term in self.value.terms]
        coded = [encode_mantissa(multiplier, bits) for multiplier in real]
        used = [fraction for codes, fraction in coded if codes.any()]
        total = sum((term.register.magnitude * factor.abs()).amax().item()
                    for term, factor in zip(self.value.terms, real, strict=True))
        total += self.value.offset.abs().amax().item() / self.step
        room = 62 - math.frexp(total)[1]  # so that the sum stays below 2^62
        self.shift = max(0, min(max([*used, MIN_SHIFT]), room, MAX_SHIFT))
        needed = min(used, default=0) - (0 if self.form else WIDE_MANTISSA - MIN_WIDE_MANTISSA)
        if room < min(needed, MAX_SHIFT) or room < 0:
            raise self._too_large(2.0 ** (62 - room + max(needed, 0)))
        self.multipliers = [(codes << (self.shift - fraction)) if fraction <= self.shift
                            else (factor * 2.0**self.shift).round().long()
                            for (codes, fraction), factor in zip(coded, real, strict=True)]
        self.offset = (self.value.offset / self.step * 2.0**self.shift).round().long()

    def _bound(self):
        total = self.offset.abs().double() + 2.0 ** max(self.shift - 1, 0)
        for term, factor in zip(self.value.terms, self.multipliers, strict=True):
            total = total + term.register.magnitude.double() * factor.abs().double()
        return total.amax().item()

    def _too_large(self, bound):
        largest = max(term.register.magnitude.amax().item() for term in self.value.terms)
        return ValueError(f'{self.name}: |acc * M + C| may reach {bound:.3g} with accumulators up to {largest:.3g}, '
                          'beyond int64 (9.2e18): take multipliers with fewer bits, a smaller wide_word, or quantize '
                          'the input of the layer to fewer bits')
