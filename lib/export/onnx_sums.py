"""8-bit sums, concatenations and averages in an ONNX graph, without which runtimes fuse little of a residual network.

A convolution whose output goes into a float sum stays a float operation in onnxruntime. With QuantizeLinear and
DequantizeLinear around the sums it is fused. That is another function than the trained network: the sums are rounded.
"""

import numpy as np
from torch import Tensor

from lib.export.onnx_graph import DOMAIN, IMAGES, INPUT, copy_of
from lib.export.onnx_packages import ir
from lib.export.onnx_runtimes import WITHOUT_FUSION, OnnxNetwork
from lib.quantize.quantizer import Grid

SUMS, AVERAGES, CLIPS, LEVELS = ('Add', 'Concat'), ('ReduceMean', 'GlobalAveragePool'), ('Relu', 'Clip'), 255


def tensors_around_sums(marked) -> list:
    """Return the values, in a marked graph, that sums take and give: past a ReLU that alone takes a sum.

    Of averages over an image it is what they take.
    """
    found = {}
    for node in marked.graph:
        operands = [value for value in node.inputs if value is not None and _is_image(value)]
        if not node.domain and node.op_type in SUMS and len(operands) > 1:
            operands.append(_behind(node.outputs[0]))
        elif node.domain or node.op_type not in AVERAGES:
            continue
        found.update({value.name: value for value in operands})
    return list(found.values())


def _is_image(value) -> bool:
    return value.producer() is not None and value.shape is not None and len(value.shape) == 4


def _behind(value):
    users = list(value.uses())
    if len(users) == 1 and users[0][0].op_type in CLIPS and not users[0][0].domain and not value.is_graph_output():
        return users[0][0].outputs[0]
    return value


def find_ranges(graph, names: list[str], images: Tensor) -> dict[str, tuple[float, float]]:
    """Return {value: (least, largest)} of float values of an expanded graph, on a batch of images."""
    copy = copy_of(graph)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    for name in names:
        if values[name].type is None:
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
        copy.graph.outputs.append(values[name])
    session = OnnxNetwork(ir.to_proto(copy).SerializeToString(), WITHOUT_FUSION).session
    found = {name: (np.inf, -np.inf) for name in names}
    for part in images.split(8):
        for name, tensor in zip(names, session.run(names, {IMAGES: part.numpy()}), strict=True):
            low, high = found[name]
            found[name] = min(low, float(tensor.min())), max(high, float(tensor.max()))
    return found


def grid_of(low: float, high: float) -> Grid:
    """Return 256 levels from the lower of `low` and 0 to the higher of `high` and 0, of which one is 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    step = float(np.float32((high - low) / LEVELS)) or 1.0
    zero = int(np.rint(-low / step))
    return Grid(step, step, -zero, LEVELS - zero, zero_point=zero)


def with_sums(marked, expanded, images: Tensor) -> tuple:
    """Return (a copy of a marked graph with marks around its sums, {mark: its `Grid`}).

    Args:
        marked: of `marked_graph`.
        expanded: what `expand` made of it, in which the ranges are found.
        images: batch (N, C, H, W) on which they are.

    Raises:
        ValueError: the network has no sum.
    """
    copy = copy_of(marked)
    known = {value.name for node in expanded.graph for value in node.outputs}
    values = tensors_around_sums(copy)
    if not values:
        raise ValueError('the network has no sum, concatenation or average of images: leave 8-bit sums out')
    sources = {value.name: value.name if value.name in known else value.producer().inputs[0].name for value in values}
    ranges, grids = find_ranges(expanded, sorted(set(sources.values())), images), {}
    for value in values:
        low, high = ranges[sources[value.name]]
        if sources[value.name] != value.name:  # its ReLU was dropped
            low = 0.0
        title = f'{value.name}.sum'
        node = ir.node(INPUT, [value], {'name': title}, domain=DOMAIN, version=1)
        grids[title] = grid_of(low, high)
        value.replace_all_uses_with(node.outputs[0])
        node.replace_input_with(0, value)
        node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = f'{title}.value', value.shape, value.type
        copy.graph.insert_after(value.producer(), node)
    return copy, grids
