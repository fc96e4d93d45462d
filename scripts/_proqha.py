"""The command lines of ProQHA: its names of networks and options, in its search and in its two baselines."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from _cli import ROOT
from _option_types import BooleanOption as Bool
from _option_types import RepositoryPath, at_least, fraction, positive

DEPTHS = {'resnet': 56, 'resnet20': None, 'vgg': None, 'densenet': 40, 'mobilenetv2': None}  # where none is given
SMALL = 64  # images up to this side are those of CIFAR and its like
ALIASES = {'data_dir': 'dataset_root', 'train_batch_size': 'train_batch', 'eval_batch_size': 'test_batch',
           'gpus': 'gpu_id', 'reset': 'overwrite'}
NO_EFFECT = {'base_data_dir': 'the images are those of --data', 'print_freq': 'every epoch is reported',
             'batchnorm': 'VGG always has it', 'cutout': 'there is no such augmentation'}
OF_THE_SEARCH = dict.fromkeys(('info', 'interval', 'cost', 'step', 'lam', 'search_epochs'),
                              'it belongs to progressive_search.py')
OF_ADAM = dict.fromkeys(('beta1', 'beta2', 'epsilon'), 'the optimizer is SGD')
OF_BITS = dict.fromkeys(('k_bits', 'pre_k_bits', 'ratio'), 'the network stays float')
BASELINES = {'origin': 'pretrain.py', 'quant': 'qat_train.py'}
# What main/train.py trains with where its command line says nothing else; `schedule` follows the epochs.
DEFAULTS = {'arch': 'resnet', 'dataset': 'cifar10', 'epochs': 300, 'train_batch': 128, 'test_batch': 100, 'lr': 0.1,
            'weight_decay': 2e-4, 'lr_type': 'step3', 'schedule': None}
PRE_K_BITS = 8
CONFIG = ROOT / 'run' / 'progressive' / 'config.py'
RUNS = RepositoryPath('checkpoints/progressive')


# ---- options

def add_depth_option(group):
    """Add --num_layers."""
    group.add_argument('--num_layers', type=at_least(1), help="depth of ProQHA's network of that --arch: resnet "
                       '18/20/32/34/50/56/101/110/152, resnet20 20, vgg 11/16/19, densenet 40, mobilenetv2 52; every '
                       'other name is given without it (default: 56 of resnet, 40 of densenet)')


def add_historic_options(group, aliases, no_effect):
    """Add other names of options, {name: option}, and options without effect, which --help leaves out."""
    for name, other in aliases.items():
        kind = {'action': Bool} if name in ('reset', 'test_only') else {}
        kind |= {'type': at_least(1)} if name.endswith(('size', 'epochs')) else {}
        group.add_argument(f'--{name}', dest=other, default=argparse.SUPPRESS, help='the same as '
                           f'--{"data" if other == "dataset_root" else other}', **kind)
    for name in no_effect:
        group.add_argument(f'--{name}', default=argparse.SUPPRESS, nargs='?', const=True, help=argparse.SUPPRESS)


def add_baseline_options(parser, archtype):
    """Add the options of main/train.py to the script that trains its float ('origin') or quantized ('quant') baseline.

    What has another form here gets it from `parser.translation`.
    """
    group = parser.add_argument_group("for command lines of ProQHA's main/train.py (docs/progressive.md)")
    add_depth_option(group)
    other = BASELINES['quant' if archtype == 'origin' else 'origin']
    group.add_argument('--archtype', choices=list(BASELINES), help=f'{archtype}: the training of main/train.py, with '
                       f'its defaults and its schedule, in place of those here; the other one is that of {other} '
                       '(default: the defaults here)')
    group.add_argument('--job_dir', help='folder that holds the folders of runs, <network>_<data set>_'
                       f'{archtype}[_<mission>], instead of --checkpoint (default: {RUNS}, if --mission is given)')
    group.add_argument('--mission', help='appended to the name of that folder (default: nothing)')
    group.add_argument('--clip', action=Bool, help='clip the norm of the gradient at --grad_clip, as '
                       '--clip_norm does')
    group.add_argument('--grad_clip', type=positive, default=5.0, help='--clip: largest norm of the gradient')
    unused = {**NO_EFFECT, 'eval_freq': 'every epoch is evaluated', **OF_THE_SEARCH, **OF_ADAM}
    if archtype == 'origin':
        unused |= OF_BITS
    else:
        group.add_argument('--pre_k_bits', type=at_least(1), help='with a --ratio below 1: bits of the other '
                           f'quantizers (default: {PRE_K_BITS})')
        group.add_argument('--ratio', type=fraction, default=1.0, help='random fraction of the quantizers that has '
                           '--k_bits, the others have --pre_k_bits')
    add_historic_options(group, {**ALIASES, 'train_epochs': 'epochs', 'test_only': 'evaluate'}, unused)
    parser.no_effect, parser.translation = unused, {'origin': Origin, 'quant': Quant}[archtype]


# ---- what they mean here

@dataclass(frozen=True)
class NamedNetwork:
    """A network as ProQHA names it; every field is the option of its name."""

    arch: str
    dataset: str
    num_layers: int | None = None
    model_file: str | None = None
    dataset_file: str | None = None
    image_size: int | None = None

    @property
    def registered(self):
        """Name of the network here.

        Raises:
            ValueError: there is no such network.
        """
        from lib.utils.data_utils import dataset_spec  # it imports torch, and most command lines end here
        depth = self.num_layers or DEPTHS.get(self.arch)
        if self.model_file or depth is None and self.arch not in ('vgg',):
            return self.arch
        side = self.image_size or (dataset_spec(self.dataset).resolution if not self.dataset_file else SMALL + 1)
        known = networks(small=side <= SMALL).get(self.arch)
        if not known:
            raise ValueError(f'--num_layers {depth} belongs to --arch {", ".join(DEPTHS)}: leave it out with '
                             f'{self.arch}')
        if depth not in known:
            raise ValueError(f'--arch {self.arch} needs --num_layers {"/".join(map(str, known))}'
                             + (f', got {depth}' if depth else ''))
        return known[depth]


@dataclass(frozen=True)
class Translation:
    """A command line of ProQHA; every field is the option of its name."""

    weights: str | None = None
    resume: str | None = None

    def begin(self):
        """Return ({option: its value here}, lines that say so) of what is to be resumed."""
        return {}, []

    def rest(self):
        """Return the same of everything else.

        Raises:
            ValueError: options contradict each other.
        """
        return {}, []


class Search(Translation):
    """A command line of main/search.py, whose --resume may be a checkpoint."""

    def begin(self):
        if not self.resume or not os.path.isfile(self.resume):
            return {}, []
        return ({'weights': self.resume, 'resume': None},
                [f'--resume {self.resume} is a checkpoint: a new search starts from it'])


@dataclass(frozen=True, kw_only=True)
class Baseline(Translation, NamedNetwork):
    """A command line of main/train.py, or one of the script that trains this baseline."""

    ours: ClassVar[str]
    epochs: int
    checkpoint: str
    archtype: str | None = None
    schedule: list | None = None
    job_dir: str | None = None
    mission: str | None = None

    def rest(self):
        if self.archtype not in (None, self.ours):
            raise ValueError(f'--archtype {self.archtype}: that baseline is trained by {BASELINES[self.archtype]}, '
                             f'this script trains {self.ours}')
        theirs = self.arch + (f' of {self.num_layers} layers' if self.num_layers else '')
        name = self.registered
        said = [f'{theirs}: {name}'] if name != self.arch else []
        schedule = self.schedule or [max(self.epochs // 2, 1), max(self.epochs * 3 // 4, 1)]
        return {'arch': name, 'num_layers': None, 'schedule': schedule, 'checkpoint': self.folder(name),
                'job_dir': None, 'mission': None}, said

    def folder(self, name):
        """Return the folder of the run, named after --job_dir and --mission; that of one to resume is where it is."""
        if self.resume or not (self.job_dir or self.mission):
            return self.checkpoint
        if not isinstance(self.checkpoint, RepositoryPath):
            raise ValueError(f'--checkpoint {self.checkpoint} and --job_dir or --mission: give one of them')
        name = f'{name}_{self.dataset}_{self.ours}' + (f'_{self.mission}' if self.mission else '')
        return str(Path(self.job_dir) / name) if self.job_dir else RepositoryPath(f'{RUNS}/{name}')


class Origin(Baseline):
    """A command line of the float baseline."""

    ours = 'origin'


@dataclass(frozen=True, kw_only=True)
class Quant(Baseline):
    """A command line of the quantized baseline, whose --resume may be a network without quantizers."""

    ours = 'quant'
    evaluate: bool = False
    pre_k_bits: int | None = None
    ratio: float = 1.0

    def begin(self):
        if not self.archtype or not self.resume or self.evaluate:
            return {}, []
        from lib.record.checkpoint import read_checkpoint  # it imports torch
        try:
            saved = read_checkpoint(self.resume)
        except (ValueError, OSError):
            return {}, []  # who resumes it says what is wrong
        if isinstance(saved, dict) and 'qat' in saved:
            return {}, []
        return ({'weights': self.resume, 'resume': None},
                [f'--resume {self.resume} is no quantized training: its weights are what this one starts from'])

    def rest(self):
        changes, said = super().rest()
        if self.pre_k_bits and self.ratio == 1:
            said += ['without effect: --pre_k_bits, for with a --ratio of 1 all quantizers have --k_bits']
        return changes, said


def norm_of(clip_norm, clip, grad_clip):
    """Return the largest norm of the gradient, by the options of these names; None: no limit."""
    if clip and clip_norm:
        raise ValueError(f'--clip_norm {clip_norm:g} and --clip, which clips at --grad_clip {grad_clip:g}: give one of '
                         'them')
    return grad_clip if clip else clip_norm


def networks(small):
    """Return {the original's name: {depth: registered name}}, for `small` images or those of ImageNet."""
    resnets = {18: 'postresnet18', 34: 'preresnet34', 50: 'preresnet50'}
    if small:
        resnets = {depth: f'preresnet{depth}_cifar' for depth in resnets}
    resnets |= {depth: f'preresnet{depth}' for depth in (20, 32, 56, 101, 110, 152)}
    return {'resnet': dict(sorted(resnets.items())), 'resnet20': {20: 'preresnet20'},
            'vgg': {depth: f'prevgg{depth}' for depth in (11, 16, 19)}, 'densenet': {40: 'densenet40'},
            'mobilenetv2': {52: 'premobilenetv2' if small else 'premobilenetv2_imagenet'}}
