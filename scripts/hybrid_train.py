"""Quantizes a network by halves: few bits in training (soft DSQ), more of them after it (ACIQ on folded BatchNorms).

Everything is in a YAML file, run/hybrid/config.yaml by default.
"""

from _common import logger, make_parser, run
from _costs import coverage_of
from _hybrid import (
    add_hybrid_options,
    add_hybrid_training_options,
    apply_strategy,
    check_calibration_images,
    configure,
    float_accuracy,
    hybrid_model,
    make_checked_plan,
    quantize_after_training,
    rate_of_run,
    save_quantized,
    write_config,
)
from _options import add_data_options, add_model_options, add_run_options
from _resume import in_file
from _setup import probe, start_device
from _training import about_run, read_images, read_resumed, resume_hint, train, training_folder
from _weights import load


def make_hybrid_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_hybrid_options(parser)
    add_model_options(parser, arch='hybrid_cnn')
    add_data_options(parser, batch=128, workers=4)
    add_hybrid_training_options(parser)
    add_run_options(parser)
    return parser


def main(args):
    """Trains, folds, quantizes, evaluates and saves; only evaluates with --evaluate."""
    from lib.hybrid.config import complete_config
    from lib.hybrid.placement import HybridQuantization, rebuild
    from lib.hybrid.plan import Plan

    device, saved = start_device(args), read_resumed(args)
    check_saved(args, saved)
    *loaders, classes = read_images(args, device)
    args.input_shape = loaders[0].input_shape
    if args.write_config:
        write_config(args, loaders, classes)
        return
    settings = saved['hybrid'] if saved else {}
    args.network_options = settings.get('network', args.network_options)
    with in_file(args.resume):
        model = hybrid_model(args, classes, args.input_shape, device, loaders)
    config = complete_config(settings['config'], args.resume) if saved else \
        apply_strategy(args, model, args.input_shape)
    plan = Plan(**saved['plan']) if saved else make_checked_plan(args, model, config)
    if not args.evaluate:
        check_calibration_images(plan, config, loaders[0].num_images)
    accuracies = dict(saved.get('accuracies', {})) if saved else {'float': float_accuracy(args, model, loaders, device)}
    is_quantized = settings.get('stage') == 'quantized'
    with in_file(args.resume):
        rebuild(model, plan, probe(model, args.input_shape), quantized=is_quantized)
    synchronise_norms(args, model)
    if saved:
        load(args, model, saved, args.resume)
    settings = {'config': config, 'network': args.network_options, 'stage': settings.get('stage', 'trained')}
    quantization = HybridQuantization(model, plan, settings, qat=config['qat'], training=config['training'])
    report_plan(args, plan)
    rate = rate_of_run(config, list(saved.get('history', [])) if saved else [], args.lr)
    about = about_run(args, loaders, classes, history=rate.history, accuracies=accuracies)
    trained = train(args, model, loaders, saved, device, quantization=quantization, about=about, rate=rate,
                    evaluate_every=config['training']['evaluate_interval'],
                    keep_every=config['training']['save_interval'])
    accuracies['trained'] = trained.top1
    if not args.evaluate:
        finish(args, model, plan, loaders, device, quantization, about)


def synchronise_norms(args, model):
    """Makes the BatchNorms span all processes with --sync_bn; ValueError where some are folded in training."""
    from lib.network.sync_batch_norm import synchronise_batch_norm
    from lib.quantize.folding import FoldingConv2d
    from lib.runtime.distributed import world_size
    if not args.sync_bn or world_size() == 1:
        return
    if any(isinstance(module, FoldingConv2d) for module in model.modules()):
        raise ValueError('--sync_bn: BatchNorms that are folded in training have the statistics of each process: give '
                         '--set qat.fold_bn=false, or leave --sync_bn out')
    synchronise_batch_norm(model)


def check_saved(args, saved):
    """Raises ValueError unless the checkpoint of --resume is one that this script can do with what is asked for."""
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


def finish(args, model, plan, loaders, device, quantization, about):
    """Quantizes after training, evaluates and writes experiment_data/q_model and results.json."""
    from lib.qat.placement import weight_bits
    from lib.runtime.distributed import is_main
    from lib.training.fit import write_results
    from lib.training.loop import Precision, evaluate, loss_function

    quantize_after_training(args, model, plan, quantization.settings['config'], device)
    metrics = evaluate(model, loaders[1], loss_function(), device,
                       precision=Precision(device, args.half, args.channels_last))
    bits, full = weight_bits(model)
    covered = coverage_of(model, args.input_shape, quantization.kind)
    about['accuracies']['quantized'] = metrics.top1
    about = {**about, 'cost': bits / 8, 'cost_name': 'model_size', 'cost_unit': 'bytes', 'ratio': bits / full,
             **covered}
    if is_main():
        target = save_quantized(training_folder(args), model, quantization, about, metrics)
        write_results(training_folder(args), metrics, metrics.top1, **quantization.describe(), **about)
        logger.info('%s: model.pth.tar, weights.npz, config.yaml', target)
    stages = ', '.join(f'{stage} {top1:.2f} %' for stage, top1 in about['accuracies'].items() if top1 is not None)
    logger.info('%s on %s: %s; weights take %.1f kB, %.4f of float', args.arch, args.dataset, stages, bits / 8000,
                bits / full)


def report_plan(args, plan):
    """Says what is quantized, how, and where edge and cloud meet."""
    for name, group in (('weights', plan.weights), ('activations', plan.activations), ('inputs', plan.inputs)):
        for method, words in (('dsq', 'trained with DSQ'), ('aciq', 'after training with ACIQ')):
            bits = [entry['bits'] for entry in group.values() if entry['method'] == method]
            if bits:
                width = f'{min(bits)} bits' if min(bits) == max(bits) else f'{min(bits)} to {max(bits)} bits'
                logger.info('%s of %d layers: %s, %s', name, len(bits), width, words)
    for name, entry in plan.activations.items():
        if 'names' in entry:
            logger.info('%s is quantized under all its names: %s', name, ', '.join(entry['names']))
    trained = [name for name, entry in plan.activations.items() if entry['method'] == 'dsq']
    if trained:
        logger.info('the edge device ends with %s', trained[-1])
    if not plan:
        logger.info('%s stays float: no block list names a block', args.arch)


if __name__ == '__main__':
    run(main, make_hybrid_parser(), resume_hint, configure=configure)
