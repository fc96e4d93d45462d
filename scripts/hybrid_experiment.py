"""Runs layers of a quantized network on the dot-product engine and compares: float, digital, engine.

The network is one of hybrid_train.py, qat_train.py or finetune.py --linear_quantization. Layers on the engine get their
dot products from it; corrections, bias and all other layers stay digital. Sweeps repeat this over parameters.
"""

import hashlib
from pathlib import Path

from _common import logger, make_parser, run
from _engine import (
    add_engine_options,
    add_network_options,
    describe_engine,
    engine_config,
    engine_factory,
    network_defaults,
    open_results,
    read_calibration,
    read_float,
    read_quantized,
    results_folder,
    run_folder,
)
from _experiment import Setup, measure, parse_sweep, percent, run_sweep, write_csv
from _options import BooleanOption as Bool
from _options import add_architecture_options, add_data_options, add_run_options, at_least
from _setup import find_device, loaders_of

LAYER_ROW = ('layer', 'w_bit', 'a_bit', 'terms', 'arrays', 'count', 'rmse', 'bias', 'relative_error', 'correlation',
             'effective_bits', 'lowest', 'highest')


def make_experiment_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_network_options(parser)
    group = parser.add_argument_group('experiment')
    group.add_argument('--layers', default='all', help='layers on the engine, with commas between: all that can be, '
                       'names, patterns such as blocks.0.*, or indices')
    group.add_argument('--images', type=at_least(1), default=1000, help='validation images, a fixed random '
                       'sample')
    group.add_argument('--error_images', type=at_least(1), default=100, help='of these, on which the errors of every '
                       'dot product are measured')
    group.add_argument('--engine_batch', type=at_least(1), default=50, help='images that go through the engine at '
                       'once; more take more memory')
    group.add_argument('--range_images', type=at_least(1), default=16, help='training images from which adc_range '
                       'calibrated finds the ranges of converters')
    group.add_argument('--calibration', metavar='FILE', help='calibration.json of hybrid_calibrate.py, made for this '
                       'very engine (default: columns are taken as they are)')
    group.add_argument('--calibrate', action=Bool, help='calibrate gains and offsets of this engine, and of each one '
                       'of a sweep, before it is used')
    group.add_argument('--patterns', type=at_least(2), default=8, help='--calibrate: random patterns of cells')
    group.add_argument('--vectors', type=at_least(16), default=256, help='--calibrate: random inputs for each pattern')
    group.add_argument('--sweep', type=parse_sweep, action='append', default=[], metavar='FIELD=VALUE,VALUE,...',
                       help='measure a curve over values of an engine setting instead, for example '
                       'adc_bits=4,5,6,7,8; may be given several times; values that are known already are not '
                       'measured again')
    group.add_argument('--collect', type=at_least(-1), metavar='N', help='write integer operands of N input columns '
                       'of each layer (-1: all) to experiment_data/test_data, and end (default: do not)')
    group.add_argument('--replay', metavar='FOLDER', help='take measured dot products from FOLDER/<layer>.npz (array '
                       '"measured", one row an input column), go on with the forward pass, and end (default: do not)')
    group.add_argument('--collect_images', type=at_least(1), default=10, help='--collect, --replay: validation images, '
                       'the first ones')
    add_engine_options(parser)
    add_architecture_options(parser.add_argument_group('network (known from the checkpoint)'), arch='toynet')
    add_data_options(parser, batch=128, workers=4)
    add_run_options(parser)
    parser.not_resumed = ('calibrate',)
    return parser


