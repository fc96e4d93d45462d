"""How commands end: one line, what helps, how the run goes on, an exit status."""

import errno
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.run

from lib.runtime.ending import ending, process_number
from tests.runs import SCRIPTS, wait_for

DATASET = """
import os, signal
import torch

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(3, 8, 8), index % 10

def build(split):
    return Data()
"""
HARMLESS = DATASET.replace('os.kill(os.getpid(), signal.SIGKILL)', 'pass')


def no_memory():
    """The error of torch's allocator on this machine."""
    try:
        torch.empty(1 << 60, dtype=torch.uint8)
    except RuntimeError as error:
        return error
    raise AssertionError


HINT = '; continue with --resume run'
WORKER = 'DataLoader worker (pid 7) is killed by signal: Killed. '
CUDA = 'CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 10 GiB'


@pytest.mark.parametrize(('error', 'status', 'line'), [
    (KeyboardInterrupt(), 130, 'interrupted' + HINT),
    (ValueError('of\n\x1b[31mtwo\x1b[0m\tlines'), 1, 'error: of two lines'),
    (FileNotFoundError('x does not exist'), 1, 'error: x does not exist'),
    (FloatingPointError('nan'), 1, 'error: nan'),
    (ValueError('Caught ValueError in worker\nOriginal Traceback (most\n  File\nValueError: the reason\n'), 1,
     'error: ValueError: the reason'),
    (MemoryError(), 1, 'error: out of memory: take a smaller --train_batch (now 64) or --workers (now 4), or end other '
     'programs' + HINT),
    (no_memory(), 1, 'error: out of memory, 1.15e+09 GB more were needed: take a smaller --train_batch'),
    (MemoryError('Unable to allocate 3.00 GiB for an array with shape (3,) and data type int8'), 1,
     'error: out of memory, 3.22 GB more were needed'),
    (torch.OutOfMemoryError(CUDA), 1, 'error: out of GPU memory, 21.5 GB more were needed'),
    (RuntimeError('CUDA error: out of memory'), 1, 'error: out of GPU memory: take'),
    (RuntimeError('could not create a primitive'), 1, 'error: out of memory: take'),
    (ImportError('libx.so: failed to map segment from shared object'), 1, 'error: out of memory: take'),
    (OSError(errno.ENOMEM, 'Cannot allocate memory'), 1, 'error: out of memory: take'),
    (RuntimeError(WORKER), 1, 'error: a loader process ended unexpectedly, as happens when memory runs out'),
    (OSError(errno.EMFILE, 'Too many open files'), 1, 'error: too many files are open at once'),
    (OSError(errno.EROFS, 'Read-only file system', 'x'), 1, "error: [Errno 30] Read-only file system: 'x': make room, "
     'or give another folder by --checkpoint' + HINT)])
def test_errors_and_what_they_end_with(capsys, error, status, line):
    options = {'train_batch': 64, 'workers': 4, 'checkpoint': 'run'}
    with pytest.raises(SystemExit) as stop, ending(options, lambda: 'continue with --resume run'):
        raise error
    err = capsys.readouterr().err.strip()
    assert (stop.value.code, err[:len(line)]) == (status, line)
    machine = any(word in line for word in (HINT, ' memory', 'loader', 'files'))
    assert '\n' not in err and (HINT in err) == machine


def test_the_cause_of_an_error_counts(capsys):
    for options, said in (({'arch': 'a'}, ': take a smaller network, or end other programs'),
                          ({}, ' before the options were read: end other programs, or raise the limit (ulimit -v)')):
        with pytest.raises(SystemExit), ending(options):
            try:
                raise MemoryError
            except MemoryError as error:
                raise ValueError('the network fails on images') from error
        assert capsys.readouterr().err == f'error: out of memory{said}\n'


def test_the_error_of_another_process_is_left_to_it(capsys):
    for kind in (RuntimeError, ValueError):
        error = kind('out of memory')
        error.repeated = True
        with pytest.raises(SystemExit) as stop, ending():
            raise error
        assert (stop.value.code, capsys.readouterr().err) == (1, '')


def test_only_processes_of_torchrun_leave_the_report_to_the_first(monkeypatch):
    monkeypatch.setenv('RANK', '1')  # as some clusters set it for every job
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert process_number() == 0
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert process_number() == 1


def test_an_error_of_the_program_keeps_its_traceback():
    for error in (KeyError('a'), RuntimeError('shapes differ'), ImportError('no module')):
        with pytest.raises(type(error)), ending():
            raise error
    with pytest.raises(ValueError, match='given'), ending({'debug': True}):
        raise ValueError('given')


