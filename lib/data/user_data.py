"""Data sets of the user's own: `--dataset_file my_data.py:build` returns any Dataset of (image, label) or images."""

import inspect
import pickle
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import IterableDataset

from lib.data.batches import NO_LABEL
from lib.data.image_folder import to_rgb
from lib.runtime.seeds import own_generators
from lib.runtime.user_code import describe_error, importing_from, load_object

OPTION = '--dataset_file'


class UserBuild:
    """The user's function `build(split)`, which makes the data set of a split.

    It gets `root` and `augment` too if it has parameters of these names. It always draws the same random numbers, so
    that a split that it makes at random is the same in every run and process.

    Raises:
        ValueError: the file fails, or has no such function.
    """

    def __init__(self, file: str, root: str | Path | None = None):
        self.file, self.root = file, root
        with own_generators('load'):
            self.build = load_object(file, OPTION)
        if not callable(self.build):
            raise ValueError(f'{OPTION} {file} is a {type(self.build).__name__}: expected a function build(split)')

    def takes(self, name: str) -> bool:
        """Return whether the function has a parameter of this name."""
        try:
            return name in inspect.signature(self.build).parameters
        except (TypeError, ValueError):  # some functions that are not written in Python do not tell
            return False

    def source(self, split: str) -> str:
        """Return the call as messages name it, e.g. "my_data.py:build('train')"."""
        return f'{self.file}({split!r})'

    def __call__(self, split, *, augment):
        """Return the data set of 'train' or 'val', `augment` for training; a ValueError where it cannot serve."""
        offered = {'root': self.root, 'augment': augment}
        try:
            with own_generators('build'), importing_from(Path(self.file.rpartition(':')[0]).absolute().parent):
                dataset = self.build(split, **{name: offered[name] for name in offered if self.takes(name)})
        except (Exception, SystemExit) as error:
            raise ValueError(f'{OPTION} {self.source(split)} fails with {describe_error(error)}') from error
        self._check(dataset, f'{OPTION} {self.source(split)}')
        return dataset

    @staticmethod
    def _check(dataset, call):
        if isinstance(dataset, IterableDataset) or not all(hasattr(dataset, x) for x in ('__len__', '__getitem__')):
            raise ValueError(f'{call} returned a {type(dataset).__name__}: expected a map-style Dataset of '
                             '(image, label), with __len__ and __getitem__')
        try:
            count = len(dataset)
        except Exception as error:
            raise ValueError(f'{call}: the length of the data set fails with {describe_error(error)}') from error
        if count == 0:
            raise ValueError(f'{call} returned an empty data set')


def count_classes(file: str, datasets: Sequence, given: int | None = None) -> int:
    """Return the number of classes: as given, or the first data set's that tells its `num_classes` or its `classes`."""
    if given:
        return given
    for dataset in datasets:
        if getattr(dataset, 'num_classes', None):
            return int(dataset.num_classes)
        if hasattr(dataset, 'classes'):
            return len(dataset.classes)
    raise ValueError(f'{OPTION} {file}: the data set has neither num_classes nor classes: give --num_classes')


class UserImages:
    """A part of a user's data set as `ImageLoader` takes it: [i] is (float32 (C, H, W), label), checked.

    An item that is an image alone, or a tuple of one, or has the label None, gets `NO_LABEL`: all are like the first.
    A PIL image goes through `transform`; a floating point tensor is used as it is.

    Args:
        source: how messages call it, e.g. "my_data.py:build('train')".
        classes: number of classes; labels are 0 to classes - 1.
        transform: PIL image in RGB -> float32 (3, size, size).
        indices: positions of the part in the data set; None: all.

    Attributes:
        input_shape: (C, H, W) of the first image; all others must have it.
        is_tensor: whether the images come as tensors.
        labelled: whether they have labels.
    """

    def __init__(self, dataset: Any, file: str, source: str, *, classes: int, transform: Callable,
                 indices: Sequence[int] | None = None):
        self.dataset, self.file, self.source, self.classes, self.transform = dataset, file, source, classes, transform
        self.indices = range(len(dataset)) if indices is None else [int(index) for index in indices]
        self.input_shape = None
        with own_generators('first item'):
            image, label = self.raw(0)
            self.is_tensor, self.labelled = isinstance(image, torch.Tensor), label is not None
            self.input_shape = tuple(self[0][0].shape)

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        image, label = self.raw(index)
        image, label = self._image(image, index), self._label(label, index)
        if self.input_shape not in (None, tuple(image.shape)):
            raise ValueError(f'{self._name(index)} has the shape {tuple(image.shape)}, but {self._name(0)} has '
                             f'{self.input_shape}: all images must have the same')
        return image, label

    def raw(self, index: int) -> tuple:
        """Return the user's pair at a position of the part; the label is None where there is none."""
        try:
            item = self.dataset[self.indices[index]]
        except Exception as error:
            raise ValueError(f'{self._name(index)} fails with {describe_error(error)}') from error
        if isinstance(item, (Image.Image, torch.Tensor)):
            item = (item,)
        if not isinstance(item, (tuple, list)) or len(item) not in (1, 2):
            found = f'{len(item)} things' if isinstance(item, (tuple, list)) else f'a {type(item).__name__}'
            raise ValueError(f'{self._name(index)} is {found}: expected a pair (image, label), or an image')
        return (*item, None)[:2]

    def reads_differ(self, index: int = 0, reads: int = 16) -> bool:
        """Return whether the image at a position comes out differently when it is read again: it is augmented."""
        seen = set()
        for read in range(reads):
            with own_generators('read', read):
                image = self.raw(index)[0]
            seen.add(image.tobytes() if isinstance(image, Image.Image) else image.detach().numpy().tobytes())
            if len(seen) > 1:
                return True
        return False

    def _name(self, index):
        return f'{OPTION} {self.source}: item {self.indices[index]}'

    def _image(self, image, index):
        if isinstance(image, Image.Image):
            try:
                return self.transform(to_rgb(image))
            except Exception as error:
                raise ValueError(f'{self._name(index)} cannot be decoded ({describe_error(error)})') from error
        if isinstance(image, torch.Tensor) and image.is_floating_point() and image.dim() == 3:
            return image.detach().float()
        found = f'{image.dtype} {tuple(image.shape)}' if hasattr(image, 'shape') else f'a {type(image).__name__}'
        raise ValueError(f'{self._name(index)} has as its image {found}: expected a PIL image, or a floating point '
                         'tensor (C, H, W), normalised as the network needs it (torchvision.transforms.ToTensor makes '
                         'one of pixels 0..255)')

    def _label(self, label, index):
        if (label is not None) != self.labelled:
            raise ValueError(f'{self._name(index)} has {"no" if label is None else "a"} label, unlike '
                             f'{self._name(0)}: give all images a label, or none')
        if label is None:
            return NO_LABEL
        if isinstance(label, torch.Tensor) and label.dim() == 0 and not label.is_floating_point():
            label = label.item()
        if not isinstance(label, Integral):
            raise ValueError(f'{self._name(index)} has the label {label!r}: expected a whole number')
        if not 0 <= label < self.classes:
            raise ValueError(f'{self._name(index)} has the label {label}, but labels are 0 to {self.classes - 1}: '
                             'correct it, or give another --num_classes')
        return int(label)

    def __getstate__(self):
        return {**self.__dict__, 'dataset': pickle.dumps(self.dataset)}

    def __setstate__(self, state):
        load_object(state['file'], OPTION)  # a worker process that was not forked must know the user's classes first
        self.__dict__.update(state, dataset=pickle.loads(state['dataset']))
