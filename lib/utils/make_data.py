#!/usr/bin/env python
"""Makes data sets out of what was downloaded, by links wherever possible; `python lib/utils/make_data.py --help`.

    python lib/utils/make_data.py                           data/dtd/images -> data/DTD/train, data/DTD/val
    python lib/utils/make_data.py --dataset imagenet100     data/imagenet -> data/imagenet100 (first 100 synsets)
    python lib/utils/make_data.py --dataset imagenet10      data/imagenet -> data/imagenet10 (first 10 synsets)
    python lib/utils/make_data.py --dataset imagenet_val --labels FILE     data/imagenet/val/*.JPEG -> .../<synset>/
    python lib/utils/make_data.py --dataset digits          scikit-learn's digits -> data/digits/val as PNG files

It needs no library but the standard one (SciPy for the development kit's meta.mat, scikit-learn for the digits). What
it makes depends on the source alone; a second run changes nothing, a run that was killed is completed by the next. It
never deletes or overwrites: a target that holds anything else than what would be made is refused by name.
"""

import argparse
import hashlib
import io
import os
import re
import sys
from itertools import pairwise
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == '__main__':
    sys.path[0] = str(REPOSITORY)  # run as a command: not lib/utils, whose profile.py would hide Python's own

from lib.data.link_tree import find_strangers, make_tree, refuse_overlap, some_names  # noqa: E402
from lib.record.files import atomic_path, is_file, read_text  # noqa: E402  (needs the line above)
from lib.record.mat import read_mat  # noqa: E402

SYNSET = 'n[0-9]{8}'
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
SUBSETS = {'imagenet100': 100, 'imagenet10': 10}


def split_dtd(source: Path, target: Path, *, copy: bool = False, split: int | None = None) -> str:
    """Split `source`/images/<class>/ into `target`/train/<class>/ and `target`/val/<class>/.

    Args:
        source: folder of the Describable Textures, with images/ and perhaps labels/.
        copy: copy the files instead of making relative symbolic links.
        split: 1 to 10: that official split, trainN + valN for training and testN for validation. 0: one image in
            five of each class validates, chosen by the SHA-256 of its name, the same everywhere.
            None: official split 1 where labels/ is there, else 0.

    Returns:
        A sentence that says what was made.

    Raises:
        ValueError: source missing, empty or incomplete; target one with the source, or holding other files.
    """
    images = _images_by_class(source / 'images')
    if split is None:
        split = int((source / 'labels').is_dir())
    parts = _official_split(source / 'labels', split, images) if split else _hashed_split(images)
    plan = {Path(part, name): source / 'images' / name for part, names in parts.items() for name in names}
    refuse_overlap(source, target)
    made = make_tree(plan, target, copy=copy)
    return (f'{target}: {len(parts["train"])} training and {len(parts["val"])} validation images in {len(images)} '
            f'classes, {f"official split {split}" if split else "split 80/20 per class"}; '
            f'{made} {"copied" if copy else "linked"} now, {len(plan) - made} were there')


def link_subset(source: Path, target: Path, count: int) -> str:
    """Link the first `count` synset folders, sorted by name, of `source`/train and `source`/val into `target`.

    Of the complete ImageNet these are its first `count` labels, so its 1000-way heads serve the subset unchanged.
    Returns and raises as `split_dtd`.
    """
    folders = {part: _synsets(source / part, count) for part in ('train', 'val')}
    synsets = {part: names[:count] for part, names in folders.items()}
    different = set(synsets['train']) ^ set(synsets['val'])
    if different:
        raise ValueError(f'the first {count} synsets of {source / "train"} and {source / "val"} differ in '
                         f'{some_names(different)}: complete the two folders')
    refuse_overlap(source, target)
    plan = {Path(part, name): source / part / name for part, names in synsets.items() for name in names}
    made = make_tree(plan, target)
    total = len(folders['train'])
    return (f'{target}: {count} synsets in train and val, {synsets["train"][0]} to {synsets["train"][-1]}; '
            f'{made} folders linked now, {len(plan) - made} were there'
            + (f'. Note: {source / "train"} has {total} of 1000 synsets, so these may not be the first of ImageNet'
               if total != 1000 else ''))


def sort_validation(source: Path, target: Path, labels: Path) -> str:
    """Move ImageNet's validation images from `source` into `target`/<synset>/; the two may be one folder.

    Args:
        source: folder of ILSVRC2012_val_00000001.JPEG and so on.

    Returns and raises as `split_dtd`. Nothing moves unless every image has a label and every label an image.
    """
    synsets = read_labels(labels)
    flat = sorted(path.name for path in _entries(source) if path.suffix == '.JPEG')
    plan = {Path(synset, name): source / name for name, synset in synsets.items()}
    strangers = [path for path in find_strangers(plan, target) if len(path.parts) > 1 or (target / path).is_dir()]
    there = {path.name for path in plan if os.path.lexists(target / path)}
    for names, problem in ((strangers, f'in {target} are not where {labels} puts them'),
                           (set(flat) - set(synsets), f'in {source} have no label in {labels}'),
                           (set(flat) & there, f'are both in {source} and in their class folders'),
                           (set(synsets) - set(flat) - there, f'have a label in {labels} but are not in {source}')):
        if names:
            raise ValueError(f'{len(names)} files {problem}: {some_names(names)}. Nothing was moved')
    for name in flat:
        (target / synsets[name]).mkdir(parents=True, exist_ok=True)
        os.rename(source / name, target / synsets[name] / name)  # at once or not at all, unlike shutil.move
    return f'{target}: {len(synsets)} images in {len(set(synsets.values()))} synsets; {len(flat)} moved now'


