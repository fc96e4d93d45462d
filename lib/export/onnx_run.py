"""ONNX files of this repository as predict.py runs them: what images they take, and what their classes are called."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from lib.export.about import check_images
from lib.export.onnx_runtimes import METADATA, OnnxNetwork


def open_onnx(path: str | Path) -> tuple[Callable[[np.ndarray], np.ndarray], dict]:
    """Return (images float32 (N, C, H, W) -> logits (N, classes), what the file says of itself) of an ONNX file.

    What it says lies in its metadata under the same key as in a packed file, with the same entries about images.

    Raises:
        ValueError: onnxruntime is missing or cannot read the file, or it does not say what images it takes.
    """
    network = OnnxNetwork(path)
    about = network.metadata
    try:
        check_images(about)
    except ValueError as error:
        raise ValueError(f'{path} does not say what images it takes, as files of export.py --onnx do under '
                         f'{METADATA} in their metadata: {error}') from error
    return network, about
