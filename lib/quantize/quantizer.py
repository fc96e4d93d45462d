"""What every quantizer shares: its width in bits and the verbs forward, calibrate and to_int."""

import logging
import math
from collections.abc import Callable, Collection
from functools import wraps
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

MAX_QUANTIZER_BITS = 16


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, quantized):
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def straight_through(x: Tensor, quantized: Tensor) -> Tensor:
    """Return `quantized` exactly, with the gradient of the identity in `x` (Bengio et al., 1308.3432).

    `x + (quantized - x).detach()` has the same gradient, but its rounding leaves the quantization grid.
    """
    return _StraightThrough.apply(x, quantized)


def signs(x: Tensor) -> Tensor:
    """Return +1 where x >= 0 and -1 below, in a new tensor of the type of `x`; NaN stays NaN."""
    return torch.where(x.isnan(), x, (x >= 0).to(x.dtype).mul_(2).sub_(1))


def whole(codes: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
    """Return codes, whole numbers as floats, as integers; ValueError where one is NaN, for which no integer stands."""
    if codes.isnan().any():
        raise ValueError(f'{int(codes.isnan().sum())} of {codes.numel()} values to be quantized to integers are NaN: '
                         'no code stands for them; look for where the network diverged')
    return codes.to(dtype)


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return `values` (C,) shaped to broadcast with `x` (C, ...), or a single one as it is; ValueError on other C."""
    if values.numel() == 1:
        return values
    if len(values) != len(x):
        raise ValueError(f'{len(values)} scales for a weight of {len(x)} channels: expected one for each')
    return values.view(-1, *[1] * (x.dim() - 1))


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless `value` of the option `name` is one of `choices`."""
    if value not in choices:
        raise ValueError(f'{name} is {value!r}; expected one of {", ".join(choices)}')


def while_active(method: Callable) -> Callable:
    """Let a method of a quantizer run without gradients, and raise ValueError while the quantizer is not active."""
    @wraps(method)
    def checked(quantizer, *args):
        if not quantizer.active:
            raise ValueError(f'bits is {quantizer.bits}: a float tensor has no integer codes; set bits to 1..'
                             f'{MAX_QUANTIZER_BITS} first')
        with torch.no_grad():
            return method(quantizer, *args)
    return checked


class Grid(NamedTuple):
    """The map of a uniform quantizer with fixed parameters, all that integer inference needs of it.

    Codes are clip(round(x / step), low, high) and stand for the values codes * scale; a `binary` one gives the code +1
    for x >= 0 and -1 elsewhere. `scale` differs from `step` where the quantizer does not scale its input back.
    A step of 0, that of a range of 0, makes all values 0. Codes count from 0 = 0.0 on, so padding is 0; one of an
    affine grid is stored as code + `zero_point`, which is never negative.
    """

    step: float
    scale: float
    low: int
    high: int
    binary: bool = False
    zero_point: int = 0


class Affine(NamedTuple):
    """A quantized tensor in the form of a machine: value = scale * (code - zero_point), codes in 0 .. 2^bits - 1.

    `scale` and `zero_point` are float64 tensors that broadcast with the codes (int64); the zero point need not be a
    whole number. `bits` is the width that holds every code.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int


class Quantizer(nn.Module):
    """A tensor in, the same tensor on a grid of at most 2^bits levels out (fake quantization).

    `bits` None, -1 or at least 32 leaves the tensor alone; 1..16 quantizes; anything else raises ValueError. The width
    comes from the strategy and is not in the state dict; ranges are. A state dict without a quantizer's keys (that of
    the float network) loads without complaint and leaves the ranges as they are. NaN is never quantized to a number:
    it stays NaN, and has no code; an empty tensor stays as it is.

    A subclass defines `fake_quantize` and `to_int`, and `calibrate` if it has something to find in the data.

    Attributes:
        shown: names of the attributes that `repr` shows.
        is_found: what is to be found in the data was found: it spares a device-to-host copy in every forward. Reset
            whenever a state dict is loaded.
    """

    shown: tuple[str, ...] = ('bits',)

    def __init__(self, bits: int | None = None):
        super().__init__()
        self._bits, self.is_found = _checked_bits(bits), False

    @property
    def bits(self) -> int | None:
        """Bits of a code; None, -1 or 32 and more leave the tensor alone."""
        return self._bits

    @bits.setter
    def bits(self, bits: int | None):
        self._bits = _checked_bits(bits)
        self.bits_changed()

    @property
    def active(self) -> bool:
        """Return whether this quantizer changes its input at all."""
        return self._bits is not None and 0 < self._bits < 32

    def bits_changed(self):
        """Called after `bits` was set, or the sign; for subclasses whose parameters depend on it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fake_quantize(x) if self.active and x.numel() else x

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return `x` quantized and dequantized, with a useful gradient; called only while `active`."""
        raise NotImplementedError

    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Choose the clipping range from a sample `x` of the tensors to come; no effect where nothing is chosen.

        `grow` keeps the present range where it is the larger one.
        """

    def zero_point(self) -> int | None:
        """Return what an affine grid adds to the codes of `to_int`, so that they are 0 .. 2^bits - 1; else None."""
        return None

    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (int32 codes, scale) with `codes * scale` equal to `self(x)`; of an affine grid, code - zero point.

        The scale has one element, or one for each channel, shaped to broadcast with the codes.

        Raises:
            ValueError: the quantizer is not `active`, or a value is NaN.
        """
        raise NotImplementedError

    @while_active
    def to_affine(self, x: Tensor) -> Affine:
        """Return `self(x)` as codes that are never negative; ValueError while not `active`.

        Codes in -2^(bits-1) .. 2^(bits-1) - 1 are shifted by 2^(bits-1). Codes of steps of 2, as -1 and +1 of one bit
        or the odd ones of DoReFa's 2^bits levels, become 0, 1, 2, ... with a zero point between two of them.
        """
        codes, scale = self.to_int(x)
        codes, scale, zero = codes.long(), scale.double(), self.zero_point()
        if zero is not None:
            return Affine(codes + int(zero), scale, torch.full_like(scale, zero), self.bits)
        if not getattr(self, 'signed', None) and bool((codes >= 0).all()):
            return Affine(codes, scale, torch.zeros_like(scale), self.bits)
        half, top = 2 ** (self.bits - 1), 2**self.bits - 1
        if self.bits > 1 and bool(((codes >= -half) & (codes < half)).all()):
            return Affine(codes + half, scale, torch.full_like(scale, half), self.bits)
        return Affine((codes + top) // 2, 2 * scale, torch.full_like(scale, top / 2), self.bits)

    def grid(self) -> Grid:
        """Return the map from x to codes, where it is the same for every x; ValueError while not `active`."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        missing_keys = []  # a float network's state dict has none of ours
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self.is_found = False

    def extra_repr(self) -> str:
        return ', '.join(f'{name}={getattr(self, name)!r}' for name in self.shown)


