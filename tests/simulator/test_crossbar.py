import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lib.simulator.backends import find_hardware
from lib.simulator.crossbar import PRESETS, Crossbar
from lib.simulator.hardware import make_table
from lib.simulator.layer import LayerRecord

ISAAC, NEUROSIM = PRESETS['isaac'], PRESETS['neurosim']


def conv(cin, cout, kernel, out, groups=1):
    count = cout * cin // groups * kernel**2
    return LayerRecord('body', 'conv', cin, cout, (kernel, kernel), (1, 1), groups, out, out, out, out, count)


def linear(cin, cout, positions=1, **changes):
    return LayerRecord('fc', 'linear', cin, cout, (1, 1), (1, 1), 1, positions, 1, positions, 1, cin * cout, **changes)


def test_isaac_takes_16_cycles_of_100_ns_per_pixel_at_16_bits():
    assert ISAAC.read_cycle_ns == 100
    assert ISAAC.columns_per_weight(16) == 8
    assert ISAAC.layer_cost(linear(128, 16), 16, 16).latency == pytest.approx(16 * 100e-6)
    assert ISAAC.layer_cost(conv(16, 32, 3, 14), 8, 5).latency == pytest.approx(196 * 5 * 100e-6)


def test_latency_of_the_parts_of_a_cycle():
    assert NEUROSIM.read_cycle_ns == 10 + 8 * 1
    chip = replace(NEUROSIM, dac_bits=3, batch=4)
    assert chip.layer_cost(conv(16, 32, 3, 10), 4, 8).latency == pytest.approx(4 * 100 * 3 * 18e-6)
    assert NEUROSIM.layer_cost(linear(8, 8), 4, 4).bound == 'read'
    assert ISAAC.layer_cost(linear(8, 8), 4, 4).bound == 'ADC'


def test_latency_follows_the_activation_bits_alone():
    table = make_table([conv(64, 96, 3, 14), linear(500, 700)], ISAAC)
    assert (table.name, table.unit) == ('isaac_latency', 'ms')
    assert (table.table == table.table[:, :1]).all()
    assert np.allclose(table.table, table.table[:, :, :1] * np.arange(1, 9))
    two_bits = make_table([linear(500, 700)], replace(ISAAC, dac_bits=2)).table[0, 0]
    assert np.allclose(two_bits / two_bits[0], [1, 1, 2, 2, 3, 3, 4, 4])


@pytest.mark.parametrize(
    'mapping, cells', [('offset', [1, 1, 2, 2, 3, 3, 4, 4]), ('balanced', [2, 2, 2, 4, 4, 6, 6, 8])]
)
def test_cells_of_a_weight(mapping, cells):
    chip = replace(ISAAC, mapping=mapping)
    assert [chip.columns_per_weight(bits) for bits in range(1, 9)] == cells
    assert [replace(chip, cell_bits=1).columns_per_weight(bits) for bits in (1, 2, 8)] == (
        [1, 2, 8] if mapping == 'offset' else [2, 2, 14]
    )


def test_arrays_of_dense_layers():
    assert ISAAC.num_arrays(linear(256, 512), 8) == 2 * 16  # 2 parts of 128 rows; 512 * 4 columns of 128
    assert replace(ISAAC, mapping='balanced').num_arrays(linear(256, 512), 8) == 2 * 32
    assert ISAAC.num_arrays(linear(257, 513), 8) == 3 * 17
    assert ISAAC.num_arrays(linear(256, 512), 4) == 2 * 8
    assert ISAAC.num_arrays(conv(64, 128, 3, 14), 8) == 5 * 4  # 576 rows, 512 columns
    assert ISAAC.num_arrays(linear(10, 10), 8) == 1
    assert replace(ISAAC, replication=3).num_arrays(linear(256, 512), 8) == 3 * 32


