"""Which images make up each batch of an epoch, and which part of a batch each of several processes serves."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.runtime.seeds import seeded_generator

NO_LABEL = -1  # of an image that has none


class EpochBatches:
    """The batches of an epoch as positions of images, a pure function of (seed, epoch); the epoch is 0 at first.

    Several processes share each batch: process r of `world` serves the images [n r // world, n (r + 1) // world) of a
    batch of n, so that the parts in the order of the ranks are the batch of a single process.

    Args:
        count: number of images.
        batch_size: images per batch, of all processes together; the last batch may be smaller.
        shuffle: another order in each epoch.
        drop_last: leave out a last batch that is smaller than the others.
        shard: (rank, world).

    Raises:
        ValueError: a batch size below 1, a rank that is not in [0, world), or fewer images in all or in a batch than
            processes.
    """

    def __init__(self, count: int, batch_size: int, *, shuffle: bool, seed: int = 0, drop_last: bool = False,
                 shard: tuple[int, int] = (0, 1)):
        rank, world = shard
        if not 0 <= rank < world:
            raise ValueError(f'shard {tuple(shard)}: expected (rank, number of processes) with 0 <= rank < processes')
        if batch_size < 1:
            raise ValueError(f'batch size {batch_size}: expected at least 1')
        if count < world:
            raise ValueError(f'{world} processes cannot share {count} images: start at most {count} processes')
        if batch_size < world:
            raise ValueError(f'{world} processes cannot share batches of {batch_size} images: take a batch size of at '
                             f'least {world}, or at most {batch_size} processes')
        self.count, self.batch_size, self.shuffle, self.seed = count, batch_size, shuffle, int(seed)
        self.drop_last, self.rank, self.world, self.epoch = drop_last, rank, world, 0
        self._sample = None

    def sample(self, count: int) -> None:
        """Serve, from now on, only `count` of the images, chosen at random and in random order, always the same.

        Raises:
            ValueError: fewer than the processes, more than there are, or the order is another in each epoch anyway.
        """
        if self.shuffle or not self.world <= count <= self.count:
            raise ValueError(f'a sample of {count} images: expected {self.world} to {self.count}, of a validation set')
        self._sample = torch.randperm(self.count, generator=seeded_generator('sample'))[:count]
        self.count = count

    def whole(self) -> list[Tensor]:
        """Return the batches that a single process would serve, a list of int64 (n,)."""
        order = torch.arange(self.count) if self._sample is None else self._sample
        if self.shuffle:
            order = torch.randperm(self.count, generator=seeded_generator(self.seed, self.epoch, 'order'))
        batches = order.split(self.batch_size)
        return list(batches[:-1] if self.drop_last and len(batches[-1]) < self.batch_size else batches)

    def _part(self, batch):
        start, stop = (len(batch) * rank // self.world for rank in (self.rank, self.rank + 1))
        return batch[start:stop]

    def __len__(self):
        full, rest = divmod(self.count, self.batch_size)
        return full + (not self.drop_last and len(self._part(range(rest))) > 0)

    @property
    def smallest(self) -> int:
        """Images of the smallest part of a batch that a process gets."""
        sizes = {min(self.count, self.batch_size), 0 if self.drop_last else self.count % self.batch_size}
        return min(size // self.world or 1 for size in sizes if size)

    def __iter__(self):
        """Yield this process's part of every batch of which it has one, int64 (n,) with n > 0."""
        return (part for part in map(self._part, self.whole()) if len(part))


class Loader:
    """What all loaders share; one that serves the images at given positions (`_serve`) makes it complete.

    Attributes:
        input_shape: (C, H, W) of every image served.
        labelled: whether the images have labels; else all are `NO_LABEL`.
        augmented: whether they are augmented; None: that is not known.
    """

    labelled, augmented = True, None

    def __init__(self, batches: EpochBatches, input_shape: Sequence[int]):
        self.batches, self.input_shape = batches, tuple(input_shape)

    @property
    def num_images(self) -> int:
        """Images of an epoch, of all processes together."""
        return self.batches.count

    @property
    def batch_size(self) -> int:
        """Images per batch, of all processes together."""
        return self.batches.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration serves."""
        self.batches.epoch = int(epoch)

    def sample(self, count: int) -> None:
        """Serve, from now on, only a fixed random sample, mixed: a validation set is often sorted by class.

        Args:
            count: images, of all processes together; more than there are, or -1, stands for all.
        """
        self.batches.sample(self.num_images if count < 0 else min(count, self.num_images))

    def first_batch(self) -> Tensor:
        """Return the images of the epoch's first batch as a single process gets them; disturbs no iteration."""
        return next(self._serve(self.batches.whole()[:1]))[0]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return self._serve(self.batches)

    def _serve(self, batches):
        """Yield (images, labels) for each of `batches`, int64 (n,), of the epoch at the time of the first."""
        raise NotImplementedError


def drops_last(count: int, batch_size: int, world: int = 1) -> bool:
    """Whether the last training batch is left out: it would leave a process one image, on which BatchNorm cannot train.

    It never is where it is the only one.
    """
    return count > batch_size and 0 < count % batch_size < 2 * world


