"""How a command ends: with one line that says what went wrong, what helps, and how the run goes on.

Imported before the options are parsed: nothing heavy belongs here.
"""

import contextlib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType

NO_READER = 128 + signal.SIGPIPE
BATCHES = ('train_batch', 'final_batch', 'test_batch', 'image_size', 'workers')  # options that take memory
OUTPUTS = ('checkpoint', 'output')  # options that say where files go
NO_MEMORY = re.compile("out of memory|can't allocate memory|cannot allocate memory|failed to map segment|bad_alloc|"
                       'not enough memory|alloc_failed|unable to allocate|could not create a (primitive|memory)', re.I)
ASKED = re.compile(r'(?:tried to allocate|unable to allocate|allocate memory:) ?(?:you tried to allocate )?'
                   r'([\d.]+) ?(bytes|[KMGT]iB)', re.I)
TO_PASTE = re.compile(r'\n(?=import (?:pickle, )?torch; |torch\.save\()')
LOST_WORKER = re.compile(r'DataLoader worker|Bus error|process in the process pool was terminated')
TOO_MANY_FILES = re.compile('too many open files|received 0 items of ancdata', re.I)


class Stopped(KeyboardInterrupt):
    """The system or another program asks this one to end; like Ctrl-C, which is SIGINT."""

    number = signal.SIGINT


@contextlib.contextmanager
def ending(options: Mapping = MappingProxyType({}), resume_hint: Callable[[], str] | None = None):
    """Turn what ends the block into an exit status and one line; an error of the program itself keeps its traceback.

    Interrupted by a signal N, the status is 128 + N, as shells have it; else it is 1.

    Args:
        options: the values of the options by name.
        resume_hint: says how the run goes on.
    """
    def hint():
        return f'; {resume_hint()}' if resume_hint else ''

    reports = process_number() == 0  # of several processes one says that all are ended

    try:
        with asked_to_stop():
            yield
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        number = getattr(stop, 'number', signal.SIGINT)
        word = 'interrupted' if number == signal.SIGINT else f'ended by {number.name}'
        leave(f'\n{word}{hint()}' if reports else '', 128 + number)
    except BrokenPipeError:
        drop_output()
        leave(f'nobody reads the output any more{hint()}' if resume_hint else '', NO_READER)
    except Exception as error:
        if options.get('debug'):
            raise
        if getattr(error, 'repeated', False):  # that of another process, which reports it
            leave('', 1)
        if line := resources(error, options):
            leave(f'error: {line}{hint()}', 1)
        if not isinstance(error, (ValueError, OSError, FloatingPointError)):
            raise
        leave(f'error: {one_line(error)}', 1)


def process_number() -> int:
    """Return which of the processes that torchrun started this is; 0, which reports, without it."""
    return int(os.environ['RANK']) if {'RANK', 'WORLD_SIZE'} <= os.environ.keys() else 0


def drop_output():
    """Send what is left of the output nowhere, or the interpreter complains at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave(line: str, status: int):
    """End the command: a line on the standard error stream, then the exit status."""
    if line:
        sys.stderr.write(f'{line}\n')
    sys.exit(status)


@contextlib.contextmanager
def asked_to_stop():
    """Make SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C raises KeyboardInterrupt, unless they are to be ignored."""
    def stop(number, _):
        stopped = Stopped()
        stopped.number = signal.Signals(number)
        raise stopped

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ('SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def resources(error: BaseException, options: Mapping) -> str | None:
    """Return a line on what the machine lacked, with the options that help, or None for other errors.

    An error that was raised from one of these counts as well: a check says that a network fails, for want of memory.
    """
    text, number = one_line(error), getattr(error, 'errno', None)
    memory = ' or '.join(f'--{name} (now {value})' for name in BATCHES if (value := options.get(name)))
    memory = f'a smaller {memory}' if memory else 'a smaller network'
    if isinstance(error, RuntimeError) and LOST_WORKER.search(text):
        return (f'a loader process ended unexpectedly, as happens when memory runs out ({text[:200]}): take {memory}; '
                '--workers 0 needs no loader processes')
    if isinstance(error, MemoryError) or number == errno.ENOMEM or \
            isinstance(error, (RuntimeError, ImportError)) and NO_MEMORY.search(text):
        if not options:
            return 'out of memory before the options were read: end other programs, or raise the limit (ulimit -v)'
        where, asked = 'GPU ' if 'CUDA' in text or 'GPU' in text else '', ASKED.search(text)
        needed = f', {quantity(*asked.groups())} more were needed' if asked else ''
        return f'out of {where}memory{needed}: take {memory}, or end other programs'
    if number in (errno.EMFILE, errno.ENFILE) or isinstance(error, RuntimeError) and TOO_MANY_FILES.search(text):
        return f'too many files are open at once ({text}): raise the limit (ulimit -n 4096), or take fewer --workers'
    if type(error).__name__ == 'WriteError' or number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        options = ' or '.join(f'--{name}' for name in OUTPUTS if name in options)
        return f'{text}: make room, or give another folder{f" by {options}" if options else ""}'
    return error.__cause__ and resources(error.__cause__, options)


def quantity(number: str, unit: str) -> str:
    """Return a number of bytes as people say it."""
    number = float(number) * 1024 ** (['bytes', 'kib', 'mib', 'gib', 'tib'].index(unit.lower()))
    return f'{number / 1e9:.3g} GB' if number >= 1e9 else f'{number / 1e6:.3g} MB'


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line, without control characters; of a loader process the last line.

    Lines of Python that it gives to be pasted stay lines.
    """
    text = str(error) or type(error).__name__
    if 'Original Traceback' in text:
        text = text.strip().splitlines()[-1]
    text = re.sub(r'\x1b\[[0-9;]*[a-zA-Z]', '', text)
    return '\n'.join(' '.join(''.join(c if c.isprintable() else ' ' for c in line).split())
                     for line in TO_PASTE.split(text))