def test_groups_lie_on_the_diagonal():
    # Depthwise 3 x 3: blocks of 9 rows and 4 columns at 8 bits; 128 // 9 = 14 of them fit, and 32 by columns.
    assert ISAAC.num_arrays(conv(96, 96, 3, 14, groups=96), 8) == math.ceil(96 / 14)
    # 1 x 1 with 8 filters per group: the columns decide, 128 // 32 = 4.
    assert ISAAC.num_arrays(conv(96, 768, 1, 14, groups=96), 8) == 24
    # Blocks larger than an array: 4 groups of 144 rows and 64 columns take 2 arrays each.
    assert ISAAC.num_arrays(conv(64, 64, 3, 14, groups=4), 8) == 4 * 2 * 1
    # One group is the dense layer, whether it fits or not.
    assert ISAAC.num_arrays(conv(14, 32, 3, 14), 8) == 1 and ISAAC.num_arrays(conv(15, 33, 3, 14), 8) == 2 * 2


def place_on_diagonal(groups, k, n, rows, columns):
    """Put blocks one after another on the diagonals of arrays; return how many arrays that takes."""
    arrays, row, column = 1, 0, 0
    for _ in range(groups):
        if row + k > rows or column + n > columns:
            arrays, row, column = arrays + 1, 0, 0
        row, column = row + k, column + n
    return arrays


def test_groups_placed_one_by_one():
    for groups in (1, 2, 7, 40):
        for kernel, filters in ((1, 1), (3, 1), (3, 5), (5, 2), (7, 4), (11, 3)):
            layer = conv(groups, groups * filters, kernel, 5, groups=groups)
            for bits in (1, 4, 8):
                cells = filters * math.ceil(bits / 2)
                assert ISAAC.num_arrays(layer, bits) == place_on_diagonal(groups, kernel**2, cells, 128, 128)


def test_arrays_of_a_network():
    layers = [conv(64, 128, 3, 14), linear(256, 512, calls=2), linear(256, 512, calls=0)]
    assert ISAAC.network_arrays(layers, [8, 4, 8]) == 20 + 16


def test_copies_share_the_pixels():
    layer = conv(16, 32, 3, 10)
    once, shared = ISAAC.layer_cost(layer, 8, 8), replace(ISAAC, replication=8).layer_cost(layer, 8, 8)
    assert shared.latency == pytest.approx(13 * 8 * 100e-6)  # 100 pixels, 13 at most on one copy
    assert shared.energy == once.energy and shared.traffic_bits == once.traffic_bits


def test_a_layer_larger_than_the_chip_is_refused_by_name():
    small = replace(ISAAC, max_arrays=16)
    assert small.layer_cost(linear(256, 512), 4, 8) == ISAAC.layer_cost(linear(256, 512), 4, 8)
    with pytest.raises(ValueError, match='fc does not fit isaac: at 5-bit .* 24 arrays, max_arrays is 16'):
        small.layer_cost(linear(256, 512), 5, 8)
    with pytest.raises(ValueError, match='takes 32 arrays'):
        replace(small, replication=2).layer_cost(linear(256, 512), 4, 8)


def test_bits_of_a_full_precision_conversion():
    full = replace(ISAAC, adc_bits=0)
    assert full.conversion_bits == 9  # 7 + 1 + 2 - 1; ISAAC's encoding saves one more
    assert ISAAC.conversion_bits == 8 and NEUROSIM.conversion_bits == 5
    assert replace(full, dac_bits=2).conversion_bits == 7 + 2 + 2
    assert replace(full, cell_bits=1).conversion_bits == 7 + 1 + 1 - 1
    assert replace(full, dac_bits=2, cell_bits=1, rows=129).conversion_bits == 8 + 2 + 1 - 1
    # The largest sum of a column, R (2^d - 1) (2^c - 1), fits in these bits.
    for rows in (64, 128, 256):
        for d in (1, 2, 3):
            for c in (1, 2, 3):
                bits = replace(full, rows=rows, dac_bits=d, cell_bits=c).conversion_bits
                assert 2 ** (bits - 1) <= rows * (2**d - 1) * (2**c - 1) < 2**bits


def test_energy_of_a_read():
    chip = Crossbar(rows=64, columns=32, cell_bits=1, adc_bits=6, columns_per_adc=8, read_ns=1, conversion_ns=1,
                    dac_energy=0.5, cell_energy=0.01, adc_energy=2, shift_add_energy=0.1)  # fmt: skip
    assert chip.read_energy() == pytest.approx(64 * 0.5 + 64 * 32 * 0.01 + 32 * (2 / 4 + 0.1))
    assert replace(chip, adc_growth=4).read_energy() == pytest.approx(64 * 0.5 + 64 * 32 * 0.01 + 32 * (2 / 16 + 0.1))
    # One layer: 25 pixels of 2 images, 3 input bits, 2 parts of rows by 5 arrays of columns (80 weights of 2 cells).
    cost = replace(chip, batch=2).layer_cost(conv(8, 80, 3, 5), 2, 3)
    assert cost.energy == pytest.approx(2 * 25 * 3 * 2 * 5 * chip.read_energy() / 1e3)


