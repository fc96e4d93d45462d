"""Where values that are not finite come from, in words."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from lib.network.hooks import hooked


@torch.no_grad()
def where_not_finite(model: nn.Module, images: Tensor) -> str:
    """Return what is not finite first: the images, weights, or the output of a module, by one more forward pass."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f'parameter {name} holds values that are not finite'
    leaves, found = {name: module for name, module in model.named_modules() if not list(module.children())}, []

    def note(name, _module, _x, output):
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            found.append(name)

    with hooked(leaves, after=note), suppress(ValueError):  # of a quantizer, for what is looked for here
        model(images)
    if not torch.isfinite(images).all():  # checked last: all processes must make the pass
        return 'the images hold values that are not finite'
    return f'the first output that is not finite comes from layer {found[0]}' if found else \
        'all layers are finite, the loss alone is not'


@contextmanager
def locating(model: nn.Module, images: Tensor) -> Iterator[None]:
    """Within this context, where a quantizer refuses values that are not finite, its error says where they are from."""
    try:
        yield
    except ValueError as error:
        if 'finite' not in str(error):
            raise
        raise ValueError(f'{error}; {where_not_finite(model, images)}') from error
