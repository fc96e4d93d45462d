"""The quantizers of the progressive search (ProQHA) in a network: where they sit, their bits, and what these cost."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.network.conversion import convert_to_quantized, convertible_layers
from lib.network.coverage import count_weights
from lib.network.hooks import replace_module
from lib.network.records import profile_layers
from lib.qat.bit_lists import check_bit_lists
from lib.qat.placement import Quantizers, quantize_blocks, quantize_layers
from lib.quantize import PACTActivationQuantizer, QConv2d, QLinear, Quantizer
from lib.quantize.layers import quantized_type
from lib.simulator.counting import proqha_float_layers
from lib.simulator.layer import DEFINED, END_RULES, FLOWING

FLOAT_LAYER = [8, -1]  # entry of a strategy for a layer that stays float


class Part(NamedTuple):
    """A layer whose weights are quantized, and the module that is replaced by the quantizer of the activations.

    `activation` is the name of a ReLU, or None where the layer's own input is quantized. `activation_first` says which
    of the two comes first in a list of bits.
    """

    layer: str
    activation: str | None = None
    activation_first: bool = True


class _Entry(NamedTuple):
    name: str
    layers: tuple
    activations: tuple
    implied: None = None


class ClippedReLU(PACTActivationQuantizer):
    """PACT in place of a ReLU: at 32 bits it still clips to [0, alpha], and alpha still learns, as in the original."""

    def bits_changed(self) -> None:
        self.range.requires_grad_(self.trainable)

    def forward(self, x: Tensor) -> Tensor:
        if self.active:
            return super().forward(x)
        clip = self.clip()
        return torch.where(x >= clip, clip.to(x.dtype), x.relu())  # NaN stays NaN


def find_parts(model: nn.Module, shape: tuple[int, int, int], rule: int = FLOWING) -> list[Part]:
    """Return the parts of a network, in module order.

    They are what its `quantized_parts()` says. Of a network without it: every layer that can be quantized, but the
    first, the last, 1x1 convolutions beside a block, and a MobileNet's last 1x1 convolution; with their inputs.

    Args:
        model: float network, or one that was converted.
        rule: by which `ends` says who is first and last.

    Raises:
        ValueError: nothing is left to quantize.
    """
    if hasattr(model, 'quantized_parts'):
        return [Part(*part) for part in model.quantized_parts()]
    records = profile_layers(model, shape)
    left = proqha_float_layers(records, rule)
    parts = [Part(name) for name in convertible_layers(model, records) if name not in left]
    if not parts:
        raise ValueError(f'{type(model).__name__} has no layer to quantize: its {len(records)} convolutions and linear '
                         'layers are the first and the last one or stand beside a block, and these stay float')
    return parts


class PartQuantizers:
    """The quantizers of a network in the order of ProQHA's lists of bits: weights and activations, part by part.

    Attributes:
        labels: what each entry of a list of bits belongs to, `layer1.0.conv1.weight` or the activation's name.
        num_weights: number of weights per part.
    """

    def __init__(self, model: nn.Module, parts: Iterable[Part]):
        """Find the quantizers that `quantize_parts` put into the model."""
        self.parts, self._quantizers, self.labels, self._is_weight = list(parts), [], [], []
        counts = count_weights({part.layer: model.get_submodule(part.layer) for part in self.parts})
        self.num_weights = [counts[part.layer] for part in self.parts]
        for part in self.parts:
            layer = model.get_submodule(part.layer)
            activation = model.get_submodule(part.activation) if part.activation else layer.input_quantizer
            pair = [(False, activation, part.activation or f'{part.layer}.input'),
                    (True, layer.weight_quantizer, f'{part.layer}.weight')]
            for is_weight, quantizer, label in pair if part.activation_first else reversed(pair):
                self._is_weight.append(is_weight)
                self._quantizers.append(quantizer)
                self.labels.append(label)

    def __len__(self):
        return len(self._quantizers)

    @property
    def bits(self) -> list[int]:
        """Bits of every quantizer; may be set."""
        return [quantizer.bits for quantizer in self._quantizers]

    @bits.setter
    def bits(self, bits: list[int]) -> list[int]:
        for quantizer, value in zip(self._quantizers, bits, strict=True):
            if quantizer.bits != value:
                quantizer.bits = value

    def lists(self, bits: list[int]) -> dict[str, list[int]]:
        """Return a list of bits as {'layer_wbit': [...], 'layer_abit': [...]}, an entry per part each."""
        return {'layer_wbit': self._of(bits, True), 'layer_abit': self._of(bits, False)}

    def joined(self, layer_wbit: list, layer_abit: list) -> list:
        """Return the list of bits that `lists` takes apart, or of whatever else there is for each quantizer."""
        weights, activations = iter(layer_wbit), iter(layer_abit)
        return [next(weights if is_weight else activations) for is_weight in self._is_weight]

    def _of(self, bits, weights):
        return [value for value, is_weight in zip(bits, self._is_weight, strict=True) if is_weight == weights]

    def cost(self, bits: list[int], *, odd_positions: bool = False) -> float:
        """Return ProQHA's cost: bits of the weights of all parts over the same weights at 32 bits, in (0, 1].

        `odd_positions` is the original's rule, which takes every second entry for that of the weights: those of the
        activations, where they come after the layer.
        """
        weight_bits = list(bits)[1::2] if odd_positions else self._of(bits, True)
        total = sum(count * value for count, value in zip(self.num_weights, weight_bits, strict=True))
        return total / (32 * sum(self.num_weights))

    def strategy(self, bits: list[int], layer_names: Sequence[str]) -> list[list[int]]:
        """Return [weight bits, bits of the input] for each of these layers, as the linear flow means them.

        Layers that stay float get [8, -1]. Where activations are quantized behind the layers, the input of a layer is
        the activation of the part before it.
        """
        lists = self.lists(bits)
        inputs = [value if part.activation_first else before for part, value, before in
                  zip(self.parts, lists['layer_abit'], [-1, *lists['layer_abit']], strict=False)]
        entries = {part.layer: [w_bit, a_bit] for part, w_bit, a_bit in
                   zip(self.parts, lists['layer_wbit'], inputs, strict=True)}
        return [entries.get(name, list(FLOAT_LAYER)) for name in layer_names]


def quantize_parts(model: nn.Module, layer_wbit: list[int] | int, layer_abit: list[int] | int, quantizers: Quantizers,
                   images: Tensor, network: str = 'the network', rule: int = FLOWING) -> 'PartQuantizers':
    """Put quantizers into the parts of a float network, in place; all else stays float.

    Weights at 32 bits are left alone; a learned clip in place of a ReLU still clips at 32 bits.

    Args:
        layer_wbit, layer_abit: bits per part, or an int for all parts.
        images: probe (N, C, H, W) on the model's device.
        rule: see `find_parts`.

    Returns:
        `PartQuantizers`.

    Raises:
        ValueError: the network has no parts, the lists do not fit it, or a signed quantizer would replace a ReLU.
    """
    parts = find_parts(model, tuple(images.shape[1:]), rule)
    entries = [_Entry(part.layer, (part.layer,), (part.activation or f'{part.layer} input',)) for part in parts]
    lists = [[bits] * len(parts) if isinstance(bits, int) else bits for bits in (layer_wbit, layer_abit)]
    lists = check_bit_lists(entries, *lists, network)
    if any(part.activation is None for part in parts):
        _convert(model, {part.layer for part in parts}, images)
    for part, w_bit, a_bit in zip(parts, *lists, strict=True):
        layer = model.get_submodule(part.layer)
        if part.activation is None:
            layer.set_quantizers(quantizers.weight(w_bit, len(layer.weight)),
                                 quantizers.activation(a_bit, signed=layer.input_quantizer.signed))
        else:
            quantized_type(layer).convert(layer, weight_quantizer=quantizers.weight(w_bit, len(layer.weight)),
                                          input_quantizer=Quantizer())
            replace_module(model, [part.activation], in_place_of_relu(quantizers, a_bit))
    model.to(images.device).train(model.training)
    return PartQuantizers(model, parts)


def quantize_as(model, settings, strategy, images, network='the network'):
    """Put the quantizers of a run into a float network, in place.

    Args:
        model: the network.
        settings: {'quantizers': of `Quantizers`, 'parts': where ProQHA has them, 'ends': 'flow', or what `END_RULES`
            calls the rule of a run from before}.
        strategy: {'layer_wbit': ..., 'layer_abit': ...} of its parts, or a list of pairs of its layers.
        images: (N, C, H, W), two images of noise.
        network: its name, for messages.

    Returns:
        The complete strategy.
    """
    quantizers = Quantizers.from_dict(settings['quantizers'])
    if settings.get('parts'):
        parts = quantize_parts(model, **strategy, quantizers=quantizers, images=images, network=network,
                               rule=END_RULES.get(settings.get('ends'), DEFINED))
        return parts.lists(parts.bits)
    if isinstance(strategy, dict):
        bits = quantize_blocks(model, strategy['layer_wbit'], strategy['layer_abit'], quantizers, network)
        return dict(zip(('layer_wbit', 'layer_abit'), bits, strict=True))
    return quantize_layers(model, strategy, quantizers, images)


def _convert(model, chosen, images):
    """Convert a network; the layers that are not chosen get quantizers that do nothing and hold nothing."""
    convert_to_quantized(model, images, quiet=True)
    for name, layer in model.named_modules():
        if isinstance(layer, (QConv2d, QLinear)) and name not in chosen:
            layer.weight_quantizer, layer.input_quantizer = Quantizer(), Quantizer()


def in_place_of_relu(quantizers: Quantizers, bits: int) -> nn.Module:
    """Return the quantizer of activations that also is the activation function."""
    if quantizers.activations == 'mpact':
        raise ValueError('mpact keeps negative values, so it cannot take the place of a ReLU: give --act_quantizer '
                         'pact, fixed_pact, dorefa, lsq or linear')
    if quantizers.activations == 'pact':
        return ClippedReLU(bits, alpha=quantizers.alpha, gradient=quantizers.gradient)
    if bits >= 32:
        return torch.nn.ReLU()
    return quantizers.activation(bits, signed=False)
