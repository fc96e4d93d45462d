"""Calibration of columns: injected gains and offsets come back; no other engine may use them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lib.engine.array import ArrayConfig, ArrayDriver
from lib.engine.calibration import Calibration, calibrate_columns, effective_bits
from lib.engine.dot_product import ConvMVMEngine, make_engine
from lib.engine.simulated_array import converter_errors

MISMATCH = ArrayConfig(rows=64, columns=32, gain_mismatch=0.05, offset_mismatch=0.01, seed=3)


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
def test_errors_are_found_exactly_where_there_is_no_other(mapping):
    config = replace(MISMATCH, adc_bits=0, mapping=mapping)
    calibration = calibrate_columns(config, patterns=2, vectors=32)
    gain, offset = converter_errors(config)
    assert np.allclose(calibration.gain, gain, atol=1e-5)
    assert np.allclose(calibration.offset, offset, atol=1e-3)
    assert calibration.r2_after > 1 - 1e-9 > calibration.r2_before
    assert calibration.bits_after > 15 > calibration.bits_before


@pytest.mark.parametrize('changes', [
    {}, {'adc_range': 'max'}, {'adc_range': 'calibrated'}, {'mapping': 'offset', 'adc_range': 'max'},
    {'mapping': 'offset', 'adc_range': 'calibrated'}, {'read_noise': 0.02, 'programming_noise': 0.02},
    {'device': 'rram'}, {'dac_bits': 2, 'adc_bits': 10}], ids=str)
def test_errors_are_found_through_converters_and_noise(changes):
    config = replace(MISMATCH, **changes)
    calibration = calibrate_columns(config)
    gain, offset = (part.numpy() for part in converter_errors(config))
    largest = config.largest_sum()
    assert np.abs(calibration.gain - gain).max() < 0.02 < np.abs(gain - 1).max()
    assert np.abs(calibration.offset - offset).max() < 0.004 * largest < np.abs(offset).max()
    assert calibration.rmse_after < calibration.rmse_before
    assert calibration.bits_after > calibration.bits_before
    assert calibration.r2_before < calibration.r2_after <= 1
    assert len(calibration.adc_range) == 2
    true, before, after = calibration.samples
    assert np.abs(after - true).mean() < np.abs(before - true).mean()


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
def test_a_calibrated_engine_is_better_in_every_tile(mapping):
    config = replace(MISMATCH, adc_bits=0, mapping=mapping)
    calibration = calibrate_columns(config, patterns=2, vectors=64)
    generator = torch.Generator().manual_seed(0)
    w = torch.randint(256, (30, 20, 3, 3), generator=generator)
    x = torch.randint(16, (2, 20, 6, 6), generator=generator)
    sums = []
    for backend, given in (('ideal', None), ('simulated', None), ('simulated', calibration)):
        engine = ConvMVMEngine(make_engine(config, backend, calibration=given))
        engine.program(w, 8, 128, padding=1)
        sums.append(engine(x, 4, 3))
    exact, before, after = sums
    assert (after - exact).abs().max() < 1e-3 * (before - exact).abs().max()


def test_fractions_of_a_step_do_not_add_up_over_slices():
    """Sums are whole, and so are corrected reads of converters with steps of 1: a fraction is a bias, as most are 0."""
    config = replace(MISMATCH, gain_mismatch=0.01, adc_bits=10)
    generator = torch.Generator().manual_seed(0)
    w = torch.randint(120, 137, (64, 10), generator=generator)
    x = torch.randint(256, (400, 64), generator=generator) * (torch.rand(400, 64, generator=generator) < 0.1)
    engine = make_engine(config, calibration=calibrate_columns(config))()
    engine.program(w, 8, 128)
    error = engine.mvm(x, 8) - (x.double() @ w.double())
    assert engine.mvm(torch.zeros(1, 64), 8).abs().max() == 0
    calibration = calibrate_columns(config)
    fraction = torch.from_numpy(calibration.offset / calibration.gain)
    fraction = (fraction.round() - fraction)[:10].abs().max()  # what each read of 0 would have left
    assert fraction > 0.2
    assert error.mean(0).abs().max() < 0.2 * fraction * 255


def test_a_calibration_of_another_engine_is_refused_by_name():
    calibration = calibrate_columns(MISMATCH, patterns=2, vectors=16)
    make_engine(MISMATCH, calibration=calibration)
    other = replace(MISMATCH, rows=128, adc_bits=6)
    with pytest.raises(ValueError, match='another engine .*: adc_bits 8 there, 6 here; rows 64 there, 128 here: '):
        make_engine(other, calibration=calibration)
    with pytest.raises(ValueError, match='of another engine than the config in the same file, which was changed'):
        Calibration.from_dict({**calibration.to_dict(), 'fingerprint': '0' * 16})


def test_a_calibration_goes_through_json():
    calibration = calibrate_columns(MISMATCH, patterns=2, vectors=16)
    text = json.dumps(calibration.to_dict())
    again = Calibration.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.samples is None
    again.check(MISMATCH)
    sums = torch.randn(5, 9, dtype=torch.float64)
    assert torch.equal(again.correct(sums.clone()), calibration.correct(sums.clone()))
    values = json.loads(text)
    for wrong, message in [
        ({**values, 'gain': values['gain'][1:]}, 'have 15 and 16 numbers, expected 16'),
        ({**values, 'gain': [0.0] * 16}, 'no gain below 0.001'), ({**values, 'slope': 1}, r"unknown keys \['slope'\]"),
        ({key: v for key, v in values.items() if key != 'offset'}, r"missing or unknown keys \['offset'\]"),
        ({**values, 'gain': 'high'}, 'this is no calibration'), ([], 'this is no calibration'),
        ({**values, 'gain': [*values['gain'][1:], '1']}, 'gain is'), ({**values, 'offset': [[0.0]] * 16}, 'offset is'),
        ({**values, 'config': [1]}, 'config is'), ({**values, 'config': {**values['config'], 'rows': '12x'}}, 'rows'),
        ({**values, 'adc_range': [2, 1]}, 'adc_range is'), ({**values, 'adc_range': 3}, 'adc_range is'),
        ({**values, 'r2_before': 'x'}, 'r2_before is'), ({**values, 'rmse_after': -1}, 'rmse_after is'),
        ({**values, 'bits_after': []}, 'bits_after is'), ({**values, 'fingerprint': 3}, 'fingerprint is'),
    ]:
        with pytest.raises(ValueError, match=message):
            Calibration.from_dict(wrong)


def test_effective_bits_of_a_known_quantizer_are_its_bits():
    values = np.random.default_rng(0).uniform(-3, 5, 200_000)
    for bits in (1, 3, 8):
        step = 8 / 2**bits
        quantized = (np.floor((values + 3) / step) + 0.5) * step - 3
        rmse = np.sqrt(np.mean((quantized - values) ** 2))
        assert effective_bits(8, rmse) == pytest.approx(bits, abs=0.01)
    assert effective_bits(8, 0.0) is None


class SetUp(ArrayDriver):
    """A set-up with one dead column and another that is inverted."""

    def __init__(self, dead=None):
        self.dead = dead

    def program(self, cells):
        self.levels = (cells[0] - cells[1]).float()

    def read(self, inputs):
        values = inputs @ self.levels
        values[:, 1] *= -0.5
        values[:, 2] += 7
        if self.dead is not None:
            values[:, self.dead] = 3
        return values


def test_a_driver_is_calibrated_and_its_dead_columns_are_named():
    config = ArrayConfig(rows=16, columns=12)
    made = []

    def driver():
        made.append(SetUp())
        return made[-1]
    calibration = calibrate_columns(config, driver, patterns=2, vectors=20)
    assert len(made) == 1
    assert calibration.adc_range is None
    assert calibration.gain.tolist() == pytest.approx([1, -0.5, 1, 1, 1, 1])
    assert calibration.offset.tolist() == pytest.approx([0, 0, 7, 0, 0, 0], abs=1e-6)
    engine = make_engine(config, 'hardware', SetUp, calibration)()
    w, x = torch.arange(48).view(16, 3) % 4, torch.arange(32).view(2, 16) % 8
    engine.program(w, 2, 2)
    assert torch.allclose(engine.mvm(x, 3), (x @ w).double())
    with pytest.raises(ValueError, match='columns 4 do not respond'):
        calibrate_columns(config, lambda: SetUp(dead=4))


@pytest.mark.parametrize('arguments', [{'patterns': 1}, {'vectors': 3}])
def test_too_little_to_calibrate_is_refused(arguments):
    with pytest.raises(ValueError, match='expected at least 2 of 16'):
        calibrate_columns(MISMATCH, **arguments)
