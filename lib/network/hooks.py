"""Looking into the modules of a network, and putting others in their place."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def probe(model: nn.Module, shape: Sequence[int], count: int = 2) -> Tensor:
    """Return images of noise (count, *shape), the same every time, on the device of a network."""
    device = next(model.parameters(), torch.empty(0)).device
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).to(device)


@contextmanager
def hooked(modules: Mapping[str, nn.Module], before: Callable | None = None, after: Callable | None = None
           ) -> Iterator[None]:
    """Within this context call `before(name, module, x)` and `after(name, module, x, output)` around every forward.

    `x` is the module's input, positional or by the keyword `input`, else None. What `before` returns, if not None,
    takes the place of the input; what `after` returns, that of the output.
    """
    def enter(name, module, args, kwargs):
        other = before(name, module, _input(args, kwargs))
        if other is None:
            return None
        return ((other, *args[1:]), kwargs) if args else (args, {**kwargs, 'input': other})

    def leave(name, module, args, kwargs, output):
        return after(name, module, _input(args, kwargs), output)

    with ExitStack() as handles:
        for name, module in modules.items():
            if before:
                handles.enter_context(module.register_forward_pre_hook(partial(enter, name), with_kwargs=True))
            if after:
                handles.enter_context(module.register_forward_hook(partial(leave, name), with_kwargs=True))
        yield


def _input(args: tuple, kwargs: Mapping) -> Any:
    return args[0] if args else kwargs.get('input')


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put the model into training or evaluation mode; afterwards every module is again in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def evaluating(model: nn.Module):
    """Put the model into evaluation mode within this context, see `in_mode`."""
    return in_mode(model, training=False)


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all names of every module, the first one first."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def replace_module(model: nn.Module, names: Iterable[str], other: nn.Module) -> None:
    """Put another module in the place of those of these names."""
    for name in names:
        parent, _, attribute = name.rpartition('.')
        setattr(model.get_submodule(parent), attribute, other)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: module} of every BatchNorm that keeps running statistics, in the order of `model.modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)
            and module.track_running_stats and module.running_mean is not None}
