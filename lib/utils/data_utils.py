"""Data loaders: training and validation images of a data set, or the two parts of its training images for a search.

Every loader yields (images float32 (N, C, H, W), labels int64 (N,)) and has `set_epoch(epoch)`, `first_batch()`,
`num_images`, `batch_size`, `input_shape` and `labelled`: of images that have no labels all are -1. The batches are a
pure function of (data, seed, epoch): bit-identical however often they are drawn, with any number of workers, and no
global random number generator is read or moved. Several processes serve a part of each batch; their parts together are
the batch of a single process.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lib.data.crop_loader import CropLoader
from lib.data.datasets import DATASETS, DatasetSpec, Split, dataset_spec, num_classes
from lib.data.image_cache import decode_photographs, decode_views, fits_memory, photograph_bytes
from lib.data.item_loader import ImageFiles, ImageLoader
from lib.data.loader_options import LoaderOptions
from lib.data.tensor_loader import TensorLoader
from lib.data.transforms import fixed_view, renormalised, scaled_augment, train_transform, val_transform
from lib.data.user_data import UserBuild, UserImages, count_classes

__all__ = ['DATASETS', 'DatasetSpec', 'ImageLoader', 'LoaderOptions', 'TensorLoader', 'create_loaders',
           'create_search_loaders', 'dataset_spec', 'num_classes', 'search_split', 'train_transform', 'val_transform']

logger = logging.getLogger(__name__)

SPLIT_SEED = 1  # the originals': the same images are held out whatever the seed of a run


def create_loaders(name: str, root: str | Path | None = None, *, splits: Sequence[str] = ('train', 'val'),
                   download: bool = False, dataset_file: str | None = None, num_classes: int | None = None, **options
                   ) -> tuple:
    """Return loaders of the training images (shuffled, augmented) and of the validation images.

    Args:
        name: a name in `DATASETS`; with `dataset_file` it is not looked at.
        root: folder of the data set; `digits` needs none.
        splits: what to read, in this order; ('val',): the training images need not be there.
        download: fetch `mnist`, `fashion_mnist`, `svhn` or CIFAR if it is not there yet.
        dataset_file: 'FILE.py:build', a data set of the user's own instead, see `UserBuild` and `UserImages`.
        num_classes: None: the data set's own.
        **options: those of `LoaderOptions`; `batch_size` must be given.

    Returns:
        (training loader, validation loader, number of classes), or the loaders of `splits` and that number.

    Raises:
        ValueError: unknown name; a folder, a file or a class that is missing, empty or unreadable; a bad option.
    """
    options = LoaderOptions(**options)
    if dataset_file:
        build = UserBuild(dataset_file, root)
        parts = [UserPart(build(split, augment=split == 'train'), split, split == 'train') for split in splits]
        return _user_loaders(build, parts, num_classes, options)
    spec = dataset_spec(name)
    parts = [Part(spec.read(spec, root, split, download), split == 'train') for split in splits]
    return *_named_loaders(spec, parts, options, 'images'), _classes(name, root, parts, num_classes)


def create_search_loaders(name: str, root: str | Path | None = None, *, train_size: int, val_size: int,
                          download: bool = False, dataset_file: str | None = None, num_classes: int | None = None,
                          **options) -> tuple:
    """Return loaders of two disjoint parts of the training images, for a search that must not see val/.

    The training images are put into one fixed random order: the first `val_size` validate (not shuffled, not
    augmented), the next `train_size` train. Which images these are does not depend on `seed`.
    If fewer than `train_size` are left, all of those train and a warning says how many.

    Args and returns: those of `create_loaders`, with
        train_size, val_size: numbers of images, at least 1.

    Raises:
        ValueError: as `create_loaders`; or `val_size` leaves no image for training.
    """
    options = LoaderOptions(**options)
    if dataset_file:
        build = UserBuild(dataset_file, root)
        augmented = build('train', augment=True)
        plain = build('train', augment=False) if build.takes('augment') else augmented
        if len(augmented) != len(plain):
            raise ValueError(f'--dataset_file {build.source("train")} has {len(augmented)} items with augment=True '
                             f'and {len(plain)} with augment=False: both must hold the same images')
        picked = search_split(len(plain), train_size, val_size)
        parts = [UserPart(augmented, 'train', True, picked[0]), UserPart(plain, 'train', False, picked[1])]
        return _user_loaders(build, parts, num_classes, options)
    spec = dataset_spec(name)
    images = spec.read(spec, root, 'train', download)
    picked = search_split(len(images), train_size, val_size)
    parts = [Part(images.take(picked[0]), True), Part(images.take(picked[1]), False)]
    classes = _classes(name, root, [Part(images, True)], num_classes)
    return *_named_loaders(spec, parts, options, 'search images'), classes


def search_split(count: int, train_size: int, val_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the indices (training, validation), int64, of a search among `count` images.

    Raises:
        ValueError: a size below 1, or no image is left for training.
    """
    if train_size < 1 or val_size < 1 or val_size >= count:
        raise ValueError(f'a search with --train_size {train_size} and --val_size {val_size} cannot be made of {count} '
                         f'training images: both must be at least 1, val_size at most {count - 1} '
                         f'(a fifth for validation is {count // 5})')
    order = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED))
    if val_size + train_size > count:
        logger.warning('%d training images: %d validate, and the remaining %d train instead of the %d of train_size',
                       count, val_size, count - val_size, train_size)
    return order[val_size:val_size + train_size], order[:val_size]


class Part(NamedTuple):
    """A `Split` and whether it trains: is shuffled, augmented, and served in training batches."""

    split: Split
    trains: bool


