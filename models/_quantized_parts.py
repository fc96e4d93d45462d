"""Which layers and which activations of a network the progressive search quantizes."""

from typing import NamedTuple

from torch import nn

from models._blocks import PreActivation


class QuantizedPart(NamedTuple):
    """A layer whose weights are quantized, and the activation whose output is.

    `layer` is the name of a convolution or linear layer, `activation` that of an `nn.ReLU`: the one before the layer,
    or, where `activation_first` is False, the one after it. In the order of a bit list the pair stands as
    (activation, weights) or (weights, activation).
    """

    layer: str
    activation: str
    activation_first: bool = True


def pre_activation_parts(model: nn.Module) -> list[QuantizedPart]:
    """The convolutions of all `PreActivation`s, in module order, each with the ReLU of its own."""
    names = [name for name, module in model.named_modules() if isinstance(module, PreActivation)]
    return [QuantizedPart(f'{name}.conv', f'{name}.relu') for name in names]
