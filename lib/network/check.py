"""Checks that a network can be trained, searched and priced here, with a message about what is wrong."""

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lib.network.conversion import all_layers
from lib.network.hooks import hooked, in_mode, probe
from lib.network.other_state import kept_state

MAX_PARAMETERS = 2**31


@torch.no_grad()
def check_network(model: nn.Module, input_shape: tuple[int, int, int], num_classes: int, single: Collection[str] = ()):
    """Run `model` on two images of noise, in evaluation and in training mode; it stays as it is.

    The first run also gives lazy modules their shapes, before anything else looks at them.

    Args:
        num_classes: outputs that the data need.
        single: the modes ('evaluation', 'training') in which a batch of one image will come: it is run on that, too.

    Raises:
        ValueError: the forward pass fails, returns something else than logits (N, `num_classes`), calls no
            convolution or linear layer, or one that takes or returns something else than a tensor of its kind.
    """
    layers = all_layers(model)
    called = _run(model, layers, input_shape, num_classes, 'evaluation', 2)
    if not called:
        raise ValueError(f'{type(model).__name__} has {len(layers)} convolutions and linear layers (nn.Conv2d, '
                         'nn.Linear), and its forward pass calls none of them: there is nothing to quantize')
    if lazy := [name for name, tensor in model.named_parameters() if is_lazy(tensor)]:
        raise ValueError(f'{lazy[0]} has no shape, for its module is lazy and never called: remove it')
    for mode, count in (('training', 2), *((mode, 1) for mode in ('training', 'evaluation') if mode in single)):
        with kept_state(model):
            _run(model, layers, input_shape, num_classes, mode, count)


def _run(model, layers, input_shape, num_classes, mode, count) -> set[str]:
    """Run the model on `count` images in a mode and check what comes; return the names of the layers called."""
    called, odd = set(), []

    def note(name, layer, x, output):
        called.add(name)
        if reason := _oddity(layer, x, output):
            odd.append(f'{name} ({type(layer).__name__}) {reason}')

    with hooked(layers, after=note), in_mode(model, mode == 'training'):
        output = _forward(model, input_shape, mode, count)
    _check_output(output, num_classes, mode, count)
    if odd:
        raise ValueError(f'the layer {odd[0]}, where an nn.Conv2d or nn.Linear takes and returns one tensor: derive '
                         'its class from nn.Module and make the layer a part of it')
    return called


def _oddity(layer, x, output) -> str | None:
    """Return what a call of a layer takes or returns, if that is no tensor of its kind."""
    if x is None:
        return 'is called without a positional input, or one by the keyword input'
    convolution = isinstance(layer, nn.Conv2d)
    for verb, tensor, width in (('takes', x, 'in'), ('returns', output, 'out')):
        if not isinstance(tensor, Tensor):
            return f'{verb} {_kind(tensor)}'
        if tensor.dim() not in ((3, 4) if convolution else range(1, 99)):
            return f'{verb} a tensor of shape {tuple(tensor.shape)}'
        if not convolution and width == 'in' and tensor.shape[-1] != layer.in_features:
            return f'takes a tensor of shape {tuple(tensor.shape)}, and has {layer.in_features} input features'
    return None


def _kind(value) -> str:
    size = f' of {len(value)}' if isinstance(value, (tuple, list, dict)) else ''
    return f'a {type(value).__name__}{size}'


def _forward(model, input_shape, mode, count):
    noise = probe(model, input_shape, count)  # of the type that images have
    try:
        with torch.random.fork_rng(devices=[noise.device] if noise.is_cuda else []):
            return model(noise)
    except Exception as error:
        shape = 'x'.join(map(str, input_shape))
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(f'{type(model).__name__} fails in {mode} mode on {_images(count)} of {shape} (channels x '
                         f'height x width): {reason}') from error


def _images(count) -> str:
    return 'one image' if count == 1 else 'two images'


def _check_output(output, num_classes, mode, count):
    if not isinstance(output, Tensor):
        raise ValueError(f'the network returns {_kind(output)} in {mode} mode; expected logits (N, classes): wrap it '
                         'in a module whose forward returns the logits alone')
    if output.dim() != 2 or len(output) != count:
        raise ValueError(f'the network returns a tensor of shape {tuple(output.shape)} for {_images(count)} in {mode} '
                         f'mode; expected logits ({count}, {num_classes})')
    if output.shape[1] != num_classes:
        raise ValueError(f'the network has {output.shape[1]} outputs, the data have {num_classes} classes: build the '
                         f'network for {num_classes} classes, or give --num_classes {output.shape[1]}')


def check_parameters(make: Callable[[], nn.Module], what: str) -> None:
    """Raise ValueError where a network would have more parameters than memory holds; nothing is allocated."""
    try:
        with torch.device('meta'):
            count = sum(parameter.numel() for parameter in make().parameters())
    except NotImplementedError:  # one that cannot be built without numbers
        return
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        raise ValueError(f'{what} cannot be built: {str(error).splitlines()[0]}') from error
    if count > MAX_PARAMETERS:
        raise ValueError(f'{what} would have {count:,} parameters, expected at most {MAX_PARAMETERS:,}: take fewer '
                         'classes (--num_classes), or fewer channels')
