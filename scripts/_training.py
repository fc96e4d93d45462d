"""The course of a training, shared by pretrain.py and finetune.py."""

import contextlib
from pathlib import Path

from _common import logger
from _resume import begin_run, check_identity, check_unchanged, has_settings, inputs_of
from _setup import loaders_of
from _weights import read_weights

GROWING = ('epochs',)  # what a resumed training may change


def read_resumed(args):
    """Returns the checkpoint of --resume or None, after checking that the run may be written to its folder."""
    from lib.record.checkpoint import read_checkpoint
    from lib.record.folder import check_folder
    from lib.runtime.distributed import on_main
    if not args.evaluate:
        check_unchanged(args, allowed=GROWING)
        on_main(check_folder, training_folder(args), resume=bool(args.resume), overwrite=args.overwrite)
    saved = read_checkpoint(args.resume) if args.resume else None
    if saved is not None and not isinstance(saved, dict):
        raise ValueError(f'{args.resume} holds a {type(saved).__name__}, no checkpoint with weights')
    if saved:
        check_identity(args, saved, args.resume)
    return saved


def read_start(args, saved):
    """Returns (checkpoint, where it is from) of the weights to begin with; (None, None): they stay random."""
    return (saved, args.resume) if saved else read_weights(args, args.pretrained)


def read_images(args, device, start=None):
    """Returns (training loader, validation loader, number of classes), and of an evaluation no training loader.

    An evaluation that estimates BatchNorm statistics does have one; `start` is the checkpoint of its weights.
    """
    needed = not args.evaluate or to_estimate(args, start)
    return loaders_of(args, device, splits=('train', 'val') if needed else ('val',))


def calibration_images(args, loaders, device):
    """Returns the first batch of training images, on `device`; an evaluation reads them only here."""
    training = loaders[0] if len(loaders) > 1 else loaders_of(args, device, splits=('train',))[0]
    return training.first_batch().to(device)


def about_run(args, loaders, classes, **more):
    """Returns what results.json and the checkpoints say of a run."""
    return {'arch': args.arch, 'dataset': args.dataset, 'classes': args.num_classes or classes,
            'input': list(loaders[0].input_shape), **more}


def to_estimate(args, start):
    """Returns on how many batches BatchNorm statistics are to be estimated; 0: a checkpoint has them already.

    One without a word of it belongs to the settings beside it.
    """
    batches = getattr(args, 'bn_batches', 0)
    theirs = args.changed.get('bn_batches', (batches,))[0] if has_settings(args) else 0
    return 0 if start_value(start, 'bn_batches', theirs) == batches else batches


def start_value(start, key, default=None):
    """Returns an entry of the checkpoint that the run begins with, if it has it."""
    return start.get(key, default) if isinstance(start, dict) else default


def train(args, model, loaders, saved, device, *, quantization, about, rate=None, costs=(), start=None, **options):
    """Trains and evaluates, or only evaluates with --evaluate; returns the `Metrics` of the last epoch.

    Args:
        args: the options.
        model: the network, with the weights to begin with.
        loaders: (training loader, validation loader), or of an evaluation the latter alone.
        saved: checkpoint to resume, or None.
        device: where the model is.
        quantization: `Quantization` of the model.
        about: what results.json and the checkpoints say of the run.
        rate: learning rate as a function of the epoch; that of the options by default.
        costs: the `CostTable`s that price the strategy.
        start: checkpoint of the weights to begin with.
        options: further ones of `fit`.
    """
    from lib.runtime.distributed import is_main, on_main
    from lib.training.batch_norm import reestimate_batch_norm
    from lib.training.fit import fit, write_results
    from lib.training.loop import Precision, evaluate, loss_function

    precision, folder = Precision(device, args.half, args.channels_last), training_folder(args)
    metrics, best = None, -1.0
    if not args.evaluate:
        optimizer = make_optimizer(args, quantization.parameters())
        progress = {'start_epoch': getattr(args, 'start_epoch', 0)}
        if saved:
            progress = resume_training(args, saved, quantization.kind, optimizer, precision)
            check_epochs(args, progress['start_epoch'])
        identity = on_main(begin, args, folder, quantization.strategy, about, loaders, costs, start_value(saved, 'run'))
        with remedy(args, folder):
            metrics, best = fit(model, loaders, optimizer, folder, epochs=args.epochs, rate=rate or rate_of(args),
                                device=device, precision=precision, seed=args.seed, **progress,
                                quantization=quantization, about={**about, **identity},
                                bn_batches=getattr(args, 'bn_batches', 0), **options)
    if metrics is None:
        if args.evaluate and (batches := to_estimate(args, saved or start)):
            reestimate_batch_norm(model, loaders[0], batches, device, precision)
        metrics = evaluate(model, loaders[-1], loss_function(), device, precision=precision)
    if not args.evaluate and is_main():
        write_results(folder, metrics, max(best, metrics.top1), **quantization.describe(), **about)
    logger.info('%s on %s: top-1 %.2f %%  top-5 %.2f %%  loss %.4f', args.arch, args.dataset, metrics.top1,
                metrics.top5, metrics.loss)
    return metrics


