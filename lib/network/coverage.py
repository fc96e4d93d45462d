"""Which part of a network a strategy covers: the inventory of a model, and its description in words."""

from collections.abc import Container
from dataclasses import replace

import torch
from torch import nn

from lib.network.conversion import all_layers, layers_of, listed, quantized_layers
from lib.network.records import Profile, profile_network
from lib.quantize.layers import obstacle
from lib.simulator.inventory import LOW, Inventory
from lib.simulator.layer import LayerRecord, merge

LARGE = 0.01  # share of the weights from which on a parameter outside of all layers is named
QUANTIZERS = ('weight_quantizer.', 'input_quantizer.')  # what a quantized layer has beside its weight and bias
OF_WEIGHT = ('weight', 'parametrizations.weight.', *QUANTIZERS)  # replaced by codes and scales


def take_inventory(model: nn.Module, profile: Profile, linear: bool, *, is_pruned: bool = False,
                   chosen: dict | None = None) -> Inventory:
    """Return the `Inventory` of a network under the strategies of one flow.

    In the K-means flow an entry is about a weight: whatever multiplies with it is priced there, be it another layer
    that shares the Parameter or code that reads it. In the linear flow an entry is about a layer.

    Args:
        profile: its `profile_network`.
        is_pruned: count the weights that are not zero.
        chosen: {name: layer} under the strategy, where these are not all that the flow can quantize.
    """
    chosen = layers_of(model, profile.layers, linear) if chosen is None else chosen
    records = {record.name: record for record in profile.layers}
    floats = {name: [record] for name, record in records.items() if name not in chosen and record.calls}
    others = list(profile.others)
    if not linear:
        records, floats, others = _by_weight(model, chosen, records, floats, others)
    layers = [records[name] for name in chosen]
    floats = [record for group in floats.values() for record in group] + [other.record for other in others]
    sizes = float_weights(model, chosen, profile.unread)
    counts = list(count_weights(chosen).values())
    kept = [int((layer.weight != 0).sum()) for layer in chosen.values()] if is_pruned else None
    return Inventory(layers, floats, counts, kept, sum(sizes.values()), _float_names(sizes, floats),
                     _file_rest(model, chosen), linear, scales=list(map(_count_scales, chosen.values())))


def _count_scales(layer) -> int:
    """Return how many numbers the quantizers of a layer have beside their codes, see `Inventory`."""
    quantizers = [getattr(layer, name, None) for name in ('weight_quantizer', 'input_quantizer')]
    return sum((getattr(each, 'channels', None) or 1) + bool(getattr(each, 'affine', False)) for each in quantizers)


def inventory_of(model: nn.Module, shape: tuple[int, int, int], linear: bool, **options) -> Inventory:
    """Return `take_inventory` after a forward pass on one image of this shape."""
    return take_inventory(model, profile_network(model, shape), linear, **options)


def as_before(inventory: Inventory, profile: Profile, rules: int = 1) -> Inventory:
    """Return an inventory as it was counted under former rules (`PRICING`), for searches that were begun then.

    Under 2 the order of the calls said who is first and last. Under 1 what stays float costs nothing, a shared weight
    is priced in the call of its first layer alone, and the first and the last layer are those of the definition.
    """
    if rules > 1:
        return replace(inventory, pricing=rules)
    records = {record.name: record for record in profile.layers}
    return replace(inventory, layers=[records[name] for name in inventory.names], floats=(), float_weights=0,
                   float_names=(), pricing=1)


def coverage_lines(inventory: Inventory, what: str | None = None) -> list[str]:
    """Say what is under the strategy and how the rest is priced; a second line names the rest where it is much.

    `what` the shares are those of: a strategy of the flow, if nothing else is said.
    """
    what = what or f'a strategy of the {"linear" if inventory.linear else "K-means"} flow'
    lines = [f'{what} covers {inventory.coverage}']
    if inventory.float_weights or inventory.floats:
        lines[0] += '; what stays float is priced as float in sizes, and at 8/8 bits, the widest there, in latency, ' \
                    'energy and operations'
    if inventory.coverage.low:
        lines.append(f'{what} covers less than {LOW:.0%}; these stay float: {listed(inventory.float_names)}')
    return lines


def active_inventory(model: nn.Module, shape: tuple[int, int, int]) -> Inventory:
    """Return the `Inventory` of a network whose own quantizers say what is quantized: the layers with active ones."""
    return inventory_of(model, shape, True, chosen=active_layers(model))


