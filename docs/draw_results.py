"""Draws the figures of results.md from the numbers in its tables: `python docs/draw_results.py`.

progressive_cifar10.png and haq_digits.png are not among them: no table holds all steps of the one and the 900 rewards
of the other, which the scripts themselves have drawn.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / 'benchmarks')]

import cheaper_search  # noqa: E402

from lib.engine.plots import plot_sweep  # noqa: E402
from lib.record.words import SEARCHERS  # noqa: E402
from lib.search.comparison_report import plot_bars  # noqa: E402
from lib.simulator.table_report import plot_matrix  # noqa: E402

FLOAT, SEEDS = 91.73, 'mean and standard error over 3 seeds'
SEARCHER_ROWS = {  # how results.md calls them, with several in a row where they found the same
    'uniform': ['uniform'], 'random': ['random'], 'greedy (loss)': ['greedy'], 'integer program (loss)': ['ilp'],
    'greedy, integer program (loss': ['greedy', 'ilp'], 'integer program (Hessian)': ['hessian'],
    'integer program (Fisher)': ['fisher'], 'integer program (Hessian, Fisher': ['hessian', 'fisher'],
    'evolution': ['evolution'], 'progressive (ProQHA)': ['progressive'], 'agent (DDPG)': ['ddpg'],
}


def table(first_cells):
    """Returns the rows below the heading that begins with these cells, as lists of texts; bold is taken off."""
    text = (DOCS / 'results.md').read_text(encoding='utf-8')
    _, _, rest = text.partition(f'\n| {first_cells}')
    lines = rest.partition('\n\n')[0].splitlines()[1:]
    rows = [[cell.strip().replace('*', '') for cell in line.split('|')[1:-1]] for line in lines]
    return [row for row in rows if set(row[0]) != {'-'}]


def numbers(text):
    """Returns the numbers in a text."""
    return [float(number.replace(',', '')) for number in re.findall(r'[-+]?[\d,]*\.?\d+', text)]


def searchers():
    """Returns {budget: {searcher: (None, accuracy, standard error)}} in the order of `SEARCHERS`."""
    groups, budget = {}, None
    for row in table('budget | searcher | accuracy in the search'):
        budget = row[0] or budget
        name = next(name for name in sorted(SEARCHER_ROWS, key=len, reverse=True) if row[1].startswith(name))
        for searcher in SEARCHER_ROWS[name]:
            groups.setdefault(budget, {})[searcher] = (None, *numbers(row[3]))
    return {budget: {name: found[name] for name in SEARCHERS if name in found} for budget, found in groups.items()}


def draw_searchers(folder=DOCS):
    """Draws the comparison of searchers."""
    groups, about = searchers(), {'title': f'resnet20 on cifar10: {SEEDS}', 'top1': 'top-1 after fine-tuning',
                                  'float_accuracy': FLOAT}
    sizes = {f'uniform:{bits}': groups[f'size of {bits} bits'] for bits in (3, 4)}
    plot_bars(sizes, folder / 'searchers_size.png', cost='model_size', **about)
    plot_bars({'0.6': groups['latency 0.6']}, folder / 'searchers_latency.png', cost='edge_latency', **about)


def draw_cheaper(folder=DOCS):
    """Draws the rewards of cheaper searches after three numbers of images."""
    marks = [38.04e3, 76.08e3, 152.16e3]
    means = {}
    for variant, row in zip(cheaper_search.VARIANTS, table('search | episodes | fine-tuned | images'), strict=True):
        mean, error = zip(*(numbers(cell) for cell in row[4:7]), strict=True)
        means[variant] = marks, mean, error
    cheaper_search.plot(means, folder / 'cheaper_search.png')


def draw_engine(folder=DOCS):
    """Draws the sweeps over converter bits and noises."""
    bits, noises = table('converter bits'), table('noise, sigma')
    places = {'adc_bits': ([4, 5, 6, 7, 8], *bits[:2]), 'programming_noise': ([0.0, 0.01, 0.02, 0.05], *noises[:2]),
              'read_noise': ([0.0, 0.01, 0.02, 0.05], *noises[3:5])}
    for field, (values, top1, agreement) in places.items():
        points = [{'value': value, 'top1': float(top1[i + 1]), 'agreement': float(agreement[i + 1])}
                  for i, value in enumerate(values)]
        plot_sweep(field, points, folder / f'engine_{field}.png', top1_digital=90.5)


def draw_machines(folder=DOCS):
    """Draws what strategies for three machines cost on each of them."""
    rows = table('strategy for | top-1')
    plot_matrix([[float(cell) for cell in row[3:]] for row in rows],
                [f'for {row[0].strip("`")}\ntop-1 {row[1]} %' for row in rows],
                ['edge_latency', 'cloud_latency', 'bitfusion_latency'], folder / 'compare_hardware.png')


if __name__ == '__main__':
    draw_searchers()
    draw_cheaper()
    draw_engine()
    draw_machines()
