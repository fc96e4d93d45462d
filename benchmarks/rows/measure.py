"""How the rows of the speed benchmark are measured, and the table that they make."""

import random
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.autograd import DeviceType

from lib.record.files import write_text
from lib.simulator.measured.machine import machine_facts

ROOT = Path(__file__).resolve().parents[2]
REPEATS, FEWER = 5, 3
QUICK, LONG, SLOW = 2.0, 3.0, 20.0  # seconds: less warms up first, more is timed three times, once
HEAD = '| # | what | ours | the other side | ratio | target | met | how closely both agree, and what else was seen |'


@dataclass(frozen=True)
class Row:
    """A line of the table; `met` is None where a number is only recorded."""

    number: int
    what: str
    ours: str
    other: str
    ratio: str
    target: str
    met: bool | None
    note: str

    def line(self):
        met = {True: 'yes', False: '**no**', None: 'recorded'}[self.met]
        return f'| {self.number} | {self.what} | {self.ours} | {self.other} | {self.ratio} | {self.target} | {met} | ' \
               f'{self.note} |'


def faster(number, what, times, target, note, sides=('ours', 'straightforward')):
    """Returns the row of something that is to be at least `target` times as fast as the other side; None: recorded."""
    ours, other = (times[side] for side in sides)
    goal = 'recorded' if target is None else f'{target:g}x faster'
    met = None if target is None else other >= target * ours
    return Row(number, what, seconds(ours), seconds(other), f'{other / ours:.3g}x faster', goal, met, note)


def within(number, what, times, target, note, sides=('ours', 'float')):
    """Returns the row of something that is to take at most `target` times as long as the other side; None: recorded."""
    ours, other = (times[side] for side in sides)
    goal = 'recorded' if target is None else f'at most {target:.2f}x'
    met = None if target is None else ours <= target * other
    return Row(number, what, seconds(ours), f'{seconds(other)} ({sides[1]})', f'{ours / other:.2f}x', goal, met, note)


def seconds(value):
    """Returns a time with three digits and a unit."""
    return f'{value:.3g} s' if value >= 1 else f'{1e3 * value:.3g} ms'


def alternate(sides, device='cpu', repeats=REPEATS):
    """Times {name: function} in turns, in a new order every round; returns {name: median seconds}.

    The first call of a quick side warms up and does not count; a long one is called three times, a slow one once.
    """
    taken, order = {name: [] for name in sides}, random.Random(0)
    for _ in range(repeats + 1):
        for name in order.sample(list(sides), len(sides)):
            if len(taken[name]) < _calls(taken[name], repeats):
                taken[name].append(timed(sides[name], device))
    return {name: median(times[_warms_up(times):]) for name, times in taken.items()}


def _calls(times, repeats):
    if times and times[0] > LONG:
        return 1 if times[0] > SLOW else min(repeats, FEWER)
    return repeats + _warms_up(times)


def _warms_up(times):
    return int(not times or times[0] < QUICK)


def timed(function, device='cpu'):
    """Returns the seconds of one call, until the device has finished."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device):
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()


def peak_bytes(function, device='cpu'):
    """Returns the most memory that torch's allocator gave out at once in a call, above what was given out before it."""
    cuda = torch.device(device).type == 'cuda'
    if cuda:
        synchronise(device)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        synchronise(device)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events()
              if event.name() == '[memory]' and event.device_type() == DeviceType.CPU]
    held, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def distance(a, b):
    """Returns |a - b| / |b|, Euclidean norms over all of two lists of tensors."""
    pairs = [(x.detach().double(), y.detach().double()) for x, y in zip(a, b, strict=True)]
    difference, size = (sum(float(v.square().sum()) for v in values)
                        for values in ([x - y for x, y in pairs], [y for _, y in pairs]))
    return (difference / size) ** 0.5


def machine(device, weights):
    """Returns the lines that say where and on what the table was measured."""
    facts = machine_facts(torch.device(device).type)
    commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True)
    where = f'{facts["gpu"]}, driven by {facts["cpu"]}' if 'gpu' in facts else facts['cpu']
    memory = ' '.join(f'{name}={value}' for name, value in facts['environment'].items()) or 'none'
    return [f'Machine: {where}, {facts["cores"]} cores, {torch.get_num_threads()} threads; load at the start '
            f'{facts["load_average"][0] if facts["load_average"] else "unknown"}. PyTorch {facts["torch"]}, NumPy '
            f'{facts["numpy"]}, {_versions("sklearn", "scipy", "torchvision")}, Python {facts["python"]}. Commit '
            f'{commit.stdout.strip() or "unknown"}. Settings: {memory}. Weights: {weights}.']


def _versions(*names):
    modules = {name: __import__(name) for name in names}
    return ', '.join(f'{name} {module.__version__}' for name, module in modules.items())


def table(rows):
    """Returns the lines of the table."""
    return [HEAD, '|---|---|---|---|---|---|---|---|', *(row.line() for row in rows)]


def write_table(page, name, lines):
    """Replaces, atomically, what stands on a page between `<!-- name -->` and `<!-- end of name -->`.

    Raises:
        ValueError: the page has no such markers.
    """
    page = Path(page)
    text = page.read_text(encoding='utf-8')
    begin, end = f'<!-- {name} -->\n', f'<!-- end of {name} -->'
    if begin not in text or end not in text:
        raise ValueError(f'{page} has no lines "{begin.strip()}" and "{end}" to write the table between')
    before, after = text[:text.index(begin) + len(begin)], text[text.index(end):]
    write_text(page, before + '\n'.join(lines) + '\n' + after)
