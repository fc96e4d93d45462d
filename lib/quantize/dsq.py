"""DSQ, differentiable soft quantization (Gong et al., 1908.05033), of weights and of activations."""

import math

import torch
from torch import Tensor, nn

from lib.quantize.pact import held_positive
from lib.quantize.quantizer import Affine, Grid, Quantizer, check_choice, while_active, whole

BOUNDS = ('fixed', 'minmax')
MIN_SLOPE = 0.01


class DSQQuantizer(Quantizer):
    """Uniform rounding in [l, u] forward, the derivative of a soft staircase backward: q = l + D round((x - l) / D).

    D = (u - l) / (2^bits - 1), x is clipped to [l, u] first, ties round to even; one bit has the levels l and u.

    Example: x = (-1, 0.6, 2), l = 0, u = 1.5, 2 bits: (0, 0.5, 1.5).

    With z = clip((x - l) / D, 0, 2^bits - 1), f = floor(z), t = z - f - 1/2 and the slope k, the soft curve is
    l + D (f + 1/2 + tanh(k t) / (2 tanh(k / 2))): the identity for k near 0, the staircase for a large one. dq/dx is
    its derivative r = k (1 - tanh(k t)^2) / (2 tanh(k / 2)) in [l, u], both ends included (they are weights), and 0
    outside. All other gradients are those of l + D (soft + (round(soft) - soft).detach()), soft in steps: with
    c = round(z), dq/du is (c - z r) / (2^bits - 1) inside, 1 above and 0 below; dq/dl is 1 - r - dq/du inside, 0 above
    and 1 below; dq/dk is that of the curve. The slope is the same in steps of any size, and alpha of the paper is
    1 - tanh(k / 2): 5 is 0.0134, 2 is 0.238.

    Where u is not above l, u in use is a trifle above l. All is finite then, and what lies above still teaches u. In
    use is |slope|, at least 0.01. For the backward pass only `x` is kept.

    `lower`, `upper` and `slope` are Parameters of shape [1], and ask for a gradient only while learned and `active`.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave the tensor alone; it clips nothing then either.
        bounds: 'fixed': `lower` and `upper`, as activations have them. 'minmax': smallest and largest value of the
            tensor at hand, without gradient, as weights have them, but for a bound that is learned.
        lower, upper: bounds to start with. None: 0 and 2; a learned one of 'minmax' begins where the first tensor that
            comes, or that is calibrated with, has its minimum or maximum, and is infinite until then.
        learn_lower, learn_upper, learn_slope: which of them are learned.

    Raises:
        ValueError: another word for `bounds`, bounds that are not finite or not in order, a slope of 0 or less.
    """

    shown = ('bits', 'bounds', 'learn_lower', 'learn_upper', 'learn_slope')

    def __init__(self, bits: int | None = None, *, bounds: str = 'fixed', lower: float | None = None,
                 upper: float | None = None, slope: float = 5.0, learn_lower: bool = False, learn_upper: bool = False,
                 learn_slope: bool = False):
        super().__init__(bits)
        check_choice('bounds', bounds, BOUNDS)
        if not 0 < slope < math.inf:
            raise ValueError(f'slope is {slope!r}: expected more than 0')
        self.bounds = bounds
        self.learn_lower, self.learn_upper, self.learn_slope = learn_lower, learn_upper, learn_slope
        lower, upper = self._initial_bounds(lower, upper)
        self.lower = nn.Parameter(torch.full((1,), float(lower)))
        self.upper = nn.Parameter(torch.full((1,), float(upper)))
        self.slope = nn.Parameter(torch.full((1,), float(slope)))
        self.bits_changed()

    def _initial_bounds(self, lower: float | None, upper: float | None) -> tuple[float, float]:
        found = [bound for bound in (lower, upper) if bound is not None]
        first = self.bounds == 'minmax'
        lower = (-math.inf if first and self.learn_lower else 0.0) if lower is None else lower
        upper = (math.inf if first and self.learn_upper else 2.0) if upper is None else upper
        if not all(math.isfinite(bound) for bound in found) or (self.bounds == 'fixed' or len(found) == 2) and not (
                lower < upper):
            raise ValueError(f'the bounds are {lower!r} and {upper!r}: expected two numbers, the lower one first')
        return lower, upper

    def bits_changed(self):
        # A parameter that asks for a gradient and never gets one would stop DistributedDataParallel.
        self.lower.requires_grad_(self.learn_lower and self.active)
        self.upper.requires_grad_(self.learn_upper and self.active)
        self.slope.requires_grad_(self.learn_slope and self.active)

    def fake_quantize(self, x: Tensor) -> Tensor:
        lower, upper = self._bounds_in_use(x)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, lower, upper, self.slope)):
            return _RoundSoftly.apply(x, lower, upper, held_positive(self.slope, MIN_SLOPE), self.bits)
        return _fake_quantize(x, lower, upper, self.bits)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Find learned bounds that are not known yet in `x`; all others are configured or learned, and stay."""
        if self.active and not x.numel():
            raise ValueError('cannot choose a clipping range from an empty tensor')
        if self.active:
            self._bounds_in_use(x)

    @torch.no_grad()
    def clamp_(self, **limits_of: tuple[float, float]):
        """Clamp learned `lower`, `upper` and `slope` to (least, largest), in place, after a step of the optimizer."""
        for name, limits in limits_of.items():
            parameter = getattr(self, name)
            if getattr(self, f'learn_{name}'):
                parameter.copy_(torch.where(parameter.isinf(), parameter, parameter.clamp(*limits)))

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (int32 codes, scale); ValueError where the lower bound is not 0."""
        codes, lower, step = _codes(x, *self._bounds_in_use(x), self.bits)
        if lower.item() != 0:
            raise ValueError(f'the lower bound is {lower.item():g}: levels are no multiples of a scale; use to_affine')
        return whole(codes), step

    @while_active
    def to_affine(self, x: Tensor) -> Affine:
        codes, lower, step = _codes(x, *self._bounds_in_use(x), self.bits)
        scale = step.double()
        return Affine(whole(codes, torch.int64), scale, -lower.double() / scale, self.bits)

    @while_active
    def grid(self) -> Grid:
        if self.bounds != 'fixed':
            raise ValueError("the bounds are 'minmax', those of each tensor: there is no one map for all tensors")
        lower, _, step = _range(self.lower, self.upper, self.bits)
        if lower.item() != 0:
            raise ValueError(f'the lower bound is {lower.item():g}: codes of a grid stand for multiples of its scale')
        return Grid(step.item(), step.item(), 0, 2**self.bits - 1)

    def _bounds_in_use(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return lower and upper bound, of shape [1], for the tensor `x`."""
        if self.bounds == 'fixed' or (self.is_found and self.learn_lower and self.learn_upper):
            return self.lower, self.upper
        low, high = (bound.reshape(1) for bound in torch.aminmax(x.detach()))
        if not self.is_found:
            self._find_bounds(low, high)
        return self.lower if self.learn_lower else low, self.upper if self.learn_upper else high

    @torch.no_grad()
    def _find_bounds(self, low: Tensor, high: Tensor):
        for bound, value in ((self.lower, low), (self.upper, high)):
            bound.copy_(torch.where(bound.isinf(), value, bound))
        self.is_found = True


def _range(lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (lower, upper, step) in use, in float32 at least; the step is positive whatever the bounds are."""
    dtype = torch.promote_types(lower.dtype, torch.float32)
    lower, upper, limits = lower.to(dtype), upper.to(dtype), torch.finfo(dtype)
    upper = upper.maximum(lower + (lower.abs() * (8 * limits.eps) + limits.tiny * 2**20))
    return lower, upper, (upper - lower) / (2**bits - 1)


@torch.no_grad()
def _clip(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Return `x.clamp(lower, upper)` in a new tensor; `clamp` with bounds that are tensors is several times slower."""
    clipped = x.maximum(lower)
    return torch.minimum(clipped, upper, out=clipped)


def _codes(x: Tensor, lower: Tensor, upper: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, as floats in a new tensor, the lower bound in use and the step; ties round to even."""
    lower, upper, step = _range(lower, upper, bits)
    return _clip(x, lower, upper).sub_(lower).div_(step).round_(), lower, step


@torch.no_grad()
def _fake_quantize(x: Tensor, lower: Tensor, upper: Tensor, bits: int) -> Tensor:
    codes, lower, step = _codes(x, lower, upper, bits)
    return codes.mul_(step).add_(lower).to(x.dtype)


class _RoundSoftly(torch.autograd.Function):
    """Rounding with the gradients of DSQ; for the backward pass it keeps its input alone, and computes the rest."""

    @staticmethod
    def forward(ctx, x, lower, upper, slope, bits):
        ctx.save_for_backward(x, lower, upper, slope)
        ctx.bits = bits
        return _fake_quantize(x, lower, upper, bits)

    @staticmethod
    def backward(ctx, grad):
        x, lower, upper, slope = ctx.saved_tensors
        needs_lower, needs_upper, needs_slope = ctx.needs_input_grad[1:4]
        low, high, step = _range(lower, upper, ctx.bits)
        top, edge = 2**ctx.bits - 1, torch.tanh(slope / 2)
        z = _clip(x, low, high)
        # Whether x is inside is asked of x: z of the largest weight may round to more than `top`.
        inside = torch.eq(z, x, out=torch.empty_like(z)).mul_(grad)  # the gradient inside, else 0; no mask: faster
        z.sub_(low).div_(step)
        t = z.floor().neg_().add_(z).sub_(0.5)  # in [-1/2, 1/2]
        curve = (t * slope).tanh_()
        # A piece of the soft curve rises by slope (1 - curve^2) / (2 edge).
        grad_x = torch.addcmul(inside, inside * curve, curve, value=-1).mul_(slope / (2 * edge))
        grad_slope = grad_upper = grad_lower = None
        if needs_slope:
            widening = t.mul_(grad_x).sum() / slope - curve.mul_(inside).sum() * ((1 - edge**2) / (4 * edge**2))
            grad_slope = (widening * step).to(slope.dtype)
        if needs_lower or needs_upper:
            grad_upper = ((grad * z.round()).sum() - z.mul_(grad_x).sum()).reshape(1) / top
            grad_lower = (grad.sum(dtype=low.dtype) - grad_x.sum() - grad_upper).to(lower.dtype)
            grad_upper = grad_upper.to(upper.dtype)
        return grad_x.to(x.dtype), grad_lower, grad_upper, grad_slope, None
