"""LSQ, learned step size quantization (Esser et al., 1902.08153), of weights and of activations."""

import math

import torch
from torch import Tensor, nn

from lib.quantize.affine import Bounds, RoundToStep, codes_around_zero, find_ends, round_to_step, zero_point
from lib.quantize.pact import held_positive
from lib.quantize.quantizer import Grid, SignedQuantizer, check_choice, per_channel, while_active, whole

MIN_STEP = 1e-8
INITS = ('formula', 'least_squares')
FIRST_FACTORS, MOST_VALUES = ((1 / 16, 4, 61), (0.95, 1.05, 21)), 2**16  # of a search for a step: coarse, fine


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return (-Q_N, Q_P), the lowest and the highest code; one signed bit has the codes -1 and +1 and no 0."""
    half = 2 ** (bits - 1)
    return (-half, max(half - 1, 1)) if signed else (0, 2**bits - 1)


def least_squares_step(rows: Tensor, start: Tensor, bounds: tuple[int, int]) -> Tensor:
    """Return the step (C,) for each row of values (C, n) that rounds them with the least squared error.

    It is searched for among multiples of `start` (C,), on at most 65536 values of a row, evenly spread over it.
    """
    rows = rows[:, ::-(-rows.shape[1] // MOST_VALUES)].double()

    def error(step):
        step = step.clamp_min(torch.finfo(step.dtype).tiny)[:, None]
        return ((rows / step).round_().clamp_(*bounds).mul_(step) - rows).square_().sum(1)

    for low, high, count in FIRST_FACTORS:
        factors = torch.logspace(math.log10(low), math.log10(high), count, dtype=start.dtype, device=start.device)
        start = start * factors[torch.stack([error(start * factor) for factor in factors]).argmin(0)]
    return start


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

    LSQ+ (Bhalgat et al., 2004.09576): an `affine` quantizer of signed features learns an offset, `low`, too:
    q = (clip(round(v / s) + z, 0, n) - z) s with n = 2^bits - 1, which is round(clip((v - b) / s, 0, n)) s + b with the
    offset b = -z s. The gradients are those of that formula (equations 4 and 5), dq/db 0 inside and 1 outside, scaled
    as the step's with Q_P = n; but z is a whole number, round(-low / s), so that 0 stays a level: what a ReLU or a
    padding made 0 is 0. Step and offset begin where the squared error is least, as in the paper.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave the tensor alone.
        signed: whether values can be negative; None: weights can, of features the first tensor tells.
        per: what N counts, 'weights' (of a step) or 'features' (of the second dimension on).
        affine: give signed values an offset.
        channels: of a weight (C, ...) that gets a step for each of them, (C,); None: one for all.
        init: the first step is LSQ's 'formula', or that of the least squared error ('least_squares').
    """

    shown = ('bits', 'signed', 'per')

    def __init__(self, bits: int | None = None, *, signed: bool | None = None, per: str = 'weights',
                 affine: bool = False, channels: int | None = None, init: str = 'formula'):
        super().__init__(bits)
        check_choice('init', init, INITS)
        self.init = init
        check_choice('per', per, ('weights', 'features'))
        self.per = per
        self.step = nn.Parameter(torch.zeros(channels or 1))
        self.signed = True if signed is None and per == 'weights' else signed
        self.affine = affine

    def bits_changed(self):
        # What asks for a gradient and never gets one would stop DistributedDataParallel.
        self.step.requires_grad_(self.active)
        if self.affine:
            self.low.requires_grad_(self.active and self.has_zero_point)

    def fake_quantize(self, x: Tensor) -> Tensor:
        step, bounds = self._prepared(x)
        if torch.is_grad_enabled() and (x.requires_grad or step.requires_grad):
            offset = self.low if self.has_zero_point else None
            return RoundToStep.apply(x, step, offset, bounds, self._binary, True, self._gradient_scale(x))
        with torch.no_grad():
            return round_to_step(x, step, bounds, self._binary).mul_(step).to(x.dtype)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Set the step from `x` by LSQ's formula, whatever the method; `cap` limits the largest level.

        An input that was taken for unsigned and shows a negative value is signed from now on.
        """
        self.correct_sign(x)
        if not self.active:
            return
        before = self.step.abs(), self.low.clone() if self.affine else None
        self._find(x)
        if cap is not None and self.has_zero_point:
            low, high = (max(-cap, min(end, cap)) for end in self._ends())
            self._set_ends(low, high)
        elif cap is not None:
            self.step.clamp_(max=cap / code_range(self.bits, self.signed)[1])
        if grow and self.has_zero_point:
            (low, high), (step, offset) = self._ends(), before
            self._set_ends(min(low, offset.item()), max(high, (offset + step * (2**self.bits - 1)).item()))
        elif grow:
            self.step.copy_(torch.maximum(self.step, before[0]))
        self.is_found = False

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        step, bounds = self._prepared(x)
        return whole(round_to_step(x, step, bounds, self._binary)), step

    def distance(self, weight: Tensor) -> Tensor:
        """Return the sum of (level - weight)^2 over weights, those beyond the outermost levels counting 0.

        Its gradient is one in the weight alone.
        """
        with torch.no_grad():
            step, (low, high) = self._prepared(weight)
            levels = self.fake_quantize(weight.detach())
        return (levels - weight.clamp(low * step, high * step)).square().sum()

    def zero_point(self) -> int | None:
        return int(zero_point(self.low, self._step_in_use(), self.bits)) if self.has_zero_point else None

    @while_active
    def grid(self) -> Grid:
        if self.signed is None or not self.step.any():
            raise ValueError('the step is not known yet: calibrate, or run the network once')
        if self.step.numel() > 1:
            raise NotImplementedError('it has a step for each channel')
        step, zero = self._step_in_use().item(), self.zero_point()
        low, high = code_range(self.bits, self.signed) if zero is None else (-zero, 2**self.bits - 1 - zero)
        return Grid(step, step, low, high, binary=self._binary, zero_point=zero or 0)

    @property
    def _binary(self) -> bool:
        return self.bits == 1 and bool(self.signed)

    def _prepared(self, x: Tensor) -> tuple[Tensor, Bounds]:
        """Return the step in use, which broadcasts with `x`, and the codes of the ends; found in `x` if need be."""
        self._find_sign(x)
        if not self.is_found:
            with torch.no_grad():
                if not self.step.any():
                    self._find(x)
                self.is_found = bool(self.step.any())
        step = self._step_in_use()
        if not self.has_zero_point:
            return per_channel(step, x), code_range(self.bits, self.signed)
        with torch.no_grad():
            return step, codes_around_zero(zero_point(self.low, step, self.bits), self.bits)

    def _step_in_use(self) -> Tensor:
        return held_positive(self.step, max(MIN_STEP, torch.finfo(self.step.dtype).tiny))

    def _first_low(self) -> Tensor:
        return torch.zeros_like(self.step)

    def _ends(self) -> tuple[float, float]:
        """Return the lowest and the highest level of the affine grid, before its zero point is a whole number."""
        low, step = self.low.item(), self.step.item()
        return low, low + step * (2**self.bits - 1)

    def _set_ends(self, low: float, high: float):
        self.low.fill_(low)
        self.step.fill_((high - low) / (2**self.bits - 1))

    def _find(self, x: Tensor):
        """Set the step, and the offset, from the first tensor."""
        if self.has_zero_point:
            self._set_ends(*find_ends(x, self.bits, method='mse'))
            return
        magnitude = x.abs() if self.signed else x.clamp_min(0)
        mean = (magnitude.mean() if self.step.numel() == 1 else magnitude.flatten(1).mean(1)).double()
        if not mean.isfinite().all():
            raise ValueError(f'cannot find a step from {x.numel()} values whose mean magnitude is {mean.amax().item()}:'
                             ' they are not finite, or too large')
        if not self._binary:
            mean = 2 * mean / math.sqrt(code_range(self.bits, self.signed)[1])
            if self.init == 'least_squares':
                mean = least_squares_step(x.reshape(self.step.numel(), -1), mean.reshape(-1),
                                          code_range(self.bits, self.signed))
        self.step.copy_(mean.reshape(-1))

    def _gradient_scale(self, x: Tensor) -> float:
        count = x.numel() / self.step.numel() if self.per == 'weights' else math.prod(x.shape[1:])
        top = 2**self.bits - 1 if self.has_zero_point else code_range(self.bits, self.signed)[1]
        return 1 / math.sqrt(count * top)
