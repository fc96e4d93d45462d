"""Makes the lookup table of a network on a machine: latency or energy per layer, weight bits and activation bits.

The network is built with random weights and measured with one image; neither weights nor data are needed. The table
is a .npy of shape (layers, 8, 8), the .json beside it says how it was made. See docs/hardware.md.
"""

from pathlib import Path

from _common import logger, make_parser, run
from _costs import table_folders, table_stem
from _network import add_network_options, describe_network, finish_network_options, network_of
from _options import BooleanOption, at_least


def make_table_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_network_options(parser, dataset=None)
    group = parser.add_argument_group('hardware')
    group.add_argument('--hardware', metavar='PRESET|FILE.yaml', help='a preset (--list_hardware), or a file that '
                       'describes the hardware (default: cloud)')
    group.add_argument('--list_hardware', action=BooleanOption, help='list the presets with their parameters, and end')
    group.add_argument('--metric', choices=['latency', 'energy'], help='what a cell holds (default: latency)')
    group.add_argument('--batch', type=at_least(1), help="images that are processed together (default: the hardware's, "
                       '16 on cloud, 1 on edge)')
    group.add_argument('--from_csv', metavar='FILE.csv', help='take the cells from a file of your own numbers instead, '
                       'with the columns layer, w_bit, a_bit, cost')
    group.add_argument('--unit', help='unit of the costs in that file, for example ms')
    group = parser.add_argument_group('output')
    group.add_argument('--output', metavar='PATH.npy', help='file to write (default: lib/simulator/lookup_tables/'
                       '<arch>[_<dataset>]_batch<B>[_<hardware>]_<metric>_table.npy)')
    group.add_argument('--plot', action=BooleanOption, default=True, help='draw the heat maps and the roofline beside '
                       'the table')
    group.add_argument('--overwrite', '--clobber', action=BooleanOption, help='replace a different table of that name')
    return parser


def list_hardware():
    """Prints all presets."""
    from dataclasses import fields

    from lib.simulator.backends import PRESETS
    for name, hardware in sorted(PRESETS.items()):
        values = [f'{field.name} {getattr(hardware, field.name)} {field.metadata["unit"]}'.rstrip()
                  for field in fields(hardware) if field.name not in ('name', 'status')]
        print(f'{name} ({hardware.backend}; {" and ".join(hardware.metrics)}): {hardware.status}\n    '
              + ', '.join(values))


def check_output(path, table, overwrite):
    """Raises FileExistsError when `path` holds a table with other cells and may not be overwritten."""
    import numpy as np

    from lib.record.files import is_file
    from lib.simulator.table_files import load_table
    if overwrite or not is_file(path):
        return
    try:
        same = np.array_equal(load_table(path).table, table.table)
    except ValueError:
        same = False
    if not same:
        raise FileExistsError(f'{path} exists and holds another table: give --overwrite to replace it, or another '
                              '--output')


def check_writable(path):
    """Returns --output as a path, or raises ValueError, before anything slow begins, where it cannot be written."""
    from lib.record.disk import is_writable
    from lib.simulator.table_files import npy_path
    path = npy_path(path)
    if not is_writable(path.parent):
        raise ValueError(f'--output {path}: the folder {path.parent} cannot be written, name another')
    return path


def default_output(args, layers, hardware, metric):
    """Returns the path of a table without --output: its conventional name, or one of its own where that is taken."""
    from lib.record.disk import is_writable
    from lib.record.files import is_file
    from lib.simulator.table_cache import digest_of_about, digest_of_table
    from lib.simulator.table_files import read_about
    folder = next(filter(is_writable, table_folders(args)), None)
    if folder is None:
        raise ValueError(f'{" and ".join(map(str, table_folders(args)))} cannot be written: give --output PATH.npy')
    stem, digest = table_stem(args, hardware, metric), digest_of_table(layers, hardware, metric)
    path = folder / f'{stem}.npy'
    try:
        taken = is_file(path) and digest_of_about(read_about(path)) != digest and not args.overwrite
    except ValueError:
        taken = not args.overwrite
    return folder / f'{stem}_{digest[:12]}.npy' if taken else path


