"""Lowering of layers with weights: integer weights, the accumulator and the range that it cannot leave."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.integer.fixed_point import FixedPoint, Mantissa, encode_mantissa
from lib.integer.values import INT64, Program, Register, Term, Value
from lib.quantize.folding import doubles_of, fold_batch_norm
from lib.quantize.layers import QuantizedLayer

# What weights of 32 bits get: 16 bits move about one code in a thousand behind the layer, 20 one in ten thousand.
FLOAT_WEIGHT_BITS = 20
FIXED_POINT_WEIGHT_BITS = 16  # the shift of fixed-point multipliers is longer by these bits: int64 has no room for more
ACCUMULATOR_BITS = 46  # what 16-bit multipliers leave of int64
LAST_ACCUMULATOR_BITS = 56  # a few bits behind the point remain to the bias


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PLAIN_FORWARDS = (nn.BatchNorm1d.forward, nn.BatchNorm2d.forward)
# Layers that divide by a statistic of their input, or by a sum of exponentials; by the end of the class's name.
WITHOUT_INTEGERS = {'LayerNorm': 'LayerNorm', 'LayerNorm2d': 'LayerNorm', 'GroupNorm': 'GroupNorm',
                    'GroupNorm1': 'GroupNorm', 'RMSNorm': 'RMSNorm', 'InstanceNorm2d': 'InstanceNorm',
                    'Softmax': 'softmax', 'Attention': 'attention (a softmax)'}


class Weight(NamedTuple):
    """Integer codes of so many bits, real value of one code per output channel (double), and its factor 2^-exponent."""

    codes: Tensor
    bits: int
    scale: Tensor
    exponent: int

    @property
    def gain(self) -> int:
        """The largest factor from the inputs to an accumulator."""
        return self.codes.abs().flatten(1).sum(1).amax().item()


def room_for_accumulators(form: FixedPoint | Mantissa | None) -> int:
    """Return the bits of int64 that multipliers of the format `form` leave to accumulators, sign not counted.

    None stands for the last layer: no multiplier follows.
    """
    if form is None:
        return LAST_ACCUMULATOR_BITS
    return 62 - form.bits if isinstance(form, Mantissa) else ACCUMULATOR_BITS


def integer_weight(name: str, layer: nn.Module, form: FixedPoint | Mantissa | None) -> Weight:
    """Return the weight of a layer as integers; weights without bits become fixed point with a scale of 2^-exponent.

    The bits of those are at most 20, and no more than half of what `form`, the format of the multipliers behind the
    layer, leaves to inputs and weights together.
    """
    if hasattr(layer, 'float_forward'):
        raise ValueError(f'{name}: a {type(layer).__name__} has a forward of its own, which integers do not repeat')
    weight = layer.weight.detach().cpu()
    if weight.isnan().any() or weight.isinf().any():
        raise ValueError(f'{name} has weights that are not finite: check the checkpoint')
    quantizer = getattr(layer, 'weight_quantizer', None)
    if quantizer is None or not quantizer.active:
        bits = _float_weight_bits(weight, form)
        codes, fraction = encode_mantissa(weight, bits)
        return Weight(codes, bits, torch.full((len(weight),), 2.0**-fraction, dtype=torch.float64), fraction)
    try:
        codes, scale = quantizer.to_int(layer.weight.detach())
    except NotImplementedError as error:
        raise ValueError(f'{name}: a {type(quantizer).__name__} has no integer codes') from error
    scale = scale.detach().cpu().double().flatten()
    if len(scale) not in (1, len(weight)):
        raise ValueError(f'{name}: the weight has {len(scale)} scales; expected one, or one an output channel')
    return Weight(codes.cpu().long(), quantizer.bits, scale.expand(len(weight)).clone(), 0)


def _float_weight_bits(weight, form):
    if isinstance(form, FixedPoint):
        return FIXED_POINT_WEIGHT_BITS
    magnitude = weight.abs()
    spread = magnitude.flatten(1).sum(1).amax() / magnitude.amax().clamp_min(torch.finfo(weight.dtype).tiny)
    return max(12, min(FLOAT_WEIGHT_BITS, (room_for_accumulators(form) - int(spread).bit_length()) // 2))


def accumulate(program: Program, name: str, layer: nn.Module, weight: Weight, term: Term, kind: str,
               shape: Sequence[int], **options) -> Value:
    """Add the convolution or product of `layer` with the codes of `term`; the bias is an offset of the result."""
    codes, _, scale, exponent = weight
    low, high, bound = _bounds(codes, term.register, options.get('groups', 1))
    if bound >= INT64:
        raise ValueError(f'{name}: the accumulator may reach {bound:.3g}, beyond int64 (9.2e18), with inputs up to '
                         f'{term.register.magnitude.amax()} and weights up to {codes.abs().amax()}: quantize its input '
                         'or its weight to fewer bits, or take a smaller wide_word')
    register = program.add(kind, name, [term.register], shape, low, high, arrays={'weight': codes}, bound=bound,
                           note=f'weight * {scale[0].item():.9g}', **options,
                           operand_bits=(weight.bits, program.width(term.register)))
    offset = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().cpu().double()
    return Value(tuple(shape), [Term(register, scale * term.multiplier[0], exponent + term.exponent)], offset)


def _bounds(codes, register: Register, groups):
    """Return bounds of every accumulator and of its partial sums: the inputs count from 0, as padding is 0."""
    low, high = register.low.clamp(max=0), register.high.clamp(min=0)
    outputs = len(codes) // groups
    positive, negative = (part.flatten(2).sum(2) if part.dim() > 2 else part
                          for part in (codes.clamp(min=0), codes.clamp(max=0)))  # (out, in / groups)
    inputs = positive.shape[1]

    def product(weights, bound):  # (out,), channel by channel of the input
        grouped = bound.view(groups, inputs, 1).to(weights.dtype)
        return (weights.view(groups, outputs, inputs) @ grouped).flatten()

    estimate = product((positive - negative).double(), register.magnitude.double()).amax().item()
    if estimate >= INT64 / 4:  # doubles are near enough to say so; the integers below cannot overflow
        return None, None, estimate * 4
    return product(positive, low) + product(negative, high), product(positive, high) + product(negative, low), estimate


def input_word(name: str, weight: Weight, word: int, form: FixedPoint | Mantissa | None) -> int:
    """Return with how many bits a wide input leaves an accumulator that the next multiplier does not push off int64.

    Raises:
        ValueError: fewer than 12.
    """
    word = min(word, room_for_accumulators(form) - weight.gain.bit_length() + 1)
    if word < 12:
        raise ValueError(f'{name}: its weights add up to {weight.gain}, which leaves {word} bits to an input that is '
                         'not quantized; quantize its input, or its weight to fewer bits')
    return word


def plain_convolution(name: str, layer: nn.Module) -> tuple[int, int]:
    """Return the padding of a convolution as a pair.

    Raises:
        ValueError: it pads otherwise than with zeros, as much on both sides, or has a forward of its own.
    """
    if type(layer)._conv_forward is not nn.Conv2d._conv_forward:
        raise ValueError(f'{name} ({type(layer).__name__}) convolves in a way of its own: it has no integer form here')
    if layer.padding_mode != 'zeros':
        raise ValueError(f'{name} pads with {layer.padding_mode!r}: only zeros have an integer form here')
    if layer.padding == 'valid':
        return 0, 0
    if layer.padding == 'same':
        spans = [reach * (size - 1) for reach, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        if any(span % 2 for span in spans):
            raise ValueError(f"{name}: padding 'same' of an even kernel pads one side more: give numbers")
        return tuple(span // 2 for span in spans)
    return tuple(layer.padding)


def is_layer(module: nn.Module) -> bool:
    """Return whether `module` is a convolution or linear layer, quantized or not."""
    return isinstance(module, (QuantizedLayer, nn.Conv2d, nn.Linear))


def batch_norm(name: str, norm: nn.Module, value: Value) -> Value:
    """Return the value after a BatchNorm in evaluation: terms and offset times gamma / sqrt(var + eps), shifted."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(f'{name} has no running statistics: it depends on the batch and has no integer form')
    factor, offset = fold_batch_norm(torch.ones_like(value.offset), value.offset, *doubles_of(norm), norm.eps)
    if not (factor.isfinite().all() and offset.isfinite().all()):
        raise ValueError(f'{name} has statistics or weights that are not finite: check the checkpoint')
    terms = [Term(term.register, term.multiplier * factor, term.exponent) for term in value.terms]
    return Value(value.shape, terms, offset)


def kinds_without_integers(model: nn.Module) -> str:
    """Return in words which layers of a network have no integer form here; '' if none is known to have none."""
    found = {}
    for name, module in model.named_modules():
        for ending, kind in WITHOUT_INTEGERS.items():
            if type(module).__name__.endswith(ending):
                found.setdefault(kind, []).append(name)
                break
    words = [f'{kind} in {len(names)} layers ({names[0]} first)' for kind, names in found.items()]
    return f'it has {", ".join(words)}, and these need divisions and exponentials' if words else ''
