"""Checkpoints that say what is wrong with them, and weights loaded by name."""

import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from lib.record.files import atomic_path
from lib.record.finite import check_finite

logger = logging.getLogger(__name__)


def save_checkpoint(path, checkpoint):
    """Saves a dict of tensors and plain values atomically; loadable with `weights_only=True`.

    Raises:
        FloatingPointError: a tensor is not finite (`check_finite`); nothing is written.
    """
    check_finite(checkpoint, Path(path).name)
    with atomic_path(path, needed=tensor_bytes(checkpoint)) as temporary:
        torch.save(checkpoint, temporary)


def tensor_bytes(value):
    """Returns the bytes of all tensors in nested dicts and lists, less than their checkpoint takes."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(map(tensor_bytes, parts))


def read_checkpoint(path):
    """Reads a checkpoint on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, is no checkpoint, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {path} does not exist: check the path'
                                + (' (it is a folder; name the file in it)' if path.is_dir() else ''))
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, UnicodeDecodeError, KeyError,
            ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f'{path} ({path.stat().st_size} bytes) cannot be read as a PyTorch checkpoint: it is '
                         f'truncated or of another kind; make or copy it again ({reason})') from error


def state_dict_of(checkpoint, path='checkpoint'):
    """Finds the state dict in a checkpoint: under `state_dict`, `model` or the like, or the dict itself.

    The prefix `module.` of DataParallel is removed, also inside (`features.module.0` of the original's VGG). What is no
    tensor is left out; version numbers of modules are kept.

    Raises:
        ValueError: nothing in the checkpoint looks like a state dict.
    """
    found = checkpoint
    for key in ('state_dict', 'model', 'model_state_dict', 'net'):
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            found = checkpoint[key]
            break
    if not isinstance(found, dict) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f'{path} holds no state dict: expected a dict of tensors, or one under "state_dict"')
    state_dict = OrderedDict((_plain_key(key), value) for key, value in found.items()
                             if isinstance(value, torch.Tensor))
    versions = getattr(found, '_metadata', {})
    state_dict._metadata = {_plain_key(key + '.')[:-1]: value for key, value in versions.items()}
    return state_dict


def _plain_key(key):
    return key.removeprefix('module.').replace('.module.', '.')


def load_weights(model, state_dict, path='checkpoint', *, reset_classifier=False):
    """Loads `state_dict` into `model`; every key must fit.

    What torchvision's files hold beyond the networks here is left out: auxiliary heads, and DenseNet's old names.

    Args:
        model: the network.
        state_dict: as `state_dict_of` gives it.
        path: where it is from, for messages.
        reset_classifier: leave the layer as it is that differs in the number of classes only.

    Returns:
        The name of the layer that was left as it is, or None.

    Raises:
        ValueError: keys are missing or unexpected, or shapes differ; the first ones are named.
    """
    own = model.state_dict()
    state_dict = _torchvision_names(state_dict, own)
    differ = {key: (tuple(state_dict[key].shape), tuple(own[key].shape)) for key in own
              if key in state_dict and state_dict[key].shape != own[key].shape}
    classifier = _classifier(differ)
    if differ and not (classifier and reset_classifier):
        shapes = [f'{key} is {theirs}, the model has {ours}' for key, (theirs, ours) in differ.items()]
        advice = '--reset_classifier starts the classifier from random weights' if classifier else \
            'check --arch, --width_mult and --num_classes'
        raise ValueError(f'{path} does not fit the model: {_some(shapes)}; {advice}')
    for key in differ:
        state_dict[key] = own[key]
    missing, unexpected = model.load_state_dict(state_dict, strict=False)
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    problems = [f'{len(keys)} {kind} ({_some(keys)})'
                for kind, keys in (('missing', missing), ('unexpected', unexpected)) if keys]
    if problems:
        linear = any(key.endswith(('quantizer.range', 'activation_range')) for key in unexpected)
        advice = 'it is of the linear flow, add --linear_quantization' if linear else 'check --arch'
        raise ValueError(f'{path} does not fit the model: keys {"; ".join(problems)}; {advice}')
    return classifier


def _torchvision_names(state_dict, own):
    """Returns a copy with DenseNet's old names `norm.1` made `norm1`, without auxiliary heads that the model lacks."""
    old = re.compile(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)')
    renamed = OrderedDict((key if key in own else old.sub(r'\1\2', key), value) for key, value in state_dict.items())
    renamed._metadata = getattr(state_dict, '_metadata', {})
    heads = [head for head in ('aux1.', 'aux2.', 'AuxLogits.') if not any(key.startswith(head) for key in own)]
    for key in [key for key in renamed if key.startswith(tuple(heads))]:
        del renamed[key]
    return renamed


def _classifier(differ):
    """Returns the only layer among {key: (shape, shape)} if the two differ in the number of outputs only, or None."""
    layers = {key.rpartition('.')[0] for key in differ}
    outputs = all(theirs[1:] == ours[1:] and len(theirs) == len(ours) > 0 for theirs, ours in differ.values())
    return layers.pop() if len(layers) == 1 and outputs else None


def _some(items, limit=4):
    more = f', and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(map(str, items[:limit])) + more
