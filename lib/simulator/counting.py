"""Costs that need no machine, as cost tables: sizes, bit operations, activation memory and ProQHA's ratio."""

from collections.abc import Sequence

import numpy as np

from lib.simulator.cost import MAX_BIT, CostTable
from lib.simulator.inventory import Inventory
from lib.simulator.layer import CALLED, FLOWING, LayerRecord, ends

BITS = np.arange(1, MAX_BIT + 1)
ALIKE = np.ones_like(BITS)  # whatever the bits
SHORTCUTS = ('downsample', 'shortcut')  # parts of the names of 1x1 convolutions beside a block


def model_size(layers_weights: Sequence[int], *, float_bit: int = 32, layer_names: Sequence[str] | None = None,
               float_weights: int = 0, float_names: Sequence[str] = ()) -> CostTable:
    """Return the size of the weights in bits: w * n for a layer of n weights, whatever its inputs.

    The reference is float_bit * sum(n). For a pruned network give the number of weights that are not zero.
    `float_weights` have no entry: they take `float_bit` each under every strategy, and in the reference.
    """
    stay = f'; {float_weights:,} weights stay float' if float_weights else ''
    return CostTable(
        _outer(layers_weights, BITS, ALIKE), reference=float_bit * (sum(map(int, layers_weights)) + float_weights),
        name='model_size', unit='bits', layer_names=layer_names, rest=float_bit * float_weights, rest_names=float_names,
        meaning=f'bits of the weights of one layer, relative to {float_bit}-bit weights; biases, batch normalization '
        f'and codebooks are not counted{stay}')


def size_of(inventory: Inventory, float_bit: int = 32) -> CostTable:
    """Return the `model_size` of an inventory, pruned weights left out."""
    return model_size(inventory.counted, float_bit=float_bit, layer_names=inventory.names,
                      float_weights=inventory.float_weights, float_names=inventory.float_names)


def file_size(inventory: Inventory) -> CostTable:
    """Return the bytes of a packed file that holds the whole network: all that must be stored to run it.

    With n the weights of a layer, b its weight bits, and every number in the file 4 bytes if nothing else is said:

    * codes, bit after bit in 32-bit words: 4 ceil(n b / 32) bytes a layer;
    * K-means: the codebook, 4 min(2^b, n). Of a pruned layer the codes and the codebook are those of the n' weights
      that are not zero, and 4 ceil(n / 32) bytes say which these are;
    * linear: one scale of the weights, or one for each output channel, and the range of the input, or both its ends, as
      `Inventory.scales` has them: 4 + 4 as a rule;
    * everything else of the state dict, once: biases, normalization with its statistics, other Parameters and buffers,
      layers that stay float, at 4 bytes a floating number, others at their own size; `num_batches_tracked` is not
      needed. These are the `rest`, the same under every strategy.

    Names, shapes and other words of the format are not counted. The reference is the float file: 4 bytes a weight, and
    the rest.
    """
    layers = len(inventory.weights)
    numbers = (inventory.scales or [2] * layers) if inventory.linear else [None] * layers
    rows = [[layer_bytes(n, bits, kept, scales) for bits in range(1, MAX_BIT + 1)]
            for n, kept, scales in zip(inventory.weights, inventory.kept or [None] * layers, numbers, strict=True)]
    table = np.repeat(np.array(rows, dtype=np.int64)[:, :, None], MAX_BIT, axis=2)
    extra = 'scales' if inventory.linear else 'codebooks'
    return CostTable(
        table, reference=4 * sum(inventory.weights) + inventory.file_rest, name='file_size', unit='bytes',
        layer_names=inventory.names, rest=inventory.file_rest,
        rest_names=['biases, normalization and the like', *inventory.float_names],
        meaning=f'bytes of packed codes and {extra} of one layer; biases, normalization and all that stays float are '
        f'counted, {inventory.file_rest:,} bytes; relative to 4 bytes a weight')


