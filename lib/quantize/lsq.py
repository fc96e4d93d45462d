"""LSQ, learned step size quantization (Esser et al., 1902.08153), of weights and of activations."""

import math

import torch
from torch import Tensor, nn

from lib.quantize.pact import held_positive
from lib.quantize.quantizer import Grid, SignedQuantizer, check_choice, signs, while_active, whole

MIN_STEP = 1e-8


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return (-Q_N, Q_P), the lowest and the highest code; one signed bit has the codes -1 and +1 and no 0."""
    half = 2 ** (bits - 1)
    return (-half, max(half - 1, 1)) if signed else (0, 2**bits - 1)


class LSQQuantizer(SignedQuantizer):
    """A learned step s between levels: q = round(clip(v / s, -Q_N, Q_P)) s.

    Unsigned Q_N = 0 and Q_P = 2^bits - 1, signed Q_N = 2^(bits-1) and Q_P = Q_N - 1. One signed bit, which the paper
    has not, is the sign: q = +-s with sign(0) = +1 and Q_N = Q_P = 1.

    Example: v = (-1, 0.6, 2), s = 0.5, 2 bits: signed (-1, 0.5, 0.5), unsigned (0, 0.5, 1.5).

    dq/dv is 1 where -Q_N < v / s < Q_P and 0 elsewhere. dq/ds is round(v / s) - v / s there, -Q_N below and Q_P above
    (equations 3 and 5), the sign of v for one signed bit; its sum is scaled by 1 / sqrt(N Q_P), with N the number of
    weights, or of features of one image.

    `step` is a Parameter of shape [1]. 0 stands for not found: the first tensor that comes, in training, evaluation or
    calibration, makes it 2 mean|v| / sqrt(Q_P), where an unsigned quantizer counts negative values as 0, and for one
    signed bit mean|v|, the best. It is kept when `bits` changes; calibrate then. Processes that train together must
    calibrate before, else each finds a step of its own. In use is |step|, at least 1e-8, so it can neither lose its
    sign nor die. It asks for a gradient only while `active`. `signed` is saved with the state dict.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave the tensor alone.
        signed: whether values can be negative; None: weights can, of features the first tensor tells.
        per: what N counts, 'weights' or 'features' (of the second dimension on).
    """

    shown = ('bits', 'signed', 'per')

    def __init__(self, bits: int | None = None, *, signed: bool | None = None, per: str = 'weights'):
        super().__init__(bits)
        check_choice('per', per, ('weights', 'features'))
        self.per = per
        self.signed = True if signed is None and per == 'weights' else signed
        self.step = nn.Parameter(torch.zeros(1))
        self.bits_changed()

    def bits_changed(self):
        # A step that asks for a gradient and never gets one would stop DistributedDataParallel.
        self.step.requires_grad_(self.active)

    def fake_quantize(self, x: Tensor) -> Tensor:
        step, signed = self._prepared(x)
        if torch.is_grad_enabled() and (x.requires_grad or step.requires_grad):
            return _RoundToStep.apply(x, step, self.bits, signed, self._gradient_scale(x))
        return _fake_quantize(x, step, self.bits, signed)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the step from `x` by LSQ's formula, whatever the method; `cap` limits the largest level.

        An input that was taken for unsigned and shows a negative value is signed from now on.
        """
        self.correct_sign(x)
        if self.active:
            step = self._initial_step(x)
            step = step if cap is None else min(step, cap / code_range(self.bits, self.signed)[1])
            self.step.fill_(max(step, abs(self.step.item())) if grow else step)
            self.is_found = False

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, signed = self._prepared(x)
        return whole(_codes(x, step, self.bits, signed)), step

    @while_active
    def grid(self) -> Grid:
        if self.signed is None or self.step.item() == 0:
            raise ValueError('the step is not known yet: calibrate, or run the network once')
        step = self._step_in_use().item()
        return Grid(step, step, *code_range(self.bits, self.signed), binary=self.signed and self.bits == 1)

    def _prepared(self, x: Tensor) -> tuple[Tensor, bool]:
        """Return the step in use and the sign, found in `x` if need be."""
        signed = self._find_sign(x)
        if not self.is_found:
            with torch.no_grad():
                if self.step.item() == 0:
                    self.step.fill_(self._initial_step(x))
                self.is_found = self.step.item() != 0
        return self._step_in_use(), signed

    def _step_in_use(self) -> Tensor:
        return held_positive(self.step, max(MIN_STEP, torch.finfo(self.step.dtype).tiny))

    def _initial_step(self, x: Tensor) -> float:
        mean = (x.abs() if self.signed else x.clamp_min(0)).mean().item()
        if not math.isfinite(mean):
            raise ValueError(f'cannot find a step from {x.numel()} values whose mean magnitude is {mean}: they are '
                             'not finite, or too large')
        if self.signed and self.bits == 1:
            return mean
        return 2 * mean / math.sqrt(code_range(self.bits, self.signed)[1])

    def _gradient_scale(self, x: Tensor) -> float:
        count = x.numel() if self.per == 'weights' else math.prod(x.shape[1:])
        return 1 / math.sqrt(count * code_range(self.bits, self.signed)[1])


def _codes(x: Tensor, step: Tensor, bits: int, signed: bool) -> Tensor:
    """Return integer codes, as floats in a new tensor; ties round to even."""
    if signed and bits == 1:
        return signs(x)
    return (x / step).round_().clamp_(*code_range(bits, signed))


@torch.no_grad()
def _fake_quantize(x: Tensor, step: Tensor, bits: int, signed: bool) -> Tensor:
    return _codes(x, step, bits, signed).mul_(step).to(x.dtype)


class _RoundToStep(torch.autograd.Function):
    """Fake quantization with a learned step; for the backward pass it keeps its input alone, and computes the rest."""

    @staticmethod
    def forward(ctx, x, step, bits, signed, gradient_scale):
        ctx.save_for_backward(x, step)
        ctx.options = bits, signed, gradient_scale
        return _fake_quantize(x, step, bits, signed)

    @staticmethod
    def backward(ctx, grad):
        x, step = ctx.saved_tensors
        bits, signed, gradient_scale = ctx.options
        low, high = code_range(bits, signed)
        position = x / step
        inside = ((position > low) & (position < high)).to(position.dtype)  # arithmetic with it is faster than a mask
        grad_x = grad.mul(inside).to(x.dtype) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None
        slope = _codes(x, step, bits, signed)
        if not (signed and bits == 1):
            slope.addcmul_(position.clamp_(low, high), inside, value=-1)
        grad_step = slope.mul_(grad).sum(dtype=step.dtype) * gradient_scale
        return grad_x, grad_step.reshape(step.shape), None, None, None
