"""From the names of costs and budgets to their tables: lookup tables, counted costs, constraints."""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from _common import ROOT, logger
from _setup import is_linear, network_name

ALIASES = {'size': 'model_size', 'memory': 'activation_memory', 'proqha': 'proqha_ratio'}
TABLES = ROOT / 'lib' / 'simulator' / 'lookup_tables'


class Layers(NamedTuple):
    """The layers in a strategy, as an `Inventory`; the model size as a `CostTable`; the shape of an image.

    `coverage` is what results.json and strategy.json say of the shares under the strategy.
    """

    inventory: Any
    sizes: Any
    shape: tuple
    coverage: dict

    @property
    def records(self):
        """`LayerRecord`s of the layers."""
        return self.inventory.layers

    @property
    def names(self):
        """Names of the layers."""
        return self.inventory.names


def find_layers(args, model, shape, is_pruned=False, before=False):
    """Returns the `Layers` of the network that a strategy of this flow has entries for, and says which they are.

    `before`: as searches counted them that were begun before float layers had a price.
    """
    from lib.network.coverage import as_before, take_inventory
    from lib.network.records import profile_network
    from lib.network.report import describe_layers
    from lib.simulator.counting import size_of

    linear, profile = is_linear(args), profile_network(model, shape)
    inventory = take_inventory(model, profile, linear, is_pruned=is_pruned)
    for line in describe_layers(model, profile.layers, linear):
        logger.info('%s', line)
    say_coverage(inventory)
    coverage = inventory.coverage.to_dict()
    if before:
        logger.info('this search was begun when what stays float had no price: it goes on without')
        inventory = as_before(inventory, profile)
    float_bit = 32 if linear or args.float_bit is None else args.float_bit
    return Layers(inventory, size_of(inventory, float_bit), shape, coverage)


def say_coverage(inventory, what=None):
    """Says what the strategy covers; what stays float is a warning where it is much."""
    from lib.network.coverage import coverage_lines
    from lib.runtime.distributed import is_main
    share, *low = coverage_lines(inventory, what)
    logger.info('%s', share)
    for line in low if is_main() else ():
        logger.warning('%s', line)


def coverage_of(model, shape, kind='qat'):
    """Says what the active quantizers of a network cover; returns it as an entry of results.json, none if `float`."""
    from lib.network.coverage import active_inventory
    if kind == 'float':
        return {}
    inventory = active_inventory(model, shape)
    say_coverage(inventory, 'quantization')
    return {'coverage': inventory.coverage.to_dict()}


def find_constraints(args, layers, option='--preserve_ratio'):
    """Returns the `Constraint`s of a search: --preserve_ratio of --cost, then each --constraint.

    Args:
        args: the options.
        layers: the `Layers` of the strategy.
        option: what --preserve_ratio is called on the command line, for messages.

    Raises:
        ValueError: an unknown cost, no ratio, or two budgets for one cost.
    """
    wanted = [(name, value, f'--constraint {name}') for name, value in map(parse_constraint, args.constraint or ())]
    if args.preserve_ratio is not None:
        wanted.insert(0, (cost_name(args), args.preserve_ratio, option))
    costs = [find_cost(args, full_name(name, cost_name(args)), layers) for name, _, _ in wanted]
    constraints = [constraint_on(cost, value, is_linear(args), option, layers.inventory.ends)
                   for cost, (_, value, option) in zip(costs, wanted, strict=True)]
    names = [constraint.cost.name for constraint in constraints]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'{", ".join(twice)} has two budgets: give each cost one --constraint, or {option} for '
                         'that of --cost')
    return constraints


def cost_name(args):
    """Returns the name of the cost of --cost, by default that of the flow."""
    return args.cost or ('cloud_latency' if is_linear(args) else 'model_size')


def parse_constraint(text):
    """Returns (name, ratio) of `NAME=RATIO`."""
    name, _, value = text.rpartition('=')
    try:
        if name:
            return name, ratio(value)
    except ValueError:
        pass
    raise ValueError(f'--constraint {text}: expected NAME=RATIO, for example size=0.3 or bitfusion_energy=uniform:4')


def ratio(text):
    """Option type: a number, or `uniform:K` for what K bits in every layer cost."""
    if re.fullmatch('uniform:[1-8]', text):
        return text
    value = float(text)
    if math.isinf(value):
        raise ValueError(f'{text} is no budget')
    return value


def constraint_on(cost, ratio, linear, option, ends=(0, -1)):
    """Returns the `Constraint` of a ratio, or exactly what K bits in every layer cost; `ends`: first and last layer."""
    from lib.record.strategy import uniform_strategy
    from lib.simulator.budget import Constraint
    if isinstance(ratio, float):
        return Constraint.of_ratio(cost, ratio, option)
    strategy = uniform_strategy(cost.num_layers, int(ratio.removeprefix('uniform:')), linear=linear, ends=ends)
    return Constraint(cost, cost.cost(strategy), option)


