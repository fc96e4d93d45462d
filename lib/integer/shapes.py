"""Lowering of what moves, sums or drops integers: pools, flattening, slices, zeros around a tensor."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from lib.integer.kernels import Pair
from lib.integer.values import Program, Term, Value, value_of

Pool = tuple[str, dict]  # kind of operation, options
MEANS = (torch.mean, 'mean')
FLATTENS = (torch.flatten, 'flatten')
VIEWS = ('view', 'reshape', torch.reshape)


def pair(size: int | Sequence[int]) -> Pair:
    """Return a size in both dimensions."""
    return tuple(size) if isinstance(size, (tuple, list)) else (size, size)


def windows(sizes: Sequence[int], kernel: Pair, stride: Pair, padding: Pair = (0, 0), dilation: Pair = (1, 1)) -> Pair:
    """Return how many windows fit, for both dimensions."""
    return tuple((size + 2 * edge - reach * (length - 1) - 1) // step + 1 for size, length, step, edge, reach
                 in zip(sizes, kernel, stride, padding, dilation, strict=True))


def module_pool(name: str, module: nn.Module, shape: Sequence[int]) -> Pool | None:
    """Return (kind, options) of a pooling module, None for another one; ValueError where it has no integer form."""
    for kind, _, make, fields in POOLS:
        if isinstance(module, kind):
            return make(name, shape, *(getattr(module, field) for field in fields))
    return None


def function_pool(name: str, target: Any, arguments: list, options: dict) -> Pool | None:
    """Return the same for a function of torch.nn.functional; its arguments begin with the tensor."""
    for _, functions, make, _ in POOLS:
        if target in functions:
            return make(name, arguments[0].shape, *arguments[1:], **options)
    return None


def _adaptive(name, shape, output_size):
    out = tuple(size or have for size, have in zip(pair(output_size), shape[1:], strict=True))
    if any(have % size for have, size in zip(shape[1:], out, strict=True)):
        raise ValueError(f'{name} makes {out} of {shape[1:]}: its windows differ in size, which has no integer form')
    kernel = tuple(have // size for have, size in zip(shape[1:], out, strict=True))
    return 'sum_pool', {'kernel': kernel, 'stride': kernel}


def _average(name, _shape, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True,
             divisor_override=None):
    if any(pair(padding)) or ceil_mode or divisor_override:
        raise ValueError(f'{name}: average pooling has an integer form without padding, ceil_mode, divisor_override')
    return 'sum_pool', {'kernel': pair(kernel_size), 'stride': pair(stride or kernel_size)}


def _maximum(name, _shape, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
    if ceil_mode or return_indices:
        raise ValueError(f'{name}: max pooling has an integer form without ceil_mode and indices')
    return 'max_pool', {'kernel': pair(kernel_size), 'stride': pair(stride or kernel_size), 'padding': pair(padding),
                        'dilation': pair(dilation)}


POOLS = (  # module, functions, what reads them, attributes of the module in the order of the functions' arguments
    (nn.AdaptiveAvgPool2d, (F.adaptive_avg_pool2d,), _adaptive, ('output_size',)),
    (nn.AvgPool2d, (F.avg_pool2d,), _average, ('kernel_size', 'stride', 'padding', 'ceil_mode', 'count_include_pad',
                                               'divisor_override')),
    (nn.MaxPool2d, (F.max_pool2d, torch.max_pool2d), _maximum, ('kernel_size', 'stride', 'padding', 'dilation',
                                                                'ceil_mode', 'return_indices')))


def average(program: Program, name: str, value: Value, kernel: Pair, stride: Pair) -> Value:
    """Return the average over windows: every term is summed, and its multiplier divided by their size."""
    count = kernel[0] * kernel[1]
    if kernel == (1, 1) and stride == (1, 1):
        return value
    shape = (value.shape[0], *windows(value.shape[1:], kernel, stride))
    terms = []
    for term in value.terms:
        low, high = term.register.low.clamp(max=0) * count, term.register.high.clamp(min=0) * count
        register = program.add('sum_pool', name, [term.register], shape, low, high, kernel=kernel, stride=stride)
        terms.append(Term(register, term.multiplier / count, term.exponent))
    return Value(shape, terms, value.offset)


def maximum(program: Program, name: str, term: Term, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
            ) -> Value:
    """Return the largest code of each window, at the same scale."""
    register = term.register
    shape = (register.shape[0], *windows(register.shape[1:], kernel, stride, padding, dilation))
    out = program.add('max_pool', name, [register], shape, register.low, register.high, kernel=kernel, stride=stride,
                      padding=padding, dilation=dilation)
    return value_of(out, term.multiplier[0].item(), term.exponent)


def flatten(program: Program, name: str, value: Value) -> Value:
    """Return the value as a vector; per-channel numbers are repeated for every position."""
    if len(value.shape) == 1:
        return value
    positions = value.shape[1] * value.shape[2]
    return _moved(program, 'flatten', name, value, (value.shape[0] * positions,),
                  lambda vector: vector.repeat_interleave(positions))


def take(program: Program, name: str, value: Value, key: Any) -> Value:
    """Return value[key]; the key is a tuple of slices, the whole batch first."""
    key = key if isinstance(key, tuple) else (key,)
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key = (*key[:at], *[slice(None)] * (len(value.shape) + 2 - len(key)), *key[at + 1:])
    if not all(isinstance(part, slice) for part in key) or key[:1] != (slice(None),):
        raise ValueError(f'{name} takes [{key}]: slices that keep every image have an integer form')
    parts = [*key[1:], *[slice(None)] * (len(value.shape) + 1 - len(key))]
    shape = tuple(len(range(*part.indices(size))) for part, size in zip(parts, value.shape, strict=True))
    return _moved(program, 'take', name, value, shape, lambda vector: vector[parts[0]],
                  slices=tuple((part.start, part.stop, part.step) for part in parts))


def _moved(program, kind, name, value, shape, spread, arrays=None, **options):
    terms = []
    for term in value.terms:
        low, high = spread(term.register.low), spread(term.register.high)
        register = program.add(kind, name, [term.register], shape, low, high, arrays=arrays, **options)
        terms.append(Term(register, spread(term.multiplier), term.exponent))
    return Value(shape, terms, spread(value.offset), value.low, value.high)


def permute(program: Program, name: str, value: Value, index: torch.Tensor) -> Value:
    """Return the channels in the order of the index, int64 (C,)."""
    return _moved(program, 'permute', name, value, value.shape, lambda vector: vector[index], {'index': index})


def split(program: Program, name: str, value: Value, sizes: Sequence[int]) -> tuple[Value, ...]:
    """Return parts of the channels, of these sizes."""
    ends = list(accumulate(sizes))
    if ends[-1] != value.shape[0]:
        raise ValueError(f'{name} splits {value.shape[0]} channels into {list(sizes)}')
    return tuple(take(program, f'{name}.{i}', value, (slice(None), slice(end - size, end)))
                 for i, (size, end) in enumerate(zip(sizes, ends, strict=True)))


def chunk_sizes(channels: int, size: int) -> list[int]:
    """Return the sizes of parts of `size` channels, of which the last may be smaller."""
    return [min(size, channels - start) for start in range(0, channels, size)]


def concatenate(program: Program, name: str, parts: Sequence[Term]) -> Value:
    """Return the channels of all parts, one behind another."""
    registers = [part.register for part in parts]
    shape = (sum(register.shape[0] for register in registers), *registers[0].shape[1:])
    low, high = (torch.cat([getattr(register, end) for register in registers]) for end in ('low', 'high'))
    out = program.add('cat', name, registers, shape, low, high)
    multiplier = torch.cat([part.multiplier for part in parts])
    return Value(shape, [Term(out, multiplier, min(part.exponent for part in parts))], torch.zeros_like(multiplier))


class Grouped(NamedTuple):
    """Channels seen as (groups, channels of each), or as the transposed table of it, between two views."""

    value: Value
    groups: int
    transposed: bool = False

    @property
    def order(self) -> torch.Tensor:
        """Channels of the value in the order of the table."""
        table = torch.arange(self.value.shape[0]).view(self.groups, -1)
        return (table.t() if self.transposed else table).flatten()


def pad(program: Program, name: str, term: Term, widths: Sequence[int] | None = None, mode: str = 'constant',
        value: float | None = None, **options) -> Value:
    """Return codes with zeros around them, `widths` as those of `torch.nn.functional.pad`."""
    widths = tuple(options.get('pad', widths))
    if mode != 'constant' or value not in (None, 0) or min(widths) < 0 or len(widths) > 2 * len(term.register.shape):
        raise ValueError(f'{name} pads by {widths} ({mode}, {value}): only zeros around a tensor have an integer form')
    register = term.register
    full = (*widths, *[0] * (2 * len(register.shape) - len(widths)))
    before, after = full[-2::-2], full[::-2]  # the last pair of widths is that of the first axis
    shape = tuple(size + a + b for size, a, b in zip(register.shape, before, after, strict=True))
    low, high = (F.pad(bound, (before[0], after[0])) for bound in (register.low, register.high))
    out = program.add('pad', name, [register], shape, low.clamp(max=0), high.clamp(min=0), widths=widths)
    return value_of(out, term.multiplier[0].item(), term.exponent)


def flattens(target: Any, arguments: list, options: dict, batch: object) -> bool:
    """Return whether a call keeps the images and makes vectors of them."""
    if target in FLATTENS:
        return (*arguments, *options.values()) in ((1,), (1, -1))
    sizes = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], (tuple, list)) else arguments
    return target in VIEWS and len(sizes) == 2 and sizes[0] is batch and sizes[1] == -1


def mean_axes(target: Any, arguments: list, options: dict) -> bool | None:
    """Return whether a mean over height and width keeps the two axes, None for any other call."""
    axes, keep = (*arguments, None)[0], options.get('keepdim', arguments[1] if len(arguments) > 1 else False)
    axes = options.get('dim', axes)
    if target in MEANS and isinstance(axes, (tuple, list)) and sorted(axis % 4 for axis in axes) == [2, 3]:
        return keep
    return None
