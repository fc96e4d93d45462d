"""What a strategy covers, what stays float, what is shared, and which layers are first and last; all by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lib.env.episode import EpisodeSettings
from lib.env.linear_quantize_env import LinearQuantizeEnv
from lib.env.space import Space
from lib.network.conversion import convert_to_quantized
from lib.network.coverage import as_before, coverage_lines, inventory_of
from lib.network.reach import reach_weights
from lib.network.records import profile_layers, profile_network
from lib.qat.parts import find_parts
from lib.qat.placement import Quantizers, quantize_layers, weight_bits
from lib.quantize.kmeans import fit_codebook
from lib.record.strategy import uniform_strategy
from lib.simulator.backends import PRESETS
from lib.simulator.budget import Constraint
from lib.simulator.counting import COUNTED, bit_operations, file_size, proqha_float_layers, size_of
from lib.simulator.hardware import make_table
from lib.simulator.inventory import Inventory
from lib.simulator.layer import DEFINED, ends
from lib.simulator.rest import float_cost, noted, with_rest
from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization, calibrate, quantizable_layers
from tests.own_models import ZOO, StandardisedConv

SHAPE = (3, 8, 8)


class Shared(nn.Module):
    """Two convolutions with one Parameter."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.b(self.a(self.stem(x).relu()).relu()).mean((2, 3)))


STEM, ONE, FC = 64 * 432, 64 * 2304, 160  # multiply-accumulates of its layers


class HeadFirst(nn.Module):
    """A network whose base class defines the head."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)
        self.late = nn.Conv2d(5, 6, 3)
        self.early = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.head(self.late(self.early(x).relu()).relu().mean((2, 3)))


# ---- shared Parameters


def test_every_call_of_a_shared_weight_is_priced_and_its_memory_once():
    net = Shared()
    pairs, single = inventory_of(net, SHAPE, True), inventory_of(net, SHAPE, False)
    assert [record.macs for record in pairs.layers] == [STEM, ONE, ONE, FC]
    assert [record.macs for record in single.layers] == [STEM, 2 * ONE, FC], 'one codebook, one entry'
    assert pairs.macs == single.macs == 322_720
    assert pairs.names == ['stem', 'a', 'b', 'fc'] and single.names == ['stem', 'a', 'fc']
    for found, strategy in ((pairs, [[8, 8], [4, 6], [4, 2], [8, 8]]), (single, [8, 4, 8])):
        size, operations = size_of(found), bit_operations(found.layers, found.floats)
        assert size.reference == 32 * (432 + 2304 + 160) and size.cost(strategy) == 8 * 432 + 4 * 2304 + 8 * 160
        assert operations.reference == 64 * 322_720
    assert bit_operations(pairs.layers).cost([[8, 8], [4, 6], [4, 2], [8, 8]]) == \
        64 * STEM + (4 * 6 + 4 * 2) * ONE + 64 * FC
    table = make_table(single.layers, PRESETS['bitfusion'])
    assert (table.table[1] == 2 * make_table(pairs.layers, PRESETS['bitfusion']).table[1]).all()


def test_a_weight_that_three_layers_share_is_divided_without_a_rest():
    net = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)))
    net[1].weight = net[2].weight = net[0].weight
    assert inventory_of(net, (1, 1, 5), True).weights == [9, 8, 8]


def test_calls_of_a_shared_weight_that_differ_in_size():
    net = Shared()
    net.b.stride = (2, 2)
    assert inventory_of(net, SHAPE, False).macs == inventory_of(net, SHAPE, True).macs == STEM + ONE + ONE // 4 + FC


def test_both_flows_quantize_a_shared_weight(tiny_loaders):
    torch.manual_seed(0)
    net = Shared()
    quantization = KMeansQuantization(net, [8, 2, 8])
    assert net.a.weight is net.b.weight and len(net.a.weight.unique()) == 4
    assert list(quantization.state()['codebooks']) == ['stem', 'a', 'fc']
    net = convert_to_quantized(Shared(), torch.randn(2, *SHAPE))
    assert net.a.weight is net.b.weight
    found = inventory_of(net, SHAPE, True)
    space = Space.of(found, [Constraint.of_ratio(size_of(found), 0.2)], min_bit=2)
    env = LinearQuantizeEnv(net, *tiny_loaders, space, EpisodeSettings(finetune_flag=False))
    assert space.fixed == {0: [8, -1], 3: [8, 8]}
    strategy = space.within_budget([[8, 8]] * 4)
    assert size_of(found).ratio(strategy) <= 0.2 and math.isfinite(env.evaluate_strategy(strategy).reward)


# ---- what stays float


def half_float():
    """A convolution of either kind, and a Parameter: 3 x 8 x 9, 8 x 8 x 9, 8 x 7, 7 x 5 weights."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.odd = nn.Conv2d(3, 8, 3), StandardisedConv(8, 8, 3)
            self.middle, self.fc = nn.Parameter(torch.randn(8, 7)), nn.Linear(7, 5)

        def forward(self, x):
            return self.fc(self.odd(self.stem(x).relu()).mean((2, 3)) @ self.middle)
    return reach_weights(Net(), torch.randn(2, *SHAPE), 'layers')


