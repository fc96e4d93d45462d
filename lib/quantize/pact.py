"""PACT (Choi et al., 1805.06085): activations clipped at a learned alpha; unsigned, signed, or with alpha fixed."""

import math

import torch
from torch import Tensor

from lib.quantize.linear import LinearActivationQuantizer
from lib.quantize.quantizer import check_choice, straight_through

MIN_ALPHA = 1e-3
GRADIENTS = {'paper': 'clip', 'ste': 'exact'}


def held_positive(parameter: Tensor, minimum: float) -> Tensor:
    """Return |parameter|, at least `minimum`, with the gradient of |parameter| throughout, and +1 at 0."""
    magnitude = torch.where(parameter < 0, -parameter, parameter)
    return straight_through(magnitude, magnitude.detach().clamp_min(minimum))


class PACTActivationQuantizer(LinearActivationQuantizer):
    """Activations clipped at a learned alpha: y = clip(x, 0, |alpha|), q = round(y n / |alpha|) |alpha| / n.

    Unsigned, as in the paper, n = 2^bits - 1. `signed` is the modified PACT ("mPACT"): y = clip(x, -|alpha|, |alpha|)
    and n = 2^(bits-1) - 1; its one bit is the sign, q = +-|alpha|.

    Example: x = (-1, 0.6, 2), alpha 1.5, 2 bits: unsigned (0, 0.5, 1.5), signed (-1.5, 0, 1.5), for -1 and 0.6 are at
    -2/3 and 0.4 of alpha.

    dq/dx is 1 inside and 0 outside. dq/dalpha is 1 where x >= alpha, -1 where x <= -alpha (signed) and, inside, 0 with
    the gradient 'paper'; 'ste' is what autograd makes of the formula with a straight-through rounding, the rounding
    term (q - y) / alpha. |alpha| is used throughout and held at 0.001 or more, so alpha cannot lose its sign or die.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave inputs alone; it is no ReLU then either.
        gradient: 'paper' or 'ste'.

    Raises:
        ValueError: alpha is below 0.001, or the gradient has another name.
    """

    def __init__(self, bits: int | None = None, *, signed: bool = False, alpha: float = 10.0, trainable: bool = True,
                 gradient: str = 'paper'):
        check_choice('gradient', gradient, GRADIENTS)
        if not MIN_ALPHA <= alpha < math.inf:
            raise ValueError(f'alpha is {alpha!r}: expected a clip of at least {MIN_ALPHA}')
        super().__init__(bits, signed=signed, initial_range=alpha, trainable=trainable,
                         range_gradient=GRADIENTS[gradient])

    def clip(self) -> Tensor:
        return held_positive(self.range, MIN_ALPHA)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set alpha from a batch `x` as the linear quantizer does; one whose alpha is fixed stays as it is.

        It is the activation function too: an unsigned one stays unsigned whatever the sign of `x`.
        """
        if self.trainable:
            self.range.abs_()  # `grow` compares with it
            super().calibrate(x if self.signed else x.clamp_min(0), method=method, cap=cap, grow=grow)
