"""Data loaders: training and validation images of a data set, or the two parts of its training images for a search.

Every loader yields (images float32 (N, 3, H, W), labels int64 (N,)) and has `set_epoch(epoch)`, `num_images` and
`batch_size`. The batches are a pure function of (data, seed, epoch): bit-identical however often they are drawn,
with any number of workers, and no global random number generator is read or moved.
"""

import logging
import os

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lib.utils.datasets import DATASETS, DatasetSpec, dataset_spec, num_classes
from lib.utils.image_folder import load_image
from lib.utils.tensor_loader import EpochOrder, TensorLoader
from lib.utils.utils import derived_seed

__all__ = ['DATASETS', 'DatasetSpec', 'ImageLoader', 'TensorLoader', 'create_loaders', 'create_search_loaders',
           'dataset_spec', 'num_classes', 'search_split', 'train_transform', 'val_transform']

logger = logging.getLogger(__name__)

SPLIT_SEED = 1  # the originals': the same images are held out whatever the seed of a run


def create_loaders(name, root=None, *, batch_size, test_batch_size=None, workers=0, seed=0, download=False,
                   image_size=None, pin_memory=False):
    """Returns loaders of the training images (shuffled, augmented) and of the validation images.

    Args:
        name: a name in `DATASETS`.
        root: folder of the data set; `digits` needs none.
        batch_size: images per training batch. A last batch of one image is left out: BatchNorm cannot train on it.
        test_batch_size: images per validation batch; None: `batch_size`.
        workers: processes that decode image files, at most as many as there are CPUs; none for data in memory.
        seed: of the order of the training images and of their augmentation.
        download: fetch `mnist`, `fashion_mnist`, `svhn` or CIFAR if it is not there yet.
        image_size: side of the images that the network gets; None: the data set's own (299 suits inception).
        pin_memory: give batches of decoded files in page-locked memory; only of use for a CUDA device.

    Returns:
        (training loader, validation loader, number of classes).

    Raises:
        ValueError: unknown name; a folder, a file or a class that is missing, empty or unreadable; a bad size.
    """
    spec = dataset_spec(name)
    train, val = (spec.read(spec, root, split, download) for split in ('train', 'val'))
    options = {'workers': workers, 'seed': seed, 'image_size': image_size, 'pin_memory': pin_memory}
    return (_loader(spec, train, training=True, batch_size=batch_size, **options),
            _loader(spec, val, training=False, batch_size=test_batch_size or batch_size, **options),
            num_classes(name, root))


def create_search_loaders(name, root=None, *, train_size, val_size, batch_size, test_batch_size=None, workers=0,
                          seed=0, download=False, image_size=None, pin_memory=False):
    """Returns loaders of two disjoint parts of the training images, for a search that must not see val/.

    The training images are put into one fixed random order: the first `val_size` validate (not shuffled, not
    augmented), the next `train_size` train. Which images these are does not depend on `seed`.
    If fewer than `train_size` are left, all of those train and a warning says how many.

    Args and returns: those of `create_loaders`, with
        train_size, val_size: numbers of images, at least 1.

    Raises:
        ValueError: as `create_loaders`; or `val_size` leaves no image for training.
    """
    spec = dataset_spec(name)
    images = spec.read(spec, root, 'train', download)
    training, validation = search_split(len(images), train_size, val_size)
    options = {'workers': workers, 'seed': seed, 'image_size': image_size, 'pin_memory': pin_memory}
    return (_loader(spec, images.take(training), training=True, batch_size=batch_size, **options),
            _loader(spec, images.take(validation), training=False, batch_size=test_batch_size or batch_size, **options),
            num_classes(name, root))


def search_split(count, train_size, val_size):
    """Returns the indices (training, validation), int64, of a search among `count` images.

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


def train_transform(spec, size):
    """Returns the augmentation of an image file for training: PIL image -> float32 (3, size, size)."""
    if spec.augment is None:
        steps = [transforms.RandomResizedCrop(size)]
    else:
        steps = [transforms.Resize((size, size)),
                 transforms.RandomCrop(size, padding=round(spec.augment.pad * size / spec.resolution))]
    return transforms.Compose([*steps, transforms.RandomHorizontalFlip(), *_to_tensor(spec)])


def val_transform(spec, size):
    """Returns the fixed view of an image file: photographs are resized to 256/224 of the centre crop's `size`."""
    if spec.augment is None:
        steps = [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)]
    else:
        steps = [transforms.Resize((size, size))]
    return transforms.Compose([*steps, *_to_tensor(spec)])


class ImageLoader(DataLoader):
    """Iterates over batches of image files, decoded as they are needed.

    The order and each image's augmentation depend on (seed, epoch) alone, not on the number of workers. The epoch is
    0 until `set_epoch`.

    Args:
        split: a `Split` of paths and labels.
        transform: PIL image -> tensor; may draw from torch's global generator, which is seeded for each image and
            put back afterwards.
        batch_size, shuffle, drop_last, pin_memory: as of `DataLoader`.
        seed: of the order and the augmentation.
        workers: decoding processes, kept from epoch to epoch; at most as many as there are CPUs.
    """

    def __init__(self, split, transform, *, batch_size, shuffle, seed=0, workers=0, drop_last=False, pin_memory=False):
        cpus = os.cpu_count() or 1
        if workers > cpus:
            logger.info('%d workers instead of %d: there are no more CPUs', cpus, workers)
        workers = min(workers, cpus)
        # a generator of its own, for the default is to move the global one once per epoch
        super().__init__(_Files(split, transform, seed), batch_size=batch_size, drop_last=drop_last,
                         sampler=EpochOrder(len(split), shuffle=shuffle, seed=seed), num_workers=workers,
                         persistent_workers=workers > 0, pin_memory=pin_memory, generator=torch.Generator())

    @property
    def num_images(self):
        """Number of images, those of a dropped last batch included."""
        return len(self.dataset)

    def set_epoch(self, epoch):
        """Chooses the epoch that the next iteration serves."""
        self.sampler.epoch = int(epoch)


class _Files(Dataset):
    def __init__(self, split, transform, seed):
        self.split, self.transform, self.seed = split, transform, int(seed)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, key):
        index, epoch = key
        image = load_image(self.split.images[index])
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(derived_seed(self.seed, epoch, index))
            return self.transform(image), int(self.split.labels[index])


def _to_tensor(spec):
    return [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]


def _loader(spec, split, *, training, batch_size, workers, seed, image_size, pin_memory):
    size = spec.resolution if image_size is None else image_size
    if batch_size < 1 or size < 1 or workers < 0:
        raise ValueError(f'batch size {batch_size}, image size {size}, {workers} workers: '
                         'expected at least 1, 1 and 0')
    common = {'batch_size': batch_size, 'shuffle': training, 'seed': seed,
              'drop_last': training and len(split) > 1 and len(split) % batch_size == 1}
    if spec.kind == 'memory':
        return TensorLoader(split.images, split.labels, **common, mean=spec.mean, std=spec.std,
                            augment=spec.augment if training else None, size=None if size == spec.resolution else size)
    transform = train_transform(spec, size) if training else val_transform(spec, size)
    return ImageLoader(split, transform, **common, workers=workers, pin_memory=pin_memory)