def write_digits(target: Path) -> str:
    """Write the digits as `target`/train/<digit>/*.png and `target`/val/<digit>/*.png, as large as networks get them.

    The images are those that the data set `digits` trains and validates on. Returns and raises as `split_dtd`.
    """
    from PIL import Image  # of these, and of torch, only the digits have need

    from lib.data.datasets import dataset_spec  # as above

    spec, plan = dataset_spec('digits'), {}
    for part in ('train', 'val'):
        split = spec.read(spec, None, part)
        pictures = split.images.permute(0, 2, 3, 1).numpy()
        for number, (pixels, label) in enumerate(zip(pictures, split.labels.tolist(), strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, 'PNG')
            plan[Path(part, str(label), f'{number:04d}.png')] = buffer.getvalue()
    strangers = find_strangers(plan, target)
    strangers += [path for path, data in plan.items()
                  if (target / path).exists() and (target / path).read_bytes() != data]
    if strangers:
        raise ValueError(f'{target} holds {len(strangers)} other files: {some_names(strangers)}; move them away, or '
                         'give another --target. Nothing was changed')
    missing = [path for path in plan if not (target / path).exists()]
    for path in missing:
        with atomic_path(target / path) as temporary:
            temporary.write_bytes(plan[path])
    return f'{target}: {len(plan)} images of handwritten digits; {len(missing)} written now'


def read_labels(file: Path) -> dict[str, str]:
    """Read which synset each validation image belongs to.

    Args:
        file: text that has the name of an image and then its synset (`ILSVRC2012_val_00000001.JPEG n01751748`) on
            each line, valprep.sh included; or the development kit's ILSVRC2012_validation_ground_truth.txt (one
            number per image), with its meta.mat beside it.

    Returns:
        {file name: synset}.

    Raises:
        ValueError: no such file, or it holds no labels.
    """
    if not is_file(file):
        raise ValueError(f'the label file {file} does not exist; give --labels a list of lines "ILSVRC2012_val_00000001'
                         '.JPEG n01751748" or the ILSVRC2012_validation_ground_truth.txt of the development kit')
    words = read_text(file, 'label file').split()
    if words and all(re.fullmatch('[0-9]{1,4}', number) for number in words):
        synsets = _synsets_by_number(file.parent / 'meta.mat')
        labels = {f'ILSVRC2012_val_{i:08d}.JPEG': synsets.get(int(n)) for i, n in enumerate(words, start=1)}
    else:
        labels = {name.rpartition('/')[2]: found[0] for name, after in pairwise(words)
                  if name.endswith('.JPEG') and (found := re.match(rf'{SYNSET}\b', after))}
    if not labels or None in labels.values():
        raise ValueError(f'{file} holds no labels, or some that meta.mat does not know: expected lines such as '
                         '"ILSVRC2012_val_00000001.JPEG n01751748", or numbers from 1 to 1000')
    return labels


def _hashed_split(images):
    parts = {'train': [], 'val': []}
    for name, files in images.items():
        if len(files) < 2:
            raise ValueError(f'class {name} has a single image: at least 2 are needed, one each for train and val')
        ranked = sorted(files, key=lambda file: hashlib.sha256(file.encode()).digest())
        count = max(1, round(len(files) / 5))
        parts['val'] += sorted(ranked[:count])
        parts['train'] += sorted(ranked[count:])
    return parts


def _official_split(labels, number, images):
    listed = {}
    for part in ('train', 'val', 'test'):
        file = labels / f'{part}{number}.txt'
        if not is_file(file):
            raise ValueError(f'{file} does not exist: DTD has the official splits 1 to 10 in {labels}; '
                             '--split 0 needs none of them')
        listed[part] = read_text(file, 'official split').split()
    every = sorted(name for names in listed.values() for name in names)
    if twice := {name for name, after in pairwise(every) if name == after}:
        raise ValueError(f'{len(twice)} images stand twice in the lists of official split {number} in {labels}: '
                         f'{some_names(twice)}; unpack DTD again, or give --split 0')
    absent = set(every).difference(*images.values())
    if absent:
        raise ValueError(f'{len(absent)} images of official split {number} are not in {labels.parent / "images"}: '
                         f'{some_names(absent)}; unpack the whole of DTD, or give --split 0')
    if left := set().union(*images.values()).difference(every):
        raise ValueError(f'{len(left)} images of {labels.parent / "images"} are in no list of official split {number} '
                         f'in {labels}: {some_names(left)}; unpack DTD again, or give --split 0')
    return {'train': listed['train'] + listed['val'], 'val': listed['test']}


def _images_by_class(folder):
    """Return {class: sorted names 'class/file' of its images}."""
    images = {}
    for entry in _entries(folder):
        if entry.is_dir():
            images[entry.name] = [f'{entry.name}/{file.name}' for file in _entries(entry)
                                  if file.suffix.lower() in IMAGE_SUFFIXES]
    empty = [name for name, files in images.items() if not files]
    if empty or not images:
        raise ValueError(f'{folder} holds no images of {some_names(empty) or "any class"}: expected <class>/*.jpg, '
                         'see data/README.md')
    return images


def _synsets(folder, count):
    names = [entry.name for entry in _entries(folder) if entry.is_dir()]
    if len(names) < count:
        raise ValueError(f'{folder} has {len(names)} class folders, {count} are needed'
                         + ('; --dataset imagenet_val sorts the validation images' if folder.name == 'val' else ''))
    empty = [name for name in names[:count] if not any((folder / name).iterdir())]
    if empty:
        raise ValueError(f'{folder} holds no images of {some_names(empty)}: unpack them first')
    return names


def _synsets_by_number(file):
    """Read {ILSVRC2012_ID: synset} from the development kit's meta.mat."""
    if not is_file(file):
        raise ValueError(f'{file} does not exist: it says which synset each number of the ground truth stands for; '
                         'both are in the folder data of ILSVRC2012_devkit_t12')
    found = read_mat(file, 'meta.mat of the development kit')
    try:
        synsets = {int(row['ILSVRC2012_ID'][0]): str(row['WNID']) for row in found['synsets']}
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f'{file} has no synsets with ILSVRC2012_ID and WNID: is it that of the development kit?') \
            from error
    if wrong := [synset for synset in synsets.values() if not re.fullmatch(SYNSET, synset)]:  # it names a folder
        raise ValueError(f'{file}: {wrong[0]!r:.60} is no synset, expected one such as n01751748')
    return synsets


