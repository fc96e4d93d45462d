"""Which layers get inputs that can be negative, and how far: by the structure of the network, else by a probe."""

import math
import weakref
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.network.hooks import evaluating, hooked
from lib.network.reach import Following
from lib.network.tracking import MOVING, TensorTracker, arguments_of
from lib.quantize.reading import Product

INF = math.inf
# The largest value of functions whose output is never negative, whatever comes in.
NONNEGATIVE = {'relu': INF, 'relu6': 6.0, 'sigmoid': 1.0, 'hardsigmoid': 1.0, 'softmax': 1.0, 'abs': INF, 'square': INF,
               'softplus': INF, 'exp': INF}
# The least value of functions that are not negative where what goes in is not; GELU by tanh goes lowest.
LEAST = {'gelu': -0.170041, 'silu': -0.278465, 'hardswish': -0.375, 'mish': -0.308844}
GATES = {'sigmoid': LEAST['silu'], 'hardsigmoid': LEAST['hardswish']}  # of x * gate(x)
CLAMPS = {'hardtanh', 'clamp', 'clip', 'clamp_min'}
SUMS = {'add', '__add__', '__radd__', '__iadd__'}
PRODUCTS = {'mul', '__mul__', '__rmul__', '__imul__'}
QUOTIENTS = {'div', 'true_divide', '__truediv__', '__rtruediv__', '__div__', '__itruediv__'}
# Functions that multiply and add up any number of elements.
REDUCTIONS = {'sum', 'matmul', '__matmul__', 'bmm', 'einsum', 'scaled_dot_product_attention'}
# Functions that move, average or drop values, pick from them or put numbers that are not negative beside them.
WITHIN = MOVING | {'avg_pool2d', 'adaptive_avg_pool2d', 'repeat', 'unbind', 'unfold', 'mean', 'amax', 'stack', 'to',
                   'float'}
PICKING = {'pad', 'max', 'maximum', 'where', 'masked_fill'}
DROPS = {'dropout': 2, 'dropout2d': 2, 'stochastic_depth': 3}  # and the place of their argument `training`


class Interval(NamedTuple):
    """Where all elements of a tensor lie, and 0 with them: low <= 0 <= high.

    `gate` says that they are sigmoid(x) or hardsigmoid(x): (x as a weak reference, its version, least x * gate(x)).
    """

    low: float
    high: float
    gate: tuple | None = None


