"""Files on disk: nothing is half written, and what cannot be read is said in one line."""

import os
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.record.disk import WriteError, check_space, check_writable
from lib.record.files import atomic_path, parse_json, read_json, read_text, temporaries, write_text

LARGE = 1 << 20
WRITERS = {'torch': lambda path: torch.save({'a': torch.zeros(LARGE)}, path),
           'numpy': lambda path: np.savez(path, a=np.zeros(LARGE)),
           'text': lambda path: path.write_text('x' * LARGE),
           'bytes': lambda path: path.write_bytes(bytes(LARGE))}


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / 'file.txt'
    path.write_text('old')
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text('half')
        raise KeyboardInterrupt
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['file.txt']


@pytest.mark.parametrize(('text', 'message'), [
    ('{"a": 1', 'no JSON that can be read'), ('{"a": 1, "a": 2}', "'a' stands twice"), ('[NaN]', 'NaN is no number'),
    ('[' * 100000, 'nested too deeply'), ('', 'no JSON that can be read')])
def test_json_is_read_strictly(text, message):
    with pytest.raises(ValueError, match=f'it.*{message}'):
        parse_json(text, 'it')


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    path = tmp_path / 'a.json'
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(path) == {'a': 1}


@pytest.mark.parametrize(('content', 'message'), [(b'\xff\xfe', 'no UTF-8'), (b'[1]', 'holds a list, expected a dict')])
def test_other_files_are_refused_with_their_name(tmp_path, content, message):
    path = tmp_path / 'a.json'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f'a.json.*{message}'):
        read_json(path)


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match='settings .*gone.json does not exist'):
        read_text(tmp_path / 'gone.json', 'settings')
    with pytest.raises(FileNotFoundError, match='is a folder; name the file in it'):
        read_text(tmp_path)


@pytest.fixture
def full_disk():
    """No file may grow beyond 64 kB, which writers meet as they meet a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize('kind', WRITERS)
def test_what_does_not_fit_is_one_line_and_costs_nothing(kind, tmp_path, full_disk):
    path = tmp_path / 'file.npz'
    path.write_text('old')
    with pytest.raises(WriteError, match=r'^.*file.npz cannot be written: .*\(1.05 MB are needed, .* are free\)$'), \
            atomic_path(path, needed=LARGE + (kind == 'torch')) as temporary:
        WRITERS[kind](temporary)
    assert path.read_text() == 'old'
    assert [p.name for p in tmp_path.iterdir()] == ['file.npz']


def test_other_errors_inside_a_write_stay_what_they_are(tmp_path):
    for error in (RuntimeError('no'), FileNotFoundError(2, 'No such file', 'x'), ValueError('no')):
        with pytest.raises(type(error)) as caught, atomic_path(tmp_path / 'a'):
            raise error
        assert caught.value is error


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    check_writable(tmp_path / 'new' / 'deeper')
    assert not (tmp_path / 'new').exists()
    with pytest.raises(WriteError, match='file/run cannot be a folder: .*/file is a file'):
        check_writable(tmp_path / 'file' / 'run')
    with pytest.raises(WriteError, match='run/a cannot be written: '), atomic_path(tmp_path / 'file' / 'run' / 'a'):
        pass
    monkeypatch.setattr(os, 'access', lambda path, _: path != tmp_path)
    with pytest.raises(WriteError, match='run cannot be written: .* is read-only or belongs to another user'):
        check_writable(tmp_path / 'run')


def test_room_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=999_999 if path == tmp_path else 0))
    check_space(tmp_path / 'new', 999_999, 'a checkpoint')
    with pytest.raises(WriteError, match='too full: a checkpoint takes 1 MB, 1 MB are free'):
        check_space(tmp_path / 'new', 1_000_000, 'a checkpoint')


@pytest.mark.parametrize(('umask', 'mode'), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_have_the_mode_that_the_umask_leaves(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_text(tmp_path / 'a.txt', 'text')
    finally:
        os.umask(before)
    assert (tmp_path / 'a.txt').stat().st_mode & 0o777 == mode


def test_temporary_files_are_told_from_those_of_others(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / 'args.json') as temporary:
        os.link(temporary, tmp_path / 'kept')
        name = temporary.name
        raise KeyboardInterrupt
    ours = [name, '.args.json.k3_x9abc.json', '.epoch_3.pth.tar.0a1b2c3d.tar']  # of today, and of mkstemp before
    for other in (*ours, 'args.json', '.args.json.backup.json', '.args.json.12345678.txt', '.args.json.old'):
        (tmp_path / other).write_text('')
    found = [path.name for pattern in ('args.json', 'epoch_*.pth.tar') for path in temporaries(tmp_path / pattern)]
    assert sorted(found) == sorted(ours)
