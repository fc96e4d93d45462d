"""Names of the classes of a data set, in the order of the outputs of its networks."""

from pathlib import Path

from torchvision.datasets import FashionMNIST
from torchvision.models import ResNet18_Weights

from lib.data.datasets import DATASETS, dataset_spec
from lib.data.image_folder import class_names
from lib.record.files import read_text

MAX_NAME = 200  # characters
DIGITS = [str(digit) for digit in range(10)]
CIFAR10 = 'airplane automobile bird cat deer dog frog horse ship truck'
CIFAR100 = (
    'apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle '
    'caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant '
    'flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man '
    'maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree '
    'plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper '
    'snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train '
    'trout tulip turtle wardrobe whale willow_tree wolf woman worm')
KNOWN = {'digits': DIGITS, 'mnist': DIGITS, 'svhn': DIGITS, 'cifar10': CIFAR10.split(), 'cifar100': CIFAR100.split(),
         'fashion_mnist': FashionMNIST.classes}
IMAGENET = ('imagenet', 'imagenet100', 'imagenet10')  # data sets with ImageNet's 1000 labels


def imagenet_names() -> list[str]:
    """Return the names of ImageNet's 1000 classes in their usual order, that of the synsets."""
    return list(ResNet18_Weights.IMAGENET1K_V1.meta['categories'])


def names_of_dataset(name: str, root: str | Path | None = None) -> list[str] | None:
    """Return the names of the classes: known ones, or those of the folders in `root`; None where these are not there.
    """
    if name in IMAGENET:
        return imagenet_names()
    if name in KNOWN:
        return list(KNOWN[name])
    try:
        return class_names(dataset_spec(name), root) if name in DATASETS else None
    except (ValueError, OSError):
        return None


def read_class_names(path: str | Path) -> list[str]:
    """Return the names in a text file, one a line.

    Raises:
        ValueError: it cannot be read, or a line is empty, too long or twice there.
    """
    names = [line.strip() for line in read_text(path, 'list of class names').rstrip().split('\n')]
    for number, name in enumerate(names, 1):
        if not name or len(name) > MAX_NAME or not name.isprintable() or names.index(name) < number - 1:
            raise ValueError(f'{path}, line {number}: {name!r:.60} is no name of a class: expected one a line, all '
                             'different')
    return names
