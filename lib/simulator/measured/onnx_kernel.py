"""Layers run by onnxruntime's int8 kernels, where the packages `onnx` and `onnxruntime` are installed."""

from importlib import import_module
from types import ModuleType

import numpy as np

from lib.simulator.layer import LayerRecord
from lib.simulator.measured.kernels import Kernel

MICROSOFT = 'com.microsoft'  # the domain of the convolution that takes channels last


def load_onnx() -> tuple[ModuleType, ModuleType]:
    """Return the modules `onnx` and `onnxruntime`, which are no requirements of this repository.

    Raises:
        ValueError: one of them is not installed (says what to install).
    """
    try:
        return import_module('onnx'), import_module('onnxruntime')
    except ImportError as error:
        raise ValueError(
            f'the kernel onnxruntime needs two packages more ({error}): pip install -r requirements-export.txt, '
            'or take the kernel int8'
        ) from error


class OnnxKernel(Kernel):
    """The layer as a model of one node, QLinearConv or QLinearMatMul: uint8 inputs and results, int8 weights.

    Operands as in `Int8Kernel`; the call includes onnxruntime's own, some microseconds.
    """

    def __init__(self, layer: LayerRecord, batch: int, threads: int):
        super().__init__(layer, batch)
        self.x = self.codes(self.input_shape, 0, 127).numpy().astype(np.uint8)
        self.weight = self.codes(self.weight_shape, -128, 127).numpy().astype(np.int8)
        if layer.kind == 'conv':
            self.x = np.ascontiguousarray(self.x.transpose(0, 2, 3, 1))
        onnx, runtime = load_onnx()
        self.what = f"onnxruntime {runtime.__version__}, {'QLinearConv' if layer.kind == 'conv' else 'QLinearMatMul'}"
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        model = self._model(onnx).SerializeToString()
        self.session = runtime.InferenceSession(model, options, providers=['CPUExecutionProvider'])

    def __call__(self) -> np.ndarray:
        return self.session.run(None, {'x': self.x})[0]

    def _model(self, onnx):
        """Return the model; every operand but the input is a constant in it."""
        helper, types, is_conv = onnx.helper, onnx.TensorProto, self.layer.kind == 'conv'
        weight = self.weight if is_conv else np.ascontiguousarray(self.weight.T)
        constants = {
            'x_scale': np.float32(self.X_SCALE), 'x_zero': np.uint8(self.X_ZERO),
            'w': weight, 'w_scale': np.float32(self.W_SCALE), 'w_zero': np.int8(0),
            'y_scale': np.float32(self.y_scale), 'y_zero': np.uint8(self.Y_ZERO),
        }  # fmt: skip
        node = helper.make_node('QLinearConv' if is_conv else 'QLinearMatMul', ['x', *constants], ['y'],
                                **(self._attributes() if is_conv else {}))
        graph = helper.make_graph(
            [node], 'layer',
            [helper.make_tensor_value_info('x', types.UINT8, self.x.shape)],
            [helper.make_tensor_value_info('y', types.UINT8, None)],
            [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )  # fmt: skip
        domains = [helper.make_opsetid('', 13), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=8)

    def _attributes(self) -> dict:
        layer = self.layer
        return {
            'domain': MICROSOFT, 'channels_last': 1, 'group': layer.groups, 'kernel_shape': list(layer.kernel),
            'strides': list(layer.stride), 'pads': list(self.padding) * 2,
        }  # fmt: skip
