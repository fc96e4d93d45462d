"""Folds the BatchNorms of a whole network; which can be folded is found by following tensors through one forward."""

import weakref
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode

from lib.network.behaviour import rest_of_norm, scales_with_weight
from lib.network.hooks import evaluating, hooked, names_of, replace_module
from lib.network.sync_batch_norm import SyncBatchNorm2d
from lib.quantize.folding import fold_layer
from lib.quantize.layers import QuantizedLayer

# What folding knows; a subclass with a forward of its own may compute anything.
LAYER_FORWARDS = {kind.forward for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, QuantizedLayer)}
VIEWS = ('view', '_unsafe_view', 'reshape')
NORM_FORWARDS = {_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm2d.forward}


class Call(NamedTuple):
    """A call of a layer: its output, not kept alive, and the modules in whose calls operations took that output."""

    output: weakref.ref
    consumers: set


class Taken(NamedTuple):
    """The input of a call of a BatchNorm: the `consumers` of the output that it is, None: of none; what made it.

    `dims` are its dimensions. A BatchNorm takes C of (N, C, ...), which is elsewhere in the (N, L, C) of a linear layer
    and in the (C, L) of a Conv1d; so there are as many as those of the weight.
    """

    consumers: set | None
    dims: int
    maker: str


class ConsumerTracker(TorchDispatchMode):
    """While active, note which modules read the outputs and the parameters of layers.

    A tensor that is followed carries the attribute `_consumers`: the modules in whose calls an operation took it, None
    standing for operations outside of `layers` and `norms`; so does a view of a linear layer's output as (rows, C). The
    dispatch mode sees every operation that computes, also those that a `TorchFunctionMode` does not: in custom autograd
    functions, in scripted functions, on `tensor.data`.

    Attributes:
        calls: {layer: its calls}.
        inputs: {norm: its input in each call, `Taken`}.
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
        output, name = func(*args, **kwargs), func.overloadpacket.__name__
        if name in VIEWS and hasattr(args[0], '_rows') and output.dim() == 2 and output.shape[-1] == args[0].shape[-1]:
            output._consumers = args[0]._consumers
            return output
        for arg in (*args, *kwargs.values()):
            for leaf in arg if isinstance(arg, (tuple, list)) else (arg,):
                if isinstance(leaf, Tensor) and hasattr(leaf, '_consumers'):
                    leaf._consumers.add(self._inside)
        if isinstance(output, Tensor):
            output._maker = name
        return output

    def _before(self, _name, module, x):
        if module in self.inputs:
            maker = getattr(x, '_maker', 'input of the network')
            self.inputs[module].append(Taken(getattr(x, '_consumers', None), x.dim(), maker))
        self._inside = module

    def _after(self, _name, module, _x, output):
        self._inside = None
        if module in self.calls:
            output._consumers = set()
            if isinstance(module, nn.Linear):
                output._rows = True
            self.calls[module].append(Call(weakref.ref(output), output._consumers))


def _is_untouched(module) -> bool:
    """Whether nothing is changed about a module from outside: no hooks, no reparametrised weight or bias."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return not hooks and 'forward' not in vars(module) and {'weight', 'bias'} <= module._parameters.keys()


def _layer_obstacle(layer) -> str | None:
    """Return why no BatchNorm can be folded into a layer, whatever follows it; None: one can."""
    if getattr(layer, 'transposed', False):
        return 'is a transposed convolution'
    if not _is_untouched(layer):
        return 'has hooks or a reparametrised weight'
    if type(layer).forward in LAYER_FORWARDS or scales_with_weight(layer):
        return None
    return 'computes another weight from its Parameter'


def _norm_obstacle(norm, fused) -> str | None:
    """Return why a BatchNorm cannot be folded, whatever it follows; None: it can."""
    if norm.running_mean is None or not norm.track_running_stats:
        return 'keeps no running statistics'
    if not _is_untouched(norm):
        return 'has hooks or a reparametrised weight'
    if type(norm).forward in NORM_FORWARDS:
        return None
    rest = rest_of_norm(norm)
    if rest is None:
        return 'has a forward of its own that computes something else'
    return None if fused else 'has its activation in it'