def test_isaac_power_of_an_array():
    """The energies per 100 ns add up to the powers that they come from: 0.5 mW of DACs, 0.3 of cells, 2.2 of ADC."""
    microwatts = {part: replace(ISAAC, **{name: 0 for name in others}).read_energy() / 100 * 1e3 for part, others in {
        'dac': ['cell_energy', 'adc_energy', 'shift_add_energy'],
        'cells': ['dac_energy', 'adc_energy', 'shift_add_energy'],
        'adc': ['cell_energy', 'dac_energy', 'shift_add_energy'],
        'shift-add': ['cell_energy', 'dac_energy', 'adc_energy'],
    }.items()}  # fmt: skip
    assert microwatts == pytest.approx({'dac': 500, 'cells': 300, 'adc': 2176, 'shift-add': 50}, rel=0.03)


def test_energy_follows_both_bits():
    energy = make_table([linear(256, 512)], ISAAC, 'energy').table[0]
    arrays = np.array([2 * math.ceil(512 * math.ceil(bits / 2) / 128) for bits in range(1, 9)])
    assert np.allclose(energy / energy[0, 0], arrays[:, None] / arrays[0] * np.arange(1, 9))
    assert energy[7, 7] == pytest.approx(4 * energy[1, 7])  # 8 and 2 weight bits: 4 cells and 1
    fewer, more = (make_table([linear(256, 512)], replace(ISAAC, adc_bits=b), 'energy').table[0] for b in (6, 10))
    assert (fewer < energy).all() and (energy < more).all()


def test_only_activations_move():
    cost = replace(ISAAC, batch=2).layer_cost(conv(16, 32, 3, 10), 3, 5)
    assert cost.traffic_bits == 2 * 100 * (16 * 5 + 32 * 8)


def test_peak_of_a_limited_chip():
    assert ISAAC.peak_macs(8, 8) is None and ISAAC.memory_bandwidth() is None
    chip = replace(ISAAC, max_arrays=32)
    # A layer that fills the chip runs at its peak: 256 x 512 at 8 bits.
    cost = chip.layer_cost(linear(256, 512, positions=7), 8, 8)
    assert 7 * 256 * 512 / (cost.latency * 1e-3) == pytest.approx(chip.peak_macs(8, 8))


def test_layers_never_called_cost_nothing():
    never = replace(linear(8, 8), calls=0, in_h=0, in_w=0, out_h=0, out_w=0)
    assert make_table([linear(8, 8), never], NEUROSIM).table[1].sum() == 0


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match="mapping is 'signed', expected balanced or offset"):
        replace(ISAAC, mapping='signed')
    with pytest.raises(ValueError, match='replication is 0'):
        replace(ISAAC, replication=0)
    with pytest.raises(ValueError, match='adc_bits is -1'):
        replace(ISAAC, adc_bits=-1)


def test_resources_are_the_arrays_of_the_network():
    layers = [linear(256, 512), conv(8, 8, 3, 4)]
    expected = [ISAAC.num_arrays(layers[0], bits) + ISAAC.num_arrays(layers[1], bits) for bits in (8, 4, 2)]
    assert expected[0] == 2 * 16 + 1
    said = ISAAC.resources(layers)
    assert said == f'arrays of 128 x 128 cells: {expected[0]} at 8, {expected[1]} at 4, {expected[2]} at 2 weight bits'


@pytest.mark.parametrize('name', ['rows', 'columns', 'cell_bits', 'read_ns'])
def test_a_chip_says_its_own_size(name, tmp_path):
    """The arrays of the engine have one by default."""
    values = {key: value for key, value in ISAAC.to_dict().items() if key != name}
    (tmp_path / 'mine.yaml').write_text(json.dumps({'backend': 'crossbar', **values}))
    with pytest.raises(ValueError, match=f'crossbar needs {name} as well'):
        find_hardware(tmp_path / 'mine.yaml')
