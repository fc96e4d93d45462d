"""Making a folder of links (or copies) that matches a plan exactly: repeatable, and nothing existing is touched.

A plan is a dict {path in the target: source}, both `Path`; a source is a file, or a folder to link as a whole.
"""

import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

PARTIAL = '.partial.'  # beginning of the name of a copy that is not complete


def make_tree(plan: Mapping[Path, Path], target: Path, *, copy: bool = False) -> int:
    """Make `target`/path a relative link to (or a copy of) its source, for each {path: source} that is not there.

    Returns:
        How many were not there.

    Raises:
        ValueError: `target` holds something else, which is named; nothing was made then. Or links cannot be made.
    """
    missing = [path for path, source in plan.items() if not _is_there(target / path, source, copy)]
    strangers = find_strangers(plan, target)
    if strangers:
        raise ValueError(f'{target} holds {len(strangers)} files or folders that would not be made now: '
                         f'{some_names(strangers)}. They may come from another split: move them away, or give another '
                         '--target. Nothing was changed')
    for left in target.glob(f'{PARTIAL}*'):  # by a copy that was killed
        if left.is_file() or left.is_symlink():
            left.unlink()
    for path in missing:
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            _copy(plan[path], place, target)
        else:
            _link(plan[path], place)
    return len(missing)


def find_strangers(plan: Mapping[Path, Path], target: Path) -> list[Path]:
    """Return the paths below `target`, relative to it, that are neither in `plan` nor folders on the way to it."""
    folders = {parent for path in plan for parent in path.parents}
    found = []
    for where, subfolders, files in os.walk(target, followlinks=True):
        here = Path(where).relative_to(target)
        found += [here / name for name in subfolders + files
                  if name[0] != '.' and here / name not in plan and here / name not in folders]
        subfolders[:] = [name for name in subfolders if here / name in folders]
    return found


def refuse_overlap(source: Path, target: Path) -> None:
    """Raise a ValueError where `target` is `source` or lies in it, by links or by a file system that ignores case."""
    if target.exists() and target.samefile(source):
        raise ValueError(f'{source} and {target} are one folder (a file system that does not tell upper from lower '
                         f'case?): give another --target, e.g. {target}_split, and the scripts that as --dataset_root')
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f'{target} lies in {source}: give a --target outside')


def some_names(names: Iterable, limit: int = 5) -> str:
    """Return the first names in alphabetical order as text, and how many more there are."""
    names = [name if name.isprintable() and len(name) <= 100 else f'{name!r:.100}' for name in sorted(map(str, names))]
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')


def _copy(source, place, folder):
    """Copy a file to `place` by way of a new file in `folder`, which is renamed when it is complete."""
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=PARTIAL)  # never a link that somebody has put there
    os.close(handle)
    try:
        shutil.copy2(source, temporary)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def _link(source, place):
    relative = os.path.relpath(source, place.parent.resolve())
    try:
        place.symlink_to(relative, target_is_directory=source.is_dir())
    except OSError as error:
        raise ValueError(f'cannot make the symbolic link {place} ({error}): where links are not possible or allowed, '
                         '--copy copies the images of dtd') from error


def _is_there(place, source, copy):
    if not os.path.lexists(place):
        return False
    if place.is_symlink():
        right = not copy and place.exists() and place.samefile(source)
    else:
        right = place.is_file() and filecmp.cmp(place, source)
    if not right:
        raise ValueError(f'{place} is there, but is not {"a copy of" if copy else "a link to"} {source}: '
                         'move it away, or give another --target. Nothing was changed')
    return True
