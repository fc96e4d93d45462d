"""ACIQ (Banner et al., 1810.05723): the best clip of a density, the best bits of each channel, and weights."""

import math
from functools import cache
from numbers import Integral

import torch
from torch import Tensor

from lib.quantize.quantizer import (
    MAX_QUANTIZER_BITS,
    Affine,
    Quantizer,
    check_choice,
    straight_through,
    while_active,
    whole,
)

PRIORS = ('laplace', 'gauss')
CLIPPINGS = ('minmax', 'aciq')
MAX_CHANNEL_BITS = 8
ALLOCATED_BITS = 4  # the paper allocates bits up to this mean
MEDIAN_SAMPLE = 2**20


def aciq_constant(bits: int, prior: str = 'laplace', one_sided: bool = False) -> float:
    """Return the clip of least mean squared error at `bits` bits, in units of the prior's spread.

    The error of 2^M steps in [-a, a] is, for a Laplace density of b = E|X| (in units of b),
    2 e^-a + a^2 / (3 4^M), and for a Gaussian (in units of sigma)
    (a^2 + 1) (1 - erf(a / sqrt 2)) - sqrt(2 / pi) a e^(-a^2 / 2) + a^2 / (3 4^M). Its derivative is 0 where
    a / (3 4^M) is e^-a, or sqrt(2 / pi) e^(-a^2 / 2) - a (1 - erf(a / sqrt 2)); bisection finds it. After a ReLU, with
    2^M steps in [0, a], it is the constant of M + 1 bits.

    Example: 2, 4 and 8 bits of a Laplace density give 2.8307, 5.0286 and 9.8968.

    Args:
        bits: M, 1..16.
        prior: 'laplace' or 'gauss'.
        one_sided: for a tensor behind a ReLU, with the spread of the density before it.

    Raises:
        ValueError: bits out of range, or another prior.
    """
    if not isinstance(bits, Integral) or isinstance(bits, bool) or not 1 <= bits <= MAX_QUANTIZER_BITS:
        raise ValueError(f'bits is {bits!r}; expected 1..{MAX_QUANTIZER_BITS}')
    check_choice('prior', prior, PRIORS)
    return _optimum(int(bits) + bool(one_sided), prior)


@cache
def _optimum(bits: int, prior: str) -> float:
    low, high = 0.0, 64.0
    for _ in range(60):
        middle = (low + high) / 2
        too_low = middle / (3 * 4**bits) < _clipped(middle, prior)
        low, high = (middle, high) if too_low else (low, middle)
    return (low + high) / 2


def _clipped(a: float, prior: str) -> float:
    """Return minus half the derivative of the error of what lies beyond -a and a."""
    if prior == 'laplace':
        return math.exp(-a)
    return math.sqrt(2 / math.pi) * math.exp(-a * a / 2) - a * math.erfc(a / math.sqrt(2))


def allocate_bits(spreads: Tensor, bits: int) -> Tensor:
    """Return int64 bits of each channel, 0..8, whose mean is `bits`: the more, the wider a channel is spread.

    B_i = n 2^M a_i^(2/3) / sum_j a_j^(2/3) levels and round(log2 B_i) bits, clipped to [0, 8]. Rounding
    and clipping miss the mean; the authors' program then moves M by what is missing, up to ten times. Here M is moved
    to where the mean is met exactly: as it grows, channel i gets its j-th bit once log2 B_i is j - 1/2, and the first
    n * bits of these events take place. At ties the first channels win.

    A channel of spread 0 is a constant and gets no bits. Where that, or the limit of 8, leaves bits over, the mean is
    below `bits`; it is never above.

    Example: spreads (1, 2, 32) at 2 bits: log2 B is (-0.08, 0.59, 3.26), rounded (0, 1, 3), too little; the bits are
    (1, 1, 4).

    Args:
        spreads: (channels,), b or sigma of each.
        bits: the mean, 1..8.

    Raises:
        ValueError: bits out of range; a spread that is negative or not finite; no channels.
    """
    if not isinstance(bits, Integral) or isinstance(bits, bool) or not 1 <= bits <= MAX_CHANNEL_BITS:
        raise ValueError(f'bits is {bits!r}; expected 1..{MAX_CHANNEL_BITS}, the mean over the channels')
    spreads = spreads.detach().double()
    if spreads.dim() != 1 or not len(spreads) or not bool(((spreads >= 0) & spreads.isfinite()).all()):
        raise ValueError(f"expected a vector of the channels' spreads, finite and not negative; got {spreads}")
    levels = torch.arange(1, MAX_CHANNEL_BITS + 1, device=spreads.device)[:, None]
    events = levels - (2 / 3) * spreads.log2()  # (8, channels), but for what all have in common
    taken = torch.zeros_like(events, dtype=torch.bool)
    order = events.flatten().sort(stable=True).indices[: len(spreads) * bits]
    taken.view(-1)[order] = True
    return (taken & (spreads > 0)).sum(0)


