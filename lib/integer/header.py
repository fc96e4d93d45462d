"""The constants of an integer network as a C header."""

import re
import textwrap
from typing import Any

WIDTH = 118
MEANINGS = {
    'conv': 'out = convolution of in with weight (out channels, in channels / groups, rows, columns)',
    'linear': 'out = in times weight (outputs, inputs)',
    'requantize': 'out = clip((in0 * multiplier0 + in1 * multiplier1 + ... + offset) >> shift, low, high)',
    'sum_pool': 'out = sum over each window',
    'max_pool': 'out = largest of each window',
    'lookup': 'out = table[in + half of the entries]',
    'product': 'out = (in0 * in1) >> shift, where in1 may have one position for all of in0',
    'cat': 'out = the channels of all inputs, one behind another',
    'permute': 'out = the channels of in in the order of index',
    'flatten': 'out = in as one vector an image',
    'take': 'out = the slices of in',
    'pad': 'out = in with zeros around it',
}


def header_lines(network: Any) -> list[str]:
    """Return the lines of a header: per operation a comment, its arrays in the smallest type, its numbers as macros.

    Arrays are flat, in row-major order, with their shape in a comment. A multiplier or offset of one element holds for
    all channels.
    """
    shape = ' x '.join(map(str, network.input_shape))
    lines = ['/* Integer network. int64 is wide enough for every sum.',
             f'   Register r0: images, {shape}, round(value * 2^{network.fraction}).',
             f'   Logits: register r{network.output}; one unit is {network.scale:.9g}. */',
             '#ifndef INTEGER_NETWORK_H', '#define INTEGER_NETWORK_H', '#include <stdint.h>', '']
    known = {}  # arrays that several operations share are written once
    for index, operation in enumerate(network.operations):
        lines += _operation_lines(index, operation, known)
    return [*lines, '#endif']


def _operation_lines(index, operation, known):
    prefix = f'op{index}_' + re.sub(r'\W', '_', operation.name)
    inputs = ', '.join(f'r{register}' for register in operation.inputs)
    note = f'; {operation.note}' if operation.note else ''
    options = ', '.join(f'{name} {option}' for name, option in operation.options.items())
    comment = f'{operation.name}: {operation.kind}, {inputs} -> r{operation.output}{note}; {MEANINGS[operation.kind]}'
    lines = [f'/* {_plain(comment)}', f'   {_plain(options) or "no options"}; |all| <= {operation.bound} */']
    for name, option in operation.options.items():
        if isinstance(option, int):  # a bool too
            lines.append(f'#define {prefix.upper()}_{name.upper()} {_literal(int(option))}')
    for name, array in operation.arrays.items():
        first = known.setdefault((operation.kind, name, id(array)), f'{prefix}_{name}')
        if first == f'{prefix}_{name}':
            lines += _array_lines(first, array)
        else:
            lines.append(f'#define {prefix}_{name} {first}')
    return [*lines, '']


def _array_lines(name, array):
    values = array.flatten().tolist()
    bits = next(bits for bits in (8, 16, 32, 64) if -2 ** (bits - 1) <= min(values) and max(values) < 2 ** (bits - 1))
    size = ' x '.join(map(str, array.shape))
    body = textwrap.wrap(', '.join(map(_literal, values)), WIDTH, initial_indent='  ', subsequent_indent='  ',
                         break_long_words=False, break_on_hyphens=False)
    return [f'static const int{bits}_t {name}[{len(values)}] = {{ /* {size} */', *body, '};']


def _literal(value):
    if -2**31 < value < 2**31:
        return str(value)
    return f'INT64_C({value})' if value > -2**63 else 'INT64_MIN'


def _plain(text):
    return text.replace('*/', '* /').replace('/*', '/ *')
