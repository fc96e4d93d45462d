"""A roofline: a processor with a peak rate for each width of its arithmetic, and the bandwidth of its memory.

A layer takes the longer of its arithmetic and its memory traffic, plus a launch overhead. Bits between two widths of
the arithmetic run at the wider one: on a machine of 8-bit integers, fewer bits save time only where memory limits.

The presets are nominal: peaks and bandwidths as their makers state them, not measured, and every layer at the peak.
Their energy is not that of these machines but that of arithmetic in 45 nm (Horowitz, ISSCC 2014) with `dram_energy`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from lib.simulator.cost import MAX_BIT
from lib.simulator.hardware import Hardware, LayerCost, parameter
from lib.simulator.layer import LayerRecord


@dataclass(frozen=True)
class Roofline(Hardware):
    """Peaks, bandwidth, and energies per event."""

    backend: ClassVar[str] = 'roofline'
    latency_unit: ClassVar[str] = 'ms'

    peak_int4: float = parameter('rate in 4-bit integers, 0: it has none', 'GMAC/s', default=0, minimum=0)
    peak_int8: float = parameter('rate in 8-bit integers, 0: it has none', 'GMAC/s', default=0, minimum=0)
    peak_16: float = parameter('rate in 16 bits, integer or floating point, 0: it has none', 'GMAC/s',
                               default=0, minimum=0)
    utilization: float = parameter('share of the peaks that layers reach, at most 1', default=1.0)
    bandwidth: float = parameter('bandwidth of the memory', 'GB/s')
    storage: str = parameter('packed: a value takes its own bits in memory; native: those of the arithmetic it goes to',
                             default='packed', choices=('packed', 'native'))
    output_bits: int = parameter('of an output value in memory', 'bits', default=8)
    launch_us: float = parameter('overhead of starting a layer', 'us', default=0.0, minimum=0)
    mult_energy: float = parameter('energy of an 8 x 8-bit multiplication', 'pJ', default=0.2, minimum=0)
    mult_exponent: float = parameter('power of w a / 64 that a multiplication follows', default=1.0, minimum=0)
    mult_width: str = parameter('operands: a multiplication costs by w and a; native: by the width of the arithmetic',
                                default='operands', choices=('operands', 'native'))
    add_energy: float = parameter('energy of a 32-bit addition', 'pJ', default=0.1, minimum=0)
    accumulator_bits: int = parameter('of the sum that products are added to', 'bits', default=32)
    sram_energy: float = parameter('energy of reading a bit of an operand from the on-chip memory', 'pJ/bit',
                                   default=0.3125, minimum=0)
    sram_reuse: float = parameter('multiplications that one read from the on-chip memory serves', default=16.0)
    dram_energy: float = parameter('energy of moving a bit from or to memory', 'pJ/bit', default=20.0, minimum=0)

    def __post_init__(self):
        super().__post_init__()
        if self.utilization > 1:
            raise ValueError(f'{self.name}: utilization is {self.utilization}, expected a number above 0 and at most 1')
        if not (self.peak_int8 or self.peak_16):
            raise ValueError(f'{self.name}: peak_int8 and peak_16 are both 0, so nothing can run {MAX_BIT} bits')

    def layer_cost(self, layer: LayerRecord, w_bit: int, a_bit: int) -> LayerCost:
        """See `Hardware.layer_cost`.

        max(MACs / (peak utilization), bits moved / bandwidth) + launch. Every tensor moves once for the batch: the
        weights once, inputs and outputs once per image.
        """
        macs = self.batch * replace(layer, calls=1).macs
        traffic = self.traffic_bits(layer, w_bit, a_bit)
        times = {  # ms
            'compute': macs / self.peak_macs(w_bit, a_bit) * 1e3,
            'memory': traffic / 8 / self.memory_bandwidth() * 1e3,
        }
        launch = self.launch_us / 1e3
        bound = max(times, key=times.get)
        latency = times[bound] + launch
        energy = (macs * self.mac_energy(w_bit, a_bit) + traffic * self.dram_energy) / 1e3
        return LayerCost(latency, energy, 'launch' if launch > times[bound] else bound, traffic)

    def precision(self, w_bit: int, a_bit: int) -> int:
        """Return the width that the product of the two is computed in: the smallest there is that holds both.

        Raises:
            ValueError: no arithmetic is as wide.
        """
        wide_enough = [bits for bits, rate in self._rates().items() if rate and bits >= max(w_bit, a_bit)]
        if not wide_enough:
            raise ValueError(f'{self.name} has no arithmetic for {w_bit}-bit weights and {a_bit}-bit activations')
        return wide_enough[0]

    def traffic_bits(self, layer: LayerRecord, w_bit: int, a_bit: int) -> int:
        """Return the bits between chip and memory for one call: weights w, inputs a, outputs `output_bits` each.

        The second operand of a product of activations counts as weights of each image.
        """
        if self.storage == 'native':
            w_bit = a_bit = self.precision(w_bit, a_bit)
        weights = layer.operands * (self.batch if layer.kind == 'matmul' else 1)
        return weights * w_bit + self.batch * (layer.inputs * a_bit + layer.outputs * self.output_bits)

    def mac_energy(self, w_bit: int, a_bit: int) -> float:
        """Return the pJ of one multiply-accumulate without memory traffic.

        Horowitz's 45 nm figures scaled by bits: the multiplier as its area, w a (32 x 32 bits: 3.2 pJ, he gives 3.1),
        the adder as its width (8 bits: 0.025 pJ, he gives 0.03); and the on-chip reads of both operands.
        """
        width = self.precision(w_bit, a_bit)
        product = w_bit * a_bit if self.mult_width == 'operands' else width**2
        multiply = self.mult_energy * (product / 64) ** self.mult_exponent
        add = self.add_energy * self.accumulator_bits / 32
        stored = 2 * width if self.storage == 'native' else w_bit + a_bit
        return multiply + add + self.sram_energy * stored / self.sram_reuse

    def peak_macs(self, w_bit: int, a_bit: int) -> float:
        """Return the rate that layers can reach, utilization included, in multiply-accumulates per second."""
        return self._rates()[self.precision(w_bit, a_bit)] * 1e9 * self.utilization

    def memory_bandwidth(self) -> float:
        return self.bandwidth * 1e9

    def _rates(self) -> dict[int, float]:
        return {4: self.peak_int4, 8: self.peak_int8, 16: self.peak_16}


# A MAC is two of the operations that makers count: 21 TOPS are 10,500 GMAC/s. The Cortex cores: 4 x 1.5 GHz x 8 MAC per
# cycle without dot product instructions, 4 x 2.4 GHz x 32 with them, rounded. 5 us of launch are a usual figure.
PRESETS = {
    'cortex_a72': Roofline(name='cortex_a72', peak_int8=48, bandwidth=4, status='nominal'),
    'cortex_a76': Roofline(name='cortex_a76', peak_int8=300, bandwidth=13.5, status='nominal'),
    'xavier_nx': Roofline(name='xavier_nx', peak_int8=10_500, bandwidth=59.7, launch_us=5, status='nominal'),
    't4': Roofline(name='t4', peak_int4=130_000, peak_int8=65_000, bandwidth=320, launch_us=5, status='nominal'),
    'a100': Roofline(name='a100', peak_int8=312_000, bandwidth=1555, launch_us=5, status='nominal'),
    'h200': Roofline(name='h200', peak_int8=989_500, bandwidth=4800, launch_us=5, status='nominal'),
}
