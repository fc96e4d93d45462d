import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.simulator.bitfusion import PRESETS, Convolution
from lib.simulator.hardware import make_table, with_parameters
from lib.simulator.layer import LayerRecord

DATA = Path(__file__).parent / 'data'
REFERENCE = json.loads((DATA / 'bitfusion_reference.json').read_text())
SWEEP = REFERENCE['shipped_sweep']
NOTEBOOK = REFERENCE['notebook_vs_eyeriss']
APQ = json.loads((DATA / 'apq_bitfusion_sample.json').read_text())
CHIP, PACKED = PRESETS['bitfusion'], PRESETS['apq']
NOTEBOOK_ENERGY = 0.256  # of the simulator's energy: what the power in the notebook amounts to, for every network


def square(row):
    """The dense convolution of a row with the columns K, O, S, IC, OC, im2col and perhaps B."""
    sides = [(row[key],) * 2 for key in ('K', 'S', 'O')]
    return Convolution(*sides, row['IC'], row['OC'], row.get('B', 16), bool(row['im2col']))


def rows_of(table):
    return [dict(zip(table['columns'], row, strict=True)) for row in table['rows']]


def conv(cin, cout, kernel, out, stride=1, groups=1):
    count = cout * cin // groups * kernel**2
    sizes = (out * stride, out * stride, out, out)
    return LayerRecord('features.3', 'conv', cin, cout, (kernel,) * 2, (stride,) * 2, groups, *sizes, count)


def linear(cin, cout, positions=1):
    return LayerRecord('fc', 'linear', cin, cout, (1, 1), (1, 1), 1, positions, 1, positions, 1, cin * cout)


def traffic_and_time(schedule):
    return [schedule.cycles, schedule.stall, schedule.read_bits, schedule.write_bits]


# ---- the published simulator


def test_the_preset_is_the_configuration_of_the_simulator():
    config, energy = REFERENCE['config'], REFERENCE['energy_constants']
    assert [CHIP.rows, CHIP.columns, CHIP.widest, CHIP.narrowest, CHIP.output_bits, CHIP.dram_bits] == [
        config[key] for key in ('N', 'M', 'pmax', 'pmin', 'output_bits', 'dram_bits_per_cycle')
    ]
    buffers = [CHIP.activation_buffer, CHIP.weight_buffer, CHIP.output_buffer]
    assert buffers == [config[key] for key in ('IBUF_bytes', 'WBUF_bytes', 'OBUF_bytes')]
    assert CHIP.clock_mhz * 1e6 == config['freq_Hz']
    assert CHIP.unit_energy * 512 / 1e3 == pytest.approx(energy['core_nJ_per_active_cycle'], rel=1e-12)
    assert CHIP.dram_energy / 1e3 == pytest.approx(energy['dram_nJ_per_bit'], rel=1e-12)
    names = {'weight': 'wbuf', 'activation': 'ibuf', 'output': 'obuf'}
    for (ours, theirs), access in itertools.product(names.items(), ('read', 'write')):
        expected = energy[f'{theirs}_{access}_nJ_per_bit']
        assert getattr(CHIP, f'{ours}_{access}_energy') / 1e3 == pytest.approx(expected, rel=1e-12)


def test_every_row_of_the_simulator():
    rows = rows_of(REFERENCE)
    assert len(rows) == 380
    for row in rows:
        ours = CHIP.best_schedule(square(row), row['w_bits'], row['a_bits'])
        expected = [row[key] for key in ('cycles', 'stall_cycles', 'dram_read_bits', 'dram_write_bits')]
        assert traffic_and_time(ours) == expected, row
        energies = {'energy_nJ': ours.energy, 'E_core_nJ': ours.core_energy, 'E_sram_nJ': ours.sram_energy,
                    'E_dram_nJ': ours.dram_energy}  # fmt: skip
        for key, energy in energies.items():  # the rows are rounded to 4 decimals
            assert abs(energy - row[key]) <= max(1e-9 * row[key], 5.1e-5), (row, key)


