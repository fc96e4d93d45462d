"""The record of a search: one dict a step, from which log, scalars, strategy files and plots are written."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from lib.env.search_env import SearchEnv
from lib.qat.parts import PartQuantizers
from lib.record import plots
from lib.record.checkpoint import save_checkpoint, tensor_bytes
from lib.record.disk import check_space
from lib.record.files import csv_text, write_json, write_text
from lib.record.logs import ScalarLog
from lib.record.strategy import save_strategy
from lib.record.words import cost_words
from lib.search.searcher import Searcher
from lib.simulator.cost import CostTable
from lib.simulator.counting import model_size

logger = logging.getLogger(__name__)

CHECKPOINT = 'search.pth.tar'  # the agent, if any, with replay and random states, and the history of all episodes
STEP_COLUMNS = ('step', 'step_time', 'model_size', 'hession_info', 'acc_info', 'cost', 'train_acc', 'test_acc', 'lr')


class SearchLog:
    """Keeps the history of a search and writes `log.txt`, TensorBoard scalars and `strategy.*`.

    Attributes:
        folder: where the files go.
        about: what goes into `strategy.json` beside the strategy (network, data set, budget ...).
        history: the records.
    """

    step = ''  # the entry of a record that numbers it, and what it is called

    def __init__(self, folder: str | Path, about: Mapping, history: Sequence[dict], first: int):
        """Start the record, or continue it after `history`; `first` is the number of its first record."""
        self.folder, self.about, self.history = Path(folder), about, list(history)
        self.scalars = ScalarLog(self.folder, purge_step=len(self.history) + first)

    def add(self, record: dict) -> None:
        """Add a record and write everything but the plots; one with `diverged`, which says where, is no strategy."""
        self.history.append(record)
        for name, value in self._scalars(record).items():
            if value is not None:
                add = self.scalars.add_text if isinstance(value, str) else self.scalars.add_scalar
                add(name, value, record[self.step])
        self.scalars.flush()
        write_text(self.folder / 'log.txt', ''.join(map(self._line, self.history)) + self._footer())
        if record.get('diverged'):
            logger.warning('%s %d diverged: %s', self.step, record[self.step], record['diverged'])
        else:
            self._save_strategy(record)
        logger.info('%s', self._line(record).rstrip())

    def _footer(self):
        return ''


class EpisodeLog(SearchLog):
    """The record of a search in an environment, with the state it goes on from in `search.pth.tar`.

    A record has episode, all of an `Outcome`, value_loss, policy_loss and delta (None during warm-up, and where no
    agent searches), images (forward, backward, of this process in the whole search so far), and seconds.
    """

    step = 'episode'

    def __init__(self, folder: str | Path, env: SearchEnv, searcher: Searcher, *, about: Mapping | None = None,
                 history: Sequence[dict] = (), mark: Mapping | None = None, sizes: CostTable | None = None):
        """Start the record, or continue it after `history`.

        Args:
            folder: of the search.
            env, searcher: those of the search.
            about: what the files say of the search beside its budgets, such as `arch` and `dataset`.
            history: records of earlier episodes.
            mark: what the checkpoint says of the search, to tell it from others.
            sizes: the size of the model; by default that of the layers in a strategy.
        """
        space = env.space
        super().__init__(folder, {
            'arch': type(env.model).__name__, 'dataset': 'images', 'preserve_ratio': space.constraints[0].ratio,
            'budgets': {budget.cost.name: budget.ratio for budget in space.constraints},
            'quantization': 'linear' if space.pairs else 'kmeans', 'cost_name': space.cost.name,
            'cost_unit': space.cost.unit, 'searcher': searcher.name, 'min_bit': space.range[0],
            'max_bit': space.range[1], **space.asked,
            **({} if env.settings.reward == 'accuracy' else {'rewarded': env.settings.reward}), **(about or {})},
            history, first=0)
        self.records, self.float_accuracy, self.mark = space.records, env.float_accuracy, dict(mark or {})
        self.agent, self.rank, self._saved = getattr(searcher, 'agent', None), searcher.rank, None
        self.sizes = sizes or model_size([record.num_weights for record in self.records])
        if self.agent:
            check_space(self.folder, tensor_bytes(self.agent.state_dict()), 'what an episode saves')

    @property
    def best(self) -> dict | None:
        """Record of the best episode, by reward if the searcher does not say otherwise; the earliest of equals."""
        return max(self.history, key=self.rank, default=None)

    def add(self, record: dict) -> None:
        """Add the record of an episode, and save what the search goes on from."""
        best = max([record, *filter(None, [self.best])], key=self.rank)
        super().add({**record, 'w_ratio': self.sizes.ratio(record['strategy']), 'best_reward': best['reward']})
        agent = {'agent': self.agent.state_dict()} if self.agent else {}
        save_checkpoint(self.folder / CHECKPOINT, {**agent, **self.mark, 'history': self.history})

    def finish(self) -> None:
        """Write the results of a finished search."""
        self.plot()
        if not self.best.get('diverged'):
            self._save_strategy(self.best)
            write_json(self.folder / 'results.json', {
                **self.about, **self.best, 'float_accuracy': self.float_accuracy, 'episodes': len(self.history)},
                seal=True)

    def plot(self) -> None:
        """Save the agent's networks; draw the best strategy, the course of the search, accuracy against budget."""
        if self.agent:
            self.agent.save_model(self.folder)
        best, about = self.best, self.about
        plots.plot_strategy(best['strategy'], [record.type for record in self.records], self._layer_names,
                            self.folder / 'strategy.png',
                            title=f"{about['arch']}: {best['accuracy']:.2f} % at {best['ratio']:.3f} of the "
                                  f"{cost_words(about['cost_name'], relative=False)}")
        warmup = self.agent.warmup if self.agent else None
        plots.plot_search(self.history, self.folder / 'search.png', warmup, float_accuracy=self.float_accuracy)
        plots.plot_search_cloud(self.history, self.folder / 'budget.png', float_accuracy=self.float_accuracy,
                                xlabel=cost_words(about['cost_name']))

    @property
    def _layer_names(self):
        return [record.name for record in self.records]

    def _save_strategy(self, record):
        if (best := self.best) is not self._saved:  # also an earlier one, of which what came later speaks well
            told = ('accuracy', 'reward', 'ratio', 'cost', 'ratios', 'episode')
            save_strategy(self.folder, best['strategy'], self._layer_names, **{name: best[name] for name in told},
                          float_accuracy=self.float_accuracy, **self.about)
            self._saved = best

    def _line(self, record):
        losses = '' if record['value_loss'] is None else \
            f" value_loss {record['value_loss']:.4f} policy_loss {record['policy_loss']:.4f}"
        others = ''.join(f'{name} {ratio:.4f} ' for name, ratio in record['ratios'].items()
                         if name != self.about['cost_name'])
        delta = '' if record['delta'] is None else f" delta {record['delta']:.4f}"
        score = f"{self.about['rewarded']} {record['score']:.3f} " if 'score' in record else ''
        return (f"#{record['episode']}: reward {record['reward']:.4f} {score}accuracy {record['accuracy']:.3f} "
                f"{self.about['cost_name']} {record['cost']:.6g} {self.about['cost_unit']} "
                f"ratio {record['ratio']:.4f} {others}best_reward {record['best_reward']:.4f}{losses}"
                f"{delta}{' diverged' if record.get('diverged') else ''} {record['seconds']:.1f} s\n")

    def _footer(self):
        best = self.best
        return (f"best reward: {best['reward']:.4f} (episode {best['episode']}, accuracy {best['accuracy']:.3f}, "
                f"ratio {best['ratio']:.4f})\nbest policy: {json.dumps(best['strategy'])}\n")

    def _scalars(self, record):
        scalars = {'reward/last': record['reward'], 'reward/best': record['best_reward'],
                   'info/accuracy': record['accuracy'], 'info/w_ratio': record['w_ratio'],
                   'info/cost_ratio': record['ratio'], 'delta': record['delta'],
                   'info/images_forward': record['images'][0], 'info/images_backward': record['images'][1],
                   'value_loss': record['value_loss'], 'policy_loss': record['policy_loss'],
                   'info/score': record.get('score'),
                   'info/best_policy': json.dumps(self.best['strategy']),
                   'info/current_policy': json.dumps(record['strategy'])}
        if len(record['ratios']) > 1:
            scalars |= {f'info/ratio_{name}': ratio for name, ratio in record['ratios'].items()}
        for i, entry in enumerate(record['strategy']):
            w_bit, a_bit = entry if isinstance(entry, list) else (entry, None)
            scalars |= {f'preserve_rate_w/{i}': w_bit, f'preserve_rate_a/{i}': a_bit}
        return scalars


