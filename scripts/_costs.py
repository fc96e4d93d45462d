"""From the names of costs and budgets to their tables, and what a network is in numbers."""

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _cli import ROOT
from _networks import Network, probe
from _option_types import ratio as option_ratio

from lib.network.coverage import active_inventory, as_before, coverage_lines, describe_layers, take_inventory
from lib.network.reach import reach_weights
from lib.network.records import profile_network
from lib.record.files import file_stem
from lib.record.strategy import uniform_strategy
from lib.runtime.distributed import is_main, on_main
from lib.simulator.backends import find_machine
from lib.simulator.budget import Constraint
from lib.simulator.counting import COUNTED, size_of
from lib.simulator.inventory import PRICING
from lib.simulator.rest import price_floats
from lib.simulator.table_cache import find_or_make, user_folder
from lib.simulator.table_files import load_table
from lib.utils.data_utils import dataset_spec, num_classes

logger = logging.getLogger('haq')

ALIASES = {'size': 'model_size', 'memory': 'activation_memory', 'proqha': 'proqha_ratio'}
TABLES = ROOT / 'lib' / 'simulator' / 'lookup_tables'


@dataclass(frozen=True)
class Pricing:
    """How strategies are priced; `cost`, `cost_batch`, `float_bit`, `dataset`, `image_size` are options.

    Attributes:
        network: the `Network`.
        linear: strategies are of the linear flow.
        folder: of the run, which keeps tables where no other folder can be written; or None.
    """

    network: Network
    linear: bool = False
    cost: str | None = None
    cost_batch: int | None = None
    float_bit: int | None = None
    dataset: str | None = None
    image_size: int | str | None = None
    folder: str | Path | None = None

    @property
    def cost_name(self):
        """Name of the cost, by default that of the flow."""
        return self.cost or ('cloud_latency' if self.linear else 'model_size')

    @property
    def folders(self):
        """Folders of tables, the best one first: of the repository, of the user, of the run."""
        return [TABLES, *filter(None, [user_folder(), self.folder and Path(self.folder) / 'lookup_tables'])]

    def stem(self, hardware, metric='latency', all_called=True):
        """Return the conventional name of a table; another width, image size or number of classes is part of it."""
        network = self.network
        parts = [f'q{network.float_name}', *filter(None, [self.dataset]), f'batch{hardware.batch}']
        parts += ['large'] * (network.mode == 'large')
        parts += [f'width{network.width_mult:g}'] * (network.width_mult != 1)
        parts += [f'image{self.image_size}'] * bool(self.image_size)
        parts += [f'classes{network.num_classes}'] * bool(network.num_classes)
        parts += [hardware.name] * (hardware.name != 'cloud')
        parts += ['uncalled'] * (not all_called)  # with the layers that only K-means can quantize
        return file_stem(*parts, metric, 'table')


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


def find_layers(pricing, model, shape, *, is_pruned=False, rules=PRICING):
    """Return the `Layers` of the network that a strategy of this flow has entries for, and say which they are.

    `rules`: `PRICING`, or what it was when the search was begun.
    """
    linear, profile = pricing.linear, profile_network(model, shape)
    inventory = take_inventory(model, profile, linear, is_pruned=is_pruned)
    for line in describe_layers(model, profile.layers, linear):
        logger.info('%s', line)
    say_coverage(inventory)
    coverage = inventory.coverage.to_dict()
    if rules == 1:
        logger.info('this search was begun when what stays float had no price: it goes on without')
    if rules < PRICING:
        inventory = as_before(inventory, profile, rules)
    float_bit = 32 if linear or pricing.float_bit is None else pricing.float_bit
    return Layers(inventory, size_of(inventory, float_bit), shape, coverage)


def say_coverage(inventory, what=None):
    """Say what the strategy covers; what stays float is a warning where it is much."""
    share, *low = coverage_lines(inventory, what)
    logger.info('%s', share)
    for line in low if is_main() else ():
        logger.warning('%s', line)


def coverage_of(model, shape, kind='qat'):
    """Say what the active quantizers of a network cover; return it as an entry of results.json, none if `float`."""
    if kind == 'float':
        return {}
    inventory = active_inventory(model, shape)
    say_coverage(inventory, 'quantization')
    return {'coverage': inventory.coverage.to_dict()}


def find_constraints(pricing, layers, ratio=None, constraints=(), option='--preserve_ratio'):
    """Return the `Constraint`s of a search: a ratio of the cost, then one of each `NAME=RATIO`.

    Args:
        pricing: the `Pricing`.
        layers: the `Layers` of the strategy.
        ratio: of the cost of `pricing`, a number or `uniform:K`; None: there is none.
        constraints: texts of --constraint.
        option: what the ratio is called on the command line, for messages.

    Raises:
        ValueError: an unknown cost, no ratio, or two budgets for one cost.
    """
    wanted = [(name, value, f'--constraint {name}') for name, value in map(parse_constraint, constraints or ())]
    if ratio is not None:
        wanted.insert(0, (pricing.cost_name, ratio, option))
    costs = [find_cost(pricing, full_name(name, pricing.cost_name), layers) for name, _, _ in wanted]
    found = [constraint_on(cost, value, pricing.linear, option, layers.inventory.ends)
             for cost, (_, value, option) in zip(costs, wanted, strict=True)]
    names = [constraint.cost.name for constraint in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f'{", ".join(twice)} has two budgets: give each cost one --constraint, or {option} for '
                         'that of --cost')
    return found


