"""Finds which layers get inputs that can be negative: by the structure of the network, else by a probe."""

import torch
from torch.overrides import TorchFunctionMode

# Functions whose output is never negative, whatever comes in.
NONNEGATIVE = {'relu', 'relu_', 'relu6', 'sigmoid', 'hardsigmoid', 'softmax', 'abs', 'square', 'softplus', 'exp'}
# Functions whose output is not negative if no tensor and no number that goes in is.
ARITHMETIC = {'add', 'add_', '__add__', '__radd__', '__iadd__', 'mul', 'mul_', '__mul__', '__rmul__', '__imul__', 'pad',
              'max', 'maximum'}
# Functions that move, average or drop values: not negative if no tensor that goes in is.
MOVING = {'max_pool2d', 'boolean_dispatch', 'fn', 'avg_pool2d', 'adaptive_avg_pool2d', 'adaptive_max_pool2d', 'flatten',
          'view', 'reshape', 'permute', 'transpose', 'contiguous', 'squeeze', 'unsqueeze', 'chunk', 'split',
          '__getitem__', 'mean', 'sum', 'dropout', 'dropout2d', 'cat', 'concat', 'stack', 'clone', 'detach', 'to',
          'stochastic_depth', 'roll'}


class SignTracker(TorchFunctionMode):
    """While active, marks every tensor of which the structure proves that no element is negative.

    The mark is the attribute `_nonnegative` of the tensor. It follows pooling, reshaping, concatenation, sums and
    products of such tensors; what it does not know counts as not proven.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        proven = self._proves(getattr(func, '__name__', ''), args, kwargs)
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor) and getattr(tensor, '_nonnegative', None) != proven:
                tensor._nonnegative = proven
        return output

    @staticmethod
    def _proves(name, args, kwargs):
        if name in NONNEGATIVE:
            return True
        if name in ('hardtanh', 'hardtanh_', 'clamp', 'clamp_', 'clip'):
            low = kwargs.get('min_val', kwargs.get('min', args[1] if len(args) > 1 else None))
            return isinstance(low, (int, float)) and low >= 0
        if name not in ARITHMETIC | MOVING:
            return False
        leaves = [leaf for arg in (*args, *kwargs.values())
                  for leaf in (arg if isinstance(arg, (tuple, list)) else [arg])]
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        numbers = [leaf for leaf in leaves if isinstance(leaf, (int, float)) and name in ARITHMETIC]
        return bool(tensors) and all(map(proven_nonnegative, tensors)) and all(number >= 0 for number in numbers)


def proven_nonnegative(tensor):
    """Whether a `SignTracker` has proved that no element of `tensor` is negative."""
    return getattr(tensor, '_nonnegative', False)


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
    signed = {}

    def look(name):
        def hook(_, inputs):
            x = inputs[0]
            if not proven_nonnegative(x):
                negative = not x.is_meta and bool((x < 0).any())
                signed[name] = True if negative else signed.get(name) or None
            signed.setdefault(name, False)
        return hook

    training = model.training
    model.eval()
    hooks = [module.register_forward_pre_hook(look(name)) for name, module in layers.items()]
    try:
        with SignTracker():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return signed
