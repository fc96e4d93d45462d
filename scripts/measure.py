"""Say what a network costs: parameters, operations, size, and the cost on a machine; of a strategy and its layers.

Without a strategy the weights count 32 bits and the machine's cost is that of 8/8 bits. With --compare a second
strategy stands beside the first. Every total says what it counts.
"""

import contextlib
import csv
import json
import sys
from dataclasses import replace

from _cli import make_parser, pick, run
from _options import BooleanOption, add_input_options, at_least
from finetune import STRATEGIES

from lib.record.strategy import find_strategy


def make_measure_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_input_options(parser, dataset='imagenet')
    group = parser.add_argument_group('what to measure')
    group.add_argument('--strategy', metavar='LIST|FILE|NAME|uniform:K', help='bits of every layer: a list, a '
                       'strategy.json or strategy.txt of a search, a name in STRATEGIES of finetune.py, or uniform:K '
                       '(default: the float network)')
    group.add_argument('--compare', metavar='LIST|FILE|NAME|uniform:K', help='a second strategy, to see the '
                       'difference')
    group.add_argument('--linear', action=BooleanOption, help='read uniform:K as K-bit weights and activations')
    group.add_argument('--hardware', default='cloud', metavar='PRESET|FILE.yaml', help='the machine that prices it '
                       '(make_lookup_table.py --list_hardware)')
    group.add_argument('--metric', choices=['latency', 'energy'], default='latency', help='what it costs there')
    group.add_argument('--batch', type=at_least(1), help="images that are processed together (default: the hardware's)")
    group = parser.add_argument_group('output')
    group.add_argument('--json', action=BooleanOption, help='print one JSON object')
    group.add_argument('--csv', action=BooleanOption, help='print one line per layer, separated by commas')
    return parser


def main(args):
    """Measure and print."""
    from _costs import describe_network, input_of
    from _networks import Network

    from lib.network.coverage import coverage_lines
    from lib.simulator.backends import find_hardware
    from lib.simulator.counting import COUNTED, proqha_float_layers
    from lib.simulator.hardware import make_table
    from lib.simulator.rest import price_floats

    if args.json and args.csv:
        raise ValueError('--json and --csv: give one of them')
    if args.compare is not None and args.strategy is None:
        raise ValueError('--compare needs a --strategy to compare with')
    hardware = find_hardware(args.hardware)
    if args.batch:
        hardware = replace(hardware, batch=args.batch)

    # the network and the strategies
    network = pick(Network, args)
    given = input_of(network, args.dataset, args.input_size)
    with contextlib.redirect_stdout(sys.stderr):  # what a user's own file prints is none of this report
        described = describe_network(network, given.shape, given.classes)
    texts = [args.strategy] if args.compare is None else [args.strategy, args.compare]
    chosen = [choose(text, described, args.linear, args.arch) for text in texts]
    inventory = chosen[0][1]
    if any(other is not inventory for _, other in chosen):
        raise ValueError('--compare: one strategy has pairs and the other single bits, which also count the layers '
                         'that the forward pass never calls: compare two of a kind')

    # their costs
    table = make_table(inventory.layers, hardware, args.metric)  # once: measured times differ from one to the next
    table = price_floats(table, inventory.floats, lambda: make_table(inventory.floats, hardware, args.metric))
    all_float = proqha_float_layers(inventory.layers) >= set(inventory.names)
    counted = {name: make(inventory) for name, make in COUNTED.items() if not (all_float and name == 'proqha_ratio')}
    about = {'network': args.arch, 'input': list(given.shape), 'parameters': described.parameters,
             'madds': described.madds, 'about_coverage': coverage_lines(inventory)}
    reports = [{**about, **report(strategy, inventory, table, counted)} for strategy, _ in chosen]
    if args.json:
        print(json.dumps(reports[0] if len(reports) == 1 else {**reports[0], 'compare': reports[1]}))
    elif args.csv:
        print_csv(reports)
    else:
        print_report(reports)


def report(strategy, inventory, table, counted):
    """Return all costs of one strategy (None: float) of this `Inventory` as a dict of plain values."""
    costs, eight = counted | {table.name: table}, [[8, 8]] * len(inventory.layers)
    sizes = costs['model_size']
    priced = {name: cost.cost(strategy or eight) for name, cost in costs.items()}
    ratios = {name: cost.ratio(strategy or eight) for name, cost in costs.items()}
    if strategy is None:  # float weights
        for name in {'model_size', 'file_size', 'proqha_ratio'} & costs.keys():
            priced[name], ratios[name] = costs[name].reference, 1.0
    return {
        'strategy': strategy, 'macs': inventory.macs, 'coverage': inventory.coverage.to_dict(),
        'size_bits': priced['model_size'], 'size_ratio': ratios['model_size'],
        'cost': priced[table.name], 'cost_ratio': ratios[table.name],
        'unit': table.unit, 'cost_name': table.name, 'batch': table.about['batch'],
        'costs': {name: {'cost': priced[name], 'ratio': ratios[name], 'unit': cost.unit}
                  for name, cost in costs.items()},
        'counted': {'parameters': 'all parameters, with biases and normalization',
                    'macs': 'multiply-accumulates of convolutions, linear layers and matrix products for one image',
                    'madds': 'macs, 2 per input value of a BatchNorm, and the additions of pooling modules, as thop '
                             'counts them',
                    **{name: rule(cost) for name, cost in costs.items()}},
        'layers': list(layer_rows(inventory, strategy, sizes, table)), 'float_layers': list(float_rows(inventory)),
    }


def rule(cost):
    """Return what a cost counts, as a sentence about the total."""
    return f"{'largest' if cost.combine == 'max' else 'sum over all layers'}: {cost.meaning}"


