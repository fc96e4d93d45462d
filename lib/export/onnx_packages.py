"""The packages of requirements-export.txt, which nothing else here needs: imported where installed, else None."""

from types import ModuleType

try:
    import onnx
    import onnx_ir as ir
    import onnxruntime
    import onnxscript
except ImportError as error:
    onnx = ir = onnxruntime = onnxscript = None
    MISSING = str(error)
else:
    MISSING = ''

try:
    import openvino
except ImportError:
    openvino = None

__all__ = ['ir', 'onnx', 'onnxruntime', 'openvino', 'require_onnx']


def require_onnx() -> ModuleType:
    """Return onnxruntime; ValueError, with the file that names what to install, where a package is missing."""
    if MISSING:
        raise ValueError(f'ONNX needs packages that are not installed ({MISSING}): pip install -r '
                         'requirements-export.txt')
    return onnxruntime
