"""What every hardware model shares: parameters, tables of networks, presets, and hardware described in YAML."""

import json
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from math import inf, isfinite, nan

import numpy as np
import pytest

from lib.record.units import UNITS
from lib.simulator import backends
from lib.simulator.backends import BACKENDS, PRESETS, find_hardware
from lib.simulator.hardware import Hardware, LayerCost, check_metric, make_table, parameter, with_parameters
from lib.simulator.layer import LayerRecord

MODELS = sorted(name for name, preset in PRESETS.items() if preset.backend != 'measured')
COUNTED = {'calls': 0}


@dataclass(frozen=True)
class Toy(Hardware):
    """A machine whose cells say which layer and bits they are of."""

    backend = 'toy'

    size: int = parameter('how large', 'bytes', default=4)
    clock_mhz: float = parameter('clock', 'MHz')
    leak: float = parameter('what it loses', 'W', default=0.0, minimum=0)
    mode: str = parameter('which way', default='left', choices=('left', 'right'))

    def layer_cost(self, layer, w_bit, a_bit):
        COUNTED['calls'] += 1
        return LayerCost(1000 * layer.out_channels + 10 * w_bit + a_bit, 0.5 * w_bit, 'compute', w_bit * a_bit)


def conv(name='conv', channels=8, calls=1, groups=1, kernel=3):
    weights = channels * (channels // groups) * kernel**2
    return LayerRecord(name, 'conv', channels, channels, (kernel, kernel), (1, 1), groups, 8, 8, 8, 8, weights,
                       calls=calls)


def linear(name='fc', calls=1):
    return LayerRecord(name, 'linear', 64, 10, (1, 1), (1, 1), 1, min(calls, 1), 1, min(calls, 1), 1, 640, calls=calls)


def toy(**changes):
    return Toy(**{'clock_mhz': 100, **changes})


# ---- parameters


def test_names_default_to_the_backend_and_counts_become_ints():
    machine = toy(size=32.0)
    assert (machine.name, machine.batch, machine.status) == ('toy', 1, '')
    assert machine.size == 32 and type(machine.size) is int
    assert toy(name='mine').name == 'mine'
    with pytest.raises(FrozenInstanceError):
        machine.size = 5


@pytest.mark.parametrize(('changes', 'words'), [
    ({'size': 0}, ['size is 0', 'a whole number above 0 bytes', 'how large']), ({'size': 2.5}, ['2.5', 'whole']),
    ({'size': '4'}, ["'4'"]), ({'size': True}, ['True']), ({'size': None}, ['None']),
    ({'clock_mhz': -1}, ['clock_mhz is -1', 'a number above 0 MHz', 'clock']), ({'clock_mhz': 0}, ['above 0']),
    ({'clock_mhz': nan}, ['nan']), ({'clock_mhz': inf}, ['inf']), ({'clock_mhz': 10**400}, ['clock_mhz is 1000']),
    ({'leak': -0.1}, ['leak is -0.1', 'of at least 0 W']),
    ({'mode': 'up'}, ["mode is 'up'", 'left or right', 'which way']), ({'mode': ['left']}, ['left or right']),
    ({'name': 5}, ['name is 5', 'a text']), ({'batch': 0}, ['batch is 0']), ({'batch': 1.5}, ['batch is 1.5']),
])
def test_a_parameter_out_of_its_range_is_named(changes, words):
    with pytest.raises(ValueError) as error:
        toy(**changes)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert len(message) < 200


def test_the_lowest_value_that_is_allowed():
    assert toy(leak=0).leak == 0 and toy(clock_mhz=1e-9).clock_mhz == 1e-9


def test_parameters_from_numbers_and_quantities():
    machine = with_parameters(Toy, {'clock_mhz': '0.3 GHz', 'size': '2 KiB', 'mode': 'right', 'batch': '16'})
    assert (machine.clock_mhz, machine.size, machine.mode, machine.batch) == (300, 2048, 'right', 16)
    changed = with_parameters(machine, {'leak': '20 mW'})
    assert changed == replace(machine, leak=0.02)


@pytest.mark.parametrize(('base', 'values', 'words'), [
    (Toy, {'size': 3}, ['toy needs clock_mhz', 'preset']),
    (Toy, {'clock_mhz': 1, 'clock': 2, 'sizes': 3}, ['no parameter clock, sizes', 'size, clock_mhz, leak, mode']),
    (Toy, {'clock_mhz': '3 V'}, ['clock_mhz: ', 'wrong unit', 'GHz']),
    (Toy, {'clock_mhz': None}, ['clock_mhz: None is no quantity']),
    (toy(), {'size': '0.3 bits'}, ['size is 0.0375', 'whole']), (toy(), {'size': '4 pixels'}, ['size: ', 'KiB']),
    (toy(), {'leak': '-3 mW'}, ['leak is -0.003']), (toy(), {'mode': 3}, ['mode is 3', 'left or right']),
])
def test_wrong_parameters_are_named(base, values, words):
    with pytest.raises(ValueError) as error:
        with_parameters(base, values)
    assert all(word in str(error.value) for word in words), error.value


def test_milliseconds():
    assert toy(clock_mhz=200).milliseconds(400_000) == 2
    assert toy().milliseconds(np.array([1e5, 2e5])).tolist() == [1, 2]
    assert PRESETS['isaac'].milliseconds(3.5) == 3.5  # its latencies are ms already


# ---- tables


def test_a_table_holds_the_cost_of_every_layer_at_every_pair_of_bits():
    table = make_table([conv(), conv('wide', 16)], toy(name='mine', batch=3), about={'network': 'net'})
    assert table.table.dtype == np.int64
    for layer, channels in enumerate((8, 16)):
        for w in range(1, 9):
            for a in range(1, 9):
                assert table.table[layer, w - 1, a - 1] == 1000 * channels + 10 * w + a
    assert (table.name, table.unit, table.reference) == ('mine_latency', 'cycles', 24_000 + 2 * 88)
    assert table.layer_names == ['conv', 'wide']
    assert 'batch of 3' in table.meaning and 'cycles' in table.meaning
    assert (table.about['network'], table.about['batch'], table.about['metric']) == ('net', 3, 'latency')
    assert table.about['hardware'] == {'backend': 'toy', 'name': 'mine', 'batch': 3, 'status': '', 'size': 4,
                                       'clock_mhz': 100, 'leak': 0.0, 'mode': 'left'}
    assert [LayerRecord.from_dict(entry) for entry in table.about['layers']] == [conv(), conv('wide', 16)]


def test_energy_is_a_table_of_its_own():
    table = make_table([conv()], toy(), 'energy')
    assert (table.name, table.unit, table.reference) == ('toy_energy', 'nJ', 4)
    assert table.table[0, :, 2].tolist() == [0.5 * w for w in range(1, 9)]
    assert 'energy in nJ' in table.meaning


def test_calls_multiply_and_equal_shapes_are_priced_once():
    COUNTED['calls'] = 0
    table = make_table([conv('a'), conv('b', calls=3), conv('never', 16, calls=0), linear(calls=0)], toy()).table
    assert COUNTED['calls'] == 64
    assert np.array_equal(table[1], 3 * table[0])
    assert not table[2:].any()


@pytest.mark.parametrize('layers', [[], [conv(calls=0)], [linear(calls=0), conv(calls=0)]])
def test_a_network_that_costs_nothing_has_no_table(layers):
    with pytest.raises(ValueError, match='no layer that costs anything'):
        make_table(layers, toy())


def test_an_unknown_metric():
    for metric in ('area', 'Latency', ''):
        with pytest.raises(ValueError, match='toy has no metric .*latency or energy'):
            make_table([conv()], toy(), metric)
    with pytest.raises(ValueError, match="measured has no metric 'energy', expected latency"):
        check_metric(PRESETS['measured'], 'energy')


# ---- backends and presets


def test_every_preset_has_a_name_of_its_own():
    assert sum(len(module.PRESETS) for module in backends.MODULES) == len(PRESETS)
    for name, preset in PRESETS.items():
        assert preset.name == name and preset.status
        assert type(preset) is BACKENDS[preset.backend]
        assert find_hardware(name) is preset


def test_every_parameter_says_what_it_is_in_a_known_unit():
    for name, backend in BACKENDS.items():
        assert backend.backend == name
        for field in fields(backend):
            assert field.metadata['meaning'], f'{name}: {field.name}'
            assert field.metadata['unit'] in ('', *UNITS), f'{name}: {field.name}'


@pytest.mark.parametrize('name', PRESETS)
def test_a_preset_is_remade_from_what_is_saved_with_its_tables(name):
    saved = json.loads(json.dumps(PRESETS[name].to_dict()))
    assert with_parameters(BACKENDS[saved.pop('backend')], saved) == PRESETS[name]


@pytest.mark.parametrize('name', MODELS)
def test_a_preset_prices_every_kind_of_layer(name):
    layers = [conv(), conv('depthwise', groups=8), conv('grouped', groups=2), conv('pointwise', kernel=1), linear()]
    for layer in layers:
        for bits in ((8, 8), (1, 1), (3, 6)):
            cost = PRESETS[name].layer_cost(layer, *bits)
            assert cost == PRESETS[name].layer_cost(layer, *bits), 'a pure function'
            assert cost.latency > 0 and cost.energy > 0 and isfinite(cost.latency) and isfinite(cost.energy)
            assert cost.bound and cost.traffic_bits > 0
    assert PRESETS[name].milliseconds(PRESETS[name].layer_cost(layers[0], 8, 8).latency) > 0


# ---- YAML


@pytest.fixture
def chip(tmp_path):
    """`chip(text, name='chip.yaml')`: the hardware of a YAML file."""
    def read(text, name='chip.yaml'):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return find_hardware(tmp_path / name)
    return read


def test_a_preset_with_other_parameters(chip):
    machine = chip('preset: edge\nclock_mhz: 0.3 GHz\ndepth: 2048\n')
    assert machine == replace(PRESETS['edge'], name='chip', status='from chip.yaml', clock_mhz=300, depth=2048)
    assert chip('preset: edge\nname: mine\nstatus: measured\n', 'other.yml') == replace(
        PRESETS['edge'], name='mine', status='measured')


def test_a_backend_with_all_its_parameters(chip):
    lines = [f'{name}: {value}' for name, value in PRESETS['edge'].to_dict().items() if name not in ('name', 'status')]
    assert chip('\n'.join(lines)) == replace(PRESETS['edge'], name='chip', status='from chip.yaml')


def test_a_file_may_not_take_the_name_of_a_preset(chip):
    """Their tables have the same path, so each would replace the other's."""
    with pytest.raises(ValueError, match='edge.yaml: the name edge is that of a preset'):
        chip('preset: edge\ndepth: 512\n', 'edge.yaml')
    with pytest.raises(ValueError, match='chip.yaml: the name cloud is that of a preset'):
        chip('preset: edge\nname: cloud\n')
    with pytest.raises(ValueError, match='the name bitfusion is that of a preset'):
        chip('preset: apq\nname:\n')  # without one it is that of the backend
    assert chip('preset: edge\nname: mine\n', 'edge.yaml').name == 'mine'


def test_units_are_converted(chip):
    machine = chip('preset: t4\npeak_int8: 21 TOPS\nbandwidth: 480 Gbit/s\nlaunch_us: 0.01 ms\n'
                   'dram_energy: 0.02 nJ/bit\n')
    assert (machine.peak_int8, machine.bandwidth, machine.launch_us, machine.dram_energy) == (10_500, 60, 10, 20)
    assert chip('preset: bitfusion\nweight_buffer: 128 KiB\n').weight_buffer == 131_072


@pytest.mark.parametrize(('text', 'words'), [
    ('preset: edge\nclock: 300\n', ['no parameter clock', 'clock_mhz']),
    ('preset: edge\nbandwidth: 3\n', ['bit_serial has no parameter bandwidth']),
    ('preset: edge\nclock_mhz: 0.3 V\n', ['clock_mhz', 'wrong unit', 'GHz']),
    ('preset: edge\nclock_mhz: fast\n', ['clock_mhz', 'no quantity']),
    ('preset: edge\nclock_mhz:\n', ['clock_mhz', 'None']),
    ('preset: edge\nclock_mhz: -3\n', ['clock_mhz is -3', 'above 0']),
    ('preset: edge\nclock_mhz: .nan\n', ['clock_mhz is nan']), ('preset: edge\nclock_mhz: .inf\n', ['inf']),
    ('preset: edge\nclock_mhz: 1e999\n', ['clock_mhz', 'too large']),
    (f'preset: edge\nclock_mhz: {"9" * 400}\n', ['999', 'too large']),
    ('preset: edge\nbatch: 10000000000000000000000000\n', ['batch is 1', 'at most 65536']),
    ('preset: edge\ndepth: 1e25 bits\n', ['depth']),
    ('preset: edge\nname: x/../../evil\n', ["'x/../../evil'", 'without /']),
    ('preset: edge\nname: ..\n', ["'..'"]), ('preset: edge\nname: "a\\nb"\n', ["'a\\nb'"]),
    ('preset: edge\nclock_mhz: 2020-13-45\n', ['month']),
    ('preset: edge\nbatch: 2.5\n', ['batch is 2.5', 'whole']),
    ('preset: edge\ndim: true\n', ['dim', 'True']), ('preset: edge\nname: 5\n', ['name is 5', 'a text']),
    ('preset: t4\nstorage: loose\n', ["storage is 'loose'", 'packed or native']),
    ('preset: edge\nbackend: bit_serial\n', ['either', 'got preset and backend']),
    ('clock_mhz: 3\n', ['either', 'got neither', 'edge', 'bit_serial']),
    ('backend: bit_serial\ndim: 8\n', ['needs chunk_bits, port_bits, depth, clock_mhz, op_energy, dram_energy']),
    ('preset: moon\n', ["unknown preset 'moon'", 'bitfusion', 'edge']), ('preset:\n', ['unknown preset None']),
    ('backend: moon\n', ["unknown backend 'moon'", 'bitfusion', 'roofline']),
    ('preset: [edge]\n', ["unknown preset ['edge']"]), ('backend: {a: 1}\n', ["unknown backend {'a': 1}"]),
    ('- 1\n- 2\n', ['`parameter: value`', '[1, 2]']), ('', ['`parameter: value`', 'None']),
    ('preset: edge\ndepth: 512\ndepth: 1024\n', ["'depth' stands twice"]),
    ('edge', ['`parameter: value`', "'edge'"]), ('1: 2\n', ['either', 'got neither']), ('x' * 5000, ['parameter']),
    ('preset: edge\n\tclock_mhz: 3\n', ['no valid YAML', 'line 2']), ('preset: "edge\n', ['no valid YAML']),
    ('preset: edge\nname: [edge]\n', ["name is ['edge']"]), (b'\xff\xfe\x00', ['no UTF-8']),
    ('preset: !!python/object/apply:os.getcwd []\n', ['no valid YAML']),
])
def test_yaml_that_describes_no_hardware(chip, text, words):
    with pytest.raises(ValueError) as error:
        chip(text)
    message = str(error.value)
    assert all(word in message for word in ('chip.yaml', *words)), message
    assert '\n' not in message and len(message) < 800


def test_names_that_are_no_hardware(tmp_path):
    for name in ('moon', '', 'cloud_latency', str(tmp_path)):
        with pytest.raises(ValueError, match=r'unknown hardware .*bitfusion.*edge.*FILE\.yaml'):
            find_hardware(name)
    for name in (tmp_path / 'none.yaml', tmp_path / 'none.yml'):
        with pytest.raises(FileNotFoundError, match='hardware file .*none.* does not exist'):
            find_hardware(name)


@pytest.mark.parametrize('name', ['edge', 'bismo_pynq', 'bitfusion', 't4', 'isaac'])
def test_extreme_parameters_give_finite_costs_or_one_line(name):
    """Nothing wraps around: a cost of energy grows with every energy."""
    layers, preset = [conv()], PRESETS[name]
    usual = make_table(layers, preset, 'energy').reference
    for f in fields(preset):
        for value in (1e-300, 10**17, 2**40) if f.type not in (str, 'str') else ():
            try:
                cost = make_table(layers, replace(preset, **{f.name: value}), 'energy')
            except ValueError as error:
                assert '\n' not in str(error) and len(str(error)) < 600
                continue
            assert np.isfinite(cost.table).all()
            if f.name.endswith('_energy') and value > 1:
                assert cost.reference > usual
