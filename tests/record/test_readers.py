"""Readers of YAML, CSV, arrays and sealed JSON: plain values or one line, never more than the file is worth."""

import csv
import io
import json
import os
import random
import struct
import zipfile

import numpy as np
import pytest
import scipy.io

from lib.record.arrays import parse_npy, read_npy, read_npz, write_npz
from lib.record.disk import is_writable
from lib.record.files import is_file, parse_json, read_bytes, read_csv, read_json, sealed, write_json
from lib.record.mat import read_mat
from lib.record.yaml_file import parse_yaml, read_yaml

ALIASES = 'a: &a [x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{name}: &{name} [{", ".join([f"*{before}"] * 9)}]\n' for before, name in zip('abcdefgh', 'bcdefghi', strict=True))


def test_keys_of_yaml_are_the_texts_that_stand_there():
    """The oracle is the text: PyYAML makes 0, 0.1, True and 90 of these."""
    text = "0: [8, -1]\n'2': 1\n0.10: 2\non: yes\n1:30: 3\n~: 4\n010: 0o7\n"
    assert parse_yaml(text, 'it') == {'0': [8, -1], '2': 1, '0.10': 2, 'on': True, '1:30': 3, '~': 4, '010': '0o7'}


def test_yaml_merges_and_aliases_of_a_reasonable_size_work(tmp_path):
    (tmp_path / 'a.yaml').write_bytes(b'\xef\xbb\xbfbase: &b {k: 1, l: 2}\r\nown:\r\n  <<: *b\r\n  k: 3\r\n')
    assert read_yaml(tmp_path / 'a.yaml') == {'base': {'k': 1, 'l': 2}, 'own': {'k': 3, 'l': 2}}
    assert parse_yaml('', 'it') is None


@pytest.mark.parametrize(('text', 'message'), [
    ('a: 1\na: 2', "'a' stands twice"), ('0: 1\n"0": 2', "'0' stands twice"), ('a: {b: 1, b: 2}', "'b' stands twice"),
    (ALIASES, 'more than 100000 values'), ('a: &x [*x]', 'inside of what it is the alias of'),
    ('[' * 10_000, 'nested too deeply'), ('[' * 200 + ']' * 200, 'nested too deeply'), ('? [a]\n: 1', 'no text'),
    ('!!python/object/apply:os.system [ls]', 'could not determine a constructor'), ('a: 2024-13-45', 'month'),
    (f'a: 0x{"f" * 400}', 'too large a number'), ('x' * (1 << 21), 'characters'), ('!!bool x', ''), ('!!int ""', ''),
    ('!!timestamp x', ''), ('a: [1', 'expected'), ('\0', 'unacceptable')])
def test_other_yaml_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=f'it is no valid YAML.*{message}') as caught:
        parse_yaml(text, 'it')
    assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(('text', 'message'), [
    ('[1e999]', 'too large'), (f'[{"9" * 400}]', 'too large'), (f'[{"9" * 5000}]', 'too large'),
    ('[' * 200 + ']' * 200, 'nested too deeply'), ('{"a": {"b": 1, "b": 1}}', "'b' stands twice")])
def test_numbers_and_depth_of_json_are_bounded(text, message):
    with pytest.raises(ValueError, match=message):
        parse_json(text, 'it')


# ---- sealed JSON

SEALED = {'top1': 97.5, 'strategy': [[8, -1], [4, 4]], 'ratio': 0.25, 'name': 'größe', 'nothing': None}


def test_a_sealed_file_comes_back_and_a_changed_one_does_not(tmp_path):
    path = tmp_path / 'r.json'
    write_json(path, {**SEALED, 3: 'a key that JSON makes a text', 'pair': (1, 2)}, seal=True)
    assert read_json(path) == {**SEALED, '3': 'a key that JSON makes a text', 'pair': [1, 2]}
    values = json.loads(path.read_text())
    assert len(values.pop('digest')) == 64
    for key in values:  # any entry changed, lost, or another one added
        for other in ({**values, key: 'x'}, {k: v for k, v in values.items() if k != key}, {**values, 'more': 1}):
            path.write_text(json.dumps({**other, 'digest': sealed(values)['digest']}))
            with pytest.raises(ValueError, match=r'r\.json is damaged or was changed.*restore it, or delete it'):
                read_json(path)
    path.write_text(json.dumps(values))  # of before: no digest
    assert read_json(path) == values


