"""Convolution and linear layers that quantize their input and their weight; the quantizers are interchangeable."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from lib.quantize.linear import LinearActivationQuantizer, LinearWeightQuantizer
from lib.quantize.quantizer import Quantizer

# Keys of the original HAQ's checkpoints, on the layer itself, and where we keep the same numbers.
HISTORIC_KEYS = {"weight_range": "weight_quantizer.range", "activation_range": "input_quantizer.range"}


class QuantizedLayer(nn.Module):
    """Mixin of `QConv2d` and `QLinear`: y = op(input_quantizer(x), weight_quantizer(weight)); the bias stays float.

    `w_bit` and `a_bit` are the quantizers' bits. While `calibration` (a dict with `method` and `cap`) is set, see `calibrating`,
    the layer computes in float and each forward sets the quantizers' ranges from its own input and weight.

    Loads the state dict of the float layer, and that of the original HAQ's layer (`weight_range`, `activation_range`).
    """

    def attach_quantizers(self, w_bit: int | None, a_bit: int | None, weight_quantizer: Quantizer | None,
                          input_quantizer: Quantizer | None):
        """Take the given quantizers, else linear ones; `w_bit` and `a_bit`, where given, set their bits."""
        self.weight_quantizer = weight_quantizer or LinearWeightQuantizer()
        self.input_quantizer = input_quantizer or LinearActivationQuantizer()
        self.calibration = None
        if w_bit is not None:
            self.w_bit = w_bit
        if a_bit is not None:
            self.a_bit = a_bit

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

    @classmethod
    def from_float(cls, layer: nn.Module, **quantizers):
        """Return the quantized twin of `layer`, with the very same weight and bias Parameter objects.

        Takes the keywords `w_bit`, `a_bit`, `weight_quantizer`, `input_quantizer`. Hooks are not carried over. Raises ValueError for a
        layer of another type, or with a forward of its own, which the twin would silently lose.
        """
        if not isinstance(layer, cls.float_type) or type(layer).forward is not cls.float_type.forward:
            raise ValueError(f"{cls.__name__}.from_float got a {type(layer).__name__}; expected a plain {cls.float_type.__name__}")
        twin = cls(**cls.geometry(layer), device="meta", **quantizers)  # meta: no memory for weights that are replaced
        twin.weight, twin.bias = layer.weight, layer.bias
        twin.weight_quantizer.to(layer.weight.device)
        twin.input_quantizer.to(layer.weight.device)
        return twin.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.calibration is None:
            return self.compute(self.input_quantizer(x), self.weight_quantizer(self.weight))
        self.input_quantizer.calibrate(x, **self.calibration)
        self.weight_quantizer.calibrate(self.weight, method=self.calibration["method"])  # the cap is for activations
        return self.compute(x, self.weight)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        own = self.state_dict(prefix=prefix, keep_vars=True)
        for old, new in HISTORIC_KEYS.items():
            if prefix + old in state_dict and prefix + new in own:
                state_dict[prefix + new] = state_dict.pop(prefix + old)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, w_bit={self.w_bit}, a_bit={self.a_bit}"


class QConv2d(QuantizedLayer, nn.Conv2d):
    """`nn.Conv2d` with a quantized input and weight; takes its arguments and those of `attach_quantizers`."""

    float_type = nn.Conv2d

    def __init__(self, *args, w_bit: int | None = None, a_bit: int | None = None, weight_quantizer: Quantizer | None = None,
                 input_quantizer: Quantizer | None = None, **kwargs):
        nn.Conv2d.__init__(self, *args, **kwargs)
        self.attach_quantizers(w_bit, a_bit, weight_quantizer, input_quantizer)

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._conv_forward(x, weight, self.bias)

    @staticmethod
    def geometry(layer: nn.Conv2d) -> dict:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


class QLinear(QuantizedLayer, nn.Linear):
    """`nn.Linear` with a quantized input and weight; takes its arguments and those of `attach_quantizers`."""

    float_type = nn.Linear

    def __init__(self, *args, w_bit: int | None = None, a_bit: int | None = None, weight_quantizer: Quantizer | None = None,
                 input_quantizer: Quantizer | None = None, **kwargs):
        nn.Linear.__init__(self, *args, **kwargs)
        self.attach_quantizers(w_bit, a_bit, weight_quantizer, input_quantizer)

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.linear(x, weight, self.bias)

    @staticmethod
    def geometry(layer: nn.Linear) -> dict:
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}


@contextmanager
def calibrating(module: nn.Module, *, method: str = "kl", cap: float | None = None) -> Iterator[None]:
    """Within this context every forward of `module` runs in float and sets the ranges of its quantized layers.

    Put the module in eval mode first: in training mode a calibration batch also moves BatchNorm statistics.

    Args:
        method: 'kl', 'max' or 'mse', see `find_range`.
        cap: an upper limit of the activation ranges (the original used 6), or None.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedLayer)]
    for layer in layers:
        layer.calibration = {"method": method, "cap": cap}
    try:
        yield
    finally:
        for layer in layers:
            layer.calibration = None
