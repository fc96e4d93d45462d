"""The engine without errors: equal to integer products and convolutions by brute force."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from lib.engine.array import ArrayConfig, ArrayDriver
from lib.engine.dot_product import ConvMVMEngine, LinearMVMEngine, make_engine
from lib.engine.tiling import slice_cells
from lib.simulator.crossbar import PRESETS
from lib.simulator.layer import LayerRecord

EXACT = ArrayConfig(adc_bits=0)


def codes(generator, bits, *shape):
    return torch.randint(2**bits, shape, generator=generator)


def exact_bits(array):
    """Of a conversion of 'granular' range that loses nothing: those of ISAAC's arrays, and one for a sign."""
    isaac = replace(PRESETS['isaac'], rows=array.rows, cell_bits=array.cell_bits, dac_bits=array.dac_bits, adc_bits=0)
    return isaac.conversion_bits + (array.mapping == 'balanced')


def brute_conv(x, w, stride, padding, dilation, groups, pad_code):
    """Sum of products, output by output, in int64."""
    x, w = x.numpy().astype(np.int64), w.numpy().astype(np.int64)
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2), constant_values=pad_code)
    out, per_group, kh, kw = w.shape
    height = (x.shape[2] - (kh - 1) * dilation[0] - 1) // stride[0] + 1
    width = (x.shape[3] - (kw - 1) * dilation[1] - 1) // stride[1] + 1
    result = np.zeros((len(x), out, height, width), np.int64)
    for o in range(out):
        first = o // (out // groups) * per_group
        for i in range(height):
            for j in range(width):
                top, left = i * stride[0], j * stride[1]
                patch = x[:, first:first + per_group, top:top + kh * dilation[0]:dilation[0],
                          left:left + kw * dilation[1]:dilation[1]]
                result[:, o, i, j] = (patch * w[o]).sum((1, 2, 3))
    return torch.from_numpy(result).double()


