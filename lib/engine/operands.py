"""Integer operands of a quantized network: codes of a layer's weights and inputs, and its outputs out of dot products.

A layer with quantized weights and a quantized input is a product of integers with corrections. With values
scale * (code - zero_point) of the inputs x and the weights w, K terms in a sum,

    y = s_x s_w [S - z_w sum q_x - z_x sum q_w + K z_x z_w] + bias,    S = sum q_x q_w

and S is all that a dot-product engine has to compute. Padding is part of it: a zero has the code z_x, and where that is
no whole number, the next one, and what this is off is corrected at the borders.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.network.conversion import listed
from lib.quantize.layers import QuantizedLayer
from lib.quantize.quantizer import Affine


class InputGrid(NamedTuple):
    """The levels of an input: scale * (code - zero_point) with codes 0 .. 2^bits - 1."""

    scale: float
    zero_point: float
    bits: int

    def positions(self, x: Tensor) -> Tensor:
        """Return where `x` lies between the levels, in steps: a whole number for a value on the grid."""
        return x / (self.scale or 1.0) + self.zero_point

    def codes(self, x: Tensor) -> Tensor:
        """Return the codes of values on the grid, uint8, or int64 of more than 8 bits.

        Raises:
            ValueError: a value is none of the levels.
        """
        codes = self.positions(x).round_()
        low, high = (0, 0) if codes.numel() == 0 else (int(bound) for bound in codes.aminmax())
        if low < 0 or high >= 2**self.bits:
            raise ValueError(f'an input has the codes {low} to {high}, a grid of {self.bits} bits 0 to '
                             f'{2**self.bits - 1}: its quantizer gives other levels than on the images it was seen on')
        return codes.to(torch.uint8 if self.bits <= 8 else torch.int64)


@dataclass(frozen=True)
class LayerOperands:
    """A layer that a dot-product engine can compute.

    Attributes:
        name: of the layer in its network.
        layer: a `QConv2d` or `QLinear`.
        weight: the affine form of its weight; scale and zero point have one element, or one an output channel.
        grid: of its input.
    """

    name: str
    layer: QuantizedLayer
    weight: Affine
    grid: InputGrid

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return isinstance(self.layer, nn.Conv2d)

    @property
    def groups(self) -> int:
        """Groups of the convolution; 1 of a linear layer."""
        return self.layer.groups if self.is_conv else 1

    @property
    def pads(self) -> tuple[int, int, int, int]:
        """Pixels added on the left, right, top and bottom."""
        return tuple(self.layer._reversed_padding_repeated_twice) if self.is_conv else (0, 0, 0, 0)

    @property
    def terms(self) -> int:
        """K: products in a sum."""
        return self.weight.codes[0].numel()

    @property
    def pad_code(self) -> int:
        """The code that zeros around the input are padded with: the whole number next to the zero point."""
        return round(self.grid.zero_point)

    @property
    def _uncoded(self) -> float:
        """What the zeros of the padding are away from their code, in steps; 0 where they have one."""
        return self.grid.zero_point - self.pad_code if self.layer.padding_mode == 'zeros' else 0.0

    def check(self) -> None:
        """Raise ValueError, naming the layer, where zeros stand around an input of one signed bit, which has no 0."""
        if any(self.pads) and self.grid.bits == 1 and self._uncoded:
            raise ValueError(f'layer {self.name} pads its input with zeros, for which 1 signed bit has no code: '
                             'quantize that input with more bits or without a sign, or leave the layer out')

    def padded(self, codes: Tensor) -> Tensor:
        """Return codes with the layer's padding around them; zeros are padded with `pad_code`."""
        if not any(self.pads):
            return codes
        self.check()
        if self.layer.padding_mode == 'zeros':
            return F.pad(codes, self.pads, value=self.pad_code)
        return F.pad(codes.double(), self.pads, mode=self.layer.padding_mode).to(codes.dtype)

    def dot_products(self, codes: Tensor) -> Tensor:
        """Return S of input codes by an ordinary convolution in double precision, exact; shaped as the output."""
        weight = self.weight.codes.to(codes.device, torch.float64)
        return self._convolve(self.padded(codes).double(), weight) if self.is_conv else F.linear(codes.double(), weight)

    def output_shape(self, codes: Tensor) -> tuple[int, ...]:
        """Return the shape of the output for input codes of this shape."""
        if not self.is_conv:
            return *codes.shape[:-1], self.layer.out_features
        layer, pads = self.layer, self.pads
        sides = (codes.shape[-2] + pads[2] + pads[3], codes.shape[-1] + pads[0] + pads[1])
        sizes = zip(sides, layer.kernel_size, layer.dilation, layer.stride, strict=True)
        return codes.shape[0], layer.out_channels, *((side - dilation * (kernel - 1) - 1) // stride + 1
                                                     for side, kernel, dilation, stride in sizes)

    def finish(self, sums: Tensor, codes: Tensor) -> Tensor:
        """Return the layer's output, float64, from S or a measurement of it and the input codes without padding."""
        w_scale, w_zero = (self._per_channel(values, sums) for values in (self.weight.scale, self.weight.zero_point))
        x_scale, x_zero = self.grid.scale, self.grid.zero_point
        total = sums.double()
        if bool(w_zero.any()):
            total = total - w_zero * self._input_sums(codes)
        if x_zero:
            weight_sums = self.weight.codes.flatten(1).sum(1).double().to(sums.device)
            total = total + x_zero * (self.terms * w_zero - self._per_channel(weight_sums, sums))
        if any(self.pads) and self._uncoded:
            total = total + self._uncoded * self._border(codes, w_zero)
        y = total * (x_scale * w_scale)
        return y if self.layer.bias is None else y + self._per_channel(self.layer.bias.detach().double(), sums)

    def _convolve(self, x, weight):
        layer = self.layer
        return F.conv2d(x, weight, None, layer.stride, 0, layer.dilation, layer.groups)

    def _per_channel(self, values, like):
        """Return one value, or one an output channel, so that it broadcasts with an output."""
        values = values.double().to(like.device)
        return values.reshape(-1, 1, 1) if self.is_conv else values.reshape(-1)

    def _border(self, codes, w_zero):
        """Return the sum of q_w - z_w over the part of each window that lies on the padding, (1, out, H, W)."""
        inside = torch.zeros(1, *codes.shape[1:], dtype=torch.float64, device=codes.device)
        weight = self.weight.codes.to(codes.device, torch.float64) - w_zero.reshape(-1, 1, 1, 1)
        return self._convolve(F.pad(inside, self.pads, value=1.0), weight)

    def _input_sums(self, codes):
        """Return sum q_x of every dot product: (N, out or 1, H, W), or (..., 1) of a linear layer."""
        if not self.is_conv:
            return codes.sum(-1, keepdim=True).double()
        x = self.padded(codes).unflatten(1, (self.groups, -1)).sum(2).double()  # (N, groups, H, W)
        sums = self._convolve(x, x.new_ones(self.groups, 1, *self.layer.kernel_size))
        return sums if self.groups == 1 else sums.repeat_interleave(self.layer.out_channels // self.groups, 1)


def choose_layers(text: str, names: Sequence[str], operands: Mapping[str, LayerOperands],
                  reasons: Mapping[str, str]) -> dict[str, LayerOperands]:
    """Return the layers that a text names, in the order of the network.

    Args:
        text: 'all', or names, glob patterns and indices with commas between; of a pattern's layers those that can run.
        names: of all convolutions and linear layers, which the indices count from 0.
        operands, reasons: of `find_operands`.

    Raises:
        ValueError: a word fits no layer, or only layers that cannot run on an engine.
    """
    chosen = set()
    for word in (word.strip() for word in text.split(',')):
        index = int(word) if word.lstrip('-').isdigit() else None
        if index is not None:
            hits = [names[index]] if 0 <= index < len(names) else []
        else:
            hits = [name for name in names if word == 'all' or fnmatchcase(name, word)]
        if not hits:
            raise ValueError(f'{text}: {word!r} is no layer; the network has '
                             f'{", ".join(f"{i} {name}" for i, name in enumerate(names))}')
        if not any(name in operands for name in hits):
            raise ValueError(f'{text}: {hits[0]} {reasons[hits[0]]}, so no dot-product engine can compute it; '
                             f'those that can are {listed(operands) or "none"}')
        chosen.update(hits)
    return {name: operands[name] for name in names if name in chosen and name in operands}


@contextmanager
def computing(layers: Mapping[str, QuantizedLayer], compute: Callable) -> Iterator[None]:
    """While active, layers give compute(name, quantized input, the digital computation) as their output.

    Args:
        layers: by name.
        compute: the third argument is a function without arguments that returns what the layer always computes.
    """
    before = {name: vars(layer).get('compute') for name, layer in layers.items()}

    def replacement(name, plain):
        return lambda x, weight: compute(name, x, lambda: plain(x, weight))

    try:
        for name, layer in layers.items():
            layer.compute = replacement(name, layer.compute)
        yield
    finally:
        for name, layer in layers.items():
            vars(layer).pop('compute', None)
            if before[name] is not None:
                layer.compute = before[name]
