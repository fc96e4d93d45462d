"""One process at a time writes to a folder; the lock of one that was killed counts no more."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lib.record.lock import NAME, hold, release

ROOT = Path(__file__).resolve().parents[2]
HOLDER = 'import sys; from lib.record.lock import hold; hold(sys.argv[1]); print("held", flush=True); sys.stdin.read()'


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, '-c', HOLDER, tmp_path], cwd=ROOT, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()
    process.wait()
    release()


def test_the_lock_of_another_process_is_respected_until_it_is_killed(holder, tmp_path, caplog):
    with pytest.raises(FileExistsError, match=f'written by process {holder.pid} on {socket.gethostname()}: wait'):
        hold(tmp_path)
    holder.kill()
    holder.wait()
    assert (tmp_path / NAME).is_file()  # what it left
    with caplog.at_level('INFO'):
        assert hold(tmp_path)
    assert f'left by process {holder.pid}' in caplog.text
    assert json.loads((tmp_path / NAME).read_text()) == {'process': os.getpid(), 'host': socket.gethostname()}


def test_it_is_taken_once_and_leaves_nothing(tmp_path):
    assert hold(tmp_path) and not hold(tmp_path)
    release()
    assert not list(tmp_path.iterdir())
    assert hold(tmp_path)
    release()


@pytest.mark.parametrize('content', ['', '[]', '{"process": "x"}', 'half {'])
def test_a_file_that_tells_nothing_is_no_obstacle(tmp_path, content):
    (tmp_path / NAME).write_text(content)
    assert hold(tmp_path)
    release()


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('mine')
    (tmp_path / NAME).symlink_to(tmp_path / 'precious')
    with pytest.raises(OSError):
        hold(tmp_path)
    assert (tmp_path / 'precious').read_text() == 'mine'
