"""What a quantization of a network covers, in words: its layers, and the weights that stay float."""

from torch import nn

from lib.quantize.layers import obstacle
from lib.utils.conversion import all_layers, layers_of, some

LARGE = 0.01  # share of the weights from which on a parameter outside of all layers is named
WORTH_SAYING = 0.001  # share of float weights that is mentioned


def describe_layers(model: nn.Module, records: list, linear: bool) -> list[str]:
    """Say which layers and weights one of the two flows quantizes, and name the layers that are out of the ordinary.

    Weights are all parameters of two and more dimensions; biases and normalization are left out. Layers that are called
    several times, with inputs of the same size, are named with the number of calls of one image.

    Args:
        model: float or converted network.
        records: its `LayerRecord`s, from `profile_layers`.
        linear: whether the linear flow is meant; else the K-means flow.

    Returns:
        Lines without end of line; a single one for a network without anything special.
    """
    layers, flow = all_layers(model), 'linear' if linear else 'K-means'
    chosen = layers_of(model, records, linear)
    lines = [f'{len(chosen)} layers with {sum(layer.weight.numel() for layer in chosen.values()):,} weights are '
             f'quantized in the {flow} flow']
    if several := [f'{record.name} ({record.calls})' for record in records if record.calls > 1]:
        lines.append(f'called several times: {some(several)}')
    uncalled = [record.name for record in records if not record.calls]
    if uncalled:
        lines.append(f'never called: {some(uncalled)}; ' + ('they stay float' if linear else
                     'their weights are clustered all the same'))
    left = {}
    for name, layer in layers.items():
        if name not in chosen and not (linear and name in uncalled):
            left.setdefault(_reason(layer, layers, linear), []).append(name)
    lines += [f'{reason}: {some(names)}' for reason, names in left.items()]
    return lines + _float_weights(model, layers, chosen, flow)


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


def _float_weights(model, layers, chosen, flow) -> list[str]:
    """Return the lines about large weights outside of all layers, and about the share of weights that stays float."""
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() >= 2}
    total = sum(weight.numel() for weight in weights.values())
    quantized = {id(parameter) for layer in chosen.values() for parameter in layer.parameters()}
    in_layers = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
    lines, kept = [], {name: weight for name, weight in weights.items() if id(weight) not in quantized}
    large = [f'{name} of {_owner(model, name)} ({"x".join(map(str, weight.shape))})' for name, weight in kept.items()
             if id(weight) not in in_layers and weight.numel() >= LARGE * total]
    if large:
        lines.append(f'stays float, for it belongs to no Conv2d and no Linear: {some(large)}')
    number = sum(weight.numel() for weight in kept.values())
    if number >= WORTH_SAYING * total > 0:
        lines.append(f'{number:,} of {total:,} weights ({number / total:.1%}) stay float in the {flow} flow')
    return lines


def _owner(model, name) -> str:
    return type(model.get_submodule(name.rpartition('.')[0])).__name__
