"""Hybrid quantization: its options, its YAML configuration, the stages of a run, and networks from its checkpoints."""

from pathlib import Path

from _common import ROOT, logger
from _options import BooleanOption as Bool
from _options import RepositoryPath, at_least, positive
from _resume import in_file
from _setup import build_model, loaders_of, probe
from _weights import checkpoint_settings, load, read_weights

NETWORK = 'hybrid_cnn'
DEVICES = {'GPU': 'cuda', 'CPU': 'cpu'}


def add_hybrid_options(parser):
    """Adds the options that only hybrid quantization has."""
    group = parser.add_argument_group('hybrid quantization')
    group.add_argument('--config', metavar='FILE.yaml', default=RepositoryPath('run/hybrid/config.yaml'), help='all '
                       'settings of network, training, quantization and engine (docs/hybrid.md); options on the '
                       'command line go before it')
    group.add_argument('--set', dest='changes', action='append', default=[], metavar='SECTION.KEY=VALUE', help='change '
                       'one setting of the configuration, for example qat.w_bit_width=3; may be given several times')
    group.add_argument('--strategy', help='bits layer by layer instead of block lists: strategy.json or strategy.txt '
                       'of a search, a list, a name in STRATEGIES of finetune.py, or uniform:K; below 4 bits a weight '
                       'or input is trained with DSQ, from 4 bits on it is quantized after training with ACIQ '
                       '(default: the block lists)')
    group.add_argument('--write_config', metavar='FILE.yaml', help='write the complete configuration, that of '
                       '--strategy included, and end (default: train)')
    parser.set_defaults(hybrid=None, network_options=None, linear_quantization=False, opt='sgd')


def add_hybrid_training_options(parser):
    """Adds the options about training; their defaults come from the configuration."""
    group = parser.add_argument_group('training')
    group.add_argument('--epochs', type=at_least(0), default=200, help='epochs in all; 0: only quantize after training')
    group.add_argument('--lr', type=positive, default=0.1, help='highest learning rate')
    group.add_argument('--momentum', type=at_least(0, float), default=0.9, help='momentum of SGD')
    group.add_argument('--weight-decay', '--weight_decay', '--wd', dest='weight_decay', type=at_least(0, float),
                       default=1e-4, help='weight decay of the optimizer')
    group.add_argument('--pretrained', action=Bool, help="start from published float weights: the file in "
                       "pretrained/imagenet, else torchvision's download")
    group.add_argument('-c', '--checkpoint', default=RepositoryPath('checkpoints/hybrid'), help='folder of the run; '
                       'experiment_data is in it')
    group.add_argument('--resume', metavar='CHECKPOINT', help='checkpoint.pth.tar of a run to continue in its folder, '
                       'with its own settings, or a checkpoint to evaluate')
    group.add_argument('-e', '--evaluate', '--eval', dest='evaluate', action=Bool, help='only evaluate --resume')


def configure(args, parser):
    """Returns the defaults that --config and --set give, as {option: value}; the parser refuses what is wrong.

    A checkpoint to evaluate has settings of its own.
    """
    from lib.hybrid.config import DATASETS, read_config
    if args.resume:
        return checkpoint_settings(args, parser) if Path(args.resume).is_file() else {}
    try:
        default = isinstance(args.config, RepositoryPath)
        config = read_config(ROOT / args.config if default else args.config, args.changes)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    environment, model, training = config['environment'], config['model'], config['training']
    if model['arch'] and model['blocks']:
        parser.error('model.arch names a network and model.blocks describes another: give one of them')
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


def write_config(args, loaders, classes):
    """Writes the configuration as it is used, --strategy as the section `layers`; needs no weights."""
    import yaml

    from lib.record.files import write_text
    model = hybrid_model(args, classes, loaders[0].input_shape, 'cpu')
    config = apply_strategy(args, model, loaders[0].input_shape)
    make_checked_plan(args, model, config)
    write_text(args.write_config, yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=120))
    logger.info('%s: the complete configuration', args.write_config)


def hybrid_model(args, classes, shape, device, loaders=()):
    """Returns the float network of a run."""
    if args.network_options is not None:
        args.network_options = {**args.network_options, 'in_channels': shape[0]}
    return build_model(args, classes, shape, device, loaders)


def apply_strategy(args, model, shape):
    """Returns the configuration of a run, with --strategy in place of its block lists.

    Raises:
        ValueError: the strategy does not fit the network.
    """
    from copy import deepcopy

    from _qat import layers_with_strategy, strategy_of_layers

    from lib.hybrid.plan import layers_of_strategy
    config = deepcopy(args.hybrid)
    if args.strategy is not None:
        inventory = layers_with_strategy(model, shape)
        config['layers'] = layers_of_strategy(strategy_of_layers(args, inventory, input_bits=-1), inventory.names)
        for section, key in (('qat', 'quantize_w_blocks'), ('qat', 'quantize_a_blocks'),
                             ('ptq', 'post_quantize_w_layers'), ('ptq', 'post_quantize_a_layers')):
            config[section][key] = []
    return config


