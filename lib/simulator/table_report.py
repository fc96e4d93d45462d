"""What a cost table says: lines that a person can read, heat maps, and the layers under the roofline."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D

from lib.record.plots import KIND_COLORS, new_figure, save_figure
from lib.record.words import cost_words
from lib.simulator.cost import MAX_BIT, CostTable
from lib.simulator.hardware import NANOJOULE, Hardware, LayerCost
from lib.simulator.layer import LayerRecord, ends

PAIRS = ((8, 8), (4, 4), (2, 2))
MAX_MAPS = 60  # layers in one figure; the most expensive ones are drawn
# Weight bits, activation bits, marker, line: in no colour of a kind of layer, and both seen where they coincide.
ROOFS = ((8, 8, 'o', {'linestyle': '-', 'color': '.72', 'linewidth': 3.5}),
         (4, 4, 's', {'linestyle': '--', 'color': '.2', 'linewidth': 1.2}))
Cells = Sequence[Sequence[Sequence[LayerCost]]]  # of `Hardware.cells`


def summarize_cells(table: CostTable, cells: Cells, layers: Sequence[LayerRecord], hardware: Hardware) -> list[str]:
    """Return the lines that describe a table made of the cells of a hardware model."""
    lines = [f'{hardware.name} ({hardware.backend}), batch {hardware.batch}: {hardware.status}']
    lines += [hardware.resources(layers)] if hardware.resources(layers) else []
    lines.append('')
    convert = _converter(table, hardware)
    lines += _totals(table, layers, convert) + [''] + _shares(table, layers)
    bounds = [layer_cells[7][7].bound for layer_cells in cells]
    if set(bounds) - {'', 'measured'}:
        lines += ['', *_by_bound(table, layers, bounds)]
    return [*lines, '', f'A cell [l, w - 1, a - 1] is {table.meaning}.']


def summarize_table(table: CostTable, layers: Sequence[LayerRecord]) -> list[str]:
    """Return the lines that describe a table of the user's own numbers."""
    return ['', *_totals(table, layers, None), '', *_shares(table, layers), '',
            f'A cell [l, w - 1, a - 1] is {table.meaning}.']


def _converter(table, hardware) -> Callable[[float], str] | None:
    """Return a function from the unit of the table to a text in ms or mJ, None where it is that already."""
    if table.unit == NANOJOULE:
        return lambda value: f'{value / 1e6:,.4g} mJ'
    return None if table.unit == 'ms' else lambda value: _milliseconds(hardware.milliseconds(value))


def _milliseconds(value) -> str:
    return f'{value:,.3f} ms' if value >= 0.1 else f'{value:.3g} ms'


def _totals(table, layers, convert) -> list[str]:
    lines = [f'{table.name + ", " + table.unit:28}' + ''.join(f'{f"{w}/{a} bits":>30}' for w, a in PAIRS)]
    inner = [index for index in range(len(layers)) if index not in sum(ends(layers), ())]
    for title, rows in (('all layers', slice(None)), ('without first and last', inner)):
        texts = []
        for w_bit, a_bit in PAIRS:
            cost = table.table[rows, w_bit - 1, a_bit - 1].sum().item()
            texts.append(f'{cost:,}' if isinstance(cost, int) else f'{cost:,.6g}')
            texts[-1] += f' = {convert(cost)}' if convert else ''
        lines.append(f'{title:28}' + ''.join(f'{text:>30}' for text in texts))
    return lines


def _shares(table, layers) -> list[str]:
    groups = defaultdict(list)
    for index, layer in enumerate(layers):
        groups[layer.type].append(index)
    macs = sum(layer.macs for layer in layers) or 1
    lines = [f'{"share by type of layer":28}{"operations":>12}{"cost at 8/8":>14}{"at 4/4":>10}'
             f'{"8 -> 4 weight bits":>22}{"8 -> 4 activation bits":>26}']
    for kind, indices in sorted(groups.items()):
        at = {(w, a): table.table[indices, w - 1, a - 1].sum() for w in (4, 8) for a in (4, 8)}
        shares = [sum(layers[i].macs for i in indices) / macs] + [
            at[b, b] / max(table.table[:, b - 1, b - 1].sum(), 1e-300) for b in (8, 4)]
        saved = [1 - at[pair] / at[8, 8] if at[8, 8] else 0 for pair in ((4, 8), (8, 4))]
        lines.append(f'{f"{len(indices)} {kind}":28}{shares[0]:>11.1%} {shares[1]:>13.1%} {shares[2]:>9.1%} '
                     f'{_saving(saved[0]):>22}{_saving(saved[1]):>26}')
    return lines


