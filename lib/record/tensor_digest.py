"""The digest of a checkpoint: of its tensors and of all plain values beside them."""

import hashlib
import zlib
from typing import Any

import torch


def digest_of_tensors(value: Any) -> str:
    """Return the SHA-256 of tensors and plain values in nested containers, in hexadecimal.

    Kinds of dicts and of sequences make no difference, the order of keys does. A tensor counts with its kind, shape and
    CRC-32, which is fast enough for every epoch.
    """
    return hashlib.sha256(_token(value, {})).hexdigest()


def _token(value: Any, known: dict[int, bytes]) -> bytes:
    """Return what stands for a value in the text that is hashed; containers that come again are hashed once."""
    if isinstance(value, (dict, list, tuple)):
        if id(value) not in known:
            known[id(value)] = b''  # of a container within itself
            items = (item for pair in value.items() for item in pair) if isinstance(value, dict) else value
            text = b','.join([_token(item, known) for item in items])
            known[id(value)] = hashlib.sha256((b'{' if isinstance(value, dict) else b'[') + text).hexdigest().encode()
        return known[id(value)]
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        return f'{value.dtype}{tuple(value.shape)}{zlib.crc32(data)}'.encode()
    return f'{type(value).__name__} {value!r}'.encode()