def main(args):
    """Makes, saves, describes and draws the table."""
    from lib.network.coverage import coverage_lines
    if args.list_hardware:
        list_hardware()
        return
    if args.output:
        check_writable(args.output)
    shape = finish_network_options(args)
    network = describe_network(args, shape)
    inventory, layers = network.linear, network.linear.layers
    if not layers:
        raise ValueError(f'{args.arch} has no layer that the linear flow can quantize: a table would be empty')
    about = {'network': args.arch, 'dataset': args.dataset, 'width_mult': args.width_mult}
    make = from_csv if args.from_csv else from_hardware
    path, table, summary, plot = make(args, inventory, {**about, 'resolution': list(shape)})
    path = Path(path)
    check_output(path, table, args.overwrite)
    print(f'{args.arch} for images of {" x ".join(map(str, shape))}, {layers[inventory.ends[1]].out_channels} outputs: '
          f'{len(layers)} layers, {sum(layer.macs for layer in layers):,} multiply-accumulates per image')
    if network.uncalled:
        print(f'left out, for the forward pass never calls them: {", ".join(network.uncalled)}')
    if others := [name for name in inventory.float_names if name not in network.uncalled]:
        print(f'left out, for the linear flow cannot quantize them: {", ".join(others)}')
    print('\n'.join([*coverage_lines(inventory), *summary]))
    save(path, table, plot if args.plot else None)


def from_hardware(args, inventory, about):
    """Returns (default path, table, lines of the summary, function that draws) of a hardware model."""
    from dataclasses import replace

    from lib.simulator import table_plots
    from lib.simulator.backends import find_hardware
    from lib.simulator.hardware import check_metric, make_table, table_from_cells
    from lib.simulator.rest import noted
    from lib.simulator.table_report import summarize_cells
    if args.unit:
        raise ValueError(f'--unit {args.unit} belongs to --from_csv: hardware has a unit of its own, leave it out')
    hardware, metric = find_hardware(args.hardware or 'cloud'), args.metric or 'latency'
    if args.batch:
        hardware = replace(hardware, batch=args.batch)
    check_metric(hardware, metric)
    layers = inventory.layers
    path = args.output or default_output(args, layers, hardware, metric)
    if hardware.backend == 'measured':
        logger.info('measuring %d layers on this machine; other programs should rest meanwhile', len(layers))
    cells = hardware.cells(layers)
    whole = measure_whole(args, hardware, about) if hardware.backend == 'measured' else []
    table = table_from_cells(cells, layers, hardware, metric, about)
    summary = summarize_cells(table, cells, layers, hardware) + whole
    if inventory.floats:
        rest = make_table(inventory.floats, hardware, metric).reference
        table = noted(table, inventory.floats, rest)
        summary += [f'What stays float costs {rest:,.6g} {table.unit} at 8/8 bits, beside the layers of the table.']

    def plot(path):
        table_plots.plot_heat_maps(table, path.with_name(f'{path.stem}_heat.png'))
        table_plots.plot_roofline(cells, layers, hardware, path.with_name(f'{path.stem}_roofline.png'))
        return [f'{path.stem}_heat.png', f'{path.stem}_roofline.png']
    return path, table, summary, plot


def measure_whole(args, hardware, about):
    """Measures the whole network beside its layers; adds the result to `about` and returns the lines that say it."""
    from lib.network.whole_network import measure_whole_network
    whole = measure_whole_network(network_of(args), tuple(about['resolution']), hardware)
    about['whole_network'] = whole.to_dict()
    return ['', f'measured together ({whole.arithmetic}): layers {whole.layers:.3f} ms, the same kernels in a row '
            f'{whole.chain:.3f} ms (ratio {whole.layers_over_chain:.2f}), the network in {whole.network_arithmetic} '
            f'{whole.network:.3f} ms (ratio {whole.layers_over_network:.2f}; it also has normalization, activations, '
            'additions)']


def from_csv(args, inventory, about):
    """Returns (default path, table, lines of the summary, function that draws) of the user's own numbers."""
    from lib.simulator import table_plots
    from lib.simulator.csv_table import read_csv_table
    from lib.simulator.table_report import summarize_table
    unused = [f'--{name} {getattr(args, name)}' for name in ('hardware', 'metric', 'batch') if getattr(args, name)]
    if unused:
        raise ValueError(f'--from_csv takes the numbers in the file as they are: leave out {" and ".join(unused)}')
    if not args.unit or not args.output:
        raise ValueError('--from_csv needs --unit (of the costs in the file, for example ms) and --output PATH.npy')
    layers = inventory.layers
    table = read_csv_table(args.from_csv, layers, unit=args.unit, name=f'{Path(args.output).stem}', about=about)

    def plot(path):
        table_plots.plot_heat_maps(table, path.with_name(f'{path.stem}_heat.png'))
        return [f'{path.stem}_heat.png']
    return args.output, table, summarize_table(table, layers), plot


def save(path, table, plot):
    """Writes the table, its description and its figures; says where."""
    from lib.simulator.table_files import save_table
    save_table(path, table)
    figures = plot(path) if plot else []
    print(f'written to {path}; beside it {", ".join([path.with_suffix(".json").name, *figures])}')


if __name__ == '__main__':
    run(main, make_table_parser())
