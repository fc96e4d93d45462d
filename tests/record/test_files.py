"""Files on disk: nothing is half written, and what cannot be read is said in one line."""

import pytest

from lib.record.files import atomic_path, parse_json, read_json, read_text


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
