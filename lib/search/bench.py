"""All searchers on one bench: the same network, budgets, quantizers and images, and a count of the images they take."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lib.env.search_env import SearchEnv
from lib.env.space import Space
from lib.quantize.layers import is_calibrating
from lib.record.words import SEARCHERS
from lib.rl.ddpg import DDPG, decay_to
from lib.search.agent import AgentSearcher
from lib.search.allocation import GreedySearcher, ILPSearcher, filled_allocation
from lib.search.baselines import PolicySearcher, RandomSearcher, UniformSearcher, fill
from lib.search.bayes import BayesSearcher
from lib.search.candidates import balanced_batch, gradient_score
from lib.search.evolution import EvolutionSearcher
from lib.search.progressive import ProgressiveSearcher
from lib.search.searcher import Searcher
from lib.search.sensitivity import Sensitivity
from lib.search.sensitivity_file import read_or_measure, read_shared
from lib.simulator.cost import MAX_BIT

# Those that solve an allocation problem, and the sensitivity they solve it with.
ALLOCATORS = {'greedy': (GreedySearcher, 'loss'), 'ilp': (ILPSearcher, 'loss'), 'hessian': (ILPSearcher, 'hessian'),
              'fisher': (ILPSearcher, 'fisher'), 'kl': (ILPSearcher, 'kl')}
SOLVERS = (*ALLOCATORS, 'bayes')  # those that know the best strategy under any budget: `under`
SIMPLE = {'random': RandomSearcher, 'evolution': EvolutionSearcher}
WARM_STARTS = {'sensitivity': 'hessian', 'kl': 'kl'}  # and the sensitivity that they ask for
MAX_CANDIDATES = 100  # of a progressive step, ProQHA's default
GRADIENT_BATCH = 128  # images on which the gradients of its candidates are compared


class ImageCounter:
    """Counts the images that pass through networks: forward, and backward where gradients are asked for.

    Calibration is left out: the ranges that it finds are kept, so whoever comes first would pay for all others, and a
    resumed search once more.
    """

    def __init__(self, *networks: nn.Module):
        self.forwards = self.backwards = 0
        self._handles = [network.register_forward_pre_hook(self._count) for network in networks]
        self._counting = True

    def _count(self, module, inputs):
        if self._counting and not is_calibrating(module):
            self.forwards += len(inputs[0])
            self.backwards += len(inputs[0]) * torch.is_grad_enabled()

    def add(self, forwards: int, backwards: int) -> None:
        """Count images of work that counts for itself."""
        self.forwards, self.backwards = self.forwards + forwards, self.backwards + backwards

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing within this context."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    @property
    def counts(self) -> tuple[int, int]:
        """(images forward, images backward)."""
        return self.forwards, self.backwards

    @counts.setter
    def counts(self, values):
        self.forwards, self.backwards = values

    def close(self) -> None:
        """Take the counter off the networks."""
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True)
class SearcherSettings:
    """What searchers are built with.

    Attributes:
        agent: options of `DDPG`, beside the number of states and the seed.
        store_action: see `AgentSearcher`.
        warm_start: the agent's warm-up: 'none' at random, by the sensitivities of one of `WARM_STARTS`, or by 'bayes'.
        fill: the agent's strategies are filled up to the budgets, greedily by the sensitivities of its warm start, else
            by `baselines.fill`.
        delta_end: sigma of the exploration in the last evaluation; None: by the agent's `delta_decay`.
        sensitivity: kind of sensitivity that `bayes` starts from; 'none': all layers are alike.
        sensitivity_images: most images that sensitivities are measured on.
        policies: {name: strategy} of those from elsewhere, each a searcher of its name; some may not hold the budgets.
        sensitivities: file of sensitivities for many searches, see `read_or_measure`. They are measured on all of these
            images, however few evaluations there are.
    """

    agent: Mapping = field(default_factory=dict)
    store_action: str = 'chosen'
    warm_start: str = 'none'
    fill: bool = False
    delta_end: float | None = None
    sensitivity: str = 'kl'
    sensitivity_images: int = 512
    policies: Mapping[str, list] = field(default_factory=dict)
    sensitivities: str | Path | None = None


class Bench:
    """Builds searchers for the budgets of an environment, and counts what they ask of its network.

    Attributes:
        counter: `ImageCounter` of the network.
        saved_seconds: that sensitivities took which were read from their files.
    """

    def __init__(self, env: SearchEnv, evaluations: int, settings: SearcherSettings | None = None,
                 folder: str | Path | None = None):
        """Take over an environment.

        Args:
            env: its settings decide how a strategy is evaluated.
            evaluations: how many strategies a search may evaluate. All searchers are given as many images as these take
                (`allowance`), for sensitivities and gradients too.
            settings: of the searchers.
            folder: where sensitivities are kept; None: nowhere.
        """
        self.env, self.evaluations, self.settings = env, evaluations, settings or SearcherSettings()
        self.folder, self.counter, self.saved_seconds = folder, ImageCounter(*env.networks()), 0.0
        self._batches = {}

    @property
    def allowance(self) -> int:
        """Images that a search may pass forward; one backward pass costs as much as two of them."""
        return self.evaluations * self.evaluation_images

    @property
    def evaluation_images(self) -> int:
        """Forward passes of an evaluation: validation, BatchNorm statistics, fine-tuning."""
        env, episode = self.env, self.env.settings
        passes = 3 + len(env.networks()[1:])  # a teacher passes the images forward, too
        trained = passes * episode.finetune_epoch * env.train_loader.num_images if episode.finetune_flag else 0
        return env.judged.num_images + episode.bn_batches * env.train_loader.batch_size + trained

    def searcher(self, name: str, seed: int, space: Space | None = None) -> Searcher:
        """Return a searcher among the strategies of `space`, by default those of the environment.

        Raises:
            ValueError: the name is unknown, or the searcher has no use for the budgets.
        """
        space, settings = space or self.env.space, self.settings
        if name in ALLOCATORS:
            kind, sensitivity = ALLOCATORS[name]
            return kind(space, self.sensitivity(sensitivity).table)
        if name in settings.policies:
            return PolicySearcher(space, settings.policies[name])
        if name in SIMPLE:
            return SIMPLE[name](space, seed)
        if name == 'uniform':
            return UniformSearcher(space)
        if name == 'bayes':
            return BayesSearcher(space, seed, self._table(self.kind(name)))
        if name == 'progressive':
            affordable = (self.allowance - self.evaluation_images) // (3 * GRADIENT_BATCH)
            lam = min(ProgressiveSearcher.affordable(space, seed, affordable), MAX_CANDIDATES)
            return ProgressiveSearcher(space, lambda strategy: self.gradient(strategy, seed), seed, lam=lam)
        if name == 'ddpg':
            return self._agent(space, seed)
        raise ValueError(f'there is no searcher {name}: expected one of {", ".join(SEARCHERS)}')

    def _agent(self, space, seed):
        """Return HAQ's agent, with what the settings add to it."""
        settings, table = self.settings, self._table(self.kind('ddpg'))
        options = {'capacity': 128 * space.num_layers, **settings.agent, **self._decay()}
        agent = DDPG(num_states=space.num_states, **options, seed=seed)
        filling = partial(fill, space) if table is None else partial(filled_allocation, table, space)
        teacher = BayesSearcher(space, seed, table) if settings.warm_start == 'bayes' else None
        return AgentSearcher(space, agent, settings.store_action, None if teacher else table,
                             filling if settings.fill else None, teacher)

    def _decay(self) -> dict:
        """Return the decay of the agent's exploration, where it is to end at a sigma."""
        end, agent = self.settings.delta_end, self.settings.agent
        return {} if end is None else {'delta_decay': decay_to(
            end, agent.get('init_delta', 0.5), self.evaluations - 1 - agent.get('warmup', 20))}

    def check(self, name: str, space: Space) -> None:
        """Raise ValueError where a searcher has no use for the budgets of `space`; quick, nothing is measured.

        Or where the file of sensitivities is of something else.
        """
        try:
            if name in SOLVERS:
                ALLOCATORS.get(name, ALLOCATORS['ilp'])[0](space, np.zeros((space.num_layers, MAX_BIT, MAX_BIT)))
            if name == 'progressive':
                ProgressiveSearcher(space, judge=None)
        except ValueError as error:
            raise ValueError(f'the searcher {name}: {error}') from error
        if (kind := self.kind(name)) and self.settings.sensitivities:
            read_shared(self.settings.sensitivities, self.env, kind, num_images=self.sensitivity_images(kind))

    def kind(self, name: str) -> str | None:
        """Return the kind of sensitivity that a searcher asks for; None: none."""
        if name in ALLOCATORS:
            return ALLOCATORS[name][1]
        if name == 'bayes' or name == 'ddpg' and self.settings.warm_start == 'bayes':
            return None if self.settings.sensitivity == 'none' else self.settings.sensitivity
        return WARM_STARTS.get(self.settings.warm_start) if name == 'ddpg' else None

    def _table(self, kind: str | None) -> np.ndarray | None:
        return self.sensitivity(kind).table if kind else None

    def sensitivity(self, kind: str) -> Sensitivity:
        """Return a `Sensitivity` of the layers, measured once on as many images as the allowance gives.

        Whoever uses it pays for it: its images are counted each time, and its seconds in `saved_seconds`.
        """
        path = Path(self.folder) / f'sensitivity_{kind}.npz' if self.folder else None
        start = time.time()
        with self.counter.paused():
            found = read_or_measure(path, self.env, kind, num_images=self.sensitivity_images(kind),
                                    shared=self.settings.sensitivities)
        self.counter.add(found.forwards, found.backwards)
        self.saved_seconds += max(found.seconds - (time.time() - start), 0)
        return found

    def sensitivity_images(self, kind: str) -> int:
        """Return the number of images for a sensitivity; the strategy it leads to is evaluated once, too."""
        space, available = self.env.space, self.env.val_loader.num_images
        cells = sum(len(side) for layer in space.free for side in space.layer_bits[layer].sides[:1 + space.pairs])
        passes = cells + 1 if kind in ('loss', 'kl') else 3  # in forward passes
        affordable = (self.allowance - self.evaluation_images) // passes
        asked = min(self.settings.sensitivity_images, available)
        return asked if self.settings.sensitivities else max(1, min(asked, affordable))

    def gradient(self, strategy: list, seed: int) -> float:
        """Return `gradient_score` of the quantized network on one class-balanced batch."""
        if seed not in self._batches:
            self._batches[seed] = balanced_batch(self.env.val_loader, GRADIENT_BATCH, seed)
        images, labels = (tensor.to(self.env.device) for tensor in self._batches[seed])
        self.env.quantize(strategy)
        return gradient_score(self.env.model, images, labels)
