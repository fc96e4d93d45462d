"""Finds which layers get inputs that can be negative: by the structure of the network, else by a probe."""

from numbers import Real

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lib.network.hooks import evaluating, input_of

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
# Ways past the version counter of a tensor, by which its values may change unseen.
BACK_DOORS = {torch.Tensor.data.__get__, torch.Tensor.numpy}


class SignTracker(TorchFunctionMode):
    """While active, knows of tensors whose elements the structure of the network proves to be not negative.

    The proof follows pooling, reshaping, concatenation, sums and products of such tensors; what is not known here
    counts as not proven. It ends with the next change in place, of the tensor or of any view of the same memory: their
    common version counter tells.
    """

    def __init__(self):
        super().__init__()
        self._versions = WeakTensorKeyDictionary()  # {tensor: version for which the proof holds}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        proven = self._proves(getattr(func, '__name__', ''), args, kwargs)  # first: it may change what goes in
        output = func(*args, **kwargs)
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor, proven)
        if func in BACK_DOORS:
            self._note(args[0], False)
        return output

    def is_proven(self, tensor):
        """Whether no element of `tensor` can be negative: proved, or not in its type."""
        if tensor.dtype in (torch.bool, torch.uint8):
            return True
        return not tensor.is_inference() and self._versions.get(tensor) == tensor._version

    def _note(self, tensor, proven):
        if proven and not tensor.is_inference():  # tensors of inference mode have no version
            self._versions[tensor] = tensor._version
        else:
            self._versions.pop(tensor, None)

    def _proves(self, name, args, kwargs):
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
        leaves = [leaf for arg in (*args, *kwargs.values())
                  for leaf in (arg if isinstance(arg, (tuple, list)) else [arg])]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        others = [leaf for leaf in leaves if not isinstance(leaf, (torch.Tensor, str, type(None)))]
        if name in ARITHMETIC and not all(isinstance(leaf, Real) and leaf >= 0 for leaf in others):
            return False
        return bool(tensors) and all(map(self.is_proven, tensors))


@torch.no_grad()
def probe_inputs(model, layers, images):
    """Runs `model` once on `images` and says which of `layers` are called, and with what sign of input.

    Args:
        model: the network; its mode is restored afterwards.
        layers: {name: module} to look at.
        images: tensor (N, C, H, W), on the model's device; also on the meta device, where only structure tells.

    Returns:
        {name: signed} of the layers whose forward was called: False where the structure proves all inputs not negative,
        True where the probe shows a negative value, None where neither tells.
    """
    signed, tracker = {}, SignTracker()

    def look(name):
        def hook(_, args, kwargs):
            x = input_of(args, kwargs)
            if not tracker.is_proven(x):
                negative = not x.is_meta and bool((x < 0).any())
                signed[name] = True if negative else signed.get(name) or None
            signed.setdefault(name, False)
        return hook

    hooks = [module.register_forward_pre_hook(look(name), with_kwargs=True) for name, module in layers.items()]
    try:
        with evaluating(model), tracker:
            model(images.clone())  # the network may change its input in place
    finally:
        for hook in hooks:
            hook.remove()
    return signed
