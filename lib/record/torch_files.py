"""Files of weights, read without running code from them: what `torch.save` wrote, and safetensors.

One reader for all. Whatever is wrong with a file, it ends in one ValueError that says what the file is.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from lib.record.files import file_size
from lib.record.pickles import LEGACY, pickled_names, resave, safe_types

HEAD = 512  # bytes by which a file is recognised
EXPANSION, ROOM = 100, 1 << 26  # what a file unpacks to is at most so many times as large as the file, or so many bytes
OTHERS = (  # beginning, text near it, what the file is
    (b'version https://git-lfs', b'', 'a pointer of Git LFS in place of the file: fetch it by `git lfs pull`'),
    (b'\x1f\x8b', b'', 'compressed by gzip: unpack it'),
    (b'BZh', b'', 'compressed by bzip2: unpack it'),
    (b'\xfd7zXZ', b'', 'compressed by xz: unpack it'),
    (b'\x28\xb5\x2f\xfd', b'', 'compressed by zstd: unpack it'),
    (b'7z\xbc\xaf', b'', 'a 7-Zip archive: unpack it'),
    (b'\x89HDF', b'', 'an HDF5 file, as Keras writes it: convert its weights to PyTorch'),
    (b'\x93NUMPY', b'', 'an array of NumPy: save a dict of tensors by torch.save'),
    (b'\x08', b'pytorch', 'an ONNX file: give the checkpoint that it was exported from'),
    (b'<', b'', 'a web page or XML, not the file itself: download it again'),
)
CONTROLS = re.compile(r'\x1b\[[0-9;]*[A-Za-z]|[^\x20-\x7e\xa0-\uffff]')


class _Refused(ValueError):
    """What is wrong with a file, as a sentence without its name."""


def read_torch_file(path: str | Path, what: str = 'checkpoint') -> Any:
    """Return what a file of `torch.save` or safetensors holds, on the CPU; its checksums are verified.

    Raises:
        ValueError: it is damaged, of another kind, or holds what cannot be read without running code.
    """
    path = Path(path)
    size = file_size(path, what)
    try:
        value = _read(path, size)
        _check_sizes(value, size)
        return value
    except _Refused as error:
        raise ValueError(f'{path} cannot be read as a PyTorch {what}: it {error}') from error
    except Exception as error:  # hostile bytes make torch, zipfile and pickle raise nearly everything
        raise ValueError(f'{path} ({size} bytes) cannot be read as a PyTorch {what}: it is truncated or damaged; make '
                         f'or copy it again ({plain_reason(error)})') from error


def plain_reason(error: BaseException, limit: int = 200) -> str:
    """Return what an error says in one line without terminal codes, or its type where it says nothing."""
    said = str(error).rpartition('WeightsUnpickler error:')[2].strip()  # what torch wraps in advice
    text = ' '.join(CONTROLS.sub('', said.partition('\n')[0]).split())
    if isinstance(error, LookupError) or not text:
        text = f'{type(error).__name__} {text}'.strip()
    return text if len(text) <= limit else text[:limit] + '...'


def _read(path: Path, size: int) -> Any:
    with open(path, 'rb') as file:
        head = file.read(HEAD)
    if not head:
        raise _Refused('is empty: make or copy it again')
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < size:
        return safetensors.torch.load(path.read_bytes())
    if head.startswith(b'PK\x03\x04'):
        _check_archive(path, size)
    elif not head.startswith(LEGACY):
        _refuse_other(path, head)
    try:
        with torch.serialization.safe_globals(safe_types()), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # another pickle protocol than torch's
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if reason := pickled_names(path).obstacle(path, str(error)):
            raise _Refused(reason) from error
        raise


def _check_archive(path: Path, size: int) -> None:
    """Refuse a zip archive that torch.save did not write, that claims too much, or whose checksums differ."""
    with zipfile.ZipFile(path) as archive:
        names = [entry.filename for entry in archive.infolist()]
        inner = {name.partition('/')[2] for name in names}
        if 'constants.pkl' in inner or any(name.startswith('code/') for name in inner):
            raise _Refused(resave('a TorchScript program, code as well as weights', path, 'network', 'torch.jit.load',
                                  'network.state_dict()'))
        if 'data.pkl' not in inner:
            arrays = names and all(name.endswith('.npy') for name in names)
            raise _Refused('is no checkpoint, but ' + (
                'arrays of NumPy (.npz): save them as a dict of tensors by torch.save' if arrays else
                'another zip archive: unpack it, or give the checkpoint that it was exported from'))
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if len(set(names)) < len(names) or unpacked > max(EXPANSION * size, ROOM):
            raise _Refused('has a part twice, or unpacks to far more than its size: it is damaged, or made to do harm')
        if all(entry.CRC == 0 for entry in archive.infolist()):
            return  # written without checksums, torch.serialization.set_crc32_options(False)
        if damaged := archive.testzip():
            raise _Refused(f'is damaged: its part {damaged} does not have the checksum that was written with it; make '
                           'or copy it again')


def _refuse_other(path: Path, head: bytes) -> None:
    """Say what a file is that neither torch.save nor safetensors wrote."""
    if head[257:262] == b'ustar':
        raise _Refused('is a tar archive: unpack it (a PyTorch before 0.1.10 wrote such: save it again with a later '
                       'one)')
    for start, text, words in OTHERS:
        if head.startswith(start) and text in head[:64]:
            raise _Refused(f'is {words}')
    if head.startswith(b'\x80'):
        raise _Refused(pickled_names(path).obstacle(path, '', by_pickle=True))
    raise _Refused('was written neither by torch.save nor by safetensors, or its beginning is damaged')


def _check_sizes(value: Any, size: int) -> None:
    """Refuse tensors that claim far more elements than the file can hold, as a stride of 0 lets them."""
    for tensor in tensors_in(value):
        claimed = tensor.nbytes if isinstance(tensor, np.ndarray) else tensor.numel() * tensor.element_size()
        if claimed > max(EXPANSION * size, ROOM):
            raise _Refused(f'has {size} bytes and claims a tensor of {claimed} bytes, of shape {tuple(tensor.shape)}: '
                           'it is damaged, or made to do harm')


def tensors_in(value: Any) -> Iterator[torch.Tensor | np.ndarray]:
    """Yield every tensor and array in nested containers once, however often and deep they refer to each other."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, (torch.Tensor, np.ndarray)):
            yield item
        elif isinstance(item, (dict, list, tuple, set, frozenset)) and id(item) not in seen:
            seen.add(id(item))
            waiting.extend(item.values() if isinstance(item, dict) else item)