@pytest.fixture(scope='module')
def sweep():
    """The shipped rows with our schedules of them."""
    return [(row, CHIP.best_schedule(square(row), row['w_bits'], row['a_bits'])) for row in rows_of(SWEEP)]


def test_every_row_of_the_shipped_sweep(sweep):
    assert len(sweep) == 61
    for row, ours in sweep:
        expected = [row[key] for key in ('cycles', 'stall_cycles', 'dram_read_bits', 'dram_write_bits')]
        assert traffic_and_time(ours) == expected, row


def test_published_networks_and_their_gains_over_eyeriss(sweep):
    gains = []
    for network, (eyeriss_ms, ms, eyeriss_mw, mw) in NOTEBOOK['rows'].items():
        schedules = [ours for row, ours in sweep if row['network'] == network]
        ours_ms = CHIP.milliseconds(sum(ours.cycles for ours in schedules)) / 16  # per image
        ours_uj = NOTEBOOK_ENERGY * sum(ours.energy for ours in schedules) / 1e3 / 16
        assert ours_ms == pytest.approx(ms, rel=1e-12)
        assert ours_uj == pytest.approx(mw * ms, rel=1e-9)
        gains.append((eyeriss_ms / ours_ms, eyeriss_mw * eyeriss_ms / ours_uj))
    speed, energy = np.exp(np.log(gains).mean(axis=0))
    assert (round(speed, 2), round(energy, 2)) == (3.93, 5.12)
    assert [speed, energy] == pytest.approx([NOTEBOOK['geomean_speedup'], NOTEBOOK['geomean_energy_gain']])


@pytest.mark.parametrize(
    'layer, cycles',  # at 8/8, 6/6, 4/4 and 2/2 bits
    [
        (conv(64, 64, 3, 56), [226646, 226984, 74204, 70681]),
        (conv(256, 256, 3, 14), [226625, 226292, 75329, 35201]),
        (linear(512, 1000), [21697, 16358, 11020, 5809]),
        (conv(960, 160, 1, 7), [18814, 16208, 9687, 4811]),
        (conv(64, 384, 1, 14), [26635, 26248, 25862, 26243]),
    ],
)
def test_published_examples_are_not_monotone_in_the_bits(layer, cycles):
    assert [CHIP.layer_cost(layer, bits, bits).latency for bits in (8, 6, 4, 2)] == cycles


# ---- an independent search: every loop order and tiling, one by one


def sizes_up_to(total, first=1):
    sizes = []
    while first < total:
        sizes.append(first)
        first *= 2
    return [*sizes, total]


def walk(order, volume, capacity, loops, counts):
    """Total and resident volume of one kind of data in one loop order, innermost loop first."""
    resident, promoting = volume, True
    for loop in order:
        if promoting and loop not in loops:
            continue
        volume *= counts[loop]
        if promoting and volume <= capacity:
            resident = volume
        else:
            promoting = False
    return volume, resident


def buffer_energy(chip, tile, taps, im2col, w_bit, a_bit, steps, moved):
    """Energy of the buffers in pJ with the cheapest of three stationarities, as the published simulator has it."""
    b, oh, ow, ic, oc = tile
    at_once = chip.rows * chip.products(w_bit, a_bit)
    filters = math.ceil(oc / chip.columns) * chip.columns
    inputs = math.ceil(taps * ic / at_once) * at_once if im2col else math.ceil(ic / at_once) * at_once * taps
    pixels, depth, out = b * oh * ow, taps * ic, chip.output_bits
    stationarities = [  # cost to choose by; bits of activations, weights and partial sums
        (inputs * pixels * (a_bit + filters * (w_bit + out)), depth * pixels, depth * pixels * oc, depth * pixels * oc),
        (filters * pixels * (out + inputs * (a_bit + w_bit)), oc * pixels * depth, oc * pixels * depth, oc * pixels),
        (inputs * filters * (w_bit + pixels * (a_bit + out)), depth * oc * pixels, depth * oc, depth * oc * pixels),
    ]
    _, activations, weights, sums = min(stationarities)
    return (
        activations * a_bit * steps * chip.activation_read_energy + moved['a'] * chip.activation_write_energy
        + weights * w_bit * steps * chip.weight_read_energy + moved['w'] * chip.weight_write_energy
        + (sums * out * steps + moved['o']) * (chip.output_read_energy + chip.output_write_energy)
    )  # fmt: skip


