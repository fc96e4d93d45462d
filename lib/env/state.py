"""What the agent sees of a layer, and how its action in [0, 1] becomes bits."""

from collections.abc import Sequence

import numpy as np

from lib.simulator.layer import LayerRecord


def layer_features(records: Sequence[LayerRecord]) -> np.ndarray:
    """Return the fixed part of the state, one row a layer: (L, 8) float64.

    Columns: depthwise flag, input channels, output channels, stride, kernel size, number of weights, input height *
    width, index. For a linear layer: 0, inputs, outputs, 0, 1, number of weights, inputs, index. Every column is
    min-max normalised over the layers; a constant one stays as it is.

    Args:
        records: `LayerRecord` of every quantizable layer, in module order.
    """
    rows = [_conv_row(i, r) if r.kind == 'conv' else
            [0, r.in_channels, r.out_channels, 0, 1, r.num_weights, r.in_channels, i] for i, r in enumerate(records)]
    table = np.array(rows, dtype=np.float64)
    low, high = table.min(axis=0), table.max(axis=0)
    varies = high > low
    table[:, varies] = (table[:, varies] - low[varies]) / (high - low)[varies]
    return table


def _conv_row(index, record):
    return [int(record.in_channels == record.groups), record.in_channels, record.out_channels, record.stride[0],
            record.kernel[0], record.num_weights, record.in_h * record.in_w, index]


def bits_from_action(action: float, min_bit: int, max_bit: int) -> int:
    """Return the bits of an action in [0, 1]: bins of equal width, the two ends clipped into the range."""
    low, high = min_bit - 0.5, max_bit + 0.5
    return int(min(max(round(low + (high - low) * float(action)), min_bit), max_bit))


def action_from_bits(bits: int, min_bit: int, max_bit: int) -> float:
    """Return the action in the middle of the bin of `bits` (clipped into [0, 1] for pinned layers outside it)."""
    return min(max((bits - min_bit + 0.5) / (max_bit - min_bit + 1), 0.0), 1.0)
