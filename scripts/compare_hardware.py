"""Prices strategies on several machines: one row per finished run, one column per machine.

Reads the results.json and args.json that finetune.py leaves. A strategy that was searched for one machine should be the
cheapest there; the table and its heat map show whether it is.
"""

from pathlib import Path

from _cli import make_parser, run
from _option_types import MAX_CLASSES, MAX_SIDE, MAX_WIDTH
from summarize import read_run

from lib.record.files import read_json, write_text
from lib.record.strategy import check_strategy
from lib.record.values import TEXT, check_values, list_of, optional, real, whole


def make_compare_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='LABEL=FOLDER', help='finished fine-tunings of one network')
    parser.add_argument('--cost', dest='costs', action='append', required=True, metavar='NAME|FILE.yaml', help='a '
                        'machine and what it costs there, for example edge_latency or bitfusion_energy; give one or '
                        'more')
    parser.add_argument('--output', metavar='FOLDER', help='folder for hardware.md and hardware.png (default: only '
                        'print)')
    return parser


def main(args):
    """Price every run on every machine and print the table."""
    from _costs import describe_network
    from _networks import Network

    from lib.network.coverage import coverage_lines
    from lib.simulator.backends import find_machine
    from lib.simulator.counting import COUNTED
    from lib.simulator.hardware import make_table
    from lib.simulator.rest import price_floats
    from lib.simulator.table_files import load_table
    from lib.simulator.table_report import plot_matrix

    # runs of one network
    runs = [read_run(text) for text in args.runs]
    if floats := [row['label'] for row in runs if not row.get('strategy')]:
        raise ValueError(f'{", ".join(floats)}: a float network has no strategy to price')
    if lists := [row['label'] for row in runs if isinstance(row['strategy'], dict)]:
        raise ValueError(f'{", ".join(lists)}: trained under bit lists, which price parts and not layers; export.py '
                         '--hardware prices such a network')
    networks = [network_of(row, text.partition('=')[2] or text) for row, text in zip(runs, args.runs, strict=True)]
    first = networks[0]
    for row, network in zip(runs, networks, strict=True):
        if network != first:
            raise ValueError(f'{row["label"]} is a run of another network than {runs[0]["label"]}: {network} and '
                             f'{first}')
    network = Network(**{key: first[key] for key in first if key not in ('classes', 'input')})
    described = describe_network(network, tuple(first['input']), first['classes'])
    linear = isinstance(runs[0]['strategy'][0], list)
    inventory = described.linear if linear else described.kmeans
    for row in runs:
        check_strategy(row['strategy'], inventory.names, linear=linear, source=row['label'], network=network.arch)

    # the table of their costs
    def table_of(name):
        if name in COUNTED:
            return COUNTED[name](inventory)
        if name.endswith('.npy'):
            return price_floats(load_table(name, inventory.layers), inventory.floats)
        machine = find_machine(name)
        return price_floats(make_table(inventory.layers, *machine), inventory.floats,
                            lambda: make_table(inventory.floats, *machine))

    tables = [table_of(name) for name in args.costs]
    ratios = [[table.ratio(row['strategy']) for table in tables] for row in runs]
    lines = markdown(runs, tables, ratios)
    print('\n'.join([*lines, '', *coverage_lines(inventory)]))
    if args.output:
        folder = Path(args.output)
        write_text(folder / 'hardware.md', '\n'.join(lines) + '\n')
        labels = [f'{row["label"]}\ntop-1 {row["top1"]:.2f} %' for row in runs]
        plot_matrix(ratios, labels, [table.name for table in tables], folder / 'hardware.png')
        print(f'plot: {folder / "hardware.png"}')


def network_of(row, folder):
    """Return what identifies the network of a run: fields of `Network`, the number of classes, (C, H, W) of an image.

    Args:
        row: results of the run.
        folder: its folder.
    """
    path = Path(folder) / 'args.json'
    try:
        saved = read_json(path, 'settings of a run')
        check_values(saved, {'arch': TEXT, 'width_mult': real(0.001, MAX_WIDTH), 'mode': optional(TEXT),
                             'model_file': optional(TEXT)}, str(path))
        check_values(row, {'classes': whole(1, MAX_CLASSES), 'input': list_of(whole(1, MAX_SIDE), 3)}, 'results.json')
    except (OSError, ValueError) as error:
        raise ValueError(f'{row["label"]}: {path} and the results.json beside it cannot be read as a finished '
                         f'fine-tuning ({error})') from error
    network = {key: saved.get(key) for key in ('arch', 'width_mult', 'mode', 'model_file')}
    if not network['model_file']:
        network['arch'] = network['arch'].removeprefix('q')
    return {**network, 'classes': row['classes'], 'input': row['input']}


def markdown(runs, tables, ratios):
    """Return the lines of the table; the cheapest of each column is bold."""
    lines = ['| strategy | top-1 (%) | ' + ' | '.join(f'{table.name}' for table in tables) + ' |',
             '|---|---|' + '---|' * len(tables)]
    lowest = [min(column) for column in zip(*ratios, strict=True)]
    for row, prices in zip(runs, ratios, strict=True):
        cells = [f'**{price:.4f}**' if price == low else f'{price:.4f}'
                 for price, low in zip(prices, lowest, strict=True)]
        lines.append(f'| {row["label"]} | {row["top1"]:.2f} | ' + ' | '.join(cells) + ' |')
    return lines


if __name__ == '__main__':
    run(main, make_compare_parser())
