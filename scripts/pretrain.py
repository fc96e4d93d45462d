"""Trains a float network: the starting point of every search and fine-tuning."""

from _common import (
    add_data_options,
    add_model_options,
    add_run_options,
    add_training_options,
    build_model,
    check_unchanged,
    find_device,
    load_float_weights,
    loaders_of,
    logger,
    make_parser,
    rate_of,
    resume_hint,
    resume_training,
    run,
    settings,
    training_folder,
)


def make_pretrain_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='resnet50')
    add_data_options(parser, batch=256)
    add_training_options(parser, lr=0.1, weight_decay=1e-4)
    add_run_options(parser)
    return parser


def main(args):
    """Trains, or evaluates with --evaluate."""
    import torch

    from lib.utils.checkpoint import load_weights, read_checkpoint, state_dict_of
    from lib.utils.fit import fit, write_results
    from lib.utils.run_folder import check_folder, open_run
    from lib.utils.train import Precision, evaluate, loss_function

    saved = read_checkpoint(args.resume) if args.resume else None
    folder = training_folder(args)
    if not args.evaluate:
        check_unchanged(args, allowed=('epochs',))
        check_folder(folder, resume=bool(saved), overwrite=args.overwrite)
    device = find_device(args.device)
    train_loader, val_loader, classes = loaders_of(args, device)
    model = build_model(args, classes, device)
    if saved:
        load_weights(model, state_dict_of(saved, args.resume), args.resume)
    elif args.weights or args.pretrained:
        load_float_weights(model, args)
    precision = Precision(device, args.half)
    if args.evaluate:
        metrics = evaluate(model, val_loader, loss_function(), device, precision=precision)
        logger.info('%s on %s: top-1 %.2f %%  top-5 %.2f %%  loss %.4f', args.arch, args.dataset, metrics.top1,
                    metrics.top5, metrics.loss)
        return
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    open_run(folder, settings(args), resume=bool(saved))
    progress = resume_training(saved, optimizer, precision) if saved else {'start_epoch': args.start_epoch}
    metrics, best = fit(model, (train_loader, val_loader), optimizer, folder, epochs=args.epochs, rate=rate_of(args),
                        device=device, precision=precision, seed=args.seed, **progress,
                        about={'arch': args.arch, 'dataset': args.dataset})
    metrics = metrics or evaluate(model, val_loader, loss_function(), device, precision=precision)
    write_results(folder, metrics, best, arch=args.arch, dataset=args.dataset, quantization='float', ratio=1.0)
    logger.info('float %s: top-1 %.2f %% (best %.2f %%); weights in %s', args.arch, metrics.top1, best,
                folder / 'checkpoint.pth.tar')


if __name__ == '__main__':
    run(main, make_pretrain_parser(), resume_hint)