def main(args):
    """Prepares, then collects, replays, or measures."""
    from lib.record.disk import check_writable
    check_writable(results_folder(args))
    device, config = find_device(args.device), engine_config(args)
    sweeps = {field: {} for field, _ in args.sweep}
    for field, values in args.sweep:
        sweeps[field].update({value: engine_config(args, **{field: value}) for value in values})
    if sweeps and args.backend == 'ideal':
        raise ValueError('--sweep with --backend ideal: its products are exact, whatever the settings')
    calibration = check_calibration(args, config)
    model, shape, about = read_quantized(args, device)
    args.num_classes = args.num_classes or about['classes']
    loaders = loaders_of(args, device)[:2]
    operands = find_layers(args, model, loaders)
    if args.collect is not None or args.replay:
        (replay_measured if args.replay else collect)(args, model, operands, loaders[1])
        return
    for each in (config, *(each for configs in sweeps.values() for each in configs.values())):
        check_fits(operands, each)
    describe_engine(args, config)
    setup, accuracies = start(args, model, operands, loaders, about, shape)
    open_results(args)
    if not sweeps:
        compare(setup, config, calibration, accuracies, about)
    for field, configs in sweeps.items():
        run_sweep(setup, field, configs, accuracies['digital'], accuracies.get('float'))


def check_calibration(args, config):
    """Returns the `Calibration` of --calibration or None.

    Raises:
        ValueError: it is of another engine, or cannot be used with the other options.
    """
    if not args.calibration:
        engine_factory(args, config)
        return None
    if args.sweep or args.calibrate:
        raise ValueError('--calibration is of one engine: with --sweep give --calibrate, which calibrates every engine '
                         'on its own, in its place')
    calibration = read_calibration(args.calibration)
    try:
        engine_factory(args, config, calibration)
    except ValueError as error:
        raise ValueError(f'--calibration {args.calibration}: {error}') from error
    return calibration


def find_layers(args, model, loaders):
    """Returns {name: `LayerOperands`} of --layers, and says which layers stay digital."""
    from lib.engine.operand_search import find_operands
    from lib.engine.operands import choose_layers
    from lib.network.conversion import all_layers, some
    images = next(iter(loaders[1]))[0][:8].to(next(model.parameters()).device)
    operands, reasons = find_operands(model, images)
    chosen = choose_layers(args.layers, list(all_layers(model)), operands, reasons)
    for operand in chosen.values():
        operand.check()
    for reason in dict.fromkeys(reasons.values()):
        logger.info('stays digital: %s (%s)', some(name for name in reasons if reasons[name] == reason), reason)
    logger.info('on the engine: %d of %d layers: %s', len(chosen), len(operands) + len(reasons), some(chosen))
    return chosen


def check_fits(operands, config):
    """Raises ValueError, before anything slow begins, if arrays are too small for a layer; names it."""
    from lib.engine.dot_product import make_engine
    from lib.engine.network_run import LayerEngine
    for operand in operands.values():
        LayerEngine(operand, make_engine(config, 'ideal'))  # cuts the weights into arrays and makes none


def start(args, model, operands, loaders, about, shape):
    """Returns the `Setup` and {'digital': top-1, 'float': top-1 if its weights are given}."""
    from lib.engine.network_run import batches_of, predict
    loaders[1].sample(args.images)
    labels, digital = predict(model, batches_of(loaders[1], args.engine_batch))
    accuracies = {'digital': percent(digital == labels)}
    logger.info('digital: top-1 %.2f %% of %d images', accuracies['digital'], len(labels))
    if args.float_weights:
        network = read_float(args, about, shape, next(model.parameters()).device)
        _, classes = predict(network, batches_of(loaders[1], args.engine_batch))
        accuracies['float'] = percent(classes == labels)
        logger.info('float: top-1 %.2f %%', accuracies['float'])
    checkpoint = hashlib.sha256(Path(args.resume).read_bytes()).hexdigest()[:16]
    return Setup(args, model, operands, loaders, labels, digital, checkpoint), accuracies


