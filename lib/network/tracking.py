"""Following tensors through the functions of a forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

# Ways past the version counter of a tensor, by which its values may change unseen.
BACK_DOORS = {torch.Tensor.data.__get__, torch.Tensor.numpy}
# Functions that move or pick values: whatever holds of every element going in holds of those that come out.
MOVING = {'max_pool2d', 'boolean_dispatch', 'fn', 'adaptive_max_pool2d', 'flatten', 'unflatten', 'view', 'reshape',
          'permute', 'transpose', 'movedim', 'contiguous', 'squeeze', 'unsqueeze', 'expand', 'flip', 'chunk', 'split',
          'narrow', 'select', 'pixel_shuffle', 'pixel_unshuffle', 'channel_shuffle', 'cat', 'concat', 'clone', 'detach',
          'roll'}


class TensorTracker(TorchFunctionMode):
    """While active, knows a fact of some tensors and derives that of what functions make of them.

    A subclass says in `derive` what follows for the output of a function. A fact ends with the next change in place, of
    the tensor or of any view of the same memory, for they share a version counter. Tensors of inference mode have
    none, so nothing is known of them.
    """

    def __init__(self):
        super().__init__()
        self._facts = WeakTensorKeyDictionary()  # {tensor: (version for which it holds, fact)}

    def derive(self, name: str, args: tuple, kwargs: Mapping) -> Any:
        """Return what is known of the output of the function `name`; None: nothing."""
        raise NotImplementedError

    def fact(self, tensor: Tensor) -> Any:
        """Return what is known of a tensor; None: nothing."""
        version, fact = self._facts.get(tensor, (None, None))
        return fact if not tensor.is_inference() and version == tensor._version else None

    def note(self, tensor: Tensor, fact: Any) -> None:
        """Note what is known of a tensor; None: nothing."""
        if fact is None or tensor.is_inference():
            self._facts.pop(tensor, None)
        else:
            self._facts[tensor] = tensor._version, fact

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        fact = self.derive(getattr(func, '__name__', ''), args, kwargs)  # first: it may change what goes in
        output = func(*args, **kwargs)
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if fact is not None and isinstance(tensor, Tensor):
                self.note(tensor, fact)
        if func in BACK_DOORS:
            self.note(args[0], None)
        return output


def arguments_of(args: tuple, kwargs: Mapping) -> list:
    """Return the arguments of a function, those in tuples and lists one by one."""
    return [leaf for arg in (*args, *kwargs.values()) for leaf in (arg if isinstance(arg, (tuple, list)) else [arg])]
