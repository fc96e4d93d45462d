"""Quantizes a network by halves: few bits in training (soft DSQ), more of them after it (ACIQ on folded BatchNorms).

Everything is in a YAML file, run/hybrid/config.yaml by default.
"""

from dataclasses import replace
from pathlib import Path

import yaml
from _cli import ROOT, logger, make_parser, pick, prefixed, run, training_hint, training_run
from _option_types import CollectedOption, RepositoryPath, at_least, positive
from _options import add_course_options, add_data_options, add_model_options, add_recipe_options, add_run_options
from finetune import STRATEGIES

from lib.hybrid.config import DATASETS, complete_config, override, read_config, with_strategy
from lib.record.files import write_text
from lib.record.strategy import find_strategy

NETWORK = 'hybrid_cnn'
DEVICES = {'GPU': 'cuda', 'CPU': 'cpu'}


def add_hybrid_options(parser):
    """Add the options that only hybrid quantization has."""
    group = parser.add_argument_group('hybrid quantization')
    group.add_argument('--config', metavar='FILE.yaml', default=RepositoryPath('run/hybrid/config.yaml'), help='all '
                       'settings of network, training, quantization and engine (docs/hybrid.md); options on the '
                       'command line go before it')
    group.add_argument('--set', dest='changes', action=CollectedOption, default=[], metavar='SECTION.KEY=VALUE',
                       help='change one setting of the configuration, for example '
                       'qat.w_bit_width=3; may be given several times')
    group.add_argument('--strategy', help='bits layer by layer instead of block lists: strategy.json or strategy.txt '
                       'of a search, a list, a name in STRATEGIES of finetune.py, or uniform:K; below 4 bits a weight '
                       'or input is trained with DSQ, from 4 bits on it is quantized after training with ACIQ '
                       '(default: the block lists)')
    group.add_argument('--rounding', choices=['nearest', 'compensated'], default=None, help='of the weights that are '
                       "quantized after training: to nearest by ACIQ, or with codes that make good each other's errors "
                       '(docs/rounding.md), as --set ptq.weight_method=compensated (default: as the configuration '
                       'says)')
    group.add_argument('--write_config', metavar='FILE.yaml', help='write the complete configuration, that of '
                       '--strategy included, and end (default: train)')
    parser.set_defaults(hybrid=None, network_options=None)


def add_hybrid_training_options(parser):
    """Add the options about training; their defaults come from the configuration."""
    group = parser.add_argument_group('training')
    group.add_argument('--epochs', type=at_least(0), default=200, help='epochs in all; 0: only quantize after training')
    group.add_argument('--lr', type=positive, default=0.1, help='highest learning rate')
    add_course_options(group, 1e-4, RepositoryPath('checkpoints/hybrid'), holds='; experiment_data is in it')


def make_hybrid_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_hybrid_options(parser)
    add_model_options(parser, arch=NETWORK)
    add_data_options(parser, batch=128, workers=4)
    add_hybrid_training_options(parser)
    add_recipe_options(parser)
    add_run_options(parser)
    return parser


def configure(args, parser):
    """Return the defaults that --config and --set give, as {option: value}.

    A checkpoint to evaluate has settings of its own.
    """
    if args.resume:
        from _checkpoints import checkpoint_settings  # it imports torch
        return checkpoint_settings(args.resume) if Path(args.resume).is_file() else {}
    default = isinstance(args.config, RepositoryPath)
    with prefixed('--config '):
        config = read_config(ROOT / args.config if default else args.config)
    if args.rounding and (args.rounding == 'compensated') != (config['ptq']['weight_method'] == 'compensated'):
        method = 'compensated' if args.rounding == 'compensated' else 'minmax'
        override(config, f'ptq.weight_method={method}')
    for text in args.changes:
        with prefixed('--set '):
            override(config, text)
    environment, model, training = config['environment'], config['model'], config['training']
    if model['arch'] and model['blocks']:
        raise ValueError('model.arch names a network and model.blocks describes another: give one of them')
    values = {'hybrid': config, 'device': DEVICES.get(environment['device'], environment['device']),
              'dataset': DATASETS.get(environment['dataset'], environment['dataset']),
              'dataset_root': str(ROOT / environment['data_directory']),
              'checkpoint': str(ROOT / environment['checkpoints_directory']),
              'arch': model['arch'] or NETWORK, 'train_batch': training['batch_size'],
              **{name: training[name] for name in ('epochs', 'lr', 'seed', 'momentum', 'weight_decay')}}
    if args.dataset != parser.get_default('dataset'):
        del values['dataset_root']  # it is the folder of the configuration's own data set
    if args.arch == parser.get_default('arch') and values['arch'] == NETWORK and not args.model_file:
        values['network_options'] = {name: model[name] for name in ('blocks', 'kernel_size', 'bottleneck_type')
                                     if model[name] is not None}
    if args.model_file:
        del values['arch']
    return values