def test_float_layers_are_in_both_sums():
    found = inventory_of(half_float(), SHAPE, True)
    assert found.names == ['stem', 'fc'] and found.float_names == ['odd', 'middle']
    stem, odd = 36 * 216, 16 * 576
    assert (found.float_weights, sum(record.macs for record in found.floats)) == (576 + 56, odd + 56)
    assert found.coverage == ((216 + 35) / (216 + 35 + 632), (stem + 35) / (stem + 35 + odd + 56))
    strategy = [[8, -1], [4, 2]]
    assert size_of(found).cost(strategy) == 8 * 216 + 4 * 35 + 32 * 632
    assert size_of(found).reference == 32 * (251 + 632)
    operations = COUNTED['bitops'](found)
    assert operations.cost(strategy) == 64 * stem + 8 * 35 + 64 * (odd + 56)
    assert operations.reference == 64 * found.macs
    assert COUNTED['activation_memory'](found).cost([[1, 1], [1, 1]]) == 8 * (8 * 36 + 8 * 16), 'that of odd'
    assert COUNTED['proqha_ratio'](inventory_of(half_float(), SHAPE, False)).reference == 32 * 576, 'ProQHA has it so'
    lines = coverage_lines(found)
    assert '28.4% of the weights and 45.7% of the multiply-accumulates' in lines[0] and '8/8 bits' in lines[0]
    assert lines[1].endswith('these stay float: odd, middle')


def test_the_machine_prices_float_layers_at_its_widest():
    found = inventory_of(half_float(), SHAPE, True)
    for name in ('cloud', 'bitfusion', 't4', 'isaac'):
        everything = make_table([*found.layers, *found.floats], PRESETS[name])
        table = make_table(found.layers, PRESETS[name])
        priced = with_rest(table, found.floats, float_cost(found.floats, table))
        strategy = [[8, -1], [3, 5]]
        assert priced.reference == pytest.approx(everything.reference)
        assert priced.cost(strategy) == pytest.approx(everything.cost([*strategy, *[[8, 8]] * len(found.floats)]))
    bare = table.derive(about={})
    assert float_cost(found.floats, bare) is None
    assert float_cost(found.floats, noted(bare, found.floats, 7)) == 7
    assert float_cost(found.floats[:1], noted(bare, found.floats, 7)) is None, 'of other layers'


@pytest.mark.parametrize('name', ['Residual', 'SqueezeExcite', 'ConvNext', 'CalledTwice', 'NeverCalled', 'Shapes'])
def test_networks_that_are_wholly_covered_cost_what_they_did(name):
    """The sums of their layers alone, as the tables and budgets of before have them; vectors are no weights."""
    net, shape = ZOO[name].build(), ZOO[name].shape
    found, records = inventory_of(net, shape, False), profile_layers(net, shape)
    assert found.coverage == (1, 1) and not found.floats and list(found.layers) == records
    assert size_of(found).rest == bit_operations(found.layers, found.floats).rest == 0
    assert size_of(found).reference == 32 * sum(record.num_weights for record in records)
    assert len(coverage_lines(found)) == 1


