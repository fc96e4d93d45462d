"""A figure of sensitivities: the bits of every layer, coloured by how much they raise the loss."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm

from lib.record.plots import label_layers, new_figure, save_figure

DECADES = 6  # that the colours span at most


def plot_sensitivity(sides: dict[str, np.ndarray], names: Sequence[str], path: str | Path, *, what: str,
                     title: str | None = None) -> None:
    """Draw, a panel a side, a cell for every layer and every number of bits, coloured by its rise of the loss.

    Args:
        sides: {'weight bits': (layers, 8) rises at 1..8 bits}; nan: there is no choice, or it was not measured.
        names: of the layers.
        path: file to write.
        what: the rise is of, for the scale of colours.
        title: of the figure.

    Raises:
        ValueError: no side has a number.
    """
    values = np.concatenate([rises[np.isfinite(rises)] for rises in sides.values()])
    if not len(values):
        raise ValueError('nothing to plot: expected at least one sensitivity')
    width, name_height = min(max(.2 * len(names) + 2.2, 5), 13), .05 * max(map(len, names))
    figure, axes = new_figure(width, 0.6 + 1.9 * len(sides) + name_height, rows=len(sides))
    highest = values.max() if values.max() > 0 else 1.0
    lowest = max(values[values > 0].min(initial=highest / 2), highest * 10.0 ** -DECADES)
    for ax, (label, rises) in zip(axes, sides.items(), strict=True):
        bits = np.flatnonzero(np.isfinite(rises).any(0)) + 1
        cells = ax.pcolormesh(np.arange(len(names) + 1) - .5, np.arange(.5, rises.shape[1] + 1),
                              np.ma.masked_invalid(np.clip(rises, lowest, None)).T, cmap='viridis',
                              norm=LogNorm(lowest, highest))
        ax.set_ylim(bits.min() - .5, bits.max() + .5)
        ax.set_yticks(range(bits.min(), bits.max() + 1))
        ax.set_ylabel(label)
        ax.grid(False)
    label_layers(axes[-1], names)
    bar = figure.colorbar(cells, ax=axes.tolist(), pad=.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, color='.4')
    bar.set_label(what, fontsize=9)
    if title:
        axes[0].set_title(title, loc='left', fontsize=10)
    save_figure(figure, path)
