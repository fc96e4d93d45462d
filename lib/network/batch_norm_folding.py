"""Folds the BatchNorms of a whole network; which can be folded is found by following tensors through one forward."""

import weakref
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from lib.network.hooks import batch_norms, evaluating, hooked, names_of, replace_module
from lib.network.sync_batch_norm import SyncBatchNorm2d
from lib.quantize.folding import fold_layer
from lib.quantize.layers import QuantizedLayer

# What folding knows; a subclass with a forward of its own may compute anything.
LAYER_FORWARDS = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, QuantizedLayer)}
NORM_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm2d.forward}


class Call(NamedTuple):
    """A call of a layer: its output, not kept alive, and the modules in whose calls operations took that output.

    `batched` says whether the output is (N, C, ...) with as many dimensions as the weight. A BatchNorm1d takes C
    elsewhere in the (N, L, C) of a linear layer and in the (C, L) of a Conv1d.
    """

    output: weakref.ref
    consumers: set
    batched: bool


class ConsumerTracker(TorchDispatchMode):
    """While active, note which modules read the outputs and the parameters of layers.

    A tensor that is followed carries the attribute `_consumers`: the modules in whose calls an operation took it, None
    standing for operations outside of `layers` and `norms`. The dispatch mode sees every operation that computes, also
    those that a `TorchFunctionMode` does not: in custom autograd functions, in scripted functions, on `tensor.data`.

    Attributes:
        calls: {layer: its calls}.
        inputs: {norm: the `_consumers` of its input, or None where that is not followed; one for each call}.
        readers: {layer: modules that took one of its parameters}, set at the end.
        output: for the network's output. A tensor that is alive at the end is one that somebody keeps.
    """

    def __init__(self, layers: Iterable[nn.Module], norms: Iterable[nn.Module]):
        super().__init__()
        self.calls, self.inputs = {layer: [] for layer in layers}, {norm: [] for norm in norms}
        self.readers, self.output = {}, None
        self._inside = None
        self._hooks = hooked({f'{i}': module for i, module in enumerate((*layers, *norms))}, self._before, self._after)

    def __enter__(self):
        self._hooks.__enter__()
        for layer in self.calls:
            for parameter in layer.parameters(recurse=False):
                parameter._consumers = set()
        return super().__enter__()

    def __exit__(self, *error):
        self._hooks.__exit__(*error)
        parameters = {layer: list(layer.parameters(recurse=False)) for layer in self.calls}
        self.readers = {layer: set().union(*(p._consumers for p in own)) for layer, own in parameters.items()}
        outputs = [call.output() for calls in self.calls.values() for call in calls]
        for tensor in {*outputs, *(p for own in parameters.values() for p in own)} - {None}:
            del tensor._consumers
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for arg in (*args, *kwargs.values()):
            for leaf in arg if isinstance(arg, (tuple, list)) else (arg,):
                if isinstance(leaf, Tensor) and hasattr(leaf, '_consumers'):
                    leaf._consumers.add(self._inside)
        return func(*args, **kwargs)

    def _before(self, _name, module, x):
        if module in self.inputs:
            self.inputs[module].append(getattr(x, '_consumers', None))
        self._inside = module

    def _after(self, _name, module, _x, output):
        self._inside = None
        if module in self.calls:
            output._consumers = set()
            batched = output.dim() == module.weight.dim()
            self.calls[module].append(Call(weakref.ref(output), output._consumers, batched))


def _is_plain(module, forwards) -> bool:
    """Whether a module computes what its class says: no own forward, no hooks, no reparametrised weight or bias."""
    if type(module).forward not in forwards or 'forward' in vars(module):
        return False
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and {'weight', 'bias'} <= module._parameters.keys()


@torch.no_grad()
def foldable_batch_norms(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Find the BatchNorms that the layer before them can take in; changes nothing.

    A BatchNorm can be folded if it is called once, on the very output of a convolution or linear layer that is called
    once, and nothing else takes that output or the layer's weight and bias. That is seen in one forward pass in
    evaluation mode, so it holds for networks whose course does not depend on the image. Layers and BatchNorms with a
    forward or hooks of their own, with reparametrised weights, or without running statistics are left out.

    Args:
        model: any network; quantized layers may have bits.
        images: probe (N, C, H, W) on the model's device; also on the meta device, where nothing is computed.

    Returns:
        (layer name, BatchNorm name), in the order of `model.modules()`. A module with several names has its first.
    """
    layers = {module: name for name, module in model.named_modules() if _is_plain(module, LAYER_FORWARDS)}
    norms = {module: name for name, module in batch_norms(model).items() if _is_plain(module, NORM_FORWARDS)}
    with evaluating(model), ConsumerTracker(layers, norms) as tracker:
        tracker.output = model(images)
    makers = {id(calls[0].consumers): layer for layer, calls in tracker.calls.items() if len(calls) == 1}
    pairs = []
    for norm, name in norms.items():
        layer = makers.get(id(tracker.inputs[norm][0])) if len(tracker.inputs[norm]) == 1 else None
        if layer is not None and _is_private(tracker, layer, norm):
            pairs.append((layers[layer], name))
    return pairs


def _is_private(tracker, layer, norm) -> bool:
    """Return whether `norm` alone takes the output of `layer`, and the layer alone its parameters."""
    call = tracker.calls[layer][0]
    return call.batched and call.consumers == {norm} and call.output() is None and tracker.readers[layer] == {layer}


def fold_batch_norms(model: nn.Module, images: Tensor, leave: Collection[str] = ()) -> list[tuple[str, str]]:
    """Fold every BatchNorm that can be folded into the layer before it, in place; evaluation gives what it gave before.

    The layer gets a bias where it had none, and an `nn.Identity` takes the place of the BatchNorm under all its names,
    so another network of this architecture, folded too, takes the state dict. Those that cannot be folded stay, see
    `batch_norms`. Quantized layers are to be calibrated afterwards.

    Args:
        leave: names of layers that are left as they are.

    Returns:
        (layer name, BatchNorm name) of those folded, in the order of `model.modules()`.
    """
    pairs = [pair for pair in foldable_batch_norms(model, images) if pair[0] not in leave]
    names = names_of(model)
    for layer_name, norm_name in pairs:
        norm = model.get_submodule(norm_name)
        fold_layer(model.get_submodule(layer_name), norm)
        replace_module(model, names[norm], nn.Identity().train(norm.training))
    return pairs
