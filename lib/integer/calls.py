"""Functions and methods in the graph of a network, by what they do to symbolic values."""

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F

from lib.integer import shapes as shapes
from lib.integer.activations import function_activation
from lib.integer.builder import Builder
from lib.integer.shapes import Grouped
from lib.integer.values import Value

RELUS = {F.relu: math.inf, torch.relu: math.inf, torch.relu_: math.inf, F.relu6: 6.0, 'relu': math.inf,
         'relu_': math.inf}
ADDITIONS = (operator.add, operator.iadd, torch.add, 'add', 'add_')
SUBTRACTIONS = (operator.sub, operator.isub, torch.sub, 'sub', 'sub_')
PRODUCTS = (operator.mul, operator.imul, torch.mul, 'mul', 'mul_')
QUOTIENTS = (operator.truediv, torch.div, 'div', 'div_')
NOTHING = (F.dropout, F.dropout2d, 'contiguous', 'clone')
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
SWAPS = ('transpose', torch.transpose, 'swapaxes', torch.swapaxes)
SHUFFLES = tuple(filter(None, (getattr(F, 'channel_shuffle', None), getattr(torch, 'channel_shuffle', None))))
BATCH = object()  # stands for x.size(0)


class Calls(Builder):
    """The integer forms of functions and methods; a method is known by its name."""

    def function(self, name: str, target: Any, arguments: list, options: dict) -> Any:
        """Return the result of a function or method, None for one that is not known."""
        readers = self._of_numbers, self._elementwise, self._channels, self._sizes, self._positions
        return next((found for read in readers if (found := read(name, target, arguments, options)) is not None), None)

    def _of_numbers(self, name, target, arguments, options):
        """Do what is done with sizes."""
        if target is torch._assert:
            return True
        if getattr(target, '__module__', '') == '_operator' and all(isinstance(a, (int, float)) for a in arguments):
            return target(*arguments)
        return None

    def _elementwise(self, name, target, arguments, options):
        value = arguments[0] if arguments else options.get('input')
        if target in NOTHING or getattr(target, '__name__', '') == 'stochastic_depth' and not self._drops(arguments,
                                                                                                         options):
            return value
        if target in RELUS:
            return self.relu(name, value, RELUS[target])
        activation = function_activation(target, options)
        if activation is not None:
            return self.activation(name, activation, value)
        if len(arguments) != 2 or options or not any(isinstance(part, Value) for part in arguments):
            return None
        return self._arithmetic(name, target, *arguments)

    def _drops(self, arguments, options):
        """Whether a stochastic depth is one in training; its arguments are input, p, mode, training."""
        return options.get('training', arguments[3] if len(arguments) > 3 else True)

    def _arithmetic(self, name, target, left, right):
        if target in SUBTRACTIONS:
            target, right = operator.add, right.affine(-1.0, 0.0) if isinstance(right, Value) else -right
        if target in QUOTIENTS and isinstance(right, (int, float)) and right:
            target, right = operator.mul, 1 / right
        if isinstance(left, (int, float)):
            left, right = right, left
        with_number = isinstance(right, (int, float))
        if target in ADDITIONS:
            return self.add_number(name, left, right) if with_number else self.add(name, left, right)
        if target in PRODUCTS:
            return self.scale(name, left, right) if with_number else self.product(name, left, right)
        return None

    def _channels(self, name, target, arguments, options):
        """Join, split and shuffle channels."""
        value, rest = (arguments[0] if arguments else options.get('tensors')), arguments[1:]
        if target in CONCATENATIONS:
            return self.concatenate(name, list(value)) if _axis(rest, options, value) == 1 else None
        if target in ('chunk', torch.chunk, 'split', torch.split) and _axis(rest[1:], options, [value]) == 1:
            size = rest[0]
            if target in ('chunk', torch.chunk):
                size = -(-value.shape[0] // size)
            sizes = list(size) if isinstance(size, (list, tuple)) else shapes.chunk_sizes(value.shape[0], size)
            return shapes.split(self.program, name, value, sizes)
        if target in SHUFFLES:
            return self.shuffle(name, Grouped(value, rest[0], True))
        if target in SWAPS and isinstance(value, Grouped) and sorted(rest) == [1, 2]:
            return value._replace(transposed=not value.transposed)
        return self._viewed(name, target, value, rest)

    def _viewed(self, name, target, value, sizes):
        """Return the result of a view of channels as groups, or back."""
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if target in shapes.FLATTENS and isinstance(value, Grouped) and list(sizes) == [1, 2]:
            return self.shuffle(name, value)
        if target not in shapes.VIEWS or not sizes or sizes[0] is not BATCH:
            return None
        if isinstance(value, Grouped):
            kept = value.value.shape
            return self.shuffle(name, value) if _same(sizes[1:], kept) else None
        if len(sizes) == 5 and len(value.shape) == 3 and _same(
                sizes[1:], (sizes[1], value.shape[0] // max(sizes[1], 1), *value.shape[1:])):
            return Grouped(value, sizes[1])
        return value if _same(sizes[1:], value.shape) else None

    def shuffle(self, name: str, grouped: Grouped) -> Value:
        """Return the channels in the order of their table."""
        value, order = grouped.value, grouped.order
        return shapes.permute(self.program, name, value, order) if grouped.transposed else value

    def _sizes(self, name, target, arguments, options):
        value = arguments[0] if arguments else None
        if target is getattr and arguments[1:] == ['shape'] or target == 'size' and len(arguments) == 1:
            return (BATCH, *value.shape)
        if target == 'size':
            return (BATCH, *value.shape)[arguments[1]]
        if target is operator.getitem and isinstance(value, tuple):
            return value[arguments[1]]
        return None

    def _positions(self, name, target, arguments, options):
        """Take, flatten, pad and pool."""
        value = arguments[0] if arguments else options.get('input')
        if not isinstance(value, Value):
            return None
        if target is operator.getitem:
            return shapes.take(self.program, name, value, arguments[1])
        if shapes.flattens(target, arguments[1:], options, BATCH):
            return shapes.flatten(self.program, name, value)
        if target is F.pad:
            # zeros around codes: an offset or a clip would come to lie upon them
            term = self.codes(name, value, self.wide_word)
            return shapes.pad(self.program, name, term, *arguments[1:], **options)
        mean = shapes.mean_axes(target, arguments[1:], options)
        if mean is not None:
            pooled = self.pool(name, value, 'sum_pool', {'kernel': value.shape[1:], 'stride': value.shape[1:]})
            return pooled if mean else shapes.flatten(self.program, name, pooled)
        pool = shapes.function_pool(name, target, [value, *arguments[1:]], options)
        return None if pool is None else self.pool(name, value, *pool)


def _axis(rest, options, values):
    """Return the dimension of a call, counted from 0."""
    axis = options.get('dim', rest[0] if rest else 0)
    return axis % (len(values[0].shape) + 1) if values and isinstance(values[0], Value) else axis


def _same(sizes, expected):
    """Whether sizes are the expected ones, of which one may be left open as -1."""
    return len(sizes) == len(expected) and list(sizes).count(-1) <= 1 and all(
        size in (-1, want) for size, want in zip(sizes, expected, strict=True))
