"""The args.json of a run is taken as the run wrote it, or not at all."""

import json

import pytest

from lib.record.files import write_json
from lib.record.settings import differing, read_settings, with_record

SETTINGS = {'image_size': 8, 'half': False, 'lr': 0.1}
INPUTS = {'weights': 'a1', 'costs': ['b2']}


@pytest.fixture
def path(tmp_path):
    write_json(tmp_path / 'args.json', with_record(SETTINGS, INPUTS, 'c3'), seal=True)
    return tmp_path / 'args.json'


def test_it_comes_back_as_it_was_written(path):
    assert read_settings(path) == (SETTINGS, {'inputs': INPUTS, 'identity': 'c3'})


def test_one_of_an_earlier_version_has_no_record(path):
    path.write_text(json.dumps(SETTINGS))
    assert read_settings(path) == (SETTINGS, None)


@pytest.mark.parametrize('change', [
    lambda value: value.pop('image_size'), lambda value: value.update(half='maybe'),
    lambda value: value.update(lr=0.2), lambda value: value.update(other=1), lambda value: value.pop('record'),
    lambda value: value['record']['inputs'].pop('weights'), lambda value: value['record'].update(identity='d4'),
    lambda value: value.pop('digest'),
])
def test_no_line_of_it_can_be_changed(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match='args.json .*digest'):
        read_settings(path)


@pytest.mark.parametrize('text', ['[]', '{"a": 1', '[' * 10000, '\xff'])
def test_other_files_are_refused(path, text):
    path.write_bytes(text.encode('latin-1'))
    with pytest.raises(ValueError, match='args.json'):
        read_settings(path)


def test_what_differs_between_inputs():
    assert differing(INPUTS, INPUTS) == []
    assert differing(INPUTS, {'costs': ['b3'], 'data': 'e'}) == ['costs', 'data', 'weights']
