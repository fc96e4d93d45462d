"""What a strategy is judged by: its accuracy, or how near the quantized network comes to the float one."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from lib.runtime import distributed

REWARDS = ('accuracy', 'agreement', 'loss', 'kl')
AGAINST_FLOAT = ('agreement', 'kl')  # those that compare outputs with the float network's
JUDGED_EPOCH = 10**6  # of the training loader, far from those that episodes train in


class FirstBatches:
    """The first batches of one epoch of a training loader: the same images, augmented alike, whenever they are served.

    Attributes:
        num_images: in whole batches, at least as many as asked for where the loader has them.
        batch_size: that of the loader.
    """

    def __init__(self, loader, images: int):
        self.loader, self.batch_size = loader, loader.batch_size
        self._count = min(-(-images // loader.batch_size), len(loader))
        self.num_images = min(self._count * loader.batch_size, loader.num_images)

    def __len__(self):
        return self._count

    def __iter__(self) -> Iterator:
        self.loader.set_epoch(JUDGED_EPOCH)
        yield from islice(self.loader, self._count)


def score(kind: str, loss: float, logits: Sequence[Tensor], float_logits: Sequence[Tensor]) -> float:
    """Return how good a quantized network is, in percent; its difference to that of the float network is rewarded.

    * 'agreement': images with the same most likely class as by the float network.
    * 'loss': 100 exp(-loss), the geometric mean of the probability of the right class.
    * 'kl': 100 exp(-KL), KL being that from the float network's probabilities to the quantized one's, mean over images.

    Near the float network 100 exp(-x) falls by one point where x rises by 0.01; far from it, it ends at 0, as accuracy
    does, so that no strategy has a reward below -10.

    Args:
        kind: one of `REWARDS` but 'accuracy'.
        loss: mean cross entropy over the images of all processes.
        logits: (N, classes) of each batch of this process, by the quantized network.
        float_logits: the same by the float network; both are empty for 'loss'.
    """
    if kind == 'loss':
        return 100 * math.exp(-loss)
    measure = _same if kind == 'agreement' else _divergence
    sums = sum(measure(*pair) for pair in zip(logits, float_logits, strict=True))
    images, sums = distributed.total(sum(map(len, logits)), sums)
    return 100 * sums / images if kind == 'agreement' else 100 * math.exp(-sums / images)


def _same(logits, reference) -> int:
    return int((logits.argmax(1) == reference.argmax(1)).sum())


def _divergence(logits, reference) -> float:
    log_q, log_p = (each.double().log_softmax(1) for each in (logits, reference))
    return torch.nn.functional.kl_div(log_q, log_p, reduction='sum', log_target=True).item()
