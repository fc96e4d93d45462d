"""Say what a network costs: parameters, operations, size, and the cost on a machine; of a strategy and its layers.

Without a strategy the weights count 32 bits and the machine's cost is that of 8/8 bits. With --compare a second
strategy stands beside the first. Every total says what it counts.
"""

import contextlib
import json
import sys
from dataclasses import replace

from _cli import make_parser, pick, run
from _option_types import BooleanOption, at_least
from _options import add_input_options
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
    from lib.simulator.strategy_report import layers_csv, report, report_text

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
    else:
        print(layers_csv(reports) if args.csv else report_text(reports), end='')


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


if __name__ == '__main__':
    run(main, make_measure_parser())
