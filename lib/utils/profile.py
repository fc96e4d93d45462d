"""The layers of a network with their shapes, found by one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib.simulator.layer import LayerRecord
from lib.utils.hooks import input_of


def profile_layers(
    model: nn.Module, input_shape: tuple[int, int, int], device: torch.device | str | None = None
) -> list[LayerRecord]:
    """Return a record of every convolution and linear layer, in the order of `model.modules()`.

    One image of noise goes through the model in evaluation mode, without gradients; modes are restored and global
    random states are not touched. A module shared under several names appears once. A layer that is called several
    times has its first call's sizes and `calls` counts them (an internal batch, such as crops or windows, counts as so
    many calls). Where calls differ in size, the record is one call whose `in_h` and `out_h` are the positions of all
    calls together. A layer that is never called has `calls` = 0 and sizes 0.

    Args:
        model: any network that takes one image batch; on the meta device nothing is computed.
        input_shape: (channels, height, width) of one image.
        device: where the model lives; None = where its first parameter is.

    Raises:
        ValueError: the forward pass fails at this input shape.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    calls = {module: [] for module in layers.values()}

    def note(module, args, kwargs, output):
        calls[module].append(_call_sizes(module, input_of(args, kwargs), output))

    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in calls]
    try:
        with evaluating(model), torch.no_grad():
            model(_image(model, input_shape, device))
    except Exception as error:
        shape = 'x'.join(str(size) for size in input_shape)
        raise ValueError(
            f'{type(model).__name__} fails on one image of {shape} (channels x height x width): {error}'
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return [_record(name, layer, calls[layer]) for name, layer in layers.items()]


def _image(model, input_shape, device) -> torch.Tensor:
    """Return one image of noise, (1, C, H, W), from a generator of its own; zeros would make ranges of 0."""
    parameter = next(model.parameters(), torch.empty(0))
    noise = torch.randn(1, *input_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(device=parameter.device if device is None else device, dtype=parameter.dtype)


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


def _call_sizes(layer, inputs, output) -> tuple[int, int, int, int, int]:
    """Return how many images a call processed, and their in_h, in_w, out_h, out_w."""
    if isinstance(layer, nn.Linear):
        positions = inputs.numel() // layer.in_features
        return 1, positions, 1, positions, 1
    images = inputs.shape[0] if inputs.dim() == 4 else 1
    return images, *inputs.shape[-2:], *output.shape[-2:]


def _record(name, layer, calls) -> LayerRecord:
    if isinstance(layer, nn.Linear):
        shape = ('linear', layer.in_features, layer.out_features, (1, 1), (1, 1), 1)
    else:
        shape = ('conv', layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.groups)
    count, sizes = _merge(calls)
    return LayerRecord(name, *shape, *sizes, num_weights=layer.weight.numel(), calls=count)


def _merge(calls) -> tuple[int, tuple[int, int, int, int]]:
    """Return the number of calls and their in_h, in_w, out_h, out_w; calls of several sizes become a single column."""
    count = sum(images for images, *_ in calls)
    sizes = {tuple(size) for _, *size in calls}
    if len(sizes) <= 1:
        return count, sizes.pop() if sizes else (0, 0, 0, 0)
    positions_in = sum(images * in_h * in_w for images, in_h, in_w, _, _ in calls)
    positions_out = sum(images * out_h * out_w for images, _, _, out_h, out_w in calls)
    return 1, (positions_in, 1, positions_out, 1)
