"""The results of a comparison of searchers: one row for each search, a table of means over seeds, a Pareto figure."""

import csv
import io
import statistics
from pathlib import Path

from lib.record.files import write_json, write_text
from lib.utils.plots import SERIES, float_line, new_figure, save_figure

COLUMNS = ('budget', 'searcher', 'seed', 'searched', 'ratio', 'search_accuracy', 'top1', 'evaluations', 'forwards',
           'backwards', 'seconds', 'strategy')
HEAD = ('budget', 'searcher', 'ratio', 'accuracy in the search', 'top-1 fine-tuned', 'against uniform', 'evaluations',
        'images forward', 'images backward', 'seconds')


class Comparison:
    """Collects rows and writes `comparison.csv`, `.json`, `.md` and `pareto.png` to a folder, each atomically."""

    def __init__(self, folder, *, arch, dataset, cost):
        """Starts without rows.

        Args:
            folder: where the files go.
            arch, dataset: for titles.
            cost: `CostTable` of the budgets.
        """
        self.folder, self.arch, self.dataset, self.cost = Path(folder), arch, dataset, cost
        self.rows, self.float_accuracy = [], None

    def add_float(self, top1):
        """Takes the accuracy of the float network on the test images."""
        self.float_accuracy = top1

    def add(self, budget, searcher, seed, found, top1):
        """Adds a search, the record `found`, whose strategy was fine-tuned with `seed` to an accuracy of `top1`."""
        copied = ('ratio', 'evaluations', 'forwards', 'backwards', 'seconds', 'strategy')
        self.rows.append({'budget': str(budget), 'searcher': searcher, 'seed': seed, 'searched': found['seed'],
                          'search_accuracy': found['accuracy'], 'top1': top1, **{key: found[key] for key in copied}})

    def groups(self):
        """Returns {(budget, searcher): rows, one a seed}."""
        groups = {}
        for row in self.rows:
            groups.setdefault((row['budget'], row['searcher']), []).append(row)
        return groups

    def text(self):
        """Returns the table in Markdown, mean and standard error over the seeds."""
        lines = [f'{self.arch} on {self.dataset}, cost {self.cost.name}; float {self.float_accuracy:.2f}', '',
                 f'| {" | ".join(HEAD)} |', '|' + '---|' * len(HEAD)]
        groups = self.groups()
        for (budget, searcher), rows in groups.items():
            uniform = groups.get((budget, 'uniform'))
            gain = '' if not uniform or searcher == 'uniform' else \
                f'{mean(rows, "top1") - mean(uniform, "top1"):+.2f}'
            cells = (budget, searcher, f'{mean(rows, "ratio"):.4f}', spread(rows, 'search_accuracy'),
                     spread(rows, 'top1'), gain,
                     *(f'{mean(rows, key):.0f}' for key in ('evaluations', 'forwards', 'backwards', 'seconds')))
            lines.append(f'| {" | ".join(cells)} |')
        return '\n'.join(lines)

    def write(self):
        """Writes the tables."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / 'comparison.csv', buffer.getvalue())
        write_json(self.folder / 'comparison.json', {'arch': self.arch, 'dataset': self.dataset,
                                                     'cost': self.cost.name, 'float_accuracy': self.float_accuracy,
                                                     'rows': self.rows})
        write_text(self.folder / 'comparison.md', self.text() + '\n')

    def plot(self):
        """Writes the figure: accuracy after fine-tuning against cost, a line a searcher, with standard errors."""
        figure, (ax,) = new_figure(7, 4.6)
        searchers = list(dict.fromkeys(row['searcher'] for row in self.rows))
        for number, searcher in enumerate(searchers):
            points = sorted((mean(rows, 'ratio'), mean(rows, 'top1'), error(rows, 'top1') or 0)
                            for (_, name), rows in self.groups().items() if name == searcher)
            x, y, errors = zip(*points, strict=True)
            color, marker = SERIES[number % len(SERIES)]
            ax.errorbar(x, y, errors, color=color, marker=marker, markersize=5, linewidth=1.2, capsize=3,
                        linestyle='-' if number < len(SERIES) else '--', label=searcher)
        if self.float_accuracy is not None:
            float_line(ax, self.float_accuracy)
        ax.set_xlabel(f'{self.cost.name} / reference')
        ax.set_ylabel('top-1 after fine-tuning (%)')
        ax.set_title(f'{self.arch} on {self.dataset}: mean and standard error over seeds', loc='left', fontsize=10)
        figure.legend(*ax.get_legend_handles_labels(), loc='outside right upper', frameon=False, fontsize=8)
        save_figure(figure, self.folder / 'pareto.png')


def mean(rows, key):
    """Returns the mean of a column."""
    return statistics.fmean(row[key] for row in rows)


def error(rows, key):
    """Returns the standard error of the mean of a column, None for a single row."""
    values = [row[key] for row in rows]
    if key == 'search_accuracy' and len({row['searched'] for row in rows}) == 1:
        return None  # one search, fine-tuned several times
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def spread(rows, key):
    """Returns `mean +- standard error` of a column, as text."""
    found = error(rows, key)
    return f'{mean(rows, key):.2f}' + ('' if found is None else f' +- {found:.2f}')
