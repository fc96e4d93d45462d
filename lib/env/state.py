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


def bits_from_action(action: float, candidates: Sequence[int]) -> int:
    """Return the bits of an action in [0, 1]: a bin of equal width for each, ascending; both ends are clipped."""
    low, count = candidates[0], len(candidates)
    number = round(low - 0.5 + count * float(action)) - low
    return candidates[min(max(number, 0), count - 1)]


def action_from_bits(bits: int, candidates: Sequence[int]) -> float:
    """Return the action in the middle of the bin of `bits`; of other bits that of the next candidates, in [0, 1]."""
    number = int(np.searchsorted(candidates, bits))
    if number < len(candidates) and candidates[number] == bits:
        return (number + 0.5) / len(candidates)
    return number / len(candidates)
