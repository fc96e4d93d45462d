"""Errors of cells and converters: each against its formula, and in the engine's results."""

from dataclasses import replace
from math import log, sqrt

import numpy as np
import pytest
import torch

from lib.engine.adc_range import choose_range, convert, fixed_range
from lib.engine.array import ArrayConfig
from lib.engine.devices import DEVICES
from lib.engine.dot_product import ConvMVMEngine, make_engine
from lib.engine.simulated_array import SimulatedArray

SIZE = 200
PLAIN = ArrayConfig(rows=SIZE, columns=2 * SIZE, adc_bits=0, cell_bits=2)
OFFSET = replace(PLAIN, mapping='offset', columns=SIZE)


def array_of(config, level, *, negative=0, seed=0):
    """An array whose cells are all at one level; the G- of 'balanced' at another."""
    array = SimulatedArray(replace(config, seed=seed))
    shape = (SIZE, SIZE)
    cells = [torch.full(shape, level)] + [torch.full(shape, negative)] * (config.mapping == 'balanced')
    array.program(torch.stack(cells))
    return array


def cells_of(array):
    """What each cell conducts, in levels: every row driven alone."""
    return array.read(torch.eye(SIZE)).double()


@pytest.mark.parametrize('device, level, sigma', [
    ('none', 2, 0.05), ('neurosim', 2, 0.05)])
def test_programming_noise_given_as_a_number(device, level, sigma):
    config = replace(PLAIN, device=device, programming_noise=sigma)
    errors = cells_of(array_of(config, level)) - level
    if device == 'none':  # independent of the level: both cells of a pair have it
        expected = sqrt(2) * 3 * sigma
    else:  # proportional to the conductance of each
        _, g_min, g_max = config.device_model()
        unit = (g_max - g_min) / 3
        expected = sigma * sqrt((g_min / unit + level) ** 2 + (g_min / unit) ** 2)
    assert float(errors.std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(errors.mean())) < 4 * expected / SIZE


@pytest.mark.parametrize('level', [0, 1, 2, 3])
def test_rram_is_programmed_with_the_deviation_of_its_fit(level):
    microsiemens = cells_of(array_of(replace(PLAIN, device='rram'), level)) * (225 - 50) / 3
    at_level, at_zero = (4.782 - 0.00911 * g for g in (50 + 175 * level / 3, 50))
    assert float(microsiemens.mean()) == pytest.approx(175 * level / 3, abs=0.1)
    assert float(microsiemens.std()) == pytest.approx(sqrt(at_level**2 + at_zero**2), rel=0.02)


@pytest.mark.parametrize('level', [1, 2, 3])
def test_pcm_is_programmed_with_the_deviation_of_its_polynomial(level):
    # Both cells at the level, far from 0, where conductances would be cut.
    errors = cells_of(array_of(replace(PLAIN, device='pcm', read_noise=0), level, negative=level)) * 25 / 3
    x = level / 3
    assert float(errors.std()) == pytest.approx(sqrt(2) * (0.26348 + 1.9650 * x - 1.1731 * x**2), rel=0.02)


def test_pcm_conductances_are_never_negative():
    cells = cells_of(array_of(replace(PLAIN, device='pcm', read_noise=0), 3))
    assert float(cells.median()) < 3  # G- is half a normal distribution, above 0
    lost = 3 - float(cells.mean())
    assert lost == pytest.approx(0.26348 / sqrt(2 * np.pi) * 3 / 25, rel=0.1)


def test_pcm_drifts_with_a_power_of_time():
    config, seconds = replace(PLAIN, device='pcm', programming_noise=0, read_noise=0), 86400.0
    for level, nu, std in [(3, 0.049, 0.008), (1, 0.049, max(-0.0125 * log(1 / 3) - 0.0059, 0.008))]:
        cells = cells_of(array_of(replace(config, drift_seconds=seconds), level))
        exponents = -(cells / level).log() / log(1 + seconds / 20)
        assert float(exponents.mean()) == pytest.approx(nu, abs=1e-3)
        assert float(exponents.std()) == pytest.approx(std, rel=0.02)
    assert torch.allclose(cells_of(array_of(config, 2)), torch.tensor(2.0, dtype=torch.float64))


