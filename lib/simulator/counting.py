"""Costs that need no machine: model size, bit operations, activation memory and ProQHA's ratio, as cost tables."""

from collections.abc import Sequence

import numpy as np

from lib.simulator.cost import MAX_BIT, CostTable
from lib.simulator.layer import LayerRecord

BITS = np.arange(1, MAX_BIT + 1)
SHORTCUTS = ('downsample', 'shortcut')  # parts of the names of 1x1 convolutions beside a block


def model_size(
    layers_weights: Sequence[int], *, float_bit: int = 32, layer_names: Sequence[str] | None = None
) -> CostTable:
    """Return the size of the weights in bits: w * n for a layer of n weights, whatever its inputs.

    The reference is float_bit * sum(n). For a pruned network give the number of weights that are not zero.
    """
    counts = np.asarray(layers_weights, dtype=np.int64)
    return CostTable(
        _outer(counts, BITS, np.ones_like(BITS)), reference=float_bit * int(counts.sum()), name='model_size',
        unit='bits', layer_names=layer_names, meaning=f'bits of the weights of one layer, relative to {float_bit}-bit '
        'weights; biases, batch normalization and codebooks are not counted')


def bit_operations(layers: Sequence[LayerRecord]) -> CostTable:
    """Return the bit operations of one image, w * a per multiply-accumulate; the reference is 8/8 bits."""
    macs = np.array([layer.macs for layer in layers], dtype=np.int64)
    table = _outer(macs, BITS, BITS)
    return CostTable(table, reference=int(table[:, -1, -1].sum()), name='bitops', unit='bit operations',
                     layer_names=_names(layers), meaning='w * a per multiply-accumulate of one layer for one image, '
                     'relative to 8/8 bits; biases, normalization, activation functions and additions are not counted')


def activation_memory(layers: Sequence[LayerRecord]) -> CostTable:
    """Return the peak activation memory of one image in bits: the largest input and output of one layer together.

    Both are counted at the layer's activation bits: what the reader of the output wants is not known to a table of
    single layers. A layer that is called several times is counted once; where its calls
    differ in size, its record and so this count hold the positions of all calls together.
    """
    elements = [_elements(layer) if layer.calls else 0 for layer in layers]
    table = _outer(np.array(elements, dtype=np.int64), np.ones_like(BITS), BITS)
    return CostTable(table, reference=int(table[:, -1, -1].max()), name='activation_memory', unit='bits', combine='max',
                     layer_names=_names(layers), meaning='bits of the input and the output of one layer for one image, '
                     'both at its activation bits; the cost is the largest of all layers, relative to 8/8 bits; '
                     'tensors kept for a residual connection are not counted')


def proqha_ratio(layers: Sequence[LayerRecord]) -> CostTable:
    """Return ProQHA's cost: the size of the weights that it quantizes, relative to the same weights at 32 bits.

    The layers that stay float there (`proqha_float_layers`) count in neither sum. Zhang et al., "ProQHA".
    """
    float_layers = proqha_float_layers(layers)
    counts = np.array([0 if layer.name in float_layers else layer.num_weights for layer in layers], dtype=np.int64)
    return CostTable(_outer(counts, BITS, np.ones_like(BITS)), reference=32 * int(counts.sum()), name='proqha_ratio',
                     unit='bits', layer_names=_names(layers), meaning='bits of the weights of one layer, relative to '
                     f"32-bit weights; not counted, for ProQHA keeps them float: {', '.join(sorted(float_layers))}")


def proqha_float_layers(layers: Sequence[LayerRecord]) -> set[str]:
    """Return the names of the first, the last and the shortcut layers, and of a MobileNet's last 1x1 convolution."""
    chosen = {layers[0].name, layers[-1].name}
    chosen |= {layer.name for layer in layers if any(word in layer.name.split('.') for word in SHORTCUTS)}
    convolutions = [layer for layer in layers if layer.kind == 'conv']
    if any(layer.is_depthwise for layer in layers) and convolutions[-1].kernel == (1, 1):
        chosen.add(convolutions[-1].name)
    return chosen


COUNTED = {
    'model_size': lambda layers: model_size([layer.num_weights for layer in layers], layer_names=_names(layers)),
    'bitops': bit_operations,
    'activation_memory': activation_memory,
    'proqha_ratio': proqha_ratio,
}


def _elements(layer) -> int:
    return layer.in_channels * layer.in_h * layer.in_w + layer.out_channels * layer.out_h * layer.out_w


def _outer(counts, by_weight_bits, by_activation_bits) -> np.ndarray:
    return np.einsum('l,w,a->lwa', counts, by_weight_bits, by_activation_bits)


def _names(layers) -> list[str]:
    return [layer.name for layer in layers]
