"""How close K-means comes to the least error that there is, and the processor seconds of a whole network.

Exact is dynamic programming over all weights of a layer; a layer of 10,000 weights takes half a minute. The seconds are
those of all layers, the median of three times. `--against` measures another file of `fit_codebook` in turns with ours,
such as one of before. docs/benchmarks.md has the table:

    git show 644660c:lib/quantize/kmeans.py > before.py
    python benchmarks/clustering.py --weights mobilenet_v2.pth --against before.py
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.rows.networks import network  # noqa: E402
from lib.quantize.kmeans import fit_codebook  # noqa: E402
from lib.runtime.user_code import load_object  # noqa: E402
from lib.utils.quantize_utils import quantizable_layers  # noqa: E402

BITS, REPEATS = range(1, 9), 3


def least_errors(weight, most):
    """Returns [least squared error of 1, 2, .. `most` clusters], exact: the best division is monotone in the end."""
    values = np.sort(weight.detach().double().flatten().numpy())
    sums = np.stack([np.concatenate([[0], np.cumsum(values**power)]) for power in range(3)])
    best = _interval(sums, np.zeros(len(values) + 1, dtype=int), np.arange(len(values) + 1))
    found = [best[-1]]
    for _ in range(most - 1):
        best = _one_more(sums, best)
        found.append(best[-1])
    return found


def _interval(sums, start, stop):
    """Returns the squared errors of intervals, 0 of empty ones."""
    count, total, square = sums[:, stop] - sums[:, start]
    return np.maximum(square - total**2 / np.maximum(count, 1), 0)


def _one_more(sums, best):
    """Returns the least errors up to each point with one cluster more; many ends at once, by divide and conquer."""
    n = len(best)
    found, place = np.empty(n), np.zeros(n + 1, dtype=int)  # where the last cluster begins, of ends that are done
    found[0], place[n], step = 0.0, n - 1, 1 << (n - 1).bit_length()
    while (step := step // 2) > 0:
        ends = np.arange(step, n, 2 * step)
        low, high = place[ends - step], np.minimum(place[np.minimum(ends + step, n)], ends)
        first = np.cumsum(high - low + 1) - (high - low + 1)
        tried = np.arange(first[-1] + high[-1] - low[-1] + 1) - np.repeat(first - low, high - low + 1)
        errors = best[tried] + _interval(sums, tried, np.repeat(ends, high - low + 1))
        found[ends] = np.minimum.reduceat(errors, first)
        hits = np.flatnonzero(errors == np.repeat(found[ends], high - low + 1))
        place[ends[::-1]] = tried[hits[hits.searchsorted(first)]][::-1]
    return found


def _error(weight, codebook):
    return float((weight.double() - codebook.decode().double()).square().sum())


def main():
    """Prints a row for each number of bits and each implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='mobilenet_v2', help='network (default: mobilenet_v2)')
    parser.add_argument('--weights', help='its weights (default: random ones with heavy tails)')
    parser.add_argument('--against', metavar='FILE.py', help='another fit_codebook (default: none)')
    parser.add_argument('--most_weights', type=int, default=10_000, help='largest layer whose least error is found '
                        '(default: 10000)')
    args = parser.parse_args()
    torch.set_num_threads(1)
    fits = {'ours': fit_codebook}
    if args.against:
        fits = {'before': load_object(f'{args.against}:fit_codebook', '--against'), **fits}
    weights = [layer.weight.detach() for layer in quantizable_layers(network(args.arch, weights=args.weights)).values()]
    small = [weight for weight in weights if weight.numel() <= args.most_weights]
    least = [least_errors(weight, min(2**max(BITS), weight.numel())) for weight in small]
    print(f'{len(weights)} layers; error over the least one of the {len(small)} of at most {args.most_weights} weights')
    for bits in BITS:
        seconds = {name: [] for name in fits}
        for _ in range(REPEATS):
            for name, fit in fits.items():
                start = time.process_time()
                for weight in weights:
                    fit(weight, bits)
                seconds[name].append(time.process_time() - start)
        for name, fit in fits.items():
            ratios = [_error(weight, fit(weight, bits)) / errors[2**bits - 1]
                      for weight, errors in zip(small, least, strict=True) if weight.unique().numel() > 2**bits]
            print(f'{bits} bits, {name}: error {statistics.mean(ratios):.4f} of the least (worst layer '
                  f'{max(ratios):.4f}), {statistics.median(seconds[name]):.2f} s', flush=True)


if __name__ == '__main__':
    main()