def make_optimizer(args, parameters):
    """Returns the optimizer of the options, which clips the norm of the gradient first if they say so."""
    import torch
    if args.opt == 'adam':
        optimizer = torch.optim.Adam(parameters, lr=args.lr, betas=(0.5, 0.999), weight_decay=args.weight_decay)
    else:
        optimizer = torch.optim.SGD(parameters, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    def clip(*_):  # by then there is no factor of mixed precision in it any more
        torch.nn.utils.clip_grad_norm_(parameters, args.grad_clip)

    if getattr(args, 'clip', False):
        optimizer.register_step_pre_hook(clip)
    return optimizer


def begin(args, folder, strategy, about, loaders, costs, run):
    """Opens the folder of the run and saves the strategy of layers it trains under, if any.

    Returns:
        What checkpoints say of the run; {} of one without a record.
    """
    from lib.record.strategy import save_strategy
    counts = [loader.num_images for loader in loaders]
    inputs = inputs_of(args, ('train', 'val'), counts=counts, costs=costs, pretrained=args.pretrained)
    identity = begin_run(args, folder, inputs, strategy=strategy, growing=GROWING, unread=('weights',), run=run)
    if 'layers' in about:  # else it is none of layers, and args.json has it
        about_strategy = {key: value for key, value in about.items() if key != 'layers'}
        save_strategy(folder, strategy, about['layers'], **about_strategy)
    return {'run': identity, 'bn_batches': getattr(args, 'bn_batches', 0)} if identity else {}


@contextlib.contextmanager
def remedy(args, folder):
    """Adds to the error of a training that diverges what can be done."""
    try:
        yield
    except FloatingPointError as error:
        last = folder / 'checkpoint.pth.tar'
        error.args = (f'{error}; --resume would come to it again: start another run with an --lr below {args.lr:g}'
                      + (f', if you like from the last epoch, --weights {last}' if last.is_file() else ''),)
        raise


def training_folder(args):
    """Returns the folder of a training run: that of the checkpoint to resume, or --checkpoint."""
    return Path(args.resume).parent if args.resume else Path(args.checkpoint)


def rate_of(args):
    """Returns the learning rate as a function of the epoch."""
    from lib.utils.utils import learning_rate
    return lambda epoch: learning_rate(epoch, lr=args.lr, epochs=args.epochs, lr_type=args.lr_type,
                                       schedule=args.schedule, gamma=args.gamma, warmup_epoch=args.warmup_epoch,
                                       lr_min=args.lr_min)


def check_moments(optimizer):
    """Raises ValueError where the optimizer was loaded with tensors that are not of the shapes of its parameters."""
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if getattr(tensor, 'shape', ()) and tensor.shape != parameter.shape:
                raise ValueError(f'{name} of the optimizer has shape {tuple(tensor.shape)} for a parameter of shape '
                                 f'{tuple(parameter.shape)}')


def resume_training(args, saved, kind, optimizer, precision):
    """Gives the optimizer its saved state; returns where `fit` starts and the best accuracy so far.

    Raises:
        ValueError: the checkpoint does not hold what training goes on from.
    """
    found = saved.get('quantization', kind)
    if found != kind:
        script = {'float': 'pretrain.py', 'qat': 'qat_train.py', 'hybrid': 'hybrid_train.py'}.get(found, 'finetune.py')
        raise ValueError(f'{args.resume} is the checkpoint of a {found} training, this is a {kind} one: continue '
                         f'it with {script} as it was started, or start a new run from its weights with --weights')
    try:
        optimizer.load_state_dict(saved['optimizer'])
        check_moments(optimizer)
        if precision.scaler.is_enabled():
            precision.scaler.load_state_dict(saved['scaler'])
        done, best = saved['epoch'], saved['best_acc']
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{args.resume} is no checkpoint that this training can go on from ({error}): evaluate it '
                         'with --eval, or start a new run from its weights with --weights') from error
    return {'start_epoch': done, 'best': best}


def check_epochs(args, done):
    """Raises ValueError where more epochs are done than --epochs asks for."""
    if done > args.epochs:
        raise ValueError(f'{args.resume} has {done} epochs already, --epochs {args.epochs} are fewer: give at least '
                         f'{done}, or start another run')


def resume_hint(args):
    """Says how an interrupted training run goes on."""
    path = training_folder(args) / 'checkpoint.pth.tar'
    return f'continue with --resume {path}' if path.is_file() else 'no epoch was finished; start again with --overwrite'