def make_checked_plan(args, model, config):
    """Returns the `Plan` of a configuration; engine settings are checked, too."""
    from lib.engine.array import ArrayConfig
    from lib.hybrid.plan import make_plan
    try:
        ArrayConfig.from_dict(config['mvm'])
    except ValueError as error:
        raise ValueError(f'the section mvm: {error}') from error
    return make_plan(model, config, args.arch)


def rebuild_network(args, saved, shape):
    """Returns the quantized network of a checkpoint of hybrid_train.py, with its weights, on the CPU.

    Args:
        args: options of a script with network options; the network is that of the checkpoint.
        saved: the checkpoint.
        shape: (C, H, W) of an image.
    """
    from lib.hybrid.placement import rebuild
    from lib.hybrid.plan import Plan
    args.network_options = saved['hybrid']['network']
    with in_file(args.resume):
        model = build_model(args, saved['classes'], shape, 'cpu')
        rebuild(model, Plan(**saved['plan']), probe(model, shape), quantized=saved['hybrid']['stage'] == 'quantized')
    load(args, model, saved, args.resume)
    return model.eval()


def rate_of_run(config, history, lr):
    """Returns the `PlateauRate` of a configuration."""
    from lib.training.plateau import PlateauRate
    training = config['training']
    return PlateauRate(lr, min_lr=training['min_lr'], warmup_epochs=training['warmup_epochs'],
                       warmup_lr=training['warmup_lr'], factor=training['lr_reduction_factor'],
                       patience=training['lr_patience'], threshold=training['metric_threshold'],
                       cooldown=training['cool_down'], history=history)


def float_accuracy(args, model, loaders, device):
    """Returns the top-1 of the float weights that a run begins with, in percent, or None where they are random."""
    from lib.training.loop import Precision, evaluate, loss_function
    start, source = read_weights(args, args.pretrained)
    if start is None:
        return None
    if isinstance(start, dict) and start.get('quantization', 'float') != 'float':
        raise ValueError(f'{source} is a checkpoint of a {start["quantization"]} network: hybrid quantization starts '
                         'from float weights, as pretrain.py makes them')
    load(args, model, start, source)
    metrics = evaluate(model, loaders[1], loss_function(), device,
                       precision=Precision(device, args.half, args.channels_last))
    logger.info('float: top-1 %.2f %%', metrics.top1)
    return metrics.top1


def quantize_after_training(args, model, plan, config, device):
    """Folds, places the ACIQ quantizers and calibrates them on training images without augmentation."""
    import torch

    from lib.hybrid.placement import calibrate_after_training, fold, place_after_training
    images = probe(model, args.input_shape)
    model.eval()
    with torch.no_grad():
        before = model(images)
    pairs = fold(model, plan, images)
    with torch.no_grad():
        difference = (model(images) - before).abs().max().item()
    logger.info('%d BatchNorms are folded; logits move by at most %.2g', len(pairs), difference)
    place_after_training(model, plan)
    calibrate_after_training(model, plan, calibration_batches(args, config, device))


def check_calibration_images(plan, config, count):
    """Raises ValueError where activations are to be calibrated on more images than the `count` for training allow."""
    aciq, needed = plan.of('aciq'), config['ptq']['calibration_num']
    if (aciq.inputs or aciq.activations) and needed >= count:
        raise ValueError(f'ptq.calibration_num {needed}: activations are calibrated on so many of the training images, '
                         f'which are {count}: give --set ptq.calibration_num={max(count - 1, 1)} or fewer')


def calibration_batches(args, config, device):
    """Yields `calibration_num` training images, `calibration_epochs` times in another order, in batches.

    Of several processes each gets all of them, so that all calibrate alike.
    """
    import torch

    from lib.runtime.seeds import derived_seed
    ptq = config['ptq']
    loader = loaders_of(args, device, train_size=1, val_size=ptq['calibration_num'], shard=(0, 1))[1]
    images = torch.cat([batch for batch, _ in loader]).to(device)
    for epoch in range(ptq['calibration_epochs']):
        generator = torch.Generator().manual_seed(derived_seed(args.seed, 'calibration', epoch))
        order = torch.randperm(len(images), generator=generator).to(device)
        for picked in order.split(ptq['calibration_batch_size']):
            yield images[picked]


def save_quantized(folder, model, quantization, about, metrics):
    """Writes experiment_data/q_model: model.pth.tar, weights.npz and config.yaml."""
    import numpy as np
    import yaml

    from lib.hybrid.placement import integer_weights
    from lib.record.checkpoint import save_checkpoint
    from lib.record.files import atomic_path, write_text
    target = Path(folder) / 'experiment_data' / 'q_model'
    with atomic_path(target / 'weights.npz') as temporary:
        np.savez_compressed(temporary, **integer_weights(model))
    write_text(target / 'config.yaml', yaml.safe_dump(quantization.settings['config'], sort_keys=False,
                                                      default_flow_style=None, width=120))
    state = quantization.state()
    save_checkpoint(target / 'model.pth.tar', {
        **about, **state, 'quantization': 'hybrid', 'hybrid': {**state['hybrid'], 'stage': 'quantized'},
        'state_dict': model.state_dict(), 'acc': metrics.top1})
    return target
