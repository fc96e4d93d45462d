"""Any file of a network, ready to run on image files: packed files, ONNX files, checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from _checkpoints import read_network
from _exported import STANDARD, about_of, class_names, open_packed
from torch import Tensor

from lib.data.class_names import imagenet_names
from lib.data.preprocessing import Preprocessing
from lib.export.container import is_packed


@dataclass(frozen=True)
class Runnable:
    """A network that takes image files.

    Attributes:
        run: images float32 (N, C, H, W) -> logits (N, classes), on the CPU.
        prepare: paths -> images.
        names: of the classes.
        what: in words.
    """

    run: Callable[[Tensor], Tensor]
    prepare: Preprocessing
    names: list[str]
    what: str


def open_network(path, network, data, device, names_file=None):
    """Return the `Runnable` of a packed file, an ONNX file or a checkpoint.

    Args:
        path: of the file.
        network, data: the `Network` and the `Data` of a checkpoint's run; of a packed file only `model_file` counts.
        device: where it runs; ONNX files run on the CPU.
        names_file: names of the classes, in place of those in the file.
    """
    if is_onnx(path):
        from lib.export.onnx_run import open_onnx  # it imports onnxruntime, which takes seconds, if it is there
        infer, about = open_onnx(path)
        return runnable(path, about, lambda images: torch.from_numpy(infer(images.numpy())), data, names_file)
    if is_packed(path):
        model, about = open_packed(path, network.model_file)
    else:
        model, saved, _ = read_network(path, network, data)
        about = about_of(saved, network, data, names_file)
    model.to(device)

    @torch.no_grad()
    def run(images):
        return model(images.to(device)).float().cpu()
    return runnable(path, about, run, data, names_file)


def is_onnx(path):
    """Whether a file is an ONNX file, by its name."""
    return Path(path).suffix.lower() == '.onnx'


def is_alone(path):
    """Whether a file says itself what network it is of: a packed or an ONNX file."""
    return is_onnx(path) or is_packed(path)


def runnable(path, about, run, data, names_file):
    """Return the `Runnable` of a network that says this of itself."""
    if about['preprocessing'] is None:
        raise ValueError(f'{path} does not say how image files become its input (it was trained on tensors, or on a '
                         'data set that is not known here): run it from Python, see docs/export.md')
    names = class_names(data, about['classes'], names_file=names_file) if names_file else about['class_names']
    names = imagenet_names() if names == STANDARD else names
    kind = about.get('quantization', 'float')
    return Runnable(run, Preprocessing(**about['preprocessing']), names or [str(i) for i in range(about['classes'])],
                    f'{about["network"]["arch"]}, {kind}')
