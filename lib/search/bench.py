"""All searchers on one bench: the same network, budgets, quantizers and images, and a count of the images they take."""

import logging
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from lib.quantize.layers import is_calibrating
from lib.rl.ddpg import DDPG
from lib.search.agent import AgentSearcher
from lib.search.allocation import GreedySearcher, ILPSearcher
from lib.search.baselines import RandomSearcher, UniformSearcher
from lib.search.evolution import EvolutionSearcher
from lib.search.progressive import ProgressiveSearcher, balanced_batch, gradient_score
from lib.search.searcher import Searcher
from lib.search.sensitivity import read_or_measure
from lib.search.space import Space
from lib.simulator.cost import MAX_BIT

logger = logging.getLogger(__name__)

# Those that solve an allocation problem, and the sensitivity they solve it with.
ALLOCATORS = {'greedy': (GreedySearcher, 'loss'), 'ilp': (ILPSearcher, 'loss'), 'hessian': (ILPSearcher, 'hessian'),
              'fisher': (ILPSearcher, 'fisher')}
MAX_CANDIDATES = 100  # of a progressive step, ProQHA's default
SEARCHERS = ('uniform', 'random', *ALLOCATORS, 'evolution', 'progressive', 'ddpg')


class ImageCounter:
    """Counts the images that pass through a network: forward, and backward where gradients are asked for.

    Calibration is left out: the ranges that it finds are kept, so whoever comes first would pay for all others, and a
    resumed search once more.
    """

    def __init__(self, model):
        self.forwards = self.backwards = 0
        self._handle = model.register_forward_pre_hook(self._count)
        self._counting = True

    def _count(self, module, inputs):
        if self._counting and not is_calibrating(module):
            self.forwards += len(inputs[0])
            self.backwards += len(inputs[0]) * torch.is_grad_enabled()

    def add(self, forwards, backwards):
        """Counts images of work that counts for itself."""
        self.forwards, self.backwards = self.forwards + forwards, self.backwards + backwards

    @contextmanager
    def paused(self):
        """Within this context nothing is counted."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    @property
    def counts(self):
        """(images forward, images backward)."""
        return self.forwards, self.backwards

    @counts.setter
    def counts(self, values):
        self.forwards, self.backwards = values

    def close(self):
        """Takes the counter off the network."""
        self._handle.remove()


class Bench:
    """Builds searchers for the budgets of an environment, and tells them how good their proposals are."""

    def __init__(self, env, counter, *, evaluations, folder, agent=None, store_action='chosen', warm_start='none',
                 images=512, batch=128):
        """Takes over an environment.

        Args:
            env: `SearchEnv`; its settings decide how a strategy is evaluated.
            counter: `ImageCounter` of its network.
            evaluations: how many strategies a search may evaluate. All searchers are given as many images as these take
                (`allowance`), for sensitivities and gradients too.
            folder: where sensitivities are kept.
            agent: options of `DDPG`, beside sizes and seed.
            store_action: see `AgentSearcher`.
            warm_start: the agent's warm-up: 'none' at random, or 'sensitivity' (that of the Hessian).
            images: most images that sensitivities are measured on.
            batch: images of the batch on which gradients are compared.
        """
        self.env, self.counter, self.evaluations = env, counter, evaluations
        self.folder, self.agent, self.store_action = Path(folder), dict(agent or {}), store_action
        self.warm_start, self.images, self.batch = warm_start, images, batch
        self._batches = {}
        self.saved_seconds = 0.0  # that sensitivities took which were read from their files

    @property
    def allowance(self):
        """Images that a search may pass forward; one backward pass costs as much as two of them."""
        return self.evaluations * self.evaluation_images

    @property
    def evaluation_images(self):
        """Forward passes of an evaluation: validation, BatchNorm statistics, fine-tuning."""
        env = self.env
        trained = 3 * env.finetune_epoch * env.train_loader.num_images if env.finetune_flag else 0
        return env.val_loader.num_images + env.bn_batches * env.train_loader.batch_size + trained

    def searcher(self, name, seed, env=None):
        """Returns a searcher for the budgets of `env`, by default the bench's.

        Raises:
            ValueError: the name is unknown, or the searcher has no use for the budgets.
        """
        env = env or self.env
        space = Space.of(env)
        if name in ALLOCATORS:
            kind, sensitivity = ALLOCATORS[name]
            return kind(space, self.sensitivity(sensitivity).table)
        simple = {'uniform': UniformSearcher, 'random': RandomSearcher, 'evolution': EvolutionSearcher}
        if name in simple:
            return simple[name](space, seed)
        if name == 'progressive':
            lam = ProgressiveSearcher.affordable(space, seed, (self.allowance - self.evaluation_images)
                                                 // (3 * self.batch))
            lam = min(lam, MAX_CANDIDATES)
            return Concluded(ProgressiveSearcher(space, seed, lam=lam), lambda found: self.gradient(found, seed))
        if name == 'ddpg':
            agent = DDPG(num_states=env.num_states, **{'capacity': 128 * env.num_layers, **self.agent}, seed=seed)
            table = self.sensitivity('hessian').table if self.warm_start == 'sensitivity' else None
            return AgentSearcher(env, agent, self.store_action, table)
        raise ValueError(f'there is no searcher {name}: expected one of {", ".join(SEARCHERS)}')

    def check(self, name, env):
        """Raises ValueError where a searcher has no use for the budgets of `env`; quick, nothing is measured."""
        try:
            if name in ALLOCATORS:
                ALLOCATORS[name][0](Space.of(env), np.zeros((env.num_layers, MAX_BIT, MAX_BIT)))
            if name == 'progressive':
                ProgressiveSearcher(Space.of(env))
        except ValueError as error:
            raise ValueError(f'the searcher {name}: {error}') from error

    def sensitivity(self, kind):
        """Returns a `Sensitivity` of the layers, measured once on as many images as the allowance gives.

        Whoever uses it pays for it: its images are counted each time, and its seconds in `saved_seconds`.
        """
        images = self.sensitivity_images(kind)
        path = self.folder / f'sensitivity_{kind}.npz'
        start = time.time()
        with self.counter.paused():
            found = read_or_measure(path, self.env, kind, num_images=images)
        self.counter.add(found.forwards, found.backwards)
        self.saved_seconds += max(found.seconds - (time.time() - start), 0)
        return found

    def sensitivity_images(self, kind):
        """Returns the number of images for a sensitivity; the strategy it leads to is evaluated once, too."""
        space, available = Space.of(self.env), self.env.val_loader.num_images
        cells = len(space.free) * (space.max_bit - space.min_bit + 1) * (1 + space.pairs)
        passes = {'loss': cells + 1, 'fisher': 3, 'hessian': 3}[kind]  # in forward passes
        return max(1, min(self.images, available, (self.allowance - self.evaluation_images) // passes))

    def gradient(self, strategy, seed):
        """Returns minus the norm of the gradient of the quantized network on one class-balanced batch."""
        if seed not in self._batches:
            self._batches[seed] = balanced_batch(self.env.val_loader, self.batch, seed)
        images, labels = (tensor.to(self.env.device) for tensor in self._batches[seed])
        self.env.quantize(strategy)
        return -gradient_score(self.env.model, images, labels)


class Concluded(Searcher):
    """A searcher that proposes only the end of another one's search, which it runs when it is asked for the first time.

    For a searcher whose proposals are on the way to the budgets, and are judged by something else than an evaluation.
    """

    def __init__(self, inner, judge):
        super().__init__(inner.space)
        self.inner, self.judge, self.name = inner, judge, inner.name

    def propose(self):
        if self.history:
            return None
        while (strategy := self.inner.propose()) is not None:
            self.inner.observe(strategy, self.judge(strategy))
            if len(self.inner.history) % 100 == 0:
                logger.info('%s: %d candidates are judged', self.name, len(self.inner.history))
        return self.inner.best()


def replay(searcher, history):
    """Brings a new searcher to where an earlier one was that made `history`, a list of (strategy, score).

    Raises:
        ValueError: the searcher proposes something else: the record is of another search.
    """
    for number, (strategy, score) in enumerate(history):
        proposed = searcher.propose()
        if proposed != strategy:
            raise ValueError(f'evaluation {number} of the record was of {strategy}, this search by {searcher.name} '
                             f'proposes {proposed}: the record is of another search, or of another version')
        searcher.observe(strategy, score)
