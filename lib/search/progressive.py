"""Progressive search (ProQHA): from many bits downwards, always the least harmful of some random lowerings."""

import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from lib.env.space import Space
from lib.qat.parts import PartQuantizers, find_parts
from lib.qat.placement import QATQuantization
from lib.record.finite import check_finite
from lib.runtime.seeds import derived_seed
from lib.search.candidates import FLOOR, balanced_batch, best_candidate, draw, gradient_score, num_drawn
from lib.search.log import StepLog
from lib.search.searcher import OneStrategy
from lib.simulator.cost import MAX_BIT
from lib.training.fit import train_epoch
from lib.training.loop import Precision, evaluate, loss_function
from lib.utils.utils import learning_rate, set_learning_rate

logger = logging.getLogger(__name__)

RATIO = 0.5  # of the bits that a candidate lowers, as in ProQHA
TRIALS = 5  # random courses of a search that tell how many steps it takes


def first_bits(count: int, k_bits: int, pre_k_bits: int, ratio: float, seed: int) -> list[int]:
    """Return the bits that `count` quantizers begin at: a random fraction `ratio` `k_bits`, the others `pre_k_bits`."""
    bits = [pre_k_bits] * count
    for i in draw(np.random.default_rng(derived_seed(seed, 'first bits')), count, ratio):
        bits[i] = k_bits
    return bits


def first_lists(model: nn.Module, shape: Sequence[int], k_bits: int, pre_k_bits: int, ratio: float, seed: int) -> dict:
    """Return the `first_bits` of a network as bit lists, a number or a list each; `shape` is that of an image."""
    if ratio == 1:
        return {'layer_wbit': k_bits, 'layer_abit': k_bits}
    parts = find_parts(model, shape)
    bits = first_bits(2 * len(parts), k_bits, pre_k_bits, ratio, seed)
    pairs = [bits[2 * i:2 * i + 2][::1 if part.activation_first else -1] for i, part in enumerate(parts)]
    return {'layer_wbit': [w_bit for _, w_bit in pairs], 'layer_abit': [a_bit for a_bit, _ in pairs]}


