"""Runs the scripts as a user does, from another folder; the stages of both flows run once for all tests here."""

import contextlib
import io
import json
import logging
import os
import runpy
import subprocess
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from lib.data import datasets
from lib.simulator import table_cache
from tests.processes import Program
from tests.runs import SCRIPTS, crashing, keep_few_digits, snapshot

sys.path.append(str(SCRIPTS))  # for tests that look into the modules of scripts/
NETWORK = ('--dataset', 'digits', '--arch', 'resnet20', '--image_size', '8',
           '--workers', '0', '--device', 'cpu')
SMALL = ('--dataset', 'digits', '--model_file', f'{SCRIPTS.parent / "tests" / "small.py"}:build', *NETWORK[4:])
LINEAR = ('--dataset', 'digits', '--arch', 'qresnet20', *NETWORK[4:])
EPISODES = ('--train_size', '64', '--val_size', '64', '--data_bsize', '32', '--warmup', '0', '--hidden1', '64',
            '--hidden2', '48')  # short ones, and an agent that learns from the second episode on


@dataclass(frozen=True)
class Done:
    """What a finished command leaves: exit status, standard output, standard error."""

    code: int
    out: str
    err: str


def call(script, *options, cwd):
    """Runs the command `script` in this process, which saves the imports of a new one; gives what a shell would get."""
    out, err = io.StringIO(), io.StringIO()
    before = os.getcwd(), sys.argv, list(sys.path), logging.root.handlers[:], logging.root.level
    os.chdir(cwd)
    sys.argv = [str(SCRIPTS / script), *map(str, options)]
    sys.path.insert(0, str(SCRIPTS))
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name='__main__')
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) or stop.code is None else 1
        err.write('' if isinstance(stop.code, int) or stop.code is None else f'{stop.code}\n')
    except Exception:  # a traceback is what the user would see
        code = 1
        err.write(traceback.format_exc())
    finally:
        os.chdir(before[0])
        sys.argv, sys.path[:], logging.root.handlers[:] = before[1], before[2], before[3]
        logging.root.setLevel(before[4])
    return Done(code or 0, out.getvalue(), err.getvalue())


def succeed(script, *options, cwd):
    """Runs the command in this process and fails unless it succeeds."""
    done = call(script, *options, cwd=cwd)
    assert done.code == 0, f'{script} {" ".join(map(str, options))}\n{done.out}\n{done.err}'
    return done


@pytest.fixture(scope='session', name='call')
def call_fixture():
    """`call(script, *options, cwd=)` -> `Done`."""
    return call


@pytest.fixture(scope='session', name='succeed')
def succeed_fixture():
    """`succeed(script, *options, cwd=)` -> `Done` of a command that must succeed."""
    return succeed


@pytest.fixture(scope='session')
def names():
    """`names(script)`: the globals of a script that is not run."""
    return lambda script: runpy.run_path(str(SCRIPTS / script))


@pytest.fixture(scope='session')
def crash():
    """`crash(pattern, count, script, *options, cwd=)`: a command that ends just before a file is written again."""
    def run(pattern, count, *command, cwd):
        with crashing(pattern, count):
            call(*command, cwd=cwd)
    return run


@pytest.fixture(scope='session')
def refused():
    """`refused(folder, words, script, *options, cwd=)`: `Done` of a command that says all words and changes no file."""
    def check(folder, words, *command, cwd=None):
        before = snapshot(folder)
        done = call(*command, cwd=cwd or folder)
        assert done.code in (1, 2), f'{done.code}: {done.out}'
        line, *to_paste = done.err.splitlines()
        assert line.startswith('error: ') and not [word for word in words if word not in line], done.err
        assert all(other.startswith(('import torch', 'torch.save')) for other in to_paste), done.err
        assert snapshot(folder) == before, 'files have changed'
        return done
    return check


