"""A script keeps the memory that it frees and lets threads that wait sleep soon, unless told otherwise."""

import os
import platform
import subprocess
import sys

import pytest

from tests.runs import SCRIPTS

PROGRAM = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from _cli import make_parser, run
import numpy as np

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096

def main(args):
    before = resident()
    array = np.ones(10 ** 7)  # 80 MB
    held = resident() - before
    del array
    print(held, resident() - before)

run(main, make_parser('test'))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
@pytest.mark.parametrize('option, kept', [((), True), (('--no-keep_memory',), False)])
def test_memory_is_kept(option, kept):
    environment = {name: value for name, value in os.environ.items() if not name.startswith('MALLOC_')}
    done = subprocess.run([sys.executable, '-c', PROGRAM, *option], env=environment, capture_output=True, text=True,
                          check=True)
    held, after = map(int, done.stdout.split())
    assert held >= 7.9e7
    assert (after >= 7.9e7) == kept, f'{after} of {held} bytes are left'


SPINNING = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(SCRIPTS)!r})
for script in Path({str(SCRIPTS)!r}).glob('[a-z]*.py'):
    __import__(script.stem)
assert 'torch' not in sys.modules  # it brings OpenMP, which reads the variable
from _cli import make_parser, run
run(lambda args: print(os.environ.get('GOMP_SPINCOUNT')), make_parser('test'))
"""


@pytest.mark.parametrize('given, spins', [({}, '10000'), ({'GOMP_SPINCOUNT': '7'}, '7'),
                                          ({'OMP_WAIT_POLICY': 'ACTIVE'}, 'None')], ids=['default', 'count', 'policy'])
def test_threads_spin_briefly_before_torch_is_imported(given, spins):
    others = {name: value for name, value in os.environ.items() if not name.startswith(('OMP_WAIT', 'GOMP_'))}
    done = subprocess.run([sys.executable, '-c', SPINNING], env=others | given, capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == spins
