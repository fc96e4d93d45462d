"""Compares an ONNX graph with the quantized network that it is from: code by code, and whole in several runtimes."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.export.onnx_graph import IMAGES, copy_of, quiet, zero_point
from lib.export.onnx_packages import ir
from lib.export.onnx_runtimes import WITHOUT_FUSION, OnnxNetwork
from lib.integer.compare import seen_by_quantizers
from lib.quantize.quantizer import Grid

NEAR = 0.05  # of a code: how far from a tie a value may be that float32 and int32 biases still move to the other side


class CodeCheck(NamedTuple):
    """How the codes of one quantizer differ where every layer is given the codes that the network has there.

    `equal` is the share of equal codes, `largest` the largest difference, and `tie` how far from the edge between two
    codes, in codes, the furthest of the values lies whose codes differ. `unit` is how many codes are one of 8 bits.
    """

    equal: float
    largest: int
    tie: float
    unit: int = 1

    @property
    def is_right(self) -> bool:
        """Whether codes are at most one of 8 bits apart and, those of 8 bits, only next to a tie."""
        return self.largest <= self.unit and (self.tie <= NEAR or self.unit > 1)


@torch.no_grad()
def check_codes(model: nn.Module, graph, grids: Mapping[str, Grid], images: Tensor) -> dict[str, CodeCheck]:
    """Return {quantizer of activations: `CodeCheck`} of an onnx-ir model, on a batch of images.

    Args:
        model: the fake-quantized network, on the CPU.
        graph: what `expand` made.
        grids: of the quantizers, by name.
    """
    expected = seen_by_quantizers(  # (input, codes)
        model, images.clone(), lambda quantizer, x: (x.clone(), quantizer.to_int(x)[0].long()))
    if not expected:
        return {}
    session = OnnxNetwork(ir.to_proto(_cut(graph, expected)).SerializeToString(), WITHOUT_FUSION).session
    kinds = {entry.name: np.uint8 if entry.type == 'tensor(uint8)' else np.float32 for entry in session.get_inputs()}
    given = {IMAGES: images.numpy()}
    zeros = {title: zero_point(grids[title.partition('#')[0]]) or 0 for title in expected}
    for title, (_, codes) in expected.items():
        given[f'{title}.given'] = (codes + zeros[title]).numpy().astype(kinds[f'{title}.given'])
    found = dict(zip(expected, session.run(list(expected), {name: given[name] for name in kinds}), strict=True))
    return {title: _code_check(torch.from_numpy(found[title].astype(np.int64)) - zeros[title], codes, x,
                               grids[title.partition('#')[0]]) for title, (x, codes) in expected.items()}


def _cut(graph, titles):
    """Return a copy of the graph that takes the codes of every quantizer from outside, and gives those it computes."""
    copy = copy_of(graph)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    for title in titles:
        value = values[title]
        other = ir.Value(name=f'{title}.given', shape=value.shape, type=value.type)
        if other.type is None:
            uint8 = any(user.op_type == 'DequantizeLinear' for user in value.consumers())
            other.type = ir.TensorType(ir.DataType.UINT8 if uint8 else ir.DataType.FLOAT)
        value.replace_all_uses_with(other)
        copy.graph.inputs.append(other)
        value.type = other.type
        copy.graph.outputs.append(value)
    with quiet('onnx_ir'):
        return ir.passes.common.RemoveUnusedNodesPass()(copy).model


def _code_check(found, codes, x, grid):
    differ = found != codes
    ratio = x[differ].double() / (grid.step if grid.step > 0 else 1.0)
    tie = ratio.abs() if grid.binary else (ratio - ratio.floor() - 0.5).abs()
    return CodeCheck((~differ).double().mean().item(), int((found - codes).abs().max()),
                     tie.max().item() if len(tie) else 0.0, max(1, (grid.high - grid.low + 1) // 256))


class RuntimeCheck(NamedTuple):
    """A runtime beside the network: percent of equal predictions, the largest difference of a logit, accuracies.

    `top1` and `top1_network` are in percent, None where the images have no labels.
    """

    images: int
    agreement: float
    difference: float
    top1: float | None
    top1_network: float | None


@torch.no_grad()
def check_runtimes(network: Callable, runtimes: Mapping[str, Callable], batches: Iterable[tuple]
                   ) -> dict[str, RuntimeCheck]:
    """Return {runtime: `RuntimeCheck`} on batches (images, labels or None) of any size.

    Args:
        network: images (N, C, H, W) -> logits, a tensor.
        runtimes: {name: images -> logits, an array}.
    """
    sums = {name: [0, 0.0, 0, 0] for name in runtimes}  # agreed, largest, hits, hits of the network
    images, labelled = 0, True
    for batch, labels in batches:
        expected = network(batch.clone())
        images, labelled = images + len(batch), labelled and labels is not None
        hits = 0 if labels is None else int((expected.argmax(1) == labels).sum())
        for name, runtime in runtimes.items():
            found = torch.as_tensor(runtime(batch))
            best, row = found.argmax(1), sums[name]
            row[0] += int((best == expected.argmax(1)).sum())
            row[1] = max(row[1], (found - expected).abs().max().item())
            row[2] += 0 if labels is None else int((best == labels).sum())
            row[3] += hits
    share = {name: [100 * count / images for count in (row[0], row[2], row[3])] for name, row in sums.items()}
    return {name: RuntimeCheck(images, share[name][0], row[1], *(share[name][1:] if labelled else (None, None)))
            for name, row in sums.items()}
