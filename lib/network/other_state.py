"""What a network carries from call to call beside its state dict, saved and put back."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

OF_MODULES = frozenset(vars(nn.Module())) | {'_compiled_call_impl'}  # parameters, children, hooks and the like
PLAIN = {bool, int, float, str, type(None)}  # kinds of values that nobody can change, so their copy is themselves


class OtherState:
    """A copy of all that can change what a network computes and that is not in its state dict.

    These are buffers (`persistent=False`, and ones that get another shape), Python attributes of modules such as
    counters, lists of tensors and random generators, modes, and which parameters ask for gradients. What is kept
    elsewhere (in globals, in files) is out of reach, and what cannot be copied stays as it is.

    Args:
        leave: kinds of modules that are left alone.

    Attributes:
        left: names of the attributes that cannot be copied.
    """

    def __init__(self, model: nn.Module, leave: tuple[type, ...] = ()):
        self.left, self._model = [], model
        self._modules = {module: (name, module.training) for name, module in model.named_modules()
                         if not isinstance(module, leave)}
        self._asking = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._buffers = {module: [(name, buffer, None if buffer is None else buffer.clone())
                                  for name, buffer in module._buffers.items()] for module in self._modules}
        self._attributes = self._copied({module: _attributes(module) for module in self._modules}, self.left)

    @torch.no_grad()
    def restore(self):
        """Put everything back, as often as is wanted."""
        for parameter, asks in self._asking:
            parameter.requires_grad_(asks)
        for module, buffers in self._buffers.items():
            module._buffers.clear()
            for name, buffer, value in buffers:
                module._buffers[name] = buffer
                if buffer is not None and not torch.equal(buffer, value):
                    buffer.copy_(value)
        for module, saved in self._copied(self._attributes, []).items():
            module.training = self._modules[module][1]
            for name in _attributes(module).keys() - saved.keys():
                delattr(module, name)
            vars(module).update(saved)

    def _copied(self, attributes, left):
        """Return a copy that shares modules, parameters, and the memory of parameters and buffers with the original."""
        shared = [*self._model.modules(), *(parameter for parameter, _ in self._asking)]
        buffers = [buffer for each in self._buffers.values() for _, buffer, _ in each if buffer is not None]
        memo = {id(thing): thing for thing in (*shared, *buffers)}
        storages = [tensor.untyped_storage() for tensor in (*(parameter for parameter, _ in self._asking), *buffers)]
        memo['torch'] = {storage._cdata: storage for storage in storages}  # where torch looks for copied memory
        copied = {}
        for module, values in attributes.items():
            copied[module] = {}
            for name, value in values.items():
                try:
                    copied[module][name] = value if _is_plain(value) else copy.deepcopy(value, memo)
                except Exception:  # a user's object may refuse in any way: a lock, a tensor of a graph
                    copied[module][name] = value
                    left.append(f'{self._modules[module][0]}.{name}'.lstrip('.'))
        return copied


def _is_plain(value):
    return type(value) in PLAIN or type(value) is tuple and all(type(part) in PLAIN for part in value)


def _attributes(module):
    """Return {name: value} of what a module has of its own, without functions and machinery such as graphs of torch."""
    return {name: value for name, value in vars(module).items()
            if name not in OF_MODULES and not callable(value)
            and (isinstance(value, (torch.Tensor, torch.Generator)) or not type(value).__module__.startswith('torch.'))}


@contextmanager
def kept_state(model: nn.Module, leave: tuple[type, ...] = ()) -> Iterator[None]:
    """Give the network, on leaving, all back that it had on entering, but for parameters."""
    state = OtherState(model, leave)
    try:
        yield
    finally:
        state.restore()
