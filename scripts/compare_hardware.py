"""Prices strategies on several machines: one row per finished run, one column per machine.

Reads the results.json and args.json that finetune.py leaves. A strategy that was searched for one machine should be the
cheapest there; the table and its heat map show whether it is.
"""

from argparse import Namespace
from pathlib import Path

from _common import make_parser, run
from _costs import find_hardware_metric, price_floats
from _network import describe_network
from _options import MAX_CLASSES, MAX_SIDE, MAX_WIDTH
from summarize import read_run


def make_compare_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='LABEL=FOLDER', help='finished fine-tunings of one network')
    parser.add_argument('--cost', dest='costs', action='append', required=True, metavar='NAME|FILE.yaml', help='a '
                        'machine and what it costs there, for example edge_latency or bitfusion_energy; give one or '
                        'more')
    parser.add_argument('--output', metavar='FOLDER', help='folder for hardware.md and hardware.png (default: only '
                        'print)')
    return parser


def layers_of(row, folder):
    """Returns (what identifies the network of a run, the `Described` network).

    Args:
        row: results of the run.
        folder: its folder.
    """
    from lib.record.files import read_json
    from lib.record.values import TEXT, check_values, list_of, optional, real, whole
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
    network |= {'classes': row['classes'], 'input': row['input']}
    if not network['model_file']:
        network['arch'] = network['arch'].removeprefix('q')
    described = Namespace(**network, num_classes=network['classes'], dataset=None)
    return network, describe_network(described, tuple(network['input']))


def main(args):
    """Prices every run on every machine and prints the table."""
    from lib.network.coverage import coverage_lines
    runs = [read_run(text) for text in args.runs]
    if floats := [row['label'] for row in runs if not row.get('strategy')]:
        raise ValueError(f'{", ".join(floats)}: a float network has no strategy to price')
    if lists := [row['label'] for row in runs if isinstance(row['strategy'], dict)]:
        raise ValueError(f'{", ".join(lists)}: trained under bit lists, which price parts and not layers; export.py '
                         '--hardware prices such a network')
    networks = [layers_of(row, text.partition('=')[2] or text)
                for row, text in zip(runs, args.runs, strict=True)]
    for row, (network, _) in zip(runs, networks, strict=True):
        if network != networks[0][0]:
            raise ValueError(f'{row["label"]} is a run of another network than {runs[0]["label"]}: {network} and '
                             f'{networks[0][0]}')
    described = networks[0][1]
    inventory = described.linear if isinstance(runs[0]['strategy'][0], list) else described.kmeans
    tables = [table_of(name, inventory) for name in args.costs]
    ratios = [[table.ratio(row['strategy']) for table in tables] for row in runs]
    lines = markdown(runs, tables, ratios)
    print('\n'.join([*lines, '', *coverage_lines(inventory)]))
    if args.output:
        write(Path(args.output), lines, runs, tables, ratios)


def table_of(name, inventory):
    """Returns the `CostTable` of a machine, of a counted cost or of a .npy file."""
    from lib.simulator.counting import COUNTED
    from lib.simulator.hardware import make_table
    from lib.simulator.table_files import load_table
    if name in COUNTED:
        return COUNTED[name](inventory)
    if name.endswith('.npy'):
        return price_floats(load_table(name, inventory.layers), inventory.floats)
    hardware, metric = find_hardware_metric(name)
    return price_floats(make_table(inventory.layers, hardware, metric), inventory.floats,
                        lambda: make_table(inventory.floats, hardware, metric))


def markdown(runs, tables, ratios):
    """Returns the lines of the table; the cheapest of each column is bold."""
    lines = ['| strategy | top-1 (%) | ' + ' | '.join(f'{table.name}' for table in tables) + ' |',
             '|---|---|' + '---|' * len(tables)]
    lowest = [min(column) for column in zip(*ratios, strict=True)]
    for row, prices in zip(runs, ratios, strict=True):
        cells = [f'**{price:.4f}**' if price == low else f'{price:.4f}'
                 for price, low in zip(prices, lowest, strict=True)]
        lines.append(f'| {row["label"]} | {row["top1"]:.2f} | ' + ' | '.join(cells) + ' |')
    return lines


def write(folder, lines, runs, tables, ratios):
    """Writes the table and its heat map."""
    from lib.record.files import write_text
    from lib.simulator.table_plots import plot_matrix
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / 'hardware.md', '\n'.join(lines) + '\n')
    labels = [f'{row["label"]}\ntop-1 {row["top1"]:.2f} %' for row in runs]
    plot_matrix(ratios, labels, [table.name for table in tables], folder / 'hardware.png')
    print(f'plot: {folder / "hardware.png"}')


if __name__ == '__main__':
    run(main, make_compare_parser())