def full_name(name, cost):
    """Returns the name of a cost: `latency` and `energy` alone are those of the hardware of --cost."""
    if name not in ('latency', 'energy'):
        return ALIASES.get(name, name)
    path = cost.partition(':')[0]
    if Path(path).suffix in ('.yaml', '.yml'):
        return f'{path}:{name}'
    hardware, _, metric = cost.rpartition('_')
    if metric not in ('latency', 'energy'):
        raise ValueError(f'--constraint {name}: which hardware? --cost {cost} names none; give for example '
                         f'bitfusion_{name}')
    return f'{hardware}_{name}'


def find_cost(args, name, layers):
    """Returns the `CostTable` of a name: counted, of a hardware (made when its file is missing), or a .npy file."""
    from lib.simulator.counting import COUNTED
    name = ALIASES.get(name, name)
    if name == 'model_size':
        return layers.sizes
    if name in COUNTED:
        return COUNTED[name](layers.inventory)
    return with_reference(_lookup_table(args, name, layers), args)


def price_floats(table, floats, make=None):
    """Returns a table of a machine with the cost of the layers that stay float; says so where it cannot be known.

    `make` returns a table of these layers, for a machine that was measured; any other prices them by itself.
    """
    from lib.simulator.rest import float_cost, with_rest
    if not floats:
        return table
    cost = float_cost(floats, table)
    if cost is None and make:
        cost = make().reference
    if cost is None:
        logger.warning('%s has no price for what stays float (%s ...): its ratios are about the layers of the strategy '
                       'alone', table.name, floats[0].name)
        return table
    return with_rest(table, floats, cost)


def _lookup_table(args, name, layers):
    from dataclasses import replace
    from functools import partial

    from lib.runtime.distributed import on_main
    from lib.simulator.table_cache import find_or_make
    from lib.simulator.table_files import load_table
    floats = layers.inventory.floats
    if name.endswith('.npy'):
        return price_floats(load_table(name, layers.records), floats)
    hardware, metric = find_hardware_metric(name)
    if args.cost_batch:
        hardware = replace(hardware, batch=args.cost_batch)
    stem = table_stem(args, hardware, metric, all(record.calls for record in layers.records))
    about = {'network': args.arch, 'dataset': args.dataset, 'resolution': list(layers.shape)}
    table, rest = (partial(on_main, find_or_make, stem + suffix, records, hardware, metric, table_folders(args), about)
                   for suffix, records in (('', layers.records), ('_float', floats)))
    return price_floats(table(), floats, rest)


def table_folders(args):
    """Returns the folders of tables, the best one first: of the repository, of the user, of the run."""
    from lib.simulator.table_cache import user_folder
    run_folder = getattr(args, 'checkpoint', None) or getattr(args, 'output', None)
    return [TABLES, *filter(None, [user_folder(), run_folder and Path(run_folder) / 'lookup_tables'])]


def find_hardware_metric(name):
    """Returns (hardware, metric) of `cloud_latency`, `bitfusion_energy`, `chip.yaml` or `chip.yaml:energy`.

    Raises:
        ValueError: no such cost; the message lists them.
    """
    from lib.simulator.backends import PRESETS, find_hardware
    from lib.simulator.counting import COUNTED
    from lib.simulator.hardware import METRICS, check_metric
    path, _, metric = name.partition(':')
    if Path(path).suffix in ('.yaml', '.yml'):
        hardware, metric = find_hardware(path), metric or METRICS[0]
    else:
        preset, _, metric = name.rpartition('_')
        if preset not in PRESETS or metric not in METRICS:
            known = [f'{p}_{m}' for p, hardware in sorted(PRESETS.items()) for m in hardware.metrics]
            raise ValueError(f'unknown cost {name}: expected one of {", ".join([*COUNTED, *known])}, a FILE.yaml that '
                             'describes hardware (FILE.yaml:energy), or the path of a .npy')
        hardware = PRESETS[preset]
    check_metric(hardware, metric)
    return hardware, metric


def with_reference(cost, args):
    """Returns the linear cost with the column of `--float_bit` as what a ratio of 1 stands for, 8/8 bits if None."""
    if args.float_bit is None or not is_linear(args):
        return cost
    if not 1 <= args.float_bit <= 8:
        raise ValueError(f'--float_bit {args.float_bit}: in the linear flow it is a column of the cost table, 1 to 8')
    column = cost.table[:, args.float_bit - 1, args.float_bit - 1].tolist()
    return cost.derive(reference=cost.total(column))


def table_stem(args, hardware, metric='latency', all_called=True):
    """Returns the conventional name of a table; another width, image size or number of classes is part of it."""
    from lib.record.files import file_stem
    parts = [f'q{network_name(args)}', *filter(None, [args.dataset]), f'batch{hardware.batch}']
    parts += ['large'] * (args.mode == 'large')
    parts += [f'width{args.width_mult:g}'] * (args.width_mult != 1)
    parts += [f'image{args.image_size}'] * bool(args.image_size)
    parts += [f'classes{args.num_classes}'] * bool(args.num_classes)
    parts += [hardware.name] * (hardware.name != 'cloud')
    parts += ['uncalled'] * (not all_called)  # with the layers that only K-means can quantize
    return file_stem(*parts, metric, 'table')