@pytest.fixture
def start(tmp_path_factory):
    """`start(script, *options, cwd=, bare=, **environment)` -> `Program`, ended at the end of the test.

    With `bare` it is a `Popen` of an interpreter that has not imported anything yet, which takes long.
    """
    started = []

    def run(script, *options, cwd, bare=False, **environment):
        if bare:
            started.append(subprocess.Popen([sys.executable, SCRIPTS / script, *map(str, options)], cwd=cwd, text=True,
                                            env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
                                            stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        else:
            folder = tmp_path_factory.mktemp('process')
            started.append(Program(SCRIPTS / script, *options, cwd=cwd, folder=folder, **environment))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.fixture(autouse=True, scope='session')
def few_digits():
    """A third of the digits, kept in memory instead of reading and resizing them for each of a thousand commands."""
    with pytest.MonkeyPatch.context() as patch:
        keep_few_digits(patch)
        yield


@pytest.fixture(autouse=True, scope='session')
def no_tables_of_the_user():
    """Tables in the cache of whoever runs the tests are not found, and none is put there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_cache, 'user_folder', lambda: None)
        yield


@pytest.fixture
def validation_images_alone(monkeypatch):
    """The digits without their training images."""
    spec = datasets.DATASETS['digits']

    def read(spec_, root, split, download):
        if split == 'train':
            raise ValueError('the training images are not there')
        return spec.read(spec_, root, split, download)

    monkeypatch.setitem(datasets.DATASETS, 'digits', replace(spec, read=read))


@pytest.fixture(scope='session')
def home(tmp_path_factory, drawing):
    """The folder in which the user works; the stages below leave their folders in it, with their figures."""
    folder = tmp_path_factory.mktemp('home')
    drawing.folders.append(folder)
    return folder


@pytest.fixture(scope='session')
def network():
    """Options of a small network on the digits."""
    return NETWORK


@pytest.fixture(scope='session')
def linear():
    """Options of its quantized twin."""
    return LINEAR


@pytest.fixture(scope='session')
def small():
    """Options of a network of five layers."""
    return SMALL


@pytest.fixture(scope='session')
def small_training():
    """Options of its float training, but for its folder."""
    return (*SMALL, '--epochs', '8', '--lr', '0.1', '--train_batch', '32')


@pytest.fixture(scope='session')
def small_weights(home, small_training):
    """Path of a float checkpoint of it."""
    succeed('pretrain.py', *small_training, '-c', 'small', cwd=home)
    return home / 'small' / 'checkpoint.pth.tar'


@pytest.fixture(scope='session')
def small_search(small_weights):
    """Options of a K-means search of it, but for its folder."""
    return (*SMALL, *EPISODES, '--weights', small_weights, '--train_episode', '4', '--preserve_ratio', '0.13',
            '--min_bit', '2', '--max_bit', '6')


@pytest.fixture(scope='session')
def episodes():
    """Options of a search with short episodes."""
    return EPISODES


@pytest.fixture(scope='session')
def pretrain_options():
    """Options of the float training, but for its folder."""
    return (*NETWORK, '--epochs', '3', '--lr', '0.05', '--train_batch', '24')


@pytest.fixture(scope='session')
def pretrained(home, pretrain_options):
    """`Done` of pretrain.py, whose run is in `float`."""
    return succeed('pretrain.py', *pretrain_options, '-c', 'float', cwd=home)


@pytest.fixture(scope='session')
def weights(home, pretrained):
    """Path of the float checkpoint."""
    return home / 'float' / 'checkpoint.pth.tar'


@pytest.fixture(scope='session')
def table(home):
    """Path of the latency table of the quantized twin, made by make_lookup_table.py."""
    succeed('make_lookup_table.py', *LINEAR[:6], '--hardware', 'cloud', '--output', 'table.npy', '--no-plot', cwd=home)
    return home / 'table.npy'


@pytest.fixture(scope='session')
def kmeans_options(weights):
    """Options of the K-means search, but for its folder."""
    return (*NETWORK, *EPISODES, '--weights', weights, '--train_episode', '4', '--preserve_ratio', '0.13',
            '--min_bit', '2', '--max_bit', '6')


@pytest.fixture(scope='session')
def linear_options(weights, table):
    """Options of the linear search, but for its folder."""
    return (*LINEAR, *EPISODES, '--linear_quantization', '--weights', weights, '--cost', table, '--train_episode', '4',
            '--preserve_ratio', '0.6')


@pytest.fixture(scope='session')
def kmeans_search(home, kmeans_options):
    """`Done` of a K-means search, whose run is in `save/resnet20_digits_k`."""
    return succeed('rl_quantize.py', *kmeans_options, '--output', 'save', '--suffix', 'k', cwd=home)


@pytest.fixture(scope='session')
def linear_search(home, linear_options):
    """`Done` of a linear search, whose run is in `save/qresnet20_digits`."""
    return succeed('rl_quantize.py', *linear_options, '--output', 'save', cwd=home)


@pytest.fixture(scope='session')
def finetune_options(home, weights, kmeans_search):
    """Options of the K-means fine-tuning, but for its folder."""
    return (*NETWORK, '--weights', weights, '--strategy', home / 'save' / 'resnet20_digits_k' / 'strategy.json',
            '--epochs', '2', '--lr', '0.01', '--train_batch', '40')


@pytest.fixture(scope='session')
def kmeans_finetune(home, finetune_options):
    """`Done` of the K-means fine-tuning, whose run is in `tuned_k`."""
    return succeed('finetune.py', *finetune_options, '-c', 'tuned_k', cwd=home)


@pytest.fixture(scope='session')
def high_options(small_weights):
    """Options of a K-means fine-tuning with layers of 7 and 8 bits, but for its folder."""
    return (*SMALL, '--weights', small_weights, '--strategy', [8, 7, 2, 2, 8], '--epochs', '2', '--lr', '0.01',
            '--train_batch', '80')


@pytest.fixture(scope='session')
def high_bits(home, high_options):
    """Folder of that fine-tuning."""
    succeed('finetune.py', *high_options, '-c', 'high', cwd=home)
    return home / 'high'


@pytest.fixture(scope='session')
def linear_finetune(home, weights, table, linear_search):
    """`Done` of the linear fine-tuning, whose run is in `tuned_l`."""
    return succeed('finetune.py', *LINEAR, '--linear_quantization', '--weights', weights, '--cost', table,
                   '--strategy', 'save/qresnet20_digits/strategy.txt', '--epochs', '2', '--lr', '0.01',
                   '--train_batch', '80', '-c', 'tuned_l', cwd=home)


@pytest.fixture(scope='session')
def read_json():
    """Reads a JSON file."""
    return lambda path: json.loads(Path(path).read_text(encoding='utf-8'))
