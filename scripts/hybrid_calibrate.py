"""Calibrates the dot-product engine: gain and offset of its columns by least squares, and the range of its converters.

Known patterns are programmed, random inputs sent; what the columns say is compared with the exact products.
"""

from _cli import logger, make_parser, run
from _engine import (
    RESULTS,
    add_engine_options,
    add_run_folder_option,
    engine_config,
    find_run,
    given_fields,
    load_driver,
)
from _option_types import MAX_SEED, at_least
from _option_types import BooleanOption as Bool


def make_calibrate_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group('calibration')
    add_run_folder_option(group)
    group.add_argument('--patterns', type=at_least(2), default=8, help='random patterns of cells that are programmed '
                       'one after another')
    group.add_argument('--vectors', type=at_least(16), default=256, help='random inputs that are sent to each pattern')
    group.add_argument('--seed', '--manualSeed', dest='seed', type=at_least(0, maximum=MAX_SEED), default=234,
                       help='seed of patterns and inputs')
    group.add_argument('--overwrite', action=Bool, help='replace the calibration of another engine')
    group.add_argument('--debug', action=Bool, help='log more, and show the traceback of an error')
    add_engine_options(parser)
    return parser


def main(args):
    """Calibrate, report and write calibration.json and calibration.png."""
    from lib.engine.calibration import calibrate_columns, read_calibration
    from lib.engine.plots import plot_calibration
    from lib.record.disk import check_writable
    from lib.record.files import is_file, write_json
    from lib.record.lock import hold

    # the engine
    if args.backend == 'ideal':
        raise ValueError('--backend ideal gives exact products: there is nothing to calibrate')
    folder = find_run(args.run_folder)
    config = engine_config(args.engine, folder, given_fields(vars(args)))()
    driver, folder = load_driver(args.backend, args.driver), folder / RESULTS

    # the file to write, which may hold a calibration of another engine
    path = folder / 'calibration.json'
    if is_file(path) and not args.overwrite:
        try:
            read_calibration(path).check(config)
        except ValueError as error:
            raise FileExistsError(f'{path} holds a calibration already, and it is of another engine: give --overwrite '
                                  f'or another folder by -c ({error})') from error
    check_writable(folder)
    logger.info('engine: %s, %s', args.backend, config.describe())
    folder.mkdir(parents=True, exist_ok=True)
    hold(folder)

    # the calibration
    calibration = calibrate_columns(config, driver, patterns=args.patterns, vectors=args.vectors, seed=args.seed)
    report(calibration)
    plot_calibration(calibration, folder / 'calibration.png')
    write_json(path, calibration.to_dict(), seal=True)
    logger.info('%s: calibration.json, calibration.png', folder)


def report(calibration):
    """Say what the calibration found."""
    logger.info('%-20s %12s %12s %15s', '', 'R^2', 'RMSE', 'effective bits')
    for when in ('before', 'after'):
        r2, rmse, bits = (getattr(calibration, f'{name}_{when}') for name in ('r2', 'rmse', 'bits'))
        logger.info('%-20s %12.6f %12.5g %15s', f'{when} calibration', r2, rmse,
                    'exact' if bits is None else f'{bits:.2f}')
    low, high = calibration.adc_range or (None, None)
    logger.info('gain %.4f to %.4f, offset %.4g to %.4g over %d columns; %s', calibration.gain.min(),
                calibration.gain.max(), calibration.offset.min(), calibration.offset.max(), len(calibration.gain),
                'no converters' if low is None else f'converters from {low:.5g} to {high:.5g}')


if __name__ == '__main__':
    run(main, make_calibrate_parser())
