"""The options of all data loaders, checked."""

import logging
import os
from dataclasses import dataclass

import torch

from lib.data.batches import drops_last
from lib.data.transforms import NORMALIZE

logger = logging.getLogger(__name__)


@dataclass
class LoaderOptions:
    """How images are served.

    Attributes:
        batch_size: images per training batch, of all processes together. A last batch that would leave a process a
            single image is left out: BatchNorm cannot train on it.
        test_batch_size: images per validation batch, of all processes together; None: `batch_size`.
        workers: processes that decode image files, or threads where images are held in memory (`cache`), at most as
            many as there are CPUs; none for the data sets that are tensors.
        seed: of the order of the training images and of their augmentation.
        image_size: side of the images that the network gets; None: the data set's own (299 suits inception).
        pin_memory: give batches of decoded files in page-locked memory; only of use for a CUDA device.
        shard: (rank, world): which process of how many this is, see `EpochBatches`.
        cache: image folders: 'ram': decode all images once into memory; 'auto': if they take at most half of what is
            available; 'off': decode the files of each batch. Validation images are the same either way; training
            images are cut out of the photographs in memory, whose shorter side is at most `cache_size`.
        device: where batches of images in memory are normalised, and then lie; those of decoded files lie on the CPU.
        on_bad_image: a file that cannot be decoded: 'refuse' it by name, or 'skip' it and warn.
        normalize: 'imagenet', 'cifar': the mean and standard deviation in use with these data sets; 'symmetric': pixels
            in [-1, 1], for networks that were trained in TensorFlow; None: those of the data set's own row.
        randaugment: (operations per image, magnitude from 0 to 30) of RandAugment, after the augmentation of training
            images that the data set has; None: not.

    Raises:
        ValueError: a size or a name out of range.
    """

    batch_size: int
    test_batch_size: int | None = None
    workers: int = 0
    seed: int = 0
    image_size: int | None = None
    pin_memory: bool = False
    shard: tuple = (0, 1)
    cache: str = 'off'
    cache_size: int = 256
    device: torch.device | str = 'cpu'
    on_bad_image: str = 'refuse'
    normalize: str | None = None
    randaugment: tuple[int, int] | None = None

    def __post_init__(self):
        size = 1 if self.image_size is None else self.image_size
        if self.batch_size < 1 or size < 1 or self.workers < 0:
            raise ValueError(f'batch size {self.batch_size}, image size {size}, {self.workers} workers: '
                             'expected at least 1, 1 and 0')
        if self.cache_size < 1:
            raise ValueError(f'cache size {self.cache_size}: expected at least 1')
        for option, expected in (('cache', ('off', 'ram', 'auto')), ('on_bad_image', ('refuse', 'skip')),
                                 ('normalize', (None, *NORMALIZE))):
            if getattr(self, option) not in expected:
                raise ValueError(f'{option} {getattr(self, option)!r}: expected one of {", ".join(map(str, expected))}')
        operations, magnitude = self.randaugment or (1, 0)
        if operations < 1 or not 0 <= magnitude <= 30:
            raise ValueError(f'randaugment {self.randaugment}: expected at least 1 operation of a magnitude of 0 to 30')
        cpus = os.cpu_count() or 1
        if self.workers > cpus:
            logger.debug('%d workers instead of %d: there are no more CPUs', cpus, self.workers)
            self.workers = cpus

    def batches(self, count: int, training: bool) -> dict:
        """Return the arguments that all loaders of `count` images share."""
        batch_size = self.batch_size if training else self.test_batch_size or self.batch_size
        return {'batch_size': batch_size, 'seed': self.seed, 'shard': self.shard,
                'drop_last': training and drops_last(count, batch_size, self.shard[1])}
