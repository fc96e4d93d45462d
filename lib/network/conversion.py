"""Which layers of a network can be quantized, and the conversion of a network to quantized layers."""

import logging
from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lib.network.reach import LAYERS, reach_weights
from lib.network.signedness import find_input_ranges
from lib.quantize.layers import QuantizedLayer, obstacle, quantized_type
from lib.quantize.quantizer import Quantizer
from lib.quantize.reading import READS, Product, as_reader
from lib.simulator.layer import LayerRecord

logger = logging.getLogger(__name__)

NAMED = 8  # so many names are written out


def all_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of every convolution and linear layer, and `Product`, in the order of `model.modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (*LAYERS, Product))}


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of every convolution and linear layer whose weight is a Parameter of its own.

    These the K-means flow clusters, in the order of `model.modules()`; also layers that are never called, because other
    code may read their weights. A weight that is computed (weight normalization and other parametrizations, pruning)
    cannot be clustered in place, and one that several layers share belongs to the first of them.
    """
    found, weights = {}, set()
    for name, layer in all_layers(model).items():
        weight = layer._parameters.get('weight')
        if weight is not None and weight not in weights:
            weights.add(weight)
            found[name] = layer
    return found


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of every quantized layer and product, in the order of `model.modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLayer)}


def convertible_layers(model: nn.Module, records: Sequence[LayerRecord]) -> dict[str, nn.Module]:
    """Return {name: layer} of the layers that the linear flow quantizes: those called, and without an `obstacle`.
    """
    called = {record.name for record in records if record.calls}
    return {name: layer for name, layer in all_layers(model).items()
            if name in called and (isinstance(layer, QuantizedLayer) or obstacle(layer) is None)}


def layers_of(model: nn.Module, records: Sequence[LayerRecord], linear: bool) -> dict[str, nn.Module]:
    """Return {name: layer} of the layers that a strategy has entries for, of the linear or of the K-means flow."""
    return convertible_layers(model, records) if linear else quantizable_layers(model)


def convert_to_quantized(model: nn.Module, images: Tensor, *, quiet: bool = False) -> nn.Module:
    """Turn the convolution and linear layers of `model` into quantized ones, each of them in place.

    One forward pass on `images` finds which layers are called, and whether their inputs are signed; what it cannot
    tell is found at calibration, from real images. A layer whose weight is multiplied elsewhere is quantized there, see
    `reach_weights`, which is called first. One that no pass reaches is named in a warning and left as it is.

    Args:
        images: probe (N, C, H, W) on the model's device.
        quiet: leave the warning out, where `describe_layers` says the same.

    Returns:
        The model, its layers without bits yet (they compute what the float layers did).

    Raises:
        ValueError: not one of the layers can be converted.
    """
    reach_weights(model, images)
    layers = all_layers(model)
    found = find_input_ranges(model, layers, images)
    left = {}
    for name, layer in layers.items():
        if isinstance(layer, QuantizedLayer):
            continue
        reason = obstacle(layer) if name in found else 'is never called'
        if reason:
            left.setdefault(reason, []).append(name)
            continue
        quantizer = quantized_type(layer).convert(layer).input_quantizer
        quantizer.signed, quantizer.least = found[name]
        if isinstance(layer, Product):
            layer.weight_quantizer.signed, layer.weight_quantizer.least = found[f'{name}.weight']
    start_reading(model)
    if left and not quiet:
        logger.warning('%d layers keep float weights and inputs in the linear flow: %s', sum(map(len, left.values())),
                       '; '.join(f'{listed(names)} ({reason})' for reason, names in left.items()))
    if not quantized_layers(model):
        raise ValueError(f'none of the {len(layers)} convolutions and linear layers of {type(model).__name__} can be '
                         'quantized in the linear flow')
    return model


def start_reading(model: nn.Module) -> None:
    """Let all modules that read weights of other layers, or multiply activations, compute with quantized ones."""
    for module in list(model.modules()):
        if hasattr(module, READS):
            as_reader(module)
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # else evaluation takes a fast path that reads the float weights


def listed(names: Iterable[str]) -> str:
    """Return names separated by commas: all of a short list, the first ones and a count of a long one."""
    names = list(names)
    if len(names) <= NAMED:
        return ', '.join(names)
    return f'{", ".join(names[:NAMED - 2])} and {len(names) - NAMED + 2} more'


def activation_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Return {name: quantizer} of the quantizers of activations, on their own or of a layer's input."""
    weights = {id(layer.weight_quantizer) for layer in quantized_layers(model).values()}
    return {name: module for name, module in model.named_modules()
            if isinstance(module, Quantizer) and id(module) not in weights and module.active}