class UserPart(NamedTuple):
    """The same of a data set of the user's own, built for the split `name`; `indices`: None for all of it."""

    dataset: torch.utils.data.Dataset
    name: str
    trains: bool
    indices: torch.Tensor | None = None


def _classes(name, root, parts, given):
    largest = max(int(part.split.labels.max()) for part in parts)
    if given and largest >= given:
        raise ValueError(f'--num_classes {given}: the labels of {name} reach {largest}, so it takes at least '
                         f'{largest + 1}')
    return given or num_classes(name, root)


def _named_loaders(spec, parts, options, what):
    """Return the loaders of some `Part`s of a row of `DATASETS`."""
    spec = renormalised(spec, options.normalize)
    size = options.image_size or spec.resolution
    if spec.kind == 'memory':
        kind = _tensor_loader
    else:
        cached = options.cache != 'off' and _fits(spec, parts, size, options, what)
        kind = _cached_loader if cached else _file_loader
    loaders = [kind(spec, split, size, options, trains) for split, trains in parts]
    for loader, (split, trains) in zip(loaders, parts, strict=True):
        loader.labelled, loader.augmented = split.labelled, trains
    return loaders


def _file_loader(spec, split, size, options, training):
    transform = train_transform(spec, size, options.randaugment) if training else val_transform(spec, size)
    return ImageLoader(ImageFiles(split, transform, (3, size, size)), shuffle=training,
                       **options.batches(len(split), training), workers=options.workers,
                       pin_memory=options.pin_memory, skip=options.on_bad_image == 'skip')


def _tensor_loader(spec, split, size, options, training):
    if isinstance(split.images, list):  # in one thread: for files this small, more were measured to be slower
        split = decode_views(split, lambda image: image, spec.resolution, skip=options.on_bad_image == 'skip')
    return TensorLoader(split.images, split.labels, shuffle=training, **options.batches(len(split), training),
                        mean=spec.mean, std=spec.std, augment=spec.augment if training else None,
                        size=None if size == spec.resolution else size, device=options.device,
                        randaugment=options.randaugment if training else None)


def _fits(spec, parts, size, options, what):
    """Decide whether the parts go into memory; of all images but photographs for training it is a fixed view."""
    count = sum(len(split) for split, _ in parts)
    photographs = [path for split, trains in parts if trains and spec.augment is None for path in split.images]
    needed = photograph_bytes(photographs, options.cache_size, options.workers)
    needed += 3 * size ** 2 * (count - len(photographs))
    return fits_memory(options.cache, needed, count, name=what, world=options.shard[1])


def _cached_loader(spec, split, size, options, training):
    decoding = {'workers': options.workers, 'skip': options.on_bad_image == 'skip'}
    if training and spec.augment is None:
        split = decode_photographs(split, options.cache_size, **decoding)
        return CropLoader(split.images, split.labels, size=size, mean=spec.mean, std=spec.std, device=options.device,
                          workers=options.workers, randaugment=options.randaugment,
                          **options.batches(len(split), training))
    split = decode_views(split, fixed_view(spec, size), size, **decoding)
    return TensorLoader(split.images, split.labels, shuffle=training, **options.batches(len(split), training),
                        mean=spec.mean, std=spec.std, augment=scaled_augment(spec, size) if training else None,
                        device=options.device, randaugment=options.randaugment if training else None)


def _user_loaders(build, parts, classes, options):
    """Return (training loader, validation loader, number of classes) of `UserPart`s, or fewer loaders of fewer."""
    spec = renormalised(DATASETS['folder'], options.normalize)
    size = options.image_size or spec.resolution
    classes = count_classes(build.file, [part.dataset for part in parts], classes)
    images = [UserImages(part.dataset, build.file, build.source(part.name), classes=classes, indices=part.indices,
                         transform=train_transform(spec, size, options.randaugment) if part.trains
                         else val_transform(spec, size)) for part in parts]
    _check_user_images(build, images, options, any(part.trains for part in parts))
    loaders = [ImageLoader(part_images, shuffle=part.trains, **options.batches(len(part_images), part.trains),
                           workers=options.workers, pin_memory=options.pin_memory)
               for part, part_images in zip(parts, images, strict=True)]
    for loader, part, part_images in zip(loaders, parts, images, strict=True):
        loader.labelled = part_images.labelled
        loader.augmented = part.trains and (not part_images.is_tensor or part_images.reads_differ())
    return *loaders, classes


def _check_user_images(build, images, options, training):
    first, last = images[0], images[-1]
    if first.input_shape != last.input_shape:
        raise ValueError(f'--dataset_file {build.file}: training images have the shape {first.input_shape}, those '
                         f'for validation {last.input_shape}: both must have the same')
    if first is not last and first.dataset is last.dataset and last.reads_differ():
        logger.warning('%s: the images held out for validation are augmented like those for training: give the '
                       'function a parameter augment, which is False for them', build.file)
    if first.is_tensor:
        if options.image_size not in (None, *first.input_shape[1:]):
            raise ValueError(f'--image_size {options.image_size}: the images of {build.file} are tensors of the shape '
                             f'{first.input_shape}, which are used as they are: leave the option out')
        if options.randaugment and training:
            raise ValueError(f'--randaugment: the images of {build.file} are tensors, which are used as they are, and '
                             'it works on pixels: leave it out, or let the data set return PIL images')
        if options.normalize:
            logger.warning('%s: the images are tensors, which are used as they are: they are not normalised (%s)',
                           build.file, options.normalize)
    if options.cache == 'ram':
        logger.info('%s: a data set of your own is not held in memory: every image is asked for again', build.file)
