"""What tests of runs share: the scripts, the end of a process at an exact point, and what two runs have in common."""

import contextlib
import fnmatch
import functools
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.figure import Figure

from lib.data import datasets
from lib.record import plots

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / 'scripts'
DIGITS = datasets.DATASETS['digits']  # all of them


class Figures:
    """In place of the functions that draw: they leave a file without a picture, but where `drawn` or `folders` say so.

    Attributes:
        drawn: all figures are drawn.
        folders: in these they are drawn once; one that is there stays as it is.
    """

    NAMES = ('plot_strategy', 'plot_search', 'plot_search_cloud', 'plot_training')

    def __init__(self, patch):
        """Take their places by a `pytest.MonkeyPatch`."""
        self.drawn, self.folders = False, []
        for place, name in (*((plots, name) for name in self.NAMES), (Figure, 'savefig')):
            patch.setattr(place, name, self._sparing(getattr(place, name)))

    def _sparing(self, draw):
        @functools.wraps(draw)
        def plot(*values, **options):
            path = Path(next(value for value in values if isinstance(value, (str, Path))))
            final = path.with_name(path.name.lstrip('.').split('.png')[0] + '.png')  # of a temporary file
            there = final.read_bytes() if final.is_file() else b''
            if self.drawn or not there and set(self.folders) & set(final.absolute().parents):
                draw(*values, **options)
            else:
                path.write_bytes(there or b'no picture')
        return plot


def keep_few_digits(patch):
    """Leaves every third training and every second validation image of the digits, read once, by a `MonkeyPatch`.

    479 and 180 images are enough to learn from and to tell one accuracy from another, and commands run for a third of
    the time.
    """
    spec = datasets.DATASETS['digits']

    @functools.cache
    def read(spec_, root, split, download=False):
        whole, step = spec.read(spec_, root, split), 3 if split == 'train' else 2
        return datasets.Split(whole.images[::step].clone(), whole.labels[::step].clone())

    patch.setitem(datasets.DATASETS, 'digits', replace(spec, read=read))


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
    found = {}
    for place, folders, files in os.walk(folder):
        found.update(dict.fromkeys(os.path.join(place, name) for name in folders))
        for path in (os.path.join(place, name) for name in files):
            status = os.stat(path)
            found[path] = status.st_size, status.st_mtime_ns
    return found


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
