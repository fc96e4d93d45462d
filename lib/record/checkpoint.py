"""Checkpoints: written with a digest, read with every check, and their weights loaded by name."""

import hashlib
import logging
import re
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.record.checkpoint_rules import check_checkpoint
from lib.record.files import DIGEST, atomic_path
from lib.record.finite import check_finite
from lib.record.torch_files import read_torch_file, tensors_in
from lib.record.weights import Weights, find_weights, first_few

logger = logging.getLogger(__name__)


def save_checkpoint(path: str | Path, checkpoint: dict) -> None:
    """Write a dict of tensors and plain values atomically, with a digest of all of it.

    Raises:
        FloatingPointError: a tensor is not finite (`check_finite`); nothing is written.
    """
    check_finite(checkpoint, Path(path).name)
    with atomic_path(path, needed=tensor_bytes(checkpoint)) as temporary:
        torch.save({**checkpoint, DIGEST: digest_of_tensors(checkpoint)}, temporary)


def tensor_bytes(value: Any) -> int:
    """Return the bytes of all tensors in nested dicts and lists, less than their checkpoint takes."""
    return sum(tensor.nbytes for tensor in tensors_in(value))


def read_checkpoint(path: str | Path) -> Any:
    """Return what a checkpoint holds, on the CPU, without its digest.

    Raises:
        ValueError: it cannot be read without running code, is damaged, was changed after it was written, or holds
            values that no run of ours writes.
    """
    saved = read_torch_file(path)
    if not isinstance(saved, dict):
        return saved
    digest = saved.pop(DIGEST, None)
    if digest is not None and digest != _digest(saved):
        raise ValueError(f'{path} was changed after it was written, its digest differs: take a copy as the run wrote '
                         'it; if only its weights are wanted, save its "state_dict" by itself')
    try:
        check_checkpoint(saved, has_digest=digest is not None)
    except ValueError as error:
        raise ValueError(f'checkpoint {path}: {error}; it is damaged or was changed: take another one of the run, or '
                         'only its "state_dict", saved by itself') from error
    return saved


def _digest(saved: dict) -> str | None:
    try:
        return digest_of_tensors(saved)
    except (RecursionError, RuntimeError, TypeError, ValueError):
        return None  # nested too deeply, or of tensors that no run of ours writes


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
        data = value.detach().cpu().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy()
        return f'{value.dtype}{tuple(value.shape)}{zlib.crc32(data)}'.encode()
    return f'{type(value).__name__} {value!r}'.encode()


def state_dict_of(checkpoint: Any, path: str | Path = 'checkpoint', model: nn.Module | None = None) -> OrderedDict:
    """Return the state dict in a checkpoint, under the names of `model`, else without those of wrappers.

    Raises:
        ValueError: nothing in the checkpoint looks like a state dict.
    """
    return find_weights(checkpoint, model and model.state_dict(), str(path)).state_dict


def weights_for(model: nn.Module, checkpoint: Any, path: str | Path = 'checkpoint', *,
                average: bool = False) -> Weights:
    """Return the weights in a checkpoint under the names of `model`; see `find_weights`."""
    return find_weights(checkpoint, model.state_dict(), str(path), average=average)


