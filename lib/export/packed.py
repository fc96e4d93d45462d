"""Packed files of whole networks: the codes of quantized weights, everything else as it is, and what rebuilds them."""

from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.export.codes import CodedWeight, code_codebook, code_quantized
from lib.export.container import to_bytes
from lib.export.stored import has_quantizer, key_in_file, key_of, replaced_keys
from lib.network.hooks import evaluating, hooked
from lib.quantize.codebook import Codebook
from lib.quantize.quantizer import Quantizer

FORMAT_KEYS = ('shape', 'bits')  # words of the format: no payload


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
        """Bytes of the whole file."""
        return self.weights + self.rest + self.words

    def lines(self) -> Iterator[str]:
        """Yield the sizes in words."""
        yield (f'{self.file:,} bytes: {self.weights:,} of codes, scales and codebooks, {self.rest:,} of all that stays '
               f'as it is, {self.words:,} of names, shapes and settings')
        yield f'the same in float32: {self.float32:,} bytes; the file is {self.file / self.float32:.4f} of it'


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
        tensors |= {key_in_file(name, key): array for key, array in parts.items()}
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
