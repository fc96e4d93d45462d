"""Digests of data sets, computed from the files that are read: they tell one data set from another."""

import os
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from lib.data.datasets import dataset_spec
from lib.data.image_folder import loose_images
from lib.record.digest import digest_of_file, digest_of_value

# The files of the data sets that are read whole, below their root.
FILES = {'mnist': 'MNIST/raw/*-ubyte', 'fashion_mnist': 'FashionMNIST/raw/*-ubyte', 'svhn': 't*_32x32.mat',
         'cifar10': 'cifar-10-batches-py/*', 'cifar100': 'cifar-100-python/*'}
LISTS = ('val_annotations.txt',)  # files beside the images that are read


def data_digest(name: str, root: str | Path | None, splits: Sequence[str]) -> str | None:
    """Return a digest of the files of a data set, wherever its root lies; None for `digits`, which has none.

    Of an image folder it is that of the names and sizes of the images of `splits`: nothing is read.

    Args:
        name: a name in `DATASETS`.
        root: folder of the data set.
        splits: 'train', 'val' or both.

    Raises:
        ValueError: the name is unknown.
    """
    spec, root = dataset_spec(name), Path(root or '').expanduser()
    files = sorted(root.glob(FILES[name])) if name in FILES else []
    if files:
        return digest_of_value({file.relative_to(root).as_posix(): digest_of_file(file) for file in files
                                if file.is_file()})
    if spec.kind == 'memory' and name not in FILES:
        return None
    return digest_of_value(_listed(root) if loose_images(root) else {split: _listed(root / split) for split in splits})


def _listed(folder):
    """Return {path below the folder: bytes} of the images in it, links followed."""
    found = {}
    for place, _, names in os.walk(folder, followlinks=True):
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS) or name in LISTS:
                path = Path(place, name)
                found[path.relative_to(folder).as_posix()] = path.stat().st_size if path.exists() else None
    return found
