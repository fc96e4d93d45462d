"""What users of the original know from here: metrics, learning rates, seeds, the log of a training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.record.files import write_text  # noqa: F401
from lib.record.logs import TableLog  # noqa: F401
from lib.runtime import distributed
from lib.runtime.seeds import derived_seed, seed_everything  # noqa: F401


@dataclass(frozen=True)
class Metrics:
    """Averages over exactly the images seen: cross entropy, and top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float


class MetricCounter:
    """Count loss and hits image by image, so that a short last batch weighs what it should."""

    def __init__(self):
        self.images, self.loss, self.hits1, self.hits5 = 0, 0.0, 0, 0

    def add(self, loss: float, logits: Tensor, labels: Tensor) -> None:
        """Add one batch: mean loss (float), logits (N, classes), labels (N,)."""
        top = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5), or fewer classes
        hit = top.eq(labels[:, None])
        self.images += len(labels)
        self.loss += loss * len(labels)
        self.hits1 += int(hit[:, 0].sum())
        self.hits5 += int(hit.sum())

    def result(self) -> Metrics:
        """Return the `Metrics` of all batches added so far, by all processes."""
        images, loss, hits1, hits5 = distributed.total(self.images, self.loss, self.hits1, self.hits5)
        n = max(images, 1)
        return Metrics(loss / n, 100.0 * hits1 / n, 100.0 * hits5 / n)


def learning_rate(epoch: int, *, lr: float, epochs: int, lr_type: str = 'cos', schedule: Sequence[int] = (31, 61, 91),
                  gamma: float = 0.1, warmup_epoch: int = 0, lr_min: float = 0.0, warmup_type: str = 'constant'
                  ) -> float:
    """Return the learning rate of an epoch, computed from the epoch alone, so that a resumed run takes the right one.

    cos `lr_min + .5 (lr - lr_min) (1 + cos(pi e / epochs))`; exp `lr gamma^e`; step3
    `lr gamma^(number of schedule entries <= e)`; fixed `lr`. In the first `warmup_epoch` epochs, w, it is the
    constant `lr * gamma`. If the warm-up is 'linear', it is `lr (gamma + (1 - gamma) e / w)` there, and cos and exp
    begin after it: e - w stands for e, epochs - w for epochs.

    Raises:
        ValueError: unknown `lr_type`.
    """
    if epoch < warmup_epoch:
        return lr * (gamma if warmup_type == 'constant' else gamma + (1 - gamma) * epoch / warmup_epoch)
    if warmup_type == 'linear' and lr_type in ('cos', 'exp'):
        epoch, epochs = epoch - warmup_epoch, epochs - warmup_epoch
    if lr_type == 'cos':
        return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * epoch / epochs))
    if lr_type == 'exp':
        return lr * gamma ** epoch
    if lr_type == 'step3':
        return lr * gamma ** sum(epoch >= step for step in schedule)
    if lr_type == 'fixed':
        return lr
    raise ValueError(f'unknown lr_type {lr_type!r}: expected cos, exp, step3 or fixed')


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group of `optimizer` the learning rate `lr`."""
    for group in optimizer.param_groups:
        group['lr'] = lr
