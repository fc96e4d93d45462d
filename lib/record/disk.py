"""The disk under a run: whether it can be written, how much room it has, and why a write failed."""

import errno
import os
import shutil
from pathlib import Path

NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
               errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG}
OF_TORCH = ('inline_container', 'PytorchStreamWriter', 'iostream error')  # its writer does not say why it failed


class WriteError(OSError):
    """A file or folder cannot be written; once the reason is gone, the run can go on from what it saved before."""


def why_not_written(error: BaseException, outside: bool) -> str | None:
    """Return why a file could not be written; None: it is another error. `outside`: before there was a file at all."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and (outside or found.errno in NOT_WRITTEN) and found.strerror:
            return found.strerror
        found = found.__context__
    if isinstance(error, RuntimeError) and any(part in str(error) for part in OF_TORCH):
        return 'the disk does not take it'
    return None


def room_text(path: Path, needed: int | None) -> str:
    """Return ` (so many are needed, so many are free)`; `needed`: None for those of the file that is replaced."""
    if needed is None and path.is_file():
        needed = path.stat().st_size
    free = f'{megabytes(free_space(path.parent))} are free'
    return f' ({free})' if needed is None else f' ({megabytes(needed)} are needed, {free})'


def megabytes(count: int) -> str:
    """Return a number of bytes in words, `1.53 MB`."""
    return f'{count / 1e6:.3g} MB' if count < 1e9 else f'{count / 1e9:.3g} GB'


def _nearest(folder: str | Path) -> Path:
    """Return the folder if it is there, else the nearest one above it that is."""
    folder = Path(folder).absolute()
    return next(path for path in (folder, *folder.parents) if os.path.lexists(path))


def is_writable(folder: str | Path) -> bool:
    """Return whether files can be made in a folder, or the folder itself where it does not exist yet."""
    there = _nearest(folder)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def check_writable(folder: str | Path) -> None:
    """Check that files can be made in a folder, which need not be there yet; nothing is written.

    Raises:
        WriteError: the folder or the one it would be made in is read-only, belongs to others, or is a file.
    """
    there = _nearest(folder)
    if not there.is_dir():
        raise WriteError(f'{folder} cannot be a folder: {there} is a file')
    if not is_writable(there):
        raise WriteError(f'{folder} cannot be written: {there} is read-only or belongs to another user')


def free_space(folder: str | Path) -> int:
    """Return the bytes that are free on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(_nearest(folder)).free


def check_space(folder: str | Path, count: int, what: str) -> None:
    """Check that the disk of a folder has room for `count` more bytes.

    Raises:
        WriteError: it has not; `what` names what takes them ("a checkpoint").
    """
    free = free_space(folder)
    if free < count:
        raise WriteError(f'the disk of {folder} is too full: {what} takes {megabytes(count)}, {megabytes(free)} are '
                         'free')
