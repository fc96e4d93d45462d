"""A twin of a quantized network for the export to ONNX, and the numbers that stand in place of its quantizers.

Each quantizer of the twin emits a node of the domain `haq` with a name; `onnx_graph.py` puts standard operators in its
place. So the exporter of PyTorch sees neither codes nor scales, and cannot fold or round them.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.network.batch_norm_folding import foldable_batch_norms
from lib.network.conversion import activation_quantizers, quantized_layers
from lib.network.hooks import names_of, replace_module
from lib.quantize.codebook import Codebook
from lib.quantize.folding import doubles_of, fold_batch_norm
from lib.quantize.quantizer import Grid, Quantizer
from lib.quantize.reading import READS, Product

DOMAIN, INPUT, WEIGHT, BIAS = 'haq', 'Input', 'Weight', 'Bias'


@dataclass(frozen=True)
class WeightCodes:
    """A quantized weight with the BatchNorm behind it: value = scale[channel] * (code - zero[channel]).

    Attributes:
        codes: int64 of the weight's shape.
        scale, zero: float64 (out,); None stands for zeros.
        bias: float64 (out,).
        input: name of the quantizer of its input, None where that stays float.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor
    input: str | None


@dataclass
class Twin:
    """The module to export, and what its marks stand for.

    Attributes:
        grids: {quantizer of activations: its `Grid`}.
        weights: {layer: `WeightCodes`}.
        books: {layer: (the names of its weight, `Codebook`)} of the K-means flow, whose weights have no marks.
    """

    module: nn.Module
    grids: dict[str, Grid] = field(default_factory=dict)
    weights: dict[str, WeightCodes] = field(default_factory=dict)
    books: dict[str, tuple[list[str], Codebook]] = field(default_factory=dict)


def twin_of(model: nn.Module, images: Tensor, codebooks: dict[str, Codebook] | None = None) -> Twin:
    """Return the `Twin` of a quantized network; the network stays as it is.

    BatchNorms that belong to a quantized layer alone become part of its scales; the codes stay what they are.

    Args:
        model: on the CPU; quantized layers have their bits and ranges, or its weights are those of `codebooks`.
        images: probe (N, C, H, W).
        codebooks: {layer: `Codebook`} of the K-means flow.

    Raises:
        ValueError: a quantizer has no form that ONNX knows; it is named.
    """
    twin = Twin(deepcopy(model).eval())
    norms, layers = dict(foldable_batch_norms(twin.module, images)), quantized_layers(twin.module)
    names = names_of(twin.module)
    for name, book in (codebooks or {}).items():
        twin.books[name] = _names_of_weight(model, model.get_submodule(name)), book
    _refuse_readers(twin.module, layers)
    for name, quantizer in activation_quantizers(twin.module).items():
        twin.grids[name] = _grid(name, quantizer)
        if name.removesuffix('.input_quantizer') not in layers:
            _put(twin.module, names, name, _Mark(name))
    for name, layer in layers.items():
        source = f'{name}.input_quantizer' if layer.input_quantizer.active else None
        if layer.weight_quantizer.active:
            norm = twin.module.get_submodule(norms[name]) if name in norms else None
            twin.weights[name] = _weight_codes(name, layer, norm, source)
            if norm is not None:
                _put(twin.module, names, norms[name], nn.Identity())
        if source or layer.weight_quantizer.active:
            _put(twin.module, names, name, _Layer(layer, source, name if layer.weight_quantizer.active else None))
    if not (twin.weights or twin.grids or twin.books):
        raise ValueError('the network has no quantized layer and no codebook: there is nothing to export')
    return twin


def _names_of_weight(model, layer):
    return [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is layer.weight]


def _refuse_readers(model, layers):
    """Raise ValueError where other code than the layer itself multiplies with a quantized weight, or activations."""
    read = {layer: reader for reader in model.modules() for layer in getattr(reader, READS, ())}
    for name, layer in layers.items():
        if layer.quantizes and (layer in read or isinstance(layer, Product)):
            kind = type(read.get(layer, layer)).__name__
            raise ValueError(f'{name}: the forward of {kind} multiplies with it, which the export to ONNX does not '
                             'follow: give it no bits (-1), or export the network with --packed')


def _put(model, names, name, other):
    replace_module(model, names[model.get_submodule(name)], other)


def _grid(name: str, quantizer: Quantizer) -> Grid:
    try:
        return quantizer.grid()
    except NotImplementedError as error:
        raise ValueError(f'{name}: a {type(quantizer).__name__} has no fixed grid, so no form in ONNX') from error
    except ValueError as error:
        raise ValueError(f'{name}: {error}; it has no form in ONNX') from error


@torch.no_grad()
def _weight_codes(name, layer, norm, source) -> WeightCodes:
    weight, channels = layer.weight.detach(), len(layer.weight)
    if not weight.isfinite().all():
        raise ValueError(f'{name} has weights that are not finite: check the checkpoint')
    try:
        codes, scale = layer.weight_quantizer.to_int(weight)
        zero = None
    except ValueError:
        codes, scale, zero, _ = layer.weight_quantizer.to_affine(weight)
        zero = zero.double().flatten().expand(channels)
    if scale.numel() not in (1, channels):
        raise ValueError(f'{name}: the weight has {scale.numel()} scales; expected one, or one an output channel')
    codes, scale = codes.long(), scale.double().flatten().expand(channels)
    bias = torch.zeros(channels, dtype=torch.float64) if layer.bias is None else layer.bias.double()
    if norm is not None:
        scale, bias = fold_batch_norm(scale, bias, *doubles_of(norm), norm.eps)
    if zero is None:  # a scale in ONNX is positive
        sign = torch.where(scale < 0, -1, 1)
        codes, scale = codes * sign.view(-1, *[1] * (codes.dim() - 1)), scale.abs()
    return WeightCodes(codes, scale, zero, bias, source)


def mark(kind: str, x: Tensor, name: str, shape: tuple) -> Tensor:
    """Return what stands for a tensor that `onnx_graph.py` makes; outside of an export its values mean nothing."""
    return torch.onnx.ops.symbolic(f'{DOMAIN}::{kind}', [x], {'name': name}, dtype=torch.float32, shape=shape,
                                   version=1)


class _Mark(nn.Module):
    """In place of a quantizer of activations on its own."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        return mark(INPUT, x, self.name, x.shape)


class _Layer(nn.Module):
    """In place of a layer: its own computation with a marked input, and a marked weight and bias, if quantized."""

    def __init__(self, layer: nn.Module, source: str | None, weight: str | None):
        super().__init__()
        self.source, self.weight_name, self.shape = source, weight, tuple(layer.weight.shape)
        self.weight, self.bias = (None, None) if weight else (layer.weight, layer.bias)
        self.compute: Callable = layer._conv_forward if isinstance(layer, nn.Conv2d) else F.linear

    def forward(self, input: Tensor) -> Tensor:
        x = mark(INPUT, input, self.source, input.shape) if self.source else input
        weight = mark(WEIGHT, x, self.weight_name, self.shape) if self.weight_name else self.weight
        bias = mark(BIAS, x, self.weight_name, self.shape[:1]) if self.weight_name else self.bias
        return self.compute(x, weight, bias)
