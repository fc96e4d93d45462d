"""Rows 9 and 11: the memory of a search over 600 episodes, and memory that the allocator gives back at every step."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.rows.measure import ROOT, Row, seconds
from benchmarks.rows.networks import network

EPISODES, SEEN = 600, (50, 300, 600)
GROWTH = 1.02  # of the resident memory from episode 300 to 600
KEPT = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '-1'}
SMALL = ['--arch', 'resnet20', '--dataset', 'digits', '--image_size', '16', '--train_size', '8', '--val_size', '8',
         '--train_batch', '8', '--test_batch', '8', '--hidden1', '64', '--hidden2', '64', '--workers', '0']
STEP = """
import statistics
from benchmarks.rows.measure import timed
from benchmarks.rows.networks import batches, network, trainer
step = trainer(network('mobilenetv2'), batches(1, 32, 224), 'cpu')
times = [timed(step) for _ in range(4)]
print(statistics.median(times[1:]))
"""


# ---- row 9


def search_rows(settings):
    """Returns row 9: a whole search by scripts/rl_quantize.py, ResNet-20 on a few digits enlarged to 16 x 16."""
    flows = ['K-means', 'linear'] if settings.full else ['K-means']
    return [_search_row(flow) for flow in flows]


def _search_row(flow):
    linear = ['--linear_quantization', '--preserve_ratio', 'uniform:4'] if flow == 'linear' else []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, 'weights.pth')
        torch.save(network('resnet20', classes=10).state_dict(), weights)
        command = [sys.executable, str(ROOT / 'scripts' / 'rl_quantize.py'), *SMALL, '--weights', str(weights),
                   '--train_episode', str(EPISODES), '--output', folder, *linear]
        start = time.perf_counter()
        resident, peak = _watch(command, folder)
        minutes = (time.perf_counter() - start) / 60
    growth = resident[SEEN[-1]] / resident[SEEN[-2]]
    seen = ', '.join(f'{resident[episode] / 2**20:.0f}' for episode in SEEN)
    return Row(9, f'resident memory after {", ".join(map(str, SEEN))} episodes of a {flow} search', f'{seen} MiB', '',
               f'{growth:.3f}x', f'at most {GROWTH:.2f}x from {SEEN[1]} to {SEEN[2]}', growth <= GROWTH,
               f'one thread, peak {peak / 2**20:.0f} MiB, {minutes:.1f} minutes with agent, logs and checkpoints')


def _watch(command, folder):
    """Runs a search; returns {episode: resident bytes} at the episodes `SEEN`, and the peak."""
    resident, peak, environment = {}, 0, os.environ | {'OMP_NUM_THREADS': '1'}
    with tempfile.TemporaryFile('w+') as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(0.05)
            done, (now, highest) = _episodes_done(folder), _memory(process.pid)
            peak = max(peak, highest)
            resident.update({episode: now for episode in SEEN if done >= episode and episode not in resident and now})
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f'the search ended with {process.returncode}: {said.read()[-2000:]}')
    return resident, peak


def _episodes_done(folder):
    log = next(Path(folder).glob('*/log.txt'), None)
    return sum(line.startswith('#') for line in log.read_text().splitlines()) if log else 0


def _memory(pid):
    """Returns (resident bytes, its peak) of a process; zeros where it has ended."""
    try:
        lines = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
        return tuple(1024 * int(lines[key].split()[0]) for key in ('VmRSS', 'VmHWM'))
    except (OSError, KeyError):
        return 0, 0


# ---- row 11


def allocator_rows(settings):
    """Returns row 11: a float training step of MobileNetV2 with memory kept and without, each in its own process."""
    kept, given_back = (_step_seconds(variables) for variables in (KEPT, {}))
    return [Row(11, 'float training step of mobilenetv2, freed memory kept', seconds(kept),
                f'{seconds(given_back)} (given back)', f'{given_back / kept:.2f}x faster', 'recorded', None,
                'glibc: ' + ' '.join(f'{name}={value}' for name, value in KEPT.items()))]


def _step_seconds(variables):
    environment = {name: value for name, value in os.environ.items() if name not in KEPT}
    environment.update(variables, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, '-c', STEP], cwd=ROOT, env=environment, capture_output=True, text=True,
                          check=True)
    return float(done.stdout)
