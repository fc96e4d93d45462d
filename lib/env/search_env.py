"""What both HAQ environments share: one episode is one pass over the layers, then a short fine-tuning and a reward."""

import copy
import hashlib
import logging
import math
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from lib.env.screen import Screen
from lib.env.state import action_from_bits, bits_from_action, layer_features
from lib.network.conversion import listed
from lib.network.hooks import batch_norms
from lib.network.other_state import OtherState
from lib.runtime.seeds import seed_everything
from lib.simulator import budget
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.loop import evaluate, loss_function, train_one_epoch
from lib.utils.quantize_utils import Quantization
from lib.utils.utils import set_learning_rate

logger = logging.getLogger(__name__)

SCREEN_BATCHES = 4


@dataclass(frozen=True)
class Outcome:
    """What an episode found: the strategy as executed, its accuracy (percent), cost, ratios and reward.

    `cost` and `ratio` (cost / reference) are those of the first constraint, `ratios` holds {cost name: ratio} of all.
    With a screen, `screened` is the accuracy at first sight; where `finetuned` is False, that was all, and accuracy and
    reward are predictions from it. Where the network became NaN or infinite, `diverged` says where; the accuracy is
    then 0, the reward the lowest that there is, and the loss None.
    """

    strategy: list
    accuracy: float
    loss: float | None
    cost: float
    ratio: float
    ratios: dict
    reward: float
    screened: float | None = None
    finetuned: bool = True
    diverged: str | None = None


