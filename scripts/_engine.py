"""The options about the dot-product engine, and where its results go."""

from argparse import ArgumentTypeError
from pathlib import Path

from _cli import ROOT, prefixed

DEFAULT_RUN = 'checkpoints/hybrid'
QUANTIZED = Path('experiment_data', 'q_model', 'model.pth.tar')
RESULTS = Path('experiment_data', 'results')

# Fields of `ArrayConfig`: option, type, help. Their defaults are those of `ArrayConfig`.
FIELDS = {
    'rows': (int, 'inputs of an array (default: 128)'),
    'columns': (int, 'columns of an array (default: 128)'),
    'cell_bits': (int, 'weight bits in one cell (default: 2)'),
    'dac_bits': (int, 'bits of an input that go in at once (default: 1)'),
    'adc_bits': (int, 'bits of a conversion; 0: sums are not converted, hence exact (default: 8)'),
    'mapping': (str, 'balanced: pairs of columns, the difference of whose currents counts; offset: one column and a '
                     'reference column (default: balanced)'),
    'adc_range': (str, 'range of the converters: max, nothing is clipped; granular, steps of 1; or calibrated, from '
                       'the inputs of each layer on training images (default: granular)'),
    'device': (str, 'model of the memory cells: none, pcm, rram or neurosim (default: none)'),
    'programming_noise': (float, "sigma of a programmed cell, part of g_max - g_min (default: the device's)"),
    'read_noise': (float, "sigma of every read of a cell, part of g_max - g_min (default: the device's)"),
    'on_off_ratio': (float, "g_max / g_min; 0: off cells conduct nothing (default: the device's)"),
    'drift_seconds': (float, 'time since the cells were programmed (default: 0)'),
    'stuck_low': (float, 'part of the cells that stay at g_min (default: 0)'),
    'stuck_high': (float, 'part of the cells that stay at g_max (default: 0)'),
    'gain_mismatch': (float, "sigma of the converters' gains around 1 (default: 0)"),
    'offset_mismatch': (float, "sigma of the converters' offsets, part of an array's largest sum (default: 0)"),
    'seed': (int, 'seed of the errors of cells, reads and converters (default: 0)'),
}
RENAMED = {'device': 'cell_device', 'seed': 'engine_seed'}  # fields whose names other options have


def add_engine_options(parser):
    """Add the options about the engine."""
    group = parser.add_argument_group('engine (command line before --engine before the section mvm of the run)')
    group.add_argument('--engine', metavar='FILE.yaml', help='settings of the engine under the names of the options '
                       'below (device and seed for --cell_device and --engine_seed), or a configuration with them in '
                       "its section mvm (default: the section mvm of the run's configuration, if it has one)")
    group.add_argument('--backend', choices=['simulated', 'ideal', 'hardware'], default='simulated', help='ideal: '
                       'integer products; hardware: arrays of --driver')
    group.add_argument('--driver', metavar='FILE.py:build', help='function that returns an ArrayDriver, called once '
                       'per array; the code in the file is run (default: none, only the backend hardware needs it)')
    for field, (kind, text) in FIELDS.items():
        group.add_argument(f'--{RENAMED.get(field, field)}', type=kind, help=text,
                           metavar={int: 'N', float: 'X', str: 'NAME'}[kind])


def add_run_folder_option(group):
    """Add -c."""
    group.add_argument('-c', '--checkpoint', dest='run_folder', metavar='DIR', help='folder of the run; results go to '
                       f'experiment_data/results in it (default: that of --resume, else {DEFAULT_RUN})')


def find_run(folder, checkpoint=None):
    """Return the folder of the run as a path: `folder` if it is given, else that of the checkpoint."""
    if folder:
        return Path(folder).absolute()
    if not checkpoint:
        return ROOT / DEFAULT_RUN
    path = Path(checkpoint).absolute()
    return path.parents[2] if path.parts[-3:] == QUANTIZED.parts else path.parent


def given_fields(options):
    """Return the fields of `ArrayConfig` that the options {name: value} give."""
    given = {field: options[RENAMED.get(field, field)] for field in FIELDS}
    return {field: value for field, value in given.items() if value is not None}


def engine_config(file, run, given):
    """Return a function from changes by name to the `ArrayConfig` of the settings, with these changes.

    Args:
        file: --engine; None: the configuration of the run, if it has one.
        run: folder of the run.
        given: fields on the command line, which go before.

    Raises:
        FileNotFoundError, ValueError: a file is missing or no YAML, a field is unknown or has a wrong value.
    """
    from lib.engine.array import ArrayConfig, read_array_settings  # torch: not before the options are parsed

    configurations = [path for path in (run / QUANTIZED.with_name('config.yaml'), run / 'config.yaml') if path.exists()]
    values, source = {}, file or next(iter(configurations), '')
    if source:
        with prefixed('--engine ' if file else ''):
            values = read_array_settings(source, section=not file)

    def make(**changes):
        try:
            return ArrayConfig.from_dict({**values, **given, **changes})
        except ValueError as error:
            where = f' of {source}{" and the command line" if given else ""}' if source else ''
            raise ValueError(f'engine settings{where}: {error}') from error
    return make


def load_driver(backend, driver):
    """Return the function of --driver, None without it; ValueError where it does not go with --backend, or fails."""
    from lib.runtime.user_code import load_object  # torch: not before the options are parsed

    if (backend == 'hardware') != bool(driver):
        raise ValueError('--backend hardware and --driver FILE.py:build, which makes its arrays, belong together')
    return load_object(driver, '--driver') if driver else None


def parse_sweep(text):
    """Option type: FIELD=VALUE,VALUE,... as (field, list of values)."""
    field, equals, values = text.partition('=')
    field = field.strip()
    if field not in FIELDS:
        raise ArgumentTypeError(f'{text}: the engine has no {field!r}, it has {", ".join(FIELDS)}')
    kind, words = FIELDS[field][0], [word.strip() for word in values.split(',')]
    if not equals or not all(words):
        raise ArgumentTypeError(f'{text}: expected {field}=VALUE,VALUE,...')
    found = {}
    for word in words:
        try:
            found[kind(word)] = None
        except ValueError:
            raise ArgumentTypeError(f'{text}: {word!r} is no {"whole " * (kind is int)}number') from None
    return field, list(found)