def load_weights(model: nn.Module, checkpoint: Any, path: str | Path = 'checkpoint', *,
                 reset_classifier: bool = False) -> str | None:
    """Load a state dict, or the one in a checkpoint, into `model`; every key must fit.

    What torchvision's files hold beyond the networks here is left out: auxiliary heads, and DenseNet's old names.

    Args:
        path: where it is from, for messages.
        reset_classifier: leave the layer as it is that differs in the number of classes only.

    Returns:
        The name of the layer that was left as it is, or None.

    Raises:
        ValueError: keys are missing or unexpected, shapes differ, or values cannot be weights; the first are named.
    """
    own = model.state_dict()
    state_dict = _torchvision_names(find_weights(checkpoint, own, str(path)).state_dict, own)
    differ = {key: (tuple(state_dict[key].shape), tuple(own[key].shape)) for key in own
              if key in state_dict and state_dict[key].shape != own[key].shape}
    classifier = _classifier(differ)
    if differ and not (classifier and reset_classifier):
        shapes = [f'{key} is {theirs}, the model has {ours}' for key, (theirs, ours) in differ.items()]
        advice = '--reset_classifier starts the classifier from random weights' if classifier else \
            'check --arch, --width_mult and --num_classes'
        raise ValueError(f'{path} does not fit the model: {first_few(shapes)}; {advice}')
    for key in differ:
        state_dict[key] = own[key]
    _check_values(state_dict, own, path)
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    problems = [f'{len(keys)} {kind} ({first_few(keys)})' for kind, keys in
                (('missing', _really_missing(model, missing)), ('unexpected', unexpected)) if keys]
    if problems:
        linear = any(key.endswith(('quantizer.range', 'activation_range')) for key in unexpected)
        advice = 'it is of the linear flow, add --linear_quantization' if linear else 'check --arch'
        raise ValueError(f'{path} does not fit the model: keys {"; ".join(problems)}; {advice}')
    return classifier


def _really_missing(model: nn.Module, missing: list[str]) -> list[str]:
    """Return the missing keys but counters of batches, and Parameters that came under another name."""
    parameters = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    came = {number for name, number in parameters.items() if name not in missing}
    return [key for key in missing if not key.endswith('num_batches_tracked') and parameters.get(key) not in came]


def _check_values(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuse tensors that cannot be weights of the network; where its own are infinite, as masks are, theirs may be."""
    for key, ours in own.items():
        if key in state_dict and not ours.is_meta and (problem := _problem(key, state_dict[key], ours)):
            raise ValueError(f'{path}: {key} {problem}; take another checkpoint')


def _problem(key: str, theirs: Tensor, ours: Tensor) -> str | None:
    if theirs.is_meta or theirs.layout != torch.strided or theirs.is_quantized:
        return 'has no plain values (a meta, sparse or quantized tensor)'
    if not ours.is_floating_point():
        return None if theirs.dtype == ours.dtype or not (theirs.is_complex() or ours.dtype == torch.bool) else \
            f'is {theirs.dtype}, the network has {ours.dtype}'
    if not theirs.is_floating_point():
        return f'is {theirs.dtype}, the network has {ours.dtype}'
    values = theirs.to(ours.device, ours.dtype)
    finite = values.isfinite()
    if not finite.all() and not torch.equal(values[~finite], ours[~finite]):
        return f'has {int((~finite).sum())} values that are not finite' + (
            f' in {ours.dtype}' if theirs.isfinite().all() else '')
    if key.endswith('running_var') and (values < 0).any():
        return 'is a variance and has negative values'
    return None


def _torchvision_names(state_dict: OrderedDict, own: Mapping[str, Tensor]) -> OrderedDict:
    """Return a copy with DenseNet's old names `norm.1` made `norm1`, without auxiliary heads that the model lacks."""
    old = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')
    renamed = OrderedDict((key if key in own else old.sub(r'\1\2', key), value) for key, value in state_dict.items())
    renamed._metadata = getattr(state_dict, '_metadata', {})
    heads = [head for head in ('aux1.', 'aux2.', 'AuxLogits.') if not any(key.startswith(head) for key in own)]
    for key in [key for key in renamed if key.startswith(tuple(heads))]:
        del renamed[key]
    return renamed


def _classifier(differ: Mapping[str, tuple]) -> str | None:
    """Return the only layer among {key: (shape, shape)} if the two differ in the number of outputs only, or None."""
    layers = {key.rpartition('.')[0] for key in differ}
    outputs = all(theirs[1:] == ours[1:] and len(theirs) == len(ours) > 0 for theirs, ours in differ.values())
    return layers.pop() if len(layers) == 1 and outputs else None
