from dataclasses import replace

import pytest
import torch

from lib.network.whole_network import measure_whole_network
from lib.simulator.measured import backend as measured
from lib.simulator.measured.backend import PRESETS, MeasuredMachine
from lib.simulator.measured.timing import Timing

SHAPE = (3, 8, 8)


def timing(ms):
    return Timing(10 * ms, ms, ms, ms, ms, 1)


def test_sums_and_ratios(tiny_net, monkeypatch):
    tiny_net.again = tiny_net.head  # one module under two names is one layer
    tiny_net.forward = lambda x: type(tiny_net).forward(tiny_net, x) + type(tiny_net).forward(tiny_net, x)
    built, ran = [], []

    def calls(self, layer, pairs):
        built.append(layer.name)
        return 'kernel', {pair: lambda: ran.append(layer.name) for pair in pairs}

    def measure(calls, protocol, clock):
        for call in calls.values():
            call()
        whole = {'chain': timing(20.0), 'network': timing(40.0)}
        return {key: whole.get(key, timing(2.0)) for key in calls}

    monkeypatch.setattr(MeasuredMachine, 'calls', calls)
    monkeypatch.setattr(measured, 'measure', measure)
    result = measure_whole_network(tiny_net, SHAPE, PRESETS['measured'])
    assert (result.layers, result.chain, result.network) == (4 * 2 * 2.0, 20.0, 40.0)  # 4 layers, called twice
    assert (result.layers_over_chain, result.layers_over_network) == (0.8, 0.4)
    assert (result.arithmetic, result.network_arithmetic) == ('int8', 'fp32')
    names = ['stem', 'depthwise', 'pointwise', 'head']
    assert built == names * 2  # for the layers and, with operands of their own, for the chain
    assert ran == names + [name for name in names for _ in range(2)]
    entries = result.to_dict()
    assert entries['layers_over_chain'] == 0.8 and entries['spread']['network']['median'] == 400.0


@pytest.mark.parametrize('name', ['measured', 'measured_bf16'])
def test_really_measured(tiny_net, name):
    tiny_net.train()
    machine = replace(PRESETS[name], warm_up=1, rounds=1, runs=1, batch=2)
    result = measure_whole_network(tiny_net, SHAPE, machine)
    assert min(result.layers, result.chain, result.network) > 0
    assert result.network_arithmetic == ('bf16' if name == 'measured_bf16' else 'fp32')
    assert tiny_net.training and {p.dtype for p in tiny_net.parameters()} == {torch.float32}
