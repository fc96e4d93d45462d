"""Looking into the modules of a network, and putting others in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def input_of(args: tuple, kwargs: Mapping) -> Tensor:
    """Return the input of a layer's call, as a hook gets it: positional, or by the keyword `input`."""
    return args[0] if args else kwargs['input']


def names_of(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Return all names of every module, the first one first."""
    names = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def replace_modules(model: nn.Module, others: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the place of some, in place, under every name that they are registered under."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children would leave out the second name
            if child in others:
                setattr(parent, name, others[child])


@contextmanager
def evaluating(model) -> Iterator[None]:
    """Put the model into evaluation mode; afterwards every module is again in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: module} of every BatchNorm that keeps running statistics, in the order of `model.modules()`."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)
            and module.track_running_stats and module.running_mean is not None}