def parse_constraint(text):
    """Return (name, ratio) of `NAME=RATIO`."""
    name, _, value = text.rpartition('=')
    try:
        if name:
            return name, option_ratio(value)
    except ValueError:
        pass
    raise ValueError(f'--constraint {text}: expected NAME=RATIO, for example size=0.3 or bitfusion_energy=uniform:4')


def constraint_on(cost, ratio, linear, option, ends=((0,), (-1,))):
    """Return the `Constraint` of a ratio, or exactly what K bits in every layer cost; `ends`: first and last layers."""
    if isinstance(ratio, float):
        return Constraint.of_ratio(cost, ratio, option)
    strategy = uniform_strategy(cost.num_layers, int(ratio.removeprefix('uniform:')), linear=linear, ends=ends)
    return Constraint(cost, cost.cost(strategy), option)


def full_name(name, cost):
    """Return the name of a cost: `latency` and `energy` alone are those of the hardware of --cost."""
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


def find_cost(pricing, name, layers):
    """Return the `CostTable` of a name: counted, of a hardware (made when its file is missing), or a .npy file."""
    name = ALIASES.get(name, name)
    if name == 'model_size':
        return layers.sizes
    if name in COUNTED:
        return COUNTED[name](layers.inventory)
    return with_reference(_lookup_table(pricing, name, layers), pricing)


def _lookup_table(pricing, name, layers):
    floats = layers.inventory.floats
    if name.endswith('.npy'):
        return price_floats(load_table(name, layers.records), floats)
    hardware, metric = find_machine(name)
    if pricing.cost_batch:
        hardware = replace(hardware, batch=pricing.cost_batch)
    stem = pricing.stem(hardware, metric, all(record.calls for record in layers.records))
    about = {'network': pricing.network.arch, 'dataset': pricing.dataset, 'resolution': list(layers.shape)}
    table, rest = (partial(on_main, find_or_make, stem + suffix, records, hardware, metric, pricing.folders, about)
                   for suffix, records in (('', layers.records), ('_float', floats)))
    return price_floats(table(), floats, rest)


def with_reference(cost, pricing):
    """Return the linear cost with the column of `float_bit` as what a ratio of 1 stands for, 8/8 bits if None."""
    if pricing.float_bit is None or not pricing.linear:
        return cost
    bit = pricing.float_bit
    if not 1 <= bit <= 8:
        raise ValueError(f'--float_bit {bit}: in the linear flow it is a column of the cost table, 1 to 8')
    column = cost.table[:, bit - 1, bit - 1].tolist()
    return cost.derive(reference=cost.total(column))


# ---- networks in numbers, without weights or data

class Input(NamedTuple):
    """What a network without data is described for.

    Attributes:
        shape: (C, H, W) of an image.
        classes: of the network.
        image_size: what makes the images others than the usual of the data set, for names; None: they are the usual.
    """

    shape: tuple
    classes: int
    image_size: int | str | None = None


def input_of(network, dataset=None, input_size=None):
    """Return the `Input` of a network: that of a data set, by default ImageNet's, or of (C, H, W) `input_size`."""
    if dataset == 'folder' and not network.num_classes:
        raise ValueError('--dataset folder says nothing about the number of classes here: give --num_classes')
    side = None if input_size else network.resolution(dataset_spec(dataset or 'imagenet').resolution)
    channels, height, width = shape = input_size or (3, side, side)
    unusual = height if channels == 3 and height == width else 'x'.join(map(str, shape))
    classes = network.num_classes or num_classes(dataset or 'imagenet')
    return Input(shape, classes, unusual if input_size or dataset is None else None)


class Described(NamedTuple):
    """A network in numbers: its parameters, its MADDS, and its `Inventory` under a strategy of either flow.

    `uncalled` are the names of layers whose forward is never called.
    """

    parameters: int
    madds: int
    uncalled: list
    kmeans: Any
    linear: Any


def describe_network(network, shape, classes):
    """Return the network, with random weights, as `Described`.

    Raises:
        ValueError: the network is unknown, does not take this input, or has no convolution or linear layer.
    """
    model = network.build(classes)
    if not network.model_file:
        model = model.to('meta')  # shapes are all that counts: nothing is computed
    reach_weights(model, probe(model, shape), network.reach)
    profile = profile_network(model, shape)
    if not any(record.calls for record in profile.layers):
        raise ValueError(f'{network.arch} has no convolution or linear layer that its forward pass calls')
    uncalled = [record.name for record in profile.layers if not record.calls]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Described(parameters, profile.macs + profile.extras, uncalled,
                     *(take_inventory(model, profile, linear) for linear in (False, True)))