def all_schedules(problem, w_bit, a_bit, chip):
    """Yield (cycles, energy in nJ, stall, bits read, bits written) of every loop order of every tiling that fits."""
    (kh, kw), (sh, sw), (rows, columns) = problem.kernel, problem.stride, problem.out
    at_once, taps = chip.rows * chip.products(w_bit, a_bit), kh * kw
    capacity = {'w': chip.weight_buffer * 4, 'a': chip.activation_buffer * 4, 'o': chip.output_buffer * 4}
    loops = {'w': ('ic', 'oc'), 'a': ('b', 'oh', 'ow', 'ic'), 'o': ('b', 'oh', 'ow', 'oc')}
    for b, side, ic, oc in itertools.product(
        sizes_up_to(problem.batch), sizes_up_to(max(rows, columns)), sizes_up_to(problem.in_channels),
        sizes_up_to(problem.out_channels, 1 if problem.im2col else chip.columns),
    ):  # fmt: skip
        oh, ow = min(side, rows), min(side, columns)
        padded = chip.layout == 'padded'
        deep = math.ceil(taps * ic / at_once) * at_once if padded else taps * ic
        wide = math.ceil(oc / chip.columns) * chip.columns if padded else oc
        window = oh * ow * taps if problem.im2col else (kh + (oh - 1) * sh) * (kw + (ow - 1) * sw)
        tile = {'w': deep * oc * w_bit, 'a': window * ic * b * a_bit, 'o': oh * ow * wide * b * chip.output_bits}
        if any(tile[data] > capacity[data] for data in tile):
            continue
        totals = {'b': (problem.batch, b), 'oh': (rows, oh), 'ow': (columns, ow), 'ic': (problem.in_channels, ic),
                  'oc': (problem.out_channels, oc)}  # fmt: skip
        counts = {loop: math.ceil(total / size) for loop, (total, size) in totals.items()}
        steps = math.prod(counts.values())
        chunks = math.ceil(taps * ic / at_once) if problem.im2col else taps * math.ceil(ic / at_once)
        compute = steps * b * oh * ow * math.ceil(oc / chip.columns) * chunks
        for order in itertools.permutations(counts):
            walked = {data: walk(order, tile[data], capacity[data], loops[data], counts) for data in tile}
            moved = {data: total for data, (total, _) in walked.items()}
            first, last = sum(resident for _, resident in walked.values()), walked['o'][1]
            read, write = sum(moved.values()), moved['o']
            waiting = math.ceil((read + write - first - last) / chip.dram_bits) - compute
            stall = max(0, waiting) + math.ceil(first / chip.dram_bits) + math.ceil(last / chip.dram_bits)
            energy = chip.unit_energy * chip.rows * chip.columns * compute + chip.dram_energy * (read + write)
            energy += buffer_energy(chip, (b, oh, ow, ic, oc), taps, problem.im2col, w_bit, a_bit, steps, moved)
            yield compute + stall, energy / 1e3, stall, read, write


TIGHT = replace(CHIP, weight_buffer=16384, activation_buffer=256, output_buffer=4096)
SMALL = replace(CHIP, rows=2, columns=4, weight_buffer=64, activation_buffer=32, output_buffer=128, dram_bits=24,
                output_bits=16)  # fmt: skip