@torch.no_grad()
def examine_batch_norms(model: nn.Module, images: Tensor, *, fused: bool = True) -> dict[str, tuple[str | None, str]]:
    """Find the BatchNorms that the layer before them can take in; changes nothing.

    A BatchNorm can be folded if it is called once, on the very output of a convolution or linear layer that is called
    once, and nothing else takes that output or the layer's weight and bias; what passes a tensor on, such as dropout in
    evaluation, may be between. That is seen in one forward pass in evaluation mode, so it holds for networks whose
    course does not depend on the image. What layers and BatchNorms with a forward of their own compute is tried out,
    see `behaviour`; those with hooks, with reparametrised weights, or without running statistics are left out.

    Args:
        model: any network; quantized layers may have bits.
        images: probe (N, C, H, W) on the model's device; also on the meta device, where nothing is computed.
        fused: take a BatchNorm that is fused with its activation for one that can be folded.

    Returns:
        {name: (layer, '')} of those that can be folded and {name: (None, why not)} of the others, in the order of
        `model.modules()`. A module with several names has its first.
    """
    layers = {module: name for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))
              and getattr(module, 'weight', None) is not None}
    norms = {module: name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    with evaluating(model), ConsumerTracker(layers, norms) as tracker:
        tracker.output = model(images)
    makers = {id(call.consumers): layer for layer, calls in tracker.calls.items() for call in calls}
    found = {}
    for norm, name in norms.items():
        taken = tracker.inputs[norm]
        layer = makers.get(id(taken[0].consumers)) if len(taken) == 1 and taken[0].consumers is not None else None
        reason = _norm_obstacle(norm, fused) or _call_obstacle(tracker, taken, layer, layers, norm)
        found[name] = (None, reason) if reason else (layers[layer], '')
    return found


def _call_obstacle(tracker, taken, layer, layers, norm) -> str | None:
    """Return why the layer before a BatchNorm cannot take it in; None: it can."""
    if len(taken) != 1:
        return f'is called {len(taken)} times' if taken else 'is never called'
    if layer is None:
        return f'follows no convolution or linear layer ({taken[0].maker})'
    call, before = tracker.calls[layer][0], layers[layer]
    if obstacle := _layer_obstacle(layer):
        return f'follows {before}, which {obstacle}'
    if len(tracker.calls[layer]) > 1:
        return f'follows {before}, which is called {len(tracker.calls[layer])} times'
    if taken[0].dims != layer.weight.dim():
        return f'follows {before}, whose channels are in another dimension'
    if call.consumers != {norm} or call.output() is not None:
        return f'follows {before}, whose output something else takes, too'
    return None if tracker.readers[layer] == {layer} else f'follows {before}, whose weight something else reads, too'


def foldable_batch_norms(model: nn.Module, images: Tensor, *, fused: bool = False) -> list[tuple[str, str]]:
    """Return (layer name, BatchNorm name) of the BatchNorms that can be folded, see `examine_batch_norms`."""
    return [(layer, name) for name, (layer, _) in examine_batch_norms(model, images, fused=fused).items() if layer]


def fold_batch_norms(model: nn.Module, images: Tensor, leave: Collection[str] = ()) -> list[tuple[str, str]]:
    """Fold every BatchNorm that can be folded into the layer before it, in place; evaluation gives what it gave before.

    The layer gets a bias where it had none. An `nn.Identity` takes the place of the BatchNorm under all its names, or,
    where it is fused with its activation, what is left of it; so another network of this architecture, folded too,
    takes the state dict. Those that cannot be folded stay. Quantized layers are to be calibrated afterwards.

    Args:
        leave: names of layers that are left as they are.

    Returns:
        (layer name, BatchNorm name) of those folded, in the order of `model.modules()`.
    """
    pairs = [pair for pair in foldable_batch_norms(model, images, fused=True) if pair[0] not in leave]
    names = names_of(model)
    for layer_name, norm_name in pairs:
        norm = model.get_submodule(norm_name)
        rest = nn.Identity().train(norm.training) if type(norm).forward in NORM_FORWARDS else rest_of_norm(norm)
        fold_layer(model.get_submodule(layer_name), norm)
        replace_module(model, names[norm], rest)
    return pairs
