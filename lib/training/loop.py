"""The one training loop and the one evaluation loop, used by every script and by both environments."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from progress.bar import Bar
from torch import Tensor, nn

from lib.network.hooks import evaluating
from lib.network.not_finite import where_not_finite
from lib.runtime import distributed
from lib.training.distillation import Distillation
from lib.training.mixing import Mixing
from lib.utils.utils import MetricCounter, Metrics


class Precision:
    """Decide once in which arithmetic and memory layout a network runs.

    The arithmetic is float32, or mixed precision by `torch.amp`: float16 with a gradient scaler on CUDA and bfloat16,
    which needs none, on the CPU. With `channels_last` the images, and so the activations, are laid out as N, H, W, C.
    """

    def __init__(self, device: torch.device | str, half: bool = False, channels_last: bool = False):
        self.device_type, self.half = torch.device(device).type, half
        self.dtype = torch.float16 if self.device_type == 'cuda' else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=half and self.device_type == 'cuda')
        self.channels_last = channels_last

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which the forward pass runs."""
        if not self.half:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, dtype=self.dtype)

    def to(self, device: torch.device | str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch on the device, in the memory layout."""
        return self.place(device, images), labels.to(device, non_blocking=True)

    def place(self, device: torch.device | str, images: Tensor) -> Tensor:
        """Return images on the device, in the memory layout."""
        layout = {'memory_format': torch.channels_last} if self.channels_last and images.dim() == 4 else {}
        return images.to(device, non_blocking=True, **layout)


def train_one_epoch(model: nn.Module, loader: Any, criterion: Callable, optimizer: torch.optim.Optimizer,
                    device: torch.device | str, after_step: Callable | None = None, *,
                    before_step: Callable | None = None, precision: Precision | None = None, title: str = 'train',
                    mixing: Mixing | None = None, distillation: Distillation | None = None) -> Metrics:
    """Train `model` over `loader` once.

    With several processes each has its part of every batch, and the gradients are those of the mean loss over the whole
    batch, whatever the sizes of the parts. At the end all have the same BatchNorm statistics.

    Args:
        model: any module that maps images (N, C, H, W) to logits (N, classes).
        loader: iterable of (images, labels), of the same length in all processes.
        criterion: loss of (logits, labels), averaged over the batch; with a `distillation` of (logits, labels, loss of
            the task as a function of both).
        after_step: called without arguments after every optimizer step (writes trained centroids to the weights).
        before_step: called after the backward pass (moves the weights' gradients to the centroids).
        mixing: what becomes of images and labels; None: nothing.
        distillation: the network learns from a teacher; None: from labels alone.

    Returns:
        The `Metrics` in training mode, while the weights moved, over the images of all processes.

    Raises:
        FloatingPointError: the loss is not finite, here or in another process; the batch and the first layer concerned
            are named.
        LostPeer: another process has ended.
    """
    precision, mixing = precision or Precision(device), mixing or Mixing()
    _check_lengths(loader, title)
    model.train()
    network, counter = None, MetricCounter()
    for step, (images, labels) in enumerate(_bar(title, loader)):
        images, labels = precision.to(device, images, labels)
        images, shares = mixing.images(images)
        with precision.autocast(), distributed.watching():
            network = network or distributed.data_parallel(model, images)
            logits = network(images)
            targets, labels = mixing.targets(labels, shares, logits.shape[-1])
            loss = criterion(logits, targets, distillation.on(images)) if distillation else criterion(logits, targets)
        value = loss.item()
        batch, failed = distributed.total(len(labels), not math.isfinite(value))
        if failed:
            _stop(model, images, value, f'batch {step} of {title}')
        optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel divides by the number of processes what is to be divided by the images of the batch.
        share = distributed.world_size() * len(labels) / batch
        with distributed.watching():
            precision.scaler.scale(loss * share).backward()
        if before_step:
            before_step()
        precision.scaler.step(optimizer)
        precision.scaler.update()
        if after_step:
            after_step()
        counter.add(value, logits, labels)
    distributed.average_running_statistics(model)
    return counter.result()


def _check_lengths(loader, title):
    lengths = distributed.gather(torch.tensor(len(loader))).tolist()
    if len(set(lengths)) > 1:
        raise ValueError(f'the processes have {", ".join(map(str, lengths))} batches of {title}: all need the same '
                         'number, or some would wait for the others for ever')


def _stop(model, images, value, where):
    reason = where_not_finite(model, images)  # in all processes, for a synchronised BatchNorm waits for all
    distributed.agree(None if math.isfinite(value) else FloatingPointError(
        f'the loss became {value} at {where}: {reason}; lower the learning rate or raise the bits of that layer'))


@torch.no_grad()
def evaluate(model: nn.Module, loader: Any, criterion: Callable, device: torch.device | str, *,
             precision: Precision | None = None, title: str = 'valid',
             watch: Callable[[Tensor], Any] | None = None) -> Metrics:
    """Evaluate `model` in evaluation mode over `loader`, and give it its former mode back.

    With several processes each evaluates its own images, as many as it has, and all get the `Metrics` of all images.
    `watch` is called with the logits of every batch.

    Returns:
        The `Metrics` over exactly the images of the loaders.

    Raises:
        FloatingPointError: the loss is not finite, here or in another process; the first layer concerned is named.
        LostPeer: another process has ended.
    """
    precision, error, counter = precision or Precision(device), None, MetricCounter()
    with evaluating(model):
        for step, (images, labels) in enumerate(_bar(title, loader)):
            images, labels = precision.to(device, images, labels)
            with precision.autocast():
                logits = model(images)
                loss = criterion(logits, labels).item()
            if not math.isfinite(loss):
                error = FloatingPointError(f'the loss is {loss} at batch {step} of {title}: '
                                           f'{where_not_finite(model, images)}; begin with weights and images that are '
                                           'finite, or train at a lower learning rate')
                break
            counter.add(loss, logits, labels)
            if watch:
                watch(logits)
    distributed.agree(error)
    return counter.result()


def loss_function() -> nn.Module:
    """Return the criterion of all scripts, cross entropy averaged over the batch."""
    return nn.CrossEntropyLoss()


def _bar(title, loader):
    if not distributed.is_main():
        return loader
    suffix = '%(index)d/%(max)d  %(elapsed_td)s  left %(eta_td)s'
    return Bar(f'{title:>12}', max=len(loader), suffix=suffix).iter(loader)
