"""Figures of results.md: no curve hides another, and all are drawn from the tables."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

ROOT = Path(__file__).resolve().parents[2]


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def modules():
    """The benchmark, and the script that draws the figures of results.md."""
    return load(ROOT / 'benchmarks' / 'cheaper_search.py'), load(ROOT / 'docs' / 'draw_results.py')


@pytest.fixture
def saved(modules, monkeypatch):
    """Collects the figures of the benchmark."""
    figures = []
    monkeypatch.setattr(modules[0], 'save_figure', lambda figure, path: figures.append(figure))
    return figures


def test_each_search_has_a_panel_over_the_plain_agent(modules, saved, tmp_path):
    benchmark, _ = modules
    curve = (np.array([100.0, 200.0, 300.0]), np.array([-3.0, -2.0, -1.0]), 3)
    late = (np.array([150.0, 250.0, 350.0]), np.array([-2.5, -1.5, -1.0]), 3)
    found = {'plain': [curve, late], 'reuse': [curve, late], 'warm_start': [late]}
    benchmark.plot({name: benchmark.mean_curve(curves) for name, curves in found.items()}, tmp_path / 'f.png')
    (figure,) = saved
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc='left') for ax in panels] == ['results kept', 'warm start']
    for ax in panels:
        plain, other = ax.lines
        assert plain.get_linewidth() > 2 * other.get_linewidth() and plain.get_zorder() <= other.get_zorder()
        assert to_hex(plain.get_color()) != to_hex(other.get_color())
    assert panels[0].lines[0].get_ydata() == pytest.approx(panels[0].lines[1].get_ydata())
    assert len(panels[0].collections) == 2 and len(panels[1].collections) == 1, 'one seed has no standard error'
    assert panels[0].get_ylim() == panels[1].get_ylim()


def test_the_figures_of_results_hold_its_tables(modules, saved, monkeypatch, tmp_path):
    _, draw = modules
    groups = draw.searchers()
    assert list(groups) == ['size of 3 bits', 'size of 4 bits', 'latency 0.6']
    compared = [name for name in draw.SEARCHERS if name not in ('kl', 'bayes')]  # which came later
    assert all(list(found) == compared for found in groups.values())
    assert groups['latency 0.6']['fisher'] == (None, 91.34, 0.03)
    assert groups['size of 3 bits']['hessian'] == groups['size of 3 bits']['fisher'] == (None, 90.82, 0.05)
    assert groups['size of 4 bits']['greedy'] == (None, 91.18, 0.08)
    draw.draw_cheaper(tmp_path)
    ax = saved[0].axes[1]
    assert ax.get_title(loc='left') == 'screen'
    assert ax.lines[1].get_xydata() == pytest.approx(np.array([[38.04, -1.597], [76.08, -1.2], [152.16, -0.89]]))
    for part in (draw.draw_searchers, draw.draw_engine, draw.draw_machines):
        part(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / 'docs').glob('*.png')} - {
        'HAQ-Overview.png', 'progressive_cifar10.png', 'haq_digits.png', 'cheaper_search.png'}