def test_code_that_reads_the_weight_of_a_layer():
    """Both flows reach what attention multiplies with, if asked to; before, the K-means flow alone. 17 positions."""
    for reach, linear, expected in (('weights', False, (17 * 256, 0)), ('weights', True, (17 * 256, 0)),
                                    ('layers', False, (17 * 256, 0)), ('layers', True, (0, 17 * 256))):
        net = reach_weights(ZOO['TorchAttention'].build(), torch.randn(2, 3, 32, 32), reach)
        found = inventory_of(net, (3, 32, 32), linear)
        in_layers = {record.name: record.macs for record in found.layers}.get('attention.out_proj', 0)
        in_floats = sum(record.macs for record in found.floats if record.name.startswith('attention.out_proj'))
        assert (in_layers, in_floats) == expected


def test_a_head_for_training_alone_is_no_float_layer():
    """Nothing reads it; a weight that is masked before it is multiplied with is read."""
    net = ZOO['NeverCalled'].build()
    found = inventory_of(net, (3, 32, 32), True)
    assert found.names == ['conv', 'fc'] and found.coverage == (1, 1) and size_of(found).reference == 32 * (216 + 40)

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc(nn.functional.conv2d(x, self.conv.weight * 2).mean((2, 3)))
    found = inventory_of(Masked(), SHAPE, True)
    assert (found.names, found.float_weights, sum(r.macs for r in found.floats)) == (['fc'], 108, 36 * 108)


def test_layers_whose_weight_is_computed():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), parametrizations.weight_norm(nn.Conv2d(4, 4, 3)))
    found = inventory_of(net, SHAPE, False)
    assert (found.float_weights, found.float_names) == (144, ['1.parametrizations.weight.original1', '1'])
    assert inventory_of(net, SHAPE, True).coverage == (1, 1)


def test_size_of_a_network_with_quantizers_of_its_own():
    """Strategies of qat_train.py: 4 bits in the middle, everything else float."""
    net = Shared()
    quantize_layers(net, [[32, -1], [4, 4], [4, 4], [32, -1]], Quantizers(), torch.randn(2, *SHAPE))
    assert weight_bits(net) == (32 * 592 + 4 * 2304, 32 * 2896)
    net = half_float()
    quantize_layers(net, [[4, 4], [4, 4]], Quantizers(), torch.randn(2, *SHAPE))
    assert weight_bits(net) == (4 * 251 + 32 * 632, 32 * 883)


# ---- the packed file


def words(bits):
    return 4 * math.ceil(bits / 32)


def pack(net, strategy, linear):
    """Returns the bytes of a file: every tensor written down one after the other."""
    blob = bytearray()
    layers = quantizable_layers(net)
    for layer, entry in zip(layers.values(), strategy, strict=True):
        weight, bits = layer.weight.detach(), entry[0] if linear else entry
        if linear:
            codes, extra = (weight * 0).flatten().int(), [0.0, 0.0]  # scale, range
        else:
            book = fit_codebook(weight, bits)
            codes, extra = book.labels.flatten().int(), book.centroids.tolist()
        assert int(codes.max()) < 2**bits
        text = ''.join(f'{code:0{bits}b}' for code in codes.tolist())
        text += '0' * (-len(text) % 32)
        blob += int(text, 2).to_bytes(len(text) // 8, 'big') + torch.tensor(extra).numpy().tobytes()
    weights = {f'{name}.weight' for name in layers}
    for key, value in net.state_dict().items():
        if key not in weights and not key.endswith('num_batches_tracked'):
            blob += value.float().numpy().tobytes()
    return len(blob)


@pytest.mark.parametrize('linear', [False, True])
@pytest.mark.parametrize('bits', [1, 3, 7, 8])
def test_a_file_of_every_tensor_has_that_many_bytes(linear, bits, tiny_net):
    found = inventory_of(tiny_net, SHAPE, linear)
    strategy = [[bits, bits]] * 4 if linear else [bits] * 4
    assert file_size(found).cost(strategy) == pack(tiny_net, strategy, linear)
    assert file_size(found).reference == 4 * sum(value.numel() for key, value in tiny_net.state_dict().items()
                                                 if not key.endswith('num_batches_tracked'))


def test_the_codebook_of_a_small_layer_costs_more_than_its_weights():
    """432 weights of 7 bits: 378 bytes, and 128 values of 4; from 8 bits on no more values than 50 weights."""
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.Flatten(), nn.Linear(50, 1, bias=False))
    table = file_size(Inventory(profile_layers(net[:1], SHAPE))).table[0, :, 0]
    assert table[6] == 4 * 95 + 4 * 128 and table[3] == 4 * 54 + 4 * 16
    assert file_size(Inventory(profile_layers(net[2:], (1, 1, 50)))).table[0, 7, 0] == 52 + 4 * 50


