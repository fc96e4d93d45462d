"""The results of a comparison of searchers: one row for each search, a table of means over seeds, two figures."""

import statistics
from pathlib import Path

import numpy as np

from lib.record.files import csv_text, write_json, write_text
from lib.record.plots import BLUE, GREY, SERIES, float_line, new_figure, save_figure, whole_numbers
from lib.record.words import SEARCHERS, cost_words
from lib.simulator.cost import CostTable

COLUMNS = ('budget', 'searcher', 'seed', 'searched', 'ratio', 'search_accuracy', 'top1', 'evaluations', 'forwards',
           'backwards', 'seconds', 'strategy', 'above_budget')
HEAD = ('budget', 'searcher', 'ratio', 'accuracy in the search', 'top-1 fine-tuned', 'against uniform', 'evaluations',
        'images forward', 'images backward', 'seconds')
ABOVE = 'above the budget'
MAX_PANELS = 3  # of bars; from that many budgets on, lines show more


class ComparisonReport:
    """Collects rows; writes `comparison.csv`, `.json`, `.md`, `pareto.png` and `progress.png`, each atomically."""

    def __init__(self, folder: str | Path, *, cost: CostTable, arch: str = 'the network', dataset: str = 'images',
                 finetuned: bool = True):
        """Start without rows.

        Args:
            folder: where the files go.
            cost: that of the budgets.
            arch, dataset: for titles.
            finetuned: whether strategies are fine-tuned before they are tested.
        """
        self.folder, self.arch, self.dataset, self.cost = Path(folder), arch, dataset, cost
        self.finetuned = finetuned
        self.rows, self.float_accuracy = [], None
        self.rewards = {}  # {budget: {searcher: {seed: those of its evaluations, in order}}}

    def add_float(self, top1: float) -> None:
        """Take the accuracy of the float network on the test images."""
        self.float_accuracy = top1

    def add(self, budget, searcher: str, seed: int, found: dict, top1: float, *, above: bool = False) -> None:
        """Add a search, the record `found`, whose strategy was fine-tuned with `seed` to an accuracy of `top1`.

        `above` marks a policy from elsewhere that does not hold the budget: it is compared with nothing.
        """
        copied = ('ratio', 'evaluations', 'forwards', 'backwards', 'seconds', 'strategy')
        self.rows.append({'budget': str(budget), 'searcher': searcher, 'seed': seed, 'searched': found['seed'],
                          'search_accuracy': found['accuracy'], 'top1': top1, **{key: found[key] for key in copied},
                          'above_budget': above})
        self.rewards.setdefault(str(budget), {}).setdefault(label(searcher, above), {})[found['seed']] = [
            entry['reward'] for entry in found['history']]

    def groups(self) -> dict[tuple[str, str], list[dict]]:
        """Return {(budget, searcher): rows, one a seed}."""
        groups = {}
        for row in self.rows:
            groups.setdefault((row['budget'], row['searcher']), []).append(row)
        return groups

    def text(self) -> str:
        """Return the table in Markdown, mean and standard error over the seeds."""
        head = [name if self.finetuned else name.replace('fine-tuned', 'without fine-tuning') for name in HEAD]
        lines = [f'{self.arch} on {self.dataset}, cost {self.cost.name}; float {self.float_accuracy:.2f}', '',
                 f'| {" | ".join(head)} |', '|' + '---|' * len(HEAD)]
        groups = self.groups()
        for (budget, searcher), rows in groups.items():
            uniform = groups.get((budget, 'uniform'))
            gain = '' if not uniform or searcher == 'uniform' else \
                ABOVE if rows[0]['above_budget'] else f'{mean(rows, "top1") - mean(uniform, "top1"):+.2f}'
            cells = (budget, searcher, f'{mean(rows, "ratio"):.4f}', spread(rows, 'search_accuracy'),
                     spread(rows, 'top1'), gain,
                     *(f'{mean(rows, key):.0f}' for key in ('evaluations', 'forwards', 'backwards', 'seconds')))
            lines.append(f'| {" | ".join(cells)} |')
        return '\n'.join(lines)

    def write(self) -> None:
        """Write the tables."""
        write_text(self.folder / 'comparison.csv', csv_text(COLUMNS, self.rows, end='\r\n'))
        write_json(self.folder / 'comparison.json', {'arch': self.arch, 'dataset': self.dataset,
                                                     'cost': self.cost.name, 'float_accuracy': self.float_accuracy,
                                                     'finetuned': self.finetuned,
                                                     'rows': self.rows}, seal=True)
        write_text(self.folder / 'comparison.md', self.text() + '\n')

    def plot(self) -> None:
        """Write the figures: what was found, and how fast.

        The first has bars where searchers meet under a few budgets, else a line a searcher over the cost. There is no
        second where nobody evaluates more than one strategy.
        """
        groups = {}  # {budget: {searcher: (mean of the cost, mean accuracy, its standard error)}}
        for (budget, searcher), rows in self.groups().items():
            name = label(searcher, rows[0]['above_budget'])
            groups.setdefault(budget, {})[name] = mean(rows, 'ratio'), mean(rows, 'top1'), error(rows, 'top1') or 0
        about = {'title': f'{self.arch} on {self.dataset}: {over_seeds(self.rows)}', 'cost': self.cost.name,
                 'float_accuracy': self.float_accuracy,
                 'top1': f'top-1 {"after" if self.finetuned else "without"} fine-tuning'}
        several = len({row['searcher'] for row in self.rows}) > 1
        draw = plot_bars if several and len(groups) <= MAX_PANELS else plot_lines
        draw(groups, self.folder / 'pareto.png', **about)
        if any(len(rewards) > 1 for found in self.rewards.values() for seeds in found.values()
               for rewards in seeds.values()):
            plot_progress({budget: {name: best_so_far(list(seeds.values())) for name, seeds in found.items()}
                           for budget, found in self.rewards.items()}, self.folder / 'progress.png',
                          title=about['title'], cost=self.cost.name)