def main(args):
    """Train, fold, quantize, evaluate and save; only evaluate with --evaluate."""
    import torch
    from _costs import coverage_of
    from _networks import Network, build_model, probe
    from _resume import in_file
    from _setup import Data, loaders_of, start_device
    from _training import Course, about_run, read_images, read_resumed
    from _weights import Start, published_file, read_weights

    from lib.engine.array import ArrayConfig
    from lib.hybrid.finish import (
        calibration_batches,
        check_calibration_images,
        quantize_after_training,
        save_quantized,
    )
    from lib.hybrid.placement import HybridQuantization, rebuild
    from lib.hybrid.plan import Plan, make_plan
    from lib.network.coverage import inventory_of
    from lib.network.sync_batch_norm import synchronise_batch_norm
    from lib.qat.placement import weight_bits
    from lib.quantize.folding import FoldingConv2d
    from lib.runtime.distributed import is_main, world_size
    from lib.training.compensation import Rounding, round_linear
    from lib.training.fit import write_results
    from lib.training.loop import Precision, evaluate, loss_function
    from lib.training.plateau import PlateauRate
    from lib.training.settings import TrainingSettings

    run, device, start = training_run(args), start_device(args.device), pick(Start, args)
    precision, saved = Precision(device, args.half, args.channels_last), read_resumed(run, evaluate_only=args.evaluate)
    check_saved(args, saved)
    theirs = saved['hybrid'] if saved else {}

    # data
    data, network = pick(Data, args), pick(Network, args, network_options=theirs.get('network', args.network_options))
    *loaders, classes = read_images(data, network, device, training=not args.evaluate)
    shape = loaders[0].input_shape
    if network.network_options is not None:
        network = replace(network, network_options={**network.network_options, 'in_channels': shape[0]})

    # network and plan
    with in_file(args.resume):
        model = build_model(network, classes, shape, 'cpu' if args.write_config else device, loaders)
    config = complete_config(theirs['config'], args.resume) if saved else \
        configuration(args, inventory_of(model, shape, linear=True))
    try:
        ArrayConfig.from_dict(config['mvm'])
    except ValueError as error:
        raise ValueError(f'the section mvm: {error}') from error
    plan = Plan(**saved['plan']) if saved else make_plan(model, config, args.arch)
    if args.write_config:
        write_text(args.write_config, yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120))
        logger.info('%s: the complete configuration', args.write_config)
        return
    if not args.evaluate:
        check_calibration_images(plan, config['ptq'], loaders[0].num_images)
    plan.report(args.arch)

    # weights
    accuracies = dict(saved.get('accuracies', {})) if saved else {'float': None}
    checkpoint, source = (None, None) if saved else read_weights(start, network)
    if checkpoint is not None:
        check_float(checkpoint, source)
        start.load(model, checkpoint, source)
    if checkpoint is not None or not saved and args.model_file:
        accuracies['float'] = evaluate(model, loaders[1], loss_function(), device, precision=precision).top1
        logger.info('float: top-1 %.2f %%', accuracies['float'])
    with in_file(args.resume):
        rebuild(model, plan, probe(model, shape), quantized=theirs.get('stage') == 'quantized')
    if args.sync_bn and world_size() > 1:
        if any(isinstance(module, FoldingConv2d) for module in model.modules()):
            raise ValueError('--sync_bn: BatchNorms that are folded in training have the statistics of each process: '
                             'give --set qat.fold_bn=false, or leave --sync_bn out')
        synchronise_batch_norm(model)
    start.load(model, saved, args.resume)

    # training
    settings = {'config': config, 'network': network.network_options, 'stage': theirs.get('stage', 'trained')}
    training = config['training']
    quantization = HybridQuantization(model, plan, settings, qat=config['qat'], training=training)
    rate = PlateauRate(args.lr, min_lr=training['min_lr'], warmup_epochs=training['warmup_epochs'],
                       warmup_lr=training['warmup_lr'], factor=training['lr_reduction_factor'],
                       patience=training['lr_patience'], threshold=training['metric_threshold'],
                       cooldown=training['cool_down'], history=list(saved.get('history', [])) if saved else [])
    about = about_run(network, data, shape, classes, history=rate.history, accuracies=accuracies)
    epochs = pick(TrainingSettings, args, evaluate_every=training['evaluate_interval'],
                  keep_every=training['save_interval'], grad_clip=training['clip_grad'])
    course = Course(run, None if args.evaluate else epochs, device, precision, about, saved, rate=rate,
                    published=published_file(network) if args.pretrained else None)
    accuracies['trained'] = course.train(model, loaders, quantization).top1
    if args.evaluate:
        return

    # quantization of the rest, and the result
    def batches():  # of every process all of them, if any are needed, so that all calibrate alike
        count = config['ptq']['calibration_num']
        loader = loaders_of(data, network, device, train_size=1, val_size=count, shard=(0, 1))[1]
        images = torch.cat([images for images, _ in loader]).to(device)
        yield from calibration_batches(images, config['ptq'], args.seed)

    logger.info('%d BatchNorms are folded; logits move by at most %.2g',
                *quantize_after_training(model, plan, probe(model, shape), batches()))
    compensated = plan.compensated
    if compensated:
        round_linear(model, list(batches()), Rounding('compensated'), only=compensated, method='mse')
    metrics = evaluate(model, loaders[1], loss_function(), device, precision=precision)
    bits, full = weight_bits(model)
    accuracies['quantized'] = metrics.top1
    about |= {'cost': bits / 8, 'cost_name': 'model_size', 'cost_unit': 'bytes', 'ratio': bits / full,
              **coverage_of(model, shape, quantization.kind)}
    if is_main():
        target = run.folder / 'experiment_data' / 'q_model'
        save_quantized(target, model, quantization, about, metrics.top1)
        write_results(run.folder, metrics, metrics.top1, **quantization.describe(), **about)
        logger.info('%s: model.pth.tar, weights.npz, config.yaml', target)
    stages = ', '.join(f'{stage} {top1:.2f} %' for stage, top1 in accuracies.items() if top1 is not None)
    logger.info('%s on %s: %s; weights take %.1f kB, %.4f of float', args.arch, args.dataset, stages, bits / 8000,
                bits / full)


