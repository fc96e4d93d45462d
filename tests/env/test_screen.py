"""The quick look before fine-tuning: its prediction against least squares, and what it leaves out."""

import numpy as np
import pytest

from lib.env.screen import MIN_PAIRS, Screen


def filled(seed=0, slope=0.5, noise=1.0, count=30):
    rng = np.random.default_rng(seed)
    screen, before = Screen(), rng.uniform(10, 90, count)
    for x, error in zip(before, rng.standard_normal(count), strict=True):
        screen.add(x, 40 + slope * x + noise * error)
    return screen


def test_the_prediction_is_that_of_least_squares():
    screen = filled()
    x, y = np.array(screen.pairs).T
    coefficients, residuals, *_ = np.polyfit(x, y, 1, full=True)
    for value in (12.0, 50.0, 88.0):
        expected, deviation = screen.predict(value)
        assert expected == pytest.approx(np.polyval(coefficients, value))
        assert deviation == pytest.approx(np.sqrt(residuals[0] / (len(x) - 2)))


def test_only_what_cannot_become_the_best_is_left_out():
    screen = filled(noise=0.5)
    best = max(after for _, after in screen.pairs)
    wrong = 0
    rng = np.random.default_rng(1)
    for x in rng.uniform(10, 90, 300):
        accuracy = 40 + 0.5 * x + 0.5 * rng.standard_normal()
        if not screen.promising(x):
            expected, _ = screen.predict(x)
            assert expected < best
            wrong += accuracy > best
    assert wrong <= 3
    assert not screen.promising(20.0)
    assert screen.promising(89.0)


def test_the_first_strategies_are_all_promising():
    screen = Screen()
    for number in range(MIN_PAIRS):
        assert screen.promising(0.0)
        screen.add(50.0 + number, 90.0 + number / 10)
    assert not screen.promising(0.0)


def test_equal_looks_predict_the_mean():
    screen = Screen()
    for after in (80.0, 90.0) * MIN_PAIRS:
        screen.add(50.0, after)
    assert screen.predict(10.0)[0] == pytest.approx(85.0)
    assert screen.promising(10.0)
