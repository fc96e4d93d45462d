"""What the scripts share: the repository root on `sys.path`, and how a command is parsed, runs and ends.

Nothing heavy is imported before the options are parsed, so `--help` answers at once.
"""

import argparse
import contextlib
import ctypes
import logging
import os
import platform
import sys
from pathlib import Path

from _ends import drop_output, ending
from _options import BooleanOption, RepositoryPath
from _resume import missing_settings, plain_value, saved_settings, settings_path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

logger = logging.getLogger('haq')

PATH_OPTIONS = ('weights', 'dataset_root', 'output', 'checkpoint', 'resume')


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one, and its historic spellings only once."""

    def _get_help_string(self, action):
        if action.default is None or action.default is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Answers a wrong command line with one line, not with the list of all options."""

    not_resumed = ()  # options of this script alone, whose names mean something else in that of the run

    def exit(self, status=0, message=None):
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # nobody reads the help to its end
            drop_output()
        super().exit(status, message)

    def error(self, message):
        self.exit(2, f'error: {message} (see {self.prog} --help)\n')

    def translate(self, args, complete):  # of a script that takes another program's command lines, too
        """Gives options their form here, in place; returns what to say. Before `complete`: what is to be resumed."""
        return []

    said = ()  # what `translate` returned


class Output(logging.StreamHandler):
    """Lets the command end where its output cannot be written, instead of a traceback for each line."""

    def handleError(self, record):  # noqa: N802
        if isinstance(sys.exc_info()[1], OSError):
            raise
        super().handleError(record)


def make_parser(description):
    """Returns a parser that shows defaults and takes no abbreviations."""
    parser = Parser(description=description, formatter_class=Formatter, allow_abbrev=False)
    parser.add_argument('--keep_memory', action=BooleanOption, default=True, help='keep memory that was freed for the '
                        'next tensors instead of giving it back to the system, as glibc does with large ones')
    return parser


def parse(parser, argv=None, configure=None):
    """Parses the options, resolves default paths against the repository, and sets up logging.

    A resumed run brings its own settings from its `args.json`; options on the command line that say something else
    are kept in `args.changed` as {name: (before, now)}. A new one may get defaults from `configure(args, parser)`, a
    dict.
    """
    args, _ = parser.parse_known_args(argv)
    parser.translate(args, complete=False)
    saved = saved_settings(parser, args)
    parser.set_defaults(**saved or (configure(args, parser) if configure else {}))
    args = parser.parse_args(argv)
    parser.said = parser.translate(args, complete=True)
    name_own_code(parser, args)
    resolve_paths(args)
    if hasattr(args, 'start_epoch') and args.start_epoch >= args.epochs:
        parser.error(f'--start_epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}')
    args.changed = {name: (saved[name], value) for name, value in vars(args).items()
                    if name in saved and plain_value(value) != saved[name]}
    process = os.environ.get('RANK', '0')  # of those that torchrun started; number 0 reports
    level = logging.DEBUG if getattr(args, 'debug', False) else logging.INFO
    logging.basicConfig(level=level if process == '0' else logging.WARNING, handlers=[Output(sys.stdout)], force=True,
                        format='%(message)s' if process == '0' else f'[process {process}] %(message)s')
    for noisy in ('PIL', 'tensorboardX'):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger('matplotlib').setLevel(logging.ERROR)  # it warns of a home that it cannot write to
    if missing := missing_settings(parser, args, saved):
        logger.warning('%s has no line for --%s: the defaults are taken', settings_path(args), ', --'.join(missing))
    if getattr(args, 'gpu_id', None) is not None:
        os.environ['CUDA_VISIBLE_DEVICES'] = args.gpu_id
    return args


def name_own_code(parser, args):
    """Names an own network and own data set after their files: `arch`, `dataset`; they have no other name."""
    for option, name in (('model_file', 'arch'), ('dataset_file', 'dataset')):
        file = getattr(args, option, None)
        if not file:
            continue
        given, stem = getattr(args, name), Path(file.rpartition(':')[0]).stem
        if given not in (parser.get_default(name), stem):
            parser.error(f'--{option} {file} and --{name} {given}: give one of them')
        setattr(args, name, stem)


def resolve_paths(args):
    """Makes the paths in the options absolute, so that a run can be resumed from anywhere."""
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


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def keep_memory():
    """Makes this process keep the memory that it frees, which costs 1.7 to 5 times less where the system is slow.

    glibc takes a large block from the system anew each time and gives it back at once; a training step does that for
    every activation, and on virtual machines the pages are expensive. Linux with glibc only, elsewhere nothing
    happens. Environment variables that say how (MALLOC_MMAP_MAX_, MALLOC_TRIM_THRESHOLD_) go before it.

    Returns:
        Whether it was done.
    """
    if platform.libc_ver()[0] != 'glibc':
        return False
    library = ctypes.CDLL(None)
    for variable, parameter, value in (('MALLOC_MMAP_MAX_', M_MMAP_MAX, 0),
                                       ('MALLOC_TRIM_THRESHOLD_', M_TRIM_THRESHOLD, -1)):
        if variable not in os.environ:
            library.mallopt(parameter, value)
    return True


SPINS = 10000  # of GNU OpenMP, which takes 300000 by default


def spin_briefly():
    """Makes OpenMP threads that wait for work sleep soon, where OMP_WAIT_POLICY or GOMP_SPINCOUNT say nothing else.

    Where other programs use the cores too, threads that spin for as long as is usual make a training step several times
    slower; threads that do not spin at all make small operations slow. Counts only before torch is imported.
    """
    if not {'OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'} & os.environ.keys():
        os.environ['GOMP_SPINCOUNT'] = str(SPINS)


@contextlib.contextmanager
def locks_released():
    """Gives the folders that are locked within the block back at its end."""
    try:
        yield
    finally:
        if 'lib.record.lock' in sys.modules:
            sys.modules['lib.record.lock'].release()


def run(main, parser, resume_hint=None, argv=None, configure=None):
    """Runs `main(args)`; it ends as `ending` says."""
    with ending():
        args = parse(parser, argv, configure)
    spin_briefly()
    if args.keep_memory:
        keep_memory()
    with ending(args, resume_hint), locks_released():
        for line in parser.said:
            logger.info('%s', line)
        main(args)
    if 'lib.runtime.distributed' in sys.modules:
        sys.modules['lib.runtime.distributed'].finish()
