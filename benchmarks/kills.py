"""Kills runs at random moments, resumes them, and shows that they end with the numbers of runs that were never stopped.

Each case is one tiny run on the digits: a search in either flow, fine-tuning, QAT, hybrid, progressive search,
comparison. SIGKILL ends it after a random time, once to three times; then it is resumed by --resume, or begun again
with --overwrite where it had saved nothing to resume from. All that it leaves must equal what the uninterrupted run
left: results, strategies, weights, agents, logs, tables; only clocks may differ, and no other file may lie about.
Finished cases are kept:

    python benchmarks/kills.py --count 100
"""

import argparse
import csv
import json
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.damage import stages  # noqa: E402
from tests.processes import Program  # noqa: E402
from tests.scripts.conftest import SCRIPTS  # noqa: E402

CLOCKS = ('seconds', 'step_time', 'digest', 'seconds_search')  # entries that may differ, and the digest over them
TIME_LIMIT = 600  # seconds of a run


def settled(value):
    """Return nested values without their clocks."""
    if isinstance(value, dict):
        return {key: settled(entry) for key, entry in value.items() if key not in CLOCKS}
    return [settled(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def equal(a, b) -> bool:
    """Whether two nested values hold the same types and bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and \
            np.array_equal(a, b, equal_nan=a.dtype.kind == 'f')
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def content(path: Path):
    """Return what a file of a run holds, without clocks; of what is drawn from other files, that it is there."""
    if path.suffix in ('.png', '.md'):
        return True
    if path.suffix == '.json':
        return settled(stages.plain(path))
    if path.suffix in ('.tar', '.pt', '.pkl'):
        return settled(torch.load(path, weights_only=True))
    if path.suffix == '.npz':
        with np.load(path) as arrays:
            return settled(dict(arrays))
    if path.suffix == '.csv':
        with path.open(newline='') as file:
            return settled(list(csv.DictReader(file)))
    return re.sub(r'[\d.]+ s\b', '', path.read_text())


def files(folder: Path) -> set[str]:
    """Return the files of a run but for its settings, which hold paths, and the events of TensorBoard."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()}
    return {name for name in found if 'events.out.tfevents' not in name and Path(name).name != 'args.json'}


def differences(folder: Path, whole: Path) -> list[str]:
    """Return the names of files that differ between a run and the uninterrupted one."""
    here, there = files(folder), files(whole)
    return [f'{name} is {"missing" if name in there else "too much"}' for name in sorted(here ^ there)] + \
        [name for name in sorted(here & there) if not equal(content(folder / name), content(whole / name))]


def start(stage, cwd: Path, options) -> Program:
    """Start a run in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=cwd, prefix='output_'))
    for name in ('stdout', 'stderr'):
        (folder / name).touch()  # a kill may come before the process makes them
    return Program(SCRIPTS / stage.script, *options, cwd=cwd, folder=folder)


def finish(process: Program) -> str:
    """Wait for the end of a run; return what went wrong, or nothing."""
    _, err = process.communicate(timeout=TIME_LIMIT)
    return '' if process.returncode == 0 and 'Traceback' not in err else f'exit status {process.returncode}: {err}'


def next_options(stage, cwd: Path) -> tuple:
    """Return the options with which a killed run goes on: those of its resumption, or all with --overwrite."""
    target = cwd / stage.folder / stage.resume
    there = target.is_file() if stage.resume else (target / 'args.json').is_file()
    return ('--resume', target) if there else (*stage.options, '--overwrite')


def kill_and_resume(stage, cwd: Path, seconds: float, rng: random.Random) -> tuple[list[float], str]:
    """Run a stage with kills; return (seconds after which it was killed each time, what went wrong or nothing)."""
    options, moments = stage.options, []
    for _ in range(rng.choice((1, 1, 2, 3))):
        process = start(stage, cwd, options)
        moments.append(round(rng.uniform(0, 1.1 * seconds), 3))
        end = time.monotonic() + moments[-1]
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        _, err = process.communicate(timeout=60)
        if err.strip():
            return moments, f'before it was killed: {err}'
        options = next_options(stage, cwd)
    return moments, finish(start(stage, cwd, options))


class Kills:
    """Uninterrupted runs in `folder/whole`, and cases that are compared with them."""

    def __init__(self, folder: Path, seed: int):
        """Take the runs of before, or none."""
        self.folder, self.whole, self.seed = folder, folder / 'whole', seed

    def prepare(self) -> dict[str, float]:
        """Run everything without an interruption; return the seconds of each run."""
        times = self.folder / 'seconds.json'
        if not times.is_file():
            shutil.rmtree(self.whole, ignore_errors=True)
            self.whole.mkdir(parents=True)
            stages.prepare(self.whole)
            found = {}
            for name, stage in stages.RUNS.items():
                begun = time.monotonic()
                if problem := finish(start(stage, self.whole, stage.options)):
                    raise RuntimeError(f'{name}: {problem}')
                found[name] = time.monotonic() - begun
            times.write_text(json.dumps(found))
        return json.loads(times.read_text())

    def case(self, number: int, seconds: dict[str, float]) -> dict:
        """Run a case; return its number, run, moments of the kills, and problem (nothing: all is equal)."""
        rng, stage = random.Random(f'{self.seed}/{number}'), list(stages.RUNS.values())[number % len(stages.RUNS)]
        cwd = self.folder / f'case{number}'
        shutil.rmtree(cwd, ignore_errors=True)
        cwd.mkdir(parents=True)
        for name in ('float', 'table.npy', 'table.json'):
            (cwd / name).symlink_to(self.whole / name)
        moments, problem = kill_and_resume(stage, cwd, seconds[stage.name], rng)
        if not problem and (found := differences(cwd / stage.folder, self.whole / stage.folder)):
            problem = f'differs: {", ".join(found)}'
        if not problem:
            shutil.rmtree(cwd)
        return {'case': number, 'run': stage.name, 'kills': moments, 'problem': problem}


def main():
    """Run what is left of the cases, print the table, and end with status 1 where one differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=100, help='cases (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='other moments (default: %(default)s)')
    parser.add_argument('--folder', type=Path, default=Path(tempfile.gettempdir()) / 'haq_kills', help='where runs and '
                        'finished cases are kept (default: %(default)s)')
    parser.add_argument('--fresh', action='store_true', help='forget all runs and cases of before')
    args = parser.parse_args()
    if args.fresh:
        shutil.rmtree(args.folder, ignore_errors=True)
    kills, path = Kills(args.folder, args.seed), args.folder / f'cases_{args.seed}.jsonl'
    seconds = kills.prepare()
    done = {row['case']: row for row in map(json.loads, path.read_text().splitlines())} if path.is_file() else {}
    with path.open('a') as file:
        for number in range(args.count):
            if number not in done:
                done[number] = kills.case(number, seconds)
                file.write(json.dumps(done[number]) + '\n')
                file.flush()
    report([done[number] for number in range(args.count)])


def report(rows):
    """Print how many of each run were equal, and what went wrong in the others."""
    for name in stages.RUNS:
        mine = [row for row in rows if row['run'] == name]
        print(f'{name:12} {sum(not row["problem"] for row in mine):4} of {len(mine):4} equal, '
              f'{sum(len(row["kills"]) for row in mine):4} kills')
    bad = [row for row in rows if row['problem']]
    kills = sum(len(row['kills']) for row in rows)
    print(f'{"all":12} {len(rows) - len(bad):4} of {len(rows):4} equal, {kills:4} kills')
    for row in bad:
        print(f'case {row["case"]}: {row["run"]}, killed after {row["kills"]} s: {row["problem"]}')
    sys.exit(bool(bad))


if __name__ == '__main__':
    main()
