"""What both HAQ environments share: a strategy is put into the float network, fine-tuned shortly, and rewarded."""

import copy
import hashlib
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from lib.env.compensated import FloatProblems
from lib.env.episode import EpisodeSettings, Outcome
from lib.env.judging import AGAINST_FLOAT, FirstBatches, score
from lib.env.screen import Screen
from lib.env.space import Space
from lib.env.state import bits_from_action
from lib.network.conversion import listed
from lib.network.hooks import batch_norms
from lib.network.other_state import OtherState
from lib.runtime.seeds import seed_everything
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.compensation import Rounding
from lib.training.distillation import Distillation
from lib.training.loop import Precision, evaluate, loss_function, train_one_epoch
from lib.utils.quantize_utils import Quantization
from lib.utils.utils import Metrics, set_learning_rate

logger = logging.getLogger(__name__)

SCREEN_BATCHES = 4  # for the BatchNorm statistics of a first look
BN_BATCHES = 2  # for those of weights that are compensated and not fine-tuned, where nothing else is said


class SearchEnv:
    """Base of `QuantizeEnv` and `LinearQuantizeEnv`, which say how a network is quantized.

    `evaluate_strategy` is an episode. An agent may walk to it: `reset` starts, `step` takes one action in [0, 1] and
    returns (state, reward, done, outcome); reward and outcome come with the last step. The float weights, the training
    subset and the validation subset are the same in every episode. Several processes evaluate the same strategies, each
    with loaders of its own part of the images, and come to the same outcomes.
    """

    def __init__(self, model: nn.Module, train_loader, val_loader, space: Space,
                 settings: EpisodeSettings | None = None, *, rounding: Rounding | None = None,
                 precision: Precision | None = None):
        """Measure the float accuracy, and keep what strategies are judged against.

        Args:
            model: network with float weights.
            train_loader, val_loader: the two subsets; `train_loader.set_epoch` makes an episode reproducible.
            space: the layers, bits and budgets.
            settings: how a strategy is evaluated.
            rounding: how weights become codes; None: to the nearest. Where it is compensated and nothing is fine-tuned,
                BatchNorm statistics are estimated anew unless it keeps them, on 2 batches if the settings do not say
                how many.
            precision: in which arithmetic the network runs; float32 if None.
        """
        self.model, self.train_loader, self.val_loader = model, train_loader, val_loader
        self.space, self.settings, self.screen = space, settings or EpisodeSettings(), Screen()
        self.rounding = rounding or Rounding()
        if self.rounding.keep_bn and self.settings.bn_batches:
            raise ValueError(f'keep_bn keeps what bn_batches {self.settings.bn_batches} estimates anew: leave one out')
        given = self.settings.finetune_flag or self.settings.bn_batches or self.rounding.keep_bn
        if self.rounding.compensated and not given and batch_norms(model):
            self.settings = replace(self.settings, bn_batches=BN_BATCHES)
        self.device = next(model.parameters()).device
        self.precision, self.criterion = precision or Precision(self.device), loss_function().to(self.device)
        Quantization(model).synchronise()
        self._float_state, self._other_state = copy.deepcopy(model.state_dict()), OtherState(model)
        if self._other_state.left:
            logger.warning('%s cannot be copied: an episode finds there what the episode before left',
                           listed(self._other_state.left))
        self.distillation = self._distillation() if self.settings.distill == 'float' else None
        self._scaler_state = copy.deepcopy(self.precision.scaler.state_dict())
        augmented = self.settings.reward_on == 'augmented'
        self.judged = FirstBatches(train_loader, val_loader.num_images) if augmented else val_loader
        metrics, self._float_logits = self._watched(train_loader if self.settings.reward_on == 'train' else self.judged)
        self.float_accuracy = self._accuracy(metrics)
        self.float_score = self._score(metrics, self._float_logits)
        self._chosen = []
        self.problems = FloatProblems(model, self.layers(), self._calibration_batches(train_loader),
                                      self.rounding.keep_bn) if self.rounding.compensated else None

    def _distillation(self) -> Distillation:
        """Return what learns from a copy of the float network."""
        try:
            teacher = copy.deepcopy(self.model)
        except Exception as error:  # whatever is in a network of the user's own
            raise ValueError(f'distill float needs a copy of the network, and it cannot be copied: {error}') from error
        return Distillation(teacher, self.settings.distill_temperature, self.settings.distill_weight)

    def reset(self) -> list[float]:
        """Start an episode with no bits chosen; return the first state."""
        self._chosen = []
        return self.space.state(self._chosen)

    def step(self, action: float, episode: int = 0) -> tuple[list[float], float, bool, Outcome | None]:
        """Take the action of one step, in [0, 1]; `episode` decides the order of the training images.

        Returns:
            (next state, reward, done, outcome): reward 0 and outcome None until the last step.
        """
        self._chosen.append(bits_from_action(action, self.space.steps[len(self._chosen)]))
        state = self.space.state(self._chosen)
        if len(self._chosen) < self.space.num_steps:
            return state, 0.0, False, None
        outcome = self.evaluate_strategy(self.space.within_budget(self.space.of_bits(self._chosen)), episode)
        return state, outcome.reward, True, outcome

    def under(self, space: Space) -> 'SearchEnv':
        """Return an environment with other budgets that shares network, images and codebooks with this one."""
        other = copy.copy(self)
        other.space = space
        return other

    # ---- an episode

    def evaluate_strategy(self, strategy: list, episode: int = 0) -> Outcome:
        """Quantize the float network, fine-tune it shortly and validate it.

        Args:
            strategy: entries within the budget.
            episode: decides the order of the training images.

        Returns:
            The `Outcome`, also where loss or reward are not finite.

        Raises:
            LostPeer: another process has ended.
        """
        try:
            return self._evaluate_strategy(strategy, episode)
        except FloatingPointError as error:
            return self._outcome(strategy, 0.0, None, None, diverged=str(error))

    def _evaluate_strategy(self, strategy, episode):
        seed, screened = self.settings.seed, None
        if self.settings.screen:
            seed_everything(seed, 'screen', episode)
            screened = self._accuracy(look := self._look(strategy, episode))
            if not self.screen.promising(screened):
                return self._outcome(strategy, self.screen.predict(screened)[0], look.loss, screened, finetuned=False)
        seed_everything(seed, 'episode', episode)
        quantization = self.quantize(strategy)
        metrics = self._finetune(quantization, episode) if self.settings.finetune_flag else None
        quantization.synchronise()
        logits = []
        if self.settings.reward_on != 'train':
            self._reestimate(episode, self.settings.bn_batches)
            metrics, logits = self._watched(self.judged)
        accuracy = self._accuracy(metrics)
        if screened is not None:
            self.screen.add(screened, accuracy)
        return self._outcome(strategy, accuracy, metrics.loss, screened, found=self._score(metrics, logits))

    def _look(self, strategy, episode) -> Metrics:
        """Evaluate a strategy without fine-tuning, on the images of the screen."""
        self.quantize(strategy)
        if batch_norms(self.model):
            self._reestimate(episode, SCREEN_BATCHES)
        batches = -(-self.settings.screen // self.val_loader.batch_size)
        return self._evaluate(list(islice(self.val_loader, batches)))

    def _finetune(self, quantization, episode) -> Metrics | None:
        settings, metrics = self.settings, None
        optimizer = torch.optim.SGD(quantization.parameters(), lr=settings.finetune_lr, momentum=0.9, weight_decay=4e-5)
        for epoch in range(settings.finetune_epoch):
            set_learning_rate(optimizer, settings.finetune_lr * settings.finetune_gamma ** epoch)
            self.train_loader.set_epoch(episode * settings.finetune_epoch + epoch)
            metrics = train_one_epoch(self.model, self.train_loader, quantization.loss, optimizer, self.device,
                                      quantization.after_step, before_step=quantization.before_step,
                                      precision=self.precision, title=f'episode {episode}',
                                      distillation=self.distillation)
            quantization.after_epoch(optimizer)
        return metrics

    def _reestimate(self, episode, batches):
        if batches:
            self.train_loader.set_epoch(episode * self.settings.finetune_epoch)
            reestimate_batch_norm(self.model, self.train_loader, batches, self.device, self.precision)

    def _evaluate(self, loader, watch=None) -> Metrics:
        return evaluate(self.model, loader, self.criterion, self.device, precision=self.precision, watch=watch)

    def _watched(self, loader) -> tuple[Metrics, list]:
        """Return the metrics, and the logits of every batch where the reward asks for them."""
        logits = []
        watch = logits.append if self.settings.reward in AGAINST_FLOAT else None
        return self._evaluate(loader, watch), logits

    def _accuracy(self, metrics):
        return metrics.top5 if self.settings.use_top5 else metrics.top1

    def _score(self, metrics, logits) -> float:
        kind = self.settings.reward
        return self._accuracy(metrics) if kind == 'accuracy' else score(kind, metrics.loss, logits, self._float_logits)

    def _outcome(self, strategy, accuracy, loss, screened, finetuned=True, diverged=None, found=None) -> Outcome:
        cost = self.space.cost
        ratio = cost.ratio(strategy)
        more = 1 / ratio if self.settings.reward_cost and not diverged else 0
        found = accuracy if found is None else found  # a prediction, or 0 of what diverged
        reward = 0.1 * (found - self.float_score + more)
        if not math.isfinite(reward):
            raise FloatingPointError(f'the reward of {strategy} is {reward} (accuracy {accuracy})')
        ratios = {constraint.cost.name: constraint.cost.ratio(strategy) for constraint in self.space.constraints}
        return Outcome(strategy, accuracy, loss, cost.cost(strategy), ratio, ratios, reward, screened, finetuned,
                       diverged, None if self.settings.reward == 'accuracy' else found)

    # ---- the network

    def networks(self) -> list[nn.Module]:
        """Return the network and, if it learns from one, its teacher."""
        return [self.model, *([self.distillation.teacher] if self.distillation else [])]

    def input_metric(self, name: str) -> Tensor | None:
        """Return H (G, d, d) of the inputs that a layer's weights are rounded for; None: each weight by itself."""
        if self.problems is None or name not in self.problems.layers:
            return None
        return self.problems.problem(name).metric

    def _calibration_batches(self, loader, epoch=0):
        return self.rounding.batches(loader, self.device, self.precision, epoch)

    def quantize(self, strategy: list) -> Quantization:
        """Give the network all that it had at first and quantize it."""
        self._begin()
        return self._quantize(strategy)

    def quantize_finally(self, strategy: list, train_loader, epoch: int = 0) -> Quantization:
        """Quantize as `quantize`, but where rounding is compensated for the errors of the layers before, too.

        That takes longer than a search can wait in every episode. BatchNorm statistics are then estimated anew.

        Args:
            strategy: entries within the budget.
            train_loader: of the calibration images.
            epoch: of the loader, whose first images they are, as it draws and augments them then.
        """
        if not self.rounding.compensated:
            return self.quantize(strategy)
        self._begin()
        quantization = self._quantize_finally(strategy, self._calibration_batches(train_loader, epoch))
        quantization.synchronise()
        self.rounding.estimate_batch_norm(self.model, train_loader, self.device, self.precision)
        return quantization

    def finish(self, strategy: list) -> tuple[Quantization, Metrics]:
        """Leave the network quantized for good, without training; return also its `Metrics` on the held-out images."""
        quantization = self.quantize_finally(strategy, self.train_loader)
        self._reestimate(0, 0 if self.rounding.compensated else self.settings.bn_batches)
        return quantization, self._evaluate(self.val_loader)

    def _begin(self):
        """Bring the network, and the factor of mixed precision, to where every episode begins."""
        self._other_state.restore()  # first: buffers may have another shape by now
        self.model.load_state_dict(self._float_state)
        if self._scaler_state:
            self.precision.scaler.load_state_dict(self._scaler_state)

    def weights_digest(self) -> str:
        """Return a text that is another one for other float weights or buffers."""
        digest = hashlib.sha256()
        for name, value in self._float_state.items():
            if isinstance(value, torch.Tensor):
                digest.update(name.encode())
                digest.update(value.cpu().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @contextmanager
    def float_network(self) -> Iterator[nn.Module]:
        """Give the float network, in evaluation mode; afterwards it is what it was before."""
        state, other = copy.deepcopy(self.model.state_dict()), OtherState(self.model)
        self._begin()
        self.model.eval()
        try:
            yield self.model
        finally:
            other.restore()
            self.model.load_state_dict(state)
