"""What --channels_last gains: time of a training step with N, C, H, W and with N, H, W, C activations.

Both layouts take turns in one process; medians of several repeats, one thread. docs/results.md has the table. About a
minute on one core:

    python benchmarks/channels_last.py
"""

import sys
import time
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import models  # noqa: E402
from lib.training.loop import loss_function  # noqa: E402
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers  # noqa: E402

CASES = [('mobilenetv2', 0.5, 32, 32), ('mobilenetv2', 1.0, 96, 8), ('mobilenetv3', 1.0, 32, 32),
         ('resnet20', 1.0, 32, 64), ('resnet18', 1.0, 64, 8)]  # network, width, image side, batch
REPEATS = 9


def make_step(name, width, side, batch, *, linear, channels_last):
    """Returns a function that runs one training step."""
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=10, width_mult=width)
    images, labels = torch.randn(batch, 3, side, side), torch.randint(0, 10, (batch,))
    if linear:
        model = convert_to_quantized(model, images[:2])
        strategy = [[4, 4]] * len(quantized_layers(model))
        LinearQuantization(model, strategy, images, method='max')
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    model.train()
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=1e-3), loss_function()

    def step():
        optimizer.zero_grad()
        criterion(model(images), labels).backward()
        optimizer.step()
    return step


def main():
    """Prints the table."""
    torch.set_num_threads(1)
    print('| network | images | batch | flow | ms, N C H W | ms, N H W C | gain |\n|---|---|---|---|---|---|---|')
    for name, width, side, batch in CASES:
        for linear in (False, True):
            steps = [make_step(name, width, side, batch, linear=linear, channels_last=last) for last in (False, True)]
            times = [[], []]
            for _ in range(REPEATS):
                for step, taken in zip(steps, times, strict=True):
                    start = time.perf_counter()
                    step()
                    taken.append(1e3 * (time.perf_counter() - start))
            plain, last = (median(taken[2:]) for taken in times)  # the first two warm up
            print(f'| {name} x {width:g} | {side} | {batch} | {"linear" if linear else "float"} | {plain:.1f} | '
                  f'{last:.1f} | {plain / last:.2f} |')


if __name__ == '__main__':
    main()
