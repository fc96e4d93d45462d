"""Draws HAQ-Overview.png, the figure of the method: `python docs/draw_overview.py`."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

# Okabe and Ito's palette, as in lib/record/plots.py.
BLUE, ORANGE, GREEN, PINK, RED = '#0072B2', '#E69F00', '#009E73', '#CC79A7', '#D55E00'
INK, SOFT, LINE, PANEL = '#222222', '#5A5A5A', '#9A9A9A', '#F5F6F8'
COLORS = {'conv': BLUE, 'depthwise': ORANGE, 'pointwise': GREEN, 'linear': PINK}
LAYERS = ['conv', 'depthwise', 'pointwise', 'pointwise', 'depthwise', None, 'pointwise', 'linear']
CURRENT = 4  # the layer whose bits are being chosen
WIDTH, HEIGHT = 100, 64  # one unit is a tenth of an inch


def main():
    figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), facecolor='white')
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()
    draw_frames(ax)
    draw_network(ax)
    draw_agent(ax)
    draw_wall(ax)
    draw_evaluation(ax)
    draw_deployment(ax)
    figure.savefig(Path(__file__).with_name('HAQ-Overview.png'), dpi=150)


# ---- the parts

def draw_frames(ax):
    for y, height, text in ((16.5, 46.5, 'SEARCH   one episode = one strategy, 600 episodes'),
                            (1, 13.5, 'AFTERWARDS')):
        box(ax, 1, y, 98, height, face=PANEL, edge='#E1E4E8', radius=1.2)
        write(ax, 2.6, y + height - 1.9, text, size=7.5, color=SOFT, ha='left', weight='bold')


def draw_network(ax):
    x, width, height, step, top = 3.4, 12.8, 3.3, 4.35, 52.3
    write(ax, x + width / 2, 57.6, 'Float network', weight='bold')
    for i, kind in enumerate(LAYERS):
        y = top - i * step
        if kind is None:
            write(ax, x + width / 2, y + height / 2, '⋮', size=13, color=SOFT)
            continue
        current = i == CURRENT
        box(ax, x, y, width, height, face=COLORS[kind], edge=INK if current else 'none', lw=2.2, radius=.5)
        write(ax, x + width / 2, y + height / 2, kind, size=8, weight='bold',
              color='white' if kind in ('conv', 'pointwise') else INK)
    y = top - CURRENT * step + height / 2
    bend(ax, (x + width + .2, y), (18.6, y), (18.6, 50), (28.6, 50))
    write(ax, 19.6, 51.4, 'state $s_l$', size=8.5, ha='left')
    write(ax, 19.6, 48.8, 'kind, channels,\nstride, kernel,\nweights, input,\nindex, last bits', size=6.8,
          color=SOFT, ha='left', va='top')


def draw_agent(ax):
    box(ax, 28.6, 38.5, 28.4, 20.5)
    write(ax, 42.8, 56.9, 'DDPG agent', weight='bold')
    draw_mlp(ax, 31.6, 45.3, (3, 4, 4, 1), BLUE)
    draw_mlp(ax, 45.1, 45.3, (4, 4, 4, 1), PINK)
    write(ax, 36.1, 43.1, r'actor  $a = \mu(s)$', size=8)
    write(ax, 49.6, 43.1, 'critic  $Q(s, a)$', size=8)
    write(ax, 42.8, 40.4, 'explores by a truncated normal whose width decays', size=6.8, color=SOFT)
    arrow(ax, (42.8, 38.5), (42.8, 33.2))
    write(ax, 43.9, 35.9, r'action $a_l \in [0, 1]$ $\rightarrow$ bits $b_l$', size=8, ha='left')
    write(ax, 41.7, 35.9, 'layer by layer', size=6.8, color=SOFT, ha='right')


def draw_mlp(ax, x, y, sizes, color, width=9., height=9.4):
    """A little network: one column of circles per layer."""
    columns = [[(x + width * i / (len(sizes) - 1), y + height * (j + .5) / n) for j in range(n)]
               for i, n in enumerate(sizes)]
    for left, right in zip(columns[:-1], columns[1:], strict=True):
        for one in left:
            for two in right:
                ax.plot(*zip(one, two, strict=True), color=color, alpha=.3, linewidth=.7, zorder=2)
    for column in columns:
        for centre in column:
            ax.add_patch(Circle(centre, .72, facecolor='white', edgecolor=color, linewidth=1.3, zorder=3))


def draw_wall(ax):
    box(ax, 28.6, 18, 28.4, 15.2)
    write(ax, 42.8, 31.2, 'Budget wall', weight='bold')
    draw_cost_table(ax, 32.2, 20.7, side=7.6)
    write(ax, 42.6, 28.4, r'cost $\leq$ ratio $\times$ reference?', size=7.3, ha='left', va='top')
    write(ax, 42.6, 26, 'while it is not: one bit\noff each layer, from the\nlast to the first', size=7, color=SOFT,
          ha='left', va='top')
    bend(ax, (57, 22.4), (66.8, 22.4))
    write(ax, 61.7, 23.5, 'strategy', size=8, va='bottom')
    write(ax, 61.7, 21.4, 'within\nbudget', size=6.8, color=SOFT, va='top')


def draw_cost_table(ax, x, y, side):
    """The lookup table of the hardware: cost of a layer by weight and activation bits, one sheet per layer."""
    for shift in (1.5, .75):
        ax.add_patch(Rectangle((x + shift, y + shift), side, side, facecolor='#DCE9F2', edgecolor='white', linewidth=1))
    bits = np.arange(1, 9)
    shades = .12 + .88 * np.outer(bits, bits) / 64  # a bit-serial array: cost in proportion to w * a
    cell = side / 8
    for i, j in np.ndindex(8, 8):
        ax.add_patch(Rectangle((x + i * cell, y + j * cell), cell, cell, facecolor=BLUE, alpha=shades[i, j], zorder=2.1,
                               linewidth=0))
    ax.add_patch(Rectangle((x, y), side, side, facecolor='white', edgecolor='white', linewidth=1, zorder=2))
    write(ax, x + side / 2, y - 1.3, 'weight bits', size=6.5, color=SOFT)
    write(ax, x - 1.4, y + side / 2, 'activation bits', size=6.5, color=SOFT, rotation=90)


def draw_evaluation(ax):
    box(ax, 66.8, 18, 30.4, 20)
    write(ax, 82, 36, 'Quantize', weight='bold')
    draw_codebook(ax, 69.2, 23.4)
    draw_staircase(ax, 84.3, 23.4)
    write(ax, 74.7, 20.6, 'K-means codebook\n(model size)', size=7, color=SOFT)
    write(ax, 89.6, 20.6, 'linear, with activations\n(latency)', size=7, color=SOFT)
    arrow(ax, (82, 38), (82, 41.6))
    box(ax, 66.8, 41.6, 30.4, 6.6)
    write(ax, 82, 46.1, 'Short fine-tuning', weight='bold')
    write(ax, 82, 43.5, '1 epoch from the float weights, fixed subset', size=7, color=SOFT)
    arrow(ax, (82, 48.2), (82, 52.4))
    box(ax, 66.8, 52.4, 30.4, 6.6)
    write(ax, 82, 56.9, 'Validation', weight='bold')
    write(ax, 82, 54.3, 'accuracy on held-out images', size=7, color=SOFT)
    arrow(ax, (66.8, 55.7), (57, 55.7), color=RED)
    write(ax, 61.9, 56.6, 'reward', size=8, color=RED, va='bottom')
    write(ax, 61.9, 54.7, '0.1 (accuracy −\nthat of float)', size=6.8, color=RED, va='top')


def draw_codebook(ax, x, y, width=11., height=10.):
    """A histogram of weights with the centroids that replace them."""
    grid = np.linspace(-3, 3, 31)
    density = np.exp(-grid ** 2 / 2) * (1 + .06 * np.sin(9 * grid))
    step = width / len(grid)
    for i, value in enumerate(density / density.max()):
        ax.add_patch(Rectangle((x + i * step, y), step * .8, value * height * .8, facecolor='#C9CED6', linewidth=0))
    for centre in (-1.5, -.45, .45, 1.5):
        place = x + (centre + 3) / 6 * width
        ax.plot([place, place], [y, y + height * .92], color=RED, linewidth=1.4)
        ax.plot(place, y + height * .92, 'o', color=RED, markersize=4)
    ax.plot([x, x + width], [y, y], color=INK, linewidth=.9)


def draw_staircase(ax, x, y, width=10.6, height=10.):
    """A linear quantizer: values against rounded and clipped ones."""
    grid = np.linspace(-1.25, 1.25, 400)
    levels = np.round(np.clip(grid, -1, 1) * 3) / 3

    def place(values):
        return y + height * (values + 1.15) / 2.3
    across = x + width * (grid + 1.25) / 2.5
    ax.plot(across, place(np.clip(grid, -1, 1)), color='#B5BBC5', linewidth=1, linestyle='--')
    ax.plot(across, place(levels), color=GREEN, linewidth=1.6)
    ax.plot([x, x + width], [place(0)] * 2, color=INK, linewidth=.8)
    ax.plot([x + width / 2] * 2, [y, y + height], color=INK, linewidth=.8)


def draw_deployment(ax):
    bend(ax, (42.8, 18), (42.8, 11.1))
    write(ax, 43.9, 15.6, 'the best of all episodes', size=7, color=SOFT, ha='left')
    box(ax, 28.6, 2.6, 28.4, 8.5)
    write(ax, 31.2, 8.6, 'Strategy', weight='bold', ha='left')
    write(ax, 31.2, 5.6, 'strategy.json', size=7, color=SOFT, ha='left', family='monospace')
    bits = [8, 5, 4, 6, 7, 4, 5, 3, 8]
    kinds = ['conv', 'depthwise', 'pointwise', 'pointwise', 'depthwise', *['pointwise'] * 3, 'linear']
    for i, (b, kind) in enumerate(zip(bits, kinds, strict=True)):
        ax.add_patch(Rectangle((42 + 1.5 * i, 3.9), 1.15, b * .72, facecolor=COLORS[kind], linewidth=0))
    arrow(ax, (57, 6.85), (63.2, 6.85))
    box(ax, 63.2, 2.6, 15.6, 8.5)
    write(ax, 71, 8.1, 'finetune.py', weight='bold', family='monospace')
    write(ax, 71, 5, 'full data,\nmany epochs', size=7, color=SOFT)
    arrow(ax, (78.8, 6.85), (83.2, 6.85))
    box(ax, 83.2, 2.6, 14, 8.5, edge=GREEN, lw=1.6)
    write(ax, 90.2, 8.1, 'Quantized net', weight='bold')
    write(ax, 90.2, 5, 'evaluated: top-1,\nsize, latency', size=7, color=SOFT)
    write(ax, 3.4, 6.85, 'The strategy is pasted into\nfinetune.py or read from its\nfile; the checkpoint of the\n'
          'quantized net carries it.', size=7, color=SOFT, ha='left')


# ---- shapes

def box(ax, x, y, width, height, face='white', edge=LINE, lw=1., radius=.8):
    ax.add_patch(FancyBboxPatch((x + radius, y + radius), width - 2 * radius, height - 2 * radius, facecolor=face,
                                boxstyle=f'round,pad={radius}', edgecolor=edge, linewidth=lw))


def write(ax, x, y, text, size=9., color=INK, ha='center', va='center', step=1.3, **options):
    ax.text(x, y, text, fontsize=size, color=color, ha=ha, va=va, linespacing=step, **options)


def arrow(ax, start, end, color=INK, lw=1.5):
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle='-|>', mutation_scale=12, color=color, linewidth=lw,
                                 shrinkA=0, shrinkB=0))


def bend(ax, *points, color=INK, lw=1.5):
    """A line through corner points that ends in an arrow."""
    ax.plot(*zip(*points[:-1], strict=True), color=color, linewidth=lw, solid_capstyle='butt', solid_joinstyle='miter')
    arrow(ax, points[-2], points[-1], color, lw)


if __name__ == '__main__':
    main()
