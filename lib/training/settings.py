"""How a network is trained: epochs, schedule of the learning rate, optimizer, seed."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lib.utils.utils import learning_rate

SCHEDULES, OPTIMIZERS = ('cos', 'exp', 'step3', 'fixed'), ('sgd', 'adam')


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; the defaults are those of HAQ's pretraining.

    Attributes:
        epochs: in all.
        lr, lr_type, lr_min, warmup_epoch, schedule, gamma: of the learning rate, as in `learning_rate`.
        opt: 'sgd', or 'adam' with the betas 0.5 and 0.999 of the original.
        momentum, weight_decay: of the optimizer.
        grad_clip: largest norm of the gradient; None: it is not clipped.
        bn_batches: training batches on which BatchNorm statistics are estimated anew before each validation; 0: none.
        seed: with the epoch, of everything random in it.
        evaluate_every: validate after every so many epochs, and after the last.
        keep_every: keep the checkpoint of every so many epochs; 0: of none.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = 100
    lr: float = 0.1
    lr_type: str = 'cos'
    lr_min: float = 0.0
    warmup_epoch: int = 0
    schedule: tuple = (31, 61, 91)
    gamma: float = 0.1
    opt: str = 'sgd'
    momentum: float = 0.9
    weight_decay: float = 1e-4
    grad_clip: float | None = None
    bn_batches: int = 0
    seed: int = 234
    evaluate_every: int = 1
    keep_every: int = 0

    def __post_init__(self):
        for name, known in (('lr_type', SCHEDULES), ('opt', OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise ValueError(f'{name} {getattr(self, name)!r}: expected {", ".join(known)}')
        for name in ('epochs', 'lr_min', 'warmup_epoch', 'momentum', 'weight_decay', 'bn_batches'):
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name} {getattr(self, name)} is below 0')
        if not self.evaluate_every >= 1 or not self.keep_every >= 0:
            raise ValueError(f'evaluate_every {self.evaluate_every}, keep_every {self.keep_every}: expected at least 1 '
                             'and at least 0')
        if not self.lr > 0 or self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f'lr {self.lr}, grad_clip {self.grad_clip}: expected numbers above 0')

    def rate(self, epoch: float) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        return learning_rate(epoch, lr=self.lr, epochs=self.epochs, lr_type=self.lr_type, schedule=self.schedule,
                             gamma=self.gamma, warmup_epoch=self.warmup_epoch, lr_min=self.lr_min)

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters, which clips the norm of their gradient first if it is to."""
        parameters = list(parameters)
        if self.opt == 'adam':
            optimizer = torch.optim.Adam(parameters, lr=self.lr, betas=(0.5, 0.999), weight_decay=self.weight_decay)
        else:
            optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        if self.grad_clip:  # by the time of the step there is no factor of mixed precision in it any more
            def clip(*_):
                torch.nn.utils.clip_grad_norm_(parameters, self.grad_clip)

            optimizer.register_step_pre_hook(clip)
        return optimizer
