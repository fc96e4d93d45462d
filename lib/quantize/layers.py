"""Convolution and linear layers that quantize their input and their weight; the quantizers are interchangeable."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from lib.quantize.linear import LinearActivationQuantizer, LinearWeightQuantizer
from lib.quantize.quantizer import Quantizer

# Keys of the original HAQ's checkpoints, and the quantizer that keeps the same number under the name `range`.
HISTORIC_KEYS = {'weight_range': 'weight_quantizer', 'activation_range': 'input_quantizer'}


class Calibration(NamedTuple):
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

    def __init__(
        self,
        *args,
        w_bit: int | None = None,
        a_bit: int | None = None,
        weight_quantizer: Quantizer | None = None,
        input_quantizer: Quantizer | None = None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.weight_quantizer = LinearWeightQuantizer() if weight_quantizer is None else weight_quantizer
        self.input_quantizer = LinearActivationQuantizer() if input_quantizer is None else input_quantizer
        self.calibration: Calibration | None = None
        if w_bit is not None:
            self.w_bit = w_bit
        if a_bit is not None:
            self.a_bit = a_bit

    @classmethod
    def from_float(cls, layer: nn.Module, **quantization) -> 'QuantizedLayer':
        """Return the quantized twin of `layer`, with the very same weight and bias Parameter objects.

        Takes the keywords `w_bit`, `a_bit`, `weight_quantizer` and `input_quantizer`. Hooks are not carried over.

        Raises:
            ValueError: a layer of another type, or with a forward of its own, which the twin would silently lose.
        """
        if not isinstance(layer, cls.float_type) or type(layer).forward is not cls.float_type.forward:
            expected = f'a plain {cls.float_type.__name__}'
            raise ValueError(f'{cls.__name__}.from_float got a {type(layer).__name__}, expected {expected}')
        arguments = {name: getattr(layer, name) for name in cls.float_arguments}
        # On the meta device the weights that are replaced at once take no memory.
        twin = cls(**arguments, bias=layer.bias is not None, device='meta', **quantization)
        twin.weight, twin.bias = layer.weight, layer.bias
        twin.weight_quantizer.to(layer.weight.device)
        twin.input_quantizer.to(layer.weight.device)
        return twin.train(layer.training)

    @property
    def w_bit(self) -> int | None:
        return self.weight_quantizer.bits

    @w_bit.setter
    def w_bit(self, bits: int | None):
        self.weight_quantizer.bits = bits

    @property
    def a_bit(self) -> int | None:
        return self.input_quantizer.bits

    @a_bit.setter
    def a_bit(self, bits: int | None):
        self.input_quantizer.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        if self.calibration is None:
            return self.compute(self.input_quantizer(x), self.weight_quantizer(self.weight))
        method, cap, again, known = self.calibration
        if 'input' not in known:
            self.input_quantizer.calibrate(x, method=method, cap=cap, grow=again)
        if 'weight' not in known:
            self.weight_quantizer.calibrate(self.weight, method=method)
        self.calibration = self.calibration._replace(again=True)
        return self.compute(x, self.weight)

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
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
    float_arguments = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups',
                       'padding_mode')

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)


class QLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` with a quantized input and weight."""

    float_type = nn.Linear
    float_arguments = ('in_features', 'out_features')

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight, self.bias)


@contextmanager
def calibrating(
    module: nn.Module, *, method: str = 'kl', cap: float | None = None, cache: dict | None = None
) -> Iterator[bool]:
    """Within this context every forward of `module` runs in float and sets the ranges of its quantized layers.

    Put the module in eval mode first: in training mode a calibration batch also moves BatchNorm statistics. Gives
    whether any range is still to be found, that is, whether a forward is needed.

    Args:
        method, cap: see `Calibration`.
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
        layer.calibration = Calibration(method, cap, known=known)
    try:
        yield bool(missing)
        states.update({key: deepcopy(quantizer.state_dict()) for key, quantizer in missing})
    finally:
        for layer in layers.values():
            layer.calibration = None
