"""Figures of dot-product engines: measured against exact sums, their errors, calibrations, and sweeps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lib.engine.calibration import Calibration
from lib.record.plots import BLUE, GREY, RED, new_figure, save_figure, whole_numbers
from lib.record.words import ENGINE

PANELS = 25  # of one figure
DRAWN = 4000  # points of a scatter plot
OFF = {'adc_bits': 'none', 'on_off_ratio': 'infinite'}  # what 0 stands for


def plot_layers(pairs: Mapping[str, np.ndarray], kind: str, path: str | Path) -> list[Path]:
    """Draw a panel per layer and return the files written; layers beyond 25 go to `<name>_2.png` and so on.

    Args:
        pairs: (2, n) exact and measured dot products by layer.
        kind: 'scatter', measured against exact, or 'histogram' of their differences.
        path: file to write.
    """
    names, paths = list(pairs), []
    draw, x, y = KINDS[kind]
    for first in range(0, len(names), PANELS):
        part, page = names[first:first + PANELS], Path(path)
        if first:
            page = page.with_name(f'{page.stem}_{first // PANELS + 1}{page.suffix}')
        figure, axes = _panels(len(part))
        for ax, name in zip(axes, part, strict=True):
            draw(ax, *np.asarray(pairs[name], dtype=float))
            ax.set_title(name, fontsize=8)
        figure.supxlabel(x, fontsize=9)
        figure.supylabel(y, fontsize=9)
        save_figure(figure, page)
        paths.append(page)
    return paths


def _panels(count):
    """Return a figure and its axes, which share nothing: layers differ in range."""
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure, (whole,) = new_figure(max(2.3 * columns, 4), max(2.1 * rows, 3))
    whole.remove()
    axes = [figure.add_subplot(rows, columns, i + 1) for i in range(count)]
    for ax in axes:
        ax.spines[['top', 'right']].set_visible(False)
        ax.tick_params(labelsize=6, color='.4')
        ax.locator_params(nbins=4)
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_offset_text().set_size(6)
    return figure, axes


def _scatter(ax, exact, measured):
    exact, measured = exact[:DRAWN], measured[:DRAWN]
    low, high = min(exact.min(), measured.min()), max(exact.max(), measured.max())
    ax.plot([low, high], [low, high], color=GREY, linewidth=.8)
    ax.plot(exact, measured, '.', color=BLUE, markersize=1.5, alpha=.5, rasterized=True)


def _histogram(ax, exact, measured):
    error = measured - exact
    ax.hist(error, bins=41, weights=np.full(len(error), 1 / len(error)), color=BLUE)
    ax.axvline(error.mean(), color=RED, linewidth=.8)


KINDS = {'scatter': (_scatter, 'exact dot product', 'measured'),
         'histogram': (_histogram, 'measured - exact dot product', 'share of the dot products')}


def plot_calibration(calibration: Calibration, path: str | Path) -> None:
    """Draw measured against exact values before and after a calibration, and gain and offset of every column."""
    figure, axes = _panels(4)
    true, *values = np.asarray(calibration.samples, dtype=float)
    for ax, when, value in zip(axes, ('before', 'after'), values, strict=False):
        _scatter(ax, true, value)
        bits = getattr(calibration, f'bits_{when}')
        ax.set_title(f'{when}: R² {getattr(calibration, f"r2_{when}"):.5f}\n'
                     + ('exact' if bits is None else f'{bits:.2f} effective bits'), fontsize=7)
        ax.set_xlabel('exact', fontsize=8)
        ax.set_ylabel('measured', fontsize=8)
    for ax, name, usual in zip(axes[2:], ('gain', 'offset'), (1, 0), strict=True):
        ax.plot(getattr(calibration, name), '.', color=BLUE, markersize=3)
        ax.axhline(usual, color=GREY, linewidth=.8)
        ax.set_xlabel('column', fontsize=8)
        ax.set_ylabel(name, fontsize=8)
    save_figure(figure, path)


def plot_sweep(name: str, points: Sequence[Mapping], path: str | Path, top1_digital: float | None = None,
               top1_float: float | None = None) -> None:
    """Draw accuracy and agreement of predictions against the values of an engine's parameter.

    Numbers stand where they belong on the axis, which is logarithmic where they span more than two decades; what is no
    number stands at equal distances.

    Args:
        name: of the parameter.
        points: with `value`, `top1` and `agreement` (percent); at least one, else ValueError.
        path: file to write.
        top1_digital, top1_float: accuracies in percent that are drawn as lines; None: not known.
    """
    if not points:
        raise ValueError('nothing to plot: expected at least one point')
    figure, (ax,) = new_figure(5, 3.3)
    places, points = _on_axis(ax, name, points)
    ax.plot(places, [point['agreement'] for point in points], 's--', color=GREY, markersize=4, linewidth=1,
            label='same prediction as digital')
    ax.plot(places, [point['top1'] for point in points], 'o-', color=BLUE, markersize=4, linewidth=1.4,
            label='top-1 on the engine')
    for what, top1, line in (('digital', top1_digital, (0, (4, 3))), ('float', top1_float, (0, (1, 2)))):
        if top1 is not None:
            ax.axhline(top1, color='.3', linewidth=1, linestyle=line, label=f'{what} {top1:.2f} %')
    ax.set(xlabel=ENGINE.get(name, name), ylabel='images (%)')
    ax.legend(fontsize=7, frameon=False)
    save_figure(figure, path)


def _on_axis(ax, name, points):
    """Prepare the axis of a sweep; return the places of the points and the points in their order."""
    values = [point['value'] for point in points]
    off = OFF.get(name)  # a number that stands for the absence of the thing, no point of the axis
    if any(isinstance(value, str) for value in values) or off and 0 in values:
        ax.set_xticks(range(len(values)), [off if off and value == 0 else str(value) for value in values])
        return list(range(len(values))), points
    points = sorted(points, key=lambda point: point['value'])
    values = [point['value'] for point in points]
    if values[0] > 0 and values[-1] > 100 * values[0]:
        ax.set_xscale('log')
    elif all(isinstance(value, int) for value in values):
        ax.xaxis.set_major_locator(whole_numbers())
    return values, points