@pytest.mark.parametrize(
    'problem, w_bit, a_bit, chip',
    [
        (Convolution((3, 3), (1, 1), (6, 6), 24, 70, 3), 8, 8, TIGHT),
        (Convolution((3, 3), (1, 1), (6, 6), 24, 70, 3), 3, 5, replace(TIGHT, layout='packed')),
        (Convolution((3, 3), (2, 2), (9, 9), 3, 40, 2, im2col=True), 4, 8, TIGHT),
        (Convolution((5, 5), (2, 2), (10, 5), 3, 70), 8, 8, replace(TIGHT, weight_buffer=4096, layout='packed')),
        (Convolution((3, 5), (1, 1), (9, 7), 8, 70, im2col=True), 8, 2, replace(TIGHT, weight_buffer=4096)),
        (Convolution((3, 1), (1, 2), (8, 4), 8, 40), 8, 4, TIGHT),
        (Convolution((1, 1), (1, 1), (1, 1), 100, 90, 5), 7, 1, TIGHT),
        (Convolution((1, 1), (1, 1), (4, 4), 5, 9, 2), 8, 8, SMALL),
        (Convolution((2, 2), (1, 1), (5, 5), 4, 6), 8, 4, replace(SMALL, layout='packed')),
        (Convolution((1, 1), (1, 1), (1, 1), 3, 5), 8, 8, CHIP),
    ],
)
def test_the_search_is_that_over_all_orders_and_tilings(problem, w_bit, a_bit, chip):
    schedules = list(all_schedules(problem, w_bit, a_bit, chip))
    cycles = min(schedules)[0]
    energy = min(energy for c, energy, *_ in schedules if c == cycles)
    best = {tuple(rest) for c, e, *rest in schedules if c == cycles and e <= energy * (1 + 1e-12)}
    ours = chip.best_schedule(problem, w_bit, a_bit)
    assert ours.cycles == cycles and ours.energy == pytest.approx(energy, rel=1e-12)
    assert (ours.stall, ours.read_bits, ours.write_bits) in best


# ---- layers as convolutions


def test_the_table_of_apq():
    """A report, not a fit: what is asserted is what was measured on this sample, with a little slack."""
    errors = {}
    for (cin, cout, size, kernel, stride, padding, groups), w_bit, a_bit, cycles, millijoule in APQ['rows']:
        out = (size + 2 * padding - kernel) // stride + 1
        cost = PACKED.layer_cost(conv(cin, cout, kernel, out, stride, groups), w_bit, a_bit)
        kind = ('depthwise' if groups > 1 else 'pointwise', 6 in (w_bit, a_bit))
        difference = cost.latency - cycles
        errors.setdefault(kind, []).append((abs(difference), abs(difference) / cycles, cost.energy / millijoule / 1e6))
    errors = {kind: np.array(values).T for kind, values in errors.items()}
    assert sum(values.shape[1] for values in errors.values()) == 100

    close = {kind: (cycles <= 2).mean() for kind, (cycles, _, _) in errors.items()}
    assert close['pointwise', False] >= 0.95 and close['pointwise', True] >= 0.9  # measured 26 of 26 and 31 of 34
    assert close['depthwise', False] >= 0.8 and close['depthwise', True] >= 0.3  # measured 15 of 18 and 7 of 22
    mean = {kind: relative.mean() for kind, (_, relative, _) in errors.items()}
    assert mean['pointwise', False] < 1e-4 and mean['pointwise', True] < 0.012
    assert max(mean['depthwise', False], mean['depthwise', True]) < 0.03
    assert max(relative.max() for _, relative, _ in errors.values()) < 0.39
    # Their energy constants are not known. Ours give less; a factor 1.14 was chosen for pointwise layers elsewhere.
    energy = {kind: ratio for kind, (_, _, ratio) in errors.items()}
    assert 0.88 < energy['pointwise', False].mean() < 0.9 and 0.86 < energy['pointwise', True].mean() < 0.88
    assert abs(1.14 * energy['pointwise', False] - 1).mean() < 0.022
    assert abs(1.14 * energy['pointwise', True] - 1).mean() < 0.022
    assert 0.74 < energy['depthwise', False].mean() < 0.76 and 0.64 < energy['depthwise', True].mean() < 0.66


