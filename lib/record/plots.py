"""The figures of a run, ready for a paper: bits per layer, the course of a search, accuracy against budget, training.

Every function takes plain data and a path; the suffix of the path decides the format (.png, .pdf, .svg). Figures are
made without pyplot, so that neither the backend nor the settings of the caller's matplotlib change.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lib.record.files import atomic_path

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK, RED, SKY, GREY = '#0072B2', '#E69F00', '#009E73', '#CC79A7', '#D55E00', '#56B4E9', '#8C8C8C'
BLACK, VIOLET = '#000000', '#5B3A8C'
KIND_COLORS = {'conv': BLUE, 'depthwise': ORANGE, 'pointwise': GREEN, 'linear': PINK, 'matmul': GREY}
SERIES = [(BLUE, 'o'), (RED, 's'), (GREEN, '^'), (PINK, 'D'), (ORANGE, 'v'), (SKY, 'P'),  # colour, marker
          (BLACK, 'X'), (VIOLET, '<'), (GREY, 'p')]
IMAGE_BITS = 8  # an input that is left alone (a = -1) counts as the 8-bit image it is
MAX_NAMES = 64  # more layer names than this do not fit under one figure


# ---- bits per layer

def plot_strategy(strategy: list, kinds: list[str], names: list[str], path: str | Path, title: str | None = None
                  ) -> None:
    """Draw the bits of every layer: weights upwards and, for pairs, activations downwards.

    Args:
        strategy: ints (weight bits) or pairs [w_bit, a_bit], one per layer; a_bit -1 is drawn hatched at 8 bits.
        kinds: 'conv', 'depthwise', 'pointwise', 'linear' or 'matmul' per layer, decides the colour; others are grey.

    Raises:
        ValueError: the three lists differ in length, or are empty.
    """
    if not len(strategy) == len(kinds) == len(names) > 0:
        raise ValueError(f'expected one kind and one name per layer, got {len(strategy)} entries, {len(kinds)} kinds '
                         f'and {len(names)} names')
    pairs = any(isinstance(entry, (list, tuple)) for entry in strategy)
    width, name_height = min(max(.2 * len(strategy) + 1.2, 5), 13), .05 * max(map(len, names))
    figure, (ax,) = new_figure(width, (3.8 if pairs else 2.5) + name_height)
    for i, (entry, kind) in enumerate(zip(strategy, kinds, strict=True)):
        w_bit, a_bit = entry if isinstance(entry, (list, tuple)) else (entry, None)
        color = KIND_COLORS.get(kind, GREY)
        _draw_bits(ax, i, w_bit, color)
        if a_bit is not None:
            _draw_bits(ax, i, a_bit, color, direction=-1)
    _label_bits(ax, pairs)
    label_layers(ax, names)
    _strategy_legend(figure, strategy, kinds, rows=math.ceil(6 / width))
    if title:
        ax.set_title(title, loc='left', fontsize=10)
    save_figure(figure, path)


def _draw_bits(ax, x, bits, color, direction=1):
    height = IMAGE_BITS if bits == -1 else bits
    style = {'facecolor': 'white', 'hatch': '/////', 'edgecolor': color} if bits == -1 else \
        {'facecolor': color, 'edgecolor': color, 'alpha': 1 if direction > 0 else .6}
    ax.bar(x, direction * height, width=.78, linewidth=.6, **style)
    ax.annotate('–' if bits == -1 else f'{bits}', (x, direction * height), (0, 2 * direction), fontsize=6.5,
                textcoords='offset points', ha='center', va='bottom' if direction > 0 else 'top', color='.25')


def _label_bits(ax, pairs):
    low, high = ax.get_ylim()
    top = max(high, -low, IMAGE_BITS) + .9
    ax.set_ylim(-top if pairs else 0, top)
    ticks = range(-8, 9, 2) if pairs else range(0, int(top) + 1, 2)
    ax.set_yticks(ticks, [str(abs(tick)) for tick in ticks])
    if not pairs:
        ax.set_ylabel('weight bits')
        return
    ax.axhline(0, color='.2', linewidth=.8)
    for text, y in (('activation bits', .25), ('weight bits', .75)):
        ax.annotate(text, (0, y), (-28, 0), xycoords='axes fraction', textcoords='offset points', rotation=90,
                    ha='center', va='center', fontsize=9)


def label_layers(ax: Axes, names: Sequence[str]) -> None:
    """Write the names of the layers, or some of many, below an axis with one place for each."""
    step = math.ceil(len(names) / MAX_NAMES)
    positions = range(0, len(names), step)
    ax.set_xticks(positions, [names[i] for i in positions], rotation=90, fontsize=6.5 if len(names) > 20 else 8)
    ax.tick_params(axis='x', length=0, pad=1)
    ax.set_xlim(-.7, len(names) - .3)
    ax.grid(False, axis='x')


def _strategy_legend(figure, strategy, kinds, rows):
    order = sorted(set(kinds), key=lambda kind: [*KIND_COLORS, kind].index(kind))
    handles = [Patch(color=KIND_COLORS.get(kind, GREY), label=kind) for kind in order]
    if any(isinstance(entry, (list, tuple)) and entry[1] == -1 for entry in strategy):
        handles.append(Patch(facecolor='white', edgecolor='.4', hatch='/////', label='input left alone (8-bit image)'))
    figure.legend(handles=handles, loc='outside lower center', ncols=math.ceil(len(handles) / rows), frameon=False,
                  fontsize=8, handlelength=1.2, columnspacing=1.4)


# ---- the course of a search

def plot_search(episodes: list[dict], path: str | Path, warmup: int | None, float_accuracy: float | None = None
                ) -> None:
    """Draw reward and accuracy over the episodes of a search, with running best and warm-up.

    Args:
        episodes: dicts with `episode`, `reward`, `accuracy` (percent) and `best_reward`, in order.
        warmup: last episode that acted at random, or None.
    """
    number, reward, accuracy, best = (_column(episodes, key) for key in
                                      ('episode', 'reward', 'accuracy', 'best_reward'))
    figure, (top, bottom) = new_figure(7, 4.6, rows=2)
    _warmup_band((top, bottom), number, warmup)
    for ax, values in ((top, reward), (bottom, accuracy)):
        ax.plot(number, values, '.', color=SKY, markersize=4, label='episode')
        ax.plot(number, _running_mean(values), color=BLUE, linewidth=1.2, label='mean of the last 20')
    top.step(number, best, where='post', color=RED, linewidth=1.5, label='best so far')
    bottom.step(number, _accuracy_of_best(reward, accuracy), where='post', color=RED, linewidth=1.5)
    if float_accuracy is not None:
        float_line(bottom, float_accuracy)
    top.set_ylabel('reward')
    bottom.set_ylabel('accuracy (%)')
    bottom.set_xlabel('episode')
    bottom.xaxis.set_major_locator(whole_numbers())
    figure.legend(*top.get_legend_handles_labels(), loc='outside upper center', ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_search_cloud(episodes: list[dict], path: str | Path, float_accuracy: float | None = None,
                      xlabel: str = 'cost relative to its reference') -> None:
    """Draw every episode of a search as a point, accuracy against budget, coloured by episode.

    Args:
        episodes: dicts with `episode`, `reward`, `ratio` and `accuracy` (percent).
    """
    number, ratio, accuracy, reward = (_column(episodes, key) for key in ('episode', 'ratio', 'accuracy', 'reward'))
    figure, (ax,) = new_figure(5.6, 3.8)
    points = ax.scatter(ratio, accuracy, c=number, cmap='cividis', s=14, linewidths=0, zorder=2)
    best = int(np.nanargmax(reward))
    ax.plot(ratio[best], accuracy[best], '*', color=RED, markersize=15, markeredgecolor='white', zorder=3,
            label=f'best reward: {accuracy[best]:.2f} % at {ratio[best]:.4f}')
    if float_accuracy is not None:
        float_line(ax, float_accuracy)
    bar = figure.colorbar(points, ax=ax, pad=.02, ticks=whole_numbers())
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, color='.4')
    bar.set_label('episode', fontsize=9)
    ax.set_xlabel(xlabel)
    ax.set_ylabel('accuracy (%)')
    figure.legend(*ax.get_legend_handles_labels(), loc='outside upper center', frameon=False, fontsize=8)
    save_figure(figure, path)


def _warmup_band(axes, number, warmup):
    for ax in axes:
        ax.set_xlim(number[0] - .5, number[-1] + .5)
    if warmup is None:
        return
    end = min(warmup + .5, number[-1] + .5)
    for ax in axes:
        ax.axvspan(number[0] - .5, end, color='.93', linewidth=0, zorder=0)
    axes[0].annotate('warm-up', (number[0] - .5, 1), (0, 3), xycoords=axes[0].get_xaxis_transform(),
                     textcoords='offset points', fontsize=7, color='.35', va='bottom')


def _running_mean(values, window=20):
    sums = np.cumsum(np.concatenate([[0.], values]))
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)
    return (sums[end] - sums[start]) / (end - start)


def _accuracy_of_best(reward, accuracy):
    best, result = 0, []
    for i, value in enumerate(reward):
        best = i if value > reward[best] else best
        result.append(accuracy[best])
    return result


# ---- accuracy against budget

def plot_budget(points: list[dict], path: str | Path, float_accuracy: float | None = None,
                xlabel: str = 'cost relative to its reference', curve: Sequence[dict] = ()) -> None:
    """Draw accuracy against budget, one line per group, for instance uniform against searched strategies.

    Args:
        points: dicts with `label` (written beside the point; may be empty), `ratio`, `accuracy` (percent), `group`.
        curve: more points, of one group, to compare with: a dashed grey line.
    """
    _column(points, 'ratio')
    figure, (ax,) = new_figure(5.6, 3.8)
    groups = dict.fromkeys(point['group'] for point in points)
    looks = {group: (*SERIES[i % len(SERIES)], '-') for i, group in enumerate(groups)}
    looks |= {point['group']: (GREY, '.', '--') for point in curve}
    for i, (group, (color, marker, style)) in enumerate(looks.items()):
        members = sorted((p for p in (*points, *curve) if p['group'] == group), key=lambda p: p['ratio'])
        ax.plot(_column(members, 'ratio'), _column(members, 'accuracy'), color=color, marker=marker, markersize=5.5,
                linestyle=style, linewidth=1.3, label=group, zorder=2 if style == '--' else 3)
        for p in (p for p in members if p['label']):  # above the points of one line, below those of the next
            ax.annotate(p['label'], (p['ratio'], p['accuracy']), (0, 5 - 10 * (i % 2)), textcoords='offset points',
                        fontsize=7, color=color, ha='center', va=('bottom', 'top')[i % 2])
    if float_accuracy is not None:
        float_line(ax, float_accuracy)
    ax.margins(x=.25, y=.12)  # the name of the float line is at the left
    ax.set_xlabel(xlabel)
    ax.set_ylabel('accuracy (%)')
    figure.legend(*ax.get_legend_handles_labels(), loc='outside upper center', frameon=False, fontsize=8,
                  ncols=3 if sum(map(len, looks)) < 60 else 2)
    save_figure(figure, path)


# ---- training

def plot_training(columns: dict[str, list], path: str | Path) -> None:
    """Draw loss and accuracy of training and validation against the epoch.

    Args:
        columns: the columns of `log.txt`, {'Train Loss': [...], 'Valid Loss': [...], 'Train Acc.': [...],
            'Valid Acc.': [...]}, one number per epoch; others are ignored.
    """
    if not len(columns['Train Loss']):
        raise ValueError('nothing to plot: expected at least one epoch')
    figure, axes = new_figure(8, 3.2, columns=2)
    for ax, name, label in ((axes[0], 'Loss', 'loss'), (axes[1], 'Acc.', 'accuracy (%)')):
        for kind, color, style in (('Train', BLUE, '--'), ('Valid', RED, '-')):
            values = np.asarray(columns[f'{kind} {name}'], dtype=float)
            epochs = np.arange(1, len(values) + 1)
            known = np.isfinite(values)  # not every epoch need be validated
            ax.plot(epochs[known], values[known], style, color=color, linewidth=1.4,
                    marker='.' if len(values) < 30 else None, label={'Train': 'training', 'Valid': 'validation'}[kind])
        ax.set_xlabel('epoch')
        ax.set_ylabel(label)
        ax.xaxis.set_major_locator(whole_numbers())
    best = int(np.nanargmax(values))
    axes[1].plot(epochs[best], values[best], '*', color=RED, markersize=11, markeredgecolor='white', zorder=3,
                 label=f'best: {values[best]:.2f} % in epoch {epochs[best]}')
    figure.legend(*axes[1].get_legend_handles_labels(), loc='outside upper center', ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


# ---- shared

def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, np.ndarray]:
    """Return a figure of that many inches and its axes in one look."""
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=rows > 1, squeeze=False).ravel()
    for ax in axes:
        ax.spines[['top', 'right']].set_visible(False)
        ax.spines[['left', 'bottom']].set_color('.4')
        ax.grid(color='.9', linewidth=.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=8, color='.4')
        ax.xaxis.label.set_size(9)
        ax.yaxis.label.set_size(9)
    return figure, axes


def float_line(ax: Axes, accuracy: float) -> None:
    """Draw the accuracy of the float network, in percent, as a line."""
    ax.axhline(accuracy, color='.3', linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ax.annotate(f'float {accuracy:.2f} %', (0, accuracy), (4, 2), xycoords=ax.get_yaxis_transform(),
                textcoords='offset points', va='bottom', fontsize=7, color='.3')


def whole_numbers() -> MaxNLocator:
    """Return the places of ticks on an axis that counts."""
    return MaxNLocator(integer=True, steps=[1, 2, 5, 10], min_n_ticks=1)


def _column(rows, key):
    if not rows:
        raise ValueError('nothing to plot: expected at least one point')
    return np.array([row[key] for row in rows], dtype=float)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure atomically, in the format of its suffix."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=temporary.suffix[1:] or 'png')