class ACIQWeightQuantizer(Quantizer):
    """Weights on 2^M steps of a range, then given back their mean and norm: q = scale c + shift.

    * Codes c = clip(round((w - offset) / step), 0, 2^M - 1): each level is the middle of its step.
    * 'minmax': step = (max - min) / 2^M, offset = min + step / 2, so no weight is off by more than step / 2. 'aciq':
      the range is mu -+ a, with a = b x_M around the median and b = E|w - mu| ('laplace'), or a = sigma x_M around the
      mean ('gauss'), x_M of `aciq_constant`; step = 2 a / 2^M, offset = mu - a + step / 2.
    * Bias correction: scale = |w - E w| / |c - E c| (norms) and shift = E w - scale E c, so mean and
      variance are those of w, per channel or of the whole tensor, as the ranges are. In the paper's words: w_q =
      step c + offset becomes xi w_q + E w - xi E w_q. Without it scale and shift are step and offset.

    Example: w = (-1, 0.2, 1), 2 bits, minmax, not corrected: step 0.5, offset -0.75, codes (0, 2, 3), q = (-0.75, 0.25,
    0.75).

    A range of 0, and a channel that was allocated 0 bits, becomes its mean. The gradient passes straight through.

    The map is found in the weight by `calibrate`, or by the first forward after `bits` was set to another width, and
    does not follow the weight afterwards. `step`, `offset`, `scale`, `shift`, `widths` (M of each channel) and
    `found_bits` are buffers, of one number or of shape (out, 1, ...), and are used as they were saved.

    Args:
        bits: 1..16, or None, -1, >= 32 to leave weights alone.
        method: 'minmax' or 'aciq'.
        prior: the density, 'laplace' or 'gauss'; also the spread by which bits are allocated.
        per_channel: one map for each output channel (the first dimension).
        bit_alloc: M of each channel by `allocate_bits`; as in the paper, up to 4 bits: above, M is `bits` everywhere.
        bias_corr: correct mean and norm.

    Raises:
        ValueError: another method or prior, or `bit_alloc` without `per_channel`.
    """

    shown = ('bits', 'method', 'prior', 'per_channel', 'bit_alloc', 'bias_corr')

    def __init__(self, bits: int | None = None, *, method: str = 'minmax', prior: str = 'laplace',
                 per_channel: bool = False, bit_alloc: bool = False, bias_corr: bool = True):
        super().__init__(bits)
        check_choice('method', method, CLIPPINGS)
        check_choice('prior', prior, PRIORS)
        if bit_alloc and not per_channel:
            raise ValueError('bit_alloc gives each output channel bits of its own: set per_channel, too')
        self.method, self.prior = method, prior
        self.per_channel, self.bit_alloc, self.bias_corr = per_channel, bit_alloc, bias_corr
        for name in ('step', 'offset', 'scale', 'shift'):
            self.register_buffer(name, torch.zeros(1))
        for name in ('widths', 'found_bits'):
            self.register_buffer(name, torch.zeros(1, dtype=torch.int64))

    def bits_changed(self):
        self.is_found = False

    def fake_quantize(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            quantized = self._codes(x).mul_(self.scale).add_(self.shift).to(x.dtype)
        return straight_through(x, quantized)

    @torch.no_grad()
    def calibrate(self, x: Tensor, *, method: str = 'kl', cap: float | None = None, grow: bool = False):
        """Find the map in the weight `x`; how, is said by the quantizer's own `method`."""
        if self.active:
            self._find_map(x)

    @while_active
    def to_int(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise ValueError('ACIQ weights are scale * code + shift, no multiples of a scale; use to_affine')

    @while_active
    def to_affine(self, x: Tensor) -> Affine:
        """Return codes, scale and zero point; `bits` is the largest width of a channel, 1 at least.

        What is a constant v has the codes 0, the scale |v| and the zero point -sign(v), or 1 and 0 for v = 0.
        """
        codes = self._codes(x)
        return shifted_affine(codes, self.scale, self.shift, max(int(self.widths.max()), 1))

    def _codes(self, weight: Tensor) -> Tensor:
        """Return codes as floats in a new tensor."""
        if not self.is_found:
            if self.found_bits.item() != self.bits:
                self._find_map(weight)
            self.is_found = True
        if self.step.numel() not in (1, len(weight)):
            raise ValueError(f'the map has {self.step.numel()} channels and the weight {len(weight)}: calibrate')
        return shifted_codes(weight, self.step, self.offset, 2**self.widths - 1)

    @torch.no_grad()
    def _find_map(self, weight: Tensor):
        rows = (weight.flatten(1) if self.per_channel else weight.reshape(1, -1)).double()  # (maps, weights)
        if rows.numel() == 0 or not bool(rows.isfinite().all()):
            raise ValueError(f'cannot find a map for {rows.numel()} weights that are not all finite')
        widths = self._channel_bits(rows)
        step, offset = self._steps(rows, widths)
        self._store(weight, step=step, offset=offset, widths=widths, scale=step, shift=offset)
        if self.bias_corr:
            codes = shifted_codes(weight, self.step, self.offset, 2**self.widths - 1).double().reshape(rows.shape)
            mean, mean_code = rows.mean(1), codes.mean(1)
            norm, code_norm = (rows - mean[:, None]).norm(dim=1), (codes - mean_code[:, None]).norm(dim=1)
            scale = torch.where(code_norm > 0, norm / code_norm, step)
            self._store(weight, scale=scale, shift=mean - scale * mean_code)
        self.found_bits.fill_(self.bits)
        self.is_found = True

    def _channel_bits(self, rows: Tensor) -> Tensor:
        if self.bit_alloc and self.bits <= ALLOCATED_BITS:
            return allocate_bits(center_and_spread(rows, self.prior)[1], self.bits)
        return torch.full((len(rows),), self.bits, device=rows.device)

    def _steps(self, rows: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Return step and offset of each map; a channel of no bits has the step 0 and its mean as the offset."""
        if self.method == 'minmax':
            low, high = torch.aminmax(rows, dim=1)
            step = (high - low) / 2**widths
        else:
            center, spread = center_and_spread(rows, self.prior)
            clip = spread * rows.new_tensor([aciq_constant(max(bits, 1), self.prior) for bits in widths.tolist()])
            low, step = center - clip, 2 * clip / 2**widths
        return torch.where(widths > 0, step, 0), torch.where(widths > 0, low + step / 2, rows.mean(1))

    def _store(self, weight: Tensor, **buffers: Tensor):
        shape = (-1, *[1] * (weight.dim() - 1)) if self.per_channel else (1,)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        for name, values in buffers.items():
            setattr(self, name, values.view(shape).to(dtype if values.is_floating_point() else values.dtype))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        for name, buffer in list(self._buffers.items()):
            saved = state_dict.get(prefix + name)
            if saved is not None and saved.shape != buffer.shape:  # another number of channels than found so far
                setattr(self, name, buffer.new_zeros(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)


def center_and_spread(rows: Tensor, prior: str) -> tuple[Tensor, Tensor]:
    """Return median and E|x - median| ('laplace') or mean and standard deviation ('gauss') of each row."""
    if rows.numel() == 0:
        raise ValueError('cannot find the spread of an empty tensor')
    if prior == 'gauss':
        center = rows.mean(1)
        return center, (rows - center[:, None]).square_().mean(1).sqrt()
    step = rows.shape[1] // MEDIAN_SAMPLE | 1  # odd: not in step with rows and channels
    center = rows[:, ::step].median(1).values
    return center, (rows - center[:, None]).abs_().mean(1)


@torch.no_grad()
def shifted_codes(x: Tensor, step: Tensor, offset: Tensor, top: Tensor) -> Tensor:
    """Return round((x - offset) / step), clipped to [0, top], as floats in a new tensor; 0 where the step is 0."""
    codes = (x - offset).div_(torch.where(step > 0, step, torch.inf)).round_().clamp_min_(0)
    return torch.minimum(codes, top.to(codes.dtype), out=codes)


def shifted_affine(codes: Tensor, scale: Tensor, shift: Tensor, bits: int) -> Affine:
    """Return scale * code + shift as an `Affine`; a constant, of scale and codes 0, is |shift| * (0 + sign(shift))."""
    scale, shift = scale.double(), shift.double()
    scale = torch.where(scale > 0, scale, torch.where(shift == 0, 1, shift.abs()))
    return Affine(whole(codes, torch.int64), scale, -shift / scale, bits)