def _saving(part) -> str:
    percent = round(100 * part)
    return f'saves {percent}%' if percent >= 0 else f'costs {-percent}% more'


def _by_bound(table, layers, bounds) -> list[str]:
    total = table.table[:, -1, -1].sum()
    lines = [f'{"what binds a layer at 8/8":28}{"layers":>12}{"cost":>14}']
    for bound in sorted(set(bounds), key=bounds.count, reverse=True):
        indices = [index for index, other in enumerate(bounds) if other == bound]
        names = ', '.join(layers[index].name for index in indices[:4]) + (', ...' if len(indices) > 4 else '')
        lines.append(f'{bound:28}{len(indices):>12}{table.table[indices, 7, 7].sum() / total:>13.1%}   {names}')
    return lines


# ---- figures

def plot_heat_maps(table: CostTable, path: str | Path) -> None:
    """Draw the cost of every layer over weight bits (up) and activation bits (right), relative to its 8/8 bits.

    Layers with equal rows share a map, marked with how many they are; its title is their share of the 8/8 cost.
    """
    groups = _equal_rows(table)[:MAX_MAPS]
    columns = min(len(groups), 10)
    rows = math.ceil(len(groups) / columns)
    figure, axes = new_figure(1.25 * columns + 1.4, 1.45 * rows + 0.9, rows, columns)
    maps = [table.table[indices[0]] / (table.table[indices[0], -1, -1] or 1) for indices in groups]
    highest = max(1, *(cells.max() for cells in maps))  # fewer bits can cost more
    image = None
    for place, (ax, indices, cells) in enumerate(zip(axes, groups, maps, strict=False)):
        image = ax.imshow(cells, origin='lower', cmap='viridis', vmin=0, vmax=highest,
                          extent=(0.5, MAX_BIT + 0.5, 0.5, MAX_BIT + 0.5))
        share = table.table[indices, -1, -1].sum() / (table.table[:, -1, -1].sum() or 1)
        ax.set_title(_map_title(table, indices, share), fontsize=6.5, color='.25')
        lowest = place + columns >= len(groups)  # of its column
        ax.set_xticks([2, 4, 6, 8])
        ax.set_yticks([] if place % columns else [2, 4, 6, 8])
        ax.tick_params(labelsize=6, length=1.5 if lowest else 0, labelbottom=lowest)
        ax.grid(False)
    for ax in axes[len(groups):]:
        ax.set_visible(False)
    figure.supxlabel('activation bits', fontsize=9)
    figure.supylabel('weight bits', fontsize=9)
    what = cost_words(table.name, relative=False)
    figure.suptitle(f'{what} of each layer (above it: its share of the network at 8/8 bits)', fontsize=10)
    bar = figure.colorbar(image, ax=list(axes), fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label('relative to 8/8 bits', fontsize=8)
    save_figure(figure, path)


def _equal_rows(table) -> list[list[int]]:
    """Return lists of the layers with equal cells, the most expensive first."""
    groups = {}
    for index, cells in enumerate(table.table):
        groups.setdefault(cells.tobytes(), []).append(index)
    return sorted(groups.values(), key=lambda indices: (-table.table[indices, -1, -1].sum(), indices))


def _map_title(table, indices, share) -> str:
    name = (table.layer_names or [str(i) for i in range(table.num_layers)])[indices[0]]
    name = name if len(name) <= 18 else '…' + name[-17:]
    return f'{name}{f" ×{len(indices)}" if len(indices) > 1 else ""}\n{share:.1%}'


def plot_roofline(cells: Cells, layers: Sequence[LayerRecord], hardware: Hardware, path: str | Path) -> None:
    """Draw the layers as points under the rooflines of 8/8 and 4/4 bits: operations per byte against their rate.

    Where the hardware has no peak or no bandwidth the roof is left out.
    """
    figure, (ax,) = new_figure(6.4, 4.4)
    handles = []
    intensities = []
    for w_bit, a_bit, marker, line in ROOFS:
        points = [_point(layer_cells[w_bit - 1][a_bit - 1], layer, hardware)
                  for layer_cells, layer in zip(cells, layers, strict=True)]
        intensities += [x for x, _ in points if x]
        for (x, y), layer in zip(points, layers, strict=True):
            if x and y:
                hollow = 'none' if w_bit == 4 else KIND_COLORS[layer.type]
                ax.plot(x, y, marker, markersize=4.5, color=KIND_COLORS[layer.type], markerfacecolor=hollow, alpha=.8)
        handles.append(Line2D([], [], marker=marker, label=f'{w_bit}/{a_bit} bits', markeredgecolor='.2',
                              markerfacecolor='none' if w_bit == 4 else '.2', markersize=4.5, **line))
    for w_bit, a_bit, _, line in ROOFS:
        _draw_roof(ax, hardware, w_bit, a_bit, intensities, line)
    ax.set_xscale('log')
    ax.set_yscale('log')
    ax.set_xlabel('multiply-accumulates per byte of memory traffic')
    ax.set_ylabel('multiply-accumulates per second (10⁹)')
    ax.set_title(f'{hardware.name}, batch {hardware.batch}', loc='left', fontsize=10)
    kinds = sorted({layer.type for layer in layers}, key=list(KIND_COLORS).index)
    handles += [Line2D([], [], color=KIND_COLORS[kind], marker='o', linestyle='', label=kind) for kind in kinds]
    figure.legend(handles=handles, loc='outside lower center', ncols=len(handles), frameon=False, fontsize=8)
    save_figure(figure, path)


def _point(cell, layer, hardware) -> tuple[float | None, float | None]:
    """Return (multiply-accumulates per byte, 10^9 multiply-accumulates per second) of a layer."""
    macs = layer.macs * hardware.batch
    seconds = hardware.milliseconds(cell.latency) / 1e3
    return (macs / (cell.traffic_bits / 8) if cell.traffic_bits else None), (macs / seconds / 1e9 if seconds else None)


def _draw_roof(ax, hardware, w_bit, a_bit, intensities, line) -> None:
    peak, bandwidth = hardware.peak_macs(w_bit, a_bit), hardware.memory_bandwidth()
    if intensities and (peak or bandwidth):
        x = np.geomspace(min(intensities) / 2, max(intensities) * 2, 200)
        roof = np.minimum(x * (bandwidth or np.inf), peak or np.inf)
        ax.plot(x, roof / 1e9, zorder=1, **line)


def plot_matrix(ratios: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str],
                path: str | Path) -> None:
    """Draw the cost of strategies on machines, each column coloured relative to its cheapest strategy.

    Args:
        ratios: cost / reference, one list per strategy with one number per machine.
        rows: names of the strategies.
        columns: names of costs, such as `edge_latency`.
        path: file to write.
    """
    values = np.array(ratios)
    relative = values / values.min(axis=0)
    figure, (ax,) = new_figure(2.2 + 1.6 * len(columns), 1.3 + 0.75 * len(rows))
    image = ax.imshow(relative, cmap='viridis_r', vmin=1, vmax=max(relative.max(), 1.01), aspect='auto')
    for (row, column), value in np.ndenumerate(values):
        dark = relative[row, column] > (1 + relative.max()) / 2
        ax.text(column, row, f'{value:.3f}\n×{relative[row, column]:.2f}', ha='center', va='center', fontsize=9,
                color='white' if dark else 'black')
    ax.set_xticks(range(len(columns)), [cost_words(name).replace(' relative', '\nrelative') for name in columns])
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xlabel('what a strategy costs')
    ax.set_ylabel('strategy')
    ax.grid(False)
    bar = figure.colorbar(image)
    bar.ax.tick_params(labelsize=7)
    bar.set_label('times the cheapest of the column', fontsize=9)
    save_figure(figure, path)
