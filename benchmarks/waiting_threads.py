"""What it costs that OpenMP threads spin while they wait: a training step alone, and beside a second program like it.

    python benchmarks/waiting_threads.py

Medians of the steps of five seconds, the mean of two rounds of all settings: MobileNetV2, 16 images of 128 x 128
pixels, all cores, GNU OpenMP.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 5
KEPT = {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': '-1'}  # memory, as every script keeps it
SETTINGS = {'as usual': {}, '100,000 spins': {'GOMP_SPINCOUNT': '100000'},
            '10,000 spins (every script)': {'GOMP_SPINCOUNT': '10000'}, '1,000 spins': {'GOMP_SPINCOUNT': '1000'},
            'none': {'OMP_WAIT_POLICY': 'PASSIVE'}}
ROUNDS = 2


def steps():
    """Prints the median seconds of a training step."""
    sys.path.insert(0, str(ROOT))
    import torch

    from models import create_model
    model, images = create_model('mobilenetv2', num_classes=10), torch.randn(16, 3, 128, 128)
    taken, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 3:
        start = time.perf_counter()
        model.zero_grad()
        model(images).sum().backward()
        taken.append(time.perf_counter() - start)
    print(median(taken[1:]))


def measure(settings, programs):
    """Returns the mean of the medians of so many programs beside each other, in seconds."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(('OMP_', 'GOMP_'))}
    running = [subprocess.Popen([sys.executable, __file__, 'steps'], env=others | KEPT | settings, text=True,
                                stdout=subprocess.PIPE) for _ in range(programs)]
    return sum(float(program.communicate()[0]) for program in running) / programs


def main():
    """Prints the table."""
    taken = {name: [] for name in SETTINGS}
    for _ in range(ROUNDS):
        for name, settings in SETTINGS.items():
            taken[name].append([measure(settings, programs) for programs in (1, 2)])
    print('| threads that wait spin | alone | two programs |\n|---|---|---|')
    for name, times in taken.items():
        alone, beside = map(mean, zip(*times, strict=True))
        print(f'| {name} | {alone:.3f} s | {beside:.3f} s |')


if __name__ == '__main__':
    steps() if sys.argv[1:] == ['steps'] else main()
