"""How a network is trained: epochs, schedule of the learning rate, optimizer, seed."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from lib.training.averaging import WeightAverage
from lib.training.mixing import Mixing
from lib.training.optimizer import clip_norm, learned_by_quantizers, parameter_groups, without_decay
from lib.utils.quantize_utils import Quantization
from lib.utils.utils import learning_rate

CHOICES = {'lr_type': ('cos', 'exp', 'step3', 'fixed'), 'warmup_type': ('constant', 'linear'),
           'opt': ('sgd', 'adam', 'adamw')}


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training; the defaults are those of HAQ's pretraining.

    Attributes:
        epochs: in all.
        lr, lr_type, lr_min, warmup_epoch, warmup_type, schedule, gamma: of the learning rate, as in `learning_rate`.
        opt: 'sgd', 'adam' with the betas 0.5 and 0.999 of the original, or 'adamw' with 0.9 and 0.999 and a decay that
            is decoupled from the gradient (Loshchilov and Hutter, 1711.05101).
        momentum, weight_decay: of the optimizer.
        decay_norms: norms, biases and what quantizers learn decay, too (`without_decay`); None: not with 'adamw'.
        decay_steps: what quantizers learn decays; None: as norms do.
        grad_clip: largest norm of the gradient; None: it is not clipped.
        label_smoothing, mixup, cutmix: of `Mixing`.
        ema_decay: validate and save a running average of the weights, a `WeightAverage` of this decay; 0: none.
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
    warmup_type: str = 'constant'
    schedule: tuple = (31, 61, 91)
    gamma: float = 0.1
    opt: str = 'sgd'
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norms: bool | None = None
    decay_steps: bool | None = None
    grad_clip: float | None = None
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema_decay: float = 0.0
    bn_batches: int = 0
    seed: int = 234
    evaluate_every: int = 1
    keep_every: int = 0

    def __post_init__(self):
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f'{name} {getattr(self, name)!r}: expected {", ".join(known)}')
        for name in ('epochs', 'lr_min', 'warmup_epoch', 'momentum', 'weight_decay', 'bn_batches', 'mixup', 'cutmix'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name} {getattr(self, name)}: expected a number of at least 0')
        for name in ('label_smoothing', 'ema_decay'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f'{name} {getattr(self, name)}: expected a number of at least 0 and below 1')
        if self.warmup_type == 'linear' and not self.warmup_epoch:
            raise ValueError('warmup_type linear without a warm-up: give warmup_epoch the epochs that it takes')
        if not self.evaluate_every >= 1 or not self.keep_every >= 0:
            raise ValueError(f'evaluate_every {self.evaluate_every}, keep_every {self.keep_every}: expected at least 1 '
                             'and at least 0')
        if not self.lr > 0 or self.grad_clip is not None and not self.grad_clip > 0:
            raise ValueError(f'lr {self.lr}, grad_clip {self.grad_clip}: expected numbers above 0')

    def rate(self, epoch: float) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        return learning_rate(epoch, lr=self.lr, epochs=self.epochs, lr_type=self.lr_type, schedule=self.schedule,
                             gamma=self.gamma, warmup_epoch=self.warmup_epoch, warmup_type=self.warmup_type,
                             lr_min=self.lr_min)

    def mixing(self) -> Mixing:
        """Return what becomes of images and labels."""
        return Mixing(self.mixup, self.cutmix, self.label_smoothing)

    def average(self, quantization: Quantization) -> WeightAverage | None:
        """Return the running average of the weights, if there is to be one."""
        return WeightAverage(quantization, self.ema_decay) if self.ema_decay else None

    def optimizer(self, parameters: Iterable[nn.Parameter], model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of the parameters, which clips the norm of their gradient first if it is to.

        Args:
            parameters: what is trained.
            model: where norms and biases are looked for; None: all parameters decay.
        """
        decays = self.opt != 'adamw' if self.decay_norms is None else self.decay_norms
        groups = parameter_groups(parameters, self._spared(model, decays) if model else set())
        if self.opt == 'sgd':
            optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        else:
            kind, beta = {'adam': (torch.optim.Adam, 0.5), 'adamw': (torch.optim.AdamW, 0.9)}[self.opt]
            optimizer = kind(groups, lr=self.lr, betas=(beta, 0.999), weight_decay=self.weight_decay)
        if self.grad_clip:
            clip_norm(optimizer, self.grad_clip)
        return optimizer

    def _spared(self, model, decays):
        """Return the ids of the Parameters that do not decay."""
        spared, learned = set() if decays else without_decay(model), learned_by_quantizers(model)
        return spared if self.decay_steps is None else spared - learned if self.decay_steps else spared | learned
