"""Whether a network is one that can be trained, searched and priced here; if not, what is wrong with it."""

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lib.utils.other_state import kept_state
from lib.utils.profile import evaluating


@torch.no_grad()
def check_network(model: nn.Module, input_shape: tuple[int, int, int], num_classes: int):
    """Run `model` on two images of noise, in evaluation and in training mode; weights and buffers stay as they are.

    The first run also gives lazy modules their shapes, before anything else looks at them.

    Args:
        model: any network, on its device.
        input_shape: (channels, height, width) of one image.
        num_classes: outputs that the data need.

    Raises:
        ValueError: the forward pass fails, returns something else than logits (N, `num_classes`), or calls no
            convolution or linear layer.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    called = []
    hooks = [layer.register_forward_pre_hook(lambda layer, _: called.append(layer)) for layer in layers]
    try:
        with evaluating(model):
            output = _forward(model, input_shape, 'evaluation')
    finally:
        for hook in hooks:
            hook.remove()
    _check_output(output, num_classes, 'evaluation')
    if not called:
        raise ValueError(f'{type(model).__name__} has {len(layers)} convolutions and linear layers (nn.Conv2d, '
                         'nn.Linear), and its forward pass calls none of them: there is nothing to quantize')
    if lazy := [name for name, tensor in model.named_parameters() if is_lazy(tensor)]:
        raise ValueError(f'{lazy[0]} has no shape, for its module is lazy and never called: remove it')
    with kept_state(model):
        model.train()
        output = _forward(model, input_shape, 'training')
    _check_output(output, num_classes, 'training')


def _forward(model, input_shape, mode):
    parameter = next(model.parameters(), torch.empty(0))
    noise = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.random.fork_rng(devices=[parameter.device] if parameter.is_cuda else []):
            return model(noise.to(parameter.device, parameter.dtype))
    except Exception as error:
        shape = 'x'.join(map(str, input_shape))
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'{type(model).__name__} fails in {mode} mode on two images of {shape} (channels x height x '
                         f'width): {reason}') from error


def _check_output(output, num_classes, mode):
    if not isinstance(output, Tensor):
        size = f' of {len(output)}' if isinstance(output, (tuple, list, dict)) else ''
        raise ValueError(f'the network returns a {type(output).__name__}{size} in {mode} mode; expected logits '
                         '(N, classes): wrap it in a module whose forward returns the logits alone')
    if output.dim() != 2 or len(output) != 2:
        raise ValueError(f'the network returns a tensor of shape {tuple(output.shape)} for 2 images in {mode} mode; '
                         f'expected logits (2, {num_classes})')
    if output.shape[1] != num_classes:
        raise ValueError(f'the network has {output.shape[1]} outputs, the data have {num_classes} classes: build the '
                         f'network for {num_classes} classes, or give --num_classes {output.shape[1]}')
