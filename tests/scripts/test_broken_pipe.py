"""Whoever reads the output may stop: `python scripts/measure.py ... | head -1` ends without a traceback."""

import json
import os
import subprocess
import sys

import pytest

from tests.runs import ROOT

NO_READER = 141  # 128 + SIGPIPE, as a shell says it


@pytest.mark.parametrize(('command', 'status', 'unbuffered'), [
    *((command, status, unbuffered) for unbuffered in ('', '1') for command, status in (
        ('scripts/measure.py --help', 0), ('scripts/summarize.py a=run', NO_READER),
        ('lib/utils/make_data.py --help', 0), ('lib/utils/make_data.py --source source --target target', 0))),
    ('scripts/progressive_search.py --print_freq 100', NO_READER, ''),  # says at once that this has no effect
])
def test_nobody_reads_the_output(tmp_path, command, status, unbuffered):
    """Buffered output is written at the very end, other output at once."""
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'results.json').write_text(json.dumps({'top1': 1.0, 'ratio': 1.0, 'quantization': 'float'}))
    for i in range(5):
        (tmp_path / 'source' / 'images' / 'banded').mkdir(parents=True, exist_ok=True)
        (tmp_path / 'source' / 'images' / 'banded' / f'{i}.jpg').touch()
    read, write = os.pipe()
    os.close(read)
    program, *options = command.split()
    try:
        done = subprocess.run([sys.executable, ROOT / program, *options], stdout=write, stderr=subprocess.PIPE,
                              text=True, cwd=tmp_path, env={**os.environ, 'PYTHONUNBUFFERED': unbuffered})
    finally:
        os.close(write)
    said = 'nobody reads the output any more; nothing was begun; start again\n' if 'search' in program else ''
    assert (done.returncode, done.stderr) == (status, said)
