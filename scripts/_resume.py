"""What a resumed run goes on with: the settings of its args.json, and the very inputs that it was begun from."""

import argparse
import contextlib
import json
import logging
import os
from pathlib import Path

from _options import DefaultFloat, checked

logger = logging.getLogger('haq')

NOT_RESUMED = ('resume', 'overwrite', 'debug', 'evaluate', 'device', 'gpu_id', 'workers', 'download',
               'keep_memory')
MOVABLE = ('dataset_root', 'weights', 'cost', 'constraint', 'model_file', 'dataset_file')  # to another path
PLACES = (*NOT_RESUMED, 'dataset_root', 'weights', 'model_file', 'dataset_file', 'output', 'suffix', 'checkpoint',
          'config', 'write_config', 'strategy')  # settings that do not tell one run from another
TABLES = ('.npy', '.yaml', '.yml')


def settings(args):
    """Returns the options as a dict of JSON values, for `args.json`."""
    return {name: plain_value(value) for name, value in vars(args).items() if name != 'changed'}


def plain_value(value):
    """Returns `value` as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def settings_path(args):
    """Returns the path of the args.json of the run to resume."""
    folder = Path(args.resume)
    return (folder if folder.is_dir() else folder.parent) / 'args.json'


def saved_settings(parser, args):
    """Returns the settings of the run to resume, each checked as the command line's are; {} where there are none.

    The parser refuses an args.json that is damaged or was changed, and a value that an option does not take.
    """
    from lib.record.settings import read_settings
    if not getattr(args, 'resume', None):
        return {}
    try:
        path = settings_path(args)
        if not path.is_file():
            return {}
        saved, _ = read_settings(path)
        return {name: checked_setting(parser, name, value, path) for name, value in saved.items()
                if hasattr(args, name) and name not in (*NOT_RESUMED, *parser.not_resumed)}
    except (ValueError, OSError) as error:
        parser.error(str(error))


def checked_setting(parser, name, value, source):
    """Returns a value of args.json; raises ValueError unless it is one that the command line could have given."""
    action = next((action for action in parser._actions if action.dest == name
                   and action.default is not argparse.SUPPRESS), None)
    try:
        if action is None:  # none of the command line
            default = parser.get_default(name)
            if value is not None and not isinstance(value, dict if default is None else type(default)):
                raise ValueError('it is of another type')
        elif not (value is None and isinstance(action.default, DefaultFloat)):  # which another option may replace
            read = plain_value(checked(action, value))
            if read != value or isinstance(read, str) != isinstance(value, str):
                raise ValueError(f'expected {read!r}')
    except (ValueError, TypeError, OverflowError, argparse.ArgumentTypeError) as error:
        raise ValueError(f'{source}: --{name} is {value!r:.80}: {error}; the file was changed, or is of '
                         'another script: put it back, or start another run') from error
    return value


def missing_settings(parser, args, saved):
    """Returns the options that an args.json without a record has no line for: they have their defaults."""
    from lib.record.settings import read_settings
    if not saved or read_settings(settings_path(args))[1]:
        return []
    options = {action.dest for action in parser._actions if action.default is not argparse.SUPPRESS}
    return sorted(name for name in options & vars(args).keys() if name not in (*saved, *NOT_RESUMED))


def saved_record(args):
    """Returns the record of the run to resume, {'inputs', 'identity', 'digest'}; None: it has none."""
    from lib.record.settings import read_settings
    return read_settings(settings_path(args))[1] if has_settings(args) else None


def check_unchanged(args, allowed):
    """Refuses to resume a run with other settings than it was started with, but for those in `allowed`.

    Paths may change where `begin_run` can compare what they hold; of a run without a record, where the old one is gone.

    Raises:
        ValueError: names every setting that differs, with both values.
    """
    record = saved_record(args)
    changed = [f'--{name} was {before}, now {now}' for name, (before, now) in args.changed.items()
               if name not in allowed and not may_move(name, before, now, record)]
    if changed:
        raise ValueError(f'{args.resume} was started with other settings: {"; ".join(changed)}; leave these options '
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
def may_have_moved(args, name):
    """Adds to an error about a path that is gone, in a resumed run, that there is an option for its new place."""
    try:
        yield
    except (ValueError, OSError) as error:
        path = getattr(args, name)
        if getattr(args, 'resume', None) and path and not os.path.exists(path):
            error.args = (f'{error}; if it was moved, give its new place by --{name}',)
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
    """Returns a cost or a budget `COST=RATIO` without the path of its table, if it names one."""
    cost, equals, ratio = text.rpartition('=') if '=' in text else (text, '', '')
    path, colon, metric = cost.partition(':')
    return f'*{colon}{metric}{equals}{ratio}' if Path(path).suffix in TABLES else text


def file_of(text):
    """Returns the file that a text such as `PATH`, `PATH:energy` or `PATH:build=0.5` names, or None."""
    paths = (text, text.rpartition('=')[0], text.partition(':')[0], text.rpartition(':')[0])
    return next((Path(path) for path in paths if os.path.isfile(path)), None)  # a long list is no error here


def inputs_of(args, splits, *, counts=(), costs=(), pretrained=False):
    """Returns {name: digest} of what a run is begun from; called in the main process.

    Args:
        args: the options.
        splits: the images that are read, of 'train' and 'val'.
        counts: numbers of images, which have to do for a data set of the user's own.
        costs: the `CostTable`s that price its strategies.
        pretrained: whether published weights are read where --weights are not given.
    """
    from _weights import published_file

    from lib.data.digest import data_digest
    from lib.record.digest import digest_of_file
    weights = args.weights or (pretrained and published_file(args))
    named = {'weights': weights and str(weights),
             **{name: getattr(args, name, None) for name in ('model_file', 'dataset_file', 'strategy', 'config')}}
    files = {name: file_of(text) for name, text in named.items() if text}
    found = {name: digest_of_file(path) for name, path in files.items() if path}
    found['data'] = list(counts) if args.dataset_file else data_digest(args.dataset, args.dataset_root, splits)
    found['costs'] = [cost.digest() for cost in costs]
    return {name: digest for name, digest in found.items() if digest}


UNREAD = ('strategy', 'config')  # inputs that a resumed run does not read again
OPTIONS = {'data': 'dataset_root', 'costs': 'cost'}  # of inputs that are not called like theirs


def begin_run(args, folder, inputs, *, given=None, strategy=None, growing=(), added=(), unread=(),
              run=None):
    """Opens the folder of a run and returns its identity, None for one without a record; in the main process.

    Args:
        args: the options.
        folder: that of the run.
        inputs: `inputs_of` the run.
        given: settings for a new run's args.json; those of `args` by default.
        strategy: what the run trains under, however it was given.
        growing: settings that a resumed run may change.
        added: those of them that its args.json follows.
        unread: names of inputs, beside `UNREAD`, that a resumed run does not read.
        run: what run the checkpoint to resume says that it is of.

    Raises:
        ValueError: a resumed run was begun from something else, or with other options.
    """
    from lib.record.files import write_json
    from lib.record.folder import open_run
    from lib.record.settings import read_settings, with_record
    saved, record = read_settings(settings_path(args)) if has_settings(args) else (None, None)
    if saved is None:
        if args.resume:
            logger.warning('%s has no args.json: the settings are those of this command', folder)
        given = given or settings(args)
        identity = identity_of({**given, 'trained': plain_value(strategy)}, inputs, growing)
        if run not in (None, identity):
            raise ValueError(f'{args.resume} is of another run than these options say, and its args.json is missing: '
                             'put it back, or give the very options of the run')
        open_run(folder, with_record(given, inputs, identity), resume=bool(args.resume))
        return identity
    if record:
        check_inputs(args, record['inputs'], inputs, {*unread, *UNREAD})
    now = {name: plain_value(getattr(args, name)) for name in args.changed if name in added}
    open_run(folder, saved, resume=True)
    if now:
        saved.update(now)
        write_json(settings_path(args), with_record(saved, **record) if record else saved, seal=True)
    return record and record['identity']


def has_settings(args):
    """Whether a run is resumed that has an args.json."""
    return bool(args.resume) and settings_path(args).is_file()


def identity_of(given, inputs, growing):
    """Returns a digest of what a run does: of its settings and inputs, not of paths and of how long it goes on."""
    from lib.record.digest import digest_of_value
    told = {name: value for name, value in given.items() if name not in (*PLACES, *growing)}
    for name in {'cost', 'constraint'} & told.keys():
        value = told[name]
        told[name] = [pathless(text) for text in value] if isinstance(value, list) else value and pathless(value)
    return digest_of_value([told, {name: inputs[name] for name in inputs if name not in UNREAD}])


def check_inputs(args, before, now, unread):
    """Compares what a resumed run is to go on from with what it was begun from.

    Raises:
        ValueError: what it reads differs, or what is given on the command line.
    """
    from lib.record.settings import differing
    differ = {name: OPTIONS.get(name, name) for name in differing(before, now)}
    refused = {name: option for name, option in differ.items() if name not in unread or option in args.changed}
    if refused:
        options = ', '.join(f'--{option} {getattr(args, option) or "(not given)"}' for option in refused.values())
        raise ValueError(f'{args.resume} was begun from something else than is there now: {options}; put back what was '
                         'there, give the path where it lies now, or start another run')
    if changed := [option for name, option in differ.items() if name in before and name in now]:
        logger.warning('changed since the run began, which goes on with what it had: %s',
                       ', '.join(f'--{option} {getattr(args, option)}' for option in changed))


def check_identity(args, saved, path):
    """Refuses a checkpoint that another run than the one of the args.json beside it has written.

    Raises:
        ValueError: both say what run they are of, and differ.
    """
    record = saved_record(args)
    if has_settings(args) and saved.get('run') != (record and record['identity']):
        raise ValueError(f'{path} is of another run than the args.json beside it: put back what belongs together, or '
                         'keep the checkpoint in a folder of its own and give its options')
