"""Event files: TensorBoard reads them, and one that cannot be written costs a warning."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter

from lib.record.logs import ScalarLog


def events(path):
    """The events of a file, which must consist of whole records."""
    data, found = path.read_bytes(), []
    while data:
        length, = struct.unpack('<Q', data[:8])
        found.append(Event.FromString(data[12:12 + length]))
        data = data[16 + length:]
    return found


def test_an_event_file_holds_what_was_added(tmp_path):
    log = ScalarLog(tmp_path / 'logs', purge_step=3)
    log.add_scalar('reward/last', 0.5, 3)
    log.flush()
    log.add_text('info/policy', '[4, 5]', 4)
    log.flush()
    path, = (tmp_path / 'logs').iterdir()
    version, start, number, text = events(path)
    assert version.file_version == 'brain.Event:2'
    assert (start.session_log.status, start.step) == (SessionLog.START, 3)
    assert (number.step, number.summary.value[0].tag, number.summary.value[0].simple_value) == (3, 'reward/last', 0.5)
    assert (text.step, text.summary.value[0].tensor.string_val[0]) == (4, b'[4, 5]')
    writer = RecordWriter(str(tmp_path / 'theirs'))  # of tensorboardX, with its checksums
    for event in (version, start, number, text):
        writer.write(event.SerializeToString())
    writer.close()
    assert path.read_bytes() == (tmp_path / 'theirs').read_bytes()


def test_a_file_that_cannot_be_written_is_said_once(tmp_path, caplog):
    (tmp_path / 'logs').touch()
    log = ScalarLog(tmp_path / 'logs')
    for step in range(3):
        log.add_scalar('loss', 1.0, step)
        log.flush()
    assert len(caplog.records) == 1 and 'cannot be written' in caplog.text


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e300, 7])
def test_any_number_can_be_added(tmp_path, value):
    log = ScalarLog(tmp_path)
    log.add_scalar('loss', value, 0)
    log.flush()
    assert len(events(next(tmp_path.iterdir()))) == 3