CONVS = [  # in, out, kernel, stride, padding, dilation, groups, height, width
    (3, 5, (3, 3), (1, 1), (1, 1), (1, 1), 1, 5, 6),
    (8, 6, (3, 2), (2, 1), (0, 2), (1, 2), 1, 7, 6),
    (6, 4, (1, 1), (2, 2), (0, 0), (1, 1), 2, 5, 5),
    (10, 10, (3, 3), (1, 1), (1, 1), (1, 1), 10, 5, 4),  # depthwise
    (5, 10, (3, 3), (2, 2), (1, 1), (1, 1), 5, 5, 5),  # two filters per channel
    (12, 9, (3, 3), (1, 2), (2, 1), (2, 1), 3, 6, 7),
]
ARRAYS = [  # wide; a tile per kernel column or two and per weight; all in one read
    ArrayConfig(rows=128, columns=128), ArrayConfig(rows=9, columns=16, cell_bits=1, dac_bits=2),
    ArrayConfig(rows=20, columns=18, cell_bits=3, dac_bits=3),
    ArrayConfig(rows=31, columns=10, cell_bits=8, dac_bits=8),
    ArrayConfig(rows=40, columns=21, cell_bits=2, dac_bits=5),
]


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
@pytest.mark.parametrize('array', ARRAYS, ids=lambda a: f'{a.rows}x{a.columns}')
@pytest.mark.parametrize('conv', CONVS, ids=str)
def test_convolutions_equal_brute_force(conv, array, mapping):
    cin, out, kernel, stride, padding, dilation, groups, height, width = conv
    generator = torch.Generator().manual_seed(hash((conv, array.rows)) % 2**31)
    w_bits, x_bits = (int(torch.randint(1, 9, (), generator=generator)) for _ in range(2))
    w = codes(generator, w_bits, out, cin // groups, *kernel)
    x, pad_code = codes(generator, x_bits, 2, cin, height, width), 2**x_bits - 1
    expected = brute_conv(x, w, stride, padding, dilation, groups, pad_code)
    array = replace(array, mapping=mapping)
    for backend, config in [('ideal', array), ('simulated', replace(array, adc_bits=0)),
                            ('simulated', replace(array, adc_bits=exact_bits(array) + 1))]:
        engine = ConvMVMEngine(make_engine(config, backend))
        engine.program(w, w_bits, 2 ** (w_bits - 1), stride, padding, dilation, groups)
        sums = engine(x, x_bits, pad_code)
        assert sums.dtype == torch.float64
        assert torch.equal(sums, expected), (backend, config)


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
@pytest.mark.parametrize('w_bits', range(1, 9))
def test_every_pair_of_bits_and_any_zero_point(w_bits, mapping):
    generator = torch.Generator().manual_seed(w_bits)
    config = ArrayConfig(rows=32, columns=24, mapping=mapping, adc_bits=9, adc_range='granular')
    assert exact_bits(config) <= 9
    for x_bits in range(1, 9):
        w, x = codes(generator, w_bits, 70, 9), codes(generator, x_bits, 5, 70)
        for zero_point in {0, 2 ** (w_bits - 1), 2**w_bits - 1}:
            engine = make_engine(config)()
            engine.program(w, w_bits, zero_point)
            assert torch.equal(engine.mvm(x, x_bits), (x @ w).double())


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
@pytest.mark.parametrize('rows, cell_bits, dac_bits', [(128, 2, 1), (64, 1, 1), (128, 2, 2), (16, 3, 2), (32, 1, 3)])
def test_exact_bits_are_exact_and_one_less_is_not(rows, cell_bits, dac_bits, mapping):
    config = ArrayConfig(rows=rows, columns=8, cell_bits=cell_bits, dac_bits=dac_bits, mapping=mapping)
    x = torch.full((2, rows), 2**dac_bits - 1)
    w = torch.full((rows, 1), 2**cell_bits - 1)
    x[1, ::2] = 0
    exact = (x @ w).double()
    for bits, equal in [(exact_bits(config), True), (exact_bits(config) - 1, False)]:
        engine = make_engine(replace(config, adc_bits=bits, adc_range='granular'))()
        engine.program(w, cell_bits)
        assert torch.equal(engine.mvm(x, dac_bits), exact) == equal


def test_sums_beyond_float32_stay_exact():
    config = ArrayConfig(rows=1024, columns=4, cell_bits=8, dac_bits=8, adc_bits=0)
    x, w = torch.full((1, 1024), 255), torch.full((1024, 2), 255)
    x[0, 0], w[0, 1] = 254, 253
    engine = make_engine(config)()
    engine.program(w, 8)
    assert torch.equal(engine.mvm(x, 8), (x @ w).double())


def test_linear_layers_take_any_leading_shape_and_dtype():
    generator = torch.Generator().manual_seed(0)
    w, x = codes(generator, 5, 7, 30), codes(generator, 4, 2, 3, 30)
    for backend in ('ideal', 'simulated'):
        engine = LinearMVMEngine(make_engine(EXACT, backend))
        engine.program(w.float(), 5, 16)
        for dtype in (torch.int64, torch.uint8, torch.float32, torch.float64):
            assert torch.equal(engine(x.to(dtype), 4), (x @ w.T).double())
        assert engine(x[:0], 4).shape == (0, 3, 7)


def test_slices_of_a_negative_value():
    cells = slice_cells(torch.tensor([[-6]]), 2, ArrayConfig())
    assert cells.tolist() == [[[0, 0]], [[2, 1]]]
    assert slice_cells(torch.tensor([[27, 5]]), 3, ArrayConfig(mapping='offset')).tolist() == [[[3, 2, 1, 1, 1, 0]]]


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
@pytest.mark.parametrize('cin, out, kernel, groups', [
    (256, 512, 1, 1), (16, 16, 3, 1), (64, 64, 3, 1), (32, 32, 3, 32), (8, 24, 3, 2), (512, 128, 1, 2)])
def test_arrays_are_those_that_the_cost_model_counts(cin, out, kernel, groups, mapping):
    layer = LayerRecord('', 'conv', cin, out, (kernel, kernel), (1, 1), groups, 4, 4, 4, 4, 0)
    chip = replace(PRESETS['isaac'], mapping=mapping)
    engine = ConvMVMEngine(make_engine(ArrayConfig(mapping=mapping), 'ideal'))
    w = codes(torch.Generator().manual_seed(0), 8, out, cin // groups, kernel, kernel).clamp(min=1)
    engine.program(w, 8, 128, groups=groups)
    assert engine.engine.num_arrays == chip.num_arrays(layer, 8)


class FakeSetup(ArrayDriver):
    """Reads by explicit loops, in another unit than the engine's internally."""

    def program(self, cells):
        self.microsiemens = 10.0 * cells.numpy()

    def read(self, inputs):
        volts = 0.1 * inputs.numpy()
        values = np.zeros((len(volts), self.microsiemens.shape[2]))
        for vector, row in enumerate(volts):
            for column in range(values.shape[1]):
                difference = self.microsiemens[0, :, column] - self.microsiemens[1, :, column]
                values[vector, column] = sum(v * g for v, g in zip(row, difference, strict=True))
        return values.round(6)


def test_a_driver_of_ones_own_runs_through_the_same_engine():
    generator = torch.Generator().manual_seed(3)
    w, x = codes(generator, 6, 4, 5, 3, 3), codes(generator, 3, 1, 5, 4, 4)
    made = []

    def driver():
        made.append(FakeSetup())
        return made[-1]
    config = ArrayConfig(rows=20, columns=12, dac_bits=2)
    engine = ConvMVMEngine(make_engine(config, 'hardware', driver))
    engine.program(w, 6, 32, padding=1)
    expected = brute_conv(x, w, (1, 1), (1, 1), (1, 1), 1, 0)
    assert (engine(x, 3) - expected).abs().max() < 1e-3
    assert len(made) == engine.engine.num_arrays == 3 * 2
    with pytest.raises(ValueError, match='FakeSetup has no currents'):
        make = make_engine(replace(config, adc_range='calibrated'), 'hardware', FakeSetup)
        engine = ConvMVMEngine(make)
        engine.program(w, 6, 32)
        engine.calibrate_range(x, 3)


def test_a_driver_that_gives_another_shape_is_refused():
    class Short(FakeSetup):
        def read(self, inputs):
            return super().read(inputs)[:, 1:]
    engine = make_engine(ArrayConfig(), 'hardware', Short)()
    engine.program(torch.ones(3, 2), 2)
    with pytest.raises(ValueError, match=r'Short.read gave a shape of \(2, 1\), expected \(2, 2\)'):
        engine.mvm(torch.ones(1, 3), 2)


@pytest.mark.parametrize('change, message', [
    ({'rows': 0}, 'rows is 0, expected a whole number from 1'), ({'rows': 1.5}, 'rows is 1.5'),
    ({'columns': True}, 'columns is True'), ({'cell_bits': 9}, 'cell_bits is 9, expected a whole number from 1 to 8'),
    ({'dac_bits': 0}, 'dac_bits is 0'), ({'adc_bits': -1}, 'adc_bits is -1'), ({'adc_bits': 1}, 'range of this one'),
    ({'mapping': 'both'}, "mapping is 'both', expected balanced or offset"), ({'adc_range': 3}, 'adc_range is 3'),
    ({'device': 'flash'}, "device is 'flash', expected none or pcm"), ({'read_noise': -0.1}, 'read_noise is -0.1'),
    ({'programming_noise': float('nan')}, 'programming_noise is nan'), ({'stuck_low': 1.1}, 'stuck_low is 1.1'),
    ({'stuck_low': 0.6, 'stuck_high': 0.6}, 'stuck_low \\+ stuck_high is 1.2'), ({'seed': 'x'}, "seed is 'x'"),
    ({'on_off_ratio': 0.5}, 'on_off_ratio is 0.5'), ({'drift_seconds': 10}, "device 'none' does not drift"),
    ({'columns': 1}, 'columns is 1, expected at least 2'),
])
def test_wrong_parameters_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ArrayConfig(**change)


def test_a_configuration_goes_through_json_and_yaml():
    config = ArrayConfig(rows=64, device='pcm', drift_seconds=3600, read_noise=0.02, on_off_ratio=0)
    for text in (json.dumps(config.to_dict()), yaml.safe_dump(config.to_dict())):
        again = ArrayConfig.from_dict(yaml.safe_load(text))
        assert again == config
        assert again.fingerprint() == config.fingerprint()
    assert replace(config, seed=1).fingerprint() != config.fingerprint()
    written = yaml.safe_load('device: pcm\ndrift_seconds: 1e6 s\nprogramming_noise: 1e-2\nrows: 32.0\nread_noise: null')
    same = ArrayConfig(device='pcm', drift_seconds=1e6, programming_noise=0.01, rows=32)
    assert ArrayConfig.from_dict(written) == same
    with pytest.raises(ValueError, match='no parameter adc_bit, expected rows, columns'):
        ArrayConfig.from_dict({'adc_bit': 4})
    with pytest.raises(ValueError, match="drift_seconds: '3 MHz' has the wrong unit"):
        ArrayConfig.from_dict({'drift_seconds': '3 MHz'})
    with pytest.raises(ValueError, match='expected a mapping'):
        ArrayConfig.from_dict([1])


W = torch.ones(4, 3, 3, 3)


@pytest.mark.parametrize('config, call, message', [
    ({'rows': 8}, lambda e: e.program(W, 2), 'an array of 8 rows cannot hold one kernel column, the 9 weights'),
    ({'columns': 7}, lambda e: e.program(200 * W, 8), '7 columns cannot hold one weight: its 4 slices .* 8 columns'),
    ({}, lambda e: e.program(-W, 2), 'weight codes reach from -1 to -1, expected 0 to 3 at 2 bits'),
    ({}, lambda e: e.program(4 * W, 2), 'weight codes reach from 4 to 4'),
    ({}, lambda e: e.program(1.5 * W, 2), 'weight codes must be whole numbers, got 1.5'),
    ({}, lambda e: e.program(W * float('nan'), 2), 'weight codes reach from nan'),
    ({}, lambda e: e.program(W, 9), 'weight bits are 9'), ({}, lambda e: e.program(W, True), 'weight bits are True'),
    ({}, lambda e: e.program(W, 2, 4), 'zero_point is 4, expected a whole number from 0 to 3'),
    ({}, lambda e: e.program(W, 2, 0.5), 'zero_point is 0.5'), ({}, lambda e: e.program(W[0], 2), 'weight has shape'),
    ({}, lambda e: e.program(W, 2, groups=3), 'with 3 groups'),
    ({}, lambda e: e.program(W, 2, stride=0), 'stride is 0'),
    ({}, lambda e: e.program(W, 2, padding='same'), "padding is 'same', expected a whole number"),
    ({}, lambda e: e(torch.ones(1, 3, 4, 4), 8), 'no weights: call program first'),
    ({}, lambda e: (e.program(W, 2), e(torch.ones(1, 2, 4, 4), 8)), r'shape \(1, 2, 4, 4\), expected \(N, 3'),
    ({}, lambda e: (e.program(W, 2), e(torch.full((1, 3, 4, 4), 16), 4)), 'input codes reach from 16 to 16'),
    ({}, lambda e: (e.program(W, 2), e(torch.ones(1, 3, 4, 4), 4, 16)), 'pad_code is 16, expected .* 0 to 15'),
    ({}, lambda e: (e.program(W, 2), e(torch.ones(1, 3, 2, 4), 4)), 'smaller than the kernel'),
    ({}, lambda e: (e.program(W, 2), e.engine.mvm(torch.ones(2, 26), 4)), r'expected \(B, 27\)'),
    ({}, lambda e: e.engine.mvm(torch.ones(2, 27), 4), 'no weights'),
])
def test_what_cannot_be_is_refused(config, call, message):
    with pytest.raises(ValueError, match=message):
        call(ConvMVMEngine(make_engine(ArrayConfig(**config))))


def test_a_failed_program_leaves_no_weights():
    engine = ConvMVMEngine(make_engine())
    engine.program(W, 2)
    with pytest.raises(ValueError, match='weight codes'):
        engine.program(W[:, :2] * 5, 2)
    with pytest.raises(ValueError, match='no weights'):
        engine(torch.ones(1, 2, 4, 4), 2)


@pytest.mark.parametrize('arguments, message', [
    ({'backend': 'analog'}, "backend is 'analog', expected ideal, simulated, hardware"),
    ({'backend': 'hardware'}, "backend 'hardware' with driver None"),
    ({'driver': FakeSetup}, "backend 'simulated' with driver <class"),
    ({'backend': 'hardware', 'driver': 'port 3'}, "backend 'hardware' with driver 'port 3'"),
])
def test_wrong_engines_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_engine(**arguments)