def test_read_noise_of_pcm_follows_conductance_and_time():
    device, g = DEVICES['pcm'], torch.tensor([0.0, 12.5, 25.0], dtype=torch.float64)
    for seconds in (0.0, 1e6):
        spread = sqrt(log((20 + seconds + 250e-9) / 500e-9))
        expected = [0.0, 12.5 * 0.0088 / 0.5**0.65 * spread, 25 * 0.0088 * spread]
        assert device.read_std(g, seconds).tolist() == pytest.approx(expected)
    config = replace(PLAIN, device='pcm', programming_noise=0)
    array = array_of(config, 2)
    inputs = torch.ones(400, SIZE)
    one_cell = float(device.read_std(torch.tensor(25 * 2 / 3, dtype=torch.float64), 0.0)) * 3 / 25
    values = array.read(inputs)
    assert float(values.std()) == pytest.approx(sqrt(SIZE) * one_cell, rel=0.02)


@pytest.mark.parametrize('config', [PLAIN, OFFSET], ids=['balanced', 'offset'])
def test_read_noise_is_that_of_all_driven_cells_and_new_in_every_read(config):
    array = array_of(replace(config, read_noise=0.02, dac_bits=2), 2)
    inputs = torch.zeros(4000, SIZE)
    inputs[:, :50], inputs[:, 50:60] = 1, 3
    values = array.read(inputs).double() - 2 * (50 + 30)
    expected = 0.02 * 3 * sqrt(2 * (50 + 10 * 9))
    assert float(values.std()) == pytest.approx(expected, rel=0.03)
    assert not torch.equal(array.read(inputs), array.read(inputs))
    correlation = np.corrcoef(values.numpy().T)[~np.eye(SIZE, dtype=bool)].mean()
    assert correlation == pytest.approx(0 if config is PLAIN else 0.5, abs=0.03)  # the reference column is shared
    assert torch.equal(array.read(torch.zeros(2, SIZE)), torch.zeros(2, SIZE))  # what is not driven makes no noise


@pytest.mark.parametrize('config', [PLAIN, OFFSET], ids=['balanced', 'offset'])
def test_stuck_cells(config):
    config = replace(config, stuck_low=0.05, stuck_high=0.1, on_off_ratio=10)
    cells = cells_of(array_of(config, 1, negative=1)).round()
    if config.signed:  # levels 0, 1 and 3 of G+ minus those of G-, which are 1 unless stuck
        parts = {3: 0.1 * 0.05, 2: 0.1 * 0.85, 1: 0.85 * 0.05, -1: 0.05 * 0.85, -2: 0.85 * 0.1, -3: 0.05 * 0.1}
    else:
        parts = {0: 0.05, 3: 0.1, 1: 0.85}
    for value, part in parts.items():
        assert float((cells == value).double().mean()) == pytest.approx(part, rel=0.1, abs=0.001)


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
def test_conductance_of_off_cells_cancels(mapping):
    config = ArrayConfig(rows=30, columns=30, mapping=mapping, on_off_ratio=2, adc_bits=8, adc_range='granular')
    engine, generator = make_engine(config)(), torch.Generator().manual_seed(0)
    w, x = (torch.randint(64, shape, generator=generator) for shape in ((40, 6), (8, 40)))
    engine.program(w, 6, 32)
    assert torch.equal(engine.mvm(x, 6), (x @ w).double())


def errors_of(calibrate=False, made=1, **changes):
    """Root mean squared error of S in one layer."""
    engine, generator = None, torch.Generator().manual_seed(5)
    factory = make_engine(ArrayConfig(**changes))
    for _ in range(made):
        engine = factory()
    w = (128 + 30 * torch.randn(200, 24, generator=generator)).round().clamp(1, 255)
    x = (60 * torch.randn(300, 200, generator=generator)).round().clamp(0, 255)
    engine.program(w, 8, 128)
    if calibrate:
        engine.calibrate_range(x, 8)
    return (engine.mvm(x, 8) - x.double() @ w.double()).square().mean().sqrt().item()


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
@pytest.mark.parametrize('name, values', [
    ('programming_noise', [0.003, 0.01, 0.03, 0.1]), ('read_noise', [0.003, 0.01, 0.03, 0.1]),
    ('stuck_low', [0.001, 0.01, 0.1]), ('stuck_high', [0.001, 0.01, 0.1]), ('gain_mismatch', [0.003, 0.01, 0.03]),
    ('offset_mismatch', [0.0003, 0.001, 0.003])])
