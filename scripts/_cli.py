"""How a command is parsed, runs and ends; nothing heavy is imported before the options are parsed.

What a script does with its options: `pick` fills a dataclass from them, `run_of` says which run they begin or resume.
"""

import argparse
import contextlib
import logging
import os
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _option_types import BooleanOption, RepositoryPath  # noqa: E402
from _settings import YOUNGER, missing_settings, plain_value, saved_settings, settings_path  # noqa: E402

from lib.runtime.ending import drop_output, ending, process_number  # noqa: E402
from lib.runtime.process import keep_memory, spin_briefly  # noqa: E402

logger = logging.getLogger('haq')

PATH_OPTIONS = ('weights', 'dataset_root', 'output', 'checkpoint', 'resume', 'sensitivities', 'teacher_weights')


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one, and its historic spellings only once."""

    def _get_help_string(self, action):
        if action.default is None or action.default is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one line, not with the list of all options."""

    not_resumed = ()  # options of this script alone, whose names mean something else in that of the run
    said = ()  # lines about the options, for the log
    translation = None  # of a script that takes another program's command lines: dataclass that gives them their form
    no_effect = MappingProxyType({})  # {option of that program: why it has no effect here}

    def exit(self, status=0, message=None):
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads the help to its end
            drop_output()
        super().exit(status, message)

    def error(self, message):
        self.exit(2, f'error: {message} (see {self.prog} --help)\n')


class Output(logging.StreamHandler):
    """Lets the command end where its output cannot be written, instead of a traceback for each line."""

    def handleError(self, record):  # noqa: N802
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


def make_parser(description):
    """Return a parser that shows defaults and takes no abbreviations."""
    parser = Parser(description=description, formatter_class=Formatter, allow_abbrev=False)
    parser.add_argument('--keep_memory', action=BooleanOption, default=True, help='keep memory that was freed for the '
                        'next tensors instead of giving it back to the system, as glibc does with large ones')
    return parser


# ---- from options to values

def pick(kind, args, **more):
    """Return a dataclass of this kind, whose fields have the values of the options of their names; `more` go before."""
    given = {field.name: getattr(args, field.name) for field in fields(kind) if hasattr(args, field.name)}
    return kind(**{**given, **more})


@dataclass(frozen=True)
class Run:
    """A run of a script, which writes to a folder: what it was given, and what it resumes.

    Attributes:
        folder: of the run.
        settings: {option: its value, as JSON gives it back}.
        resume: the checkpoint or the folder that it goes on from, or None.
        overwrite: what is in the folder may be replaced.
        changed: {option: (value when the run began, value now)} of a resumed run.
        growing: settings that a resumed run may change.
        added: those of them that its args.json follows.
    """

    folder: Path
    settings: dict
    resume: str | None = None
    overwrite: bool = False
    changed: dict = field(default_factory=dict)
    growing: tuple = ()
    added: tuple = ()


def run_of(args, folder, **more):
    """Return the `Run` that the options begin or resume."""
    return pick(Run, args, folder=Path(folder), **{'settings': settings_of(args), **more})


def training_run(args):
    """Return the `Run` of a training: in the folder of the checkpoint to resume, or in --checkpoint."""
    return run_of(args, _training_folder(args), growing=('epochs',))


def training_hint(args):
    """Say how an interrupted training goes on."""
    path = _training_folder(args) / 'checkpoint.pth.tar'
    return f'continue with --resume {path}' if path.is_file() else 'no epoch was finished; start again with --overwrite'


def folder_hint(folder):
    """Say how an interrupted run goes on that is resumed by its folder."""
    begun = (Path(folder) / 'args.json').is_file()
    return f'continue with --resume {folder}' if begun else 'nothing was begun; start again'


def _training_folder(args):
    return Path(args.resume).parent if args.resume else Path(args.checkpoint)


def settings_of(args):
    """Return the options as a dict of JSON values, for `args.json`."""
    return {name: plain_value(value) for name, value in vars(args).items() if name != 'changed'}


# ---- parsing

