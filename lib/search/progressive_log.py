"""The record of a progressive search: one row a step, from which the table, log, scalars, strategy and plots come."""

import csv
import io
import logging
from pathlib import Path

from lib.record import plots
from lib.record.files import write_text
from lib.record.logs import ScalarLog
from lib.record.strategy import save_strategy

logger = logging.getLogger(__name__)

COLUMNS = ('step', 'step_time', 'model_size', 'hession_info', 'acc_info', 'cost', 'train_acc', 'test_acc', 'lr')


class ProgressiveLog:
    """Keeps the rows of a search and writes `search_log.csv`, `log.txt`, scalars, `strategy.*` and the plots.

    A row is a dict of `COLUMNS` and `kbits`, the list of bits; a score that was not computed is None. That of a step
    whose training diverged has an accuracy of 0 and says in `diverged` where.
    """

    def __init__(self, folder, *, parts, kinds, layer_names, about, start, history=()):
        """Starts the record, or continues it after `history`.

        Args:
            folder: the run folder.
            parts: `PartQuantizers`.
            kinds: kind of the layer of each part, for the colours of the plot.
            layer_names: all layers that a strategy has entries for.
            about: what goes into `strategy.json` beside the strategy (network, data set ...).
            start: {'cost': ..., 'test_acc': ...} before the first step.
            history: rows of earlier steps.
        """
        self.folder, self.parts, self.kinds, self.layer_names = Path(folder), parts, list(kinds), list(layer_names)
        self.about, self.start, self.history = about, start, list(history)
        self.scalars = ScalarLog(self.folder, purge_step=len(self.history) + 1)

    @property
    def last(self):
        """Row of the last step that did not diverge; None: there is none."""
        return next((row for row in reversed(self.history) if not row.get('diverged')), None)

    def add(self, row):
        """Adds the row of a step and writes everything but the plots."""
        self.history.append(row)
        write_text(self.folder / 'search_log.csv', self._table())
        write_text(self.folder / 'log.txt', ''.join(map(self._line, self.history)))
        for name in ('hession_info', 'acc_info', 'cost', 'train_acc', 'test_acc'):
            if row[name] is not None:
                self.scalars.add_scalar(name, row[name], row['step'])
        self.scalars.flush()
        if row.get('diverged'):
            logger.warning('step %d diverged: %s', row['step'], row['diverged'])
        else:
            self._save_strategy(row)
        logger.info('%s', self._line(row).rstrip())

    def _save_strategy(self, row):
        save_strategy(self.folder, self.parts.strategy(row['kbits'], self.layer_names), self.layer_names,
                      kbits=row['kbits'], quantizers=self.parts.labels, step=row['step'], accuracy=row['test_acc'],
                      ratio=row['cost'], **self.about)

    def _table(self):
        text = io.StringIO()
        table = csv.writer(text, lineterminator='\n')
        table.writerow([*COLUMNS, *(f'kbits{i + 1}' for i in range(len(self.parts)))])
        for row in self.history:
            table.writerow(['' if row[name] is None else row[name] for name in COLUMNS] + row['kbits'])
        return text.getvalue()

    def _line(self, row):
        lists = self.parts.lists(row['kbits'])
        means = (sum(bits) / len(bits) for bits in lists.values())
        score = f"score {row['hession_info']:.4g}" if row['acc_info'] is None else f"score {row['acc_info']:.2f} %"
        return ('step {}: {} cost {:.4f} mean bits {:.2f}/{:.2f} train acc {:.2f} test acc {:.2f}{} {:.1f} s\n').format(
            row['step'], score, row['cost'], *means, row['train_acc'], row['test_acc'],
            ' diverged' if row.get('diverged') else '', row['step_time'])

    def plot(self):
        """Draws the bits of every part after the last step, and cost and accuracy over the steps."""
        last = self.last
        if not last:
            return
        lists = self.parts.lists(last['kbits'])
        pairs = [list(pair) for pair in zip(lists['layer_wbit'], lists['layer_abit'], strict=True)]
        plots.plot_strategy(pairs, self.kinds, [part.layer for part in self.parts.parts],
                            self.folder / 'strategy.png', title=f"{self.about['arch']}, step {last['step']}: "
                            f"{last['test_acc']:.2f} % at cost {last['cost']:.4f}")
        plot_steps([{'step': 0, **self.start}, *self.history], self.folder / 'steps.png')


def plot_steps(rows, path):
    """Draws cost and test accuracy over the steps of a search.

    Args:
        rows: dicts with `step`, `cost` and `test_acc` (percent), in order.
        path: file to write.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not rows:
        raise ValueError('nothing to plot: expected at least one step')
    steps = [row['step'] for row in rows]
    figure, (top, bottom) = plots.new_figure(5.6, 4.2, rows=2)
    top.plot(steps, [row['cost'] for row in rows], color=plots.BLUE, marker='.', linewidth=1.4)
    bottom.plot(steps, [row['test_acc'] for row in rows], color=plots.RED, marker='.', linewidth=1.4)
    top.set_ylabel('cost (32 bits = 1)')
    bottom.set_ylabel('accuracy (%)')
    bottom.set_xlabel('step')
    bottom.xaxis.set_major_locator(plots.whole_numbers())
    plots.save_figure(figure, path)
