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
    bits = np.array([bits_from_action(a, range(low, high + 1)) for a in actions])
    values, counts = np.unique(bits, return_counts=True)
    assert values.tolist() == list(range(low, high + 1))
    assert np.ptp(counts) <= 1 + 70000 % (high - low + 1)
    assert [bits_from_action(end, range(low, high + 1)) for end in (0.0, 1.0)] == [low, high]


@pytest.mark.parametrize('able', [range(1, 9), range(2, 7), (2, 4, 8), (4,), (-1,)])
def test_actions_and_bits_are_inverse(able):
    for number, bits in enumerate(able):
        action = action_from_bits(bits, able)
        assert action == (number + 0.5) / len(able) and bits_from_action(action, able) == bits
    assert action_from_bits(9, able) == 1.0 and action_from_bits(0, range(1, 9)) == 0.0  # pinned outside of them
    assert action_from_bits(3, (2, 4, 8)) == pytest.approx(1 / 3), 'between the bins of its neighbours'


def test_bins_of_candidates_are_of_equal_width():
    bits = [bits_from_action((step + 0.5) / 3000, (2, 4, 8)) for step in range(3000)]
    assert bits == [2] * 1000 + [4] * 1000 + [8] * 1000