def test_a_pruned_file_says_where_its_zeros_are():
    net = nn.Sequential(nn.Linear(10, 10, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(1)[:7] = 0
    found = inventory_of(net, (1, 1, 10), False, is_pruned=True)
    assert size_of(found).cost([3]) == 3 * 30 and file_size(found).cost([3]) == words(100) + words(90) + 4 * 8


def test_float_layers_and_buffers_are_in_the_file():
    """Of `half_float` in the linear flow: biases 8, 8, 5; Parameters 576 and 56. Integers at their own size."""
    net = half_float()
    net.register_buffer('table', torch.arange(6))
    net.register_buffer('gone', torch.ones(9), persistent=False)
    found = inventory_of(net, SHAPE, True)
    assert file_size(found).rest == 4 * (8 + 8 + 5 + 576 + 56) + 6 * 8
    assert file_size(found).cost([[4, 4], [3, 8]]) == words(4 * 216) + 8 + words(3 * 35) + 8 + found.file_rest
    converted = convert_to_quantized(net, torch.randn(2, *SHAPE))
    LinearQuantization(converted, [[4, 4], [4, 4]])
    calibrate(converted, torch.randn(2, *SHAPE))
    assert inventory_of(converted, SHAPE, True).file_rest == found.file_rest, 'ranges belong to the layers'
    assert inventory_of(half_float().half(), SHAPE, True).file_rest == found.file_rest - 48, 'at 4 bytes a number'


# ---- first and last


def test_first_and_last_are_those_of_the_calls():
    records = profile_layers(HeadFirst(), SHAPE)
    assert [record.name for record in records] == ['head', 'late', 'early'] and ends(records) == ((2,), (0,))
    assert uniform_strategy(3, 4, linear=True, ends=ends(records)) == [[8, 8], [4, 4], [8, -1]]
    assert proqha_float_layers(records) == {'head', 'early'}
    assert ends(records, DEFINED) == ((0,), (2,)) and proqha_float_layers(records, DEFINED) == {'head', 'early'}
    found = inventory_of(HeadFirst(), SHAPE, True)
    size = [Constraint.of_ratio(size_of(found), 0.5)]
    assert Space.of(found, size).fixed == {2: [8, -1], 0: [8, 8]}
    before = as_before(found, profile_network(HeadFirst(), SHAPE))
    fixed = Space.of(before, size).fixed
    assert fixed == {0: [8, -1], 2: [8, 8]}, 'a search that was begun before goes on as it was'


def test_a_layer_that_is_called_again_is_where_its_last_call_is():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.side, self.body, self.unused = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.side(self.body(self.side(x)))
    records = profile_layers(Again(), (1, 1, 4))
    assert ends(records) == ((0,), (0,)) == ends(records[1:]) and records[2].order is None
    assert ends([record for record in records if not record.calls]) == ((0,), (0,))


def test_parts_of_proqha_by_the_calls_and_of_a_checkpoint_of_before():
    class Net(HeadFirst):
        def __init__(self):
            super().__init__()
            self.middle = nn.Conv2d(6, 6, 1)

        def forward(self, x):
            return self.head(self.middle(self.late(self.early(x).relu())).mean((2, 3)))
    assert [part.layer for part in find_parts(Net(), SHAPE)] == ['late', 'middle']
    assert [part.layer for part in find_parts(Net(), SHAPE, DEFINED)] == ['late', 'early']


def test_an_inventory_of_before():
    found, profile = inventory_of(half_float(), SHAPE, True), profile_network(half_float(), SHAPE)
    old = as_before(found, profile)
    assert old.coverage == (1, 1) and size_of(old).reference == 32 * 251 and size_of(old).rest == 0
    shared = as_before(inventory_of(Shared(), SHAPE, False), profile_network(Shared(), SHAPE))
    assert [record.macs for record in shared.layers] == [STEM, ONE, FC]
