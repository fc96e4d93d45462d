"""Files of weights: whatever is in them, they are read without running code or refused in one ValueError."""

import argparse
import collections
import datetime
import decimal
import os
import pathlib
import pickle
import random
import uuid
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from easydict import EasyDict
from torch import nn

from lib.record.checkpoint import read_checkpoint, save_checkpoint
from lib.record.torch_files import plain_reason, read_torch_file

WEIGHTS = {'fc.weight': torch.arange(6.).reshape(2, 3), 'fc.bias': torch.tensor([0.5, -1.])}


class Settings:
    """A class of a training script."""


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path, function=os.system):
        self.path, self.function = path, function

    def __reduce__(self):
        harm = f'touch {self.path}' if self.function is os.system else f'open({str(self.path)!r}, "w")'
        return self.function, (harm,)


def same(found):
    return found.keys() == WEIGHTS.keys() and all(torch.equal(value, WEIGHTS[key]) for key, value in found.items())


def beside():
    """What other trainers save beside weights."""
    lists = collections.defaultdict(list, {'loss': [1.0]})
    return {
        'args': argparse.Namespace(lr=0.1, out=pathlib.Path('out'), when=datetime.datetime.now()),
        'numpy': [np.float64(97.2), np.int64(3), np.bool_(True), np.str_('x'), np.float16(1), np.zeros((0, 2)),
                  np.arange(6).reshape(2, 3), np.array(['a', None], object), np.dtype('f4')],
        'standard library': [lists, collections.Counter('aab'), collections.deque([1], 3), frozenset([1]), {2}, 1j, b'',
                             b'ab', bytearray(b'c'), range(3), slice(1), datetime.timedelta(1), datetime.timezone.utc,
                             datetime.date(2020, 1, 1), decimal.Decimal('0.1'), uuid.uuid4(), random.getstate()],
        'torch': [torch.Size([1]), torch.float16, torch.device('cpu'), torch.__version__, torch.get_rng_state()],
        'config': EasyDict(model=EasyDict(width=2)),
    }


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('name', beside())
def test_what_lies_beside_the_weights_is_no_obstacle(tmp_path, name, zipped):
    torch.save({'state_dict': WEIGHTS, name: beside()[name]}, tmp_path / 'a.pth',
               _use_new_zipfile_serialization=zipped)
    assert same(read_torch_file(tmp_path / 'a.pth')['state_dict'])


def test_arrays_and_scalars_of_numpy_keep_their_values(tmp_path):
    torch.save({'a': np.arange(6.).reshape(2, 3), 'b': np.float64(1.5), 'c': collections.defaultdict(int, x=3)},
               tmp_path / 'a.pth')
    found = read_torch_file(tmp_path / 'a.pth')
    assert found['a'].tolist() == [[0, 1, 2], [3, 4, 5]] and found['b'] == 1.5 and found['c'] == {'x': 3}


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    for name in ('a.safetensors', 'a.pth'):
        safetensors.torch.save_file(WEIGHTS, tmp_path / name)
        assert same(read_torch_file(tmp_path / name))


def write(path, kind):
    """Makes a file that is none that can be read."""
    make = {
        'network': lambda: torch.save(nn.Sequential(nn.Linear(2, 2)), path),
        'old network': lambda: torch.save(nn.Linear(2, 2), path, _use_new_zipfile_serialization=False),
        'class': lambda: torch.save({'model_state': WEIGHTS, 'settings': Settings()}, path),
        'protocol': lambda: torch.save({'net': WEIGHTS}, path, pickle_protocol=4),
        'pickle': lambda: path.write_bytes(pickle.dumps({'state_dict': {'a': np.ones(2)}})),
        'system': lambda: torch.save({'state_dict': WEIGHTS, 'x': Harmful(path.parent / 'harm')}, path),
        'eval': lambda: torch.save(Harmful(path.parent / 'harm', eval), path, _use_new_zipfile_serialization=False),
        'pickled system': lambda: path.write_bytes(pickle.dumps(Harmful(path.parent / 'harm'))),
        'torchscript': lambda: zipped(path, {'a/data.pkl': b'', 'a/constants.pkl': b'', 'a/code/x.py': b''}),
        'npz': lambda: np.savez(path.open('wb'), a=np.ones(2)),
        'zip': lambda: zipped(path, {'model.h5': b''}),
        'npy': lambda: np.save(path.open('wb'), np.ones(2)),
        'gzip': lambda: path.write_bytes(b'\x1f\x8b\x08' + bytes(50)),
        'page': lambda: path.write_bytes(b'<!DOCTYPE html><html>not found</html>'),
        'lfs': lambda: path.write_bytes(b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n'),
        'hdf5': lambda: path.write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(50)),
        'tar': lambda: path.write_bytes(bytes(257) + b'ustar' + bytes(300)),
        'text': lambda: path.write_bytes(b'hello'),
        'empty': lambda: path.write_bytes(b''),
    }
    make[kind]()
    return path


