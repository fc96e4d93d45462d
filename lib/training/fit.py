"""The epochs of a training run, resumable to the same numbers, and the record of them."""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.record import plots
from lib.record.checkpoint import save_checkpoint, tensor_bytes
from lib.record.disk import check_space, free_space, megabytes
from lib.record.files import write_json
from lib.record.logs import ScalarLog, TableLog
from lib.runtime import distributed
from lib.runtime.seeds import seed_everything
from lib.training.averaging import WeightAverage
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.distillation import Distillation
from lib.training.loop import Precision, evaluate, loss_function, train_one_epoch
from lib.training.mixing import Mixing
from lib.training.settings import TrainingSettings
from lib.utils.quantize_utils import Quantization
from lib.utils.utils import Metrics, set_learning_rate

logger = logging.getLogger(__name__)

COLUMNS = ('Learning Rate', 'Train Loss', 'Valid Loss', 'Train Acc.', 'Valid Acc.')
UNKNOWN = Metrics(math.nan, math.nan, math.nan)
SCALARS = ('learning_rate', 'train_loss', 'test_loss', 'train_accuracy', 'test_accuracy')


class TrainingLog:
    """Write `log.txt`, scalars, checkpoints and the plot of a training run; of several processes only the main one."""

    def __init__(self, folder: str | Path, start_epoch: int = 0):
        """Start the record in `folder`, or continue it after `start_epoch` epochs."""
        self.folder = Path(folder)
        self.table = TableLog(self.folder / 'log.txt', COLUMNS, keep_rows=start_epoch)
        self.scalars = ScalarLog(self.folder / 'logs', purge_step=start_epoch)

    def add(self, epoch: int, row: Sequence[float], checkpoint: dict, improved: bool, keep: bool = False) -> None:
        """Add an epoch.

        Args:
            row: the values of `COLUMNS`; NaN where there was no evaluation.
            checkpoint: what training goes on from, for `checkpoint.pth.tar`.
            improved: it is the best so far, for `model_best.pth.tar` too.
            keep: a copy of its own, `epoch_N.pth.tar`.
        """
        self.table.append(row)
        for name, value in zip(SCALARS, row, strict=True):
            self.scalars.add_scalar(name, value, epoch)
        if keep:
            save_checkpoint(self.folder / f'epoch_{epoch + 1}.pth.tar', checkpoint)
        self.save(checkpoint, improved)
        self.scalars.flush()

    def save(self, checkpoint: dict, improved: bool = True) -> None:
        """Write the checkpoint, of a network that is the best so far as `model_best.pth.tar` too."""
        if improved:
            save_checkpoint(self.folder / 'model_best.pth.tar', checkpoint)
        save_checkpoint(self.folder / 'checkpoint.pth.tar', checkpoint)

    def plot(self) -> None:
        """Draw `training.png`, of at least two epochs."""
        if len(self.table.rows) > 1:
            plots.plot_training(self.table.columns(), self.folder / 'training.png')


