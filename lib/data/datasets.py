"""The data sets by name, and how each is read: small ones into memory once, large ones as a list of files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

from lib.data.batches import NO_LABEL
from lib.data.image_folder import class_names, existing_root, list_images
from lib.data.tensor_loader import Augment


@dataclass(frozen=True)
class Split:
    """The images of train/ or val/.

    Attributes:
        images: uint8 (N, 3, H, W), or N paths of files.
        labels: int64 (N,); all are `NO_LABEL` where the images have none.
    """

    images: torch.Tensor | list
    labels: torch.Tensor

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return bool((self.labels != NO_LABEL).all())

    def __len__(self):
        return len(self.labels)

    def take(self, indices: torch.Tensor) -> 'Split':
        """Return the part at `indices`, int64 (M,), in that order."""
        if isinstance(self.images, list):
            return Split([self.images[i] for i in indices.tolist()], self.labels[indices])
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class DatasetSpec:
    """A row of `DATASETS`.

    Attributes:
        name: as given to `--dataset`.
        num_classes: outputs of a network for the complete data set; None: as many as there are class folders.
        resolution: side of the images that the network gets, in pixels.
        mean, std: per channel, in units of [0, 1] pixels.
        read: function (spec, root, split 'train' or 'val', download) -> `Split`.
        augment: how training images are cropped and mirrored; None: RandomResizedCrop and mirroring, for photographs.
        folders: class folders in train/ of the complete data set; None: there are none, or any number.
        tree: what the root folder holds.
        obtain: how to get it.
    """

    name: str
    num_classes: int | None
    resolution: int
    mean: tuple
    std: tuple
    read: Callable
    augment: Augment | None
    folders: int | None
    tree: str
    obtain: str

    @property
    def kind(self) -> str:
        """'memory': held in memory as images of one size; 'folder': decoded from the files batch by batch."""
        return 'folder' if self.read is read_folder else 'memory'


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of `DATASETS` for `name`; a ValueError lists the names."""
    if name not in DATASETS:
        raise ValueError(f'unknown data set {name!r}: expected one of {", ".join(DATASETS)}')
    return DATASETS[name]


def num_classes(name: str, root: str | Path | None = None) -> int:
    """Return the number of outputs that a network for the data set needs.

    It is 1000 for ImageNet's subsets too: they keep ImageNet's labels, so that its 1000-way heads serve unchanged.
    For `dtd` and `folder` it is the number of class folders in `root`/train (`dtd` without a root: 47).

    Raises:
        ValueError: unknown name; folders must be counted and `root` is None, missing or without class folders.
    """
    spec = dataset_spec(name)
    counted = spec.kind == 'folder' and spec.folders is None
    if counted and (root is not None or spec.num_classes is None):
        return len(class_names(spec, root))
    return spec.num_classes


def read_folder(spec: DatasetSpec, root: str | Path | None, split: str, download: bool = False) -> Split:
    """List the images of an image folder; their files are read when they are asked for."""
    return Split(*list_images(spec, root, split))


def read_digits(spec: DatasetSpec, root: str | Path | None, split: str, download: bool = False) -> Split:
    """Read scikit-learn's 1,797 digits of 8 x 8 pixels and 17 grey levels: 1,437 for training, 360 for validation.

    Every fifth image in the order of the labels is validation, so each class is split 80/20 to within one image.
    """
    from sklearn.datasets import load_digits  # takes a second, and only this data set needs it

    digits = load_digits()
    validation = np.zeros(len(digits.target), dtype=bool)
    validation[np.argsort(digits.target, kind='stable')[::5]] = True
    chosen = validation if split == 'val' else ~validation
    images = torch.from_numpy(digits.images[chosen]).float() * (255 / 16)
    return Split(_square(images.unsqueeze(1), spec.resolution), torch.from_numpy(digits.target[chosen]).long())


def read_mnist(spec: DatasetSpec, root: str | Path | None, split: str, download: bool = False) -> Split:
    """Read MNIST or Fashion-MNIST in torchvision's tree `root`/<class name>/raw."""
    data = _torchvision(spec, root, download, train=split == 'train')
    return Split(_square(data.data.unsqueeze(1), spec.resolution), data.targets.long())


def read_svhn(spec: DatasetSpec, root: str | Path | None, split: str, download: bool = False) -> Split:
    """Read Street View House Numbers, `train_32x32.mat` and `test_32x32.mat` in `root`."""
    data = _torchvision(spec, root, download, split='train' if split == 'train' else 'test')
    return Split(torch.from_numpy(np.ascontiguousarray(data.data)), torch.from_numpy(data.labels).long())


