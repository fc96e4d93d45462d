import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.simulator.hardware import make_table, with_parameters
from lib.simulator.layer import LayerRecord
from lib.simulator.measured import backend as measured
from lib.simulator.measured.backend import PRESETS, MeasuredMachine, interpolate
from lib.simulator.measured.machine import machine_facts, read_cpuinfo
from lib.simulator.measured.timing import Timing, cuda_clock, wall_clock
from lib.simulator.table_files import load_table, save_table

SHORT = {'warm_up': 1, 'rounds': 1, 'runs': 1, 'max_seconds': 1e-9}


def conv(name, cin=4, cout=8, groups=1, calls=1, size=6):
    count = cin * cout // groups * 9
    return LayerRecord(name, 'conv', cin, cout, (3, 3), (1, 1), groups, size, size, size, size, count, calls)


def linear(name='fc', cin=8, cout=4, calls=1):
    return LayerRecord(name, 'linear', cin, cout, (1, 1), (1, 1), 1, 1, 1, 1, 1, cin * cout, calls)


LAYERS = [conv('first'), conv('second', calls=2), linear(), conv('depthwise', 4, 4, groups=4)]


def timing(ms):
    return Timing(median=2 * ms, p10=0.5 * ms, p90=3 * ms, minimum=0.25 * ms, min_of_medians=ms, runs=7)


@pytest.fixture
def fake(monkeypatch):
    """Replaces the measurement: the n-th distinct shape takes n ms. Returns what was asked for."""
    asked = []

    def measure(calls, protocol, clock):
        asked.append((list(calls), protocol, clock))
        shapes = list(dict.fromkeys(shape for shape, _ in calls))
        return {key: timing(1.0 + shapes.index(key[0])) for key in calls}

    monkeypatch.setattr(measured, 'measure', measure)
    return asked


def test_equal_shapes_are_measured_once_and_together(fake):
    table = make_table(LAYERS, PRESETS['measured'])
    ((keys, protocol, clock),) = fake
    assert len(keys) == 3 and clock is wall_clock
    assert (protocol.rounds, protocol.runs, protocol.warm_up) == (50, 500, 10)
    assert table.table[:, 7, 7].tolist() == [1.0, 2.0, 2.0, 3.0]  # the second is the first, called twice
    assert (table.unit, table.name, table.reference) == ('ms', 'measured_latency', 8.0)


def test_int8_takes_the_same_time_at_all_bits(fake):
    table = make_table(LAYERS, PRESETS['measured']).table
    assert (table == table[:, :1, :1]).all()


def test_the_median_of_all_runs_may_be_the_cell(fake):
    lowest = make_table(LAYERS, PRESETS['measured']).table
    assert np.array_equal(make_table(LAYERS, replace(PRESETS['measured'], statistic='median')).table, 2 * lowest)


def test_layers_that_are_never_called_cost_nothing_and_are_not_run(fake):
    unused = replace(conv('unused'), calls=0, in_h=0, in_w=0, out_h=0, out_w=0)
    table = make_table([unused, *LAYERS], PRESETS['measured'])
    assert (table.table[0] == 0).all() and len(fake[0][0]) == 3


def test_table_keeps_machine_and_spread(fake, tmp_path):
    save_table(tmp_path / 'table.npy', make_table(LAYERS, PRESETS['measured'], about={'network': 'n'}))
    about = load_table(tmp_path / 'table.npy', LAYERS).about
    assert about['network'] == 'n' and about['hardware']['kernel'] == 'int8' and about['hardware']['threads'] == 1
    assert about['machine']['torch'] == torch.__version__ and about['machine']['cpu'] and about['machine']['date']
    by_name = {tuple(entry['names']): entry['measured'] for entry in about['timings_ms']}
    assert set(by_name) == {('first', 'second'), ('fc',), ('depthwise',)}
    (cell,) = by_name['fc',]
    ms = cell['min_of_medians']
    assert cell == {'w_bit': 8, 'a_bit': 8, 'kernel': cell['kernel'], **timing(ms)._asdict()}
    assert cell['kernel'].startswith('torch.ops.quantized, ')


def law(w_bit, a_bit):
    return 0.5 + 0.25 * w_bit + 0.125 * a_bit + 2.0 * w_bit * a_bit


def test_popcount_is_measured_on_a_grid_and_interpolated(monkeypatch):
    keys = []

    def measure(calls, protocol, clock):
        keys.extend(calls)
        return {(shape, pair): timing(law(*pair)) for shape, pair in calls}

    monkeypatch.setattr(measured, 'measure', measure)
    machine = PRESETS['measured_popcount']
    table = make_table([linear()], machine)
    assert sorted(pair for _, pair in keys) == [(w, a) for w in (1, 2, 4, 8) for a in (1, 2, 4, 8)]
    assert np.allclose(table.table[0], [[law(w, a) for a in range(1, 9)] for w in range(1, 9)])
    bounds = [[cell.bound for cell in row] for row in machine.cells([linear()])[0]]
    assert bounds[2][3] == 'interpolated' and bounds[3][3] == 'measured' and sum(bounds, []).count('measured') == 16
    assert len(table.about['timings_ms'][0]['measured']) == 16
    keys.clear()
    replace(machine, grid='all').cells([linear()])
    assert len(keys) == 64


def test_interpolation_keeps_what_was_measured():
    generator = np.random.default_rng(0)
    known = {(w, a): generator.random() for w in (1, 2, 4, 8) for a in (1, 2, 4, 8)}
    table = interpolate(known)
    assert all(table[w - 1, a - 1] == ms for (w, a), ms in known.items())
    assert table[2, 4] == pytest.approx(  # w between 2 and 4, a a quarter of the way from 4 to 8
        0.5 * (0.75 * (known[2, 4] + known[4, 4]) + 0.25 * (known[2, 8] + known[4, 8]))
    )
    assert (interpolate({(8, 8): 3.0}) == 3.0).all()