def label(searcher: str, above: bool) -> str:
    """Return what a figure calls a searcher, or a policy that does not hold the budget."""
    return f'{searcher}, {ABOVE}' if above else searcher


def over_seeds(rows: list[dict]) -> str:
    """Return what the numbers of a figure are: of one seed, or mean and standard error over several."""
    count = len({row['seed'] for row in rows})
    return f'mean and standard error over {count} seeds' if count > 1 else 'one seed'


def plot_bars(groups: dict, path: Path, *, title: str, top1: str, cost: str, float_accuracy: float) -> None:
    """Draw how far every searcher's accuracy is from that of the float network, a panel a budget.

    Args:
        groups: {budget: {searcher: (ratio, accuracy in percent, its standard error or 0)}}.
        path: file to write.
        title: of the figure.
        top1: what the accuracy is.
        cost: name of the cost of the budgets.
        float_accuracy: in percent.
    """
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    figure, axes = new_figure(1.6 + 3.4 * len(groups), 1.3 + 0.3 * len(names), columns=len(groups))
    for ax, (budget, found) in zip(axes, groups.items(), strict=True):
        for place, name in enumerate(names):
            if name in found:
                _draw_bar(ax, place, GREY if name == 'uniform' else BLUE, float_accuracy, *found[name][1:])
        ax.axvline(0, color='.3', linewidth=1)
        ax.set_yticks(range(len(names)), [SEARCHERS.get(name, name) for name in names] if ax is axes[0] else [])
        ax.tick_params(axis='y', length=0)
        ax.set_ylim(len(names) - 0.4, -0.6)
        ax.sharex(axes[0])
        ax.grid(False, axis='y')
        ax.set_title(budget_words(budget, cost), loc='left', fontsize=9)
    figure.supxlabel(f'{top1}, points from float ({float_accuracy:.2f} %)', fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path)


def _draw_bar(ax, place, color, float_accuracy, accuracy, deviation):
    ax.barh(place, accuracy - float_accuracy, xerr=deviation or None, height=0.7, capsize=2, color=color,
            error_kw={'linewidth': 1, 'ecolor': '.1'})
    ax.annotate(f'{accuracy:.2f}' + (f' ± {deviation:.2f}' if deviation else ''), (1, place), (4, 0), fontsize=7.5,
                xycoords=('axes fraction', 'data'), textcoords='offset points', va='center')


def budget_words(budget: str, cost: str) -> str:
    """Return what a budget is called: `uniform:3`, what 3 bits in every layer cost, or a ratio."""
    what, _, reference = cost_words(cost).partition(' relative to ')
    bits = str(budget).removeprefix('uniform:')
    return f'budget: the {what} of {bits} bits everywhere' if bits != str(budget) else \
        f'budget: {budget} of the {what} ({reference} = 1)'


