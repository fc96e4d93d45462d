"""Image folders: finding the files of train/<class>/ and val/<class>/, saying what is wrong, decoding one file.

A `spec` here is a row of `lib.data.datasets.DATASETS`; its name, its tree and how to obtain it go into the messages.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from lib.data.batches import NO_LABEL
from lib.data.link_tree import some_names
from lib.record.files import read_text

logger = logging.getLogger(__name__)


def list_images(spec: Any, root: str | Path | None, split: str) -> tuple[list[str], torch.Tensor]:
    """List the images of `root`/split/<class>/..., and of Tiny ImageNet's val/images with `val_annotations.txt`.

    Images that lie in `root`/split itself, where there are no class folders, have no labels. Where they lie in `root`
    itself, every fifth in the order of the names is validation.

    Returns:
        Paths (N strings) and labels (int64 (N,)): positions in `class_names`, or `NO_LABEL`.

    Raises:
        ValueError: a folder is missing or empty, a class folder holds no image, train/ and val/ differ in classes,
            or there are more class folders than the data set has.
    """
    root = existing_root(spec, root)
    folder = root / split
    if paths := loose_images(folder):
        return paths, torch.full((len(paths),), NO_LABEL)
    if paths := loose_images(root):
        if len(paths) < 2:
            raise ValueError(f'{root} holds one image: expected at least 2, one of them for validation')
        chosen = [path for place, path in enumerate(paths) if (place % 5 == 0) == (split == 'val')]
        return chosen, torch.full((len(chosen),), NO_LABEL)
    classes = {name: label for label, name in enumerate(class_names(spec, root))}
    if (split == 'train' or not (root / 'train').is_dir()) and len(classes) < (spec.folders or 0):
        logger.warning('%s has %d of the %d class folders of %s: labels are positions among these',
                       folder, len(classes), spec.folders, spec.name)
    if split == 'val' and _is_annotated(folder):
        samples = _annotated(folder, classes)
    else:
        _refuse_other_classes(folder, _subfolders(spec, folder), classes)
        try:
            samples = make_dataset(str(folder), classes, extensions=IMG_EXTENSIONS)
        except FileNotFoundError as error:
            raise ValueError(f'{folder}: {error}. Fill the empty class folder, or remove it from train and val') \
                from error
    return [path for path, _ in samples], torch.tensor([label for _, label in samples])


def class_names(spec: Any, root: str | Path | None) -> list[str]:
    """Return the sorted names of the class folders in `root`/train, or in `root`/val where there is no train/.

    Raises:
        ValueError: there are none, one is a link to nowhere, or there are more than the data set has.
    """
    root = existing_root(spec, root)
    has_classes = (root / 'train').is_dir() or not (root / 'val').is_dir() or _is_annotated(root / 'val')
    folder = root / ('train' if has_classes and not loose_images(root / 'train') else 'val')
    if loose_images(root) or loose_images(folder):
        raise ValueError(f'{spec.name}: the images in {root} have no labels, which would tell the number of classes: '
                         'give --num_classes')
    names = _subfolders(spec, folder)
    if spec.folders and len(names) > spec.folders:
        raise ValueError(f'{spec.name} has {spec.folders} class folders, but {folder} has {len(names)}: '
                         "is it another data set? The data set 'folder' takes any image folder")
    return names


def loose_images(folder: Path) -> list[str]:
    """Return the sorted paths of the images that lie in a folder itself; none where it has folders, too."""
    entries = [entry for entry in folder.iterdir() if entry.name[0] != '.'] if folder.is_dir() else []
    if any(entry.is_dir() for entry in entries):
        return []
    return sorted(str(entry) for entry in entries if entry.suffix.lower() in IMG_EXTENSIONS)


def existing_root(spec: Any, root: str | Path | None) -> Path:
    """Return `root` as a `Path`, or raises a ValueError that says what is expected there and how to get it."""
    if root is None:
        raise ValueError(f'{spec.name} needs a root folder that holds {spec.tree}; {spec.obtain}')
    root = Path(root).expanduser()
    if not root.is_dir():
        raise ValueError(f'{spec.name}: the folder {root} does not exist; expected {spec.tree}; {spec.obtain}')
    return root


def find_images(places: Sequence[str | Path]) -> list[str]:
    """Return the paths of image files: files as they are given, and of folders all images in them and below, sorted.

    Raises:
        ValueError: a place does not exist, or a folder holds no image.
    """
    found = []
    for place in map(Path, places):
        if place.is_dir():
            files = sorted(str(path) for path in place.rglob('*')
                           if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
            if not files:
                raise ValueError(f'{place} holds no image: expected files such as {", ".join(IMG_EXTENSIONS)}')
            found += files
        elif place.is_file():
            found.append(str(place))
        else:
            raise FileNotFoundError(f'image {place} does not exist: check the path')
    return found


class BadImageError(ValueError):
    """An image file that is missing or cannot be decoded; `path` is its path."""

    def __init__(self, path: str | Path, reason: Any):
        super().__init__(f'cannot decode the image {path} ({reason}): replace or remove it, or leave out all such '
                         'images with --on_bad_image skip')
        self.path = str(path)


def load_image(path: str | Path) -> Image.Image:
    """Decode an image file as RGB with 8 bits per channel; a `BadImageError` names the file that is broken."""
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except MemoryError:
        raise  # no fault of the file
    except Exception as error:  # a broken file makes Pillow's parsers raise nearly anything
        raise BadImageError(path, error) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any kind to RGB with 8 bits per channel.

    Pillow's `convert` clips grey levels of 16 bits at 255, so that nearly all turn white; here their upper 8 bits are
    taken, as Pillow does itself when it reads 16-bit colour.

    Raises:
        ValueError: pixels that are floating point numbers, or integers beyond 16 bits: their range is not known.
    """
    if image.mode == 'F':
        raise ValueError('its pixels are floating point numbers: save it with 8 or 16 bits')
    if image.mode.startswith('I'):  # 'I;16' and its relatives; 'I' where Pillow holds 16 bits in 32
        levels = np.asarray(image)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f'its grey levels are {levels.min()} to {levels.max()}: save it with 8 or 16 bits')
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    return image.convert('RGB')


