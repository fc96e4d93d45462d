"""A learning rate that falls where the validation accuracy stops rising."""

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


class PlateauRate:
    """The learning rate of an epoch, computed anew from the accuracies of the epochs before it.

    The first `warmup_epochs` go from `warmup_lr` to `lr` on a line; then torch's ReduceLROnPlateau takes over. Its
    whole state is `history`, so a resumed run takes the right rates.

    Args:
        lr, min_lr: highest and lowest rate.
        warmup_epochs, warmup_lr: of the warm-up.
        factor, patience, threshold, cooldown: those of ReduceLROnPlateau, mode 'max'.
        history: validation accuracies so far, one per epoch, None where there was no evaluation; appended to by
            `observe`.
    """

    def __init__(self, lr: float, *, min_lr: float = 0.0, warmup_epochs: int = 0, warmup_lr: float = 0.0,
                 factor: float = 0.5, patience: int = 3, threshold: float = 0.0001, cooldown: int = 0,
                 history: list | None = None):
        self.lr, self.warmup_epochs, self.warmup_lr = lr, warmup_epochs, warmup_lr
        self.settings = {'mode': 'max', 'factor': factor, 'patience': patience, 'threshold': threshold,
                         'cooldown': cooldown, 'min_lr': min_lr}
        self.history = [] if history is None else history

    def __call__(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup_epochs
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.lr)
        scheduler = ReduceLROnPlateau(optimizer, **self.settings)
        for accuracy in self.history[self.warmup_epochs:epoch]:
            if accuracy is not None:
                scheduler.step(accuracy)
        return optimizer.param_groups[0]['lr']

    def observe(self, accuracy: float | None) -> None:
        """Add the validation accuracy of an epoch, or None."""
        self.history.append(accuracy)
