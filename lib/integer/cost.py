"""Cycles of an integer network on a multiply-accumulate array, layer by layer."""

from collections.abc import Sequence
from typing import NamedTuple

from lib.integer.network import IntegerNetwork
from lib.simulator.cost import MAX_BIT
from lib.simulator.hardware import Hardware
from lib.simulator.layer import LayerRecord


class LayerCycles(NamedTuple):
    """A layer on a machine: bits of its operands, latency and energy of a batch, and what the time waits for."""

    name: str
    macs: int
    w_bit: int
    a_bit: int
    latency: float
    energy: float
    bound: str


def simulate(network: IntegerNetwork, records: Sequence[LayerRecord], hardware: Hardware) -> list[LayerCycles]:
    """Price every multiplication of weights in an integer network.

    Bits are those of the integers themselves: a tensor that no quantizer made is as wide as its integers. The
    machines price operands of 1 to 8 bits; a wider one takes several passes, with 8 bits each and what is left in the
    last, as bit-serial and bit-composed arrays do it.

    Args:
        records: `LayerRecord`s of the float network, whose names those of the operations are.

    Returns:
        A list of `LayerCycles`, in the order of the operations.

    Raises:
        ValueError: an operation belongs to none of the records.
    """
    known = {record.name: record for record in records}
    found = []
    for operation in network.operations:
        if not operation.operand_bits:
            continue
        if operation.name not in known:
            raise ValueError(f'operation {operation.name} is no layer of the network that was profiled')
        record, (w_bit, a_bit) = known[operation.name], operation.operand_bits
        passes = [hardware.layer_cost(record, w, a) for w in slices(w_bit) for a in slices(a_bit)]
        slowest = max(passes, key=lambda cost: cost.latency)
        found.append(LayerCycles(operation.name, record.macs // max(record.calls, 1), w_bit, a_bit,
                                 sum(cost.latency for cost in passes), sum(cost.energy for cost in passes),
                                 slowest.bound))
    return found


def slices(bits: int) -> list[int]:
    """Return the widths of the passes for an operand: 20 bits are 8, 8 and 4."""
    return [MAX_BIT] * (bits // MAX_BIT) + ([bits % MAX_BIT] if bits % MAX_BIT else [])