def plot_lines(groups: dict, path: Path, *, title: str, top1: str, cost: str, float_accuracy: float) -> None:
    """Draw accuracy against cost, a line a searcher; each line is thinner than those below it, so that none hides."""
    figure, (ax,) = new_figure(7.6, 4.6)
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    for place, name in enumerate(names):
        x, y, errors = zip(*sorted(found[name] for found in groups.values() if name in found), strict=True)
        color, marker = SERIES[place % len(SERIES)]
        below = len(names) - 1 - place
        ax.errorbar(x, y, errors if any(errors) else None, color=color, marker=marker, markersize=4 + 0.9 * below,
                    linewidth=1.2 + 0.7 * below, elinewidth=1.2, capsize=3, label=SEARCHERS.get(name, name))
    float_line(ax, float_accuracy)
    ax.set_xlabel(cost_words(cost))
    ax.set_ylabel(f'{top1} (%)')
    ax.set_title(title, loc='left', fontsize=10)
    figure.legend(*ax.get_legend_handles_labels(), loc='outside right upper', frameon=False, fontsize=8)
    save_figure(figure, path)


def best_so_far(rewards: list[list[float]]) -> np.ndarray:
    """Return the best reward after each evaluation, (seeds, evaluations); a search that ended early keeps its last."""
    longest = max(map(len, rewards))
    return np.array([np.maximum.accumulate([*each, *[each[-1]] * (longest - len(each))]) for each in rewards])


def plot_progress(curves: dict, path: Path, *, title: str, cost: str) -> None:
    """Draw the best reward so far against evaluations, a panel a budget; one evaluation is a dashed line.

    The axis begins at what the slowest searcher has after a tenth of its evaluations.

    Args:
        curves: {budget: {searcher: best rewards (seeds, evaluations)}}.
        path: file to write.
        title: of the figure.
        cost: name of the cost of the budgets.
    """
    columns = min(len(curves), MAX_PANELS)
    rows = -(-len(curves) // columns)
    figure, axes = new_figure(1.8 + 3.4 * columns, 3.2 * rows, rows, columns)
    names = list(dict.fromkeys(name for found in curves.values() for name in found))
    for ax, (budget, found) in zip(axes, curves.items(), strict=False):
        floor = min(rewards[:, rewards.shape[1] // 10].mean() for rewards in found.values())
        ceiling = max(rewards.mean(0).max() for rewards in found.values())
        for name in found:
            _draw_progress(ax, found[name], SERIES[names.index(name) % len(SERIES)][0], SEARCHERS.get(name, name))
        margin = max(ceiling - floor, 1e-6) / 20
        ax.set_ylim(floor - margin, ceiling + margin)
        ax.set_title(budget_words(budget, cost), loc='left', fontsize=9)
        ax.xaxis.set_major_locator(whole_numbers())
    for ax in axes[len(curves):]:
        ax.set_visible(False)
    figure.supxlabel('evaluations', fontsize=9)
    figure.supylabel('best reward so far', fontsize=9)
    figure.suptitle(title, fontsize=10)
    lines = {line.get_label(): line for ax in axes for line in ax.lines}
    figure.legend(lines.values(), lines.keys(), loc='outside right center', frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_progress(ax, rewards, color, name):
    number, middle = np.arange(1, rewards.shape[1] + 1), rewards.mean(0)
    if len(number) == 1:
        ax.axhline(middle[0], color=color, linestyle='--', linewidth=1.2, label=name)
        return
    ax.step(number, middle, where='post', color=color, linewidth=1.5, label=name)
    if len(rewards) > 1:
        error = rewards.std(0, ddof=1) / len(rewards) ** 0.5
        ax.fill_between(number, middle - error, middle + error, step='post', color=color, alpha=0.2, linewidth=0)


def mean(rows: list[dict], key: str) -> float:
    """Return the mean of a column."""
    return statistics.fmean(row[key] for row in rows)


def error(rows: list[dict], key: str) -> float | None:
    """Return the standard error of the mean of a column, None for a single row."""
    values = [row[key] for row in rows]
    if key == 'search_accuracy' and len({row['searched'] for row in rows}) == 1:
        return None  # one search, fine-tuned several times
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def spread(rows: list[dict], key: str) -> str:
    """Return `mean +- standard error` of a column, as text."""
    found = error(rows, key)
    return f'{mean(rows, key):.2f}' + ('' if found is None else f' +- {found:.2f}')
