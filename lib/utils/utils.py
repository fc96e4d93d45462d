"""Small tools that every script shares: metrics, learning rate schedules, seeds, text logs."""

import hashlib
import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.record.files import is_file, read_text, write_text
from lib.utils import distributed


@dataclass(frozen=True)
class Metrics:
    """Averages over exactly the images seen: cross entropy, and top-1 and top-5 accuracy in percent."""

    loss: float
    top1: float
    top5: float


class MetricCounter:
    """Counts loss and hits image by image, so that a short last batch weighs what it should."""

    def __init__(self):
        self.images, self.loss, self.hits1, self.hits5 = 0, 0.0, 0, 0

    def add(self, loss, logits, labels):
        """Adds one batch: mean loss (float), logits (N, classes), labels (N,)."""
        top = logits.detach().topk(min(5, logits.shape[1]), dim=1).indices  # (N, 5), or fewer classes
        hit = top.eq(labels[:, None])
        self.images += len(labels)
        self.loss += loss * len(labels)
        self.hits1 += int(hit[:, 0].sum())
        self.hits5 += int(hit.sum())

    def result(self):
        """Returns the `Metrics` of all batches added so far, by all processes."""
        images, loss, hits1, hits5 = distributed.total(self.images, self.loss, self.hits1, self.hits5)
        n = max(images, 1)
        return Metrics(loss / n, 100.0 * hits1 / n, 100.0 * hits5 / n)


def learning_rate(epoch, *, lr, epochs, lr_type='cos', schedule=(31, 61, 91), gamma=0.1, warmup_epoch=0, lr_min=0.0):
    """Learning rate of an epoch, computed from the epoch alone, so that a resumed run takes the right one.

    cos `lr_min + .5 (lr - lr_min) (1 + cos(pi e / epochs))`; exp `lr gamma^e`; step3
    `lr gamma^(number of schedule entries <= e)`; fixed `lr`. In the first `warmup_epoch` epochs it is the constant
    `lr * gamma`.

    Raises:
        ValueError: unknown `lr_type`.
    """
    if epoch < warmup_epoch:
        return lr * gamma
    if lr_type == 'cos':
        return lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * epoch / epochs))
    if lr_type == 'exp':
        return lr * gamma ** epoch
    if lr_type == 'step3':
        return lr * gamma ** sum(epoch >= step for step in schedule)
    if lr_type == 'fixed':
        return lr
    raise ValueError(f'unknown --lr_type {lr_type!r}: expected cos, exp, step3 or fixed')


def set_learning_rate(optimizer, lr):
    """Gives every parameter group of `optimizer` the learning rate `lr`."""
    for group in optimizer.param_groups:
        group['lr'] = lr


def derived_seed(*parts):
    """Returns a 63-bit seed that depends on all `parts` (numbers and names), the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], 'little') >> 1


def seed_everything(*parts):
    """Seeds the global generators of Python, NumPy and torch from `parts`, e.g. (seed, 'epoch', 3).

    Called at the start of every epoch and episode: a resumed run then draws what an uninterrupted one would. Of several
    processes each has a seed of its own (dropout), the main one that of a single process.
    """
    seed = derived_seed(*parts, *([] if distributed.is_main() else [distributed.rank()]))
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)  # noqa: NPY002  (for data set code of users that draws from the global generator)
    torch.manual_seed(seed)


class TableLog:
    """The originals' `log.txt`: one tab-separated line an epoch under a line of column names."""

    def __init__(self, path, columns, keep_rows=0):
        """Starts the log, or continues it after its first `keep_rows` rows (later ones belong to a killed epoch).

        Raises:
            ValueError: the file is no such log.
        """
        self.path, self.rows = Path(path), [list(columns)]
        if keep_rows and is_file(self.path):
            lines = read_text(self.path, 'log of a training').split('\n')[1:1 + keep_rows]
            self.rows += [line.split('\t') for line in lines if line]
            try:
                self.columns()
            except (ValueError, IndexError) as error:
                raise ValueError(f'{self.path} cannot be continued as the log of a training: expected {len(columns)} '
                                 'numbers a line; move it away, and another is begun') from error

    def append(self, values):
        """Adds a row of numbers and writes the file atomically."""
        self.rows.append([f'{value:.6f}' for value in values])
        write_text(self.path, ''.join('\t'.join(row) + '\n' for row in self.rows))

    def columns(self):
        """Returns the logged numbers as {column name: list of floats}."""
        names, *rows = self.rows
        return {name: [float(row[i]) for row in rows] for i, name in enumerate(names)}
