"""Sweeps of an engine setting: numbers stand where they belong, and the axis is named in words."""

import pytest

from lib.engine import plots as engine_plots


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(field, values)` -> axes of the sweep whose accuracy is 1, 2, 3 ... in the order given."""
    saved = []
    monkeypatch.setattr(engine_plots, 'save_figure', lambda figure, path: saved.append(figure))

    def draw(field, values):
        points = [{'value': value, 'top1': float(i), 'agreement': 10.0 * i} for i, value in enumerate(values, 1)]
        engine_plots.plot_sweep(field, points, 'sweep.png', 70.0)
        return saved[-1].axes[0]
    return draw


@pytest.mark.parametrize(('field', 'values', 'places', 'top1', 'scale', 'words'), [
    ('read_noise', [0.0, 0.01, 0.02, 0.05], [0, 0.01, 0.02, 0.05], [1, 2, 3, 4], 'linear', 'noise of every read'),
    ('read_noise', [0.05, 0.0], [0, 0.05], [2, 1], 'linear', 'noise of every read'),
    ('rows', [32, 64, 256], [32, 64, 256], [1, 2, 3], 'linear', 'rows of an array'),
    ('drift_seconds', [1.0, 100.0, 1e6], [1, 100, 1e6], [1, 2, 3], 'log', 'seconds since'),
    ('adc_bits', [8, 0, 4], [0, 1, 2], [1, 2, 3], 'linear', 'bits of the converters'),
    ('device', ['pcm', 'none'], [0, 1], [1, 2], 'linear', 'memory cells'),
])
def test_values_stand_where_they_belong(drawn, field, values, places, top1, scale, words):
    ax = drawn(field, values)
    agreement, accuracy = ax.lines[:2]
    assert list(accuracy.get_xdata()) == list(agreement.get_xdata()) == places
    assert list(accuracy.get_ydata()) == top1 and list(agreement.get_ydata()) == [10 * value for value in top1]
    assert ax.get_xscale() == scale and ax.get_xlabel().startswith(words)


def test_what_is_no_number_is_written_under_its_place(drawn):
    for field, values, labels in (('device', ['pcm', 'none'], ['pcm', 'none']), ('adc_bits', [8, 0], ['8', 'none'])):
        assert [label.get_text() for label in drawn(field, values).get_xticklabels()] == labels
