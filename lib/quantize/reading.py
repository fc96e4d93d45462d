"""Quantized layers whose weights other code multiplies with, and quantized products of two activations.

A weight may be multiplied by a forward of the layer's own (same-padded and weight-standardised convolutions) or by
another module that reads it (attention in one function). Such a module is a reader: while it computes, a mode exchanges
the operands of each product for quantized ones.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib.quantize.products import Compute, ProductMode, attention
from lib.quantize.quantizer import Quantizer

READS = 'weights_read'  # attribute of a reader: the layers and products that its forward computes


class BorrowedLinear(nn.Linear):
    """A linear layer whose weight belongs to another module, which has it in its state dict and multiplies with it.

    It gives a weight a name in strategies, such as `in_proj` of `nn.MultiheadAttention`. In x @ w the rows of the
    weight belong to inputs.
    """

    def __init__(self, weight: nn.Parameter, rows_are_inputs: bool = False):
        outputs, inputs = reversed(weight.shape) if rows_are_inputs else weight.shape
        super().__init__(inputs, outputs, bias=False, device='meta')
        self.weight, self.rows_are_inputs = weight, rows_are_inputs

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        """Add nothing: the owner does."""

    def _load_from_state_dict(self, *args):
        """Load nothing: the owner does."""


class Product(nn.Module):
    """A product of two activations that its parent computes, (..., m, k) x (..., k, n): its place in strategies.

    The second operand stands where a layer has its weight. There is none: `weight` is empty.
    """

    def __init__(self, device: torch.device | None = None):
        super().__init__()
        self.register_buffer('weight', torch.empty(0, device=device), persistent=False)


class Use(NamedTuple):
    """What a product is: of which layer, and whether the weight is the first of the two operands."""

    layer: nn.Module
    swapped: bool = False
    whole: bool = False  # whether the weight's operand is computed from the layer's weight and quantized as it is


def memory_of(tensor: Tensor) -> int | None:
    """Return a key of the memory of a tensor, unique among all that are alive, None where it has none."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and other tensors without a storage
        return None


class Uses:
    """Tells in one forward pass of a reader which of its layers and products each product is."""

    def __init__(self, reader: nn.Module):
        self.reader, reads = reader, getattr(reader, READS, ())
        self.products = [layer for layer in reads if isinstance(layer, Product)]
        self.layers = {memory_of(layer._parameters['weight']): layer for layer in reads
                       if layer is not reader and 'weight' in layer._parameters}
        self.shape = reader.weight.shape if reader in reads else None  # of a layer with a forward of its own
        self.count = 0

    def of(self, first: Tensor, second: Tensor) -> Use | None:
        """Return what the product of these operands is; None: nothing that a strategy knows."""
        for operand, swapped in ((second, False), (first, True)):
            if self.layers and (layer := self.layers.get(memory_of(operand))) is not None:
                return Use(layer, swapped)
            if self.shape is not None and operand.shape == self.shape:
                return Use(self.reader, swapped, whole=True)
        return self.next_use() if self.products else None

    def next_use(self) -> Use:
        """Return the next product of activations; a forward computes all of them in turn."""
        self.count += 1
        return Use(self.products[(self.count - 1) % len(self.products)])


class ReadMode(ProductMode):
    """While active, quantizes what one forward pass of a reader multiplies; what its children do is theirs."""

    def __init__(self, reader: nn.Module):
        super().__init__()
        self.uses, self.children = Uses(reader), 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Be active, but not in the children of a reader that multiplies activations, which its layers also do."""
        with ExitStack() as stack:
            for module in self.uses.reader.modules() if self.uses.products else ():
                if module is not self.uses.reader and not isinstance(module, Quantizer):
                    stack.enter_context(module.register_forward_pre_hook(self._enter))
                    stack.enter_context(module.register_forward_hook(self._leave, always_call=True))
            stack.enter_context(self)
            yield

    def _enter(self, *_):
        self.children += 1

    def _leave(self, *_):
        self.children -= 1

    def product(self, first: Tensor, second: Tensor, compute: Compute) -> Tensor:
        use = None if self.children else self.uses.of(first, second)
        if use is None or not quantizes(use.layer):
            return compute(first, second)
        x, weight = (second, first) if use.swapped else (first, second)
        if use.whole or isinstance(use.layer, Product):
            x, weight = use.layer.quantize(x, weight)
        else:
            x, quantized = use.layer.quantize(x, use.layer.weight)
            weight = same_view(quantized, use.layer.weight, weight)
        return compute(weight, x) if use.swapped else compute(x, weight)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, options: dict, compute: Compute) -> Tensor:
        products = [] if self.children or not self.uses.products else [self.uses.next_use().layer for _ in range(2)]
        if not any(map(quantizes, products)):
            return compute(query, key, value)
        first, second = (self._computing(product) for product in products)
        return attention(query, key, value, first, second, **options)

    @staticmethod
    def _computing(product):
        return lambda a, b: torch.matmul(*(product.quantize(a, b) if quantizes(product) else (a, b)))


def quantizes(layer: nn.Module) -> bool:
    """Return whether a layer or product is quantized now, or sets ranges."""
    return getattr(layer, 'quantizes', False)


def same_view(quantized: Tensor, weight: Tensor, view: Tensor) -> Tensor:
    """Return of `quantized`, which has the shape of `weight`, what `view` shows of `weight`."""
    if view is weight:
        return quantized
    if quantized.stride() != weight.stride():
        quantized = torch.empty_strided(weight.shape, weight.stride(), dtype=quantized.dtype,
                                        device=quantized.device).copy_(quantized)
    offset = view.storage_offset() - weight.storage_offset() + quantized.storage_offset()
    return quantized.as_strided(view.shape, view.stride(), offset)


class Reader:
    """Mixin of modules whose forward multiplies with weights of quantized layers, see `as_reader`."""

    @torch.compiler.disable(recursive=True)
    def forward(self, *args, **kwargs):
        """Compute as the float module, with the quantized weights and inputs where any are quantized."""
        if not any(map(quantizes, getattr(self, READS))):
            return self.float_forward(*args, **kwargs)
        with ReadMode(self).reading():
            return self.float_forward(*args, **kwargs)


def as_reader(module: nn.Module) -> None:
    """Let a module that reads quantized layers compute with quantized operands; it stays the same object."""
    if isinstance(module, Reader):
        return
    own = vars(module).pop('forward', None)  # one that was put onto the object goes before that of the class
    if own is not None:
        vars(module)['float_forward'] = own
    module.__class__ = _reading(type(module))


@cache
def _reading(kind: type) -> type:
    # A quantized layer keeps the forward of its own, which its quantized class stands before.
    forward = getattr(kind, 'float_forward', kind.forward)
    return type(kind.__name__, (Reader, kind), {'__module__': kind.__module__, '__doc__': kind.__doc__,
                                                'float_forward': forward})
