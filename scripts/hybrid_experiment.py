"""Runs layers of a quantized network on the dot-product engine and compares: float, digital, engine.

The network is one of hybrid_train.py, qat_train.py or finetune.py --linear_quantization. Layers on the engine get their
dot products from it; corrections, bias and all other layers stay digital. Sweeps repeat this over parameters.
"""

import hashlib
from pathlib import Path

from _cli import logger, make_parser, pick, prefixed, run
from _engine import (
    QUANTIZED,
    RESULTS,
    add_engine_options,
    add_run_folder_option,
    engine_config,
    find_run,
    given_fields,
    load_driver,
    parse_sweep,
)
from _option_types import BooleanOption as Bool
from _option_types import at_least
from _options import add_architecture_options, add_data_options, add_run_options
from _settings import saved_settings


def make_experiment_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    group = parser.add_argument_group('quantized network')
    add_run_folder_option(group)
    group.add_argument('--resume', metavar='CHECKPOINT', help='checkpoint of hybrid_train.py, qat_train.py or '
                       f'finetune.py --linear_quantization (default: {QUANTIZED} of the run -c)')
    group.add_argument('--float_weights', metavar='PATH', help='checkpoint of the float network, to be evaluated '
                       'beside the quantized one (default: none)')
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='of the images (default: as in training)')
    group.add_argument('--tensorflow', action=Bool, help='the network was trained in TensorFlow (known from the run)')
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


def configure(args, parser):
    """Return the defaults that the checkpoint and the settings of its run give."""
    from _checkpoints import checkpoint_settings  # it imports torch

    folder = find_run(args.run_folder, args.resume)
    args.resume = args.resume or str(folder / QUANTIZED)
    if not Path(args.resume).is_file():
        raise FileNotFoundError(f'checkpoint {args.resume} does not exist: give the folder of a run of hybrid_train.py '
                                'by -c, or a checkpoint of a quantized network by --resume')
    saved = saved_settings(parser, find_run(args.run_folder, args.resume), vars(args))
    return {**saved, **checkpoint_settings(args.resume), 'resume': args.resume}


def main(args):
    """Prepare, then collect operands, replay measurements, or measure the engine."""
    import torch
    from _checkpoints import own_network, read_quantized
    from _networks import Network, build_model
    from _setup import Data, find_device, loaders_of
    from _weights import Start

    from lib.engine.calibration import read_calibration
    from lib.engine.experiment import Experiment, check_arrays
    from lib.engine.network_run import batches_of, percent, predict
    from lib.engine.operand_files import collect_operands, compare_replayed, read_measured
    from lib.engine.operand_search import check_chosen, find_operands
    from lib.engine.operands import choose_layers
    from lib.network.conversion import all_layers
    from lib.record.checkpoint import load_weights, read_checkpoint
    from lib.record.disk import check_writable
    from lib.record.lock import hold

    # the engine, and those of the sweeps
    run_folder = find_run(args.run_folder, args.resume)
    results = run_folder / RESULTS
    check_writable(results)
    device, make_config = find_device(args.device), engine_config(args.engine, run_folder, given_fields(vars(args)))
    config, sweeps = make_config(), {}
    for field, values in args.sweep:
        sweeps.setdefault(field, {}).update({value: make_config(**{field: value}) for value in values})
    if sweeps and args.backend == 'ideal':
        raise ValueError('--sweep with --backend ideal: its products are exact, whatever the settings')
    if args.calibration and (sweeps or args.calibrate):
        raise ValueError('--calibration is of one engine: with --sweep give --calibrate, which calibrates every engine '
                         'on its own, in its place')
    driver, calibration = load_driver(args.backend, args.driver), None
    if args.calibration:
        with prefixed('--calibration '):
            calibration = read_calibration(args.calibration)
        with prefixed(f'--calibration {args.calibration}: '):
            calibration.check(config)

    # the network and the images
    network = pick(Network, args)
    model, shape, saved = read_quantized(args.resume, network)
    model = model.to(device)
    data = pick(Data, args, num_classes=args.num_classes or saved['classes'])
    training, validation = loaders_of(data, network, device)[:2]

    # its layers on the engine
    operands, reasons = find_operands(model, next(iter(validation))[0][:8].to(device))
    with prefixed('--layers '):
        chosen = choose_layers(args.layers, list(all_layers(model)), operands, reasons)
    check_chosen(chosen, len(operands) + len(reasons), reasons)

    # operands for a laboratory, or what it measured
    if args.collect is not None or args.replay:
        if args.collect == 0 and not args.replay:
            raise ValueError('--collect 0: expected a number of input columns, or -1 for all')
        validation.sample(args.collect_images)
        images, labels = (torch.cat(part) for part in zip(*validation, strict=True))
        if args.replay:
            compare_replayed(model, chosen, images.to(device), labels, read_measured(args.replay, chosen))
        else:
            collect_operands(model, chosen, images.to(device), run_folder / 'experiment_data' / 'test_data',
                             patches=None if args.collect < 0 else args.collect, seed=args.seed)
        return

    # the network without an engine
    check_arrays(chosen, [config, *(each for configs in sweeps.values() for each in configs.values())])
    logger.info('engine: %s, %s', args.backend, config.describe())
    validation.sample(args.images)
    labels, digital = predict(model, batches_of(validation, args.engine_batch))
    accuracies = {'digital': percent(digital == labels)}
    logger.info('digital: top-1 %.2f %% of %d images', accuracies['digital'], len(labels))
    if args.float_weights:
        floating = build_model(own_network(network, saved), saved['classes'], shape, device)
        weights = Start().find(floating, read_checkpoint(args.float_weights), args.float_weights)
        load_weights(floating, weights.state_dict, args.float_weights)
        logger.info('float weights: %s', '; '.join([args.float_weights, *weights.words(ema=False)]))
        _, classes = predict(floating.eval(), batches_of(validation, args.engine_batch))
        accuracies['float'] = percent(classes == labels)
        logger.info('float: top-1 %.2f %%', accuracies['float'])

    # the measurement, or the sweeps
    experiment = Experiment(
        model, chosen, validation, labels, digital, training, args.range_images, args.backend, driver,
        {name: getattr(args, name) for name in ('patterns', 'vectors', 'seed')} if args.calibrate else None,
        args.engine_batch, args.error_images,
        {'checkpoint': hashlib.sha256(Path(args.resume).read_bytes()).hexdigest()[:16],
         'data': [args.dataset, args.image_size, args.seed if args.dataset_file else None],
         'backend': [args.backend, args.driver]})
    results.mkdir(parents=True, exist_ok=True)
    hold(results)
    for field, configs in sweeps.items():
        experiment.sweep(field, configs, results, overwrite=args.overwrite, top1_float=accuracies.get('float'))
    if not sweeps:
        experiment.record(config, results, calibration, overwrite=args.overwrite, about={
            'arch': saved['arch'], 'dataset': saved['dataset'], 'checkpoint': args.resume,
            **{f'top1_{name}': top1 for name, top1 in accuracies.items()}})


if __name__ == '__main__':
    run(main, make_experiment_parser(), configure=configure)