class SignTracker(TensorTracker):
    """While active, knows of tensors in which interval the structure of the network proves their elements to lie.

    The proof follows pooling, reshaping, concatenation, sums and products of such tensors; what is not known here
    counts as not proven.
    """

    def derive(self, name: str, args: tuple, kwargs: Mapping) -> Interval | None:
        """Return the `Interval` of the output of a function, None where none is proven."""
        found = None if 'out' in kwargs else self._interval(name if name.startswith('__') else name.rstrip('_'), args,
                                                            kwargs)
        return found if found is not None and found.low > -INF else None

    def is_proven(self, tensor: Tensor) -> bool:
        """Return whether no element of `tensor` can be negative: proved, or not in its type."""
        return self.least(tensor) == 0

    def least(self, tensor: Tensor) -> float | None:
        """Return what no element of `tensor` is below, at most 0, or None where that is not known."""
        found = self._of(tensor)
        return found and found.low

    def _of(self, leaf) -> Interval | None:
        """Return the interval of a tensor or a number, None where it is not known."""
        if isinstance(leaf, Tensor):
            return Interval(0.0, INF) if leaf.dtype in (torch.bool, torch.uint8) else self.fact(leaf)
        return Interval(min(float(leaf), 0.0), max(float(leaf), 0.0)) if isinstance(leaf, Real) else None

    def _interval(self, name, args, kwargs):
        if name in NONNEGATIVE:
            gate = (weakref.ref(args[0]), args[0]._version, GATES[name]) if name in GATES and args \
                and not args[0].is_inference() else None
            return Interval(0.0, NONNEGATIVE[name], gate)
        if name in LEAST:
            return Interval(0.0 if args and self.is_proven(args[0]) else LEAST[name], INF)
        if name in CLAMPS:
            return self._clamped(args, kwargs)
        if name == '__getitem__':
            return self._of(args[0])
        leaves = arguments_of(args, kwargs)
        tensors = [self._of(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, str, type(None)))]
        if name in WITHIN | DROPS.keys():
            return None if name in DROPS and not self._kept(name, args, kwargs, tensors) else _union(tensors)
        if name in SUMS | PRODUCTS and len(leaves) == 2:
            return self._of_two(name, *leaves)
        if name in QUOTIENTS and len(args) == 2 and isinstance(args[1], Real) and args[1] > 0 and all(tensors):
            return Interval(*(end / float(args[1]) for end in tensors[0][:2])) if tensors else None
        if name not in SUMS | PRODUCTS | QUOTIENTS | REDUCTIONS | PICKING:
            return None
        if name != 'sum' and not all(isinstance(leaf, Real) and leaf >= 0 for leaf in others):
            return None
        found = _union(tensors)
        if found is None or name in PICKING:
            return found and Interval(found.low, INF)
        return Interval(0.0, INF) if found.low == 0 else None

    def _clamped(self, args, kwargs):
        bounds = [*args[1:], *kwargs.values()]  # a maximum below the minimum would win
        low = kwargs.get('min_val', kwargs.get('min', args[1] if len(args) > 1 else None))
        numbers = [bound for bound in bounds if bound is not None and not isinstance(bound, bool)]
        if not isinstance(low, Real) or not all(isinstance(bound, Real) for bound in numbers):
            return None
        return Interval(min(0.0, *numbers), INF)

    def _kept(self, name, args, kwargs, tensors):
        """Whether a dropout keeps the values that it does not drop: in training it scales them."""
        place = DROPS[name]
        training = kwargs.get('training', args[place] if len(args) > place else True)
        return not training or all(found is not None and found.low == 0 for found in tensors)

    def _of_two(self, name, first, second):
        """Return the interval of a sum or a product of tensors and numbers."""
        for x, gate in ((first, second), (second, first)):
            known = self._of(gate)
            if name in PRODUCTS and known is not None and known.gate and known.gate[0]() is x \
                    and x._version == known.gate[1] and not self.is_proven(x):
                return Interval(known.gate[2], INF)
        a, b = self._of(first), self._of(second)
        if a is None or b is None:
            return None
        if name in SUMS:
            return Interval(a.low + b.low, a.high + b.high)
        ends = [0.0 if 0 in (one, other) else one * other for one in a[:2] for other in b[:2]]
        return Interval(min(ends), max(ends))


def _union(found) -> Interval | None:
    """Return the interval of values that come from any of these; None where one is not known, or there is none."""
    if not found or None in found:
        return None
    return Interval(min(each.low for each in found), max(each.high for each in found))


class InputRange(NamedTuple):
    """What is known of the inputs of a layer.

    `signed`: False where the structure proves all of them not negative, True where they can be negative: the structure
    says how far, or the probe shows a negative value; None where neither is known. `least`: what the structure proves
    that none is below, at most 0, or None.
    """

    signed: bool | None
    least: float | None


@torch.no_grad()
def find_input_ranges(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, InputRange]:
    """Run `model` once on `images` and return {name: `InputRange`} of those of `layers` whose forward was called.

    Args:
        model: the network; its mode is restored afterwards.
        images: tensor (N, C, H, W), on the model's device; also on the meta device, where only the structure counts.
    """
    found, tracker = {}, SignTracker()
    names = {layer: name for name, layer in layers.items()}

    def note(name, _module, x):
        least = tracker.least(x)
        negative = least is None and not x.is_meta and bool((x < 0).any())
        signed = least < 0 if least is not None else negative or None
        before = found.get(name)
        if before is not None:  # called again: what holds for all calls
            signed = True if True in (signed, before.signed) else None if None in (signed, before.signed) else False
            least = None if None in (least, before.least) else min(least, before.least)
        found[name] = InputRange(signed, least)

    def note_use(use, x, weight):
        note(names[use.layer], None, x)
        if isinstance(use.layer, Product):
            note(f'{names[use.layer]}.weight', None, weight)

    with hooked(layers, before=note), evaluating(model), Following(note_use).through(model), tracker:
        model(images.clone())  # the network may change its input in place
    return found


def probe_inputs(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, bool | None]:
    """Return the signs {name: signed} of `find_input_ranges`."""
    return {name: found.signed for name, found in find_input_ranges(model, layers, images).items()}