class SearchEnv:
    """Base of `QuantizeEnv` and `LinearQuantizeEnv`, which say how states look and how a network is quantized.

    `reset` starts an episode, `step` takes one action in [0, 1] and returns (state, reward, done, outcome); reward
    and outcome come with the last step. The float weights, the training subset and the validation subset are the
    same in every episode. Several processes go through the same steps with the same actions, each with loaders of its
    own part of the images, and come to the same outcomes.
    """

    def __init__(self, model, train_loader, val_loader, *, records, constraints, min_bit, max_bit, fixed,
                 finetune_epoch=1, finetune_lr=1e-3, finetune_gamma=0.8, finetune_flag=True, use_top5=False,
                 reward_on='val', reward_cost=False, wall='rounds', bn_batches=0, screen=0, device='cpu',
                 precision=None, seed=234):
        """Measures the float accuracy and checks that the budgets can be met.

        Args:
            model: network with float weights, on `device`.
            train_loader, val_loader: the two subsets; `train_loader.set_epoch` makes an episode reproducible.
            records: `LayerRecord` per quantizable layer.
            constraints: the budgets, `Constraint`s on costs of these layers; the first one's cost is the search's.
            min_bit, max_bit: range of the agent's choice, 1..8.
            fixed: {layer index: entry} of layers that the agent cannot change.
            finetune_epoch, finetune_lr, finetune_gamma: epochs per episode, rate, and its factor after each epoch.
            finetune_flag: False evaluates the quantized network without any training.
            use_top5: reward top-5 instead of top-1.
            reward_on: 'val', or 'train' for the running training accuracy of the last epoch, as the original did.
            reward_cost: add 1 / ratio to the accuracy difference.
            wall: how bits above the budgets are lowered, 'rounds' as in HAQ or 'greedy' (`budget.fit`).
            bn_batches: training batches on which BatchNorm statistics are estimated anew before validation; 0: none.
            screen: images on which a strategy is judged first, with `SCREEN_BATCHES` training batches for BatchNorm
                statistics; only what can still become the best is fine-tuned. 0: all are.
            device, precision: where and in which arithmetic the network runs.
            seed: of dropout and the like in each episode.

        Raises:
            ValueError: the bits are out of range, or the budgets cannot be met.
        """
        if not 1 <= min_bit <= max_bit <= 8:
            raise ValueError(f'--min_bit {min_bit} and --max_bit {max_bit}: expected 1 <= min_bit <= max_bit <= 8')
        if screen and reward_cost:
            raise ValueError('--screen predicts accuracies, --reward_cost rewards more than these: give one of them')
        if screen and not finetune_flag:
            raise ValueError(f'--screen {screen} saves fine-tuning in the episode, and there is none: leave it out, or '
                             'give --finetune_flag')
        if reward_on == 'train' and not (finetune_flag and finetune_epoch):
            raise ValueError('--reward_on train needs fine-tuning in the episode: drop it, or give --finetune_flag '
                             'and --finetune_epoch of at least 1')
        for cost in (constraint.cost for constraint in constraints):
            if cost.num_layers != len(records):
                raise ValueError(f'{cost.name} has {cost.num_layers} layers, the network has {len(records)} quantized '
                                 'layers: make the table of this network with scripts/make_lookup_table.py')
        budget.check_feasible(constraints, min_bit, max_bit, fixed, pairs=self.pairs)
        self.model, self.train_loader, self.val_loader = model, train_loader, val_loader
        self.records, self.constraints = records, list(constraints)
        self.min_bit, self.max_bit, self.fixed = min_bit, max_bit, fixed
        self.finetune_epoch, self.finetune_lr, self.finetune_gamma = finetune_epoch, finetune_lr, finetune_gamma
        self.finetune_flag, self.use_top5 = finetune_flag, use_top5
        self.reward_on, self.reward_cost, self.wall = reward_on, reward_cost, wall
        self.bn_batches, self.device, self.precision, self.seed = bn_batches, device, precision, seed
        self.screen_images, self.screen = screen, Screen()
        self.criterion = loss_function().to(device)
        self.features = layer_features(records)
        Quantization(model).synchronise()
        self._float_state, self._other_state = copy.deepcopy(model.state_dict()), OtherState(model)
        if self._other_state.left:
            logger.warning('%s cannot be copied: an episode finds there what the episode before left',
                           listed(self._other_state.left))
        self._scaler_state = copy.deepcopy(precision.scaler.state_dict()) if precision else None
        self.float_accuracy = self._accuracy(self._evaluate(train_loader if reward_on == 'train' else val_loader))
        self.reset()

    @property
    def cost(self):
        """The `CostTable` of the first constraint."""
        return self.constraints[0].cost

    @property
    def num_layers(self):
        """Number of layers in a strategy."""
        return len(self.records)

    def reset(self):
        """Starts an episode with no bits chosen; returns the first state."""
        self._chosen = []
        return self._state(self._chosen)

    def step(self, action, episode=0):
        """Takes the action of one step.

        Args:
            action: number in [0, 1].
            episode: number of the episode, which decides the order of the training images.

        Returns:
            (next state, reward, done, outcome): reward 0 and outcome None until the last step.
        """
        state, strategy = self.choose(action)
        if strategy is None:
            return state, 0.0, False, None
        outcome = self.evaluate_strategy(strategy, episode)
        return state, outcome.reward, True, outcome

    def choose(self, action):
        """Takes the action of one step without evaluating anything.

        Returns:
            (next state, None), and after the last step (its state, the strategy after the final action wall).
        """
        self._chosen.append(bits_from_action(action, self.min_bit, self.max_bit))
        if len(self._chosen) < self.num_steps:
            return self._state(self._chosen), None
        return self._state(self._chosen[:-1]), self.within_budget(self._entries(self._chosen))

    def within_budget(self, strategy):
        """Returns the strategy after the final action wall."""
        return budget.fit(strategy, self.constraints, min_bit=self.min_bit, max_bit=self.max_bit, fixed=self.fixed,
                          wall=self.wall)

    def trajectory(self, strategy):
        """Returns [(state, action)] of an episode that chose `strategy` step by step, without running it."""
        chosen = self._choices(strategy)
        return [(self._state(chosen[:step]), action_from_bits(bits, self.min_bit, self.max_bit))
                for step, bits in enumerate(chosen)]

    def evaluate_strategy(self, strategy, episode=0):
        """Quantizes the float network, fine-tunes it shortly and validates it.

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
        seed_everything(self.seed, 'screen', episode)
        screened = self._look(strategy, episode) if self.screen_images else None
        if screened and not self.screen.promising(self._accuracy(screened)):
            accuracy, _ = self.screen.predict(self._accuracy(screened))
            return self._outcome(strategy, accuracy, screened.loss, self._accuracy(screened), finetuned=False)
        seed_everything(self.seed, 'episode', episode)
        quantization = self.quantize(strategy)
        metrics = self._finetune(quantization, episode) if self.finetune_flag else None
        quantization.synchronise()
        if self.reward_on == 'val':
            self._reestimate(episode, self.bn_batches)
            metrics = self._evaluate(self.val_loader)
        if screened:
            self.screen.add(self._accuracy(screened), self._accuracy(metrics))
        return self._outcome(strategy, self._accuracy(metrics), metrics.loss,
                             self._accuracy(screened) if screened else None)

    def _look(self, strategy, episode):
        """Returns the `Metrics` of a strategy without fine-tuning, on the images of the screen."""
        self.quantize(strategy)
        if batch_norms(self.model):
            self._reestimate(episode, SCREEN_BATCHES)
        batches = -(-self.screen_images // self.val_loader.batch_size)
        return self._evaluate(list(islice(self.val_loader, batches)))

    def _outcome(self, strategy, accuracy, loss, screened, finetuned=True, diverged=None):
        ratio = self.cost.ratio(strategy)
        reward = 0.1 * (accuracy - self.float_accuracy + (1 / ratio if self.reward_cost and not diverged else 0))
        if not math.isfinite(reward):
            raise FloatingPointError(f'the reward of {strategy} is {reward} (accuracy {accuracy})')
        ratios = {constraint.cost.name: constraint.cost.ratio(strategy) for constraint in self.constraints}
        return Outcome(strategy, accuracy, loss, self.cost.cost(strategy), ratio, ratios, reward, screened, finetuned,
                       diverged)

    def quantize(self, strategy):
        """Gives the network all that it had at first and quantizes it; returns the `Quantization`."""
        self._begin()
        return self._quantize(strategy)

    def _begin(self):
        """Brings the network, and the factor of mixed precision, to where every episode begins."""
        self._other_state.restore()  # first: buffers may have another shape by now
        self.model.load_state_dict(self._float_state)
        if self._scaler_state:
            self.precision.scaler.load_state_dict(self._scaler_state)

    def weights_digest(self):
        """Returns a text that is another one for other float weights or buffers."""
        digest = hashlib.sha256()
        for name, value in self._float_state.items():
            if isinstance(value, torch.Tensor):
                digest.update(name.encode())
                digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @contextmanager
    def float_network(self):
        """Within this context the network is the float one, in evaluation mode; afterwards it is what it was before."""
        state, other = copy.deepcopy(self.model.state_dict()), OtherState(self.model)
        self._begin()
        self.model.eval()
        try:
            yield self.model
        finally:
            other.restore()
            self.model.load_state_dict(state)

    def with_constraints(self, constraints):
        """Returns an environment with other budgets that shares network, images and codebooks with this one.

        Raises:
            ValueError: the budgets cannot be met.
        """
        budget.check_feasible(constraints, self.min_bit, self.max_bit, self.fixed, pairs=self.pairs)
        other = copy.copy(self)
        other.constraints = list(constraints)
        return other

    def _finetune(self, quantization, episode):
        optimizer = torch.optim.SGD(quantization.parameters(), lr=self.finetune_lr, momentum=0.9, weight_decay=4e-5)
        metrics = None
        for epoch in range(self.finetune_epoch):
            set_learning_rate(optimizer, self.finetune_lr * self.finetune_gamma ** epoch)
            self.train_loader.set_epoch(episode * self.finetune_epoch + epoch)
            metrics = train_one_epoch(self.model, self.train_loader, self.criterion, optimizer, self.device,
                                      quantization.after_step, before_step=quantization.before_step,
                                      precision=self.precision, title=f'episode {episode}')
            quantization.after_epoch(optimizer)
        return metrics

    def _reestimate(self, episode, batches):
        if batches:
            self.train_loader.set_epoch(episode * self.finetune_epoch)
            reestimate_batch_norm(self.model, self.train_loader, batches, self.device, self.precision)

    def _evaluate(self, loader):
        return evaluate(self.model, loader, self.criterion, self.device, precision=self.precision)

    def _accuracy(self, metrics):
        return metrics.top5 if self.use_top5 else metrics.top1
