"""Networks from packed files: what a file holds, and putting it into a network that was rebuilt."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.export.about import check_about
from lib.export.codes import KEYS, CodedWeight, from_tensors
from lib.export.container import parse, read_file
from lib.network.hooks import names_of
from lib.quantize.quantizer import Quantizer
from lib.quantize.reading import BorrowedLinear, Product
from lib.record.checkpoint import load_weights

OF_WEIGHT = ('weight_quantizer.', 'parametrizations.weight.')  # what a layer has beside codes that take their place
WEIGHTS = ('weight', 'weight_g', 'weight_v', 'weight_orig')


class StoredWeight(Quantizer):
    """A weight that was quantized before: whatever comes, this is returned.

    Args:
        weight: the values.
        bits: of their codes.
    """

    def __init__(self, weight: Tensor, bits: int):
        super().__init__(bits)
        self.register_buffer('weight', weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight


class Packed(NamedTuple):
    """What a packed file holds.

    Attributes:
        about: what it says of itself (`lib.export.about`).
        weights: {layer: `CodedWeight`}.
        rest: {key of the state dict: array}.
    """

    about: dict
    weights: dict[str, CodedWeight]
    rest: dict[str, np.ndarray]


def has_quantizer(layer: nn.Module) -> bool:
    """Return whether a layer has a quantizer of its weight; that of a product of activations is none of a weight."""
    return isinstance(getattr(layer, 'weight_quantizer', None), Quantizer) and not isinstance(layer, Product)


def key_of(model: nn.Module, tensor: Tensor) -> str:
    """Return the first key of a tensor in the state dict."""
    return next(key for key, other in model.state_dict(keep_vars=True).items() if other is tensor)


def replaced_keys(model: nn.Module, coded: Iterable[str]) -> set[str]:
    """Return the keys of the state dict in whose place a file has the codes of layers, under all of their names."""
    modules, state, found = names_of(model), model.state_dict(keep_vars=True), set()
    for layer in map(model.get_submodule, coded):
        prefixes = [f'{name}.' if name else '' for name in modules[layer]]
        starts = tuple(prefix + part for prefix in prefixes for part in OF_WEIGHT)
        weights = {prefix + weight for prefix in prefixes for weight in WEIGHTS}
        borrowed = layer.weight if isinstance(layer, BorrowedLinear) else None
        found |= {key for key, tensor in state.items() if key.startswith(starts) or key in weights
                  or tensor is borrowed}
    return found


def key_in_file(name: str, key: str) -> str:
    """Return the name in the file of what belongs to the weight of a layer; '' is the network itself."""
    return f'{name}.weight_{key}' if name else f'weight_{key}'


def read_packed(path: str | Path) -> Packed:
    """Return what a packed file holds.

    Raises:
        ValueError: it is damaged, of a later version, or of another kind.
    """
    return _sorted_out(*read_file(path), f'packed file {path}')


def parse_packed(data: bytes, source: str = 'packed file') -> Packed:
    """Return the same of the bytes of a packed file."""
    return _sorted_out(*parse(data, source), source)


def _sorted_out(about, tensors, source) -> Packed:
    weights = {}
    try:
        check_about(about, tensors.keys())
        for key in [key for key in tensors if f'.{key}'.endswith('.weight_shape')]:
            name = key.removesuffix('weight_shape').removesuffix('.')
            parts = {part: tensors.pop(key_in_file(name, part)) for part in KEYS if key_in_file(name, part) in tensors}
            weights[name] = from_tensors(name or 'the network', parts)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    return Packed(about, weights, tensors)


@torch.no_grad()
def install(model: nn.Module, packed: Packed, source: str | Path = 'packed file') -> nn.Module:
    """Give a network, rebuilt as `packed.about` says, its weights and everything else; return it in evaluation mode.

    Layers with quantized weights get a `StoredWeight`; without a quantizer, the weight itself.

    Raises:
        ValueError: the file is of another network; the first difference is named.
    """
    state = {key: torch.from_numpy(array.copy()) for key, array in packed.rest.items()}
    own, stored = model.state_dict(), {}
    for name, coded in packed.weights.items():
        layer = _layer(model, name, coded.codes.shape, source)
        values = torch.from_numpy(coded.decode())
        if has_quantizer(layer):
            stored[name] = values, int(coded.bits.max())
        else:
            state[key_of(model, layer.weight)] = values
    state |= {key: own[key] for key in replaced_keys(model, stored) if key not in state
              and f'.{OF_WEIGHT[0]}' not in f'.{key}'}
    state |= {key: state[first] for key, first in packed.about.get('aliases', {}).items() if first in state}
    for name, (values, bits) in stored.items():
        layer = model.get_submodule(name)
        layer.weight_quantizer = StoredWeight(values, bits).to(layer.weight.device)
    load_weights(model, {'state_dict': state}, source)
    _show_stored_weights(model, stored, set(packed.rest) | packed.about.get('aliases', {}).keys())
    return model.eval()


def _layer(model, name, shape, source):
    try:
        layer = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f'{source} has weights of {name}, which the network has not') from error
    if not isinstance(getattr(layer, 'weight', None), Tensor):
        raise ValueError(f'{source} has weights of {name}, which is a {type(layer).__name__} in the network')
    if layer.weight.shape != shape:
        raise ValueError(f'{source}: the weights of {name} have shape {tuple(shape)}, the network has '
                         f'{tuple(layer.weight.shape)}')
    return layer


def _show_stored_weights(model, stored, kept) -> None:
    """Let layers have their stored weights as their own, too, but those that the file has in float for other code."""
    used = {id(tensor) for key, tensor in model.state_dict(keep_vars=True).items() if key in kept}
    for name, (values, _) in stored.items():
        weight = model.get_submodule(name)._parameters.get('weight')
        if weight is not None and weight.shape == values.shape and id(weight) not in used:
            weight.copy_(values)
