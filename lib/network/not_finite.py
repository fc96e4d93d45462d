"""Where values that are not finite come from, in words."""

import contextlib

import torch


@torch.no_grad()
def blame(model, images):
    """Says what is not finite first: the images, weights, or the output of a module, by one more forward pass."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f'parameter {name} holds values that are not finite'
    found, hooks = [], []
    for name, module in model.named_modules():
        if not list(module.children()):
            hooks.append(module.register_forward_hook(
                lambda _, __, output, name=name: found.append(name) if not _finite(output) else None))
    try:
        with contextlib.suppress(ValueError):  # of a quantizer, for what is looked for here
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not torch.isfinite(images).all():  # looked at last: all processes make the pass, whoever has such images
        return 'the images hold values that are not finite'
    return f'the first output that is not finite comes from layer {found[0]}' if found else \
        'all layers are finite, the loss alone is not'



@contextlib.contextmanager
def blaming(model, images):
    """Within this context, where a quantizer refuses values that are not finite, its error says where they are from."""
    try:
        yield
    except ValueError as error:
        if 'finite' not in str(error):
            raise
        raise ValueError(f'{error}; {blame(model, images)}') from error



def _finite(output):
    return not isinstance(output, torch.Tensor) or bool(torch.isfinite(output).all())