def parse(parser, argv=None, configure=None):
    """Parse the options, resolve default paths against the repository, and set up logging.

    A resumed run brings its own settings from its `args.json`; options on the command line that say something else
    are kept in `args.changed` as {name: (before, now)}. A new one may get defaults from `configure(args, parser)`, a
    dict; the parser refuses what it raises ValueError or OSError for.
    """
    args, _ = parser.parse_known_args(argv)
    translate(parser, args, complete=False)
    saved = saved_settings(parser, getattr(args, 'resume', None), vars(args))
    try:
        parser.set_defaults(**saved or (configure(args, parser) if configure else {}))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    args = parser.parse_args(argv)
    parser.said = [*translate(parser, args), *take_unused(parser, args)]
    name_own_code(parser, args)
    resolve_paths(args)
    if hasattr(args, 'start_epoch') and args.start_epoch >= max(args.epochs, 1):
        parser.error(f'--start_epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}')
    before = {**{name: parser.get_default(name) for name in YOUNGER if saved}, **saved}
    args.changed = {name: (before[name], value) for name, value in vars(args).items()
                    if name in before and plain_value(value) != before[name]}
    set_up_logging(getattr(args, 'debug', False))
    if missing := missing_settings(parser, getattr(args, 'resume', None), vars(args), saved):
        logger.warning('%s has no line for --%s: the defaults are taken', settings_path(args.resume),
                       ', --'.join(missing))
    if getattr(args, 'gpu_id', None) is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.gpu_id
    return args


def translate(parser, args, complete=True):
    """Give the options of another program their form here; return the lines that say so."""
    said = []
    for step in ('begin', 'rest')[:1 + complete] if parser.translation else ():
        try:
            changes, lines = getattr(pick(parser.translation, args), step)()
        except ValueError as error:
            parser.error(str(error))
        vars(args).update(changes)
        said += lines
    return said


def take_unused(parser, args):
    """Take the options without effect that were given out of `args`; return a line about them, if any."""
    given = [name for name in parser.no_effect if vars(args).pop(name, None) is not None]
    return [f'without effect: {", ".join(f"--{name} ({parser.no_effect[name]})" for name in given)}'] if given else []


def set_up_logging(debug):
    """Let the first process report on the standard output, the others only what is wrong."""
    process = process_number()
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=logging.WARNING if process else level, handlers=[Output(sys.stdout)], force=True,
                        format=f'[process {process}] %(message)s' if process else '%(message)s')
    for noisy in ('PIL', 'tensorboardX'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger('matplotlib').setLevel(logging.ERROR)  # it warns of a home that it cannot write to


def name_own_code(parser, args):
    """Name an own network and an own data set after their files: `arch`, `dataset`; they have no other name."""
    for option, name in (('model_file', 'arch'), ('dataset_file', 'dataset')):
        file = getattr(args, option, None)
        if not file:
            continue
        given, stem = getattr(args, name), Path(file.rpartition(':')[0]).stem
        if given not in (parser.get_default(name), stem):
            parser.error(f'--{option} {file} and --{name} {given}: give one of them')
        setattr(args, name, stem)


def resolve_paths(args):
    """Make the paths in the options absolute, so that a run can be resumed from anywhere."""
    if isinstance(getattr(args, 'dataset_root', None), RepositoryPath) and args.dataset != 'imagenet':
        args.dataset_root = RepositoryPath(f'data/{"DTD" if args.dataset == "dtd" else args.dataset}')
    for name, value in vars(args).items():
        if isinstance(value, RepositoryPath):
            setattr(args, name, str(ROOT / value))
        elif name in ('model_file', 'dataset_file') and value:
            file, colon, function = value.rpartition(':')
            setattr(args, name, f'{Path(file).absolute()}{colon}{function}' if colon else value)
        elif isinstance(value, str) and value and (name in PATH_OPTIONS or _names_a_file(name, value)):
            setattr(args, name, str(Path(value).absolute()))


def _names_a_file(name, value):
    return name == 'strategy' and os.path.isfile(value) or name == 'cost' and os.path.isfile(value.split(':')[0])


# ---- errors

@contextlib.contextmanager
def naming(*options):
    """Let an error within this context, which speaks of these values, speak of the options that give them."""
    try:
        yield
    except ValueError as error:
        raise ValueError(re.sub(rf'(?<![\w/.-])({"|".join(options)})\b(?!\.\w|/)', r'--\1', str(error))) from error


@contextlib.contextmanager
def prefixed(text):
    """Put this text before what an error within this context says of a wrong value or file."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f'{text}{error}') from error


# ---- running

@contextlib.contextmanager
def locks_released():
    """Give the folders that are locked within the block back at its end."""
    try:
        yield
    finally:
        if 'lib.record.lock' in sys.modules:
            sys.modules['lib.record.lock'].release()


def run(main, parser, resume_hint=None, argv=None, configure=None):
    """Run `main(args)`, which ends as `ending` says; `resume_hint(args)` says how the run goes on."""
    with ending():
        args = parse(parser, argv, configure)
    spin_briefly()
    if args.keep_memory:
        keep_memory()
    with ending(vars(args), resume_hint and (lambda: resume_hint(args))), locks_released():
        for line in parser.said:
            logger.info('%s', line)
        main(args)
    if 'lib.runtime.distributed' in sys.modules:
        sys.modules['lib.runtime.distributed'].finish()
