"""Elementwise work on large tensors in pieces: what one operation leaves in the cache, the next one finds there."""

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 17  # elements of a core: 512 KiB of float32


def dense(x: Tensor) -> Tensor:
    """Return `x`, or a copy of it where its elements do not lie one behind the other in memory."""
    return like(x, torch.empty_like(x))


def like(x: Tensor, other: Tensor) -> Tensor:
    """Return `x`, or a copy of it where its elements lie in another order than those of `other`, of the same shape."""
    if x.stride() == other.stride():
        return x
    return torch.empty_like(other, dtype=x.dtype).copy_(x)


def flat(x: Tensor) -> Tensor:
    """Return the elements of `x` (numel,), in the order of memory; a view where they lie one behind the other there."""
    x = dense(x)
    return x.as_strided((x.numel(),), (1,), x.storage_offset())


def blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Give flat views of the same parts of all tensors, which are dense and lie in the same order.

    On the CPU a part fits the caches of the cores that share it; elsewhere it is everything.
    """
    size = tensors[0].numel()
    step = BLOCK * torch.get_num_threads() if tensors[0].device.type == 'cpu' else max(size, 1)
    return zip(*(flat(tensor).split(step) for tensor in tensors), strict=True)