def compare(setup, config, calibration, accuracies, about):
    """Measures the engine of the options and writes experiment.json, layers.csv and the figures of all layers."""
    from lib.engine.plots import plot_layers
    from lib.record.files import write_json
    args, folder = setup.args, results_folder(setup.args)
    fingerprint = setup.fingerprint(config, calibration)
    if not args.overwrite and saved_fingerprint(folder / 'experiment.json') == fingerprint:
        logger.info('%s has the results of these settings already (--overwrite measures again)',
                    folder / 'experiment.json')
        return
    point, engines, errors = measure(setup, config, calibration)
    rows = [layer_row(operand, engines[name], errors.layers[name]) for name, operand in setup.operands.items()]
    report(point, rows)
    write_csv(folder / 'layers.csv', LAYER_ROW, rows)
    pairs = {name: found.pairs() for name, found in errors.layers.items()}
    for kind in ('scatter', 'histogram'):
        plot_layers(pairs, kind, folder / f'{kind}.png')
    write_json(folder / 'experiment.json', {
        'arch': about['arch'], 'dataset': about['dataset'], 'checkpoint': args.resume, 'images': len(setup.labels),
        'error_images': args.error_images, **{f'top1_{name}': top1 for name, top1 in accuracies.items()},
        'top1_engine': point['top1'], **{name: point[name] for name in point if name != 'top1'},
        'backend': args.backend, 'engine': config.to_dict(), 'calibrated': bool(calibration or args.calibrate),
        'layers': {row['layer']: row for row in rows}, 'fingerprint': fingerprint}, seal=True)
    logger.info('%s: experiment.json, layers.csv, scatter.png, histogram.png', folder)


def saved_fingerprint(path):
    """Returns the fingerprint in a file of results, None where there is none."""
    from _experiment import read_points
    return read_points(path).get('fingerprint')


def layer_row(operand, engine, errors):
    """Returns what layers.csv says of a layer."""
    return {'layer': operand.name, 'w_bit': operand.weight.bits, 'a_bit': operand.grid.bits, 'terms': operand.terms,
            'arrays': engine.num_arrays, **errors.summary()}


def report(point, rows):
    """Prints accuracies and errors."""
    logger.info('engine: top-1 %.2f %%, the same prediction as the digital network for %.2f %%; %d arrays, %.1f s',
                *(point[name] for name in ('top1', 'agreement', 'arrays', 'seconds')))
    logger.info('%-32s %4s %4s %7s %12s %10s %12s %10s', 'layer', 'w', 'a', 'arrays', 'RMSE', 'relative',
                'correlation', 'eff. bits')
    for row in rows:
        numbers = ('exact' if value is None else f'{value:.6g}' for value in
                   (row.get(name) for name in ('rmse', 'relative_error', 'correlation', 'effective_bits')))
        logger.info('%-32s %4d %4d %7d %12s %10s %12s %10s', row['layer'], row['w_bit'], row['a_bit'], row['arrays'],
                    *numbers)


def first_images(args, model, loader):
    """Returns (images, labels) of --collect_images."""
    import torch
    loader.sample(args.collect_images)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images).to(next(model.parameters()).device), torch.cat(labels).cpu()


def collect(args, model, operands, loader):
    """Writes the operands of layers for arrays in a laboratory."""
    from lib.engine.operand_files import collect_operands
    if args.collect == 0:
        raise ValueError('--collect 0: expected a number of input columns, or -1 for all')
    images, _ = first_images(args, model, loader)
    folder = run_folder(args) / 'experiment_data' / 'test_data'
    paths = collect_operands(model, operands, images, folder, patches=None if args.collect < 0 else args.collect,
                             seed=args.seed)
    logger.info('%s: operands of %d layers on %d images (%s, ...)', folder, len(paths), len(images), paths[0].name)


def replay_measured(args, model, operands, loader):
    """Goes on from measured dot products."""
    from lib.engine.network_run import predict
    from lib.engine.operand_files import read_measured, replay
    images, labels = first_images(args, model, loader)
    measured = read_measured(args.replay, operands)
    classes = replay(model, operands, images, measured).argmax(1).cpu()
    _, digital = predict(model, [(images, labels)])
    logger.info('%d images, dot products of %s as measured: top-1 %.2f %%, digital %.2f %%; the same prediction for '
                '%.2f %%', len(labels), ', '.join(measured), percent(classes == labels), percent(digital == labels),
                percent(classes == digital))


if __name__ == '__main__':
    run(main, make_experiment_parser(), configure=network_defaults)
