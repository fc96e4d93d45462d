"""An integer network as an ONNX graph that computes the same integers, bit for bit; slow: int64 in 8-bit parts.

ONNX has a convolution of 8-bit integers alone, ConvInteger. Inputs and weights are split into limbs of 8 bits,
x = sum(x_i 256^i) - 128 256^(n - 1) where negative numbers occur, and the products of limbs are added in int64. Both
are uint8: sums of uint8 by int8 saturate in 16 bits on processors without VNNI.
"""

import math

import numpy as np
import torch

from lib.export.onnx_graph import IMAGES, IR_VERSION, LOGITS, OPSET
from lib.export.onnx_packages import ir, require_onnx
from lib.integer.network import IMAGE_LIMIT, IntegerNetwork, smallest

INTEGERS = 'integers'  # name of the output of int64 logits
LARGEST_SUM = (2**31 - 1) // 255**2  # products of limbs that int32 holds
EXACT_DOUBLE = 2**53


def integer_graph(network: IntegerNetwork):
    """Return the onnx-ir model of an integer network: images to float32 logits and to the int64 `integers`.

    Images beyond +-8, which the integer network refuses, are clipped to it.

    Raises:
        ValueError: an operation has a sum that int32 does not hold; it is named.
    """
    require_onnx()
    return _Builder(network).model()


