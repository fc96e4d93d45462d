"""What happens in an episode, and what comes of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EpisodeSettings:
    """How a strategy is evaluated.

    Attributes:
        finetune_flag: whether the quantized network is trained before it is judged.
        finetune_epoch, finetune_lr, finetune_gamma: epochs of that training, its rate, the factor after each epoch.
        use_top5: reward top-5 instead of top-1.
        reward_on: 'val', or 'train' for the running training accuracy of the last epoch, as the original did.
        reward_cost: add 1 / ratio to the accuracy difference.
        bn_batches: training batches on which BatchNorm statistics are estimated anew before validation; 0: none.
        screen: images on which a strategy is judged first; only what can still become the best is fine-tuned; 0: all.
        seed: of clustering, dropout and the like.

    Raises:
        ValueError: the settings contradict each other.
    """

    finetune_flag: bool = True
    finetune_epoch: int = 1
    finetune_lr: float = 1e-3
    finetune_gamma: float = 0.8
    use_top5: bool = False
    reward_on: str = 'val'
    reward_cost: bool = False
    bn_batches: int = 0
    screen: int = 0
    seed: int = 234

    def __post_init__(self):
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
