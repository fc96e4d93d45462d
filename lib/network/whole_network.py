"""A measured table against the network it stands for: the sum of the layers, measured one by one, and the whole."""

from copy import deepcopy
from dataclasses import asdict, dataclass

from torch import nn

from lib.network.hooks import probe
from lib.network.records import profile_layers
from lib.simulator.hardware import shape_of
from lib.simulator.measured.backend import MeasuredMachine
from lib.simulator.measured.kernels import FLOATS
from lib.simulator.measured.timing import Timing


@dataclass(frozen=True)
class WholeNetwork:
    """Times in ms for a batch, all measured in the same rounds.

    They differ for known reasons. In the chain every layer has weights and inputs of its own and always the same
    neighbours, so that the caches are in another state. The network also has operations outside
    of these layers: normalization, activation functions, pooling, additions.
    """

    layers: float  # sum over the layers, each as often as it is called: what a table says at 8/8 bits
    chain: float  # the same kernels one after another in the order of the network, once each
    network: float  # forward pass of the network itself in floating point
    arithmetic: str  # of `layers` and `chain`
    network_arithmetic: str
    statistic: str  # that all three are
    spread: dict  # {'chain', 'network': all statistics}

    @property
    def layers_over_chain(self) -> float:
        """The sum of single layers over the time of the same kernels run one after another."""
        return self.layers / self.chain

    @property
    def layers_over_network(self) -> float:
        """The share of the network's time that the layers explain; an inverse speed-up where the arithmetic differs."""
        return self.layers / self.network

    def to_dict(self) -> dict:
        """Return times and ratios as plain values."""
        ratios = {'layers_over_chain': self.layers_over_chain, 'layers_over_network': self.layers_over_network}
        return {**asdict(self), **ratios}


def measure_whole_network(model: nn.Module, input_shape: tuple[int, int, int], machine: MeasuredMachine
                          ) -> WholeNetwork:
    """Measure the layers of a network one by one, as a chain, and the network as a whole, at 8/8 bits.

    Args:
        model: any network that takes one image batch, in floating point; it is copied, not changed.
        machine: kernel, batch, threads and protocol. The network runs in the machine's arithmetic where that is a
            floating-point one, else in fp32.

    Raises:
        ValueError: the network fails at this shape, or a layer cannot run on the machine.
    """
    layers = [layer for layer in profile_layers(model, input_shape) if layer.calls]
    arithmetic = machine.kernel if machine.kernel in FLOATS else 'fp32'
    network = deepcopy(model).to(machine.device, FLOATS[arithmetic]).eval()
    images = probe(network, input_shape, machine.batch).to(FLOATS[arithmetic])
    pair = machine.measured_pairs()[-1]
    with machine.running():
        calls = {shape_of(layer): machine.calls(layer, [pair])[1][pair] for layer in layers}
        chain = [(machine.calls(layer, [pair])[1][pair], layer.calls) for layer in layers]
        whole = {'chain': lambda: _run_chain(chain), 'network': lambda: network(images)}
        timings = machine.measure({**calls, **whole})
    return _result(machine, layers, timings, arithmetic)


def _run_chain(chain) -> None:
    for call, times in chain:
        for _ in range(times):
            call()


def _result(machine, layers, timings, arithmetic) -> WholeNetwork:
    def ms(timing: Timing) -> float:
        return getattr(timing, machine.statistic)

    return WholeNetwork(
        layers=sum(layer.calls * ms(timings[shape_of(layer)]) for layer in layers),
        chain=ms(timings['chain']),
        network=ms(timings['network']),
        arithmetic=machine.kernel,
        network_arithmetic=arithmetic,
        statistic=machine.statistic,
        spread={key: timings[key]._asdict() for key in ('chain', 'network')},
    )