def fit(model: nn.Module, loaders: tuple, settings: TrainingSettings | None = None, *,
        quantization: Quantization | None = None, folder: str | Path | None = None,
        optimizer: torch.optim.Optimizer | None = None, rate: Callable[[int], float] | None = None,
        device: torch.device | str = 'cpu', precision: Precision | None = None, start_epoch: int = 0,
        best: float = -1.0, about: dict | None = None, average: WeightAverage | None = None,
        distillation: Distillation | None = None) -> tuple[Metrics | None, float]:
    """Train and validate epoch by epoch; the main process writes everything of a `TrainingLog` after each.

    Args:
        model: the network, on `device`.
        loaders: (training loader, validation loader), of this process's part of the images.
        settings: `TrainingSettings`, or None for their defaults.
        quantization: a `Quantization` of the model, or None for float training.
        folder: the run folder; None: nothing is written.
        optimizer: over what is trained; None: that of the settings.
        rate: function of the epoch that gives its learning rate, or None for that of the settings; if it has a method
            `observe`, that gets the validation accuracy of each epoch, None where there was no evaluation.
        device, precision: where and in which arithmetic the network runs.
        start_epoch: epochs already done.
        best: best validation top-1 so far, in percent; -1 before the first epoch.
        about: what a checkpoint carries beside weights, optimizer, accuracies and the quantization's state.
        average: of the weights; None: that of the settings, if they want one. It is what is validated and saved, and
            what the network holds in the end.
        distillation: from the outputs of a teacher; None: the network learns from labels alone.

    Returns:
        (validation `Metrics` of the last epoch or None if no epoch was left, best top-1 of the epochs in which the
        quantization was complete), in all processes.
    """
    settings, quantization = settings or TrainingSettings(), quantization or Quantization(model)
    optimizer = optimizer or settings.optimizer(quantization.parameters(), model)
    average = average or settings.average(quantization)
    metrics, rate, epochs = None, rate or settings.rate, settings.epochs
    quantization.synchronise()
    log = TrainingLog(folder, start_epoch) if folder and distributed.is_main() else None

    def checkpoint(epoch, raw):  # `raw`: the weights under an average that is in place
        return {'epoch': epoch, 'acc': metrics.top1, 'best_acc': best, 'top5': metrics.top5,
                'state_dict': model.state_dict(), 'optimizer': optimizer.state_dict(),
                'scaler': precision.scaler.state_dict() if precision else {}, **raw, **quantization.state(),
                **(about or {})}

    if folder:
        size = checkpoint_bytes(model, optimizer, settings.ema_decay > 0)
        distributed.on_main(check_disk, folder, size, epochs - start_epoch)
    for epoch in range(start_epoch, epochs):
        start, lr = time.time(), rate(epoch)
        train = train_epoch(model, loaders[0], optimizer, epoch, epochs, rate=lr, device=device, precision=precision,
                            seeds=(settings.seed, 'epoch', epoch), quantization=quantization, mixing=settings.mixing(),
                            average=average, distillation=distillation)
        with average.in_place() if average else contextlib.nullcontext({}) as raw:
            if settings.bn_batches:
                reestimate_batch_norm(model, loaders[0], settings.bn_batches, device, precision, trained_on=True)
            due = (epoch + 1) % settings.evaluate_every == 0 or epoch + 1 == epochs
            metrics = evaluate(model, loaders[1], loss_function(), device, precision=precision) if due else UNKNOWN
            if hasattr(rate, 'observe'):
                rate.observe(metrics.top1 if due else None)
            improved = quantization.complete and metrics.top1 > best
            best = metrics.top1 if improved else best
            row = (lr, train.loss, metrics.loss, train.top1, metrics.top1)
            if log:
                keep = settings.keep_every and (epoch + 1) % settings.keep_every == 0
                log.add(epoch, row, checkpoint(epoch + 1, raw), improved, keep=keep)
        logger.info('epoch %d/%d: lr %.5f  train loss %.4f acc %.2f  valid loss %.4f acc %.2f  best %s  %.1f s',
                    epoch + 1, epochs, *row[:2], row[3], row[2], row[4], f'{best:.2f}' if best >= 0 else '-',
                    time.time() - start)
    if epochs == start_epoch == 0:
        if settings.bn_batches:
            reestimate_batch_norm(model, loaders[0], settings.bn_batches, device, precision)
        metrics = evaluate(model, loaders[1], loss_function(), device, precision=precision)
        best = metrics.top1
        if log:
            with average.in_place() if average else contextlib.nullcontext({}) as raw:
                log.save(checkpoint(0, raw))
    if average:
        average.put()
    if log:
        log.plot()
    return metrics, best


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, average: bool = False) -> int:
    """Return about how many bytes a checkpoint takes: weights, buffers, and what the optimizer will keep of each.

    With an `average`, the weights themselves lie beside it.
    """
    moments = 2 if 'betas' in optimizer.defaults else bool(optimizer.defaults.get('momentum'))
    moments += average
    trained = sum(p.nbytes for group in optimizer.param_groups for p in group['params'])
    return tensor_bytes(model.state_dict()) + moments * trained


def check_disk(folder: str | Path, size: int, epochs: int) -> None:
    """Check that the disk has room for checkpoints of `size` bytes, of which one more is there while it is written.

    Raises:
        WriteError: the first epoch could not be saved.
    """
    there = sum((Path(folder) / name).is_file() for name in ('checkpoint.pth.tar', 'model_best.pth.tar'))
    missing = (max(2 - there, 1) if epochs else 0) * size
    check_space(folder, missing, 'what an epoch saves')
    free = free_space(folder)
    if epochs > 1 and free < (3 - there) * size:
        logger.warning('the disk of %s has %s free, and an epoch saves %s beside what is there: it will not last',
                       folder, megabytes(free), megabytes(size))


def train_epoch(model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer, epoch: int, epochs: int, *,
                rate: float, device: torch.device | str, precision: Precision, seeds: tuple, quantization: Quantization,
                before_step: Callable[[], None] | None = None, mixing: Mixing | None = None,
                average: WeightAverage | None = None, distillation: Distillation | None = None) -> Metrics:
    """Train one epoch and leave the network ready to be validated; return the training `Metrics`.

    `seeds` are those of everything random in it; `before_step` is called before that of the quantization; `mixing` is
    what becomes of images and labels, `average` takes in every step, and `distillation` has a teacher.
    """
    def prepare():
        if before_step:
            before_step()
        quantization.before_step()

    def after_step():
        quantization.after_step()
        if average:
            average.update()

    seed_everything(*seeds)
    loader.set_epoch(epoch)
    quantization.before_epoch(epoch, epochs, optimizer)
    set_learning_rate(optimizer, rate)
    metrics = train_one_epoch(model, loader, quantization.loss, optimizer, device, after_step, before_step=prepare,
                              precision=precision, title=f'epoch {epoch}', mixing=mixing, distillation=distillation)
    quantization.synchronise()  # on GPUs the sums of centroids' gradients may round differently
    quantization.after_epoch(optimizer)
    if average:
        average.synchronise()
    return metrics


def write_results(folder: str | Path, metrics: Metrics, best: float, **about) -> None:
    """Write `results.json`: the accuracies of the last epoch, the best top-1, and what they belong to.

    The file marks a run as finished.
    """
    write_json(Path(folder) / 'results.json', {**about, 'top1': metrics.top1, 'top5': metrics.top5,
                                               'loss': metrics.loss, 'best_top1': best}, seal=True)
