"""Which layers of a network a flow quantizes, in words, and which are out of the ordinary."""

from torch import nn

from lib.network.conversion import all_layers, layers_of, listed
from lib.network.coverage import count_weights, float_weights
from lib.quantize.layers import obstacle

LARGE = 0.01  # share of the weights from which on a parameter outside of all layers is named


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
    large = [f'{name} of {_owner(model, name)} ({"x".join(map(str, model.get_parameter(name).shape))})'
             for name, count in sizes.items() if count >= LARGE * total and name not in layers
             and name.rpartition('.')[0].removesuffix('.parametrizations.weight') not in layers]
    return [f'stays float, for it belongs to no Conv2d and no Linear: {listed(large)}'] if large else []


def _owner(model, name) -> str:
    return type(model.get_submodule(name.rpartition('.')[0])).__name__