def choose(text, network, linear, name):
    """Return (strategy or None, the `Inventory` with the layers it has an entry for).

    A strategy of pairs leaves out what the linear flow cannot quantize: layers that the forward pass never calls, and
    those with a forward of their own.
    """
    if text is None:
        return None, network.kmeans
    kept = {True: network.linear, False: network.kmeans}
    strategy = find_strategy(text, lambda pairs: kept[pairs].names, linear=linear, either=True, published=STRATEGIES,
                             network=name, ends=network.linear.ends)
    return strategy, kept[isinstance(strategy[0], list)]


def layer_rows(inventory, strategy, sizes, table):
    """Yield a dict of plain values per layer."""
    eight = [[8, 8]] * len(inventory.layers)
    bits = sizes.bits(strategy or eight)
    prices = table.breakdown(strategy or eight).tolist()
    for record, weights, (w_bit, a_bit), price in zip(inventory.layers, inventory.weights, bits, prices, strict=True):
        yield {**shape_row(record), 'calls': record.calls, 'weights': weights, 'macs': record.macs,
               'w_bit': w_bit if strategy else 32,
               'a_bit': None if not strategy or isinstance(strategy[0], int) else a_bit,
               'size_bits': weights * (w_bit if strategy else 32), 'cost': price}


def float_rows(inventory):
    """Yield a dict of plain values per product that stays float."""
    for record in inventory.floats:
        yield {**shape_row(record), 'calls': record.calls, 'macs': record.macs}


def shape_row(record):
    """Return the name and the sizes of a layer."""
    return {'name': record.name, 'type': record.type, 'in_channels': record.in_channels,
            'out_channels': record.out_channels, 'kernel': list(record.kernel), 'stride': list(record.stride),
            'groups': record.groups, 'in_size': [record.in_h, record.in_w], 'out_size': [record.out_h, record.out_w]}


def print_csv(reports):
    """Print the layers, the second strategy's bits and cost beside the first's."""
    rows = [dict(row) for row in reports[0]['layers']]
    for other in reports[1:]:
        for row, theirs in zip(rows, other['layers'], strict=True):
            row |= {f'{key}_2': theirs[key] for key in ('w_bit', 'a_bit', 'size_bits', 'cost')}
    for row in rows:
        row |= {key: 'x'.join(map(str, row[key])) for key in ('kernel', 'stride', 'in_size', 'out_size')}
    writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)


def print_report(reports):
    """Print a table of layers and the totals, each with its counting rule."""
    first = reports[0]
    print(f'{first["network"]} for images of {" x ".join(map(str, first["input"]))}\n')
    print_layers(reports)
    print_float_layers(first)
    print('\n' + '\n'.join(first['about_coverage']))
    print(f'\n{"parameters":20}{first["parameters"]:>18,}   {first["counted"]["parameters"]}')
    print(f'{"macs":20}{first["macs"]:>18,}   {first["counted"]["macs"]}')
    print(f'{"madds":20}{first["madds"]:>18,}   {first["counted"]["madds"]}')
    for name, cost in first['costs'].items():
        line = f'{name:20}{number(cost["cost"]):>18} {cost["unit"]} = {cost["ratio"]:.4f}'
        for other in reports[1:]:
            theirs = other['costs'][name]
            change = theirs['cost'] / cost['cost'] - 1 if cost['cost'] else 0
            line += f'; second {number(theirs["cost"])} = {theirs["ratio"]:.4f} ({change:+.1%})'
        print(f'{line}\n{"":20}{first["counted"][name]}')


def print_layers(reports):
    """Print one line per layer."""
    name_width = max(len('layer'), *(len(row['name']) for row in reports[0]['layers'])) + 2
    unit = reports[0]['unit']
    head = f'{"layer":{name_width}}{"type":11}{"shape":>20}{"output":>10}{"weights":>12}{"MACs":>15}{"bits":>7}' \
           f'{"size (bits)":>14}{f"cost ({unit})":>18}'
    print(head + (f'{"bits 2":>9}{"cost 2":>15}' if len(reports) > 1 else ''))
    for rows in zip(*(report['layers'] for report in reports), strict=True):
        row = rows[0]
        shape = f'{row["in_channels"]}->{row["out_channels"]} {"x".join(map(str, row["kernel"]))}'
        line = f'{row["name"]:{name_width}}{row["type"]:11}{shape:>20}{"x".join(map(str, row["out_size"])):>10}' \
               f'{row["weights"]:>12,}{row["macs"]:>15,}{bits_text(row):>7}{row["size_bits"]:>14,}' \
               f'{number(row["cost"]):>18}'
        print(line + ''.join(f'{bits_text(other):>9}{number(other["cost"]):>15}' for other in rows[1:]))


def print_float_layers(report):
    """Print one line per product that stays float under every strategy."""
    if not report['float_layers']:
        return
    print('\nstays float:')
    width = max(len(row['name']) for row in report['float_layers']) + 2
    for row in report['float_layers']:
        print(f'{row["name"]:{width}}{row["type"]:11}{row["in_channels"]}->{row["out_channels"]} '
              f'{"x".join(map(str, row["kernel"]))}, {"x".join(map(str, row["out_size"]))}, {row["calls"]} calls'
              f'{row["macs"]:>15,} MACs')


def bits_text(row):
    """Return `4`, `4/6`, or `8/-` for an input that is left alone."""
    if row['a_bit'] is None:
        return f'{row["w_bit"]}'
    return f'{row["w_bit"]}/{"-" if row["a_bit"] == -1 else row["a_bit"]}'


def number(value):
    """Return a count with commas, or a number with six digits."""
    return f'{value:,}' if isinstance(value, int) else f'{value:,.6g}'


if __name__ == '__main__':
    run(main, make_measure_parser())
