"""Serving images that are made one by one, by decoding a file or by a user's data set, in worker processes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from lib.data.batches import EpochBatches, Loader
from lib.data.image_folder import BadImageError, load_image
from lib.data.link_tree import some_names
from lib.runtime.seeds import own_generators

logger = logging.getLogger(__name__)


class ImageFiles:
    """The images of a `Split` of paths, decoded when they are asked for: [i] is (image, label)."""

    def __init__(self, split: Any, transform: Callable, input_shape: tuple[int, int, int]):
        self.split, self.transform, self.input_shape = split, transform, input_shape

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        return self.transform(load_image(self.split.images[index])), int(self.split.labels[index])


class ImageLoader(Loader):
    """Iterates over batches of items, which are made as they are needed.

    The order and each image's augmentation depend on (seed, epoch) alone, not on the number of workers. The epoch is
    0 until `set_epoch`.

    Args:
        dataset: `ImageFiles` or `UserImages`; making an item may draw from the global generators of Python, NumPy and
            torch, which are seeded for each item and put back afterwards.
        shuffle: another order in each epoch; it also marks the loader of training.
        workers: processes that make items, kept from epoch to epoch.
        pin_memory: as of `DataLoader`.
        skip: leave out files that cannot be decoded and say so once, instead of a ValueError. A training batch of
            which this leaves nothing or one image is left out, too, in a single process; several must all have one.
        **batches: those of `EpochBatches`; its seed is that of the augmentation, too.

    Raises:
        ValueError: (while iterating) an item that cannot be made; with `skip`, no image is left.
    """

    def __init__(self, dataset: Any, *, shuffle: bool, workers: int = 0, pin_memory: bool = False, skip: bool = False,
                 **batches):
        super().__init__(EpochBatches(len(dataset), shuffle=shuffle, **batches), dataset.input_shape)
        self.dataset, self.skip = dataset, skip
        self._items, self._bad, self._reported = _SeededItems(dataset, self.batches.seed), set(), 0
        # a generator of its own, for the default is to move the global one once per epoch
        self._loader = DataLoader(self._items, batch_sampler=_Keys(self.batches), collate_fn=_collate,
                                  num_workers=workers, persistent_workers=workers > 0, pin_memory=pin_memory,
                                  generator=torch.Generator())

    def first_batch(self) -> torch.Tensor:
        """Return the images of the epoch's first batch as a single process gets them; disturbs no iteration."""
        epoch = self.batches.epoch
        keys = ([(index, epoch) for index in batch.tolist()] for batch in self.batches.whole())
        return next(self._without_failures((_collate([self._items[key] for key in batch]) for batch in keys), 1))[0]

    def __iter__(self):
        return self._without_failures(self._loader, self.batches.world)

    def _without_failures(self, loader, world):
        """Yield the (images, labels) of batches (images, labels, failures) of `loader`."""
        training, served, position = self.batches.shuffle, 0, -1
        try:
            for position, (images, labels, failures) in enumerate(loader):
                self._note(failures)
                if training and world > 1 and images is None:
                    raise ValueError(f'no image of batch {position} can be decoded, and each of the {world} processes '
                                     f'needs one: replace or remove {some_names(self._bad)}')
                if images is not None and not (training and failures and world == 1 and len(images) == 1):
                    served += 1
                    yield images, labels
            if position >= 0 and not served and world == 1:
                raise ValueError(f'none of the {self.num_images} images makes a batch; these cannot be decoded: '
                                 f'{some_names(self._bad)}')
        finally:
            self._report()

    def _note(self, failures):
        for failure in failures:
            if not self.skip or failure.path is None:
                raise ValueError(failure.message)
            self._bad.add(failure.path)

    def _report(self):
        if len(self._bad) > self._reported:
            self._reported = len(self._bad)
            logger.warning('%d of %d images cannot be decoded and are left out: %s', len(self._bad), self.num_images,
                           some_names(self._bad))


@dataclass(frozen=True)
class _Failure:
    """Why an item could not be made; `path` of the file where that may be left out."""

    message: str
    path: str | None


class _SeededItems(Dataset):
    """The items at (index, epoch); a failure is returned, for an exception in a worker arrives as its traceback."""

    def __init__(self, items, seed: int):
        self.items, self.seed = items, seed

    def __getitem__(self, key):
        index, epoch = key
        with own_generators(self.seed, epoch, index):
            try:
                return self.items[index]
            except ValueError as error:
                return _Failure(str(error), getattr(error, 'path', None) if isinstance(error, BadImageError) else None)


class _Keys:
    """The sampler of a `DataLoader`: batches of (index, epoch), for workers outlive an epoch and must learn of it."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        epoch = self.batches.epoch
        return ([(index, epoch) for index in batch.tolist()] for batch in self.batches)


def _collate(items):
    """Return (images, labels, failures) of a batch; images and labels are None where no item could be made."""
    good = [item for item in items if not isinstance(item, _Failure)]
    failures = [item for item in items if isinstance(item, _Failure)]
    return *(default_collate(good) if good else (None, None)), failures