def image_size(path: str | Path) -> tuple[int, int] | None:
    """Return (width, height) of an image file from its header; None where that cannot be read."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # as above; decoding says what is wrong
        return None


def _subfolders(spec, folder):
    entries = [entry for entry in folder.iterdir() if entry.name[0] != '.'] if folder.is_dir() else []
    dangling = [entry.name for entry in entries if not entry.exists()]
    if dangling:
        raise ValueError(f'{folder}: {some_names(dangling)} link to nowhere: make the links again')
    names = sorted(entry.name for entry in entries if entry.is_dir())
    if not names:
        problem = 'has no class folders' if folder.is_dir() else 'does not exist'
        raise ValueError(f'{spec.name}: {folder} {problem}; expected {spec.tree} in {folder.parent}; {spec.obtain}')
    return names


def _refuse_other_classes(folder, names, classes):
    missing, strange = set(classes) - set(names), set(names) - set(classes)
    if missing or strange:
        raise ValueError(f'{folder} has other classes than train; missing: {some_names(missing) or "none"}; '
                         f'not in train: {some_names(strange) or "none"}')


def _is_annotated(folder):
    return (folder / 'val_annotations.txt').is_file() and (folder / 'images').is_dir()


def _annotated(folder, classes):
    """Read lines 'val_0.JPEG n03444034 ...' into pairs (path, label)."""
    file = folder / 'val_annotations.txt'
    samples = {}
    for line in filter(str.strip, read_text(file, 'list of validation images').splitlines()):
        name, synset, *_ = [*line.split(), '']
        if '/' in name or '\\' in name:
            raise ValueError(f'{file}: {name!r:.60} is no name of a file in {folder / "images"}')
        if synset not in classes:
            raise ValueError(f'{file}: {name!r:.60} is of class {synset!r:.60}, for which train has no folder')
        if name in samples:
            raise ValueError(f'{file}: {name!r:.60} stands there twice; unpack the data set again')
        samples[name] = str(folder / 'images' / name), classes[synset]
    if not samples:
        raise ValueError(f'{file} is empty: expected a line "<file> <class> ..." for each image of {folder / "images"}')
    images = {entry.name for entry in (folder / 'images').iterdir() if entry.suffix.lower() in IMG_EXTENSIONS}
    if left := {name for name in images.difference(samples) if name[0] != '.'}:
        raise ValueError(f'{file} has no line for {len(left)} images of {folder / "images"}: {some_names(left)}; '
                         'unpack the data set again, or remove them')
    return list(samples.values())
