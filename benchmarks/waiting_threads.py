"""What it costs that OpenMP threads spin while they wait: a training step alone, and beside a second program like it.

    python benchmarks/waiting_threads.py

Medians of the steps of ten seconds, MobileNetV2, 16 images of 128 x 128 pixels, all cores, GNU OpenMP.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 10
SETTINGS = {'as usual': {}, '1000 spins (every script)': {'GOMP_SPINCOUNT': '1000'},
            'none': {'OMP_WAIT_POLICY': 'PASSIVE'}}


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
    running = [subprocess.Popen([sys.executable, __file__, 'steps'], env=others | settings, text=True,
                                stdout=subprocess.PIPE) for _ in range(programs)]
    return sum(float(program.communicate()[0]) for program in running) / programs


def main():
    """Prints the table."""
    print('| threads that wait spin | alone | two programs |\n|---|---|---|')
    for name, settings in SETTINGS.items():
        print(f'| {name} | {measure(settings, 1):.3f} s | {measure(settings, 2):.3f} s |', flush=True)


if __name__ == '__main__':
    steps() if sys.argv[1:] == ['steps'] else main()
