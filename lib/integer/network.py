"""A network of integers: images in, integer logits out, and no floating-point number between."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.integer.header import header_lines
from lib.integer.kernels import KERNELS
from lib.integer.values import Operation
from lib.record.arrays import json_array, read_npz, write_npz
from lib.record.files import parse_json, write_text
from lib.record.values import TEXT, Rule, check_values, is_number, list_of, one_of, optional, whole

IMAGE_LIMIT = 8
# Largest magnitude that a type holds with all integers below it; the first type that is wide enough computes.
TYPES = {'int64': {torch.int32: 2**31 - 1, torch.int64: 2**63 - 1},
         'float64': {torch.float32: 2**24, torch.float64: 2**53, torch.int64: 2**63 - 1}}
FORMAT, VERSION = 'haq-integer-network', 1
MAX_SIDE = 2**14
PROGRAM = {  # what is expected of a file
    'input_shape': list_of(whole(1, MAX_SIDE), 3), 'output': whole(), 'scale': Rule(
        lambda value: is_number(value) and value > 0, 'a number above 0'), 'fraction': whole(0, 60),
    'quantizers': one_of(dict), 'operations': list_of(one_of(dict)),
}
OPERATION = {
    'kind': Rule(lambda value: isinstance(value, str) and value in KERNELS, f'one of {", ".join(KERNELS)}'),
    'name': TEXT, 'inputs': list_of(whole()), 'output': whole(), 'options': one_of(dict), 'arrays': one_of(dict),
    'bound': whole(0, 2**63), 'note': TEXT, 'operand_bits': optional(list_of(whole(1, 64), 2)),
}


class IntegerNetwork:
    """What `lower_network` makes of a network: a list of operations on int64 tensors.

    Called with images (N, C, H, W) it returns int64 logits (N, classes); `scale` times them are those of the float
    network, which is for display only.

    Args:
        operations: list of `Operation`; register 0 holds the encoded images.
        output: the register of the logits.
        scale: real value of one unit of the logits.
        quantizers: {name of a quantizer of activations: (register of its codes, real value of one code)}.
        fraction: bits of the images behind the point.
    """

    def __init__(self, operations: list[Operation], input_shape: Sequence[int], output: int, scale: float,
                 quantizers: dict[str, tuple[int, float]], *, fraction: int):
        self.operations, self.input_shape, self.output = operations, tuple(input_shape), output
        self.scale, self.fraction = scale, fraction
        self.quantizers = {name: (register, scale) for name, (register, scale) in quantizers.items()}
        self._last_use = {register: i for i, operation in enumerate(operations) for register in operation.inputs}
        self._arrays = {}

    def __call__(self, images: Tensor, *, arithmetic: str = 'int64', batch: int = 16) -> Tensor:
        """Return int64 logits.

        Args:
            images: float tensor (N, C, H, W), on the CPU.
            arithmetic: 'float64' holds the same integers in double precision, which is faster and gives the same
                logits: operations that could leave the exact 53 bits stay in int64.
            batch: images at a time; small tensors stay in the processor's cache.
        """
        return torch.cat([self.forward(self.encode(part), arithmetic=arithmetic) for part in images.split(batch)])

    def encode(self, images: Tensor) -> Tensor:
        """Return images as fixed-point integers, round(x 2^fraction) in int64.

        Raises:
            ValueError: another shape, or a value beyond +-8 or not a number.
        """
        if images.dim() != 4 or tuple(images.shape[1:]) != self.input_shape or len(images) == 0:
            raise ValueError(f'images have shape {tuple(images.shape)}; expected (N, *{self.input_shape}), N above 0')
        if not (images.abs() <= IMAGE_LIMIT).all():
            raise ValueError(f'images reach {images.abs().amax():g}; the integer network takes values up to '
                             f'{IMAGE_LIMIT}: normalise them as in training')
        return (images.double() * 2.0**self.fraction).round().long()

    def forward(self, codes: Tensor, *, arithmetic: str = 'int64', watch: Callable | None = None) -> Tensor:
        """Return int64 logits of encoded images.

        Args:
            codes: int64, from `encode`.
            watch: called with every operation and its int64 output; a tensor that it returns takes the place of that.
        """
        if arithmetic not in TYPES:
            raise ValueError(f"arithmetic is {arithmetic!r}; expected 'int64' or 'float64'")
        registers = {0: codes}
        for i, operation in enumerate(self.operations):
            dtype = next(dtype for dtype, largest in TYPES[arithmetic].items() if operation.bound <= largest)
            result = self._compute(i, operation, [registers[j].to(dtype) for j in operation.inputs], dtype)
            if watch is not None:
                replacement = watch(operation, result.long())
                result = result if replacement is None else replacement
            registers[operation.output] = result
            for j in operation.inputs:
                if self._last_use[j] == i and j != self.output:
                    registers.pop(j, None)
        return registers[self.output].long()

    def _compute(self, index, operation, inputs, dtype):
        if (index, dtype) not in self._arrays:
            self._arrays[index, dtype] = {name: array.to(dtype) for name, array in operation.arrays.items()}
        return KERNELS[operation.kind](*inputs, **self._arrays[index, dtype], **operation.options)

    def codes(self, images: Tensor, *, arithmetic: str = 'int64') -> dict[str, Tensor]:
        """Return {quantizer: its codes, (N, ...)} of images (N, C, H, W)."""
        found, names = {}, {register: name for name, (register, _) in self.quantizers.items()}

        def watch(operation, result):
            if operation.output in names:
                found[names[operation.output]] = result

        self.forward(self.encode(images), arithmetic=arithmetic, watch=watch)
        return found

    def save(self, path: str | Path) -> None:
        """Write the program and its integers to one .npz file, atomically."""
        arrays, operations, keys = {}, [], {}
        for i, operation in enumerate(self.operations):
            entry = {field.name: getattr(operation, field.name) for field in fields(Operation)}
            entry['arrays'] = {name: keys.setdefault(id(array), f'{i}.{operation.name}.{name}')
                               for name, array in operation.arrays.items()}  # what operations share has one key
            arrays.update({entry['arrays'][name]: smallest(array) for name, array in operation.arrays.items()
                           if entry['arrays'][name] not in arrays})
            operations.append(entry)
        program = {'format': FORMAT, 'version': VERSION, 'input_shape': self.input_shape, 'output': self.output,
                   'scale': self.scale,
                   'fraction': self.fraction, 'quantizers': self.quantizers, 'operations': operations}
        write_npz(path, {'program': json_array(program), **arrays}, compress=True)

    @classmethod
    def load(cls, path: str | Path) -> 'IntegerNetwork':
        """Read what `save` wrote.

        Raises:
            ValueError: the file is truncated or of another kind.
        """
        file = read_npz(path, 'integer network')
        try:
            program = parse_json(bytes(file['program']).decode(), 'its program')
            if (program['format'], program['version']) != (FORMAT, VERSION):
                raise ValueError(f'it is {program["format"]} version {program["version"]}')
            check_values(program, PROGRAM, 'its program')
            operations = [_operation(entry, file) for entry in program['operations']]
            network = cls(operations, program['input_shape'], program['output'], program['scale'],
                          program['quantizers'], fraction=program['fraction'])
            network.forward(torch.zeros(1, *network.input_shape, dtype=torch.int64))
            return network
        except Exception as error:  # a program of a stranger fails in any way
            raise ValueError(f'{path} cannot be read as an integer network: it is damaged or of another kind; make or '
                             f'copy it again ({type(error).__name__}: {error})') from error

    def write_header(self, path: str | Path) -> None:
        """Write all constants as a C header, with the meaning of every operation in comments, atomically."""
        write_text(path, '\n'.join(header_lines(self)) + '\n')


def noise_images(input_shape: Sequence[int], count: int) -> Tensor:
    """Return noise (count, *input_shape) from a generator of its own, within what an integer network takes."""
    noise = torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(0))
    return noise.clamp_(-IMAGE_LIMIT, IMAGE_LIMIT)


def smallest(array: Tensor) -> np.ndarray:
    """Return a NumPy copy of an int64 tensor in the smallest integer type that holds it."""
    array = array.numpy()
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    kind = next(kind for kind in (np.int8, np.int16, np.int32, np.int64)
                if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return array.astype(kind)


def _operation(entry, file):
    check_values(entry, OPERATION, f'the operation {entry.get("name")!r:.60}')
    if wrong := [key for key in entry['arrays'].values() if file[key].dtype.kind not in 'iu']:
        raise ValueError(f'{wrong[0]} holds {file[wrong[0]].dtype}, expected integers')
    arrays = {name: torch.from_numpy(file[key].astype(np.int64)) for name, key in entry['arrays'].items()}
    options = {name: tuple(map(_tuple, option)) if isinstance(option, list) else option
               for name, option in entry['options'].items()}
    bits = _tuple(entry['operand_bits'])
    return Operation(**{**entry, 'arrays': arrays, 'options': options, 'operand_bits': bits})


def _tuple(item):
    return tuple(item) if isinstance(item, list) else item
