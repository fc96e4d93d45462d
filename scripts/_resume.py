"""What a resumed run goes on with: the very inputs that it was begun from."""

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from _settings import NOT_RESUMED, YOUNGER, plain_value, settings_path

from lib.data.digest import data_digest
from lib.record.checkpoint import read_checkpoint
from lib.record.digest import digest_of_file, digest_of_value
from lib.record.files import write_json
from lib.record.folder import open_run
from lib.record.settings import differing, read_settings, with_record

logger = logging.getLogger('haq')

# Settings that may change to another path.
MOVABLE = ('dataset_root', 'weights', 'teacher_weights', 'cost', 'constraint', 'model_file', 'dataset_file',
           'sensitivities')
# Settings that do not tell one run from another.
PLACES = (*NOT_RESUMED, 'dataset_root', 'weights', 'teacher_weights', 'model_file', 'dataset_file', 'output', 'suffix',
          'checkpoint', 'config', 'write_config', 'strategy', 'sensitivities')
TABLES = ('.npy', '.yaml', '.yml')
UNREAD = ('strategy', 'config')  # inputs that a resumed run does not read again
OPTIONS = {'data': 'dataset_root', 'costs': 'cost'}  # of inputs that are not called like theirs


def has_settings(run):
    """Whether a run is resumed that has an args.json."""
    return bool(run.resume) and settings_path(run.resume).is_file()


def saved_record(run):
    """Return the record of the run to resume, {'inputs', 'identity', 'digest'}; None: it has none."""
    return read_settings(settings_path(run.resume))[1] if has_settings(run) else None


def check_unchanged(run):
    """Refuse to resume a run with other settings than it was started with, but for those that may grow.

    Paths may change where `begin_run` can compare what they hold; of a run without a record, where the old one is gone.

    Raises:
        ValueError: names every setting that differs, with both values.
    """
    record = saved_record(run)
    changed = [f'--{name} was {before}, now {now}' for name, (before, now) in run.changed.items()
               if name not in run.growing and not may_move(name, before, now, record)]
    if changed:
        raise ValueError(f'{run.resume} was started with other settings: {"; ".join(changed)}; leave these options '
                         'out, or start another run')


def may_move(name, before, now, record):
    """Whether a setting differs in the path of a file alone, and that can be compared or is not where it was."""
    before, now = ([value] if isinstance(value, str) else value or [] for value in (before, now))
    if name not in MOVABLE or not before or len(before) != len(now):
        return False
    pairs = [pair for pair in zip(before, now, strict=True) if pair[0] != pair[1]]
    if name in ('cost', 'constraint') and any(pathless(first) != pathless(second) or pathless(first) == first
                                              for first, second in pairs):
        return False
    if name in ('model_file', 'dataset_file') and before[0].rpartition(':')[2] != now[0].rpartition(':')[2]:
        return False
    return bool(record) or not any(file_of(first) or Path(first).exists() for first, _ in pairs)


@contextlib.contextmanager
def may_have_moved(resume, option, path):
    """Add to an error about a path that is gone, in a run that is resumed, that an option gives its new place."""
    try:
        yield
    except (ValueError, OSError) as error:
        if resume and path and not os.path.exists(path):
            error.args = (f'{error}; if it was moved, give its new place by --{option}',)
        raise


@contextlib.contextmanager
def in_file(path):
    """Puts a file before the message of a ValueError that comes of what it holds; None: of no file."""
    try:
        yield
    except ValueError as error:
        if path and str(path) not in str(error):
            raise ValueError(f'{path}: {error}') from error
        raise


def pathless(text):
    """Return a cost or a budget `COST=RATIO` without the path of its table, if it names one."""
    cost, equals, ratio = text.rpartition('=') if '=' in text else (text, '', '')
    path, colon, metric = cost.partition(':')
    return f'*{colon}{metric}{equals}{ratio}' if Path(path).suffix in TABLES else text


def file_of(text):
    """Return the file that a text such as `PATH`, `PATH:energy` or `PATH:build=0.5` names, or None."""
    paths = (text, text.rpartition('=')[0], text.partition(':')[0], text.rpartition(':')[0])
    return next((Path(path) for path in paths if os.path.isfile(path)), None)  # a long list is no error here


def inputs_of(run, splits, *, counts=(), costs=(), published=None):
    """Return {name: digest} of what a run is begun from; called in the main process.

    Args:
        run: the `Run`.
        splits: the images that are read, of 'train' and 'val'.
        counts: numbers of images, which have to do for a data set of the user's own.
        costs: the `CostTable`s that price its strategies.
        published: file of the weights that are read where --weights are not given.
    """
    named = ('weights', 'teacher_weights', 'model_file', 'dataset_file', 'strategy', 'config')
    given = {name: run.settings.get(name) for name in named}
    given['weights'] = given['weights'] or (published and str(published))
    files = {name: file_of(text) for name, text in given.items() if text}
    found = {name: digest_of_file(path) for name, path in files.items() if path}
    found['data'] = list(counts) if given['dataset_file'] else data_digest(
        run.settings['dataset'], run.settings['dataset_root'], splits)
    found['costs'] = [cost.digest() for cost in costs]
    return {name: digest for name, digest in found.items() if digest}


