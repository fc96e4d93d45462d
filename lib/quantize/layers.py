"""Convolution and linear layers that quantize their input and their weight; the quantizers are interchangeable."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.quantize.linear import LinearActivationQuantizer, LinearWeightQuantizer
from lib.quantize.quantizer import Quantizer
from lib.quantize.reading import READS, Product

# Keys of the original HAQ's checkpoints, and the quantizer that keeps the same number under the name `range`.
HISTORIC_KEYS = {'weight_range': 'weight_quantizer', 'activation_range': 'input_quantizer'}


class RangeChoice(NamedTuple):
    """How a layer chooses its ranges: `method` as in `find_range`; `cap`, an upper limit of the input's range.

    `again` is set once the layer was called: a layer that is called several times takes the largest of its ranges.
    `known` names the quantizers ('input', 'weight') whose ranges are not to be set.
    """

    method: str = 'kl'
    cap: float | None = None
    again: bool = False
    known: frozenset[str] = frozenset()


class QuantizedLayer(nn.Module):
    """Mixin of `QConv2d` and `QLinear`: y = op(input_quantizer(x), weight_quantizer(weight)); the bias stays float.

    While `calibration` is set (see `calibrating`) the layer computes in float, and each forward sets the quantizers'
    ranges from its own input and weight. Loads the state dict of the float layer, and that of the original HAQ's.

    Args:
        w_bit, a_bit: bits of the two quantizers, where not None; also properties.
        weight_quantizer, input_quantizer: any `Quantizer`; linear ones by default.
        *args, **kwargs: those of the float layer.
    """

    def __init__(self, *args, w_bit: int | None = None, a_bit: int | None = None,
                 weight_quantizer: Quantizer | None = None, input_quantizer: Quantizer | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self._add_quantizers(w_bit, a_bit, weight_quantizer, input_quantizer)

    def _add_quantizers(self, w_bit=None, a_bit=None, weight_quantizer=None, input_quantizer=None):
        self.weight_quantizer = LinearWeightQuantizer() if weight_quantizer is None else weight_quantizer
        self.input_quantizer = LinearActivationQuantizer() if input_quantizer is None else input_quantizer
        self.calibration: RangeChoice | None = None
        if w_bit is not None:
            self.w_bit = w_bit
        if a_bit is not None:
            self.a_bit = a_bit

    @classmethod
    def from_float(cls, layer: nn.Module, **quantization) -> 'QuantizedLayer':
        """Return the quantized twin of `layer`, with the very same Parameter objects, and leave `layer` as it is.

        Options and errors are those of `convert`.
        """
        twin = object.__new__(type(layer))
        vars(twin).update(vars(layer))
        for own in ('_parameters', '_buffers', '_modules'):
            vars(twin)[own] = dict(vars(layer)[own])
        return cls.convert(twin, **quantization)

    @classmethod
    def convert(cls, layer: nn.Module, **quantization) -> 'QuantizedLayer':
        """Make `layer` itself a quantized layer, in place, and return it.

        It stays the same object, so whoever refers to it calls the quantized layer, and keeps its Parameters, hooks,
        parametrizations and attributes. The class of a subclass is mixed with ours: what it overrides, such as
        `_conv_forward`, goes on as before.

        Args:
            layer: convolution or linear layer that computes with the forward of its float type.
            **quantization: `w_bit`, `a_bit`, `weight_quantizer` and `input_quantizer`.

        Raises:
            ValueError: the layer is none that can be converted (see `obstacle`).
        """
        reason = obstacle(layer) if isinstance(layer, cls.float_type) else 'is of another type'
        if reason:
            raise ValueError(f'{cls.__name__} takes a {cls.float_type.__name__} with the forward of that class; '
                             f'this {type(layer).__name__} {reason}')
        device = layer.weight.device
        layer.__class__ = cls if type(layer) is cls.float_type else _mixed(cls, type(layer))
        layer._add_quantizers(**quantization)
        layer.set_quantizers(layer.weight_quantizer, layer.input_quantizer, device)
        return layer

    def set_quantizers(self, weight: Quantizer | None = None, input: Quantizer | None = None,
                       device: torch.device | None = None) -> None:
        """Put in other quantizers, where not None, on the layer's device and in its mode."""
        device = self.weight.device if device is None else device
        for name, quantizer in (('weight_quantizer', weight), ('input_quantizer', input)):
            if quantizer is not None:
                setattr(self, name, quantizer.to(device).train(self.training))

    @property
    def w_bit(self) -> int | None:
        """Bits of the weight, as of its quantizer."""
        return self.weight_quantizer.bits

    @w_bit.setter
    def w_bit(self, bits: int | None):
        self.weight_quantizer.bits = bits

    @property
    def a_bit(self) -> int | None:
        """Bits of the input, as of its quantizer."""
        return self.input_quantizer.bits

    @a_bit.setter
    def a_bit(self, bits: int | None):
        self.input_quantizer.bits = bits

    @property
    def quantizes(self) -> bool:
        """Whether a forward is another than that of the float layer, or sets ranges."""
        return self.calibration is not None or self.input_quantizer.active or self.weight_quantizer.active

    def forward(self, input: Tensor) -> Tensor:
        return self.compute(*self.quantize(input, self.weight))

    def quantize(self, input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return both quantized; while `calibration` is set, set the ranges from them and return them as they are."""
        if self.calibration is None:
            return self.input_quantizer(input), self.weight_quantizer(weight)
        method, cap, again, known = self.calibration
        if 'input' not in known:
            self.input_quantizer.calibrate(input, method=method, cap=cap, grow=again)
        if 'weight' not in known:
            self.calibrate_weight(weight, method, again)
        self.calibration = self.calibration._replace(again=True)
        return input, weight

    def calibrate_weight(self, weight: Tensor, method: str, again: bool) -> None:
        """Set the range of the weight, which is the same in every call."""
        if not again:
            self.weight_quantizer.calibrate(weight, method=method)

    def compute(self, input: Tensor, weight: Tensor) -> Tensor:
        """Return the float layer's output for this input and weight."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for key, quantizer in HISTORIC_KEYS.items():
            if prefix + key in state_dict and hasattr(getattr(self, quantizer), 'range'):
                state_dict[f'{prefix}{quantizer}.range'] = state_dict.pop(prefix + key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class QConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` with a quantized input and weight."""

    float_type = nn.Conv2d

    def compute(self, input: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(input, weight, self.bias)


class QLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` with a quantized input and weight."""

    float_type = nn.Linear

    def compute(self, input: Tensor, weight: Tensor) -> Tensor:
        return F.linear(input, weight, self.bias)


class QProduct(QuantizedLayer, Product):
    """`Product` of two quantized activations; its weight bits are those of the second operand."""

    float_type = Product

    def _add_quantizers(self, w_bit=None, a_bit=None, weight_quantizer=None, input_quantizer=None):
        second = LinearActivationQuantizer() if weight_quantizer is None else weight_quantizer
        super()._add_quantizers(w_bit, a_bit, second, input_quantizer)

    def calibrate_weight(self, weight: Tensor, method: str, again: bool) -> None:
        self.weight_quantizer.calibrate(weight, method=method, grow=again)


OWN_NAMES = ('w_bit', 'a_bit', 'weight_quantizer', 'input_quantizer', 'set_quantizers', 'calibration',
             'calibrate_weight', 'compute', 'quantize', 'quantizes')


@cache
def _mixed(kind: type, layer_type: type) -> type:
    """Return the class that quantizes as `kind` does and is `layer_type` for all the rest."""
    own = {} if layer_type.forward is kind.float_type.forward else {'float_forward': layer_type.forward}
    return type(f'Q{layer_type.__name__}', (kind, layer_type), {
        '__module__': kind.__module__, '__doc__': f'Quantized {layer_type.__name__}.', **own})


def quantized_type(layer: nn.Module) -> type | None:
    """Return `QConv2d`, `QLinear` or `QProduct`, whichever quantizes this kind of layer, or None."""
    return next((kind for kind in (QConv2d, QLinear, QProduct) if isinstance(layer, kind.float_type)), None)


def obstacle(layer: nn.Module) -> str | None:
    """Return why a layer cannot be converted, as a predicate (`has a forward of its own`), or None if it can.

    Convertible is what computes with the forward of `nn.Conv2d` or `nn.Linear`, itself or as a subclass: the weight it
    multiplies with must be the one that the quantizer returns. A layer that is known to read its own weight
    may have any forward.
    """
    kind = quantized_type(layer)
    if kind is None:
        return 'is neither a Conv2d nor a Linear'
    if isinstance(layer, QuantizedLayer):
        return 'is quantized already'
    if layer not in getattr(layer, READS, ()) and (reason := _own_forward(layer, kind.float_type)):
        return reason
    taken = [name for name in OWN_NAMES if hasattr(layer, name)]
    return f'has a {taken[0]} of its own' if taken else None


def _own_forward(layer, float_type) -> str | None:
    """Return why the forward of a layer does not compute with the weight it is given."""
    if type(layer).forward is not float_type.forward or 'forward' in vars(layer):
        return 'has a forward of its own'
    # A local variable of that name would not be among `co_names`: this is `self.weight`.
    code = getattr(getattr(layer, '_conv_forward', None), '__code__', None)
    return 'reads self.weight in its _conv_forward' if code is not None and 'weight' in code.co_names else None


def is_calibrating(module: nn.Module) -> bool:
    """Return whether a forward of `module` would set ranges, as within `calibrating`."""
    return any(isinstance(layer, QuantizedLayer) and layer.calibration is not None for layer in module.modules())


@contextmanager
def calibrating(module: nn.Module, *, method: str = 'kl', cap: float | None = None, cache: dict | None = None
                ) -> Iterator[bool]:
    """Within this context every forward of `module` runs in float and sets the ranges of its quantized layers.

    Put the module in eval mode first: in training mode a calibration batch also moves BatchNorm statistics. Gives
    whether any range is still to be found, that is, whether a forward is needed.

    Args:
        method, cap: see `RangeChoice`.
        cache: what earlier calibrations of the same weights on the same batch found, by layer, quantizer and bits (a
            search comes back to them in every episode); it is used and added to.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLayer)}
    states = {} if cache is None else cache
    missing = []  # (key, quantizer)
    for name, layer in layers.items():
        quantizers = {'input': layer.input_quantizer, 'weight': layer.weight_quantizer}
        keys = {which: (name, which, quantizer.bits) for which, quantizer in quantizers.items()}
        known = frozenset(which for which, key in keys.items() if key in states)
        for which in known:
            quantizers[which].load_state_dict(states[keys[which]])
        missing += [(keys[which], quantizer) for which, quantizer in quantizers.items() if which not in known]
        layer.calibration = RangeChoice(method, cap, known=known)
    try:
        yield bool(missing)
        states.update({key: deepcopy(quantizer.state_dict()) for key, quantizer in missing})
    finally:
        for layer in layers.values():
            layer.calibration = None
