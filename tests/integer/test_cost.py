import pytest
import torch
from torch import nn

from lib.integer.cost import simulate, slices
from lib.integer.lowering import lower_network
from lib.network.records import profile_layers
from lib.quantize import DoReFaWeightQuantizer, PACTActivationQuantizer, QConv2d, QLinear, Quantizer
from lib.simulator.backends import find_hardware


class Small(nn.Module):
    """An image that stays float, a 4-bit convolution, a 3-bit tensor behind a ReLU, a 16-bit classifier."""

    def __init__(self):
        super().__init__()
        self.conv = QConv2d(3, 8, 3, padding=1, weight_quantizer=DoReFaWeightQuantizer(4, symmetric=True),
                            input_quantizer=Quantizer())
        self.relu = nn.ReLU()
        self.act = PACTActivationQuantizer(3, alpha=2.0)
        self.fc = QLinear(8 * 16, 5, weight_quantizer=DoReFaWeightQuantizer(16, symmetric=True),
                          input_quantizer=Quantizer())

    def forward(self, x):
        return self.fc(self.act(self.relu(self.conv(x))).flatten(1))


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    model = Small().eval()
    return model, lower_network(model, (3, 4, 4)), profile_layers(model, (3, 4, 4))


@pytest.mark.parametrize(('bits', 'expected'), [(1, [1]), (8, [8]), (9, [8, 1]), (16, [8, 8]), (20, [8, 8, 4])])
def test_slices(bits, expected):
    assert slices(bits) == expected and sum(expected) == bits


def test_bits_are_those_of_the_integers(small):
    layers = simulate(small[1], small[2], find_hardware('edge'))
    assert [(layer.name, layer.w_bit, layer.a_bit) for layer in layers] == [
        ('conv', 4, 20 + 4 + 1),  # |x| <= 8 with 20 bits behind the point, and the sign
        ('fc', 16, 3)]
    assert [layer.macs for layer in layers] == [8 * 3 * 9 * 16, 8 * 16 * 5]


@pytest.mark.parametrize('name', ['edge', 'bitfusion'])
def test_wide_operands_take_a_pass_per_slice(small, name):
    hardware, (conv, fc) = find_hardware(name), small[2]
    layers = simulate(small[1], small[2], hardware)
    expected = [hardware.layer_cost(conv, 4, a) for a in (8, 8, 8, 1)]
    assert layers[0].latency == sum(cost.latency for cost in expected)
    assert layers[0].energy == pytest.approx(sum(cost.energy for cost in expected))
    assert layers[1].latency == 2 * hardware.layer_cost(fc, 8, 3).latency


def test_another_network_is_refused(small):
    with pytest.raises(ValueError, match='operation fc is no layer of the network'):
        simulate(small[1], small[2][:1], find_hardware('edge'))
