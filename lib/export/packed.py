"""Packed files of whole networks: the codes of quantized weights, everything else as it is, and what rebuilds them."""

import logging
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.export.about import check_about
from lib.export.codes import KEYS, CodedWeight, code_codebook, code_quantized, from_tensors
from lib.export.container import parse, read_file, to_bytes
from lib.network.hooks import evaluating, hooked, names_of
from lib.quantize.codebook import Codebook
from lib.quantize.quantizer import Quantizer
from lib.quantize.reading import BorrowedLinear, Product
from lib.record.checkpoint import load_weights

logger = logging.getLogger(__name__)

OF_WEIGHT = ('weight_quantizer.', 'parametrizations.weight.')  # what a layer has beside codes that take their place
WEIGHTS = ('weight', 'weight_g', 'weight_v', 'weight_orig')
FORMAT_KEYS = ('shape', 'bits')  # words of the format: no payload


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


class Sizes(NamedTuple):
    """Bytes of a packed file: of codes with what belongs to them, of all else of the network, and of names and words.

    `float32` is what the same network takes at 4 bytes a number.
    """

    weights: int
    rest: int
    words: int
    float32: int

    @property
    def file(self) -> int:
        return self.weights + self.rest + self.words

    def lines(self) -> Iterator[str]:
        """Yield the sizes in words."""
        yield (f'{self.file:,} bytes: {self.weights:,} of codes, scales and codebooks, {self.rest:,} of all that stays '
               f'as it is, {self.words:,} of names, shapes and settings')
        yield f'the same in float32: {self.float32:,} bytes; the file is {self.file / self.float32:.4f} of it'


# ---- from a network

def pack_network(model: nn.Module, images: Tensor, about: Mapping, books: Mapping[str, Codebook], *,
                 entropy: bool = False, float16: bool = False) -> tuple[bytes, Sizes, dict[str, CodedWeight]]:
    """Return (the packed file, its `Sizes`, its weights) of a network in evaluation mode.

    Args:
        model: the network; with `float16` it is rounded, too, so that it stays what the file holds.
        images: a probe (N, C, H, W).
        about: what the file says of itself, of `make_about`.
        books: {layer: `Codebook`} of the K-means flow.
        entropy: Huffman streams in place of packed codes where they are shorter.
        float16: store what stays as it is in two bytes where float16 can hold it.

    Raises:
        ValueError: nothing is quantized, or a weight cannot be packed; the layer and its quantizer are named.
    """
    if float16:
        round_to_float16(model, books)
    weights = code_weights(model, images, books)
    if not weights:
        raise ValueError('none of its weights is quantized: there is nothing to pack')
    tensors, aliases, sizes = tensors_of(model, weights, entropy=entropy, float16=float16)
    data = to_bytes(tensors, {**about, 'aliases': aliases} if aliases else about)
    return data, sizes._replace(words=len(data) - sizes.weights - sizes.rest), weights


def code_weights(model: nn.Module, images: Tensor, books: Mapping[str, Codebook]) -> dict[str, CodedWeight]:
    """Return {layer: `CodedWeight`} of every layer whose weights are quantized.

    Args:
        model: the network; one forward pass shows what its quantizers get and return.
        images: a probe (N, C, H, W).
        books: the codebooks of the K-means flow.

    Raises:
        ValueError: a weight cannot be packed; the layer and its quantizer are named.
    """
    found = {name: code_codebook(book) for name, book in books.items()}
    for name, coded in found.items():
        if not np.array_equal(coded.decode(), model.get_submodule(name).weight.detach().cpu().numpy()):
            raise ValueError(f'{name}: its weights are not those of its codebook, so it cannot be packed')
    for name, (quantizer, weight, values) in _quantized_weights(model, images).items():
        try:
            found[name] = code_quantized(quantizer, weight, values)
        except ValueError as error:
            raise ValueError(f'{name}: {error}') from error
    return found


def _quantized_weights(model, images):
    """Return {layer: (quantizer, what it gets, what it returns)} of the active quantizers of weights."""
    quantizers = {name: layer.weight_quantizer for name, layer in model.named_modules()
                  if has_quantizer(layer) and layer.weight_quantizer.active}
    found = {}

    def note(name, quantizer, x, output):
        if name in found and not torch.equal(found[name][2], output):
            raise ValueError(f'{name}: its weight is another one in every call, so it cannot be packed')
        if x.numel():
            found[name] = quantizer, x.detach(), output.detach()

    with hooked(quantizers, after=note), evaluating(model), torch.no_grad():
        model(images)
    return found


