"""A comparison of searchers: their searches and the fine-tuning of what they found, each with a file of its own."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lib.env.search_env import SearchEnv
from lib.env.space import Space
from lib.record.files import read_json, write_json
from lib.record.words import SEARCHERS
from lib.search.bench import Bench
from lib.search.comparison_report import ComparisonReport
from lib.search.searcher import Searcher, replay
from lib.simulator.inventory import PRICING
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.fit import train_epoch
from lib.training.loop import evaluate
from lib.utils.utils import Metrics, learning_rate, set_learning_rate

logger = logging.getLogger(__name__)

# A searcher without chance searches once for all seeds.
STOCHASTIC = ('random', 'bayes', 'evolution', 'progressive', 'ddpg')


@dataclass(frozen=True)
class FinalTraining:
    """The fine-tuning after a search: epochs, its rate, which falls to 0 as a cosine, and weight decay."""

    epochs: int = 1
    lr: float = 0.01
    weight_decay: float = 1e-4


class Comparison:
    """Searches and fine-tunes whatever has no file in the folder yet; an evaluation that diverges is the worst."""

    def __init__(self, folder: str | Path, bench: Bench, loaders: Sequence, training: FinalTraining | None = None,
                 mark: Mapping | None = None):
        """Begin a comparison, or go on with it.

        Args:
            folder: of the comparison.
            bench: builds the searchers.
            loaders: (training loader, test loader) of the fine-tuning.
            training: that fine-tuning.
            mark: what every file says, to tell the comparison from others.
        """
        self.folder, self.bench, self.env, self.loaders = Path(folder), bench, bench.env, loaders
        self.training, self.mark = training or FinalTraining(), dict(mark or {})

    def run(self, spaces: Mapping[object, Space], searchers: Sequence[str] = tuple(SEARCHERS),
            seeds: Sequence[int] = (1,), **about) -> ComparisonReport:
        """Do what is not done; write tables after every result, the figure after a budget.

        A searcher whose measurements of the network are not finite is left out, and named in the log.

        Args:
            spaces: {budget: strategies that hold it}.
            searchers: their names, and those of policies of the bench.
            seeds: of searches and of fine-tuning.
            about: `arch` and `dataset`, for titles.
        """
        report = ComparisonReport(self.folder, cost=self.env.space.cost, finetuned=self.training.epochs > 0, **about)
        report.add_float(self.top1(None, seeds[0]))
        for budget, space in spaces.items():
            for name in searchers:
                for seed in seeds:
                    try:
                        found = self.search(space, name, budget, seed if name in STOCHASTIC else None)
                    except FloatingPointError as error:  # what it measures to begin with is not finite
                        logger.warning('%s by %s is left out: %s', budget, name, error)
                        continue
                    report.add(budget, name, seed, found, self.top1(found['strategy'], seed),
                               above=not space.holds(found['strategy']))
                    report.write()
            report.plot()
        return report

    # ---- searches

    def search(self, space: Space, name: str, budget, seed: int | None) -> dict:
        """Return the record of a search, which goes on where its file ends; `seed` is None for one without chance.

        It has strategy, accuracy, ratio, evaluations, forwards and backwards (images), seconds, and the history,
        [{'strategy', 'accuracy', 'reward', 'ratio'}], with `diverged` where one did.
        """
        policies = self.bench.settings.policies
        about = {'searcher': name, 'budget': budget, 'seed': seed, **self.mark,
                 **({'policy': policies[name]} if name in policies else {})}
        path = self.folder / 'searches' / (f'{str(budget).replace(":", "")}_{name}'
                                           + ('' if seed is None else f'_seed{seed}') + '.json')
        record = read_part(path, about) or {'history': [], 'forwards': 0, 'backwards': 0, 'seconds': 0.0}
        if 'strategy' in record:
            return record
        meter = Meter(self.bench, record)
        searcher = self.bench.searcher(name, seed or 0, space)
        replay(searcher, [(entry['strategy'], entry['reward']) for entry in record['history']])
        if record['history']:  # which counts what led there
            meter = Meter(self.bench, record)

        def save(now):
            write_json(path, {**about, **now}, seal=True)

        record = self._evaluate(self.env.under(space), searcher, record, meter, save)
        best = next(entry for entry in record['history'] if entry['strategy'] == searcher.best())
        found = {**about, **{key: best[key] for key in best if key != 'reward'},
                 'evaluations': len(record['history']), **record}
        save(found)
        logger.info('%s by %s%s: accuracy %.2f %% in the search, ratio %.4f; %d evaluations, %d images forward, %d '
                    'backward, %.0f s', budget, name, '' if seed is None else f', seed {seed}', found['accuracy'],
                    found['ratio'], found['evaluations'], found['forwards'], found['backwards'], found['seconds'])
        return found

    def _evaluate(self, env, searcher: Searcher, record: dict, meter: 'Meter', save) -> dict:
        """Return the record after all evaluations; `save` gets it after each. The same strategy is evaluated once."""
        history = record['history']
        known = {str(entry['strategy']): entry for entry in history}
        while len(history) < self.bench.evaluations and (strategy := searcher.propose()) is not None:
            entry = known[str(strategy)] = known.get(str(strategy)) or entry_of(env, strategy)
            searcher.observe(strategy, entry['reward'])
            history.append(entry)
            record = {'history': history, **meter.read()}
            save(record)
        return record

    # ---- fine-tuning

    def top1(self, strategy: list | None, seed: int) -> float:
        """Return the top-1 accuracy of a strategy on the test images after fine-tuning; of the float network for None.

        That is done once for each strategy and seed, whoever found it. Without epochs the seed draws the images of
        compensated rounding and of BatchNorm, with augmentations of their own. A fine-tuning that diverges has an
        accuracy of 0.
        """
        seed = seed if self.training.epochs or self.env.rounding.needs_images or self.env.settings.bn_batches else 0
        name = 'float' if strategy is None else hashlib.sha1(json.dumps(strategy).encode()).hexdigest()[:12]
        path = self.folder / 'finetuned' / (name + ('' if strategy is None else f'_seed{seed}') + '.json')
        about = {'strategy': strategy, 'seed': seed, **self.mark}
        if found := read_part(path, about if strategy else self.mark):
            return found['top1']
        start = time.time()
        try:
            metrics = self.finetune(strategy, seed) if strategy else self.float_metrics()
        except FloatingPointError as error:
            if strategy is None:
                raise
            logger.warning('the fine-tuning of %s, seed %d, diverged: %s; a lower learning rate may help', strategy,
                           seed, error)
            metrics, about = Metrics(None, 0.0, 0.0), {**about, 'diverged': str(error)}
        write_json(path, {**about, 'top1': metrics.top1, 'top5': metrics.top5, 'loss': metrics.loss,
                          'seconds': time.time() - start}, seal=True)
        what = 'float network' if strategy is None else f'{name}, seed {seed}, fine-tuned'
        logger.info('%s: top-1 %.2f %% on the test images, %.0f s', what, metrics.top1, time.time() - start)
        return metrics.top1

    def float_metrics(self) -> Metrics:
        """Evaluate the float network on the test images."""
        with self.env.float_network():
            return self._test()

    def finetune(self, strategy: list, seed: int) -> Metrics:
        """Fine-tune the float weights under a strategy and evaluate them on the test images."""
        env, epochs, images = self.env, self.training.epochs, self.loaders[0]
        images.set_epoch(seed)
        quantization, steps = env.quantize_finally(strategy, images, seed), epochs * len(images)
        optimizer = torch.optim.SGD(quantization.parameters(), lr=self.training.lr, momentum=0.9,
                                    weight_decay=self.training.weight_decay)
        rates = iter([learning_rate(step / steps, lr=self.training.lr, epochs=1) for step in range(steps)])
        for epoch in range(epochs):
            train_epoch(env.model, images, optimizer, seed * epochs + epoch, (seed + 1) * epochs,
                        rate=self.training.lr, device=env.device, precision=env.precision,
                        seeds=(seed, 'finetune', epoch), quantization=quantization,
                        before_step=lambda: set_learning_rate(optimizer, next(rates)))
        if env.rounding.compensated:
            if epochs:  # without any `quantize_finally` has done it
                env.rounding.estimate_batch_norm(env.model, images, env.device, env.precision)
        elif env.settings.bn_batches:
            reestimate_batch_norm(env.model, images, env.settings.bn_batches, env.device, env.precision)
        return self._test()

    def _test(self) -> Metrics:
        env = self.env
        return evaluate(env.model, self.loaders[1], env.criterion, env.device, precision=env.precision)


class Meter:
    """Images and seconds of a search, beside those that its record has already."""

    def __init__(self, bench: Bench, record: Mapping):
        self.bench, self.record, self.before, self.start = bench, record, bench.counter.counts, time.time()
        bench.saved_seconds = 0.0

    def read(self) -> dict:
        """Return forwards, backwards and seconds."""
        forwards, backwards = (now - then for now, then in zip(self.bench.counter.counts, self.before, strict=True))
        seconds = time.time() - self.start + self.bench.saved_seconds
        return {name: self.record[name] + more for name, more in
                (('forwards', forwards), ('backwards', backwards), ('seconds', seconds))}


def pricing_of(folder: str | Path) -> int:
    """Return by which rules the costs of a comparison were counted when its first search was written."""
    parts = (read_part(path, {}) for path in Path(folder, 'searches').glob('*.json'))
    return min((part.get('pricing', 1) for part in parts), default=PRICING)


def entry_of(env: SearchEnv, strategy: list) -> dict:
    """Evaluate a strategy; return its entry in the history of a search."""
    outcome = env.evaluate_strategy(strategy)
    entry = {'strategy': strategy, 'accuracy': outcome.accuracy, 'reward': outcome.reward, 'ratio': outcome.ratio}
    if not outcome.diverged:
        return entry
    logger.warning('%s diverged: %s', strategy, outcome.diverged)
    return {**entry, 'diverged': outcome.diverged}


def read_part(path: Path, about: Mapping) -> dict | None:
    """Return the dict of a JSON file, or None where there is no such file.

    Raises:
        ValueError: the file cannot be read, or is of something else than what it says in `about`.
    """
    if not path.is_file():
        return None
    try:
        found = read_json(path, 'part of a comparison')
    except ValueError as error:
        raise ValueError(f'{error}: delete it, and this part is done again') from error
    if any(found.get(name) != value for name, value in about.items() if name in found or name == 'run'):
        raise ValueError(f'{path} is of another search or comparison: delete it, and this part is done again')
    return found
