"""DoReFa-Net (Zhou et al., 1606.06160): weights normalised by tanh, activations clipped to a fixed range."""

import torch
from torch import Tensor

from lib.quantize.pact import MIN_ALPHA, PACTActivationQuantizer
from lib.quantize.quantizer import Grid, Quantizer, signs, straight_through, while_active, whole
from lib.quantize.uniform import choose_scale, max_code, quantize


class DoReFaWeightQuantizer(Quantizer):
    """Weights on a grid in [-1, 1], per tensor: t = tanh(w) / max|tanh(w)|, then rounding; never scaled back.

    * Paper: q = 2 Q_k(t / 2 + 1 / 2) - 1 with Q_k(x) = round((2^k - 1) x) / (2^k - 1): 2^k levels, 0 not among them.
    * `symmetric`: q = round(n t) / n with n = 2^(k-1) - 1: 2^k - 1 levels around 0, the form for integer hardware.
    * One bit, of either: q = sign(w) E|w| with sign(0) = +1, E|w| without gradient.

    Example: tanh(w) = (-0.6, 0.12, 0.3), so t = (-1, 0.2, 0.5). Two bits: paper (-1, 1/3, 1/3), symmetric (-1, 0, 0).

    The gradient passes straight through the rounding and flows through tanh and the maximum (through the sign of one
    bit, too). Integer codes of the paper's levels are odd: 2 round(...) - (2^k - 1), at the scale 1 / (2^k - 1).

    Args:
        bits: 1..16, or None, -1, >= 32 to leave weights alone (no tanh either).
        symmetric: 2^k - 1 levels instead of 2^k.
    """

    shown = ('bits', 'symmetric')

    def __init__(self, bits: int | None = None, *, symmetric: bool = False):
        super().__init__(bits)
        self.symmetric = symmetric

    def fake_quantize(self, x: Tensor) -> Tensor:
        if self.bits == 1:
            return straight_through(x, signs(x) * x.detach().abs().mean())
        squashed = _squash(x)
        with torch.no_grad():
            codes, scale = self._codes(squashed)
            quantized = codes.mul_(scale)
        return straight_through(squashed, quantized)

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.bits == 1:
            return whole(signs(x)), x.abs().mean().reshape(1)
        codes, scale = self._codes(_squash(x))
        return whole(codes), scale

    def _codes(self, squashed: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes, as floats in a new tensor, and their scale, for weights in [-1, 1]."""
        top = max_code(self.bits, signed=self.symmetric)
        scale = squashed.new_full((1,), 1 / top)
        if self.symmetric:
            return squashed.mul(top).round_(), scale
        return squashed.mul(top / 2).add_(top / 2).round_().mul_(2).sub_(top), scale


def _squash(weight: Tensor) -> Tensor:
    squashed = weight.tanh()
    largest = squashed.abs().amax()
    return squashed / torch.where(largest > 0, largest, 1)


class DoReFaActivationQuantizer(PACTActivationQuantizer):
    """Activations clipped to a fixed range: q = Q_k(clip(factor x, 0, 1)) / factor; not signed, nothing learned.

    It is a PACT with alpha fixed at 1 / factor. Example: x = (-1, 4, 20), factor 0.1, 2 bits: (0, 10/3, 10).

    Args:
        bits: 1..16, or None, -1, >= 32 to leave inputs alone; it is no ReLU then either.
        factor: what inputs are multiplied with before they are clipped at 1.
        rescale: divide by `factor` again. Without it, as in the original, activations shrink by `factor`.

    Raises:
        ValueError: the factor is not in (0, 1000].
    """

    shown = ('bits', 'signed', 'rescale')

    def __init__(self, bits: int | None = None, *, factor: float = 0.1, rescale: bool = True):
        if not 0 < factor <= 1 / MIN_ALPHA:
            raise ValueError(f'factor is {factor!r}: expected more than 0 and at most {1 / MIN_ALPHA:g}')
        super().__init__(bits, alpha=1 / factor, trainable=False)
        self.rescale = rescale

    def fake_quantize(self, x: Tensor) -> Tensor:
        quantized = super().fake_quantize(x)
        if self.rescale:
            return quantized
        with torch.no_grad():
            codes = quantize(x, choose_scale(self.clip(), self.bits, self.signed), self.bits, self.signed)
            levels = codes.mul_(1 / max_code(self.bits, self.signed)).to(x.dtype)
        return straight_through((quantized / self.clip()).to(x.dtype), levels)

    @torch.no_grad()
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = super().to_int(x)
        return codes, scale if self.rescale else torch.full_like(scale, 1 / max_code(self.bits, self.signed))

    def grid(self) -> Grid:
        grid = super().grid()
        return grid if self.rescale else grid._replace(scale=1 / grid.high)
