"""The dot-product engine in the scripts: its options and settings, and the quantized networks that run on it."""

from argparse import Namespace
from pathlib import Path

from _common import ROOT, logger
from _options import BooleanOption as Bool
from _resume import saved_settings

DEFAULT_RUN = 'checkpoints/hybrid'
QUANTIZED = Path('experiment_data', 'q_model', 'model.pth.tar')

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


def option_of(field):
    """Returns the name of a field's option."""
    return RENAMED.get(field, field)


def add_engine_options(parser):
    """Adds the options about the engine; returns their group."""
    group = parser.add_argument_group('engine (command line before --engine before the section mvm of the run)')
    group.add_argument('--engine', metavar='FILE.yaml', help='settings of the engine under the names of the options '
                       'below (device and seed for --cell_device and --engine_seed), or a configuration with them in '
                       "its section mvm (default: the section mvm of the run's configuration, if it has one)")
    group.add_argument('--backend', choices=['simulated', 'ideal', 'hardware'], default='simulated', help='ideal: '
                       'integer products; hardware: arrays of --driver')
    group.add_argument('--driver', metavar='FILE.py:build', help='function that returns an ArrayDriver, called once '
                       'per array; the code in the file is run (default: none, only the backend hardware needs it)')
    for field, (kind, text) in FIELDS.items():
        group.add_argument(f'--{option_of(field)}', type=kind, help=text,
                           metavar={int: 'N', float: 'X', str: 'NAME'}[kind])
    return group


def add_run_folder_option(group):
    """Adds -c."""
    group.add_argument('-c', '--checkpoint', dest='run_folder', metavar='DIR', help='folder of the run; results go to '
                       f'experiment_data/results in it (default: that of --resume, else {DEFAULT_RUN})')


def run_folder(args):
    """Returns the folder of the run as a path."""
    resume = getattr(args, 'resume', None)
    if args.run_folder:
        return Path(args.run_folder).absolute()
    if not resume:
        return ROOT / DEFAULT_RUN
    path = Path(resume).absolute()
    return path.parents[2] if path.parts[-3:] == QUANTIZED.parts else path.parent


def results_folder(args):
    """Returns where results are written."""
    return run_folder(args) / 'experiment_data' / 'results'


def open_results(args):
    """Makes the folder of results and locks it: two commands would lose each other's points of a sweep."""
    from lib.record.lock import hold
    folder = results_folder(args)
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)
    return folder


def engine_config(args, **changes):
    """Returns the `ArrayConfig` of the options, with some fields changed.

    Raises:
        FileNotFoundError, ValueError: a file is missing or no YAML, a field is unknown or has a wrong value.
    """
    from lib.engine.array import ArrayConfig
    values, source = _file_settings(args)
    given = {field: getattr(args, option_of(field)) for field in FIELDS}
    given = {field: value for field, value in given.items() if value is not None}
    try:
        return ArrayConfig.from_dict({**values, **given, **changes})
    except ValueError as error:
        where = f' of {source}{" and the command line" if given else ""}' if source else ''
        raise ValueError(f'engine settings{where}: {error}') from error


def _file_settings(args):
    """Returns (settings, where they are from) of --engine or of the run's configuration; ({}, None): none."""
    from lib.record.files import is_file
    if args.engine:
        return _read_yaml(Path(args.engine), '--engine '), args.engine
    folder = run_folder(args)
    for path in (folder / QUANTIZED.with_name('config.yaml'), folder / 'config.yaml'):
        if is_file(path):
            return _read_yaml(path, '', section=True), path
    return {}, None


def _read_yaml(path, option, section=False):
    from lib.record.files import is_file
    from lib.record.yaml_file import read_yaml
    if not is_file(path):
        raise FileNotFoundError(f'{option}{path}: there is no such file')
    values = read_yaml(path, f'{option}file of engine settings')
    values = {} if values is None else values
    if isinstance(values, dict) and (section or 'mvm' in values):
        values = values.get('mvm') or {}
    if not isinstance(values, dict):
        raise ValueError(f'{option}{path}: expected engine settings as "rows: 128" and so on, one a line')
    return values