@pytest.mark.parametrize(('name', 'status'), [('SIGTERM', 143), ('SIGHUP', 129)])
def test_signals_end_like_an_interrupt_and_handlers_are_put_back(capsys, name, status):
    number = signal.Signals[name]
    before = signal.signal(number, signal.SIG_DFL)  # it may be ignored: the tests may run under nohup
    try:
        with pytest.raises(SystemExit) as stop, ending({}, lambda: 'go on'):
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert stop.value.code == status and capsys.readouterr().err == f'\nended by {name}; go on\n'
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with ending():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize('limit', [300_000, None])
def test_a_full_disk_ends_a_training_with_one_line(pretrain_options, call, tmp_path, limit, monkeypatch):
    """As a limit on the size of files, or found before the training: no room for the first checkpoints."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    else:
        monkeypatch.setattr('lib.record.disk.free_space', lambda folder: 1000)
    try:
        done = call('pretrain.py', *pretrain_options, '-c', 'run', cwd=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 1 and done.err.count('\n') == 1 and done.err.startswith('error: '), done.err
    assert done.out == ''
    assert ('model_best.pth.tar cannot be written' if limit else 'what an epoch saves takes 4.') in done.err
    assert 'give another folder by --checkpoint' in done.err and 'start again with --overwrite' in done.err


def test_a_loader_process_that_is_killed_ends_the_run_with_one_line(call, network, tmp_path):
    (tmp_path / 'data.py').write_text(DATASET)
    done = call('pretrain.py', '--dataset_file', 'data.py:build', '--arch', 'resnet20', '--num_classes', '10',
                '--image_size', '8', '--device', 'cpu', '--workers', '1', '--epochs', '1', '-c', 'run', cwd=tmp_path)
    assert done.code == 1 and done.err.count('\n') == 1, done.err
    assert 'a loader process ended unexpectedly' in done.err and '--workers 0 needs no loader processes' in done.err


def test_a_run_that_is_asked_to_end_says_how_to_resume(start, small, tmp_path):
    process = start('pretrain.py', *small, '--epochs', '500', '-c', 'run', cwd=tmp_path)
    wait_for(tmp_path / 'run' / 'checkpoint.pth.tar', process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert err == f'\nended by SIGTERM; continue with --resume {tmp_path / "run" / "checkpoint.pth.tar"}\n'
    assert process.returncode == 143
    assert not list((tmp_path / 'run').glob('.*'))


def children(pid):
    """The processes below `pid`, all generations."""
    found = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(pid)], capture_output=True, text=True, check=False)
    own = [int(line) for line in found.stdout.split()]
    return own + [each for child in own for each in children(child)]


def gone(pids, seconds=20):
    """Whether all these processes end within some seconds."""
    end = time.monotonic() + seconds
    while any(Path(f'/proc/{pid}').exists() and 'State:\tZ' not in Path(f'/proc/{pid}/status').read_text()
              for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def options_of(small, workers):
    """A long training on images that need no import."""
    return ('--dataset_file', 'data.py:build', *small[2:4], '--num_classes', '10', '--image_size', '8', '--device',
            'cpu', '--workers', workers, '--epochs', '500', '-c', 'run')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_loader_processes_end_with_the_run(start, small, tmp_path, number):
    (tmp_path / 'data.py').write_text(HARMLESS)
    process = start('pretrain.py', *options_of(small, workers=1), cwd=tmp_path, bare=number == signal.SIGKILL)
    wait_for(tmp_path / 'run' / 'checkpoint.pth.tar', process)
    below = children(process.pid)
    assert below
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert gone(below) and 'Traceback' not in err
    assert process.returncode == (143 if number == signal.SIGTERM else -9)


def test_torchrun_that_is_asked_to_end_takes_all_with_it(start, small, tmp_path):
    (tmp_path / 'data.py').write_text(HARMLESS)
    process = start(torch.distributed.run.__file__, '--standalone', '--nproc_per_node', '2', SCRIPTS / 'pretrain.py',
                    *options_of(small, workers=0), cwd=tmp_path, OMP_NUM_THREADS='1')
    wait_for(tmp_path / 'run' / 'checkpoint.pth.tar', process)
    below = children(process.pid)
    assert len(below) >= 2
    process.send_signal(signal.SIGTERM)
    out = ''.join(process.communicate(timeout=90))
    assert process.returncode and gone(below)
    assert out.count('ended by SIGTERM; continue with --resume') == 1, out