def test_errors_grow_with_every_noise(name, values, mapping):
    errors = [errors_of(**{name: value}, adc_bits=0, mapping=mapping) for value in values]
    assert errors_of(**{name: 0}, adc_bits=0, mapping=mapping) == 0
    assert all(more > 1.5 * less for less, more in zip(errors, errors[1:], strict=False))


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
@pytest.mark.parametrize('adc_range', ['max', 'calibrated'])
def test_errors_fall_by_half_with_every_bit_of_the_converters(adc_range, mapping):
    calibrate = adc_range == 'calibrated'
    bits = (6, 8, 10, 12) if calibrate else (8, 10, 12, 14)  # below, steps of the largest range hide whole sums
    errors = [errors_of(adc_bits=b, adc_range=adc_range, mapping=mapping, calibrate=calibrate) for b in bits]
    assert all(2.5 < less / more < 6.5 for less, more in zip(errors, errors[1:], strict=False))


def test_pcm_gets_worse_with_time():
    errors = [errors_of(device='pcm', adc_bits=0, drift_seconds=t) for t in (0.0, 60.0, 3600.0, 86400.0)]
    assert errors == sorted(errors)
    assert errors[-1] > 2 * errors[0]


@pytest.mark.parametrize('changes', [{}, {'device': 'pcm'}, {'read_noise': 0.1, 'mapping': 'offset'}], ids=str)
def test_a_seed_decides_everything_and_nothing_global_does(changes):
    config = ArrayConfig(rows=32, columns=32, programming_noise=0.1, read_noise=0.1, adc_bits=0)
    config = replace(config, **changes)
    w, x = torch.randint(16, (40, 5)), torch.randint(16, (6, 40))

    def results(seed, which=0):
        factory = make_engine(replace(config, seed=seed))
        engine = [factory() for _ in range(3)][which]
        engine.program(w, 4, 8)
        return engine.mvm(x, 4), engine.mvm(x, 4)
    state = torch.get_rng_state()
    first, second = results(0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert all(map(torch.equal, results(0), (first, second)))
    assert not torch.equal(first, second)
    assert not torch.equal(results(1)[0], first)
    assert not torch.equal(results(0, 1)[0], first)  # another layer


def test_programming_does_not_depend_on_reads():
    config = ArrayConfig(rows=16, columns=16, programming_noise=0.1, read_noise=0.1, adc_bits=0)
    w, x = torch.randint(4, (16, 4)), torch.eye(16)
    means = []
    for reads in (0, 3):
        engine = make_engine(config)()
        engine.program(w, 2)
        for _ in range(reads):
            engine.mvm(x, 1)
        means.append(torch.stack([engine.mvm(x, 1) for _ in range(400)]).mean(0))
    assert (means[0] - means[1]).abs().max() < 0.15  # read noise of 0.42 a time; programming noise of 0.42 stays


def test_conversion_by_hand():
    offset = ArrayConfig(mapping='offset', adc_bits=2)
    low, high = torch.tensor(1.0), torch.tensor(7.0)
    values = torch.tensor([-3.0, 1.9, 2.1, 3.9, 4.1, 6.0, 6.9, 20.0])
    assert convert(values, low, high, offset).tolist() == [1, 1, 3, 3, 5, 5, 7, 7]  # 6.0 is a tie: to even
    balanced = ArrayConfig(adc_bits=3)  # -3..3 of 2 each
    got = convert(torch.tensor([-9.0, -2.9, 0.9, 1.1, 5.0, 8.0]), torch.tensor(-6.0), torch.tensor(6.0), balanced)
    assert got.tolist() == [-6, -2, 0, 2, 4, 6]
    assert fixed_range(replace(balanced, adc_range='max', rows=10), 7) == (-21, 21)
    assert fixed_range(replace(offset, adc_range='max', dac_bits=2), 7) == (0, 63)
    assert fixed_range(balanced, 7) == (-3, 3)


@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
def test_the_engine_converts_as_the_formula_says(mapping):
    config = ArrayConfig(rows=64, columns=16, adc_bits=5, adc_range='max', mapping=mapping, gain_mismatch=0.05,
                         offset_mismatch=0.02)
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randint(4, (64, 8), generator=generator), torch.randint(2, (200, 64), generator=generator)
    exact = make_engine(replace(config, adc_bits=0))()
    engine = make_engine(config)()
    for one in (exact, engine):
        one.program(w, 2)
    low, high = (torch.tensor(bound) for bound in fixed_range(config, 64))
    expected = convert(exact.mvm(x, 1), low.double(), high.double(), config)
    assert (expected - engine.mvm(x, 1)).abs().median() < 1e-4
    assert ((expected - engine.mvm(x, 1)).abs() > 1e-3).double().mean() < 0.01  # ties may round the other way
    assert float((expected - (x @ w).double()).abs().max()) > 3


@pytest.mark.parametrize('sliced', [True, False])
@pytest.mark.parametrize('mapping', ['balanced', 'offset'])
def test_a_calibrated_range_is_never_worse_than_the_largest(mapping, sliced):
    generator = torch.Generator().manual_seed(0)
    for bits in (2, 4, 6, 8, 10, 14):
        for scale in (0.3, 4.0, 60.0, 500.0):
            values = scale * torch.randn(3000, generator=generator, dtype=torch.float64)
            values[0] *= 20  # an outlier
            if mapping == 'offset':
                values = values.abs() + scale
            config = ArrayConfig(mapping=mapping, adc_bits=bits, adc_range='max')
            low, high = choose_range(values, 128, config, sliced)
            chosen, largest = (convert(values, torch.tensor(a).double(), torch.tensor(b).double(), config) - values
                               for a, b in ((low, high), fixed_range(config, 128)))
            assert chosen.square().mean() <= largest.square().mean()
            if sliced:
                power = np.log2(384 / high)
                assert power == round(power)


def test_the_range_of_weights_in_one_cell_has_the_least_mean_error():
    generator = torch.Generator().manual_seed(1)
    values = 20 * torch.randn(20_000, generator=generator, dtype=torch.float64)
    config = ArrayConfig(adc_bits=4)

    def error(limit):
        limit = torch.tensor(float(limit), dtype=torch.float64)
        return float((convert(values, -limit, limit, config) - values).abs().mean())
    chosen = choose_range(values, 128, config, sliced=False)[1]
    assert error(chosen) <= 1.02 * min(error(limit) for limit in np.linspace(10, 384, 300))
    assert error(chosen) < 0.2 * error(384)


def test_ranges_are_calibrated_saved_and_needed():
    generator = torch.Generator().manual_seed(0)
    config = ArrayConfig(adc_range='calibrated', adc_bits=6, rows=64)
    w = torch.randint(256, (8, 10, 3, 3), generator=generator)
    x = torch.randint(16, (3, 10, 6, 6), generator=generator)
    engines = [ConvMVMEngine(make_engine(config)) for _ in range(2)]
    for engine in engines:
        engine.program(w, 8, 128, padding=1)
    with pytest.raises(ValueError, match='no range is set: call calibrate_range'):
        engines[0](x, 4)
    engines[0].calibrate_range(x, 4)
    ranges = engines[0].engine.ranges()
    assert [len(row) for row in ranges] == [4, 4]
    engines[1].engine.use_ranges(ranges)
    assert torch.equal(engines[0](x, 4), engines[1](x, 4))
    with pytest.raises(ValueError, match='ranges of .* slices, expected 4'):
        engines[1].engine.use_ranges(ranges[:1])
    with pytest.raises(ValueError, match='the range of converter 0 is 0 to 0, expected a range above zero'):
        engines[1].engine.use_ranges([[[0, 0]] * 4] * 2)
    other = make_engine(replace(config, adc_range='max'))()
    other.program(torch.ones(3, 3), 1)
    with pytest.raises(ValueError, match="calibrate_range is for adc_range 'calibrated', this engine's is 'max'"):
        other.calibrate_range(torch.ones(1, 3), 1)
    with pytest.raises(ValueError, match='symmetric'):
        engines[1].engine.use_ranges([[[-1, 2]] * 4] * 2)
    errors = [errors_of(adc_bits=b, adc_range='calibrated', calibrate=True) / errors_of(adc_bits=b, adc_range='max')
              for b in (4, 6, 8)]
    assert max(errors) < 0.5
