"""Real processes that start at once: forks of a server that has imported what takes long, and has done nothing else."""

import ctypes
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest

CONTEXT = multiprocessing.get_context('forkserver')
CONTEXT.set_forkserver_preload(['torch', 'torch._dynamo', 'torchvision', 'sklearn.datasets', 'matplotlib.figure',
                                'tensorboardX'])  # nothing of ours: every process imports that itself


class Program:
    """`python FILE OPTIONS` in another process, as far as `subprocess.Popen` has the same attributes."""

    def __init__(self, file, *options, cwd, folder, **environment):
        """Starts it.

        Args:
            file: a script.
            options: its command line.
            cwd: where it works.
            folder: where its output is kept.
            environment: variables for it beside those of this process.
        """
        self._files = [Path(folder) / name for name in ('stdout', 'stderr')]
        self._process = CONTEXT.Process(target=_run, args=(str(file), list(map(str, options)), str(cwd), self._files,
                                                           {**os.environ, **environment}))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        """Exit status, -N after signal N, None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def communicate(self, timeout=None):
        """Waits for the end; returns (standard output, standard error)."""
        self._process.join(timeout)
        assert self.returncode is not None, f'still running after {timeout} s'
        return tuple(file.read_text() for file in self._files)


def _run(file, options, cwd, outputs, environment):
    import torch

    from tests.runs import Figures, keep_few_digits
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(1)
    Figures(pytest.MonkeyPatch())
    keep_few_digits(pytest.MonkeyPatch())
    sys.argv, sys.path = [file, *options], [str(Path(file).parent), *sys.path]
    code = 0
    try:
        runpy.run_path(file, run_name='__main__')
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) or stop.code is None else 1
        sys.stderr.write('' if isinstance(stop.code, int) or stop.code is None else f'{stop.code}\n')
    ctypes.pythonapi.Py_Exit(code or 0)  # the end of an interpreter, not the short one of multiprocessing
