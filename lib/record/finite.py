"""The check for values that are not finite before anything is written, so that no diverged network looks finished."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# What is learned or estimated has these names. Elsewhere -inf may stand: networks keep their masks in buffers.
NEVER_INFINITE = ('weight', 'bias', 'running_mean', 'running_var', 'original', 'original0', 'original1', 'weight_g',
                  'weight_v', 'range', 'step', 'clip', 'slope', 'centroids', 'exp_avg', 'exp_avg_sq', 'momentum_buffer')
NOT_FOUND_YET = 'quantizer.upper'  # a learned bound of DSQ is infinite until the first tensor comes


def check_finite(value: Any, what: str) -> None:
    """Raise an error where a tensor holds NaN, or infinity that is no constant of the network.

    Args:
        value: tensors in nested dicts and lists; anything else is ignored.
        what: what is about to be written, for the message.

    Raises:
        FloatingPointError: names the first such tensor and says what to do.
    """
    if found := not_finite(value):
        raise FloatingPointError(
            f'{what} is not written: {found}, the network has diverged; lower the learning rate, give that layer more '
            'bits, begin with other weights, or look for images far out of range (what was written before is still '
            'there)')


def not_finite(value: Any) -> str | None:
    """Return which tensor in nested dicts and lists holds NaN, or infinity that is no constant, in words, or None."""
    for name, tensor in _tensors(value, ()):
        bad = _wrong(name, tensor)
        if bad is not None and bad.any():
            return (f'{name} holds {int(bad.sum())} of {bad.numel()} values that are not finite '
                    f'({tensor[bad][0].item():g})')
    return None


def _tensors(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Give (name, tensor) of everything that can be NaN."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield '.'.join(path), value.detach()
    elif isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, entry in items:
            yield from _tensors(entry, path if key == 'state_dict' and not path else (*path, str(key)))


def _wrong(name: str, tensor: Tensor) -> Tensor | None:
    """Return which values must not be there, or None where all are finite, which is the quick way."""
    if torch.isfinite(tensor).all():
        return None
    if name.rpartition('.')[2] in NEVER_INFINITE:
        return ~torch.isfinite(tensor)
    return tensor.isnan() if name.endswith(NOT_FOUND_YET) else tensor.isnan() | tensor.isposinf()
