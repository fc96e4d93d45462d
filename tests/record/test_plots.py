"""The figures: what is drawn equals the data, and files appear whole or not at all."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from lib.record import plots

KINDS = ['conv', 'depthwise', 'pointwise', 'linear']
NAMES = ['stem', 'block.dw', 'block.pw', 'classifier']
EPISODES = [{'episode': e, 'reward': r, 'accuracy': 70 + r, 'best_reward': b, 'ratio': .5 - e / 100}
            for e, (r, b) in enumerate([(-3., -3.), (-1., -1.), (-2., -1.), (0.5, 0.5), (0., 0.5)])]


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are saved."""
    saved, save = [], plots.save_figure

    def collect(figure, path):
        saved.append(figure)
        save(figure, path)
    monkeypatch.setattr(plots, 'save_figure', collect)
    return saved


def bars(ax):
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def line(ax, index):
    return list(ax.lines[index].get_ydata())


def test_pairs_are_drawn_up_and_down(figures, tmp_path):
    plots.plot_strategy([[8, -1], [7, 3], [5, 6], [8, 8]], KINDS, NAMES, tmp_path / 's.png', title='net')
    ax = figures[0].axes[0]
    drawn = bars(ax)
    assert [bar.get_height() for bar in drawn] == [8, -8, 7, -3, 5, -6, 8, -8]
    assert [bool(bar.get_hatch()) for bar in drawn] == [False, True] + 6 * [False]
    assert [to_hex(bar.get_facecolor()).upper() for bar in drawn[::2]] == [plots.KIND_COLORS[k] for k in KINDS]
    assert texts(ax)[:8] == ['8', '–', '7', '3', '5', '6', '8', '8']
    assert [label.get_text() for label in ax.get_xticklabels()] == NAMES
    labels = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert labels == [*KINDS, 'input left alone (8-bit image)']


def test_a_flat_strategy_is_drawn_up_only(figures, tmp_path):
    plots.plot_strategy([6, 5, 4, 3], ['linear', 'conv', 'shortcut', 'conv'], NAMES, tmp_path / 's.png')
    ax = figures[0].axes[0]
    assert [bar.get_height() for bar in bars(ax)] == [6, 5, 4, 3]
    assert ax.get_ylim()[0] == 0
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ['conv', 'linear', 'shortcut']


def test_names_are_thinned_when_they_cannot_fit(figures, tmp_path):
    plots.plot_strategy([4] * 150, ['conv'] * 150, [f'l{i}' for i in range(150)], tmp_path / 's.png')
    labels = [label.get_text() for label in figures[0].axes[0].get_xticklabels()]
    assert labels[:2] == ['l0', 'l3'] and len(labels) == 50


@pytest.mark.parametrize('layers', [8, 53])
def test_nothing_of_a_strategy_overlaps(figures, tmp_path, layers):
    plots.plot_strategy([[7, -1]] * layers, (KINDS * layers)[:layers], [f'features.{i}.conv.0' for i in range(layers)],
                        tmp_path / 's.png')
    figure = figures[0]
    figure.draw_without_rendering()
    ax = figure.axes[0]
    for group in (ax.get_xticklabels(), ax.texts[:2 * layers:2], ax.texts[1:2 * layers:2]):
        boxes = sorted(text.get_window_extent().intervalx.tolist() for text in group)
        assert all(one[1] <= two[0] for one, two in zip(boxes[:-1], boxes[1:], strict=True))
    names_end = min(text.get_window_extent().y0 for text in ax.get_xticklabels())
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y1 <= names_end


def test_lists_of_different_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match='2 entries, 4 kinds and 4 names'):
        plots.plot_strategy([4, 4], KINDS, NAMES, tmp_path / 's.png')


def test_search_shows_running_best_and_warm_up(figures, tmp_path):
    plots.plot_search(EPISODES, tmp_path / 's.png', warmup=1, float_accuracy=72.5)
    reward, accuracy = figures[0].axes
    assert line(reward, 0) == [-3., -1., -2., .5, 0.]
    assert line(reward, 1) == pytest.approx([-3, -2, -2, -5.5 / 4, -5.5 / 5])  # mean of up to twenty
    assert line(reward, 2) == [-3., -1., -1., .5, .5]
    assert line(accuracy, 2) == [67., 69., 69., 70.5, 70.5]  # accuracy of the episode with the best reward
    assert line(accuracy, 3) == [72.5, 72.5]
    band = reward.patches[0]
    assert (band.get_x(), band.get_x() + band.get_width()) == (-.5, 1.5)
    assert texts(reward) == ['warm-up'] and texts(accuracy) == ['float 72.50 %']


def test_running_mean_forgets_after_twenty():
    values = np.arange(50.)
    assert plots._running_mean(values)[[0, 19, 20, 49]].tolist() == [0, 9.5, 10.5, 39.5]


def test_cloud_has_every_episode_and_marks_the_best(figures, tmp_path):
    plots.plot_search_cloud(EPISODES, tmp_path / 'c.png', xlabel='latency')
    ax = figures[0].axes[0]
    offsets = ax.collections[0].get_offsets()
    np.testing.assert_allclose(offsets, [(e['ratio'], e['accuracy']) for e in EPISODES])
    assert ax.collections[0].get_array().tolist() == [0, 1, 2, 3, 4]
    assert (ax.lines[0].get_xdata()[0], ax.lines[0].get_ydata()[0]) == (.47, 70.5)
    assert ax.get_xlabel() == 'latency'