def configuration(args, inventory):
    """Return the configuration of a new run, with --strategy for the layers of an `Inventory` in place of block lists.

    Raises:
        ValueError: the strategy does not fit the network.
    """
    if args.strategy is None:
        return args.hybrid
    strategy = find_strategy(args.strategy, inventory.names, linear=True, either=True, published=STRATEGIES,
                             network=args.arch, ends=inventory.ends)
    logger.info('--strategy %.80s: bits of %d layers, the bit lists of the configuration are not used', args.strategy,
                len(strategy))
    return with_strategy(args.hybrid, strategy, inventory.names)


def check_float(checkpoint, source):
    """Raise ValueError unless the weights to begin with are float."""
    if isinstance(checkpoint, dict) and checkpoint.get('quantization', 'float') != 'float':
        raise ValueError(f'{source} is a checkpoint of a {checkpoint["quantization"]} network: hybrid quantization '
                         'starts from float weights, as pretrain.py makes them')


def check_saved(args, saved):
    """Raise ValueError unless the checkpoint of --resume is one that this script can do with what is asked for."""
    if args.evaluate and not saved:
        raise ValueError('--eval: give the checkpoint to evaluate by --resume')
    if saved and 'hybrid' not in saved:
        raise ValueError(f'{args.resume} is no checkpoint of hybrid_train.py: start from its weights with --weights')
    if saved and saved['hybrid']['stage'] == 'quantized' and not args.evaluate:
        raise ValueError(f'{args.resume} is a finished, quantized network: evaluate it with --eval, or go on from the '
                         'checkpoint.pth.tar of the training')
    if saved and saved['arch'] != args.arch:
        raise ValueError(f'{args.resume} is a checkpoint of {saved["arch"]}, this is a run of {args.arch}: give --arch '
                         f'{saved["arch"]}, or start a new run')


if __name__ == '__main__':
    run(main, make_hybrid_parser(), training_hint, configure=configure)
