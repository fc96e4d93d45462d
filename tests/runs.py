"""What tests of runs share: the scripts, the end of a process at an exact point, and what two runs have in common."""

import contextlib
import fnmatch
import os
import re
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / 'scripts'


class Crash(BaseException):
    """Stands for the end of the process; no script catches it."""


@contextlib.contextmanager
def crashing(pattern, count):
    """Within this context a `Crash` comes just before a file of such a name is in place for the `count`-th time."""
    replace, left = os.replace, count

    def crash(source, target, *args, **kwargs):
        nonlocal left
        left -= fnmatch.fnmatch(os.path.basename(target), pattern)
        if not left:
            raise Crash
        replace(source, target, *args, **kwargs)

    os.replace = crash
    try:
        yield
    except Crash:
        return
    finally:
        os.replace = replace
    raise AssertionError(f'{pattern} is not written {count} times')


def equal(a, b, but=()):
    """Whether two nested values hold the same types and bits, but for entries of these names."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], but) for key in a if key not in but)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(*pair, but) for pair in zip(a, b, strict=True))
    return a == b


def snapshot(folder):
    """Return what would show that anything under a folder was written: size and time of every file."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
            for path in Path(folder).rglob('*')}


def last_line(done):
    """Return the last line that a command printed."""
    return done.out.strip().splitlines()[-1]


def history(folder):
    """Return the records of a search, but for the clock."""
    records = torch.load(folder / 'search.pth.tar', weights_only=True)['history']
    return [{key: value for key, value in record.items() if key != 'seconds'} for record in records]


def log_without_seconds(folder):
    return re.sub(r' \S+ s$', '', (folder / 'log.txt').read_text(), flags=re.MULTILINE)


def wait_for(path, process, seconds=180):
    """Wait until a running process has made a file."""
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)
