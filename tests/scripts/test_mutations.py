"""Damaged files are refused in one line or read the same: the fast part of benchmarks/mutations.py."""

import json
import random
import shutil
import time

import pytest

from benchmarks import mutations
from benchmarks.damage import mutate
from benchmarks.damage.kinds import KINDS, Kind
from benchmarks.damage.samples import make_files
from benchmarks.mutations import FAILURES, Cases

FOLDERS = ('float', 'save', 'tuned_k', 'tuned_l', 'table.npy', 'table.json')
SLOW = ('results on machines', *(kind.name for kind in KINDS if kind.name.startswith('old')))  # seconds a case


@pytest.fixture(scope='module')
def place(home, kmeans_search, kmeans_finetune, linear_finetune, tmp_path_factory):
    """A copy of the runs, with the files that a person writes."""
    copy = tmp_path_factory.mktemp('mutations')
    for name in FOLDERS:
        (shutil.copytree if (home / name).is_dir() else shutil.copy)(home / name, copy / name)
    make_files(copy)
    return copy


def test_damaged_files_are_refused_in_one_line_or_read_the_same(place):
    kinds = [kind for kind in KINDS if kind.name not in SLOW and any(any(place.glob(name)) for name in kind.files)]
    assert len(kinds) > 20
    cases = Cases(place, kinds)
    failed = [(number, *result) for number in range(3 * len(kinds)) if (result := cases.run(number))[0] in FAILURES]
    assert not failed, '\n'.join(map(str, failed[:20]))


@pytest.mark.parametrize('change', mutate.BYTES)
def test_damage_to_bytes_changes_them(change):
    for seed in range(20):
        data = bytearray(range(1, 100))
        change(data, random.Random(seed))
        assert data != bytes(range(1, 100)) or change is mutate.flip, seed


def test_damage_to_values_changes_one_place():
    value = {'a': [1, 2, {'b': None}], 'c': 0.5}
    found = {json.dumps(mutate.mutate_value(json.loads(json.dumps(value)), random.Random(seed)), default=str)
             for seed in range(200)}
    assert len(found) > 60


def lenient(home, file):
    return json.loads(file.read_text()).get('a')


def refuse(home, file):
    if lenient(home, file) != [1, 2]:
        raise ValueError('no file is named')


READERS = {'silent': lenient, 'other error': lambda home, file: lenient(home, file)[1], 'message': refuse,
           'hang': lambda home, file: lenient(home, file) == [1, 2] or time.sleep(60)}


@pytest.mark.parametrize('outcome', READERS)
def test_the_harness_finds_what_it_looks_for(tmp_path, monkeypatch, outcome):
    (tmp_path / 'file.json').write_text('{"a": [1, 2]}')
    monkeypatch.setattr(mutations, 'LIMIT', 0.2)
    cases = Cases(tmp_path, [Kind('a', ('file.json',), READERS[outcome])])
    assert outcome in {cases.run(number)[0] for number in range(40)}
    assert (tmp_path / 'file.json').read_text() == '{"a": [1, 2]}'