class _Builder:
    def __init__(self, network: IntegerNetwork):
        self.network, self.shapes = network, _shapes(network)
        self.images = ir.Value(name=IMAGES, shape=ir.Shape(['batch', *network.input_shape]),
                               type=ir.TensorType(ir.DataType.FLOAT))
        self.graph = ir.Graph([self.images], [], nodes=[], opset_imports={'': OPSET}, name='integer_network')
        self.tape, self.values, self.bounds, self.constants = ir.tape.Tape(self.graph), {}, {}, {}

    def model(self):
        """Return the onnx-ir model."""
        top = IMAGE_LIMIT << self.network.fraction
        real = self.op('Mul', [self.cast(self.images, 'DOUBLE'), self.number(2.0**self.network.fraction, np.float64)])
        codes = self.op('Clip', [self.cast(self.op('Round', [real]), 'INT64'), self.number(-top), self.number(top)])
        self.values[0], self.bounds[0] = codes, (-top, top)
        for operation in self.network.operations:
            self.values[operation.output] = self.operation(operation)
        integers = self.op('Identity', [self.values[self.network.output]])
        scaled = self.op('Mul', [self.cast(integers, 'DOUBLE'), self.number(self.network.scale, np.float64)])
        self.output(LOGITS, self.cast(scaled, 'FLOAT'), ir.DataType.FLOAT)
        self.output(INTEGERS, integers, ir.DataType.INT64)
        return ir.Model(self.graph, ir_version=IR_VERSION, producer_name='haq')

    def output(self, name, value, kind):
        """Make a value an output of the model."""
        value.name, value.type = name, ir.TensorType(kind)
        value.shape = ir.Shape(['batch', *self.shapes[self.network.output]])
        self.graph.outputs.append(value)

    def operation(self, operation):
        """Append the nodes of an integer operation; return its value."""
        inputs = [self.values[register] for register in operation.inputs]
        lows, highs = zip(*(self.bounds[register] for register in operation.inputs), strict=True)
        low, high = min(lows), max(highs)
        arrays = {name: array.numpy() for name, array in operation.arrays.items()}
        at = operation.output
        if operation.kind in ('requantize', 'product'):
            self.bounds[at] = _requantized(operation)
        elif operation.kind == 'lookup':
            self.bounds[at] = int(arrays['table'].min()), int(arrays['table'].max())
        elif operation.kind in ('conv', 'linear', 'sum_pool'):
            self.bounds[at] = -operation.bound, operation.bound
        else:  # values of the input, and zeros around it
            self.bounds[at] = min(low, 0), max(high, 0)
        return getattr(self, operation.kind)(operation, *inputs, **arrays)

    # ---- nodes

    def op(self, kind, inputs, **attributes):
        """Append a node; return its output."""
        return self.tape.op(kind, inputs, attributes)

    def cast(self, value, kind):
        """Return a value in another type."""
        return self.op('Cast', [value], to=ir.DataType[kind])

    def number(self, value, kind=np.int64):
        """Return a constant, a number or an array; equal ones are stored once."""
        array = np.asarray(value, kind)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self.constants:
            self.constants[key] = self.tape.initializer(ir.tensor(array), name=f'constant{len(self.constants)}')
        return self.constants[key]

    def stored(self, array):
        """Return an int64 constant that the file holds in the smallest type."""
        return self.cast(self.number(small := smallest(torch.from_numpy(np.ascontiguousarray(array))), small.dtype),
                         'INT64')

    # ---- operations, as in lib/integer/kernels.py

    def conv(self, operation, x, weight):
        """Return the exact sums: ConvInteger takes 8-bit limbs, whose sums are put together in int64."""
        products = math.prod(weight.shape[1:])
        if products > LARGEST_SUM:
            raise ValueError(f'{operation.name} adds {products} products; int32 holds {LARGEST_SUM} of two limbs: it '
                             'has no form in ONNX')
        stride, padding, dilation, groups = (operation.options[name] for name in ('stride', 'padding', 'dilation',
                                                                                  'groups'))
        options = {'strides': list(stride), 'pads': [*padding, *padding], 'dilations': list(dilation), 'group': groups,
                   'kernel_shape': list(weight.shape[2:])}
        total = None
        parts = list(_limbs(weight))
        for i, (part, zero) in enumerate(self.limbs(x, *self.bounds[operation.inputs[0]])):
            for j, (factor, middle) in enumerate(parts):
                inputs = [part, self.number(factor, np.uint8), self.number(zero, np.uint8),
                          self.number(middle, np.uint8)]
                product = self.cast(self.op('ConvInteger', inputs, **options), 'INT64')
                product = product if i + j == 0 else self.op('Mul', [product, self.number(256**(i + j))])
                total = product if total is None else self.op('Add', [total, product])
        return total

    def limbs(self, x, low, high):
        """Yield (uint8 limb, its zero point), the lowest one first, of an int64 value between the bounds."""
        count, offset = _limb_count(low, high)
        x = self.op('Add', [x, self.number(offset)]) if offset else x
        for i in range(count):
            shifted = x if i == 0 else self.op('Div', [x, self.number(256**i)])
            limb = shifted if i == count - 1 else self.op('Mod', [shifted, self.number(256)])
            yield self.cast(limb, 'UINT8'), 128 if offset and i == count - 1 else 0

    def linear(self, _operation, x, weight):
        return self.op('MatMul', [x, self.stored(weight.T)])

    def requantize(self, operation, *inputs, offset, **multipliers):
        """Return inputs times multipliers, summed, plus offset, over 2^shift: codes within their bounds, or signs."""
        shift, rounding = operation.options['shift'], operation.options['rounding']
        binary = operation.options.get('binary', False)
        offset = offset.copy()
        if rounding == 'round' and shift and not binary:
            offset, rounding = offset + 2**(shift - 1), 'floor'
        total = None
        for i, x in enumerate(inputs):
            product = self.op('Mul', [x, self.per_channel(operation, multipliers[f'multiplier{i}'])])
            total = product if total is None else self.op('Add', [total, product])
        total = self.op('Add', [total, self.per_channel(operation, offset)])
        if binary:
            return self.op('Where', [self.op('GreaterOrEqual', [total, self.number(0)]), self.number(1),
                                     self.number(-1)])
        codes = self.shifted(total, shift, rounding)
        low, high = operation.options.get('low'), operation.options.get('high')
        if low is None and high is None:
            return codes
        return self.op('Clip', [codes, *(None if end is None else self.number(end) for end in (low, high))])

    def shifted(self, value, shift, rounding):
        """Return value / 2^shift, rounded down, or towards 0 as Div does."""
        if shift and rounding == 'floor':  # a negative number minus its Mod is a multiple, and Div exact
            value = self.op('Sub', [value, self.op('Mod', [value, self.number(2**shift)])])
        return self.op('Div', [value, self.number(2**shift)]) if shift else value

    def product(self, operation, x, y):
        shift, rounding = operation.options['shift'], operation.options['rounding']
        total = self.op('Mul', [x, y])
        if shift and rounding == 'round':
            total, rounding = self.op('Add', [total, self.number(2**(shift - 1))]), 'floor'
        return self.shifted(total, shift, rounding)

    def lookup(self, _operation, x, table):
        return self.op('Gather', [self.stored(table), self.op('Add', [x, self.number(len(table) // 2)])])

    def cat(self, _operation, *inputs):
        return self.op('Concat', list(inputs), axis=1)

    def permute(self, _operation, x, index):
        return self.op('Gather', [x, self.number(index)], axis=1)

    def per_channel(self, operation, vector):
        dimensions = len(self.shapes[operation.output])
        return self.stored(vector.reshape(-1, *[1] * (dimensions - 1)))

    def sum_pool(self, operation, x):
        """Return the sum over a window, of slices: AveragePool would divide floats."""
        kernel, stride = operation.options['kernel'], operation.options['stride']
        shape, out = self.shapes[operation.inputs[0]], self.shapes[operation.output]
        if tuple(kernel) == tuple(shape[1:]):
            return self.op('ReduceSum', [x, self.number([2, 3])], keepdims=1)
        total = None
        for top in range(kernel[0]):
            for left in range(kernel[1]):
                ends = [begin + (count - 1) * step + 1 for begin, count, step in
                        zip((top, left), out[1:], stride, strict=True)]
                part = self.slice(x, [top, left], ends, [2, 3], list(stride))
                total = part if total is None else self.op('Add', [total, part])
        return total

    def max_pool(self, operation, x):
        """Return the largest of a window, by way of float64, as MaxPool takes no int64."""
        low, high = self.bounds[operation.inputs[0]]
        if max(-low, high) >= EXACT_DOUBLE:
            raise ValueError(f'{operation.name}: its numbers reach {max(-low, high)}, which float64, the '
                             'type of MaxPool, does not hold exactly')
        kernel, stride, padding, dilation = (list(operation.options[name]) for name in ('kernel', 'stride', 'padding',
                                                                                        'dilation'))
        pooled = self.op('MaxPool', [self.cast(x, 'DOUBLE')], kernel_shape=kernel, strides=stride,
                         pads=[*padding, *padding], dilations=dilation)
        return self.cast(pooled, 'INT64')

    def flatten(self, _operation, x):
        return self.op('Flatten', [x], axis=1)

    def take(self, operation, x):
        parts = operation.options['slices']
        begins, ends, steps = zip(*parts, strict=True)
        steps = [step or 1 for step in steps]
        begins = [begin or 0 for begin in begins]
        ends = [2**62 if end is None else end for end in ends]
        return self.slice(x, begins, ends, list(range(1, len(parts) + 1)), steps)

    def slice(self, x, begins, ends, axes, steps):
        return self.op('Slice', [x, *map(self.number, (begins, ends, axes, steps))])

    def pad(self, operation, x):
        widths = operation.options['widths']
        pairs = list(zip(widths[::2], widths[1::2], strict=True))[::-1]  # the last axis comes first in PyTorch
        pairs = [(0, 0)] * (len(self.shapes[operation.output]) + 1 - len(pairs)) + pairs
        ends = [begin for begin, _ in pairs] + [end for _, end in pairs]
        return self.op('Pad', [x, self.number(ends), self.number(0)])


def _shapes(network: IntegerNetwork) -> dict[int, tuple[int, ...]]:
    """Return {register: shape of an image's tensor}."""
    found = {0: network.input_shape}

    def note(operation, result):
        found[operation.output] = tuple(result.shape[1:])

    network.forward(torch.zeros(1, *network.input_shape, dtype=torch.int64), watch=note)
    return found


def _requantized(operation) -> tuple[int, int]:
    """Return bounds of what a requantization gives."""
    if operation.options.get('binary'):
        return -1, 1
    most = (operation.bound >> operation.options['shift']) + 1
    low, high = operation.options.get('low'), operation.options.get('high')
    return max(-most, -most if low is None else low), min(most, most if high is None else high)


def _limb_count(low: int, high: int) -> tuple[int, int]:
    """Return (limbs of 8 bits that hold low .. high, what is added so that no number is negative)."""
    if low >= 0:
        return max(-(-high.bit_length() // 8), 1), 0
    count = (max(high, -low - 1).bit_length() + 8) // 8
    return count, 128 * 256**(count - 1)


def _limbs(weight: np.ndarray):
    """Yield (uint8 limb, its zero point) of an int64 array, the lowest one first."""
    count, offset = _limb_count(int(weight.min(initial=0)), int(weight.max(initial=0)))
    shifted = weight + offset
    for i in range(count):
        yield (shifted >> (8 * i)) & 255, 128 if offset and i == count - 1 else 0
