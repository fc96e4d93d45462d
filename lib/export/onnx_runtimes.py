"""Runs ONNX files on batches of images: onnxruntime, and OpenVINO where it is installed."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from torch import Tensor

from lib.export.onnx_packages import ir, openvino, require_onnx
from lib.record.files import parse_json

METADATA = 'haq'  # key of what the file says of its network, as JSON
# Without them onnxruntime adds pairs of 8-bit products in 16 bits on processors that lack VNNI, and they saturate.
EXACT_SUMS = {'session.x64quantprecision': '1'}
WITHOUT_FUSION = {'session.disable_quant_qdq': '1'}  # every operator as it stands, in float32


class OnnxNetwork:
    """An ONNX file in onnxruntime, on the CPU. Called with images (N, C, H, W) it returns float32 logits (N, classes).

    Args:
        source: path of the file, or its bytes.
        settings: of the session; by default those with which 8-bit sums are exact on every processor.
        threads: of one operator.
        keep_graph: note in `nodes` what onnxruntime runs, {operator: count}.

    Raises:
        ValueError: the packages are missing, or onnxruntime does not take the file.
    """

    def __init__(self, source: str | Path | bytes, settings: dict[str, str] | None = None, *, threads: int = 1,
                 keep_graph: bool = False):
        runtime = require_onnx()
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        for key, value in (EXACT_SUMS if settings is None else settings).items():
            options.add_session_config_entry(key, value)
        with tempfile.TemporaryDirectory() as folder:
            optimized = Path(folder) / 'optimized.onnx'
            if keep_graph:
                options.optimized_model_filepath = str(optimized)
            try:
                self.session = runtime.InferenceSession(source if isinstance(source, bytes) else str(source), options,
                                                        providers=['CPUExecutionProvider'])
            except Exception as error:  # onnxruntime has a type of its own for each reason
                what = 'the network' if isinstance(source, bytes) else source
                raise ValueError(f'onnxruntime cannot read {what}: {_first_line(error)}') from error
            self.nodes = Counter(node.op_type for node in ir.load(optimized).graph) if keep_graph else None
        self.input = self.session.get_inputs()[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.input.shape[1:])

    @property
    def metadata(self) -> dict:
        """Return what the file says of its network; {} for a file from elsewhere."""
        text = self.session.get_modelmeta().custom_metadata_map.get(METADATA)
        return parse_json(text, 'the metadata of the ONNX file') if text else {}

    def __call__(self, images: Tensor | np.ndarray) -> np.ndarray:
        images = np.asarray(images, dtype=np.float32)
        if images.shape[1:] != self.shape or len(images) == 0:
            sizes = ', '.join(map(str, self.shape))
            raise ValueError(f'images have shape {images.shape}; the ONNX file takes (N, {sizes}), N above 0')
        try:
            return self.session.run(None, {self.input.name: images})[0]
        except Exception as error:
            raise ValueError(f'onnxruntime cannot run the network: {_first_line(error)}') from error


def run_onnx(path: str | Path, images: Tensor | np.ndarray, *, batch: int = 16, threads: int = 1) -> np.ndarray:
    """Return the logits (N, classes) of an ONNX file for images (N, C, H, W), `batch` of them at a time."""
    network = OnnxNetwork(path, threads=threads)
    return np.concatenate([network(images[at:at + batch]) for at in range(0, len(images), batch)])


class OpenVinoNetwork:
    """The same in OpenVINO; `nodes` are {(kind of layer, precision in which it runs): count}.

    Args:
        precision: of what is not quantized: 'f32', 'bf16'.
    """

    def __init__(self, source: str | Path | bytes, *, threads: int = 1, precision: str = 'f32'):
        core = openvino.Core()
        network = core.read_model(source if isinstance(source, bytes) else str(source))
        self.compiled = core.compile_model(network, 'CPU', {
            'INFERENCE_NUM_THREADS': threads, 'INFERENCE_PRECISION_HINT': precision,
            'PERFORMANCE_HINT': 'LATENCY', 'NUM_STREAMS': 1})
        self.nodes = Counter()
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            self.nodes[str(info['layerType'].astype(str)), str(info['runtimePrecision'].astype(str))] += 1

    def __call__(self, images: Tensor | np.ndarray) -> np.ndarray:
        return self.compiled(np.asarray(images, dtype=np.float32))[0]


def _first_line(error: Exception) -> str:
    return f'{(str(error).strip().splitlines() or [type(error).__name__])[0]:.300}'
