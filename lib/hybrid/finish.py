"""The end of a hybrid training: fold, quantize what was not trained quantized, calibrate, save."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from lib.hybrid.placement import (
    HybridQuantization,
    calibrate_after_training,
    finish_training,
    integer_weights,
    place_after_training,
)
from lib.hybrid.plan import Plan
from lib.record.checkpoint import save_checkpoint
from lib.record.files import atomic_path, write_text
from lib.runtime.seeds import derived_seed


def check_calibration_images(plan: Plan, ptq: Mapping, count: int) -> None:
    """Raise ValueError where activations are to be calibrated on more images than the `count` for training allow."""
    aciq, needed = plan.of('aciq'), ptq['calibration_num']
    if (aciq.inputs or aciq.activations) and needed >= count:
        raise ValueError(f'ptq.calibration_num {needed}: activations are calibrated on so many of the training images, '
                         f'which are {count}: give --set ptq.calibration_num={max(count - 1, 1)} or fewer')


def calibration_batches(images: Tensor, ptq: Mapping, seed: int) -> Iterator[Tensor]:
    """Yield the images (N, C, H, W) `calibration_epochs` times, each in another order, in batches."""
    for epoch in range(ptq['calibration_epochs']):
        generator = torch.Generator().manual_seed(derived_seed(seed, 'calibration', epoch))
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for picked in order.split(ptq['calibration_batch_size']):
            yield images[picked]


def quantize_after_training(model: nn.Module, plan: Plan, images: Tensor, batches: Iterator[Tensor]) -> tuple:
    """Fold, place the ACIQ quantizers and calibrate them.

    Args:
        model: the trained network, which is left in evaluation mode.
        plan: its plan.
        images: two images of noise.
        batches: training images without augmentation, of which every process gets all, so that all calibrate alike.

    Returns:
        (number of folded BatchNorms, largest difference of the logits of `images` that folding makes).
    """
    model.eval()
    with torch.no_grad():
        before = model(images)
    pairs = finish_training(model, plan, images)
    with torch.no_grad():
        difference = (model(images) - before).abs().max().item()
    place_after_training(model, plan)
    calibrate_after_training(model, plan, batches)
    return len(pairs), difference


def save_quantized(target: Path, model: nn.Module, quantization: HybridQuantization, about: Mapping,
                   top1: float) -> None:
    """Write model.pth.tar, weights.npz and config.yaml to the folder `target`."""
    with atomic_path(target / 'weights.npz') as temporary:
        np.savez_compressed(temporary, **integer_weights(model))
    write_text(target / 'config.yaml', yaml.safe_dump(quantization.settings['config'], sort_keys=False,
                                                      default_flow_style=None, width=120))
    state = quantization.state()
    save_checkpoint(target / 'model.pth.tar', {
        **about, **state, 'quantization': 'hybrid', 'hybrid': {**state['hybrid'], 'stage': 'quantized'},
        'state_dict': model.state_dict(), 'acc': top1})
