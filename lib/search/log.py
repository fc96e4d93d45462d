"""The record of a search: one entry an episode, from which log, scalars, strategy files and plots are written."""

import json
import logging
from pathlib import Path

from lib.record import plots
from lib.record.files import write_text
from lib.record.logs import ScalarLog
from lib.record.strategy import save_strategy
from lib.record.words import cost_words

logger = logging.getLogger(__name__)


class SearchLog:
    """Keeps the history of a search and writes `log.txt`, TensorBoard scalars, `strategy.*` and the plots."""

    def __init__(self, folder, *, layer_names, kinds, float_accuracy, warmup, about, history=()):
        """Starts the record, or continues it after `history`.

        Args:
            folder: the run folder.
            layer_names, kinds: name of each layer, and its kind for the colours of the plots.
            float_accuracy: accuracy of the float network in percent, drawn as a line.
            warmup: last episode that acted at random, or None.
            about: what goes into `strategy.json` beside the strategy (network, data set, budget ...).
            history: records of earlier episodes.
        """
        self.folder, self.layer_names, self.kinds = Path(folder), list(layer_names), list(kinds)
        self.float_accuracy, self.warmup, self.about = float_accuracy, warmup, about
        self.history = list(history)
        self.scalars = ScalarLog(self.folder, purge_step=len(self.history))

    @property
    def best(self):
        """Record of the episode with the highest reward, the earliest of equals; None before the first episode."""
        return max(self.history, key=lambda record: record['reward'], default=None)

    def add(self, record):
        """Adds the record of an episode and writes everything but the plots.

        Args:
            record: dict with episode, reward, accuracy, loss, cost, ratio, ratios (of all budgets), w_ratio, strategy,
                delta, images (forward, backward, of this process in the whole search so far), seconds, and value_loss
                and policy_loss (None during warm-up, as delta where no agent searches); `diverged`, where the episode
                did, says where.
        """
        improved = self.best is None or record['reward'] > self.best['reward']
        record = {**record, 'best_reward': record['reward'] if improved else self.best['reward']}
        self.history.append(record)
        self._write_scalars(record)
        write_text(self.folder / 'log.txt', ''.join(map(self._line, self.history)) + self._footer())
        if record.get('diverged'):
            logger.warning('episode %d diverged: %s', record['episode'], record['diverged'])
        elif improved:
            save_strategy(self.folder, record['strategy'], self.layer_names, accuracy=record['accuracy'],
                          reward=record['reward'], ratio=record['ratio'], cost=record['cost'], ratios=record['ratios'],
                          episode=record['episode'], float_accuracy=self.float_accuracy, **self.about)
        logger.info('%s', self._line(record).rstrip())

    def _line(self, record):
        losses = '' if record['value_loss'] is None else \
            f" value_loss {record['value_loss']:.4f} policy_loss {record['policy_loss']:.4f}"
        others = {name: ratio for name, ratio in record['ratios'].items() if name != self.about['cost_name']}
        others = ''.join(f'{name} {ratio:.4f} ' for name, ratio in others.items())
        delta = '' if record['delta'] is None else f" delta {record['delta']:.4f}"
        return (f"#{record['episode']}: reward {record['reward']:.4f} accuracy {record['accuracy']:.3f} "
                f"{self.about['cost_name']} {record['cost']:.6g} {self.about['cost_unit']} "
                f"ratio {record['ratio']:.4f} {others}best_reward {record['best_reward']:.4f}{losses}"
                f"{delta}{' diverged' if record.get('diverged') else ''} {record['seconds']:.1f} s\n")

    def _footer(self):
        best = self.best
        return (f"best reward: {best['reward']:.4f} (episode {best['episode']}, accuracy {best['accuracy']:.3f}, "
                f"ratio {best['ratio']:.4f})\nbest policy: {json.dumps(best['strategy'])}\n")

    def _write_scalars(self, record):
        step, strategy, best = record['episode'], record['strategy'], self.best
        scalars = {'reward/last': record['reward'], 'reward/best': best['reward'], 'info/accuracy': record['accuracy'],
                   'info/w_ratio': record['w_ratio'], 'info/cost_ratio': record['ratio'], 'delta': record['delta'],
                   'info/images_forward': record['images'][0], 'info/images_backward': record['images'][1],
                   'value_loss': record['value_loss'], 'policy_loss': record['policy_loss']}
        if len(record['ratios']) > 1:
            scalars |= {f'info/ratio_{name}': ratio for name, ratio in record['ratios'].items()}
        for i, entry in enumerate(strategy):
            w_bit, a_bit = entry if isinstance(entry, list) else (entry, None)
            scalars |= {f'preserve_rate_w/{i}': w_bit, f'preserve_rate_a/{i}': a_bit}
        for name, value in scalars.items():
            if value is not None:
                self.scalars.add_scalar(name, value, step)
        self.scalars.add_text('info/best_policy', json.dumps(best['strategy']), step)
        self.scalars.add_text('info/current_policy', json.dumps(strategy), step)
        self.scalars.flush()

    def plot(self):
        """Draws bits per layer of the best strategy, reward and accuracy over episodes, accuracy against budget."""
        best = self.best
        plots.plot_strategy(best['strategy'], self.kinds, self.layer_names, self.folder / 'strategy.png',
                            title=f"{self.about['arch']}: {best['accuracy']:.2f} % at {best['ratio']:.3f} of the "
                                  f"{cost_words(self.about['cost_name'], relative=False)}")
        plots.plot_search(self.history, self.folder / 'search.png', self.warmup, float_accuracy=self.float_accuracy)
        plots.plot_search_cloud(self.history, self.folder / 'budget.png', float_accuracy=self.float_accuracy,
                                xlabel=cost_words(self.about['cost_name']))