def _entries(folder):
    if not folder.is_dir():
        raise ValueError(f'{folder} does not exist: put the data there (see data/README.md), or give --source')
    return sorted(entry for entry in folder.iterdir() if entry.name[0] != '.')


def _parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dataset', choices=['dtd', *SUBSETS, 'imagenet_val', 'digits'], default='dtd',
                        help='what to make (default: %(default)s)')
    parser.add_argument('--source', type=Path, help='folder to read (default: data/dtd, data/imagenet or '
                        'data/imagenet/val in this repository)')
    parser.add_argument('--target', type=Path, help='folder to make (default: data/DTD, data/imagenet100, '
                        'data/imagenet10, data/digits; for imagenet_val the source)')
    parser.add_argument('--copy', action='store_true', help='dtd: copy the files, make no links (default: links)')
    parser.add_argument('--split', type=int, metavar='N', help='dtd: official split 1 to 10, or 0 for 80/20 per class '
                        '(default: 1 where <source>/labels is there, else 0)')
    parser.add_argument('--labels', type=Path, metavar='FILE', help='imagenet_val: lines "ILSVRC2012_val_00000001.JPEG '
                        'n01751748", or ILSVRC2012_validation_ground_truth.txt beside meta.mat')
    return parser


def run(dataset: str, source: Path | None = None, target: Path | None = None, *, copy: bool = False,
        split: int | None = None, labels: Path | None = None) -> str:
    """Make `dataset` and return the sentence that says what was made; see the command's help for the arguments."""
    data = REPOSITORY / 'data'
    if dataset == 'digits':
        return write_digits(target or data / 'digits')
    if dataset == 'dtd':
        return split_dtd(source or data / 'dtd', target or data / 'DTD', copy=copy, split=split)
    if dataset in SUBSETS:
        return link_subset(source or data / 'imagenet', target or data / dataset, SUBSETS[dataset])
    source = source or data / 'imagenet' / 'val'
    return sort_validation(source, target or source, labels)


def main(argv: list[str] | None = None) -> None:
    """Run the command; errors end it with one sentence and status 2."""
    parser = _parser()
    args = parser.parse_args(argv)
    for option, value, owner in (('--copy', args.copy, 'dtd'), ('--split', args.split is not None, 'dtd'),
                                 ('--labels', args.labels, 'imagenet_val')):
        if value and args.dataset != owner:
            parser.error(f'{option} goes with --dataset {owner} only')
    if args.source and args.dataset == 'digits':
        parser.error('--source: the digits come with scikit-learn')
    if args.dataset == 'imagenet_val' and not args.labels:
        parser.error('--dataset imagenet_val needs --labels FILE')
    try:
        said = run(**vars(args))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(said)


def command() -> None:
    """Run `main`; end quietly where the reader of its output stops."""
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # what is left must not be written at the very end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
    command()
