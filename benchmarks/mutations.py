"""Damages files of every kind that the repository reads, and shows that each is refused in one line or read the same.

A case is a number: it says which kind of file, which file, and what is done to it (bits flipped, cut off, ranges
removed, doubled or zeroed, values of JSON, YAML, CSV, arrays and checkpoints replaced). Its reader then either returns
what the undamaged file holds or ends in one ValueError or OSError of one line that names the file; of files that a
person writes another value may come, too. Anything else is a failure: another error, a hang, more than one line, or a
value of ours that is silently something else. Finished cases are kept, and a run that was stopped goes on:

    python benchmarks/mutations.py --count 3000
    python benchmarks/mutations.py --case 1234          # this one alone, with its traceback
"""

import argparse
import collections
import contextlib
import json
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.damage.kinds import KINDS  # noqa: E402
from benchmarks.damage.mutate import mutated  # noqa: E402
from benchmarks.damage.samples import make_home  # noqa: E402

LIMIT, HARD_LIMIT = 60, 180  # seconds of a case: its reader is interrupted, its process is killed
MEMORY = 3 << 30  # bytes beyond what the process has at first
CHUNK = 500  # cases of one process


class Hang(BaseException):
    """A reader takes too long; nothing catches it."""


def same(a, b) -> bool:
    """Whether two contents are equal: tensors and arrays bit for bit, NaN equal to itself, times of a run left out."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == 'f')
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, str) and isinstance(b, str):
        return re.sub(r'[\d.]+ s\b', '', a) == re.sub(r'[\d.]+ s\b', '', b)
    return type(a) is type(b) and a == b


@contextlib.contextmanager
def time_limit(seconds):
    """Raise `Hang` in the block after so many seconds."""
    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Cases:
    """The cases over the files of a home: `run(number)` -> (outcome, what was damaged and how, what was said)."""

    def __init__(self, home: Path, kinds=KINDS, seed: int = 0, pristine: Path | None = None):
        """Find the files of all kinds; `pristine` is what the home is put back to after a case, else the file alone."""
        self.home, self.seed, self.pristine = home, seed, pristine
        self.kinds = [(kind, sorted(path for pattern in kind.files for path in home.glob(pattern))) for kind in kinds]
        if missing := [kind.name for kind, files in self.kinds if not files]:
            raise ValueError(f'{home} has no file of these kinds: {", ".join(missing)}')
        self._expected = {}

    def read_all(self):
        """Read every file undamaged, before processes are forked that share what is expected."""
        for kind, files in self.kinds:
            for file in files:
                self.expected(kind, file)

    def expected(self, kind, file):
        """Return what the undamaged file holds."""
        if (kind.name, file) not in self._expected:
            self._expected[kind.name, file] = kind.read(self.home, file)
            self._put_back()
        return self._expected[kind.name, file]

    def run(self, number: int, show: bool = False) -> tuple[str, str, str]:
        """Damage a file, read it, put it back.

        Returns:
            outcome 'refused', 'same' or 'accepted', or one that is a failure: 'other error', 'message', 'hang',
            'silent', 'not finite'; then which file and which damage; then the message.
        """
        rng = random.Random(f'{self.seed}/{number}')
        kind, files = self.kinds[number % len(self.kinds)]
        file = rng.choice(files)
        expected, original = self.expected(kind, file), file.read_bytes()
        change, damaged = mutated(file, rng)
        what = f'{kind.name}, {file.relative_to(self.home)}, {change}'
        try:
            file.write_bytes(damaged)
            with time_limit(LIMIT):
                found = kind.read(self.home, file)
        except (Exception, Hang) as error:
            if show:
                traceback.print_exc()
            return *self._ended(error, kind, file), what
        finally:
            file.write_bytes(original)
            self._put_back()
        if same(found, expected):
            return 'same', '', what
        if kind.finite and not np.isfinite(found).all():
            return 'not finite', '', what
        return ('silent' if kind.ours else 'accepted'), ' '.join(repr(found)[:5000].split())[:200], what

    def _put_back(self):
        if self.pristine:
            refresh(self.pristine, self.home)

    def _ended(self, error, kind, file):
        """Return (outcome, message) of a reader that ended in an error."""
        message = str(error)
        if isinstance(error, Hang):
            return 'hang', ''
        if not isinstance(error, (ValueError, OSError)) or 'Traceback' in message:
            return 'other error', ''.join(traceback.format_exception_only(error)).strip() + ' @ ' + _place(error)
        line, *code = message.split('\n')
        if not line or not message.replace('\n', '').isprintable() or len(message) > 1500 or len(code) > 2 or \
                (code and line[-1] != ':'):  # two lines of Python that save weights anew
            return 'message', message
        folders = [str(parent) for parent in file.parents if self.home in parent.parents]
        if kind.named and not any(name in message for name in (file.name, file.stem, *folders)):
            return 'message', f'names no file: {message}'
        return 'refused', message


def _place(error):
    """Return where an error came from, `file:line`."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return ''.join(f'{Path(entry.filename).name}:{entry.lineno}' for entry in last)


