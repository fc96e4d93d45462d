"""Looking into the modules of a network, and putting others in their place."""

from collections.abc import Mapping

from torch import Tensor, nn


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
