"""What layers multiply their weights with, seen while a network runs, as rows of a matrix."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.network.hooks import hooked
from lib.network.reach import Following, slow_attention
from lib.quantize.layers import QuantizedLayer
from lib.quantize.reading import READS

POSITIONS = 64  # of an image, in its output or of its tokens; of more, so many are drawn
CHUNK = 1 << 24  # numbers of the rows that are there at a time


@contextmanager
def seeing_inputs(model: nn.Module, layers: Mapping[str, nn.Module], see: Callable[[str, Tensor], None]
                  ) -> Iterator[None]:
    """Within this context, every forward of the model gives `see(name, x)` the input of each call of these layers.

    It is the quantized one where the layer quantizes its input. Layers whose weights other code multiplies with
    (`lib.network.reach`) are seen there.
    """
    read = {layer for module in model.modules() for layer in getattr(module, READS, ())}
    quantizing = {name: layer for name, layer in layers.items()
                  if isinstance(layer, QuantizedLayer) and layer.quantizes}
    names = {layer: name for name, layer in layers.items() if layer in read and name not in quantizing}
    called = {name: layer for name, layer in layers.items() if name not in quantizing and layer not in names}

    def note(use, x, _weight):
        if use.layer in names:
            see(names[use.layer], x)

    def after_quantizer(name, _module, _x, output):
        see(name, output)

    def before(name, _module, x):
        see(name, x)

    quantizers = {name: layer.input_quantizer for name, layer in quantizing.items()}
    following = partial(Following(note).through, model) if names else partial(hooked, {})
    with slow_attention(), hooked(called, before), hooked(quantizers, after=after_quantizer), following():
        yield


def rows(layer: nn.Module, x: Tensor, seed: int = 0) -> Iterator[Tensor]:
    """Give the inputs of a layer's multiplications as rows (groups, n, d), in parts whose n add up.

    Of a convolution d is C / groups * kh * kw, in the order of its weight, and a row belongs to an image and a position
    of the output; of a linear layer d is its number of inputs, and the dimensions of x between the first and the last
    are positions. Of more than 64 positions so many are drawn, in every image others, the same for the same `seed` and
    numbers.
    """
    step = max(CHUNK // (layer.weight[0].numel() * _groups(layer) * POSITIONS), 1)
    generator = torch.Generator().manual_seed(seed)
    for images in x.split(step):
        yield (_convolved if isinstance(layer, nn.Conv2d) else _tokens)(layer, images, generator)


def _groups(layer):
    return getattr(layer, 'groups', 1)


def _drawn(images, count, generator):
    """Return positions (images, 64), of each image others: what happens at few of them must not be missed in all."""
    if count <= POSITIONS:
        return torch.arange(count).expand(images, count)
    return torch.rand(images, count, generator=generator).topk(POSITIONS).indices


def _convolved(layer, x, generator):
    if hasattr(layer, 'same_padded'):  # in a way of its own
        x = layer.same_padded(x)
    elif any(layer._reversed_padding_repeated_twice):
        mode = 'constant' if layer.padding_mode == 'zeros' else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes, strides = [], []
    for dim, (kernel, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        sizes.append((x.shape[2 + dim] - dilation * (kernel - 1) - 1) // stride + 1)
        strides.append((x.stride(2 + dim) * stride, x.stride(2 + dim) * dilation))
    windows = x.as_strided((*x.shape[:2], *sizes, *layer.kernel_size),
                           (*x.stride()[:2], strides[0][0], strides[1][0], strides[0][1], strides[1][1]),
                           x.storage_offset())
    drawn = _drawn(len(x), sizes[0] * sizes[1], generator)
    windows = windows[torch.arange(len(x))[:, None], :, drawn // sizes[1], drawn % sizes[1]]
    windows = windows.unflatten(2, (layer.groups, -1)).permute(2, 0, 1, 3, 4, 5)  # (groups, N, positions, ...)
    return windows.reshape(layer.groups, drawn.numel(), -1)


def _tokens(_layer, x, generator):
    tokens = x.reshape(len(x), -1, x.shape[-1])
    drawn = _drawn(len(x), tokens.shape[1], generator)
    return tokens[torch.arange(len(x))[:, None], drawn].reshape(1, -1, x.shape[-1])


def weight_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return a layer's weight as (groups, outputs of a group, d), so that rows @ W^T are its outputs."""
    weight = weight.T if getattr(layer, 'rows_are_inputs', False) else weight
    return weight.reshape(_groups(layer), len(weight) // _groups(layer), -1)


def from_matrix(layer: nn.Module, matrix: Tensor) -> Tensor:
    """Return a `weight_matrix` in the shape of the layer's weight, a contiguous tensor of its own."""
    if getattr(layer, 'rows_are_inputs', False):
        return matrix[0].T.contiguous()
    return matrix.reshape(layer.weight.shape).clone()
