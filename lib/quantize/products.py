"""Products as torch's functions compute them: whatever function multiplies, its two operands are seen and exchanged."""

from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Compute = Callable[[Tensor, Tensor], Tensor]


class Operands(NamedTuple):
    """Where a function has its two operands: (position, keyword) of each, and which of them stands for the weight."""

    first: tuple[int, str]
    second: tuple[int, str]
    swapped: bool = False  # whether the function computes second @ first


_CONVOLUTION = Operands((0, 'input'), (1, 'weight'))
_MATRICES = Operands((0, 'input'), (1, 'other'))
_BATCHES = Operands((0, 'input'), (1, 'mat2'))
OPERANDS = {
    F.linear: _CONVOLUTION, F.conv1d: _CONVOLUTION, F.conv2d: _CONVOLUTION, F.conv3d: _CONVOLUTION,
    torch.matmul: _MATRICES, torch.Tensor.matmul: _MATRICES, torch.Tensor.__matmul__: _MATRICES,
    torch.Tensor.__rmatmul__: _MATRICES._replace(swapped=True),
    torch.mm: _BATCHES, torch.Tensor.mm: _BATCHES, torch.bmm: _BATCHES, torch.Tensor.bmm: _BATCHES,
    torch.addmm: Operands((1, 'mat1'), (2, 'mat2')), torch.Tensor.addmm: Operands((1, 'mat1'), (2, 'mat2')),
    torch.baddbmm: Operands((1, 'batch1'), (2, 'batch2')), torch.Tensor.baddbmm: Operands((1, 'batch1'), (2, 'batch2')),
    torch.einsum: Operands((1, ''), (2, '')),
}


class ProductMode(TorchFunctionMode):
    """While active, gives every product of two tensors to `product`, and attention in one function to `attention`.

    It also looks into the functions of torch.nn.functional that torch offers to modes as a whole, such as
    `multi_head_attention_forward`.
    """

    def product(self, first: Tensor, second: Tensor, compute: Compute) -> Tensor:
        """Return `compute(first, second)`, or the same of other operands."""
        return compute(first, second)

    def attention(self, query: Tensor, key: Tensor, value: Tensor, options: dict, compute: Callable) -> Tensor:
        """Return `compute(query, key, value)`: softmax(query key^T scale + mask) value.

        `options` are the other arguments of `scaled_dot_product_attention`.
        """
        return compute(query, key, value)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(args, kwargs)
        if func is torch.einsum and len(args) == 2 and isinstance(args[1], (tuple, list)):
            args = (args[0], *args[1])
        places = OPERANDS.get(func) if _multiplies(func, args) else None
        if places is not None:
            return self._product(func, places, args, kwargs)
        if inner := inside(func):
            with self:
                return inner(*args, **kwargs)
        return func(*args, **kwargs)

    def _product(self, func, places, args, kwargs):
        first, second = (args[place] if place < len(args) else kwargs[keyword]
                         for place, keyword in (places.first, places.second))

        def compute(first, second):
            return func(*_exchanged(args, places, first, second), **_exchanged_keywords(kwargs, places, first, second))

        if places.swapped:
            return self.product(second, first, lambda second, first: compute(first, second))
        return self.product(first, second, compute)

    def _attention(self, args, kwargs):
        names = ('query', 'key', 'value', 'attn_mask', 'dropout_p', 'is_causal')
        options = dict(zip(names, args, strict=False)) | kwargs
        operands = [options.pop(name) for name in names[:3]]
        return self.attention(*operands, options, partial(F.scaled_dot_product_attention, **options))


def _multiplies(func, args) -> bool:
    """Return whether this call is a product of two tensors: of `einsum` those of more or fewer are none."""
    return func is not torch.einsum or len(args) == 3


def _exchanged(args, places, first, second) -> tuple:
    changed = {places.first[0]: first, places.second[0]: second}
    return tuple(changed.get(place, arg) for place, arg in enumerate(args))


def _exchanged_keywords(kwargs, places, first, second) -> dict:
    changed = {places.first[1]: first, places.second[1]: second}
    return {name: changed.get(name, arg) for name, arg in kwargs.items()}


@cache
def inside(func: Callable) -> Callable | None:
    """Return a Python function of torch.nn.functional without the question whether a mode takes it as a whole.

    None for all other functions. What it calls, modes still see.
    """
    if not isinstance(func, FunctionType) or func.__globals__ is not vars(F):
        return None
    asked = {name: _never for name in vars(F) if name.startswith('has_torch_function')}
    inner = FunctionType(func.__code__, {**vars(F), **asked}, func.__name__, func.__defaults__, func.__closure__)
    inner.__kwdefaults__ = func.__kwdefaults__
    return inner


def _never(*_args: Any) -> bool:
    return False


def attention(query: Tensor, key: Tensor, value: Tensor, first: Compute, second: Compute, *,
              attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
              scale: float | None = None, enable_gqa: bool = False) -> Tensor:
    """Return what `scaled_dot_product_attention` does, with its two products computed by `first` and `second`.

    The formula is that of torch's documentation: softmax(query key^T scale + mask) value, (..., L, E) x (..., S, E) x
    (..., S, Ev) -> (..., L, Ev); `scale` is 1 / sqrt(E) by default.
    """
    if enable_gqa:
        key, value = (x.repeat_interleave(query.size(-3) // x.size(-3), -3) for x in (key, value))
    scores = first(query, key.transpose(-2, -1)) * (query.size(-1) ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~mask, float('-inf'))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, float('-inf'))
    elif attn_mask is not None:
        scores = scores + attn_mask
    return second(F.dropout(scores.softmax(-1), dropout_p), value)