def active_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of the layers whose weights are quantized now."""
    return {name: layer for name, layer in quantized_layers(model).items() if layer.weight_quantizer.active}


def float_weights(model: nn.Module, chosen: dict, unread: Container[str] = ()) -> dict[str, int]:
    """Return {name of layer or Parameter: number of weights} of the weights that no layer of `chosen` has.

    A weight is what a convolution or linear layer multiplies with, and any other Parameter that extends in two
    dimensions at least. Vectors, such as biases and normalization, are none. What is `unread`, such as a head for
    training alone, does not count.
    """
    quantized = {id(parameter) for layer in chosen.values() for parameter in layer.parameters()}
    owners = {id(parameter): name for name, layer in all_layers(model).items()
              for key, parameter in layer._parameters.items() if key == 'weight' and parameter is not None}
    found = {}
    for name, parameter in model.named_parameters():
        matrix = sum(size > 1 for size in parameter.shape) > 1
        if id(parameter) not in quantized and name not in unread and (matrix or id(parameter) in owners):
            found[owners.get(id(parameter), name)] = parameter.numel()
    return found


def _by_weight(model, chosen, records, floats, others):
    """Return the same three with everything that multiplies with the weight of a chosen layer in its record."""
    users = {id(layer._parameters['weight']): name for name, layer in chosen.items()}
    groups = {name: [records[name]] for name in chosen}
    for name, layer in all_layers(model).items():
        owner = users.get(id(layer._parameters.get('weight')))
        if owner not in (None, name) and name in floats:
            groups[owner] += floats.pop(name)
    left = []
    for other in others:
        owner = users.get(id(other.weight))
        if owner and _whole(other.record) == records[owner].num_weights:
            groups[owner].append(other.record)
        else:
            left.append(other)
    return {name: merge(name, group) for name, group in groups.items()}, floats, left


def _whole(record: LayerRecord) -> int:
    """Return the weights that one position of a product multiplies with."""
    return record.in_channels // record.groups * record.out_channels * record.kernel[0] * record.kernel[1]


def count_weights(chosen: dict) -> dict[str, int]:
    """Return {name: stored weights} of layers; those of a Parameter that several share are divided among them."""
    sharing = {}
    for name, layer in chosen.items():
        sharing.setdefault(id(layer._parameters.get('weight', layer)), []).append(name)
    parts = {}
    for names in sharing.values():
        count = chosen[names[0]].weight.numel()
        parts |= {name: count // len(names) + (i < count % len(names)) for i, name in enumerate(names)}
    return {name: parts[name] for name in chosen}


def _float_names(sizes, floats) -> list[str]:
    """Return the names of what stays float, by the larger of its shares of the float weights and operations."""
    macs = {}
    for record in floats:
        name = record.name if record.name in sizes else record.name.removesuffix('.weight')
        macs[name] = macs.get(name, 0) + record.macs
    totals = sum(sizes.values()) or 1, sum(macs.values()) or 1
    shares = {name: max(sizes.get(name, 0) / totals[0], macs.get(name, 0) / totals[1]) for name in sizes | macs}
    return sorted(shares, key=shares.get, reverse=True)


def _file_rest(model, chosen) -> int:
    """Return the bytes of the state dict but for the weights of `chosen` layers and all quantizers."""
    prefixes = tuple(f'{name}.{part}' if name else part for name in chosen for part in OF_WEIGHT)
    covered = {id(layer._parameters.get('weight')) for layer in chosen.values()}
    total, seen = 0, set()
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, torch.Tensor) or id(value) in covered | seen or key.startswith(prefixes):
            continue
        if key.endswith('num_batches_tracked') or any(f'.{part}' in f'.{key}' for part in QUANTIZERS):
            continue
        seen.add(id(value))
        total += value.numel() * (value.element_size() if not value.is_floating_point() else 4)
    return total


# ---- the layers in words

def describe_layers(model: nn.Module, records: list, linear: bool) -> list[str]:
    """Say which layers and weights one of the two flows quantizes, and name the layers that are out of the ordinary.

    A weight that several layers share counts once. Layers that are called several times, with inputs of the same size,
    are named with the number of calls of one image. How much it is in all, `coverage_lines` says.

    Returns:
        Lines without end of line; a single one for a network without anything special.
    """
    layers, flow = all_layers(model), 'linear' if linear else 'K-means'
    chosen = layers_of(model, records, linear)
    count = sum(count_weights(chosen).values())
    lines = [f'{len(chosen)} layers with {count:,} weights are quantized in the {flow} flow']
    if several := [f'{record.name} ({record.calls})' for record in records if record.calls > 1]:
        lines.append(f'called several times: {listed(several)}')
    uncalled = [record.name for record in records if not record.calls]
    if uncalled:
        lines.append(f'never called: {listed(uncalled)}; ' + ('they stay float' if linear else
                     'their weights are clustered all the same'))
    left = {}
    for name, layer in layers.items():
        if name not in chosen and not (linear and name in uncalled):
            left.setdefault(_reason(layer, layers, linear), []).append(name)
    lines += [f'{reason}: {listed(names)}' for reason, names in left.items()]
    return lines + _large_parameters(model, layers, chosen)


def _reason(layer, layers, linear) -> str:
    """Return why a layer is not quantized by itself, as the beginning of a line."""
    kind = type(layer).__name__
    if linear:
        return f'stays float, for {kind} {obstacle(layer)}'
    weight = layer._parameters.get('weight')
    if weight is None:
        return f'stays float, for {kind} computes its weight'
    first = next(name for name, other in layers.items() if other._parameters.get('weight') is weight)
    return f'shares the weight of {first}'


def _large_parameters(model, layers, chosen) -> list[str]:
    """Return the line about large weights outside of all layers, if there are any."""
    sizes = float_weights(model, chosen)
    total = sum(sizes.values()) + sum(count_weights(chosen).values())
    owners = {name: type(model.get_submodule(name.rpartition('.')[0])).__name__ for name in sizes if name not in layers}
    large = [f'{name} of {owners[name]} ({"x".join(map(str, model.get_parameter(name).shape))})'
             for name, count in sizes.items() if count >= LARGE * total and name not in layers
             and name.rpartition('.')[0].removesuffix('.parametrizations.weight') not in layers]
    return [f'stays float, for it belongs to no Conv2d and no Linear: {listed(large)}'] if large else []
