"""The epochs of a training run: log, scalars, checkpoints and plot after each, resumable to the same numbers."""

import logging
import time
from pathlib import Path

from tensorboardX import SummaryWriter

from lib.utils import plots
from lib.utils.checkpoint import save_checkpoint, write_json
from lib.utils.quantize_utils import Quantization
from lib.utils.train import evaluate, loss_function, train_one_epoch
from lib.utils.utils import TableLog, seed_everything, set_learning_rate

logger = logging.getLogger(__name__)

COLUMNS = ('Learning Rate', 'Train Loss', 'Valid Loss', 'Train Acc.', 'Valid Acc.')
SCALARS = ('learning_rate', 'train_loss', 'test_loss', 'train_accuracy', 'test_accuracy')


def fit(model, loaders, optimizer, folder, *, epochs, rate, device, precision, seed, start_epoch=0, best=-1.0,
        quantization=None, about=None):
    """Trains and validates epoch by epoch; writes `checkpoint.pth.tar`, `model_best.pth.tar`, `log.txt` and scalars.

    Args:
        model: the network, on `device`.
        loaders: (training loader, validation loader).
        optimizer: over what is trained.
        folder: the run folder.
        epochs: number of epochs in all.
        rate: function of the epoch that gives its learning rate.
        device, precision: where and in which arithmetic the network runs.
        seed: with the epoch, of everything random in it.
        start_epoch: epochs already done.
        best: best validation top-1 so far, in percent; -1 before the first epoch.
        quantization: a `Quantization` of the model, or None for float training.
        about: what a checkpoint carries beside weights, optimizer, accuracies and the quantization's state.

    Returns:
        (validation `Metrics` of the last epoch or None if no epoch was left, best top-1 of the epochs in which the
        quantization was complete).
    """
    folder, metrics, quantization = Path(folder), None, quantization or Quantization(model)
    log = TableLog(folder / 'log.txt', COLUMNS, keep_rows=start_epoch)
    writer = SummaryWriter(logdir=str(folder / 'logs'), purge_step=start_epoch)
    for epoch in range(start_epoch, epochs):
        start = time.time()
        seed_everything(seed, 'epoch', epoch)
        loaders[0].set_epoch(epoch)
        quantization.before_epoch(epoch, epochs, optimizer)
        set_learning_rate(optimizer, rate(epoch))
        train = train_one_epoch(model, loaders[0], loss_function(), optimizer, device, quantization.after_step,
                                before_step=quantization.before_step, precision=precision, title=f'epoch {epoch}')
        metrics = evaluate(model, loaders[1], loss_function(), device, precision=precision)
        row = (rate(epoch), train.loss, metrics.loss, train.top1, metrics.top1)
        log.append(row)
        for name, value in zip(SCALARS, row, strict=True):
            writer.add_scalar(name, value, epoch)
        improved = quantization.complete and metrics.top1 > best
        best = metrics.top1 if improved else best
        checkpoint = {'epoch': epoch + 1, 'state_dict': model.state_dict(), 'acc': metrics.top1, 'best_acc': best,
                      'top5': metrics.top5, 'optimizer': optimizer.state_dict(),
                      'scaler': precision.scaler.state_dict(), **quantization.state(), **(about or {})}
        if improved:
            save_checkpoint(folder / 'model_best.pth.tar', checkpoint)
        save_checkpoint(folder / 'checkpoint.pth.tar', checkpoint)
        logger.info('epoch %d/%d: lr %.5f  train loss %.4f acc %.2f  valid loss %.4f acc %.2f  best %.2f  %.1f s',
                    epoch + 1, epochs, *row[:2], row[3], row[2], row[4], best, time.time() - start)
    writer.close()
    if len(log.rows) > 1:
        plots.plot_training(log.columns(), folder / 'training.png')
    return metrics, best


def write_results(folder, metrics, best, **about):
    """Writes `results.json`: the accuracies of the last epoch, the best top-1, and what they belong to.

    The file marks a run as finished.
    """
    write_json(Path(folder) / 'results.json', {**about, 'top1': metrics.top1, 'top5': metrics.top5,
                                               'loss': metrics.loss, 'best_top1': best})