def tensors_of(model: nn.Module, weights: Mapping[str, CodedWeight], *, entropy: bool = False, float16: bool = False
               ) -> tuple[dict[str, np.ndarray], dict[str, str], Sizes]:
    """Return what a file has of a network: ({name: array}, {key: key with the same tensor}, `Sizes` without words).

    Args:
        weights: its `code_weights`.
        entropy: Huffman streams in place of packed codes where they are shorter.
        float16: store what `rounds` in two bytes.
    """
    tensors, bytes_of_weights = {}, 0
    for name, coded in weights.items():
        parts = coded.tensors(entropy)
        tensors |= {_key(name, key): array for key, array in parts.items()}
        bytes_of_weights += sum(array.nbytes for key, array in parts.items() if key not in FORMAT_KEYS)
    rest, aliases = _rest(model, weights)
    if taken := tensors.keys() & rest.keys():
        raise ValueError(f'the network has a tensor {min(taken)}, a name that packed files need themselves')
    halves = set(rounded_keys(model)) if float16 else set()
    arrays = {key: (tensor.half() if key in halves else tensor).cpu().numpy() for key, tensor in rest.items()}
    total = sum(coded.codes.size for coded in weights.values())
    float32 = 4 * total + sum(tensor.nbytes for tensor in rest.values())
    sizes = Sizes(bytes_of_weights, sum(array.nbytes for array in arrays.values()), 0, float32)
    return tensors | arrays, aliases, sizes


def _rest(model, coded) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a state dict that codes do not replace, each once, and the other names of all."""
    state = model.state_dict(keep_vars=True)
    replaced = replaced_keys(model, coded)
    shared = {id(layer.weight): key_of(model, layer.weight) for layer in map(model.get_submodule, coded)
              if not has_quantizer(layer)}  # whoever shares the Parameter gets the same numbers
    rest, aliases, seen = {}, {}, dict(shared)
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f'{key} of the state dict is a {type(tensor).__name__}, which no packed file has')
        if key.endswith('num_batches_tracked') or key in replaced and seen.get(id(tensor), key) == key:
            continue
        first = seen.setdefault(id(tensor), key)
        if first != key:
            aliases[key] = first
        elif key not in replaced:
            rest[key] = tensor.detach()
    return rest, aliases


def has_quantizer(layer: nn.Module) -> bool:
    """Return whether a layer has a quantizer of its weight; that of a product of activations is none of a weight."""
    return isinstance(getattr(layer, 'weight_quantizer', None), Quantizer) and not isinstance(layer, Product)


def key_of(model: nn.Module, tensor: Tensor) -> str:
    """Return the first key of a tensor in the state dict."""
    return next(key for key, other in model.state_dict(keep_vars=True).items() if other is tensor)


def replaced_keys(model: nn.Module, coded: Container[str]) -> set[str]:
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


def rounded_keys(model: nn.Module) -> list[str]:
    """Return the keys of the float32 tensors that float16 can hold: not those of quantizers, nor too large ones."""
    own = tuple(f'{name}.' for name, module in model.named_modules() if isinstance(module, Quantizer))
    return [key for key, tensor in model.state_dict().items()
            if isinstance(tensor, Tensor) and tensor.dtype == torch.float32 and not key.startswith(own)
            and bool(torch.equal(tensor.isfinite(), tensor.half().isfinite()))]


@torch.no_grad()
def round_to_float16(model: nn.Module, books: Container[str]) -> None:
    """Round everything to float16, in place, but for the weights that are coded: those of `books` and of quantizers."""
    coded = {name for name, layer in model.named_modules() if name in books or has_quantizer(layer)
             and layer.weight_quantizer.active}
    keys, (rest, _) = set(rounded_keys(model)), _rest(model, coded)
    for key, tensor in rest.items():
        if key in keys:
            tensor.copy_(tensor.half())


def _key(name: str, key: str) -> str:
    return f'{name}.weight_{key}' if name else f'weight_{key}'


# ---- from a file

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
            parts = {part: tensors.pop(_key(name, part)) for part in KEYS if _key(name, part) in tensors}
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
