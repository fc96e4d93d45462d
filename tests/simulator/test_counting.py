"""Counted costs against sums written out, and ProQHA's counts."""

import random

import pytest

import models
from lib.network.records import profile_layers
from lib.simulator.counting import (
    COUNTED,
    activation_memory,
    bit_operations,
    model_size,
    proqha_float_layers,
    proqha_ratio,
)
from lib.simulator.inventory import Inventory
from lib.simulator.layer import LayerRecord
from tests.meta import on_meta
from tests.spaces import ranged

# Number of quantized weights and of their layers in ProQHA's own networks for ImageNet, counted in its code (Zhang et
# al., "Automatic Progressive Mixed-Precision Network Quantization"); its MobileNetV2 has ours' layers.
PROQHA = {'resnet18': (10_985_472, 16), 'resnet50': (20_676_608, 48), 'resnet101': (39_616_512, 99),
          'mobilenetv2': (1_779_296, 50)}


def conv(name, cin, cout, kernel=3, size=8, out=8, groups=1, calls=1):
    weights = cout * (cin // groups) * kernel**2
    sizes = (size, size, out, out) if calls else (0, 0, 0, 0)
    return LayerRecord(name, 'conv', cin, cout, (kernel, kernel), (1, 1), groups, *sizes, weights, calls=calls)


def linear(name, cin, cout, positions=1, calls=1):
    return LayerRecord(name, 'linear', cin, cout, (1, 1), (1, 1), 1, positions, 1, positions, 1, cin * cout,
                       calls=calls)


LAYERS = [
    conv('stem', 3, 16, size=16, out=8), conv('block.dw', 16, 16, groups=16), conv('block.pw', 16, 24, kernel=1),
    conv('block.shortcut', 16, 24, kernel=1), conv('twice', 24, 24, calls=2), linear('tokens', 24, 8, positions=5),
    conv('never', 4, 4, calls=0), linear('head', 8, 10),
]


def strategies(count=20):
    """Random ones: pairs, pairs with an untouched input, and ints."""
    draw = random.Random(0)
    for _ in range(count):
        yield [draw.choice([draw.randint(1, 8), [draw.randint(1, 8), -1], [draw.randint(1, 8), draw.randint(1, 8)]])
               for _ in LAYERS]


def bits(entry):
    w, a = entry if isinstance(entry, list) else (entry, -1)
    return w, 8 if a == -1 else a


def test_model_size_is_bits_times_weights():
    counts = [layer.num_weights for layer in LAYERS]
    cost = model_size(counts, layer_names=[layer.name for layer in LAYERS])
    assert (cost.reference, cost.unit, cost.combine) == (32 * sum(counts), 'bits', 'sum')
    for strategy in strategies():
        assert cost.cost(strategy) == sum(n * bits(entry)[0] for n, entry in zip(counts, strategy, strict=True))
    assert model_size(counts, float_bit=8).ratio([8] * 8) == 1


def test_the_size_of_a_pruned_network_counts_what_is_left():
    assert model_size([0, 5]).cost([8, 3]) == 15 and model_size([0, 5]).reference == 160
    with pytest.raises(ValueError, match='reference cost is 0'):
        model_size([0, 0])


def test_bit_operations_by_hand():
    """out_h * out_w * c_out * (c_in / groups) * k * k multiply-accumulates, times the calls, times w * a."""
    macs = [64 * 16 * 27, 64 * 16 * 9, 64 * 24 * 16, 64 * 24 * 16, 2 * 64 * 24 * 24 * 9, 5 * 24 * 8, 0, 80]
    cost = bit_operations(LAYERS)
    assert cost.reference == 64 * sum(macs)
    for strategy in strategies():
        assert cost.cost(strategy) == sum(m * bits(e)[0] * bits(e)[1] for m, e in zip(macs, strategy, strict=True))
    assert cost.ratio([[4, 4]] * 8) == 0.25 and cost.ratio([4] * 8) == 0.5  # ints: the input stays at 8 bits


def test_activation_memory_is_that_of_the_largest_layer():
    """Input and output together at the layer's activation bits; two calls need the memory of one, no call none."""
    elements = [3 * 256 + 16 * 64, 32 * 64, 40 * 64, 40 * 64, 48 * 64, 5 * 24 + 5 * 8, 0, 18]
    cost = activation_memory(LAYERS)
    assert cost.combine == 'max' and cost.reference == 8 * 48 * 64
    for strategy in strategies():
        assert cost.cost(strategy) == max(n * bits(entry)[1] for n, entry in zip(elements, strategy, strict=True))
    only_largest = [[8, 1] if layer.name == 'twice' else [8, 8] for layer in LAYERS]
    assert cost.cost(only_largest) == 8 * 40 * 64, 'the next largest decides now'


def test_activation_memory_minimum_and_prices():
    cost = activation_memory(LAYERS)
    lowest, strategy = cost.minimum([each.entries() for each in ranged(len(LAYERS), 2, 6)])
    assert lowest == 2 * 48 * 64 == cost.cost(strategy)
    assert cost.minimum([range(2, 9)] * len(LAYERS))[0] == cost.reference, 'weight bits change nothing'


@pytest.mark.parametrize('name', PROQHA)
def test_proqha_counts(name):
    with on_meta():
        records = profile_layers(models.create_model(name, num_classes=1000), (3, 64, 64))
    weights, layers = PROQHA[name]
    cost = proqha_ratio(records)
    quantized = [record for record in records if record.name not in proqha_float_layers(records)]
    assert (sum(record.num_weights for record in quantized), len(quantized)) == (weights, layers)
    assert cost.reference == 32 * weights
    for k in range(1, 9):
        assert cost.ratio([k] * len(records)) == k / 32
        assert cost.cost([k] * len(records)) == k * weights
    float_bits = [3 if record in quantized else 8 for record in records]
    assert cost.ratio(float_bits) == 3 / 32, 'the bits of float layers do not count'


def test_proqha_is_the_mean_of_the_bits_weighted_by_the_weights():
    """First, last and shortcut count in neither sum; everything else does, the layers never called too."""
    counted = {1: 144, 2: 384, 4: 5184, 5: 192, 6: 144}
    cost = proqha_ratio(LAYERS)
    assert cost.reference == 32 * sum(counted.values())
    for strategy in strategies():
        assert cost.cost(strategy) == sum(n * bits(strategy[i])[0] for i, n in counted.items())
    assert all(name in cost.meaning for name in ('stem', 'block.shortcut', 'head'))


def test_layers_that_proqha_keeps_float():
    resnet = [conv('conv1', 3, 8), conv('layer1.0.conv1', 8, 8), conv('layer1.0.downsample.0', 8, 8, kernel=1),
              conv('mydownsample', 8, 8, kernel=1), conv('layer2.shortcut', 8, 8, kernel=1), linear('fc', 8, 10)]
    assert proqha_float_layers(resnet) == {'conv1', 'layer1.0.downsample.0', 'layer2.shortcut', 'fc'}
    mobilenet = [conv('stem', 3, 8), conv('dw', 8, 8, groups=8), conv('pw', 8, 8, kernel=1),
                 conv('last', 8, 32, kernel=1), linear('fc', 32, 10)]
    assert proqha_float_layers(mobilenet) == {'stem', 'last', 'fc'}
    without = [layer for layer in mobilenet if layer.name != 'dw']
    assert proqha_float_layers(without) == {'stem', 'fc'}, 'its last 1x1 convolution is special in a MobileNet only'
    wide = [conv('last', 8, 32) if layer.name == 'last' else layer for layer in mobilenet]
    assert proqha_float_layers(wide) == {'stem', 'fc'}
    assert proqha_float_layers(resnet[:1]) == {'conv1'}


def test_every_counted_cost_says_what_it_counts():
    for name, make in COUNTED.items():
        cost = make(Inventory(LAYERS))
        assert cost.name == name and cost.num_layers == len(LAYERS)
        assert cost.layer_names == [layer.name for layer in LAYERS]
        assert 'counted' in cost.meaning and cost.unit in ('bits', 'bytes', 'bit operations')
        assert isinstance(cost.cost([8] * 8), int), 'sums of integers are exact'
        with pytest.raises(ValueError, match=r'7 entries.*head'):
            cost.cost([8] * 7)
