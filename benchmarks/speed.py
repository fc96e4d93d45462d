"""What a search costs against the straightforward way and against the float network: the table of docs/benchmarks.md.

Both sides of every row take turns in one process; times are medians of five repeats (three, where a side takes longer
than 3 s; one, where it takes longer than 20 s). On two idle CPU cores:

    bash run/benchmark.sh
"""

import argparse
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.rows import agent, clustering, episodes, images, memory, training  # noqa: E402
from benchmarks.rows.measure import machine, table, write_table  # noqa: E402

PARTS = {1: clustering.rows, 2: clustering.rows, 3: training.centroid_rows, 4: training.linear_rows,
         5: training.calibration_rows, 6: agent.agent_rows, 7: images.rows, 8: episodes.rows, 9: memory.search_rows,
         10: agent.wall_rows, 11: memory.allocator_rows}


@dataclass
class Settings:
    """What every row is told."""

    device: str = 'cpu'
    full: bool = False
    weights: dict = field(default_factory=dict)

    def weights_of(self, name):
        """Returns the file with the weights of a network, or None."""
        return self.weights.get(name)


def make_speed_parser():
    """Returns the parser of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, nargs='+', choices=PARTS, help='measure only these; the page is left alone')
    parser.add_argument('--full', action='store_true', help='also ResNet-50 at 6 and 8 bits and in the rows of '
                        'training, more images in an episode, and a linear search of 600 episodes')
    parser.add_argument('--device', default='cpu', help='cpu or cuda; each has a table of its own')
    parser.add_argument('--weights', nargs='+', default=[], metavar='NETWORK=FILE', help='trained float weights, for '
                        'example mobilenetv2=pretrained/imagenet/mobilenetv2-150.pth.tar; default: random ones')
    parser.add_argument('--page', type=Path, default=ROOT / 'docs' / 'benchmarks.md', help='where the table goes')
    parser.add_argument('--seed', type=int, default=0, help='without effect: all seeds are fixed')
    return parser


def main(args):
    """Measures the rows, prints each when it is there, and writes the table."""
    logging.disable(logging.WARNING)
    settings = Settings(args.device, args.full, dict(pair.split('=', 1) for pair in args.weights))
    lines = machine(args.device, ', '.join(args.weights) or "random, Student's t with 4 degrees of freedom")
    print(*lines, '', *table([]), sep='\n', flush=True)
    found, start = [], time.perf_counter()
    parts = dict.fromkeys(PARTS[number] for number in args.rows or PARTS)
    for part in parts:
        for row in part(settings):
            if args.rows and row.number not in args.rows:
                continue
            found.append(row)
            print(row.line(), flush=True)
    minutes = (time.perf_counter() - start) / 60
    print(f'\n{minutes:.1f} minutes')
    if not args.rows:
        found.sort(key=lambda row: row.number)
        write_table(args.page, f'speed on {args.device.split(":")[0]}', [*lines, '', *table(found)])


if __name__ == '__main__':
    main(make_speed_parser().parse_args())
