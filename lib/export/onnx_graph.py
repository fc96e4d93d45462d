"""Quantized networks as ONNX graphs (docs/export.md): PyTorch exports the twin, then standard nodes replace its marks.

A quantizer of activations becomes QuantizeLinear -> Clip -> DequantizeLinear on uint8, a signed one with the zero point
128, an affine one with its own. The Clip holds the codes of fewer than 8 bits; QuantizeLinear alone saturates at 255.
"""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lib.export.onnx_packages import ir, require_onnx
from lib.export.onnx_twin import BIAS, DOMAIN, INPUT, WEIGHT, Twin
from lib.export.onnx_weights import codebook_weight, constant, float_weight, integer_constants, stored_codes
from lib.quantize.quantizer import Grid

OPSET, IR_VERSION, IMAGES, LOGITS = 21, 10, 'images', 'logits'
PASSES_ORDER = ('MaxPool', 'Reshape', 'Flatten', 'Transpose', 'Squeeze', 'Unsqueeze', 'Identity')


def marked_graph(twin: Twin, images: Tensor):
    """Return the onnx-ir model of a twin, its marks still in it; any number of images.

    Where there are codebooks, nothing is folded: a BatchNorm would become part of a weight that keeps its name.

    Raises:
        ValueError: PyTorch cannot export the network.
    """
    require_onnx()
    batch = torch.export.Dim('batch')
    try:
        with warnings.catch_warnings(), quiet('onnx_ir', 'onnxscript', 'torch.onnx', 'torch.export'):
            warnings.simplefilter('ignore')
            program = torch.onnx.export(
                twin.module, (images,), dynamo=True, verbose=False, opset_version=OPSET, input_names=[IMAGES],
                output_names=[LOGITS], dynamic_shapes=({0: batch},), optimize=not twin.books)
    except Exception as error:  # whatever tracing a network of the user raises
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f'PyTorch cannot export {type(twin.module).__name__} to ONNX: {line:.300}') from error
    with quiet('onnx_ir'):
        model = ir.passes.common.ClearMetadataAndDocStringPass()(program.model).model
    model.ir_version = IR_VERSION
    return model


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Let loggers of these names be silent within this context, but for errors."""
    levels = {logger: logger.level for logger in map(logging.getLogger, names)}
    try:
        for logger in levels:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def copy_of(model):
    """Return a copy of an onnx-ir model."""
    return ir.from_proto(ir.to_proto(model))


def name_of(node) -> str:
    """Return the name that a mark carries, that of its quantizer."""
    return node.attributes['name'].as_string()


def expand(model, twin: Twin, storage: str = 'int8', more: dict[str, Grid] | None = None):
    """Put standard nodes in the place of all marks of an onnx-ir model, in place, and return it.

    The codes of every quantizer are a value of its name; those of its second call end with #2.

    Args:
        model: of `marked_graph`.
        storage: of linear weights: 'int8', 'int4' or 'packed'.
        more: grids of further marks.
    """
    grids = {**twin.grids, **(more or {})}
    bounds = drop_clips(model, grids)
    _Expansion(model.graph, twin, storage, grids, bounds).run()
    for name, (keys, book) in twin.books.items():
        _pack_weight(model.graph, name, keys, book)
    model.opset_imports.pop(DOMAIN, None)
    with quiet('onnx_ir'):
        for tidy in (ir.passes.common.RemoveUnusedNodesPass(), ir.passes.common.TopologicalSortPass()):
            model = tidy(model).model
    return model


# ---- ReLU and ReLU6 before a quantizer

def drop_clips(model, grids: dict[str, Grid]) -> dict:
    """Remove every ReLU and clip whose output only quantizers take, and return {mark: (low, high)} of what it did.

    A quantizer rounds monotonically, so clip(x, l, h) has the codes of x, clipped to those of l and h.
    """
    bounds = {}
    for node in list(model.graph):
        limits = _limits(node)
        leaves = None if limits is None else _leaves(node.outputs[0])
        if leaves and not any(grids[name_of(leaf)].binary for leaf in leaves):
            for leaf in leaves:
                low, high = bounds.get(leaf, (-math.inf, math.inf))
                bounds[leaf] = max(low, limits[0]), min(high, limits[1])
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
    return bounds


def _limits(node) -> tuple[float, float] | None:
    """Return what a node clips to, None where it does anything else."""
    if node.domain or node.op_type not in ('Relu', 'Clip'):
        return None
    if node.op_type == 'Relu':
        return 0.0, math.inf
    found = []
    for index, nothing in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[index] if len(node.inputs) > index else None
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        if value is not None and tensor is None:
            return None
        found.append(nothing if tensor is None else tensor.numpy().item())
    return tuple(found)


def _leaves(value) -> list | None:
    """Return the marks of inputs that take a value, past what keeps order; None where something else takes it."""
    if value.is_graph_output():
        return None
    found = []
    for user in value.consumers():
        if user.domain == DOMAIN and user.op_type == INPUT:
            found.append(user)
        elif user.op_type in PASSES_ORDER and not user.domain and user.inputs[0] is value:
            below = _leaves(user.outputs[0])
            if below is None:
                return None
            found += below
        elif user.domain != DOMAIN:  # the other marks only need an input
            return None
    return found


# ---- standard nodes for marks

class _Expansion:
    def __init__(self, graph, twin: Twin, storage: str, grids: dict[str, Grid], bounds: dict):
        self.graph, self.twin, self.storage, self.grids, self.bounds = graph, twin, storage, grids, bounds
        self.known, self.calls = {}, {}

    def run(self):
        for node in [node for node in self.graph if node.domain == DOMAIN]:
            tape, name = ir.tape.Tape(self.graph), name_of(node)
            value = self.input(tape, name, node) if node.op_type == INPUT else self.of_layer(tape, node.op_type, name)
            node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
            self.graph.remove(node, safe=True)

    def input(self, tape, name, node):
        self.calls[name] = self.calls.get(name, 0) + 1
        title = name if self.calls[name] == 1 else f'{name}#{self.calls[name]}'
        return quantized_input(tape, title, node.inputs[0], self.grids[name], self.bounds.get(node))

    def of_layer(self, tape, kind, name):
        """Return the weight or bias of a layer; one that is called again has them already."""
        if (kind, name) not in self.known:
            weight = self.twin.weights[name]
            pair = linear_weight(tape, name, weight, self.grids.get(weight.input), self.storage)
            self.known[WEIGHT, name], self.known[BIAS, name] = pair
        return self.known[kind, name]


def _pack_weight(graph, name, keys, book):
    """Put packed indices and their centroids in the place of a weight, which is an initializer of its own name."""
    key = next(key for key in keys if key in graph.initializers)
    weight = graph.initializers[key]
    if not np.array_equal(weight.const_value.numpy(), book.decode().numpy()):
        raise ValueError(f'{name}: the exporter of PyTorch changed its weight, which is no longer that of its codebook')
    weight.replace_all_uses_with(codebook_weight(ir.tape.Tape(graph), f'{name}.weight', book))
    del graph.initializers[key]


def zero_point(grid: Grid) -> int | None:
    """Return the zero point with which the codes of a grid are uint8, None where they have more than 8 bits."""
    if not grid.zero_point and -128 <= grid.low < 0 and grid.high <= 127:
        return 128
    zero = grid.zero_point or max(-grid.low, 0)
    return zero if grid.high + zero <= 255 else None


def real_scale(grid: Grid) -> float:
    """Return the scale of a grid's codes; of one whose range is 0, all of whose codes are 0, any."""
    return grid.scale if grid.scale > 0 else 1.0