def test_no_flipped_bit_of_a_sealed_file_passes_as_another_value(tmp_path):
    path, draw = tmp_path / 'r.json', random.Random(0)
    write_json(path, SEALED, seal=True)
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_json(path)
        except ValueError:
            continue
        assert SEALED.items() <= found.items()  # a space, or the word digest itself


# ---- arrays

ARRAYS = {'table': np.arange(24.0).reshape(2, 3, 4), 'count': np.array(7), 'text': np.array('größe'),
          'codes': np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3)), 'empty': np.zeros((0, 3))}


@pytest.mark.parametrize('compress', [False, True])
def test_arrays_come_back_and_no_flipped_bit_passes(tmp_path, compress):
    path, draw = tmp_path / 'a.npz', random.Random(0)
    write_npz(path, ARRAYS, compress=compress)
    for found in (read_npz(path), {name: np.load(path)[name] for name in ARRAYS}):  # NumPy is the oracle
        assert found.keys() == ARRAYS.keys()
        assert all(np.array_equal(found[name], array) and found[name].dtype == array.dtype
                   for name, array in ARRAYS.items())
    whole = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_npz(path)
        except ValueError:
            continue
        assert all(np.array_equal(found[name], array) for name, array in ARRAYS.items())  # a date or a comment
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r'a\.npz cannot be read'):
            read_npz(path)


def test_an_npz_of_others_is_read_and_one_of_ours_that_was_changed_is_not(tmp_path):
    np.savez(tmp_path / 'theirs.npz', a=np.ones(3))
    assert read_npz(tmp_path / 'theirs.npz')['a'].tolist() == [1, 1, 1]
    write_npz(tmp_path / 'ours.npz', ARRAYS)
    held = dict(np.load(tmp_path / 'ours.npz'))
    for change in ({'table': held['table'][::-1]}, {'count': np.array(8)}, {'count': np.array(7.0)},
                   {'more': np.ones(1)}):
        np.savez(tmp_path / 'ours.npz', **{**held, **change})
        with pytest.raises(ValueError, match='its digest is of other values'):
            read_npz(tmp_path / 'ours.npz')


def npy(header, data=b''):
    header = header.encode() + b' ' * (118 - len(header))
    return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(header)) + header + data