def test_budget_has_a_sorted_line_per_group_and_labels_apart(figures, tmp_path):
    points = [{'label': f'{b} bits', 'ratio': b / 32, 'accuracy': 70 - 2. ** -b, 'group': 'uniform'} for b in (4, 2, 3)]
    points += [{'label': f'searched {b}', 'ratio': b / 32 - .001, 'accuracy': 70 - 2. ** -b - .01, 'group': 'searched'}
               for b in (2, 3, 4)] + [{'label': '', 'ratio': .2, 'accuracy': 70, 'group': 'searched'}]
    plots.plot_budget(points, tmp_path / 'b.png', float_accuracy=70.1)
    ax = figures[0].axes[0]
    assert ax.lines[0].get_xdata().tolist() == [2 / 32, 3 / 32, 4 / 32]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ['uniform', 'searched']
    written = ax.texts
    assert sorted(texts(ax)) == sorted(['float 70.10 %'] + [p['label'] for p in points if p['label']])
    boxes = [text.get_window_extent() for text in written]
    assert not any(one.overlaps(two) for i, one in enumerate(boxes) for two in boxes[:i])


def test_budget_has_a_curve_to_break_through(figures, tmp_path):
    points = [{'label': 'found', 'ratio': .45, 'accuracy': 97, 'group': 'searched'}]
    curve = [{'label': f'{b}', 'ratio': b / 8, 'accuracy': 98 - 100 / b**2, 'group': 'uniform'}
             for b in range(8, 1, -1)]
    plots.plot_budget(points, tmp_path / 'b.png', xlabel='cost', curve=curve)
    found, line = figures[0].axes[0].lines
    assert found.get_xydata().tolist() == [[.45, 97]]
    assert line.get_xdata().tolist() == [b / 8 for b in range(2, 9)] and line.get_linestyle() == '--'
    assert to_hex(line.get_color()) != to_hex(found.get_color())
    assert sorted(texts(figures[0].axes[0])) == [*map(str, range(2, 9)), 'found']
    figures[0].draw_without_rendering()
    legend = figures[0].legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figures[0].bbox.x1


def test_a_long_legend_stays_on_the_figure(figures, tmp_path):
    groups = ('uniform bits, fine-tuned', 'searched bits, fine-tuned', 'uniform bits, not fine-tuned')
    points = [{'label': '', 'ratio': 1, 'accuracy': 9, 'group': group} for group in groups]
    plots.plot_budget(points, tmp_path / 'b.png')
    legend = figures[0].legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figures[0].bbox.x1


def test_training_marks_the_best_epoch(figures, tmp_path):
    log = {'Learning Rate': [.1, .1, .01], 'Train Loss': [2, 1, .5], 'Valid Loss': [2, 1.5, 1.6],
           'Train Acc.': [20, 40, 60], 'Valid Acc.': [25, 45, 44]}
    plots.plot_training(log, tmp_path / 't.png')
    loss, accuracy = figures[0].axes
    assert [line(loss, 0), line(loss, 1)] == [[2, 1, .5], [2, 1.5, 1.6]]
    assert [line(accuracy, 0), line(accuracy, 1)] == [[20, 40, 60], [25, 45, 44]]
    assert accuracy.lines[2].get_xydata().tolist() == [[2, 45]]


@pytest.mark.parametrize('draw', [
    lambda path: plots.plot_search([], path, 20), lambda path: plots.plot_search_cloud([], path),
    lambda path: plots.plot_budget([], path), lambda path: plots.plot_training({'Train Loss': []}, path)])
def test_no_data_is_refused(draw, tmp_path):
    with pytest.raises(ValueError, match='nothing to plot'):
        draw(tmp_path / 'f.png')
    assert not list(tmp_path.iterdir())


def test_one_episode_is_enough(tmp_path):
    plots.plot_search(EPISODES[:1], tmp_path / 's.png', warmup=20)
    plots.plot_search_cloud(EPISODES[:1], tmp_path / 'c.png')
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(('name', 'start'), [('f.png', b'\x89PNG'), ('f.pdf', b'%PDF'), ('f.svg', b'<?xml')])
def test_suffix_decides_the_format(name, start, tmp_path):
    plots.plot_search_cloud(EPISODES, tmp_path / 'run' / name)
    assert (tmp_path / 'run' / name).read_bytes().startswith(start)


def test_a_failed_write_keeps_the_old_figure(monkeypatch, tmp_path):
    path = tmp_path / 'f.png'
    path.write_bytes(b'old')

    def fail(figure, file, **_):
        Path(file).write_bytes(b'half')
        raise OSError('disk full')
    monkeypatch.setattr(plots.Figure, 'savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        plots.plot_search_cloud(EPISODES, path)
    assert path.read_bytes() == b'old' and list(tmp_path.iterdir()) == [path]


def test_the_callers_settings_are_left_alone(tmp_path):
    before = matplotlib.rcParams.copy()  # the backend is one of them
    plots.plot_search(EPISODES, tmp_path / 's.png', warmup=1)
    assert matplotlib.rcParams.copy() == before
