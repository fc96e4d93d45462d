"""BatchNorm statistics of a network, estimated anew: those of the float network are not those of the quantized one."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
from torch import nn

from lib.network.hooks import batch_norms, evaluating
from lib.runtime import distributed
from lib.training.float_labels import images_alone
from lib.training.loop import Precision

logger = logging.getLogger(__name__)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, loader: Iterable, batches: int, device: torch.device | str,
                          precision: Precision | None = None, *, trained_on: bool = False) -> int:
    """Replace running mean and variance of every BatchNorm by averages over the first batches of the loader's epoch.

    The averages are those of `momentum=None` and of `torch.optim.swa_utils.update_bn`: the mean over the batches of
    the batch's mean and of its unbiased variance, every batch with the same weight. (The variance over all images at
    once would also count how far the means of the batches lie apart, about 1 part in the batch size.) Only BatchNorm
    layers are in training mode, so each normalises by its own batch; dropout and all else evaluate. Afterwards
    `num_batches_tracked` is the number of batches averaged. A layer that was not called keeps its statistics, and
    after an exception all do.

    With several processes, each passing its own batches, all get the average over the batches of all of them.

    Images that are known not to be augmented are warned of, once a loader: statistics suit a network on images as it
    was trained on.

    Args:
        model: any network, quantized or not; modes and momenta are restored, also after an exception.
        batches: how many batches to use; all there are where there are fewer, which is logged.
        trained_on: the network has just been trained on these very images, augmented or not.

    Returns:
        The number of batches used in this process; 0 if there is no BatchNorm that keeps statistics.

    Raises:
        ValueError: `batches` below 1, or a loader without batches.
    """
    if batches < 1:
        raise ValueError(f'{batches} batches to estimate BatchNorm statistics on: expected at least 1')
    norms = batch_norms(model)
    if not norms:
        logger.warning('%s has no BatchNorm with running statistics: nothing to estimate', type(model).__name__)
        return 0
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # the wrapper would overwrite the statistics with those of rank 0 in every forward pass
    loader = images_alone(loader)
    if getattr(loader, 'augmented', None) is False and not trained_on:
        logger.warning('BatchNorm statistics are estimated on images that are not augmented: if the float network was '
                       'trained on augmented ones they do not suit it; let the training images be augmented as then')
        loader.augmented = None  # that is said
    with evaluating(model), _cumulative(norms.values()):
        used = _forward(model, loader, batches, device, precision or Precision(device))
        _average_over_processes(norms.values())
    if used < batches:
        logger.warning('BatchNorm statistics come from %d batches, all there are; %d were asked for', used, batches)
    return used


def _forward(model, loader, batches, device, precision) -> int:
    """Run the first batches through the model; return how many there were."""
    used = 0
    for images, labels in islice(loader, batches):
        images, _ = precision.to(device, images, labels)
        with precision.autocast():
            model(images)
        used += 1
    if not used:
        raise ValueError('the loader has no batches: BatchNorm statistics cannot be estimated')
    return used


@contextmanager
def _cumulative(norms) -> Iterator[None]:
    """Put BatchNorm layers into training mode, cumulative averages begun anew; restore the momenta on leaving."""
    momenta = {norm: norm.momentum for norm in norms}
    before = {norm: [tensor.clone() for tensor in distributed.running_statistics(norm)] for norm in norms}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    except BaseException:
        _restore(before)
        raise
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
    _restore({norm: values for norm, values in before.items() if not norm.num_batches_tracked})


def _restore(statistics: dict[nn.Module, list[torch.Tensor]]) -> None:
    for norm, values in statistics.items():
        for tensor, value in zip(distributed.running_statistics(norm), values, strict=True):
            tensor.copy_(value)


def _average_over_processes(norms):
    """Average the statistics of all processes, each weighted by its number of batches, and add these numbers up."""
    if distributed.world_size() == 1:
        return
    for norm in norms:
        count = norm.num_batches_tracked
        sums = distributed.add_up(
            torch.cat([count.view(1), count * norm.running_mean.double(), count * norm.running_var.double()]))
        total, channels = sums[0].clamp(min=1), norm.num_features
        norm.running_mean.copy_(sums[1:1 + channels] / total)
        norm.running_var.copy_(sums[1 + channels:] / total)
        count.copy_(sums[0])