@pytest.mark.parametrize(
    'layer, w_bit, a_bit, repeats, channels',
    [
        (conv(96, 96, 3, 7, groups=96), 4, 4, 3, (32, 32)),
        (conv(96, 96, 3, 7, groups=96), 4, 8, 6, (16, 16)),
        (conv(96, 96, 3, 7, groups=96), 8, 5, 12, (8, 8)),
        (conv(100, 100, 3, 7, groups=100), 3, 4, 4, (32, 32)),  # the last block counts as full
        (conv(24, 24, 3, 7, groups=24), 2, 2, 1, (24, 24)),  # no block is larger than the layer
        (conv(32, 64, 3, 7, groups=32), 4, 4, 2, (16, 32)),  # two filters per channel
        (conv(128, 128, 3, 7, groups=32), 4, 4, 4, (32, 32)),  # 8 groups of 4 channels together
        (conv(64, 64, 3, 7, groups=2), 4, 4, 2, (32, 32)),
        (conv(128, 128, 3, 7, groups=2), 4, 4, 2, (64, 64)),  # larger than a block: each group alone
        (conv(128, 128, 3, 7), 8, 8, 1, (128, 128)),
    ],
)
def test_grouped_convolutions_become_dense_blocks(layer, w_bit, a_bit, repeats, channels):
    times, problem = CHIP.as_convolution(layer, w_bit, a_bit)
    assert (times, (problem.in_channels, problem.out_channels)) == (repeats, channels)
    assert not problem.im2col
    one = CHIP.best_schedule(problem, w_bit, a_bit)
    cost = CHIP.layer_cost(layer, w_bit, a_bit)
    assert cost.latency == repeats * one.cycles and cost.energy == pytest.approx(repeats * one.energy)
    assert cost.traffic_bits == repeats * (one.read_bits + one.write_bits)


def test_first_layers_are_in_im2col_mode():
    assert CHIP.as_convolution(conv(3, 64, 7, 112, stride=2), 8, 8)[1].im2col
    assert CHIP.as_convolution(conv(1, 6, 5, 28), 8, 8)[1].im2col
    assert not CHIP.as_convolution(conv(4, 64, 7, 112), 8, 8)[1].im2col
    assert not CHIP.as_convolution(conv(3, 3, 7, 112, groups=3), 8, 8)[1].im2col
    assert CHIP.layer_cost(conv(3, 64, 7, 112, stride=2), 4, 8).latency == 344651  # the row of r18.conv1


def test_the_positions_of_a_linear_layer_are_images():
    batched = replace(CHIP, batch=16)
    assert batched.layer_cost(linear(768, 100, positions=8), 4, 8) == CHIP.layer_cost(linear(768, 100, 128), 4, 8)
    row = next(row for row in rows_of(REFERENCE) if row['name'] == 'mbv2.fc' and row['B'] == 16)
    assert batched.layer_cost(linear(1280, 1000), row['w_bits'], row['a_bits']).latency == row['cycles']


def test_height_and_width_are_treated_alike():
    wide = Convolution((1, 7), (1, 2), (5, 40), 32, 96, 2)
    tall = Convolution((7, 1), (2, 1), (40, 5), 32, 96, 2)
    assert traffic_and_time(CHIP.best_schedule(wide, 8, 4)) == traffic_and_time(CHIP.best_schedule(tall, 8, 4))
    assert CHIP.best_schedule(wide, 8, 4).energy == CHIP.best_schedule(tall, 8, 4).energy


# ---- the interface of a backend


