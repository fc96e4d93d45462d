"""What a linear quantization chooses beside its bits: where the levels of activations lie, and scales of weights."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from torch import nn

from lib.quantize.linear import LinearActivationQuantizer, LinearWeightQuantizer
from lib.quantize.quantizer import check_choice

CHOICES = {'activation_grid': ('symmetric', 'affine'), 'weight_scales': ('tensor', 'channel')}


@dataclass(frozen=True)
class Grids:
    """The grids of linear quantizers; the defaults are those of HAQ.

    Attributes:
        activation_grid: of signed activations: 'symmetric' around 0, or 'affine', with a zero point. Activations that
            are never negative have the codes 0 .. 2^bits - 1 on both.
        weight_scales: one scale for each weight 'tensor', or for each output 'channel' of it.

    Raises:
        ValueError: another choice.
    """

    activation_grid: str = 'symmetric'
    weight_scales: str = 'tensor'

    def __post_init__(self):
        for name, choices in CHOICES.items():
            check_choice(name, getattr(self, name), choices)

    @classmethod
    def from_dict(cls, values: Mapping) -> 'Grids':
        """Return the choices among some values, such as a checkpoint's; what is missing is HAQ's."""
        return cls(**{field.name: values[field.name] for field in fields(cls) if values.get(field.name) is not None})

    @classmethod
    def of(cls, layers: Iterable[nn.Module]) -> 'Grids':
        """Return what `use` made of quantized layers."""
        quantizers = [each for layer in layers for each in (layer.weight_quantizer, layer.input_quantizer)]
        affine = any(getattr(quantizer, 'affine', False) for quantizer in quantizers)
        channel = any(getattr(quantizer, 'channels', None) for quantizer in quantizers)
        return cls('affine' if affine else 'symmetric', 'channel' if channel else 'tensor')

    def use(self, layers: Iterable[nn.Module]) -> None:
        """Give the linear quantizers of quantized layers these grids; scales that change begin anew."""
        for layer in layers:
            for quantizer in (layer.weight_quantizer, layer.input_quantizer):
                if isinstance(quantizer, LinearWeightQuantizer):
                    channels = len(layer.weight) if self.weight_scales == 'channel' else None
                    if quantizer.channels != channels:
                        quantizer.channels = channels
                elif type(quantizer) is LinearActivationQuantizer:
                    quantizer.affine = self.activation_grid == 'affine'

    def to_dict(self) -> dict:
        """Return plain values."""
        return asdict(self)
