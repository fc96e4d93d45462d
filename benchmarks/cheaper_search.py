"""Reward against images for the searches of run/searchers/run_cheaper.sh: a table, and OUTPUT/cheaper_search.png.

An image that passes backward counts as two that pass forward. All rewards are those of fine-tuned strategies on the
same images; predictions of a screen are left out.

    python benchmarks/cheaper_search.py save/cheaper
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.record.checkpoint import read_checkpoint  # noqa: E402
from lib.record.plots import SERIES, new_figure, save_figure  # noqa: E402

VARIANTS = {'plain': 'plain agent', 'reuse': 'results kept', 'screen': 'screen', 'warm_start': 'warm start',
            'all': 'all three'}
PLAIN = '#C4C4C4'  # wide and light, below the others
MARKS = (0.25, 0.5, 1.0)  # of the images that the plain agent takes
HEAD = '| search | seeds | episodes | fine-tuned | images | {} | images until the final reward of the plain agent |'


def read_curve(run):
    """Returns of a search: images (episodes,), best reward so far (episodes,), number of episodes with fine-tuning."""
    history = read_checkpoint(run / 'search.pth.tar')['history']
    images = np.array([forward + 2 * backward for forward, backward in (record['images'] for record in history)])
    rewards = np.array([record['reward'] if record['finetuned'] else -np.inf for record in history])
    trained = np.diff([record['images'][1] for record in history], prepend=0) > 0
    return images, np.maximum.accumulate(rewards), trained.sum()


def read_curves(folder):
    """Returns {variant: [curve of each seed]} of the finished searches in a folder."""
    curves = {}
    for name in VARIANTS:
        runs = sorted(run for run in folder.glob(f'*_{name}_seed*') if (run / 'results.json').is_file())
        if runs:
            curves[name] = [read_curve(run) for run in runs]
    return curves


def at(curve, images):
    """Returns the best reward after so many images; NaN before the first episode has ended."""
    index = np.searchsorted(curve[0], images, 'right') - 1
    return curve[1][index] if index >= 0 else np.nan


def until(curve, reward):
    """Returns the images until a reward is reached; infinity where it never is."""
    reached = np.flatnonzero(curve[1] >= reward)
    return curve[0][reached[0]] if len(reached) else np.inf


def spread(values):
    """Returns the mean and the standard error of some numbers as text."""
    values = np.asarray(values, float)
    return f'{values.mean():.3f} +- {values.std(ddof=1) / len(values) ** 0.5:.3f}' if len(values) > 1 \
        else f'{values.mean():.3f}'


def table(curves):
    """Returns the lines of the table."""
    whole = np.mean([curve[0][-1] for curve in curves['plain']])
    goal = np.mean([curve[1][-1] for curve in curves['plain']])
    lines = [HEAD.format(' | '.join(f'best reward after {mark * whole:,.0f}' for mark in MARKS)), '|---' * 8 + '|']
    for name, found in curves.items():
        reached = [until(curve, goal) for curve in found]
        ever = np.isfinite(reached)
        until_text = f'{np.mean(np.array(reached)[ever]):,.0f}' if ever.any() else 'never'
        until_text += '' if ever.all() or not ever.any() else f' ({ever.sum()} of {len(ever)} seeds)'
        cells = (VARIANTS[name], len(found), f'{np.mean([len(curve[0]) for curve in found]):.0f}',
                 f'{np.mean([curve[2] for curve in found]):.0f}', f'{np.mean([curve[0][-1] for curve in found]):,.0f}',
                 *(spread([at(curve, mark * whole) for curve in found]) for mark in MARKS), until_text)
        lines.append(f'| {" | ".join(map(str, cells))} |')
    return lines


def mean_curve(found):
    """Returns images, mean and standard error (None of one seed) of the best reward, as far as all seeds went."""
    grid = np.linspace(max(curve[0][0] for curve in found), min(curve[0][-1] for curve in found), 200)
    values = np.array([[at(curve, images) for images in grid] for curve in found])
    return grid, values.mean(0), values.std(0, ddof=1) / len(found) ** 0.5 if len(found) > 1 else None


def plot(means, path):
    """Draws the best reward against images, a panel for each other search, over the line of the plain agent.

    Args:
        means: {variant: (images, mean, standard error or None)}; the plain agent is one of them.
        path: file to write.
    """
    others = [name for name in means if name != 'plain'] or ['plain']
    columns = min(len(others), 2)
    rows = -(-len(others) // columns)
    figure, axes = new_figure(1 + 3.4 * columns, 0.8 + 2.3 * rows, rows, columns)
    marker = '.' if max(len(images) for images, *_ in means.values()) < 30 else None
    for number, (ax, name) in enumerate(zip(axes, others, strict=False)):
        for each, color, width in (('plain', PLAIN, 4), (name, SERIES[number][0], 1.6)):
            images, mean, error = (None if part is None else np.asarray(part) for part in means[each])
            ax.plot(images / 1000, mean, color=color, linewidth=width, marker=marker, markersize=4 * width**0.5,
                    label=VARIANTS[each])
            if error is not None:
                ax.fill_between(images / 1000, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)
        ax.set_title(VARIANTS[name], loc='left', fontsize=9, color=SERIES[number][0])
        ax.sharey(axes[0])
    for ax in axes[len(others):]:
        ax.set_visible(False)
    figure.supxlabel('thousand images (each backward pass counts as two)', fontsize=9)
    figure.supylabel('best reward so far', fontsize=9)
    handles = [Line2D([], [], color=PLAIN, linewidth=4, label=VARIANTS['plain'])]
    if any(error is not None for *_, error in means.values()):
        handles.append(Patch(color='.5', alpha=0.3, label='mean ± standard error over the seeds'))
    figure.legend(handles=handles, loc='outside upper right', ncols=2, frameon=False, fontsize=8)
    save_figure(figure, path)


def make_figure_parser():
    """Returns the parser of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', type=Path, help='OUTPUT of run/searchers/run_cheaper.sh')
    return parser


def main(folder):
    """Prints the table and draws the figure."""
    curves = read_curves(folder)
    if 'plain' not in curves:
        sys.exit(f'{folder} has no finished search of the plain agent: run bash run/searchers/run_cheaper.sh')
    print('\n'.join(table(curves)))
    plot({name: mean_curve(found) for name, found in curves.items()}, folder / 'cheaper_search.png')


if __name__ == '__main__':
    main(make_figure_parser().parse_args().folder)
