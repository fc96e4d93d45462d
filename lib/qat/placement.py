"""Quantization-aware training: DoReFa, PACT and LSQ quantizers in a network, each where it belongs."""

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.network.conversion import activation_quantizers, convert_to_quantized, quantized_layers
from lib.network.coverage import active_layers, count_weights, float_weights
from lib.network.hooks import in_mode, replace_module
from lib.network.not_finite import locating
from lib.network.other_state import kept_state
from lib.network.records import profile_layers
from lib.qat.bit_lists import check_bit_lists, check_bits, is_quantized
from lib.quantize import (
    DoReFaActivationQuantizer,
    DoReFaWeightQuantizer,
    LinearActivationQuantizer,
    LinearWeightQuantizer,
    LSQQuantizer,
    PACTActivationQuantizer,
    Quantizer,
)
from lib.quantize.grids import Grids
from lib.quantize.layers import quantized_type
from lib.quantize.reading import Product
from lib.simulator.layer import ends as ends_of
from lib.utils.quantize_utils import Quantization, synchronise_signs

logger = logging.getLogger(__name__)

WEIGHT_QUANTIZERS = {
    'dorefa': DoReFaWeightQuantizer,
    'dorefa_symmetric': partial(DoReFaWeightQuantizer, symmetric=True),
    'lsq': partial(LSQQuantizer, signed=True),
    'linear': LinearWeightQuantizer,
}
ACTIVATION_QUANTIZERS = ('dorefa', 'pact', 'mpact', 'fixed_pact', 'lsq', 'linear')
BLOCKS = 'blocks.'  # the prefix of the modules that are no ends of the network


