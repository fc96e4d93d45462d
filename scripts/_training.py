"""The course of a training, shared by the scripts that train: what it begins with, goes on from, and leaves."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _cli import Run
from _networks import Network, build_model
from _resume import Beginning, begin_run, check_identity, check_unchanged, has_settings, inputs_of, may_have_moved
from _setup import loaders_of
from _weights import Start, read_weights

from lib.record.checkpoint import load_weights, read_checkpoint
from lib.record.folder import check_folder
from lib.record.strategy import save_strategy
from lib.runtime.distributed import is_main, on_main
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.distillation import Distillation
from lib.training.fit import fit, write_results
from lib.training.float_labels import FloatLabels
from lib.training.loop import Precision, evaluate, loss_function
from lib.training.settings import TrainingSettings

logger = logging.getLogger('haq')

FLOAT = 'float network'  # what labels are from that images do not have


def read_resumed(run, *, evaluate_only=False):
    """Return the checkpoint of --resume or None, after checking that the run may be written to its folder."""
    if not evaluate_only:
        check_unchanged(run)
        on_main(check_folder, run.folder, resume=bool(run.resume), overwrite=run.overwrite)
    saved = read_checkpoint(run.resume) if run.resume else None
    if saved is not None and not isinstance(saved, dict):
        raise ValueError(f'{run.resume} holds a {type(saved).__name__}, no checkpoint with weights')
    if saved:
        check_identity(run, saved, run.resume)
    return saved


def read_images(data, network, device, training=True, **labels):
    """Return ([training loader, if it is needed,] validation loader, number of classes)."""
    return loaders_of(data, network, device, splits=('train', 'val') if training else ('val',), **labels)


def calibration_images(data, network, loaders, device):
    """Return the first batch of training images, on `device`."""
    return training_loader(data, network, loaders, device).first_batch().to(device)


def training_loader(data, network, loaders, device, needs_labels=None):
    """Return the loader of training images, which an evaluation reads only here."""
    return loaders[0] if len(loaders) > 1 else loaders_of(data, network, device, needs_labels, splits=('train',))[0]


def with_float_labels(loaders, network, start, classes, device, trains):
    """Return the loaders, those of images without labels with the classes that the float network finds.

    Only one that `trains` reads labels of training images.

    Raises:
        ValueError, OSError: there are no float weights.
    """
    without = [loader for loader in (loaders if trains else loaders[-1:]) if not loader.labelled]
    if not without:
        return loaders
    try:
        model = float_network(network, start, classes, loaders[0].input_shape, device)
    except (ValueError, OSError) as error:
        error.args = (f'the images have no labels, so the network is compared with the float one: {error}',)
        raise
    return [FloatLabels(loader, model, device) if loader in without else loader for loader in loaders]


def about_labels(loader):
    """Return what results.json and the checkpoints say of a validation loader whose images have no labels."""
    return {} if loader.labelled else {'labels': FLOAT}


def about_run(network, data, shape, classes, **more):
    """Return what results.json and the checkpoints say of a run."""
    return {'arch': network.arch, **network.variant, 'dataset': data.dataset,
            'classes': network.num_classes or classes, 'input': list(shape),
            'attention_products': network.attention_products, **more}


def start_value(start, key, default=None):
    """Return an entry of the checkpoint that the run begins with, if it has it."""
    return start.get(key, default) if isinstance(start, dict) else default


def batches_to_estimate(run, batches, start):
    """Return on how many batches BatchNorm statistics are to be estimated; 0: a checkpoint has them already.

    One without a word of it belongs to the settings beside it.
    """
    theirs = run.changed.get('bn_batches', (batches,))[0] if has_settings(run) else 0
    return 0 if start_value(start, 'bn_batches', theirs) == batches else batches


@dataclass(frozen=True)
class Teaching:
    """What a training learns from beside labels; every field is the option of its name."""

    distill: str = 'none'
    distill_temperature: float = 4.0
    distill_weight: float = 1.0
    teacher: str | None = None
    teacher_weights: str | None = None

    def __post_init__(self):
        if self.distill == 'none' and (self.teacher or self.teacher_weights):
            raise ValueError('--teacher and --teacher_weights belong to --distill float: add it, or leave them out')
        if self.teacher and not self.teacher_weights:
            raise ValueError(f'--teacher {self.teacher} needs float weights of its own: give --teacher_weights')

    @property
    def needs_no_labels(self):
        """Whether the teacher alone is learned from."""
        return self.distill != 'none' and self.distill_weight == 1

    def begin(self, network, start, classes, shape, device):
        """Return the `Distillation`, None: none is asked for.

        The teacher is built from the options, whether the run begins or is resumed: it is always the same.

        Raises:
            ValueError, OSError: its weights are not there, not float, or of another network.
        """
        if self.distill == 'none':
            return None
        if self.teacher:
            network = Network(self.teacher, num_classes=network.num_classes, tensorflow=network.tensorflow,
                              seed=network.seed)
        if self.teacher_weights:
            start = Start(self.teacher_weights, resume=start.resume)
        try:
            teacher = float_network(network, start, classes, shape, device,
                                    option='teacher_weights' if self.teacher_weights else 'weights')
        except (ValueError, OSError) as error:
            error.args = (f'--distill {self.distill}: {error}',)
            raise
        return Distillation(teacher, self.distill_temperature, self.distill_weight)


def float_network(network, start, classes, shape, device, option='weights'):
    """Return the network with the float weights that a run begins with, or that another `option` names.

    Raises:
        ValueError, OSError: they are not there, or not float.
    """
    resume, start = start.resume, replace(start, resume=None)
    with may_have_moved(resume, option, start.weights):
        checkpoint, source = read_weights(start, network)
    if checkpoint is None and not network.model_file:
        raise ValueError('there are no float weights to begin with: give --weights or --pretrained')
    kind = start_value(checkpoint, 'quantization', 'float')
    if kind != 'float':
        raise ValueError(f'{source} is a checkpoint of a {kind} network, no float one: give weights as pretrain.py '
                         'makes them')
    if start.reset_classifier:
        raise ValueError('the classifier of the float network would be random: leave --reset_classifier out, and train '
                         'the float network first')
    model = build_model(network, classes, shape, device)
    if checkpoint is not None:
        load_weights(model, start.find(model, checkpoint, source).state_dict, source)
    return model


@dataclass(frozen=True)
class Course:
    """A training of a script, or an evaluation alone.

    Attributes:
        run: the `Run` that it writes.
        settings: the `TrainingSettings`; None of an evaluation.
        device, precision: where and in which arithmetic the network runs.
        about: what results.json and the checkpoints say of it, with 'arch' and 'dataset'.
        saved: the checkpoint to resume, or None.
        estimate: batches on which an evaluation estimates BatchNorm statistics.
        costs: the `CostTable`s that price the strategy.
        published: file of published weights that it begins with, or None.
        rate: learning rate as a function of the epoch; None: that of the settings.
        start_epoch: of a new training.
        distillation: what the network learns from beside labels; None: nothing.
    """

    run: Run
    settings: TrainingSettings | None
    device: torch.device
    precision: Precision
    about: dict
    saved: dict | None = None
    estimate: int = 0
    costs: tuple = ()
    published: Path | None = None
    rate: Callable[[int], float] | None = None
    start_epoch: int = 0
    distillation: Distillation | None = None

    def train(self, model, loaders, quantization):
        """Train and evaluate, or only evaluate; return the `Metrics` of the last epoch.

        Args:
            model: the network, with the weights to begin with.
            loaders: (training loader, validation loader), or of an evaluation the latter alone.
            quantization: `Quantization` of the model.
        """
        metrics, best = None, -1.0
        if self.settings:
            metrics, best = self._fit(model, loaders, quantization)
        if metrics is None:
            if self.estimate:
                reestimate_batch_norm(model, loaders[0], self.estimate, self.device, self.precision)
            metrics = evaluate(model, loaders[-1], loss_function(), self.device, precision=self.precision)
        if self.settings and is_main():
            write_results(self.run.folder, metrics, max(best, metrics.top1), **quantization.describe(), **self.about)
        logger.info('%s on %s: top-1 %.2f %%  top-5 %.2f %%  loss %.4f%s', self.about['arch'], self.about['dataset'],
                    metrics.top1, metrics.top5, metrics.loss,
                    ' (agreement with the float network: the images have no labels)' * ('labels' in self.about))
        return metrics

    def _fit(self, model, loaders, quantization):
        optimizer = self.settings.optimizer(quantization.parameters(), model)
        average, progress = self.settings.average(quantization), {'start_epoch': self.start_epoch}
        if self.saved:
            progress = resume_training(self.run.resume, self.saved, quantization.kind, optimizer, self.precision,
                                       average)
            check_epochs(self.run.resume, progress['start_epoch'], self.settings.epochs)
        if self.distillation and not self.saved:
            theirs = evaluate(self.distillation.teacher, loaders[-1], loss_function(), self.device,
                              precision=self.precision)
            logger.info('--distill float: the teacher has top-1 %.2f %%', theirs.top1)
        identity = on_main(self._begin, quantization.strategy, loaders)
        with remedy(self.run.folder, self.settings.lr):
            return fit(model, loaders, self.settings, folder=self.run.folder, optimizer=optimizer, rate=self.rate,
                       device=self.device, precision=self.precision, quantization=quantization,
                       about={**self.about, **identity}, average=average,
                       distillation=self.distillation, **progress)

    def _begin(self, strategy, loaders):
        """Open the folder and save the strategy of layers; return what checkpoints say of the run."""
        counts = [loader.num_images for loader in loaders]
        inputs = inputs_of(self.run, ('train', 'val'), counts=counts, costs=self.costs, published=self.published)
        unread = () if self.distillation and not self.run.settings.get('teacher_weights') else ('weights',)
        identity = begin_run(self.run, Beginning(inputs, strategy, unread, start_value(self.saved, 'run')))
        if 'layers' in self.about:  # else it is none of layers, and args.json has it
            about = {key: value for key, value in self.about.items() if key != 'layers'}
            save_strategy(self.run.folder, strategy, self.about['layers'], **about)
        return {'run': identity, 'bn_batches': self.settings.bn_batches} if identity else {}


@contextlib.contextmanager
def remedy(folder, lr):
    """Add to the error of a training that diverges what can be done."""
    try:
        yield
    except FloatingPointError as error:
        last = folder / 'checkpoint.pth.tar'
        error.args = (f'{error}; --resume would come to it again: start another run with an --lr below {lr:g}'
                      + (f', if you like from the last epoch, --weights {last}' if last.is_file() else ''),)
        raise


def check_moments(optimizer):
    """Raise ValueError where the optimizer was loaded with tensors that are not of the shapes of its parameters."""
    for parameter, state in optimizer.state.items():
        for name, tensor in state.items():
            if getattr(tensor, 'shape', ()) and tensor.shape != parameter.shape:
                raise ValueError(f'{name} of the optimizer has shape {tuple(tensor.shape)} for a parameter of shape '
                                 f'{tuple(parameter.shape)}')


def resume_training(path, saved, kind, optimizer, precision, average=None):
    """Give the optimizer, and an average, the saved state; return where `fit` starts and the best accuracy so far.

    Raises:
        ValueError: the checkpoint does not hold what training goes on from.
    """
    found = saved.get('quantization', kind)
    if found != kind:
        script = {'float': 'pretrain.py', 'qat': 'qat_train.py', 'hybrid': 'hybrid_train.py'}.get(found, 'finetune.py')
        raise ValueError(f'{path} is the checkpoint of a {found} training, this is a {kind} one: continue '
                         f'it with {script} as it was started, or start a new run from its weights with --weights')
    try:
        optimizer.load_state_dict(saved['optimizer'])
        check_moments(optimizer)
        if precision.scaler.is_enabled():
            precision.scaler.load_state_dict(saved['scaler'])
        if average:
            average.restore(saved['ema'])
        done, best = saved['epoch'], saved['best_acc']
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f'{path} is no checkpoint that this training can go on from ({error}): evaluate it '
                         'with --eval, or start a new run from its weights with --weights') from error
    return {'start_epoch': done, 'best': best}


def check_epochs(path, done, epochs):
    """Raise ValueError where more epochs are done than are asked for."""
    if done > epochs:
        raise ValueError(f'{path} has {done} epochs already, --epochs {epochs} are fewer: give at least {done}, or '
                         'start another run')
