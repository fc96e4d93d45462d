"""Which layers get inputs that can be negative: by the structure of the network, else by a probe."""

from collections.abc import Mapping
from numbers import Real

import torch
from torch import Tensor, nn

from lib.network.hooks import evaluating, hooked
from lib.network.tracking import TensorTracker, arguments_of

# Functions whose output is never negative, whatever comes in.
NONNEGATIVE = {'relu', 'relu_', 'relu6', 'sigmoid', 'sigmoid_', 'hardsigmoid', 'softmax', 'abs', 'abs_', 'square',
               'softplus', 'exp'}
# Functions whose output is not negative if no tensor and no number that goes in is.
ARITHMETIC = {'add', 'add_', '__add__', '__radd__', '__iadd__', 'mul', 'mul_', '__mul__', '__rmul__', '__imul__',
              'div', 'div_', 'true_divide', '__truediv__', '__rtruediv__', '__div__', '__itruediv__', 'pad', 'max',
              'maximum', 'where', 'masked_fill', 'masked_fill_', 'matmul', '__matmul__', 'bmm', 'einsum'}
# Functions that move, average or drop values: not negative if no tensor that goes in is.
MOVING = {'max_pool2d', 'boolean_dispatch', 'fn', 'avg_pool2d', 'adaptive_avg_pool2d', 'adaptive_max_pool2d', 'flatten',
          'unflatten', 'view', 'reshape', 'permute', 'transpose', 'movedim', 'contiguous', 'squeeze', 'unsqueeze',
          'expand', 'repeat', 'flip', 'chunk', 'split', 'unbind', 'narrow', 'select', 'unfold', 'pixel_shuffle',
          'pixel_unshuffle', 'channel_shuffle', 'mean', 'sum', 'amax', 'dropout', 'dropout2d', 'cat', 'concat', 'stack',
          'clone', 'detach', 'to', 'float', 'stochastic_depth', 'roll'}


class SignTracker(TensorTracker):
    """While active, knows of tensors whose elements the structure of the network proves to be not negative.

    The proof follows pooling, reshaping, concatenation, sums and products of such tensors; what is not known here
    counts as not proven.
    """

    def derive(self, name: str, args: tuple, kwargs: Mapping) -> bool | None:
        """Return True where the output of a function is proven, None where it is not."""
        return self._proves(name, args, kwargs) or None

    def is_proven(self, tensor: Tensor) -> bool:
        """Return whether no element of `tensor` can be negative: proved, or not in its type."""
        return tensor.dtype in (torch.bool, torch.uint8) or self.fact(tensor) is True

    def _proves(self, name, args, kwargs) -> bool:
        if name in NONNEGATIVE:
            return True
        if name in ('hardtanh', 'hardtanh_', 'clamp', 'clamp_', 'clip', 'clamp_min', 'clamp_min_'):
            bounds = [*args[1:], *kwargs.values()]  # a maximum below the minimum would win
            low = kwargs.get('min_val', kwargs.get('min', args[1] if len(args) > 1 else None))
            return isinstance(low, Real) and all(bound is None or isinstance(bound, Real) and bound >= 0
                                                 for bound in bounds)
        if name == '__getitem__':
            return self.is_proven(args[0])
        if name not in ARITHMETIC | MOVING or 'out' in kwargs:
            return False
        leaves = arguments_of(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, str, type(None)))]
        if name in ARITHMETIC and not all(isinstance(leaf, Real) and leaf >= 0 for leaf in others):
            return False
        return bool(tensors) and all(map(self.is_proven, tensors))


@torch.no_grad()
def probe_inputs(model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor) -> dict[str, bool | None]:
    """Run `model` once on `images` and tell which of `layers` are called, and with what sign of input.

    Args:
        model: the network; its mode is restored afterwards.
        images: tensor (N, C, H, W), on the model's device; also on the meta device, where only the structure counts.

    Returns:
        {name: signed} of the layers whose forward was called: False where the structure proves all inputs not negative,
        True where the probe shows a negative value, None where neither is known.
    """
    signed, tracker = {}, SignTracker()

    def note(name, _module, x):
        if not tracker.is_proven(x):
            negative = not x.is_meta and bool((x < 0).any())
            signed[name] = True if negative else signed.get(name) or None
        signed.setdefault(name, False)

    with hooked(layers, before=note), evaluating(model), tracker:
        model(images.clone())  # the network may change its input in place
    return signed