class SignedQuantizer(Quantizer):
    """A quantizer that knows whether its input can be negative: `signed`, None until the first tensor has shown it.

    The sign is saved with the state dict. An `affine` one, in classes that have it, gives signed inputs a lower end of
    their own, the Parameter `low` of shape [1], and 2^bits levels of which one is 0. Unsigned inputs, and the sign that
    one bit is, are as ever.

    Attributes:
        least: what no input can be below, where the structure of the network says so (-0.17 behind a GELU), or None.
    """

    _signed: bool | None = None
    least: float | None = None

    @property
    def signed(self) -> bool | None:
        """Whether the tensor can be negative; None: that is not known yet."""
        return self._signed

    @signed.setter
    def signed(self, signed: bool | None):
        self._signed = signed
        self.bits_changed()

    @property
    def affine(self) -> bool:
        """Whether signed inputs get a grid with a zero point."""
        return 'low' in self._parameters

    @affine.setter
    def affine(self, affine: bool):
        if affine and not self.affine:
            self.low = nn.Parameter(self._first_low())
        elif self.affine and not affine:
            del self.low
        self.bits_changed()

    @property
    def has_zero_point(self) -> bool:
        """Whether the grid in use is affine: of an affine quantizer whose input is signed, of more than its sign."""
        return self.affine and bool(self.signed) and self.bits != 1

    def _first_low(self) -> Tensor:
        """Return what `low` begins with."""
        raise NotImplementedError

    def _find_sign(self, x: Tensor) -> bool:
        if self.signed is None:
            low = x.detach().amin().item()
            if math.isnan(low):
                return False  # no evidence about later tensors
            self.signed = low < 0
        return self.signed

    def correct_sign(self, x: Tensor, low: float | None = None) -> bool:
        """Find whether `x` can be negative, and say so if it was taken for unsigned and is not; for calibration.

        `low` is its least value, where that is known.
        """
        if low is None and not x.numel():
            raise ValueError('cannot choose a clipping range from an empty tensor')
        low = x.detach().amin().item() if low is None else low
        if self.signed is False and low < 0:
            logger.warning('an input taken for unsigned goes down to %g: it is quantized as signed', low)
        self.signed = bool(self.signed) or low < 0
        return self.signed

    def get_extra_state(self) -> Tensor:
        """Return the sign as int8 for a state dict, -1 where it is not known."""
        return torch.tensor(-1 if self.signed is None else int(self.signed), dtype=torch.int8)

    def set_extra_state(self, state: Tensor):
        """Take the sign over from a state dict."""
        self.signed = None if state < 0 else bool(state)


def _checked_bits(bits: int | None) -> int | None:
    if bits is None:
        return None
    is_integer = isinstance(bits, Integral) and not isinstance(bits, bool)
    if is_integer and (bits == -1 or 1 <= bits <= MAX_QUANTIZER_BITS or bits >= 32):
        return int(bits)
    raise ValueError(f'bits is {bits!r}; expected 1..{MAX_QUANTIZER_BITS}, or None, -1 or at least 32 for a float '
                     'tensor')
