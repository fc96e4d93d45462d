"""What happens in an episode, and what comes of it."""

from dataclasses import dataclass

from lib.env.judging import REWARDS
from lib.training.distillation import DISTILL, check_distillation


@dataclass(frozen=True)
class EpisodeSettings:
    """How a strategy is evaluated.

    Attributes:
        finetune_flag: whether the quantized network is trained before it is judged.
        finetune_epoch, finetune_lr, finetune_gamma: epochs of that training, its rate, the factor after each epoch.
        use_top5: reward top-5 instead of top-1.
        reward: what a strategy is rewarded for: its 'accuracy', or another `score`.
        reward_on: 'val' for the validation subset; 'augmented' for as many training images, the same and augmented
            alike in all episodes; 'train' for the running training accuracy of the last epoch, as the original did.
        reward_cost: add 1 / ratio to the difference that is rewarded.
        bn_batches: training batches on which BatchNorm statistics are estimated anew before validation; 0: none.
        screen: images on which a strategy is judged first; only what can still become the best is fine-tuned; 0: all.
        distill: 'float': fine-tuning learns from the outputs of the float network, see `Distillation`; 'none': not.
        distill_temperature, distill_weight: of it.
        seed: of dropout and the like.

    Raises:
        ValueError: the settings contradict each other.
    """

    finetune_flag: bool = True
    finetune_epoch: int = 1
    finetune_lr: float = 1e-3
    finetune_gamma: float = 0.8
    use_top5: bool = False
    reward: str = 'accuracy'
    reward_on: str = 'val'
    reward_cost: bool = False
    bn_batches: int = 0
    screen: int = 0
    distill: str = 'none'
    distill_temperature: float = 4.0
    distill_weight: float = 1.0
    seed: int = 234

    def __post_init__(self):
        if self.reward not in REWARDS:
            raise ValueError(f'reward {self.reward!r}: expected one of {", ".join(REWARDS)}')
        others = {'use_top5': self.use_top5, 'screen': self.screen, 'reward_on train': self.reward_on == 'train'}
        if self.reward != 'accuracy' and any(others.values()):
            name = next(name for name, given in others.items() if given)
            raise ValueError(f'reward {self.reward} and {name}, which is about accuracies: give one of them')
        check_distillation(self.distill_temperature, self.distill_weight)
        if self.distill not in DISTILL or self.distill != 'none' and not self.finetune_flag:
            raise ValueError(f'distill {self.distill} with finetune_flag {self.finetune_flag}: expected '
                             f'{" or ".join(DISTILL)}, and without fine-tuning in the episode none')
        if self.screen and self.reward_cost:
            raise ValueError('screen predicts accuracies, reward_cost rewards more than these: give one of them')
        if self.screen and not self.finetune_flag:
            raise ValueError(f'screen {self.screen} saves fine-tuning in the episode, and there is none: leave it out, '
                             'or give finetune_flag')
        if self.reward_on == 'train' and not (self.finetune_flag and self.finetune_epoch):
            raise ValueError('reward_on train needs fine-tuning in the episode: drop it, or give finetune_flag and '
                             'finetune_epoch of at least 1')


@dataclass(frozen=True)
class Outcome:
    """What an episode found: the strategy as executed, its accuracy (percent), cost, ratios and reward.

    `cost` and `ratio` (cost / reference) are those of the first constraint, `ratios` holds {cost name: ratio} of all.
    `score` is what is rewarded where that is not the accuracy. With a screen, `screened` is the accuracy at first
    sight; where `finetuned` is False, that was all, and accuracy and reward are predictions from it. Where the network
    became NaN or infinite, `diverged` says where; the accuracy is then 0, the reward the lowest that there is, and the
    loss None.
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
    score: float | None = None