@dataclass(frozen=True)
class Quantizers:
    """Which quantizers a network gets.

    Attributes:
        weights: a name of `WEIGHT_QUANTIZERS`.
        activations: a name of `ACTIVATION_QUANTIZERS`. `mpact` is signed everywhere, `pact`, `fixed_pact` and `dorefa`
            are unsigned; the image, or an input that is found to be signed, gets a signed clip instead.
        alpha, end_alpha: the clips to start with, inside the blocks and at the ends of the network; those that
            `fixed_pact` keeps.
        gradient: of a learned clip inside its range, 'paper' (0) or 'ste'.
        rescale: `dorefa`: expand activations again by what they were scaled with.
        branch_out: quantize shortcuts that hold a convolution on their own before the sum.
        activation_grid, weight_scales: as `Grids` has them; others than the usual ones with 'lsq' and 'linear' alone.
        lsq_init: where LSQ's steps begin, 'formula' or 'least_squares'.

    Raises:
        ValueError: a name is unknown, or a quantizer has no such grid.
    """

    weights: str = 'dorefa_symmetric'
    activations: str = 'mpact'
    alpha: float = 10.0
    end_alpha: float = 6.0
    gradient: str = 'paper'
    rescale: bool = True
    branch_out: bool = True
    activation_grid: str = 'symmetric'
    weight_scales: str = 'tensor'
    lsq_init: str = 'formula'

    def __post_init__(self):
        if self.lsq_init != 'formula' and 'lsq' not in (self.weights, self.activations):
            raise ValueError(f'lsq_init is {self.lsq_init!r}: neither weights nor activations have LSQ quantizers; '
                             'take lsq, or leave it out')
        for what, known in (('weights', WEIGHT_QUANTIZERS), ('activations', ACTIVATION_QUANTIZERS),
                            ('gradient', ('paper', 'ste'))):
            if getattr(self, what) not in known:
                raise ValueError(f'{what}: {getattr(self, what)!r} is not known; expected one of {", ".join(known)}')
        Grids(self.activation_grid, self.weight_scales)
        for form, usual, kind, what in (('activation_grid', 'symmetric', self.activations, 'activations'),
                                        ('weight_scales', 'tensor', self.weights, 'weights')):
            if getattr(self, form) != usual and kind not in ('lsq', 'linear'):
                raise ValueError(f'{form} is {getattr(self, form)!r}: a {kind} quantizer of {what} has none but '
                                 f'{usual!r}; take lsq or linear, or leave it out')

    @classmethod
    def from_dict(cls, values: dict) -> 'Quantizers':
        """Return the settings in a dict, such as a checkpoint's; what it lacks has its default."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})

    def to_dict(self) -> dict:
        """Return the settings as plain values."""
        return asdict(self)

    def weight(self, bits: int, channels: int) -> Quantizer:
        """Return a new quantizer of a weight with so many output channels."""
        options = {'channels': channels} if self.weight_scales == 'channel' else {}
        options |= {'init': self.lsq_init} if self.weights == 'lsq' else {}
        return WEIGHT_QUANTIZERS[self.weights](bits, **options)

    def activation(self, bits: int, *, signed: bool | None = False, end: bool = False) -> Quantizer:
        """Return a new activation quantizer for a tensor that is signed (None: not known yet), at an `end` or not."""
        alpha, affine = self.end_alpha if end else self.alpha, self.activation_grid == 'affine'
        if self.activations == 'lsq':
            return LSQQuantizer(bits, signed=signed, per='features', affine=affine, init=self.lsq_init)
        if self.activations == 'linear':
            return LinearActivationQuantizer(bits, signed=signed, initial_range=alpha, affine=affine)
        if self.activations == 'mpact' or signed:
            return PACTActivationQuantizer(bits, signed=True, alpha=alpha, gradient=self.gradient)
        if self.activations == 'dorefa':
            return DoReFaActivationQuantizer(bits, rescale=self.rescale)
        learned = self.activations == 'pact'
        return PACTActivationQuantizer(bits, alpha=alpha, trainable=learned, gradient=self.gradient)


def quantize_blocks(model: nn.Module, layer_wbit: list[int], layer_abit: list[int], quantizers: Quantizers,
                    network: str = 'the network') -> tuple[list[int], list[int]]:
    """Put quantizers into a network with bit lists, in place.

    Args:
        model: float network with `bit_entries()`.
        layer_wbit, layer_abit: a number of bits per entry.

    Returns:
        The complete lists.

    Raises:
        ValueError: the network has no entries, or a list does not fit it.
    """
    if not hasattr(model, 'bit_entries'):
        raise ValueError(f'{network} has no blocks that bit lists could belong to: give the bits of its layers by '
                         '--strategy, or take toynet, mobilenetv2_cifar or resnet20_projection')
    entries = model.bit_entries()
    layer_wbit, layer_abit = check_bit_lists(entries, layer_wbit, layer_abit, network)
    for entry, w_bit, a_bit in zip(entries, layer_wbit, layer_abit, strict=True):
        for name in entry.layers if w_bit < 32 else ():  # at 32 bits everywhere it stays the float network
            layer = model.get_submodule(name)
            quantized_type(layer).convert(layer, weight_quantizer=quantizers.weight(w_bit, len(layer.weight)),
                                          input_quantizer=Quantizer())
        for name in entry.activations if a_bit < 32 else ():
            if quantizers.branch_out or '.shortcut.' not in name:
                _place(model, name, a_bit, quantizers)
    return layer_wbit, layer_abit


def _place(model, name, bits, quantizers):
    # A learned step finds the sign itself; of all others only the image is known to be signed.
    signed = None if quantizers.activations in ('lsq', 'linear') else name == 'image'
    quantizer = quantizers.activation(bits, signed=signed, end=not name.startswith(BLOCKS))
    device = next(model.parameters()).device
    replace_module(model, [name], quantizer.to(device).train(model.training))


def quantize_layers(model: nn.Module, strategy: list, quantizers: Quantizers, images: Tensor) -> list[list[int]]:
    """Put quantizers into every layer of any network, in place: weights and inputs, as the searches here mean them.

    Args:
        strategy: weight bits per layer, whose inputs stay float, or pairs [w_bit, a_bit]; -1 is float.
        images: probe (N, C, H, W) that tells which inputs are signed.

    Returns:
        The strategy in pairs.

    Raises:
        ValueError: the strategy does not fit.
    """
    convert_to_quantized(model, images)
    layers = quantized_layers(model)
    records = {record.name: record for record in profile_layers(model, tuple(images.shape[1:]))}
    ends = sum(ends_of([records[name] for name in layers]), ())
    pairs = [list(entry) if isinstance(entry, (list, tuple)) else [entry, 32] for entry in strategy]
    if len(pairs) != len(layers):
        raise ValueError(f'the strategy has {len(pairs)} entries, the network has {len(layers)} layers that can be '
                         f'quantized ({next(iter(layers))} ...)')
    for i, ((name, layer), (w_bit, a_bit)) in enumerate(zip(layers.items(), pairs, strict=True)):
        for bits in (w_bit, a_bit):
            check_bits(32 if bits == -1 else bits, f'the strategy: entry {i} ({name})')
        weight = quantizers.activation(w_bit, signed=layer.weight_quantizer.signed) if isinstance(layer, Product) \
            else quantizers.weight(w_bit, len(layer.weight))
        layer.set_quantizers(weight, quantizers.activation(a_bit, signed=layer.input_quantizer.signed, end=i in ends))
    return pairs


class QATQuantization(Quantization):
    """Training of a network that `quantize_blocks` or `quantize_layers` prepared; the clips are trained with it.

    Its `kind` is 'qat', or 'float' where the strategy quantizes nothing.
    """

    def __init__(self, model: nn.Module, strategy: dict | list, settings: dict, *, clip_decay: float = 0.0002,
                 dampening: float = 0.0):
        """Take over a prepared network.

        Args:
            strategy: {'layer_wbit': [...], 'layer_abit': [...]} or a list of pairs.
            settings: what rebuilds the network with its quantizers, plain values; kept in checkpoints.
            clip_decay: L2 penalty: clip_decay * sum of alpha^2 over the learned clips is added to the loss, beside the
                optimizer's weight decay.
            dampening: factor of the summed squared distances of weights from their levels, against weights that
                oscillate between two of them (Nagel et al. 2022, equation 6). It rises as a cosine over the epochs.

        Raises:
            ValueError: dampening without LSQ quantizers of weights.
        """
        super().__init__(model, strategy)
        self.kind = 'qat' if is_quantized(strategy) else 'float'
        self.settings, self.clip_decay = settings, clip_decay
        self._dampened = [layer for layer in quantized_layers(model).values()
                          if isinstance(layer.weight_quantizer, LSQQuantizer) and layer.weight_quantizer.active
                          and not isinstance(layer, Product)]
        if dampening and not self._dampened:
            raise ValueError(f'dampening {dampening:g} needs learned steps of weights: take the weight quantizer lsq')
        self.dampening, self._share = dampening, 0.0
        self._clips = [quantizer.range for quantizer in activation_quantizers(model).values()
                       if isinstance(quantizer, PACTActivationQuantizer) and quantizer.trainable]

    def loss(self, logits: Tensor, labels: Tensor, task: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
             ) -> Tensor:
        loss = super().loss(logits, labels, task)
        if self.clip_decay and self._clips:
            loss = loss + self.clip_decay * sum(clip.square().sum() for clip in self._clips)
        if self.dampening and self._share:
            loss = loss + self.dampening * self._share * sum(
                layer.weight_quantizer.distance(layer.weight) for layer in self._dampened)
        return loss

    def before_epoch(self, epoch: int, epochs: int, optimizer: torch.optim.Optimizer) -> None:
        """Raise the share of the dampening from 0 in the first epoch to 1 in the last; a single epoch has all of it."""
        self._share = (1 - math.cos(math.pi * epoch / (epochs - 1))) / 2 if epochs > 1 else 1.0

    def synchronise(self) -> None:
        super().synchronise()
        synchronise_signs(activation_quantizers(self.model).values())

    def state(self) -> dict:
        return {**super().state(), 'qat': self.settings}


@torch.no_grad()
def find_steps(model: nn.Module, images: Tensor) -> None:
    """Let quantizers find steps and signs, which come from the first batch; change nothing else.

    Args:
        images: a training batch (N, C, H, W) on its device.
    """
    # In training mode activations are normalised by the batch, as they will be in training.
    with kept_state(model, leave=(Quantizer,)), in_mode(model, training=True), locating(model, images):
        model(images)


def weight_bits(model: nn.Module) -> tuple[int, int]:
    """Return (bits of all weights, the same at 32 bits); what stays float counts 32, a shared weight once."""
    layers = active_layers(model)
    counts, rest = count_weights(layers), sum(float_weights(model, layers).values())
    return sum(layer.w_bit * counts[name] for name, layer in layers.items()) + 32 * rest, \
        32 * (sum(counts.values()) + rest)
