"""Serving images from memory: a whole batch is cropped, mirrored and normalised by a few tensor operations."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lib.data.batches import EpochBatches, Loader
from lib.runtime.seeds import seeded_generator


@dataclass(frozen=True)
class Augment:
    """Training augmentation of small images: a random crop of the padded image, then perhaps a mirror image.

    Attributes:
        pad: pixels added on each side before the crop, which has the size of the image; 0 = no crop.
        flip: mirror half of the images left to right.
        mode: what the pixels added are: 'zeros' (black) or 'reflect'.
    """

    pad: int = 4
    flip: bool = False
    mode: str = 'zeros'

    def __post_init__(self):
        if self.mode not in ('zeros', 'reflect') or self.pad < 0:
            raise ValueError(f"padding {self.pad} with mode {self.mode!r}: expected at least 0, 'zeros' or 'reflect'")


class TensorLoader(Loader):
    """Iterates over batches (images float32 NCHW, labels int64) of images that are held in memory.

    The order and the augmentation of each image depend on (seed, epoch) alone: iterating twice over one epoch gives
    bit-identical batches, whatever other random numbers are drawn meanwhile. The epoch is 0 until `set_epoch`.

    Args:
        images: uint8 (N, C, H, W).
        labels: integers (N,).
        batch_size: images per batch, of all processes together; the last batch may be smaller.
        shuffle: visit the images in another order in each epoch.
        augment: an `Augment`, or None to serve the images as they are.
        mean, std: one number per channel, in units of [0, 1] pixels: y = (x / 255 - mean) / std.
        seed: of the order and the augmentation.
        drop_last: leave out a last batch that is smaller than the others.
        size: side to which the cropped images are resized (bilinear), None to leave them; kept out of memory.
        shard: (rank, world): the part of each batch that is served, see `EpochBatches`.
        device: where a batch is resized and normalised, and then lies.

    Raises:
        ValueError: wrong shapes or types, no images, a batch size below 1 or padding that cannot be made.
    """

    def __init__(self, images, labels, *, batch_size, shuffle, augment=None, mean, std, seed=0, drop_last=False,
                 size=None, shard=(0, 1), device='cpu'):
        _check(images, labels, augment)
        super().__init__(EpochBatches(len(images), batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last,
                                      shard=shard),
                         (images.shape[1], *((size, size) if size else images.shape[2:])))
        self.images, self.labels, self.augment, self.size = images, labels.long(), augment, size
        self.normalise = Normalise(mean, std, device)

    def _serve(self, batches):
        offsets = self._offsets() if self.augment else None
        for picked in batches:
            images = self.images[picked]
            if offsets:
                images = crop(images, *(each[picked] for each in offsets), pad=self.augment.pad, mode=self.augment.mode)
            yield self.normalise(images, self.size), self.labels[picked].to(self.normalise.device)

    def _offsets(self):
        """Draws (top, left, mirror), each (N,), for the whole epoch: they do not depend on the batch size."""
        generator = seeded_generator(self.batches.seed, self.batches.epoch, 'augment')
        top, left = torch.randint(2 * self.augment.pad + 1, (2, self.num_images), generator=generator)
        mirror = torch.rand(self.num_images, generator=generator) < (0.5 if self.augment.flip else 0.0)
        return top, left, mirror


class Normalise:
    """Moves pixels uint8 (N, C, H, W) to `device`, as float32 (x / 255 - mean) / std."""

    def __init__(self, mean, std, device='cpu'):
        self.device = torch.device(device)
        self.mean, self.std = (255 * torch.tensor(x, dtype=torch.float32, device=self.device).view(1, -1, 1, 1)
                               for x in (mean, std))

    def __call__(self, images, size=None):
        """Returns the batch, resized (bilinear) to size x size unless that is None."""
        images = images.to(self.device).float()
        if size:
            images = F.interpolate(images, size=(size, size), mode='bilinear', antialias=True)
        return images.sub_(self.mean).div_(self.std)


def crop(images, top, left, mirror, *, pad, mode='zeros'):
    """Cuts each image of a batch out of its padded self, each at its own place, by one gather.

    Args:
        images: (N, C, H, W).
        top, left: int64 (N,), from 0 to 2 * pad: corner of the window of size H x W in the padded image.
        mirror: bool (N,): turn the window left to right.
        pad: pixels added on each side; below H and W for 'reflect'.
        mode: 'zeros' or 'reflect'.

    Returns:
        (N, C, H, W) of the same type.
    """
    count, channels, height, width = images.shape
    rows = top[:, None] + torch.arange(height)  # (N, H)
    columns = left[:, None] + torch.arange(width)  # (N, W)
    columns = torch.where(mirror[:, None], columns.flip(1), columns)
    places = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # (N, H, W) in the flattened padded image
    places = places.view(count, 1, -1).expand(-1, channels, -1)
    return _pad(images, pad, mode).flatten(2).gather(2, places).view_as(images)


def _pad(images, pad, mode):
    if mode == 'zeros':
        return F.pad(images, (pad,) * 4)
    rows, columns = (_reflected(size, pad) for size in images.shape[-2:])  # not every F.pad reflects uint8
    return images.index_select(2, rows).index_select(3, columns)


def _reflected(size, pad):
    """Returns the pixel that stands at each of -pad ... size + pad - 1, e.g. 2 1 0 1 2 1 0 for size 3, pad 2."""
    last = size - 1
    return last - (last - torch.arange(-pad, size + pad).abs()).abs()


def _check(images, labels, augment):
    if images.dim() != 4 or images.dtype != torch.uint8 or labels.shape != images.shape[:1] or len(images) == 0:
        raise ValueError(f'images are {images.dtype} {tuple(images.shape)} with labels {tuple(labels.shape)}: '
                         'expected uint8 (N, C, H, W) with N > 0 and labels (N,)')
    if augment and augment.mode == 'reflect' and augment.pad >= min(images.shape[-2:]):
        raise ValueError(f'cannot pad {tuple(images.shape[-2:])} images by {augment.pad} reflected pixels: '
                         'expected fewer than the image has')
