"""The state of a layer, and actions against bits."""

import numpy as np
import pytest

from lib.env.state import action_from_bits, bits_from_action, layer_features
from lib.simulator.layer import LayerRecord


def record(name, kind, cin, cout, kernel=1, stride=1, groups=1, size=1):
    weights = cin // groups * cout * kernel * kernel
    return LayerRecord(name, kind, cin, cout, (kernel, kernel), (stride, stride), groups, *[size] * 4, weights)


def test_features_are_normalised_column_by_column():
    records = [record('a', 'conv', 3, 8, kernel=3, stride=2, size=32),
               record('b', 'conv', 8, 8, kernel=3, groups=8, size=16),
               record('c', 'conv', 8, 16, size=16), record('d', 'linear', 16, 10)]
    raw = np.array([[0, 3, 8, 2, 3, 216, 1024, 0], [1, 8, 8, 1, 3, 72, 256, 1], [0, 8, 16, 1, 1, 128, 256, 2],
                    [0, 16, 10, 0, 1, 160, 16, 3]], float)
    expected = (raw - raw.min(0)) / (raw.max(0) - raw.min(0))
    assert layer_features(records) == pytest.approx(expected)


def test_constant_columns_stay_as_they_are():
    features = layer_features([record(name, 'conv', 4, 4, kernel=3, size=8) for name in 'ab'])
    assert features[:, 4].tolist() == [3, 3]
    assert features[:, 7].tolist() == [0, 1]


@pytest.mark.parametrize(('low', 'high'), [(1, 8), (2, 8), (1, 7), (3, 3)])
def test_bins_are_equal_and_never_left(low, high):
    actions = (np.arange(70000) + 0.5) / 70000
    bits = np.array([bits_from_action(a, low, high) for a in actions])
    values, counts = np.unique(bits, return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    assert np.ptp(counts) <= 1 + 70000 % (high - low + 1)
    assert (bits_from_action(0.0, low, high), bits_from_action(1.0, low, high)) == (low, high)


@pytest.mark.parametrize(('low', 'high'), [(1, 8), (2, 6)])
def test_actions_and_bits_are_inverse(low, high):
    for bits in range(low, high + 1):
        assert bits_from_action(action_from_bits(bits, low, high), low, high) == bits
    assert action_from_bits(8, 2, 4) == 1.0  # a pinned layer outside the range