class StepLog(SearchLog):
    """The record of a progressive search, with a table of its steps in `search_log.csv`.

    A record has `STEP_COLUMNS` and `kbits`, the list of bits; a score that was not computed is None. That of a step
    whose training diverged has an accuracy of 0.
    """

    step = 'step'

    def __init__(self, folder: str | Path, parts: PartQuantizers, *, kinds: Sequence[str],
                 layer_names: Sequence[str], about: Mapping, start: Mapping, history: Sequence[dict] = (),
                 mark: Mapping | None = None):
        """Start the record, or continue it after `history`.

        Args:
            folder: of the search.
            parts: the quantizers.
            kinds: kind of the layer of each part, for the colours of the plot.
            layer_names: all layers that a strategy has entries for.
            about: what goes into `strategy.json` beside the strategy (network, data set ...).
            start: {'cost': ..., 'test_acc': ...} before the first step.
            history: records of earlier steps.
            mark: what checkpoints say of the search, to tell it from others.
        """
        super().__init__(folder, about, history, first=1)
        self.parts, self.kinds, self.layer_names, self.start = parts, list(kinds), list(layer_names), start
        self.mark = dict(mark or {})

    @property
    def last(self) -> dict | None:
        """Record of the last step that did not diverge; None: there is none."""
        return next((record for record in reversed(self.history) if not record.get('diverged')), None)

    def add(self, record: dict) -> None:
        """Add the record of a step and write everything but the plots."""
        write_text(self.folder / 'search_log.csv', self._table([*self.history, record]))
        super().add(record)

    def save(self, model: nn.Module, bits: Sequence[int], qat: Mapping) -> None:
        """Save the network after the step that was added last; `qat` rebuilds it with its quantizers."""
        step, last = len(self.history), self.last or self.start
        save_checkpoint(step_path(self.folder, step), {
            'step': step, 'state_dict': model.state_dict(), 'kbits': bits, 'cost': last['cost'],
            'test_prec1': last['test_acc'], 'acc': last['test_acc'], 'history': self.history, 'start': self.start,
            'quantization': 'qat', 'strategy': self.parts.lists(bits), 'qat': qat, **self.mark, **self.about})

    def finish(self, bits: Sequence[int], size_ratio: float) -> dict:
        """Draw the plots, write the results of a finished search at these bits, and return the last record.

        `size_ratio` is that of all weights, with those of float layers.

        Raises:
            FloatingPointError: all steps diverged.
        """
        self.plot()
        if self.history and not self.last:
            raise FloatingPointError(
                f'all {len(self.history)} steps diverged, the last one: {self.history[-1]["diverged"]}')
        last = self.last or {'step': 0, 'kbits': bits, **self.start}
        write_json(self.folder / 'results.json', {
            **self.about, 'quantization': 'qat', 'strategy': self.parts.lists(last['kbits']), 'kbits': last['kbits'],
            'steps': last['step'], 'top1': last['test_acc'], 'start_top1': self.start['test_acc'],
            'cost_name': 'proqha_ratio', 'cost': last['cost'], 'ratio': last['cost'], 'size_ratio': size_ratio},
            seal=True)
        return last

    def _table(self, records):
        return csv_text([*STEP_COLUMNS, *(f'kbits{i + 1}' for i in range(len(self.parts)))],
                        ([record[name] for name in STEP_COLUMNS] + record['kbits'] for record in records))

    def _scalars(self, record):
        return {name: record[name] for name in ('hession_info', 'acc_info', 'cost', 'train_acc', 'test_acc')}

    def _save_strategy(self, record):
        save_strategy(self.folder, self.parts.strategy(record['kbits'], self.layer_names), self.layer_names,
                      kbits=record['kbits'], quantizers=self.parts.labels, step=record['step'],
                      accuracy=record['test_acc'], ratio=record['cost'], **self.about)

    def _line(self, record):
        means = (sum(bits) / len(bits) for bits in self.parts.lists(record['kbits']).values())
        score = f"{record['hession_info']:.4g}" if record['acc_info'] is None else f"{record['acc_info']:.2f} %"
        return ('step {}: score {} cost {:.4f} mean bits {:.2f}/{:.2f} train acc {:.2f} test acc {:.2f}{} {:.1f} s\n'
                ).format(record['step'], score, record['cost'], *means, record['train_acc'], record['test_acc'],
                         ' diverged' if record.get('diverged') else '', record['step_time'])

    def plot(self) -> None:
        """Draw the bits of every part after the last step, and cost and accuracy over the steps."""
        last = self.last
        if not last:
            return
        lists = self.parts.lists(last['kbits'])
        pairs = [list(pair) for pair in zip(lists['layer_wbit'], lists['layer_abit'], strict=True)]
        plots.plot_strategy(pairs, self.kinds, [part.layer for part in self.parts.parts],
                            self.folder / 'strategy.png', title=f"{self.about['arch']}, step {last['step']}: "
                            f"{last['test_acc']:.2f} % at cost {last['cost']:.4f}")
        plot_steps([{'step': 0, **self.start}, *self.history], self.folder / 'steps.png')


def step_path(folder: str | Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return Path(folder) / 'checkpoint' / f'{step}.pt'


def last_step(folder: str | Path) -> Path | None:
    """Return the path of the checkpoint of the last step in a folder; None: there is none."""
    done = [int(path.stem) for path in Path(folder, 'checkpoint').glob('*.pt') if path.stem.isdecimal()]
    return step_path(folder, max(done)) if done else None


def plot_steps(records: Sequence[dict], path: str | Path) -> None:
    """Draw `cost` and `test_acc` over the steps of a search."""
    steps = [record['step'] for record in records]
    figure, (top, bottom) = plots.new_figure(5.6, 4.2, rows=2)
    top.plot(steps, [record['cost'] for record in records], color=plots.BLUE, marker='.', linewidth=1.4)
    bottom.plot(steps, [record['test_acc'] for record in records], color=plots.RED, marker='.', linewidth=1.4)
    top.set_ylabel('cost (32 bits = 1)')
    bottom.set_ylabel('accuracy (%)')
    bottom.set_xlabel('step')
    bottom.xaxis.set_major_locator(plots.whole_numbers())
    plots.save_figure(figure, path)