@dataclass(frozen=True)
class Beginning:
    """What a run is compared with that goes on.

    Attributes:
        inputs: `inputs_of` the run.
        strategy: what it trains under, however it was given.
        unread: names of inputs, beside `UNREAD`, that a resumed run does not read.
        of: what run the checkpoint to resume says that it is of.
    """

    inputs: dict
    strategy: list | dict | None = None
    unread: tuple = ()
    of: str | None = None


def begin_run(run, beginning):
    """Open the folder of a run and return its identity, None for one without a record; in the main process.

    Raises:
        ValueError: a resumed run was begun from something else, or with other options.
    """
    saved, record = read_settings(settings_path(run.resume)) if has_settings(run) else (None, None)
    if saved is None:
        return _begin_anew(run, beginning)
    if record:
        check_inputs(run, record['inputs'], beginning)
    open_run(run.folder, saved, resume=True)
    if now := {name: run.settings[name] for name in run.changed if name in run.added}:
        saved.update(now)
        write_json(settings_path(run.resume), with_record(saved, **record) if record else saved, seal=True)
    return record and record['identity']


def _begin_anew(run, beginning):
    if run.resume:
        logger.warning('%s has no args.json: the settings are those of this command', run.folder)
    told = {**run.settings, 'trained': plain_value(beginning.strategy)}
    identity = identity_of(told, beginning.inputs, run.growing)
    if beginning.of not in (None, identity):
        raise ValueError(f'{run.resume} is of another run than these options say, and its args.json is missing: '
                         'put it back, or give the very options of the run')
    open_run(run.folder, with_record(run.settings, beginning.inputs, identity), resume=bool(run.resume))
    return identity


def identity_of(given, inputs, growing):
    """Return a digest of what a run does: of its settings and inputs, not of paths and of how long it goes on."""
    told = {name: value for name, value in given.items() if name not in (*PLACES, *growing)
            and not (name in YOUNGER and value in (None, YOUNGER[name]))}
    for name in {'cost', 'constraint'} & told.keys():
        value = told[name]
        told[name] = [pathless(text) for text in value] if isinstance(value, list) else value and pathless(value)
    return digest_of_value([told, {name: inputs[name] for name in inputs if name not in UNREAD}])


def check_inputs(run, before, beginning):
    """Compare what a resumed run is to go on from with what it was begun from.

    Raises:
        ValueError: what it reads differs, or what is given on the command line.
    """
    now, unread = beginning.inputs, {*beginning.unread, *UNREAD}
    differ = {name: OPTIONS.get(name, name) for name in differing(before, now)}
    refused = {name: option for name, option in differ.items() if name not in unread or option in run.changed}
    if refused:
        options = ', '.join(f'--{option} {run.settings[option] or "(not given)"}' for option in refused.values())
        raise ValueError(f'{run.resume} was begun from something else than is there now: {options}; put back what was '
                         'there, give the path where it lies now, or start another run')
    if changed := [option for name, option in differ.items() if name in before and name in now]:
        logger.warning('changed since the run began, which goes on with what it had: %s',
                       ', '.join(f'--{option} {run.settings[option]}' for option in changed))


def check_identity(run, saved, path):
    """Refuse a checkpoint that another run than the one of the args.json beside it has written.

    Raises:
        ValueError: both say what run they are of, and differ.
    """
    record = saved_record(run)
    if has_settings(run) and saved.get('run') != (record and record['identity']):
        raise ValueError(f'{path} is of another run than the args.json beside it: put back what belongs together, or '
                         'keep the checkpoint in a folder of its own and give its options')


def read_state(run, path, needed, missing, advice):
    """Return the state of a search to resume; None: none is, or it was killed before its first one.

    Args:
        run: the `Run`.
        path: file of the state, or None.
        needed: entries that it must have.
        missing: what is said of one without them.
        advice: what folder to give instead of one without a run.
    """
    if not run.resume:
        return None
    check_unchanged(run)
    if not has_settings(run):
        raise FileNotFoundError(f'--resume {run.folder}: no run is there (args.json is missing); give the folder of a '
                                f'{advice}')
    if path is None or not path.is_file():
        return None
    saved = read_checkpoint(path)
    if not isinstance(saved, dict) or not set(needed) <= saved.keys():
        raise ValueError(f'{path} is {missing}')
    check_identity(run, saved, path)
    return saved


def check_done(run, done, wanted, what, option):
    """Refuse to resume a search that has more episodes or steps, `what`, than the option asks for."""
    if done > wanted:
        raise ValueError(f'{run.folder} has {done} {what} already, --{option} {wanted} are fewer: give at least '
                         f'{done}, or start another search')