def engine_factory(args, config, calibration=None):
    """Returns the `EngineFactory` of the options for a configuration."""
    from lib.engine.dot_product import make_engine
    return make_engine(config, args.backend, driver_of(args), calibration)


def driver_of(args):
    """Returns the function of --driver, None without it.

    Raises:
        ValueError: it does not go with --backend, or its file fails.
    """
    from lib.runtime.user_code import load_object
    if (args.backend == 'hardware') != bool(args.driver):
        raise ValueError('--backend hardware and --driver FILE.py:build, which makes its arrays, belong together')
    return load_object(args.driver, '--driver') if args.driver else None


def read_calibration(path):
    """Returns the `Calibration` of a file of hybrid_calibrate.py.

    Raises:
        FileNotFoundError, ValueError: it is missing, or no such file.
    """
    from lib.engine.calibration import Calibration
    from lib.record.files import is_file, read_json
    if not is_file(path):
        raise FileNotFoundError(f'--calibration {path}: there is no such file; hybrid_calibrate.py makes it')
    try:
        return Calibration.from_dict(read_json(path, 'calibration'))
    except ValueError as error:
        raise ValueError(f'--calibration {path} is no calibration of hybrid_calibrate.py ({error})') from error


def describe_engine(args, config):
    """Says which engine is used: its size, and every other parameter that is not at its default."""
    values, defaults = config.to_dict(), type(config)().to_dict()
    size = ('rows', 'columns', 'cell_bits', 'dac_bits', 'adc_bits')
    others = ''.join(f', {name} {value}' for name, value in values.items()
                     if name not in size and value != defaults[name])
    logger.info('engine: %s, arrays of %d x %d, bits of cells %d, of inputs at once %d, of converters %d%s',
                args.backend, *(values[name] for name in size), others)


# ---- quantized networks

def add_network_options(parser):
    """Adds the options about the quantized network."""
    group = parser.add_argument_group('quantized network')
    add_run_folder_option(group)
    group.add_argument('--resume', metavar='CHECKPOINT', help='checkpoint of hybrid_train.py, qat_train.py or '
                       f'finetune.py --linear_quantization (default: {QUANTIZED} of the run -c)')
    group.add_argument('--float_weights', metavar='PATH', help='checkpoint of the float network, to be evaluated '
                       'beside the quantized one (default: none)')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='of the images (default: as in training)')
    group.add_argument('--tensorflow', action=Bool, help='the network was trained in TensorFlow (known from the run)')


def network_defaults(args, parser):
    """Returns the defaults that the checkpoint and the settings of its run give."""
    from _weights import checkpoint_settings
    args.resume = args.resume or str(run_folder(args) / QUANTIZED)
    if not Path(args.resume).is_file():
        parser.error(f'checkpoint {args.resume} does not exist: give the folder of a run of hybrid_train.py by -c, or '
                     'a checkpoint of a quantized network by --resume')
    saved = saved_settings(parser, Namespace(**{**vars(args), 'resume': str(run_folder(args))}))
    return {**saved, **checkpoint_settings(args, parser), 'resume': args.resume}


def read_quantized(args, device):
    """Returns (quantized network in evaluation mode, image shape, what the checkpoint says of it)."""
    from _export import read_network

    from lib.record.checkpoint import read_checkpoint
    saved = read_checkpoint(args.resume)
    if not isinstance(saved, dict) or 'hybrid' not in saved:
        model, shape, about = read_network(args)
        return model.to(device), shape, about
    from _hybrid import rebuild_network
    args.reset_classifier, shape = False, tuple(saved['input'])
    model = rebuild_network(args, saved, shape).to(device)
    return model.eval(), shape, {name: saved[name] for name in ('arch', 'dataset', 'classes', 'quantization')}


def read_float(args, about, shape, device):
    """Returns the float network with the weights of --float_weights, in evaluation mode."""
    from _setup import build_model
    from _weights import describe

    from lib.record.checkpoint import load_weights, read_checkpoint, weights_for
    model = build_model(args, about['classes'], shape, device)
    weights = weights_for(model, read_checkpoint(args.float_weights), args.float_weights)
    load_weights(model, weights.state_dict, args.float_weights)
    logger.info('float weights: %s', '; '.join([args.float_weights, *describe(weights, ema=False)]))
    return model.eval()