@pytest.mark.parametrize('data', [
    b'', b'\x93NUMPY', npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
    npy("{'descr': '|O', 'fortran_order': False, 'shape': (), }"), npy('[' * 100), npy("{'descr': 3}"), npy('{1: [}'),
    npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }", b'1234567'), b'\x93NUMPY\x09\x00' + bytes(200)])
def test_an_array_that_is_only_claimed_is_not_allocated(data, tmp_path):
    with pytest.raises(ValueError, match='not a complete .npy file'):
        parse_npy(data, 'it')
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w') as archive:
        archive.writestr('a.npy', data)
    with pytest.raises(ValueError, match='not a complete .npy file'):
        read_npz(tmp_path / 'a.npz')


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', bytes(1 << 22))
    with pytest.raises(ValueError, match='its arrays would take 4194304 bytes'):
        read_npz(tmp_path / 'a.npz', limit=1 << 20)


ROWS = np.array([(361, 'n09193705', 'Täler'), (490, 'n01751748', 'sea snake')],
                [('ILSVRC2012_ID', 'f8'), ('WNID', 'O'), ('words', 'O')])


def plain(value):
    """What SciPy reads, in the form of `read_mat`."""
    if value.dtype.names:
        return [{name: plain(row[name]) for name in value.dtype.names} for row in value.ravel('F')]
    return str(value[0]) if value.dtype.kind == 'U' else value.ravel('F').tolist()


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('value', [[1, 2], [[1.5, 2], [3, 4]], np.arange(300, dtype=np.uint16), -7, 'text', ROWS,
                                   ROWS[:1], {'a': ROWS, 'b': {'c': 'größer'}}, np.zeros((0, 3)), 2 ** 40])
def test_matlab_files_are_read_as_scipy_reads_them(tmp_path, value, packed):
    path = tmp_path / 'meta.mat'
    scipy.io.savemat(path, {'x': value, 'name': 'n'}, do_compression=packed)
    assert read_mat(path) == {'x': plain(scipy.io.loadmat(path)['x']), 'name': 'n'}


def test_damaged_matlab_files_are_read_or_refused(tmp_path):
    """Also those that make SciPy's reader crash: an element of no bytes where a number lies."""
    path, draw = tmp_path / 'meta.mat', random.Random(0)
    for packed in (False, True):
        scipy.io.savemat(path, {'x': ROWS}, do_compression=packed)
        whole = path.read_bytes()
        damage = [(at, 0) for at in range(124, len(whole))]
        damage += [(at, whole[at] ^ 1 << draw.randrange(8)) for at in range(124, len(whole))]
        for at, byte in damage:
            path.write_bytes(whole[:at] + bytes([byte]) + whole[at + 1:])
            try:
                read_mat(path)
            except ValueError as error:
                assert '\n' not in str(error) and 'meta.mat cannot be read' in str(error)
        for length in (0, 100, 130, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match='meta.mat cannot be read'):
                read_mat(path)


def test_packed_matlab_files_do_not_fill_the_memory(tmp_path):
    scipy.io.savemat(tmp_path / 'a.mat', {'x': np.zeros(1 << 20)}, do_compression=True)
    with pytest.raises(ValueError, match='cut off or too large'):
        read_mat(tmp_path / 'a.mat', limit=1 << 20)


# ---- CSV and paths


@pytest.mark.parametrize(('text', 'message'), [
    ('', 'no column a, b'), ('a\n', 'no column b'), ('a,b\n1,2,3\n', 'line 2: more cells'), ('a,a,b\n', 'of one name'),
    ('a,b\n"' + 'x' * 200_000, 'cannot be read as CSV')])
def test_csv_files(tmp_path, text, message):
    path = tmp_path / 't.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        list(read_csv(path, ('a', 'b')))
    rows = [{'a': '1', 'b': 'x,y'}, {'a': '', 'b': 'größe'}]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ['b', 'other', 'a'])
    writer.writeheader()
    writer.writerows(rows)
    path.write_text('\ufeff' + buffer.getvalue())
    assert [row for _, row in read_csv(path, ('a', 'b'))] == rows


def test_names_that_cannot_be_files(tmp_path, monkeypatch):
    assert not is_file('x' * 300) and not is_file('a\0b') and not is_file(tmp_path) and not is_file('')
    for read in (read_bytes, read_json, read_npy, read_npz, read_yaml):
        with pytest.raises(FileNotFoundError, match='does not exist'):
            read('x' * 300)
        with pytest.raises(FileNotFoundError, match='is a folder'):
            read(tmp_path)
    os.mkfifo(tmp_path / 'pipe')  # reading it would wait for ever
    with pytest.raises(ValueError, match='no regular file'):
        read_bytes(tmp_path / 'pipe')

    def refuse(*arguments, **options):
        raise PermissionError(13, 'Permission denied', 'there')
    monkeypatch.setattr('os.stat', refuse)  # root may look everywhere
    with pytest.raises(ValueError, match='there.*cannot be looked at: Permission denied'):
        is_file('there')
    with pytest.raises(ValueError, match='there.*Permission denied'):
        read_bytes('there')


def test_whether_a_folder_can_be_written_is_known_before_it_is_made(tmp_path):
    (tmp_path / 'file').write_text('')
    assert is_writable(tmp_path) and is_writable(tmp_path / 'new' / 'deeper')
    assert not is_writable(tmp_path / 'file' / 'new') and not is_writable(tmp_path / 'file')
