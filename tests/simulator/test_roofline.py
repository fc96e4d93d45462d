from dataclasses import replace

import numpy as np
import pytest

from lib.simulator.hardware import make_table, with_parameters
from lib.simulator.layer import LayerRecord
from lib.simulator.roofline import PRESETS, Roofline

# 100 GMAC/s at 8 bits, 10 GB/s: the ridge is at 10 MACs per byte.
CHIP = Roofline(name='chip', peak_int8=100, bandwidth=10)


def conv(cin, cout, kernel, in_size, out, groups=1):
    count = cout * cin // groups * kernel**2
    stride, size_in, size_out = (in_size // out,) * 2, (in_size,) * 2, (out,) * 2
    return LayerRecord('body', 'conv', cin, cout, (kernel, kernel), stride, groups, *size_in, *size_out, count)


def linear(cin, cout, positions=1, **changes):
    return LayerRecord('fc', 'linear', cin, cout, (1, 1), (1, 1), 1, positions, 1, positions, 1, cin * cout, **changes)


BUSY = conv(64, 64, 3, 20, 10)  # 3,686,400 MACs; 36,864 weights, 25,600 inputs, 6,400 outputs
IDLE = linear(1000, 500)  # 500,000 MACs; as many weights


def test_compute_bound_by_hand():
    cost = CHIP.layer_cost(BUSY, 8, 8)
    assert cost.bound == 'compute'
    assert cost.latency == pytest.approx(3_686_400 / 100e9 * 1e3, rel=1e-12)  # 0.036864 ms
    assert cost.traffic_bits == 8 * (36_864 + 25_600 + 6_400)
    assert replace(CHIP, utilization=0.5).layer_cost(BUSY, 8, 8).latency == pytest.approx(2 * 0.036864)


def test_memory_bound_by_hand():
    cost = CHIP.layer_cost(IDLE, 8, 8)
    assert cost.bound == 'memory'
    assert cost.latency == pytest.approx((500_000 + 1000 + 500) / 10e9 * 1e3, rel=1e-12)  # 0.05015 ms
    fewer = CHIP.layer_cost(IDLE, 2, 4)
    assert fewer.traffic_bits == 500_000 * 2 + 1000 * 4 + 500 * 8
    assert fewer.latency == pytest.approx(1_008_000 / 8 / 10e9 * 1e3, rel=1e-12)
    assert replace(CHIP, output_bits=32).layer_cost(IDLE, 2, 4).traffic_bits == fewer.traffic_bits + 500 * 24


def test_weights_move_once_per_batch_and_activations_once_per_image():
    cost = replace(CHIP, batch=16).layer_cost(IDLE, 8, 8)
    assert cost.traffic_bits == 8 * (500_000 + 16 * 1500)
    assert cost.bound == 'compute' and cost.latency == pytest.approx(16 * 500_000 / 100e9 * 1e3)
    tokens = CHIP.layer_cost(linear(64, 32, positions=50), 8, 8)
    assert tokens.traffic_bits == 8 * (64 * 32 + 50 * 96)


def test_fewer_bits_save_bytes_and_never_arithmetic():
    latency = make_table([BUSY, IDLE], CHIP).table
    assert (latency[0] == latency[0, 7, 7]).all()
    assert (np.diff(latency[1], axis=0) > 0).all() and (np.diff(latency[1], axis=1) > 0).all()


def test_native_storage_takes_the_width_of_the_arithmetic():
    unpacked = make_table([BUSY, IDLE], replace(CHIP, storage='native')).table
    assert (unpacked == unpacked[:, 7:, 7:]).all()
    both = replace(CHIP, storage='native', peak_int4=200)
    assert both.traffic_bits(IDLE, 3, 4) == 4 * 501_000 + 500 * 8
    assert both.traffic_bits(IDLE, 3, 5) == 8 * 501_500


def test_the_smallest_arithmetic_that_holds_both_operands():
    chip = replace(CHIP, peak_int4=200, peak_16=25)
    widths = {(w, a): chip.precision(w, a) for w, a in ((1, 1), (4, 4), (4, 5), (5, 4), (8, 8), (9, 2), (16, 16))}
    assert list(widths.values()) == [4, 4, 8, 8, 8, 16, 16]
    assert chip.layer_cost(BUSY, 4, 4).latency == pytest.approx(0.036864 / 2)
    assert chip.layer_cost(BUSY, 4, 5).latency == pytest.approx(0.036864)
    assert [chip.peak_macs(bits, bits) for bits in (4, 8, 16)] == [200e9, 100e9, 25e9]
    floating = Roofline(name='floating', peak_16=25, bandwidth=10)
    assert floating.layer_cost(BUSY, 1, 1).latency == pytest.approx(4 * 0.036864)
    with pytest.raises(ValueError, match='chip has no arithmetic for 9-bit weights'):
        CHIP.layer_cost(BUSY, 9, 8)


def test_launch_overhead_adds_up():
    late = replace(CHIP, launch_us=5).layer_cost(BUSY, 8, 8)
    assert late.latency == pytest.approx(0.036864 + 0.005) and late.bound == 'compute'
    assert replace(CHIP, launch_us=50).layer_cost(BUSY, 8, 8).bound == 'launch'


def test_layers_that_are_called_often_or_never():
    layers = [IDLE, replace(IDLE, calls=3), replace(IDLE, calls=0, in_h=0, in_w=0, out_h=0, out_w=0)]
    table = make_table(layers, replace(CHIP, launch_us=5))
    once, thrice, never = table.table[:, 7, 7]
    assert thrice == pytest.approx(3 * once) and never == 0
    assert CHIP.layer_cost(layers[1], 8, 8) == CHIP.layer_cost(IDLE, 8, 8)  # one call; the table counts them
    assert (table.name, table.unit) == ('chip_latency', 'ms')


def test_depthwise_counts_its_own_macs():
    cost = CHIP.layer_cost(conv(32, 32, 3, 10, 10, groups=32), 8, 8)
    assert cost.bound == 'memory'
    assert cost.traffic_bits == 8 * (288 + 3200 + 3200)
    fast_memory = replace(CHIP, bandwidth=1e6)
    assert fast_memory.layer_cost(conv(32, 32, 3, 10, 10, groups=32), 8, 8).latency == pytest.approx(28_800 / 100e6)


def test_energy_of_a_mac():
    bare = replace(CHIP, sram_energy=0)
    assert bare.mac_energy(8, 8) == pytest.approx(0.2 + 0.1)
    assert bare.mac_energy(2, 4) == pytest.approx(0.2 / 8 + 0.1)
    assert replace(bare, accumulator_bits=16).mac_energy(8, 8) == pytest.approx(0.2 + 0.05)
    assert replace(bare, mult_exponent=0.5).mac_energy(4, 4) == pytest.approx(0.2 / 2 + 0.1)
    assert replace(bare, mult_width='native').mac_energy(2, 4) == pytest.approx(0.2 + 0.1)
    assert replace(bare, mult_width='native', peak_int4=200).mac_energy(2, 4) == pytest.approx(0.2 / 4 + 0.1)
    wide = replace(bare, peak_16=1, add_energy=0)
    assert wide.mac_energy(16, 16) == pytest.approx(0.8)  # the square law; 32 bits: 3.2 pJ for the 3.1 of the source
    assert CHIP.mac_energy(2, 4) == pytest.approx(0.2 / 8 + 0.1 + 20 / 64 * 6 / 16)
    assert replace(CHIP, storage='native').mac_energy(2, 4) == pytest.approx(0.2 / 8 + 0.1 + 20 / 64 * 16 / 16)


def test_energy_of_a_layer():
    chip = replace(CHIP, sram_energy=0, dram_energy=10, batch=2)
    cost = chip.layer_cost(IDLE, 4, 8)
    macs, bits = 2 * 500_000, 500_000 * 4 + 2 * (1000 * 8 + 500 * 8)
    assert cost.energy == pytest.approx((macs * (0.1 + 0.1) + bits * 10) / 1e3)
    energy = make_table([BUSY, IDLE], CHIP, 'energy')
    assert (energy.name, energy.unit) == ('chip_energy', 'nJ')
    assert (np.diff(energy.table, axis=1) > 0).all() and (np.diff(energy.table, axis=2) > 0).all()


def test_presets():
    tops = {name: preset.peak_macs(8, 8) * 2 / 1e12 for name, preset in PRESETS.items()}
    assert tops == pytest.approx({
        'cortex_a72': 0.096, 'cortex_a76': 0.6, 'xavier_nx': 21, 't4': 130, 'a100': 624, 'h200': 1979,
    })  # fmt: skip
    assert PRESETS['t4'].peak_macs(4, 3) * 2 == pytest.approx(260e12)
    assert PRESETS['h200'].memory_bandwidth() == 4.8e12
    assert all(preset.status == 'nominal' and preset.name == name for name, preset in PRESETS.items())


def test_parameters_with_units():
    chip = with_parameters(Roofline, {'name': 'mine', 'peak_int8': '2 TOPS', 'bandwidth': '51.2 Gbit/s'})
    assert (chip.peak_int8, chip.bandwidth) == (1000, 6.4)


def test_bad_parameters_are_refused():
    with pytest.raises(ValueError, match='utilization is 1.5'):
        replace(CHIP, utilization=1.5)
    with pytest.raises(ValueError, match='peak_int8 and peak_16 are both 0'):
        Roofline(name='four', peak_int4=100, bandwidth=1)
    with pytest.raises(ValueError, match='storage is .*packed or native'):
        replace(CHIP, storage='loose')
    with pytest.raises(ValueError, match='bandwidth'):
        replace(CHIP, bandwidth=0)