def quantized_input(tape, title: str, x, grid: Grid, bounds: tuple[float, float] | None = None):
    """Return the float value of `x` on a grid; its codes are a value of the name `title`.

    Args:
        bounds: of the real values, beyond which `x` is to be clipped first.
    """
    number = partial(_number, tape, title)
    dead = not (grid.binary or grid.step > 0 and grid.scale > 0)
    low, high = (0, 0) if dead else (grid.low, grid.high)
    step, zero = (1.0 if dead else grid.step), zero_point(grid)
    if bounds and not dead:
        ends = np.clip(np.rint(np.float32(bounds) / np.float32(step)), low, high)
        low, high = int(max(low, ends[0])), int(min(high, ends[1]))
    if zero is None:
        ratio = tape.op('Round', [tape.op('Div', [x, number('step', np.float32(step))])])
        limits = [number(end, np.float32(code)) for end, code in (('low', low), ('high', high))]
        codes = tape.op('Clip', [ratio, *limits])
        codes.name = title
        return tape.op('Mul', [codes, number('scale', np.float32(real_scale(grid)))])
    zero_value = number('zero', np.uint8(zero))
    if grid.binary:
        positive = tape.op('GreaterOrEqual', [x, number('threshold', np.float32(0))])
        levels = [number(sign, np.uint8(zero + code)) for sign, code in (('plus', 1), ('minus', -1))]
        codes = tape.op('Where', [positive, *levels])
    else:
        codes = tape.op('QuantizeLinear', [x, number('step', np.float32(step)), zero_value])
        if (low + zero, high + zero) != (0, 255):
            limits = [number(end, np.uint8(code + zero)) for end, code in (('low', low), ('high', high))]
            codes = tape.op('Clip', [codes, *limits])
    codes.name = title
    return tape.op('DequantizeLinear', [codes, number('scale', np.float32(real_scale(grid))), zero_value])


def _number(tape, title, what, value):
    return constant(tape, f'{title}.{what}', value)


def linear_weight(tape, name: str, weight, grid: Grid | None, storage: str) -> tuple:
    """Return weight and bias of a layer of linear codes, both float32 values.

    Args:
        grid: of the quantizer of the layer's input, None where that stays float.
    """
    whole = weight.zero is None and int(weight.codes.abs().max()) <= 127
    if not whole or grid is None or zero_point(grid) is None:
        return (float_weight(tape, f'{name}.weight', weight, storage),
                constant(tape, f'{name}.bias', weight.bias.numpy().astype(np.float32)))
    step = real_scale(grid)
    codes, k, scale, units = integer_constants(weight, step)
    stored = stored_codes(tape, f'{name}.weight', codes, k, storage)
    scales = constant(tape, f'{name}.weight.scale', scale)
    products = constant(tape, f'{name}.bias.scale', (scale * np.float64(np.float32(step))).astype(np.float32))
    zeros = constant(tape, f'{name}.weight.zero', np.zeros(len(scale), np.int8))  # onnxruntime's U8U8 wants them
    bias = constant(tape, f'{name}.bias', units)
    return (tape.op('DequantizeLinear', [stored, scales, zeros], {'axis': 0}),
            tape.op('DequantizeLinear', [bias, products], {'axis': 0}))