def zipped(path, parts):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(('kind', 'words'), [
    ('network', r'whole pickled network.*\n.*weights_only=False\)\ntorch.save\(network.state_dict\(\), .bad_weights'),
    ('old network', 'whole pickled network'),
    ('class', r"a pickle with \S*Settings in it.*\n.*\ntorch.save\(saved\['model_state'\]"),
    ('protocol', r"pickle protocol 4.*\n.*\ntorch.save\(saved\['net'\]"),
    ('pickle', r'written by pickle, not by torch.save.*\nimport pickle, torch; saved = pickle.load'),
    ('system', 'calls posix.system when it is unpickled.*delete it'),
    ('eval', r'calls \w+.eval when it is unpickled'), ('pickled system', 'calls posix.system'),
    ('torchscript', r'a TorchScript program.*\n.*torch.jit.load\(.*\ntorch.save\(network.state_dict'),
    ('npz', 'arrays of NumPy'), ('zip', 'another zip archive: unpack it'), ('npy', 'an array of NumPy'),
    ('gzip', 'compressed by gzip: unpack it'), ('page', 'a web page'), ('lfs', 'git lfs pull'),
    ('hdf5', 'an HDF5 file'), ('tar', 'a tar archive'), ('text', 'neither by torch.save nor by safetensors'),
    ('empty', 'empty'),
])
def test_what_cannot_be_read_is_called_what_it_is(tmp_path, kind, words):
    path = write(tmp_path / 'bad.pth', kind)
    with pytest.raises(ValueError, match=rf'bad.pth.* cannot be read as a PyTorch checkpoint: it .*{words}') as error:
        read_torch_file(path)
    assert '\x1b' not in str(error.value)
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('kind', ['network', 'class', 'protocol', 'pickle'])
def test_the_two_lines_save_weights_that_can_be_read(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='save its weights') as error:
        read_torch_file(write(tmp_path / 'bad.pth', kind))
    exec(str(error.value).partition('\n')[2])
    assert all(torch.as_tensor(value).dim() for value in read_torch_file(tmp_path / 'bad_weights.pth').values())


def test_torch_s_own_words_are_one_plain_line():
    said = 'Weights only load failed. \x1b[1mto do\x1b[0m\n\tWeightsUnpickler error: Unsupported\x1b[1m operand 9\nmore'
    assert plain_reason(RuntimeError(said)) == 'Unsupported operand 9'
    assert plain_reason(KeyError('a')) == "KeyError 'a'" and plain_reason(AssertionError()) == 'AssertionError'


def rewritten(source, target, edit):
    """Copies a zip file with `edit(name, data)` of every part, and right checksums."""
    with zipfile.ZipFile(source) as archive:
        zipped(target, {name: edit(name, archive.read(name)) for name in archive.namelist()})
    return target


def test_what_a_file_claims_is_not_allocated(tmp_path):
    save = tmp_path / 'a.pth'
    torch.save({'a': torch.arange(4.)}, save)
    claims = b'J' + (2**31 - 1).to_bytes(4, 'little')  # elements of the storage
    storage = rewritten(save, tmp_path / 'storage.pth', lambda name, data: data.replace(b'K\x04tq', claims + b'tq'))
    torch.save({'a': torch.zeros(1).expand(10**12)}, tmp_path / 'stride.pth')
    (tmp_path / 'header.safetensors').write_bytes((10**12).to_bytes(8, 'little') + b'{' + bytes(90))
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    (tmp_path / 'shape.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(16))
    with zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a/data.pkl', bytes(100 << 20))
    for path in (storage, *(tmp_path / name for name in ('stride.pth', 'header.safetensors', 'shape.safetensors',
                                                         'bomb.pth'))):
        with pytest.raises(ValueError, match=path.name):
            read_torch_file(path)


def test_values_nested_without_end_are_refused(tmp_path):
    path, wide, ring = tmp_path / 'a.pth', [], []
    for _ in range(60):
        wide = [wide, wide]  # 2**60 lists to whoever counts
    ring.append(ring)
    for value in (wide, ring):
        torch.save({'digest': 'x', 'a': value}, path)
        with pytest.raises(ValueError, match='a.pth was changed after it was written, its digest differs'):
            read_checkpoint(path)
    word = b'X\x06\x00\x00\x00digest'
    deep = b'\x80\x02}(' + word + word + word[:-1] + b'y' + b']' * 10**5 + b'a' * (10**5 - 1) + b'u.'
    zipped(path, {'a/data.pkl': deep, 'a/version': b'3\n', 'a/byteorder': b'little'})
    with pytest.raises(ValueError, match='a.pth was changed after it was written'):
        read_checkpoint(path)


def test_devices_folders_and_missing_files(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path, words in ((tmp_path, 'is a folder'), (tmp_path / 'none', 'does not exist'), ('/dev/zero', 'no regular'),
                        (tmp_path / 'pipe', 'no regular'), (tmp_path / ('x' * 300), 'does not exist')):
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            read_torch_file(path)


def mutations(data, count, seed):
    """Yields damaged copies: bits flipped, bytes replaced, cut, doubled or taken out."""
    rng = random.Random(seed)
    for number in range(count):
        copy, at = bytearray(data), rng.randrange(len(data))
        length = rng.choice([1, 2, 8, 64])
        kind = number % 5
        if kind == 0:
            copy[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            copy[at:at + length] = rng.randbytes(length)
        elif kind == 2:
            del copy[at:]
        elif kind == 3:
            del copy[at:at + length]
        else:
            copy[at:at] = copy[at:at + length]
        yield bytes(copy)


@pytest.mark.parametrize('kind', ['ours', 'old', 'safetensors'])
def test_a_damaged_file_is_refused_or_holds_the_same(tmp_path, kind):
    path, checkpoint = tmp_path / 'a.pth', {'epoch': 3, 'state_dict': WEIGHTS, 'best_acc': 97.0}
    if kind == 'ours':
        save_checkpoint(path, checkpoint)
    elif kind == 'old':
        torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    else:
        safetensors.torch.save_file(WEIGHTS, path)
    refused = 0
    for data in mutations(path.read_bytes(), 400, seed=1):
        path.write_bytes(data)
        try:
            found = read_checkpoint(path)
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and '\x1b' not in str(error)
        else:  # in the other two kinds of files nothing tells of a flipped bit of a weight
            assert kind != 'ours' or (found['epoch'], found['best_acc']) == (3, 97.0) and same(found['state_dict'])
    assert refused > 200