def read_cifar(spec: DatasetSpec, root: str | Path | None, split: str, download: bool = False) -> Split:
    """Read CIFAR from torchvision's folder of pickles in `root` or, where that is not there, from an image folder.

    In an image folder the labels are CIFAR's own as well: its class names are in alphabetical order. It is only
    listed here; the loaders decode what they need of it into memory.
    """
    folder = Path(root or '').expanduser()
    has_classes = (folder / 'train').is_dir() or (folder / 'val').is_dir()
    if has_classes and not (folder / _TORCHVISION[spec.name].base_folder).is_dir():
        return Split(*list_images(spec, root, split))
    data = _torchvision(spec, root, download, train=split == 'train')
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor(data.targets))


def _torchvision(spec, root, download, **options):
    """Build torchvision's data set; say in one sentence what is missing."""
    root = Path(root).expanduser() if download and root is not None else existing_root(spec, root)
    try:
        return _TORCHVISION[spec.name](root, download=download, **options)
    except Exception as error:  # a damaged file makes these readers raise nearly anything
        raise ValueError(f'{spec.name} cannot be read from {root} ({error}); expected {spec.tree}; {spec.obtain}') \
            from error


def _square(images, size):
    """Resize (N, 1, h, w) of values 0..255 to uint8 (N, 3, size, size), bilinear; piecewise, for floats are large."""
    pieces = [F.interpolate(piece.float(), size=(size, size), mode='bilinear').round().to(torch.uint8)
              for piece in images.split(4096)]
    return torch.cat(pieces).expand(-1, 3, -1, -1).contiguous()


_TORCHVISION = {
    'mnist': torchvision.datasets.MNIST, 'fashion_mnist': torchvision.datasets.FashionMNIST,
    'svhn': torchvision.datasets.SVHN, 'cifar10': torchvision.datasets.CIFAR10,
    'cifar100': torchvision.datasets.CIFAR100,
}
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CROP, _CROP_FLIP = Augment(pad=4), Augment(pad=4, flip=True)  # a mirrored digit is no digit
_FOLDERS = 'train/<class>/ and val/<class>/ with image files'
_DOWNLOAD = 'download=True (--download) fetches it, or put the files there by hand'
_MAKE = '`python lib/utils/make_data.py --dataset {}` makes it'.format

DATASETS = {row[0]: DatasetSpec(*row) for row in (
    # name, classes, resolution, mean, std, read, augment, class folders, tree, how to obtain it
    ('digits', 10, 32, (0.5,) * 3, (0.5,) * 3, read_digits, _CROP, None, 'nothing', 'it comes with scikit-learn'),
    ('mnist', 10, 32, (0.1307,) * 3, (0.3081,) * 3, read_mnist, _CROP, None,
     'MNIST/raw/ with the four idx-ubyte files', _DOWNLOAD),
    ('fashion_mnist', 10, 32, (0.2860,) * 3, (0.3530,) * 3, read_mnist, _CROP_FLIP, None,
     'FashionMNIST/raw/ with the four idx-ubyte files', _DOWNLOAD),
    ('svhn', 10, 32, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), read_svhn, _CROP, None,
     'train_32x32.mat and test_32x32.mat', _DOWNLOAD),
    # ImageNet's mean and std, for the published CIFAR ResNets were trained with them
    ('cifar10', 10, 32, *_IMAGENET, read_cifar, _CROP_FLIP, 10, f'cifar-10-batches-py/, or {_FOLDERS}', _DOWNLOAD),
    ('cifar100', 100, 32, *_IMAGENET, read_cifar, _CROP_FLIP, 100, f'cifar-100-python/, or {_FOLDERS}', _DOWNLOAD),
    ('tinyimagenet', 200, 64, *_IMAGENET, read_folder, Augment(pad=8, flip=True), 200,
     'train/<synset>/images/ and val/images/ with val/val_annotations.txt', 'unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip'),
    ('imagenet', 1000, 224, *_IMAGENET, read_folder, None, 1000, _FOLDERS,
     '`python lib/utils/make_data.py --dataset imagenet_val` sorts the validation images into class folders'),
    ('imagenet100', 1000, 224, *_IMAGENET, read_folder, None, 100, _FOLDERS, _MAKE('imagenet100')),
    ('imagenet10', 1000, 224, *_IMAGENET, read_folder, None, 10, _FOLDERS, _MAKE('imagenet10')),
    ('dtd', 47, 224, *_IMAGENET, read_folder, None, None, _FOLDERS, _MAKE('dtd') + ' of data/dtd/images/'),
    ('folder', None, 224, *_IMAGENET, read_folder, None, None, _FOLDERS, 'any image folder will do'),
)}