def test_bits_between_the_precisions_compute_as_the_wider_one():
    products = [[CHIP.products(w_bit, a_bit) for a_bit in (1, 2, 3, 4, 5, 8)] for w_bit in (2, 4, 7)]
    assert products == [[16, 16, 8, 8, 4, 4], [8, 8, 4, 4, 2, 2], [4, 4, 2, 2, 1, 1]]
    assert CHIP.peak_macs(8, 8) == 256e9 and CHIP.peak_macs(2, 1) == 4096e9
    assert CHIP.memory_bandwidth() == 12e9


def test_bound():
    compute, memory = conv(256, 256, 3, 14), conv(64, 384, 1, 14)
    assert CHIP.layer_cost(compute, 8, 8).bound == 'compute'
    assert CHIP.layer_cost(memory, 8, 8).bound == 'memory'
    assert CHIP.layer_cost(conv(64, 64, 3, 56), 4, 4).bound == 'memory'  # 56,448 cycles of computing, 74,203 of traffic
    assert replace(CHIP, dram_bits=192000).layer_cost(memory, 8, 8).bound == 'compute'


def test_a_layer_that_does_not_fit_is_refused_by_name():
    exactly = replace(CHIP, name='tiny', weight_buffer=1024)  # 16 x 32 weights of 8 bits in a half
    assert exactly.layer_cost(conv(64, 64, 1, 14), 8, 8).latency
    with pytest.raises(ValueError, match=r'features\.3 does not fit tiny: .* 4096 bits of weights .* weight_buffer'):
        replace(exactly, weight_buffer=1023).layer_cost(conv(64, 64, 1, 14), 8, 8)
    with pytest.raises(ValueError, match=r'features\.3 does not fit .* of activations .* activation_buffer is 1024'):
        replace(CHIP, activation_buffer=256).layer_cost(conv(64, 64, 15, 14), 8, 8)


def test_parameters_are_checked():
    assert with_parameters(CHIP, {'weight_buffer': '128 KiB', 'clock_mhz': '1 GHz'}).weight_buffer == 131072
    for wrong in ({'layout': 'loose'}, {'narrowest': 16}, {'widest': 4}, {'output_bits': 8}, {'rows': 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(CHIP, **wrong)


def test_tables():
    never_reached = replace(conv(8, 8, 3, 0), calls=0)
    twice = replace(conv(32, 32, 3, 7, groups=32), calls=2)
    layers = [conv(3, 32, 3, 14), twice, conv(32, 16, 1, 7), never_reached, linear(16, 10)]
    latency, energy = (make_table(layers, CHIP, metric) for metric in ('latency', 'energy'))
    assert latency.table.shape == (5, 8, 8) and latency.table.dtype == np.int64
    assert (latency.unit, energy.unit) == ('cycles', 'nJ')
    assert (latency.table[3] == 0).all() and (energy.table[3] == 0).all()
    cost = CHIP.layer_cost(twice, 3, 6)
    assert latency.table[1, 2, 5] == 2 * cost.latency and energy.table[1, 2, 5] == 2 * cost.energy
    assert isinstance(cost.latency, int) and isinstance(cost.traffic_bits, int) and isinstance(cost.energy, float)


def test_mobilenet_v2():
    """The sums of docs/hardware.md, made by this model: no published number."""
    layers = [conv(3, 32, 3, 112, stride=2), conv(32, 32, 3, 112, groups=32), conv(32, 16, 1, 112)]
    cin, size = 16, 112
    for cout, repeats, first in ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1)):
        for stride in [first] + [1] * (repeats - 1):
            wide, out = 6 * cin, size // stride
            layers += [conv(cin, wide, 1, size), conv(wide, wide, 3, out, stride, wide), conv(wide, cout, 1, out)]
            cin, size = cout, out
    layers += [conv(320, 1280, 1, 7), linear(1280, 1000)]
    cycles = {preset.name: [sum(preset.layer_cost(layer, bits, bits).latency for layer in layers) for bits in (8, 4, 2)]
              for preset in PRESETS.values()}  # fmt: skip
    assert len(layers) == 53
    assert cycles == {'bitfusion': [5502208, 2753005, 2605940], 'apq': [4752463, 2627212, 2456365]}
