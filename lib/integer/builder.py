"""Operations on the symbolic values of a network that is lowered; what they cannot leave to later becomes integers."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from lib.integer import shapes as shapes
from lib.integer.activations import Activation, look_up
from lib.integer.fixed_point import FixedPoint, Mantissa, shift_right
from lib.integer.layers import room_for_accumulators
from lib.integer.values import Program, Term, Value, value_of
from lib.quantize.quantizer import Quantizer

Form = FixedPoint | Mantissa
GATE_WORD, FACTOR_WORD = 17, 24  # bits of a factor that is at most 1, and of both factors where none is
DISPERSION = 2.0**10  # of the scales of channels that one multiplier serves


class Builder:
    """Values of a program, and what becomes of them.

    Args:
        program: where operations are added.
        blocks, ends: formats of the multipliers of quantizers under `blocks.`, and of all others.
        wide_word: bits of tensors that no quantizer made; None: 32 for mantissas, 24 for fixed point.
    """

    def __init__(self, program: Program, blocks: Form, ends: Form, wide_word: int | None):
        self.program, self.blocks, self.ends = program, blocks, ends
        self.quantizers, self.wide = {}, set()
        self.has_mantissas = isinstance(blocks, Mantissa) and isinstance(ends, Mantissa)
        self.wide_word = wide_word or (32 if self.has_mantissas else 24)

    def quantize(self, name: str, quantizer: Quantizer, value: Value) -> Value:
        """Return the value as codes of `quantizer`."""
        if not quantizer.active:
            return value
        try:
            grid = quantizer.grid()
        except NotImplementedError as error:
            raise ValueError(f'{name}: a {type(quantizer).__name__} has no fixed grid, so no integer form') from error
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
        if name in self.quantizers:
            name = f'{name}#{sum(other.partition("#")[0] == name for other in self.quantizers) + 1}'
        dead = not grid.step > 0 and not grid.binary
        register = self.program.requantize(value, name, self.form(name), step=grid.step, binary=grid.binary,
                                           low=0 if dead else grid.low, high=0 if dead else grid.high)
        if grid.zero_point:  # codes count from 0 = 0.0 on, so zeros around them are the padding
            self.program.stored[register.index] = quantizer.bits
            self.program.operations[-1].note += f', stored as code + {grid.zero_point}'
        self.quantizers[name] = (register.index, grid.scale)
        return value_of(register, grid.scale)

    def form(self, name):
        """Return the number formats of a layer: those of blocks, or those of the ends of the network."""
        return self.blocks if name.startswith('blocks.') else self.ends

    def codes(self, name: str, value: Value, word: int, point: int | None = None) -> Term:
        """Return a value as integers of at most `word` bits with one scale: its own, or those of a wide tensor.

        With a `point` they are those of a wide tensor with so many bits behind the point.
        """
        for known in (value, value.wide) if point is None else ():
            term = None if known is None else known.codes()
            if term is not None and term.register.magnitude.amax().item().bit_length() < word:
                return term
        largest = value.largest()
        if point is None:
            point = word - 1 - math.frexp(largest)[1] if largest else 0
        register = self.program.requantize(value, f'{name}.wide', None, step=2.0**-point)
        self.wide |= {register.index} if largest else set()
        value.wide = value_of(register, 2.0**-point, point)
        return value.wide.codes()

    def linear(self, name: str, value: Value) -> Value:
        """Return a value without a pending clip, for operations that do not pass it."""
        if not value.clipped:
            return value
        self.codes(name, value, self.wide_word)
        return value.wide

    def relu(self, name: str, value: Value, top: float) -> Value:
        """Return the value clipped to 0 .. top, which is not computed yet."""
        if value.low >= 0 and value.high <= top:
            return value
        low, high = max(value.low, 0.0), min(value.high, top)
        return Value(value.shape, value.terms, value.offset, low, max(low, high))

    def add(self, name: str, left: Value, right: Value) -> Value:
        """Return the sum of two tensors of one shape, still as terms; a ValueError for other shapes."""
        if not (isinstance(left, Value) and isinstance(right, Value)) or left.shape != right.shape:
            raise ValueError(f'{name} adds {_shapes(left, right)}; expected two tensors of one shape')
        left, right = (self.linear(name, part) if part.wide is None else part.wide for part in (left, right))
        return Value(left.shape, left.terms + right.terms, left.offset + right.offset)

    def add_number(self, name: str, value: Value, number: float) -> Value:
        """Return the value plus a finite number."""
        return value.affine(1.0, _finite(name, number))

    def scale(self, name: str, value: Value, factor: float) -> Value:
        """Return the value times a finite number."""
        return value.affine(_finite(name, factor), 0.0)

    def product(self, name: str, left: Value, right: Value) -> Value:
        """Return the product of two tensors, of which one may have one position for all of the other.

        A factor that is at most 1, as the gate of a squeeze-excitation, has 16 bits and leaves the other its own; else
        both have 24.
        """
        if not all(isinstance(part, Value) for part in (left, right)) or not _broadcasts(left.shape, right.shape):
            raise ValueError(f'{name} multiplies {_shapes(left, right)}: two tensors of one shape, or one of them with '
                             'one position for each channel, have an integer form')
        if math.prod(left.shape) < math.prod(right.shape) or left.shape == right.shape \
                and left.largest() < right.largest():
            left, right = right, left
        words = (self.wide_word, GATE_WORD) if right.largest() <= 1 else (min(FACTOR_WORD, self.wide_word),) * 2
        one, two = (self.codes(f'{name}.{kind}', part, word) for kind, part, word in
                    zip(('left', 'right'), (left, right), words, strict=True))
        ends = torch.stack([getattr(one.register, a) * getattr(two.register, b) for a in ('low', 'high')
                            for b in ('low', 'high')])
        shift = max(0, int(ends.abs().amax()).bit_length() - self.wide_word + 1)
        low, high = (shift_right(end, shift, self.program.rounding) for end in (ends.amin(0), ends.amax(0)))
        register = self.program.add('product', name, [one.register, two.register], left.shape, low, high,
                                    bound=float(ends.abs().amax()) + 2.0**shift, shift=shift,
                                    rounding=self.program.rounding)
        scale = (one.multiplier[0] * two.multiplier[0]).item() * 2.0**shift
        return value_of(register, scale, max(0, one.exponent + two.exponent - shift))

    def activation(self, name: str, activation: Activation, value: Value) -> Value:
        """Return f(x) or x f(x); h-sigmoid needs no table, for it is linear between two clips."""
        if activation.function is F.hardsigmoid:
            part = self.linear(name, value).affine(1 / 6, 0.5)
            gate = Value(part.shape, part.terms, part.offset, 0.0, 1.0)
        else:
            gate = look_up(self.program, name, activation.function, value)
        return self.product(name, value, gate) if activation.gated else gate

    def concatenate(self, name: str, parts: Sequence[Value]) -> Value:
        """Return the channels of all parts; each keeps its scale, unless these lie too far apart for one multiplier."""
        if not parts or not all(isinstance(part, Value) and part.shape[1:] == parts[0].shape[1:] for part in parts):
            raise ValueError(f'{name} joins {_shapes(*parts)}: tensors that differ in their channels alone have an '
                             'integer form')
        terms = [self._single(f'{name}.{i}', part) for i, part in enumerate(parts)]
        scales = torch.cat([term.multiplier for term in terms]).abs()
        scales = scales[scales > 0]
        apart = len(scales) and (scales.amax() > DISPERSION * scales.amin()).item()
        if apart or not self.has_mantissas and len({term.exponent for term in terms}) > 1:
            largest = max(part.largest() for part in parts)
            point = self.wide_word - 1 - math.frexp(largest)[1]
            terms = [self.codes(f'{name}.{i}', part, self.wide_word, point) for i, part in enumerate(parts)]
        return shapes.concatenate(self.program, name, terms)

    def _single(self, name, value):
        """Return a term that is the whole value, whatever the scales of its channels."""
        alone = len(value.terms) == 1 and not value.clipped and not value.offset.any()
        return value.terms[0] if alone else self.codes(name, value, self.wide_word)

    def pool(self, name: str, value: Value, kind: str, options: dict) -> Value:
        """Return sums, as averages, or maxima over windows; `kind` is 'sum_pool' or 'max_pool'."""
        if kind == 'sum_pool':
            return shapes.average(self.program, name, self._summable(name, value, math.prod(options['kernel'])),
                                  **options)
        term = self.codes(name, value, self.wide_word)
        return shapes.maximum(self.program, name, term, **options)

    def _summable(self, name, value, count):
        """Return a value without a clip, of so few bits that a sum of so many leaves int64 to the next multiplier."""
        plain = self.linear(name, value)
        room = min(map(room_for_accumulators, (self.blocks, self.ends))) - count.bit_length()
        if max(int(term.register.magnitude.amax()).bit_length() for term in plain.terms) <= room:
            return plain
        kept = value.wide
        self.codes(name, value, room + 1)
        narrow, value.wide = value.wide, kept  # other readers get all bits
        return narrow

    def logits(self, value):
        """Return register and scale of the output: the accumulator, with the bias if there is one."""
        value = self.linear('output', value)
        term = value.terms[0]
        scale = term.multiplier[0].item()
        if len(value.terms) > 1 or not scale > 0 or not (term.multiplier == scale).all():
            term = self.codes('output', value, self.wide_word)
            return term.register, term.multiplier[0].item()
        if value.offset.any():
            register, fraction = self.program.add_offset(term.register, value.offset / scale, 'output')
            return register, scale * 2.0**-fraction
        return term.register, scale


def _shapes(*values):
    return ' and '.join(str(value.shape if isinstance(value, Value) else value) for value in values)


def _broadcasts(one, other):
    return one == other or len(one) == len(other) == 3 and one[0] == other[0] and (1, 1) in (one[1:], other[1:])


def _finite(name, number):
    if not math.isfinite(number):
        raise ValueError(f'{name} is given {number}: only finite numbers have an integer form')
    return float(number)
