"""From a quantized network to the bytes of an ONNX file, and what every export says of it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lib.export.onnx_graph import copy_of, expand, marked_graph
from lib.export.onnx_packages import ir, openvino
from lib.export.onnx_runtimes import METADATA, WITHOUT_FUSION, OnnxNetwork, OpenVinoNetwork
from lib.export.onnx_sums import with_sums
from lib.export.onnx_twin import Twin, twin_of
from lib.export.onnx_verify import CodeCheck, RuntimeCheck, check_codes, check_runtimes
from lib.quantize.codebook import Codebook
from lib.quantize.quantizer import Grid

LEAST_AGREEMENT = 99.5  # percent of equal predictions of the graph whose operators run as they stand
REFERENCE, DEFAULT, EXACT = 'onnxruntime, not fused', 'onnxruntime', 'onnxruntime, x64quantprecision'
FUSED = ('QLinearConv', 'QGemm', 'QLinearAdd', 'QLinearMatMul', 'QLinearConcat', 'QLinearAveragePool',
         'QLinearGlobalAveragePool', 'MatMulIntegerToFloat', 'DynamicQuantizeMatMul', 'MatMulNBits')


@dataclass
class OnnxFile:
    """A network as an ONNX graph.

    Attributes:
        graph: its onnx-ir model.
        twin: what its quantizers became.
        data: the file.
        marked: the graph before standard nodes took the place of its marks.
        storage: of linear weights.
    """

    graph: Any
    twin: Twin
    data: bytes
    marked: Any
    storage: str = 'int8'


def make_onnx(model: nn.Module, images: Tensor, *, storage: str = 'int8', codebooks: dict[str, Codebook] | None = None
              ) -> OnnxFile:
    """Return the `OnnxFile` of a quantized network on the CPU.

    Args:
        images: probe (N, C, H, W).
        storage: of linear weights: 'int8' codes, 'int4' codes where they fit, or 'packed' to their bits.
        codebooks: {layer: `Codebook`} of the K-means flow.

    Raises:
        ValueError: a quantizer has no form in ONNX, or PyTorch cannot export the network.
    """
    twin = twin_of(model, images, codebooks)
    marked = marked_graph(twin, images)
    return file_of(marked, twin, storage)


def file_of(marked: Any, twin: Twin, storage: str = 'int8', sums: dict[str, Grid] | None = None) -> OnnxFile:
    """Return the `OnnxFile` of a marked graph, which stays as it is; `sums` are the grids of its further marks."""
    graph = expand(copy_of(marked), twin, storage, sums)
    return OnnxFile(graph, twin, bytes_of(graph), marked, storage)


def with_int8_sums(file: OnnxFile, images: Tensor) -> OnnxFile:
    """Return the file with 8-bit sums, whose ranges are those on a batch of images (N, C, H, W): another function.

    Raises:
        ValueError: the network has no sum.
    """
    marked, sums = with_sums(file.marked, file.graph, images)
    return file_of(marked, file.twin, file.storage, sums)


def bytes_of(graph) -> bytes:
    """Return an onnx-ir model as the bytes of a file."""
    return ir.to_proto(graph).SerializeToString()


def with_metadata(file: OnnxFile, text: str) -> OnnxFile:
    """Return the file with a text about its network."""
    graph = copy_of(file.graph)
    graph.metadata_props[METADATA] = text
    return replace(file, graph=graph, data=bytes_of(graph))


def runtimes_of(data: bytes) -> dict:
    """Return {name: network} of the runtimes to compare, on one thread."""
    found = {REFERENCE: OnnxNetwork(data, WITHOUT_FUSION), DEFAULT: OnnxNetwork(data, {}, keep_graph=True),
             EXACT: OnnxNetwork(data)}
    if openvino is not None:
        found['OpenVINO'] = OpenVinoNetwork(data)
    return found


@dataclass
class Verification:
    """What an export found of its file.

    Attributes:
        codes: {quantizer: `CodeCheck`}.
        runtimes: {runtime: `RuntimeCheck`}.
        nodes: {runtime: {kind of node: count}}: how much of it runs on 8 bits.
    """

    codes: dict[str, CodeCheck]
    runtimes: dict[str, RuntimeCheck]
    nodes: dict[str, dict[str, int]]

    def wrong_codes(self) -> list[str]:
        """Return, in words, which quantizers differ from those of the network."""
        return [f'{name} differs by {row.largest} codes, {row.tie:.2g} codes from a tie' for name, row in
                self.codes.items() if not row.is_right]

    def problems(self) -> list[str]:
        """Return, in words, where the graph is not the network."""
        found = self.wrong_codes()
        agreement = self.runtimes[REFERENCE].agreement
        if agreement < LEAST_AGREEMENT:
            found.append(f'the same prediction for only {agreement:.2f} % of {self.runtimes[REFERENCE].images} images')
        return found


def verify(model: nn.Module, file: OnnxFile, code_batches: Iterable[Tensor], batches: Iterable[tuple]
           ) -> Verification:
    """Compare the file with the network code by code, and whole in all runtimes.

    Args:
        code_batches: of images on which codes are compared.
        batches: (images, labels or None).
    """
    codes = {}
    for images in code_batches:
        for name, row in check_codes(model, file.graph, file.twin.grids, images).items():
            codes.setdefault(name, []).append(row)
    merged = {name: CodeCheck(float(np.mean([row.equal for row in rows])), max(row.largest for row in rows),
                              max(row.tie for row in rows), rows[0].unit) for name, rows in codes.items()}
    runtimes = runtimes_of(file.data)
    with torch.no_grad():
        found = check_runtimes(model, runtimes, batches)
    return Verification(merged, found, {name: node_counts(runtime) for name, runtime in runtimes.items()
                                        if runtime.nodes is not None})


def node_counts(network: OnnxNetwork | OpenVinoNetwork) -> dict[str, int]:
    """Return {kind: count} of the nodes that compute: those of 8 bits, and convolutions and products of floats."""
    if isinstance(network, OpenVinoNetwork):
        return {f'{kind} {precision}': count for (kind, precision), count in sorted(network.nodes.items())
                if kind in ('Convolution', 'FullyConnected', 'MatMul', 'Eltwise')}
    floats = ('Conv', 'FusedConv', 'Gemm', 'FusedGemm', 'MatMul')
    return {kind: count for kind, count in sorted(network.nodes.items()) if kind in FUSED + floats}