def test_traffic_is_that_of_the_stored_operands(fake):
    layer = conv('layer')
    weights, inputs, outputs = 4 * 8 * 9, 4 * 36, 8 * 36
    for name, sizes in (('measured', (8, 8, 8)), ('measured_fp32', (32, 32, 32)), ('measured_bf16', (16, 16, 16))):
        cells = replace(PRESETS[name], batch=3).cells([layer])[0]
        expected = weights * sizes[0] + 3 * (inputs * sizes[1] + outputs * sizes[2])
        assert cells[2][4].traffic_bits == expected and math.isnan(cells[2][4].energy)
    assert PRESETS['measured_popcount'].cells([layer])[0][2][4].traffic_bits == weights * 3 + inputs * 5 + outputs * 32


@pytest.mark.parametrize('name', ['measured', 'measured_fp32', 'measured_popcount'])
def test_really_measured(name):
    machine = replace(PRESETS[name], **SHORT, batch=2)
    table = make_table(LAYERS, machine).table
    assert table.shape == (4, 8, 8) and (table > 0).all() and np.isfinite(table).all()
    cost = machine.layer_cost(LAYERS[0], 3, 5)
    assert cost.latency > 0 and (cost.facts['w_bit'], cost.facts['a_bit'], cost.facts['runs']) == (3, 5, 1)


def test_settings_hold_inside_and_are_put_back():
    before = torch.get_num_threads(), torch.backends.quantized.engine
    machine = replace(PRESETS['measured'], threads=2, engine='onednn')
    with pytest.raises(KeyError), machine.running():
        assert (torch.get_num_threads(), torch.backends.quantized.engine) == (2, 'onednn')
        assert torch.is_inference_mode_enabled()
        raise KeyError
    assert (torch.get_num_threads(), torch.backends.quantized.engine) == before
    assert not torch.is_inference_mode_enabled()


def test_the_gpu_is_timed_by_events(fake, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(MeasuredMachine, 'calls', lambda self, layer, pairs: ('kernel', dict.fromkeys(pairs)))
    PRESETS['measured_cuda'].cells(LAYERS)
    assert fake[0][2] is cuda_clock


def test_int8_kernels_of_the_gpu(monkeypatch):
    def on_cpu(kernel):
        return lambda layer, batch, device, *rest: kernel(layer, batch, 'cpu', *rest)

    for name in ('IntMatmulKernel', 'FloatKernel'):
        monkeypatch.setattr(measured, name, on_cpu(getattr(measured, name)))
    assert PRESETS['measured_cuda'].build(conv('dense')).what == 'torch._int_mm, int8'
    assert PRESETS['measured_cuda'].build(conv('depthwise', 4, 4, groups=4)).what == 'torch, float16'


def test_parameters_and_errors(monkeypatch):
    assert with_parameters(MeasuredMachine, {'kernel': 'fp32', 'max_seconds': '500 ms'}).max_seconds == 0.5
    assert with_parameters(PRESETS['measured'], {'threads': 2}).threads == 2
    for values, message in [
        ({'kernel': 'int4'}, 'kernel is .int4., expected int8 or'),
        ({'kernel': 'popcount', 'threads': 2}, 'single thread'),
        ({'kernel': 'popcount', 'device': 'cuda'}, 'set device to cpu'),
        ({'kernel': 'onnxruntime', 'device': 'cuda'}, 'set device to cpu'),
        ({'runs': 0}, 'runs is 0'),
    ]:
        with pytest.raises(ValueError, match=message):
            with_parameters(MeasuredMachine, values)
    with pytest.raises(ValueError, match='no metric .energy.'):
        make_table(LAYERS, PRESETS['measured'], 'energy')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ValueError, match='measured_cuda: this PyTorch sees no CUDA device'):
        make_table(LAYERS, PRESETS['measured_cuda'])


def test_a_layer_that_the_kernel_refuses_is_named(monkeypatch):
    def refuse(self, layer):
        raise RuntimeError('unsupported shape')

    monkeypatch.setattr(MeasuredMachine, 'build', refuse)
    with pytest.raises(ValueError, match=r'layer first cannot run in int8 on cpu \(unsupported shape\)'):
        make_table(LAYERS, PRESETS['measured'])


def test_facts_of_the_processor(tmp_path, monkeypatch):
    (tmp_path / 'x86').write_text(
        'processor\t: 0\nmodel name\t: Some CPU @ 2.5GHz\nflags\t\t: fpu avx2 sse avx512_vnni\n\n'
        'processor\t: 1\nmodel name\t: Another\nflags\t\t: amx_int8\n'
    )
    (tmp_path / 'arm').write_text('processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n')
    assert read_cpuinfo(tmp_path / 'x86') == ('Some CPU @ 2.5GHz', ['avx2', 'avx512_vnni'])
    assert read_cpuinfo(tmp_path / 'arm') == ('', ['asimddp', 'i8mm'])
    assert read_cpuinfo(tmp_path / 'missing') == ('', [])
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    facts = machine_facts('cpu', tmp_path / 'missing')
    assert facts['cpu'] and facts['environment']['OMP_NUM_THREADS'] == '1'
    monkeypatch.setenv('HOME_OF_OMP_', 'a path')
    assert 'HOME_OF_OMP_' not in machine_facts('cpu')['environment']
    json.dumps(facts)
