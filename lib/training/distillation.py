"""Distillation: a quantized network learns from the outputs of the float one, its teacher."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DISTILL = ('none', 'float')


@dataclass(frozen=True)
class Distillation:
    """What takes the place of the cross entropy with the labels (Hinton, Vinyals and Dean, 1503.02531).

    With p and q the softmax of the teacher's and of the network's logits over T, the loss of an image is

        (1 - a) CE(label, logits) + a T^2 sum_c p_c log(p_c / q_c).

    The factor T^2 keeps its gradient, a T (q - p), as large at every temperature. Example: logits (2, 0), of the
    teacher (4, 0), T = 4 and a = 1: p = (0.7311, 0.2689), q = (0.6225, 0.3775), loss 16 * 0.02634 = 0.4215.

    Attributes:
        teacher: a network of the same outputs, which stays as it is; it gets the very images that the network trains
            on, augmented and mixed, and is put into evaluation mode.
        temperature: T.
        weight: a, above 0 and at most 1; with 1 labels do not count.

    Raises:
        ValueError: a value is out of range.
    """

    teacher: nn.Module
    temperature: float = 4.0
    weight: float = 1.0

    def __post_init__(self):
        check_distillation(self.temperature, self.weight)
        self.teacher.eval().requires_grad_(False)

    def on(self, images: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the loss on a batch, as a function of the network's logits and the labels."""
        with torch.no_grad():
            taught = self.teacher(images)
        return lambda logits, labels: self._loss(logits, labels, taught)

    def _loss(self, logits: Tensor, labels: Tensor, taught: Tensor) -> Tensor:
        theirs, ours = ((each.float() / self.temperature).log_softmax(1) for each in (taught, logits))
        loss = self.temperature**2 * F.kl_div(ours, theirs, reduction='batchmean', log_target=True)
        return loss if self.weight == 1 else torch.lerp(F.cross_entropy(logits.float(), labels), loss, self.weight)


def check_distillation(temperature: float, weight: float) -> None:
    """Raise ValueError where a value is out of range."""
    if not (0 < temperature < math.inf and 0 < weight <= 1):
        raise ValueError(f'distill_temperature {temperature}, distill_weight {weight}: expected a number above 0, and '
                         'one of these that is at most 1')