FAILURES = ('other error', 'message', 'hang', 'silent', 'not finite', 'killed')


def work(cases, numbers, results):
    """Run cases in a process of their own, with a limit on its memory; each is announced, and its result sent."""
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    with open(os.devnull, 'w') as null, contextlib.redirect_stderr(null):
        for number in numbers:
            results.send((number, None))
            outcome, message, what = cases.run(number)
            results.send((number, {'case': number, 'outcome': outcome, 'what': what,
                                   'message': message.replace(str(cases.home), 'HOME')}))
    results.close()


def refresh(home, private):
    """Put back what a command changed in the private copy, and remove what it added."""
    for path in private.rglob('*'):
        if path.is_file() and not (home / path.relative_to(private)).exists():
            path.unlink()
    for path in home.rglob('*'):
        copy = private / path.relative_to(home)
        if path.is_file() and (not copy.is_file() or copy.stat().st_mtime_ns != path.stat().st_mtime_ns):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


def supervise(home, seed, numbers, report):
    """Run cases in processes one after another; a process that hangs or dies costs the case it was at."""
    torch.set_num_threads(1)  # a process with threads is not to be forked
    with private_copy(home) as private:
        cases = Cases(private, seed=seed, pristine=home)
        cases.read_all()
        while numbers:
            done = run_chunk(cases, numbers[:CHUNK], report)
            refresh(home, private)
            numbers = numbers[done:]


@contextlib.contextmanager
def private_copy(home):
    """Yield a copy of the files, which are never damaged themselves."""
    with tempfile.TemporaryDirectory() as folder:
        yield shutil.copytree(home, Path(folder) / 'home')


def run_chunk(cases, numbers, report) -> int:
    """Run cases in one process; return how many are done."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=work, args=(cases, numbers, sender))
    process.start()
    sender.close()
    at, done = None, 0
    with contextlib.suppress(EOFError):
        while receiver.poll(HARD_LIMIT):
            at, result = receiver.recv()
            if result:
                done, at = done + 1, None
                report(result)
    process.kill()
    process.join()
    if at is not None:
        report({'case': at, 'outcome': 'killed', 'what': '', 'message': f'exit status {process.exitcode}'})
    elif not done:
        raise RuntimeError(f'the process of the cases ended with {process.exitcode} before the first')
    return done + (at is not None)


def read_results(path):
    """Return {number: result} of the cases that are done."""
    if not path.is_file():
        return {}
    return {row['case']: row for row in map(json.loads, path.read_text().splitlines())}


def summary(results) -> list[str]:
    """Return the table of outcomes by kind, and the failures."""
    counts = collections.defaultdict(collections.Counter)
    for row in results:
        counts[KINDS[row['case'] % len(KINDS)].name][row['outcome']] += 1
    total = sum(counts.values(), collections.Counter())
    names = [name for name in ('refused', 'same', 'accepted', *FAILURES) if total[name]]
    lines = [f'{"":24}' + ''.join(f'{name:>12}' for name in names)]
    lines += [f'{kind:24}' + ''.join(f'{count[name]:12}' for name in names) for kind, count in counts.items()]
    lines.append(f'{"all":24}' + ''.join(f'{total[name]:12}' for name in names))
    return lines + [f'case {row["case"]}: {row["outcome"]}: {row["what"]}: {row["message"]}'
                    for row in results if row['outcome'] in FAILURES]


def main():
    """Run what is left of the cases, print the table, and end with status 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=3000, help='cases (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='other damage to the same files (default: %(default)s)')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'haq_mutations', help='where the '
                        'files and the finished cases are kept (default: %(default)s)')
    parser.add_argument('--case', type=int, help='run this one alone and show its traceback')
    parser.add_argument('--again', action='store_true', help='run the cases again that failed')
    parser.add_argument('--fresh', action='store_true', help='forget all files and cases of before')
    args = parser.parse_args()
    home, path = args.folder / 'home', args.folder / f'cases_{args.seed}.jsonl'
    if args.fresh:
        shutil.rmtree(args.folder, ignore_errors=True)
    if not (home / 'complete').is_file():
        shutil.rmtree(home, ignore_errors=True)
        make_home(home)
    if args.case is not None:
        with private_copy(home) as private:
            print(*Cases(private, seed=args.seed).run(args.case, show=True), sep='\n')
        return
    results = read_results(path)
    if args.again:
        results = {number: row for number, row in results.items() if row['outcome'] not in FAILURES}
        path.write_text(''.join(json.dumps(row) + '\n' for row in results.values()))
    with path.open('a') as file:
        def report(row):
            results[row['case']] = row
            file.write(json.dumps(row) + '\n')
            file.flush()
        supervise(home, args.seed, [number for number in range(args.count) if number not in results], report)
    rows = [results[number] for number in range(args.count)]
    print('\n'.join(summary(rows)))
    sys.exit(any(row['outcome'] in FAILURES for row in rows))


if __name__ == '__main__':
    main()
