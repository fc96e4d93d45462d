"""Makes the latency table of a network on the bit-serial array of HAQ: clock cycles per layer, weight bits and
activation bits.

The network is built with random weights and measured with one image; neither weights nor data are needed. The table
is an int64 .npy of shape (layers, 8, 8), the .json beside it says how it was made. See docs/lookup_tables.md.
"""

from pathlib import Path

from _common import BooleanOption, at_least, make_parser, positive, run
from _setup import float_name, image_size, table_path


def make_table_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    parser.add_argument('-a', '--arch', default='qmobilenetv2', help='name of the network; the q of a quantized twin '
                        'makes no difference')
    parser.add_argument('--dataset', '--data_name', default='imagenet100', help='data set that gives image size and '
                        'number of classes')
    parser.add_argument('--batch', type=at_least(1),
                        help='images that are processed together (default: 16 on cloud, 1 on '
                        'edge)')
    parser.add_argument('--hardware', choices=['cloud', 'edge'], default='cloud', help='the array: cloud = 16x16 with '
                        '256-bit ports, edge = 8x8 with 64-bit ports')
    parser.add_argument('--output', metavar='PATH.npy', help='file to write (default: lib/simulator/lookup_tables/'
                        '<arch>_<dataset>_batch<B>_latency_table.npy, on edge ..._edge_latency_table.npy)')
    parser.add_argument('--num_classes', type=at_least(1),
                        help='outputs of the network (default: from the data set; 1000 for '
                        'imagenet, imagenet100 and imagenet10)')
    parser.add_argument('--width_mult', type=positive, default=1.0, help='width multiplier of the MobileNets')
    parser.add_argument('--mode', choices=['small', 'large'], help='size of mobilenetv3 (default: small)')
    parser.add_argument('--image_size', type=at_least(1),
                        help="side of the images (default: the data set's, 299 for the "
                        'inception family)')
    parser.add_argument('--overwrite', '--clobber', action=BooleanOption, help='replace a different table of that name')
    return parser


def profile(args, side):
    """Returns the records of the network's layers and the names of layers that are never called."""
    import models
    from lib.utils.data_utils import num_classes
    from lib.utils.profile import profile_layers
    options = {'mode': args.mode} if args.mode else {}
    model = models.create_model(float_name(args.arch), num_classes=args.num_classes or num_classes(args.dataset),
                                width_mult=args.width_mult, **options)
    records = profile_layers(model.to('meta'), (3, side, side))  # shapes are all that counts: nothing is computed
    return [r for r in records if r.calls], [r.name for r in records if not r.calls]


def check_output(path, table, overwrite):
    """Raises FileExistsError when `path` holds a table with other cells and may not be overwritten."""
    import numpy as np

    from lib.simulator.cost import load_table
    if overwrite or not path.is_file():
        return
    try:
        same = np.array_equal(load_table(path).table, table.table)
    except ValueError:
        same = False
    if not same:
        raise FileExistsError(f'{path} exists and holds another table: give --overwrite to replace it, or another '
                              '--output')


def summarize(args, table, array, layers, uncalled, side):
    """Prints what the table holds."""
    print(f'{args.arch} for {args.dataset} (3 x {side} x {side}, {layers[-1].out_channels} outputs) on '
          f'{args.hardware}: {array.dim} x {array.dim} processing elements, batch {array.batch}, '
          f'{array.clock_mhz:g} MHz')
    print(f'{len(layers)} layers, {sum(layer.macs for layer in layers):,} multiply-accumulates per image')
    if uncalled:
        print(f'left out, for the forward pass never calls them: {", ".join(uncalled)}')
    print(f'\n{"":26}{"8/8 bits":>26}{"4/4 bits":>26}')
    for title, rows in (('all layers', slice(None)), ('without first and last', slice(1, -1))):
        cycles = [table.table[rows, bits - 1, bits - 1].sum() for bits in (8, 4)]
        print(f'{title:26}' + ''.join(f'{c:>14,} {array.milliseconds(c):>8.3f} ms' for c in cycles))
    print(f'\nA cell [l, w - 1, a - 1] is the clock cycles of layer l for the whole batch of {array.batch} at w weight '
          'and a activation bits.')


def main(args):
    """Makes, saves and describes the table."""
    from dataclasses import replace

    from lib.simulator.bit_serial import PRESETS, make_table
    from lib.simulator.cost import save_table
    preset = PRESETS[args.hardware]
    array = preset if args.batch is None else replace(preset, batch=args.batch)
    path = Path(args.output or table_path(args, args.hardware, array.batch))
    side = image_size(args)
    layers, uncalled = profile(args, side)
    about = {'network': args.arch, 'dataset': args.dataset, 'resolution': side, 'width_mult': args.width_mult}
    table = make_table(layers, args.hardware, array.batch, about)
    check_output(path, table, args.overwrite)
    save_table(path, table)
    summarize(args, table, array, layers, uncalled, side)
    print(f'written to {path} and {path.with_suffix(".json").name}')


if __name__ == '__main__':
    run(main, make_table_parser())
