"""Makes the lookup table of a network on a machine: latency or energy per layer, weight bits and activation bits.

The network is built with random weights and measured with one image; neither weights nor data are needed. The table
is a .npy of shape (layers, 8, 8), the .json beside it says how it was made. See docs/hardware.md.
"""

from dataclasses import fields, replace
from pathlib import Path

from _cli import logger, make_parser, pick, run
from _option_types import BooleanOption, at_least
from _options import add_input_options

from lib.record.disk import is_writable


def make_table_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_input_options(parser, dataset=None)
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


def main(args):
    """Make, save, describe and draw the table."""
    from _costs import Pricing, describe_network, input_of
    from _networks import Network

    from lib.network.coverage import coverage_lines
    from lib.network.whole_network import measure_whole_network
    from lib.simulator.backends import PRESETS, find_hardware
    from lib.simulator.hardware import check_metric, make_table, table_from_cells
    from lib.simulator.rest import noted
    from lib.simulator.table_files import check_replaceable, npy_path, read_csv_table, save_table
    from lib.simulator.table_report import plot_heat_maps, plot_roofline, summarize_cells, summarize_table

    if args.list_hardware:
        list_presets(PRESETS)
        return
    if args.output and not is_writable((path := npy_path(args.output)).parent):
        raise ValueError(f'--output {path}: the folder {path.parent} cannot be written, name another')
    check_options(args)

    # network
    network = pick(Network, args)
    given = input_of(network, args.dataset, args.input_size)
    described = describe_network(network, given.shape, given.classes)
    inventory, layers = described.linear, described.linear.layers
    if not layers:
        raise ValueError(f'{args.arch} has no layer that the linear flow can quantize: a table would be empty')
    about = {'network': args.arch, 'dataset': args.dataset, 'width_mult': args.width_mult,
             'resolution': list(given.shape)}

    # table
    if args.from_csv:
        path, cells = args.output, None
        table = read_csv_table(args.from_csv, layers, unit=args.unit, name=Path(path).stem, about=about)
        summary = summarize_table(table, layers)
    else:
        hardware, metric = find_hardware(args.hardware or 'cloud'), args.metric or 'latency'
        if args.batch:
            hardware = replace(hardware, batch=args.batch)
        check_metric(hardware, metric)
        named = network if args.dataset else replace(network, num_classes=given.classes)
        pricing = Pricing(named, dataset=args.dataset, image_size=given.image_size)
        path = args.output or default_output(pricing, layers, hardware, metric, args.overwrite)
        measured = hardware.backend == 'measured'
        if measured:
            logger.info('measuring %d layers on this machine; other programs should rest meanwhile', len(layers))
        cells = hardware.cells(layers)
        whole = measured and measure_whole_network(network.build(given.classes), given.shape, hardware)
        table = table_from_cells(cells, layers, hardware, metric, about | ({'whole_network': whole.to_dict()}
                                                                           if whole else {}))
        summary = summarize_cells(table, cells, layers, hardware) + (lines_about(whole) if whole else [])
        if inventory.floats:
            rest = make_table(inventory.floats, hardware, metric).reference
            table = noted(table, inventory.floats, rest)
            summary += [f'What stays float costs {rest:,.6g} {table.unit} at 8/8 bits, beside the layers of the table.']
    check_replaceable(path, table, args.overwrite)

    # report and files
    print(f'{args.arch} for images of {" x ".join(map(str, given.shape))}, '
          f'{layers[inventory.ends[1][-1]].out_channels} outputs: {len(layers)} layers, '
          f'{sum(layer.macs for layer in layers):,} multiply-accumulates per image')
    if described.uncalled:
        print(f'left out, for the forward pass never calls them: {", ".join(described.uncalled)}')
    if others := [name for name in inventory.float_names if name not in described.uncalled]:
        print(f'left out, for the linear flow cannot quantize them: {", ".join(others)}')
    print('\n'.join([*coverage_lines(inventory), *summary]))
    path = Path(path)
    save_table(path, table)
    figures = []
    if args.plot:
        figures = [path.with_name(f'{path.stem}_heat.png')]
        plot_heat_maps(table, figures[0])
        if cells is not None:
            figures.append(path.with_name(f'{path.stem}_roofline.png'))
            plot_roofline(cells, layers, hardware, figures[1])
    beside = [path.with_suffix('.json').name, *(figure.name for figure in figures)]
    print(f'written to {path}; beside it {", ".join(beside)}')


def check_options(args):
    """Raise ValueError for options that do not go with, or without, --from_csv."""
    if not args.from_csv:
        if args.unit:
            raise ValueError(f'--unit {args.unit} belongs to --from_csv: hardware has a unit of its own, leave it out')
        return
    unused = [f'--{name} {getattr(args, name)}' for name in ('hardware', 'metric', 'batch') if getattr(args, name)]
    if unused:
        raise ValueError(f'--from_csv takes the numbers in the file as they are: leave out {" and ".join(unused)}')
    if not args.unit or not args.output:
        raise ValueError('--from_csv needs --unit (of the costs in the file, for example ms) and --output PATH.npy')


def list_presets(presets):
    """Print all presets with their parameters."""
    for name, hardware in sorted(presets.items()):
        values = [f'{field.name} {getattr(hardware, field.name)} {field.metadata["unit"]}'.rstrip()
                  for field in fields(hardware) if field.name not in ('name', 'status')]
        print(f'{name} ({hardware.backend}; {" and ".join(hardware.metrics)}): {hardware.status}\n    '
              + ', '.join(values))


def default_output(pricing, layers, hardware, metric, overwrite):
    """Return the path of a table without --output: its conventional name, or one of its own where that is taken."""
    from lib.simulator.table_cache import free_name  # it imports torch

    folder = next(filter(is_writable, pricing.folders), None)
    if folder is None:
        raise ValueError(f'{" and ".join(map(str, pricing.folders))} cannot be written: give --output PATH.npy')
    return free_name(folder, pricing.stem(hardware, metric), layers, hardware, metric, overwrite)


def lines_about(whole):
    """Return lines about the whole network, measured beside its layers."""
    return ['', f'measured together ({whole.arithmetic}): layers {whole.layers:.3f} ms, the same kernels in a row '
            f'{whole.chain:.3f} ms (ratio {whole.layers_over_chain:.2f}), the network in {whole.network_arithmetic} '
            f'{whole.network:.3f} ms (ratio {whole.layers_over_network:.2f}; it also has normalization, activations, '
            'additions)']


if __name__ == '__main__':
    run(main, make_table_parser())