class ProgressiveSearcher(OneStrategy):
    """Starts at the most bits; in each step the best of `lam` random lowerings becomes the state, within the budgets.

    A candidate lowers half of the free bits of weights and (pairs) inputs, rounded down, each by one or to the next
    fewer that its layer may have, in random order, and stops at once when the budgets hold. Where fewer than these can
    still go down, it lowers those.
    """

    name = 'progressive'

    def __init__(self, space: Space, judge: Callable[[list], float], seed: int = 0, *, lam: int = 10):
        """Start at the most bits; nothing is judged before the strategy is asked for.

        Args:
            space: budgets must be reachable with at least two bits everywhere.
            judge: returns the score of a strategy, which may exceed the budgets; smaller is better.
            seed: of all candidates.
            lam: candidates per step.

        Raises:
            ValueError: lam is below 1, half of the bits are none, or the budgets cannot be held.
        """
        if lam < 1:
            raise ValueError(f'lam is {lam}: expected at least 1')
        if not space.free:
            raise ValueError('the progressive search has nothing to lower: all layers are fixed')
        super().__init__(space.at_least(FLOOR))
        self.judge, self.seed, self.lam, self.judged = judge, seed, lam, 0
        self._able = [side for each in self.space.layer_bits for side in each.sides[:1 + space.pairs]]
        self._places = [step for step in range(space.num_steps) if step // (1 + space.pairs) in space.free]
        self.options = {'ratio': RATIO, 'interval': 1, 'able': [self._able[step] for step in self._places]}
        num_drawn(len(self._places), RATIO)

    @classmethod
    def affordable(cls, space: Space, seed: int, evaluations: int) -> int:
        """Return the largest lam with which about so many strategies are judged at most; at least 1."""
        courses = (cls(space, lambda _: 0.0, derived_seed(seed, 'course', trial), lam=1)._course
                   for trial in range(TRIALS))
        return max(1, evaluations // max(1, *(len(course) - 1 for course in courses)))

    @cached_property
    def strategy(self) -> list:
        """The strategy that the search ends with."""
        return self.space.within_budget(self._strategy(self._course[-1]))

    @cached_property
    def _course(self) -> list[list[int]]:
        """The free bits before the first step and after each."""
        fewest, most = ([able[end] for able in self.options['able']] for end in (0, -1))
        course, rng = [most], np.random.default_rng(self.seed)
        while course[-1] != fewest and not self._holds(course[-1]):
            bits, _ = best_candidate(course[-1], self._judge, self.lam, rng=rng, enough=self._holds, **self.options)
            course.append(bits)
        return course

    def _judge(self, bits):
        self.judged += 1
        if self.judged % 100 == 0:
            logger.info('%s: %d candidates are judged', self.name, self.judged)
        return self.judge(self._strategy(bits))

    def _holds(self, bits):
        return self.space.holds(self._strategy(bits))

    def _strategy(self, bits):
        chosen = dict(zip(self._places, bits, strict=True))
        return self.space.of_bits([chosen.get(step, able[-1]) for step, able in enumerate(self._able)])


@dataclass(frozen=True)
class StepSettings:
    """How a network is lowered step by step; the defaults are ProQHA's.

    Attributes:
        step: choices of bits, each with fine-tuning, at most.
        cost: stop after the step whose cost is at most this; None: all steps.
        lam, ratio, interval: candidates per step, the fraction of all quantizers that one lowers, and by how many bits.
        info: how candidates are judged: by `gradient_score` ('hession'), or by accuracy on held-out images ('acc').
        train_batch: images on which gradients are compared.
        odd_positions: count the original's cost, see `PartQuantizers.cost`.
        search_epochs, eval_freq: epochs of the fine-tuning, and after how many of them it is evaluated.
        lr, beta1, beta2, epsilon: of Adam; in each step the rate falls to 0 by half a cosine.
        grad_clip: largest norm of the gradient.
        seed: of everything random.
    """

    step: int = 20
    cost: float | None = None
    lam: int = 100
    ratio: float = 0.5
    interval: int = 1
    info: str = 'hession'
    train_batch: int = 128
    odd_positions: bool = False
    search_epochs: int = 30
    eval_freq: int = 1
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    grad_clip: float = 5.0
    seed: int = 234


class ProgressiveSearch:
    """ProQHA's search: in each step the best candidate lowers the quantizers of a network, which is then fine-tuned.

    Attributes:
        parts: the `PartQuantizers`, at the bits of the last step.
        bits: these bits.
    """

    def __init__(self, model: nn.Module, parts: PartQuantizers, loaders: Sequence, settings: StepSettings | None = None,
                 *, able: Sequence[Sequence[int]] | None = None, qat: Mapping | None = None, held_out=None,
                 precision: Precision | None = None):
        """Begin at the bits of the quantizers.

        Args:
            model: network with quantizers.
            parts: these quantizers.
            loaders: (training loader, test loader).
            settings: of the search.
            able: the bits that each quantizer may have, ascending; by default 2..8.
            qat: what rebuilds the network with its quantizers, for checkpoints.
            held_out: loader of the images that candidates are judged on by accuracy.
            precision: in which arithmetic the network runs; float32 if None.
        """
        self.model, self.parts, self.bits, self.held_out = model, parts, parts.bits, held_out
        self.able = able or [range(FLOOR, MAX_BIT + 1)] * len(parts)
        self.images, self.test_images = loaders
        self.settings, self.qat = settings or StepSettings(), dict(qat or {})
        self.device = next(model.parameters()).device
        self.precision = precision or Precision(self.device)

    @property
    def cost(self) -> float:
        """ProQHA's cost of the present bits."""
        return self.parts.cost(self.bits, odd_positions=self.settings.odd_positions)

    def accuracy(self, loader=None) -> float:
        """Return the top-1 accuracy of the network as it is, in percent, by default on the test images."""
        loader = self.test_images if loader is None else loader
        return evaluate(self.model, loader, loss_function(), self.device, precision=self.precision).top1

    def check_target(self) -> None:
        """Raise ValueError for a cost that no bits reach; warn of one that is reached already."""
        target, odd = self.settings.cost, self.settings.odd_positions
        fewest = [able[0] for able in self.able]
        lowest = self.parts.cost(fewest, odd_positions=odd)
        if target and target < lowest:
            what = f'{FLOOR} bits everywhere' if set(fewest) == {FLOOR} else 'the fewest bits of every quantizer'
            raise ValueError(f'cost {target:g} cannot be reached: {what} cost {lowest:.4g}')
        if target and self.cost <= target:
            logger.warning('a cost of %g is what the network to start from costs already: there is nothing to search',
                           target)

    def run(self, log: StepLog | None = None, done: int = 0) -> None:
        """Take the steps that are left after `done`; `log`, of the main process, saves everything after each."""
        settings = self.settings
        for step in range(done + 1, settings.step + 1):
            if settings.cost and self.cost <= settings.cost:
                logger.info('the cost is %.4f, at most %g is asked for: done', self.cost, settings.cost)
                return
            if all(bits <= able[0] for bits, able in zip(self.bits, self.able, strict=True)):
                logger.info('all quantizers are at %s bits: nothing is left to lower',
                            ', '.join(map(str, sorted(set(self.bits)))))
                return
            start = time.time()
            found = self.step(step)
            if log:
                log.add({'step': step, 'step_time': time.time() - start, 'model_size': 32 * sum(self.parts.num_weights),
                         'lr': settings.lr, **found})
                log.save(self.model, self.bits, self.qat)

    def step(self, step: int) -> dict:
        """Take a step, its training included; return what its record says of it.

        One that diverges leaves the network and its bits as they were.
        """
        before, bits = copy.deepcopy(self.model.state_dict()), self.bits
        name = 'hession_info' if self.settings.info == 'hession' else 'acc_info'
        found = {'hession_info': None, 'acc_info': None, name: self.choose(step), 'cost': self.cost, 'kbits': self.bits}
        try:
            train_accuracy, test_accuracy = self.fine_tune(step)
            check_finite(self.model.state_dict(), f'step {step}')
            return {**found, 'train_acc': train_accuracy, 'test_acc': test_accuracy}
        except FloatingPointError as error:
            self.bits = self.parts.bits = bits
            self.model.load_state_dict(before)
            return {**found, 'train_acc': 0.0, 'test_acc': 0.0, 'diverged': str(error)}

    def choose(self, step: int) -> float:
        """Take the bits of the best candidate of a step; return its score, or its accuracy."""
        settings, sign = self.settings, 1 if self.settings.info == 'hession' else -1
        rng = np.random.default_rng(derived_seed(settings.seed, 'progressive', step))
        judge = self._by_gradient(step) if settings.info == 'hession' else self._by_accuracy
        self.bits, score = best_candidate(self.bits, judge, settings.lam, rng=rng, ratio=settings.ratio,
                                          interval=settings.interval, able=self.able)
        self.parts.bits = self.bits
        return sign * score

    def _by_gradient(self, step):
        settings = self.settings
        batch = balanced_batch(self.images, settings.train_batch, derived_seed(settings.seed, 'candidates', step))
        images, labels = (tensor.to(self.device) for tensor in batch)

        def judge(bits):
            self.parts.bits = bits
            return gradient_score(self.model, images, labels, clip=settings.grad_clip, lr=settings.lr,
                                  beta2=settings.beta2, eps=settings.epsilon)
        return judge

    def _by_accuracy(self, bits):
        self.parts.bits = bits
        try:
            return -self.accuracy(self.held_out)
        except FloatingPointError:
            return 0.0  # nothing is worse

    def fine_tune(self, step: int) -> tuple[float, float]:
        """Train the network at the present bits; return training accuracy of the last epoch and test accuracy."""
        settings, epochs, precision = self.settings, self.settings.search_epochs, copy.deepcopy(self.precision)
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=settings.lr,
                                     betas=(settings.beta1, settings.beta2), eps=settings.epsilon)
        batches = epochs * len(self.images)
        rates = iter([learning_rate(batch, lr=settings.lr, epochs=batches) for batch in range(batches)])
        quantization = QATQuantization(self.model, self.parts.lists(self.bits), self.qat, clip_decay=0)

        def before_step():
            set_learning_rate(optimizer, next(rates))
            precision.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.grad_clip)

        for epoch in range(epochs):
            rate, number = learning_rate(epoch, lr=settings.lr, epochs=epochs), (step - 1) * epochs + epoch
            train = train_epoch(self.model, self.images, optimizer, number, settings.step * epochs, rate=rate,
                                device=self.device, precision=precision, seeds=(settings.seed, 'epoch', number),
                                quantization=quantization, before_step=before_step)
            if (epoch + 1) % settings.eval_freq == 0 or epoch + 1 == epochs:
                accuracy = self.accuracy()
                logger.info('step %d epoch %d/%d: lr %.5f  train loss %.4f acc %.2f  test acc %.2f', step, epoch + 1,
                            epochs, rate, train.loss, train.top1, accuracy)
        return train.top1, accuracy