def layer_bytes(weights: int, bits: int, kept: int | None, scales: int | None) -> int:
    """Return the bytes of a layer's codes and of what belongs to them, see `file_size`.

    Args:
        kept: weights that are not zero, of a pruned layer.
        scales: numbers beside the codes, of the linear flow; None: a codebook is.
    """
    mask = packed_bytes(weights, 1) if kept is not None else 0
    count = weights if kept is None else kept
    return packed_bytes(count, bits) + (4 * scales if scales is not None else 4 * min(2**bits, count) + mask)


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes of so many codes, packed bit after bit into words of 32 bits."""
    return 4 * -(-count * bits // 32)


def bit_operations(layers: Sequence[LayerRecord], floats: Sequence[LayerRecord] = ()) -> CostTable:
    """Return the bit operations of one image, w * a per multiply-accumulate; the reference is 8/8 bits.

    What stays float, `floats`, counts as 8/8 under every strategy, and so it does in the reference.
    """
    table, rest = _outer([layer.macs for layer in layers], BITS, BITS), MAX_BIT**2 * sum(layer.macs for layer in floats)
    return CostTable(table, reference=int(table[:, -1, -1].sum()) + rest, name='bitops', unit='bit operations',
                     layer_names=[layer.name for layer in layers], rest=rest, rest_names=_unique(floats),
                     meaning='w * a per multiply-accumulate of one layer for one image, relative to 8/8 bits; biases, '
                     'normalization, activation functions and additions are not counted' + widest(floats))


def widest(floats: Sequence[LayerRecord]) -> str:
    """Return what the meaning of a cost says of the layers that stay float, where there are any."""
    return '; what stays float counts as 8/8 bits, the widest in the table' if floats else ''


def activation_memory(layers: Sequence[LayerRecord], floats: Sequence[LayerRecord] = ()) -> CostTable:
    """Return the peak activation memory of one image in bits: the largest input and output of one layer together.

    Both are counted at the layer's activation bits: what the reader of the output wants is not known to a table of
    single layers. A layer that is called several times is counted once; where its calls
    differ in size, its record and so this count hold the positions of all calls together. What stays float, `floats`,
    counts 8 bits.
    """
    table = _outer([layer.inputs + layer.outputs if layer.calls else 0 for layer in layers], ALIKE, BITS)
    rest = MAX_BIT * max((layer.inputs + layer.outputs for layer in floats if layer.calls), default=0)
    return CostTable(table, reference=max(int(table[:, -1, -1].max()), rest), name='activation_memory', unit='bits',
                     combine='max', layer_names=[layer.name for layer in layers], rest=rest, rest_names=_unique(floats),
                     meaning='bits of the input and the output of one layer for one image, both at its activation '
                     'bits; the cost is the largest of all layers, relative to 8/8 bits; tensors kept for a residual '
                     'connection are not counted' + widest(floats))


def proqha_ratio(layers: Sequence[LayerRecord], weights: Sequence[int] | None = None,
                 rule: int = FLOWING) -> CostTable:
    """Return ProQHA's cost: the size of the weights that it quantizes, relative to the same weights at 32 bits.

    The layers that stay float there (`proqha_float_layers`) count in neither sum. Zhang et al., "ProQHA".
    """
    float_layers = proqha_float_layers(layers, rule)
    weights = [layer.num_weights for layer in layers] if weights is None else weights
    counts = [0 if layer.name in float_layers else int(count) for layer, count in zip(layers, weights, strict=True)]
    return CostTable(_outer(counts, BITS, ALIKE), reference=32 * sum(counts), name='proqha_ratio',
                     unit='bits', layer_names=[layer.name for layer in layers],
                     meaning='bits of the weights of one layer, relative to '
                     f"32-bit weights; not counted, for ProQHA keeps them float: {', '.join(sorted(float_layers))}")


def proqha_float_layers(layers: Sequence[LayerRecord], rule: int = FLOWING) -> set[str]:
    """Return the names of the first, the last and the shortcut layers, and of a MobileNet's last 1x1 convolution.

    Who is first and last `ends` says by the `rule`; of convolutions, which are not at the end, the order of the calls.
    """
    chosen = {layers[index].name for side in ends(layers, rule) for index in side}
    chosen |= {layer.name for layer in layers if any(word in layer.name.split('.') for word in SHORTCUTS)}
    convolutions = [layer for layer in layers if layer.kind == 'conv']
    if any(layer.is_depthwise for layer in layers):
        last = convolutions[ends(convolutions, min(rule, CALLED))[1][0]]
        chosen |= {last.name} if last.kernel == (1, 1) else set()
    return chosen


COUNTED = {
    'model_size': size_of,
    'file_size': file_size,
    'bitops': lambda found: bit_operations(found.layers, found.floats),
    'activation_memory': lambda found: activation_memory(found.layers, found.floats),
    'proqha_ratio': lambda found: proqha_ratio(found.layers, found.weights, found.pricing),
}  # {name: function of an `Inventory`}


def _outer(counts, by_weight_bits, by_activation_bits) -> np.ndarray:
    return np.einsum('l,w,a->lwa', np.array(counts, dtype=np.int64), by_weight_bits, by_activation_bits)


def _unique(floats) -> list[str]:
    return list(dict.fromkeys(layer.name for layer in floats))
