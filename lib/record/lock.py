"""A lock on a folder: one process at a time writes a run.

The lock is the kernel's, on the file `.lock` in the folder, so that of a process that was killed is gone with it. The
file names its holder.
"""

import errno
import json
import logging
import os
import socket
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

NAME = '.lock'
NOBODY = 'another process'
_held = {}  # {path of the file: its descriptor}, of this process


def hold(folder: str | Path) -> bool:
    """Take the lock of an existing folder, until `release` or the end of this process.

    Where the file system knows no locks, a warning says so and the folder is used without one.

    Returns:
        Whether it was taken now; False where this process has it already.

    Raises:
        FileExistsError: another process has it; it is named, with its machine.
    """
    path = Path(folder).absolute() / NAME
    if path in _held:
        return False
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, 'O_NOFOLLOW', 0), 0o666)
        try:
            _lock(descriptor)
        except (BlockingIOError, PermissionError) as error:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise FileExistsError(f'{folder} is being written by {owner}: wait for its end, stop it, or take another '
                                  'folder') from error
        except OSError as error:
            logger.warning('%s cannot be locked (%s): see to it that no other process writes to it', folder,
                           error.strerror)
        if _is_file(path, descriptor):
            break
        os.close(descriptor)  # its holder has just removed it
    _held[path] = descriptor
    if (left := _owner(descriptor)) != NOBODY:
        logger.info('%s was left by %s, which has ended without a word', folder, left)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps({'process': os.getpid(), 'host': socket.gethostname()}).encode(), 0)
    return True


def _lock(descriptor):
    if fcntl is None:
        raise OSError(errno.ENOLCK, 'this system has no such locks')
    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def release() -> None:
    """Give back all locks that this process holds."""
    while _held:
        path, descriptor = _held.popitem()
        if _is_file(path, descriptor):
            path.unlink()
        os.close(descriptor)


def _is_file(path, descriptor):
    """Return whether the file that is open is the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _owner(descriptor):
    """Return the process that wrote the file, in words, `NOBODY` where that is unknown."""
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f'process {int(said["process"])} on {str(said["host"])[:80]}'
    except (ValueError, TypeError, KeyError):
        return NOBODY
