"""Serving images from memory: a whole batch is cropped, mirrored and normalised by a few tensor operations."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.data.batches import EpochBatches, Loader
from lib.data.randaugment import RandAugment
from lib.runtime.seeds import seeded_generator


@dataclass(frozen=True)
class Augment:
    """Training augmentation of small images: a random crop of the padded image, then perhaps a mirror image.

    Attributes:
        pad: black pixels added on each side before the crop, which has the size of the image; 0 = no crop.
        flip: mirror half of the images left to right.
    """

    pad: int = 4
    flip: bool = False

    def __post_init__(self):
        if self.pad < 0:
            raise ValueError(f'padding {self.pad}: expected at least 0')


class TensorLoader(Loader):
    """Iterates over batches (images float32 NCHW, labels int64) of images that are held in memory.

    The order and the augmentation of each image depend on (seed, epoch) alone: iterating twice over one epoch gives
    bit-identical batches, whatever other random numbers are drawn meanwhile. The epoch is 0 until `set_epoch`.

    Args:
        images: uint8 (N, C, H, W).
        labels: integers (N,).
        mean, std: one number per channel, in units of [0, 1] pixels: y = (x / 255 - mean) / std.
        augment: an `Augment`, or None to serve the images as they are.
        size: side to which the cropped images are resized (bilinear), None to leave them; kept out of memory.
        randaugment: (operations, magnitude) of a RandAugment of the cropped images, None for none.
        **batches: those of `EpochBatches`; its seed is that of the augmentation, too.

    Raises:
        ValueError: wrong shapes or types, no images, or what `EpochBatches` raises.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, mean: Sequence[float], std: Sequence[float],
                 augment: Augment | None = None, size: int | None = None, device: torch.device | str = 'cpu',
                 randaugment: tuple[int, int] | None = None, **batches):
        _check(images, labels)
        super().__init__(EpochBatches(len(images), **batches),
                         (images.shape[1], *((size, size) if size else images.shape[2:])))
        self.images, self.labels, self.augment, self.size = images, labels.long(), augment, size
        self.normalise, self.randaugment = Normalise(mean, std, device), RandAugment.of(randaugment)

    def _serve(self, batches):
        offsets, epoch = self._offsets() if self.augment else None, self.batches.epoch
        for picked in batches:
            images = self.images[picked]
            if offsets:
                images = crop(images, *(each[picked] for each in offsets), pad=self.augment.pad)
            images = self.randaugment(images, picked, self.batches.seed, epoch)
            yield self.normalise(images, self.size), self.labels[picked].to(self.normalise.device)

    def _offsets(self):
        """Draw (top, left, mirror), each (N,), for the whole epoch: they do not depend on the batch size."""
        generator = seeded_generator(self.batches.seed, self.batches.epoch, 'augment')
        top, left = torch.randint(2 * self.augment.pad + 1, (2, self.num_images), generator=generator)
        mirror = torch.rand(self.num_images, generator=generator) < (0.5 if self.augment.flip else 0.0)
        return top, left, mirror


class Normalise:
    """Move pixels uint8 (N, C, H, W) to `device`, as float32 (x / 255 - mean) / std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = 'cpu'):
        self.device = torch.device(device)
        self.mean, self.std = (255 * torch.tensor(x, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
                               for x in (mean, std))

    def __call__(self, images, size=None):
        """Return the batch, resized (bilinear) to size x size unless that is None."""
        images = images.to(self.device).float()
        if size:
            images = F.interpolate(images, size=(size, size), mode='bilinear', antialias=True)
        return images.sub_(self.mean).div_(self.std)


def crop(images: Tensor, top: Tensor, left: Tensor, mirror: Tensor, *, pad: int) -> Tensor:
    """Cut each image of a batch out of its padded self, each at its own place, by one gather.

    Args:
        top, left: int64 (N,), from 0 to 2 * pad: corner of the window of size H x W in the padded image.
        mirror: bool (N,): turn the window left to right.
        pad: black pixels added on each side.

    Returns:
        (N, C, H, W) of the same type.
    """
    count, channels, height, width = images.shape
    rows = top[:, None] + torch.arange(height)  # (N, H)
    columns = left[:, None] + torch.arange(width)  # (N, W)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    places = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # (N, H, W) in the flattened padded image
    places = places.view(count, 1, -1).expand(-1, channels, -1)
    return F.pad(images, (pad,) * 4).flatten(2).gather(2, places).view_as(images)


def _check(images: Tensor, labels: Tensor) -> None:
    if images.dim() != 4 or images.dtype != torch.uint8 or labels.shape != images.shape[:1] or len(images) == 0:
        raise ValueError(f'images are {images.dtype} {tuple(images.shape)} with labels {tuple(labels.shape)}: '
                         'expected uint8 (N, C, H, W) with N > 0 and labels (N,)')
