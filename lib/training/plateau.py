"""A learning rate that falls where the validation accuracy stops rising."""

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau


class PlateauRate:
    """The learning rate of an epoch, computed anew from the accuracies of the epochs before it.

    The first `warmup_epochs` go from `warmup_lr` to `lr` on a line; then torch's ReduceLROnPlateau takes over. Its
    whole state is `history`, so a resumed run takes the right rates.

    Args:
        lr: the highest rate.
        warmup_epochs, warmup_lr: of the warm-up.
        history: validation accuracies so far, one per epoch, None where there was no evaluation; appended to by
            `observe`.
        **schedule: `factor`, `patience`, `threshold`, `cooldown` and `min_lr` of ReduceLROnPlateau.
    """

    def __init__(self, lr: float, *, warmup_epochs: int = 0, warmup_lr: float = 0.0, history: list | None = None,
                 **schedule):
        self.lr, self.warmup_epochs, self.warmup_lr = lr, warmup_epochs, warmup_lr
        self.schedule = {'mode': 'max', 'factor': 0.5, 'patience': 3, **schedule}
        self.history = [] if history is None else history

    def __call__(self, epoch: int) -> float:
        """Return the rate of an epoch, counted from 0."""
        if epoch < self.warmup_epochs:
            return self.warmup_lr + (self.lr - self.warmup_lr) * epoch / self.warmup_epochs
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=self.lr)
        scheduler = ReduceLROnPlateau(optimizer, **self.schedule)
        for accuracy in self.history[self.warmup_epochs:epoch]:
            if accuracy is not None:
                scheduler.step(accuracy)
        return optimizer.param_groups[0]['lr']

    def observe(self, accuracy: float | None) -> None:
        """Add the validation accuracy of an epoch, or None."""
        self.history.append(accuracy)
