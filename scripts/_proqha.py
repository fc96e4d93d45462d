"""The command lines of ProQHA: its names of networks and options, in its search and in its two baselines."""

import argparse
import os
from pathlib import Path

from _cli import ROOT
from _options import BooleanOption as Bool
from _options import RepositoryPath, at_least, fraction, positive

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

    What has another form here gets it from `parser.translate`.
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
    group.add_argument('--clip', action=Bool, help='clip the norm of the gradient at --grad_clip')
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
    parser.translate = lambda args, complete: [
        *start_from_resumed(args, archtype), *(translate(parser, args, archtype, unused) if complete else [])]


# ---- what they mean here

def translate(parser, args, archtype, unused):
    """Give the options of main/train.py the form that they have here, in place; returns the lines that say so."""
    if args.archtype not in (None, archtype):
        parser.error(f'--archtype {args.archtype}: that baseline is trained by {BASELINES[args.archtype]}, this script '
                     f'trains {archtype}')
    theirs = args.arch + (f' of {args.num_layers} layers' if args.num_layers else '')
    try:
        name, args.num_layers = find_network(args), None
    except ValueError as error:
        parser.error(str(error))
    said = [f'{theirs}: {name}'] if name != args.arch else []
    args.arch = name
    if args.schedule is None:
        args.schedule = [max(args.epochs // 2, 1), max(args.epochs * 3 // 4, 1)]
    name_folder(parser, args, archtype)
    said += say_unused(args, unused)
    if getattr(args, 'pre_k_bits', None) and args.ratio == 1:
        said += ['without effect: --pre_k_bits, for with a --ratio of 1 all quantizers have --k_bits']
    return said


def name_folder(parser, args, archtype):
    """Name the folder of a run after --job_dir and --mission; that of one to resume is where it is."""
    if (args.job_dir or args.mission) and not args.resume:
        if not isinstance(args.checkpoint, RepositoryPath):
            parser.error(f'--checkpoint {args.checkpoint} and --job_dir or --mission: give one of them')
        name = f'{args.arch}_{args.dataset}_{archtype}' + (f'_{args.mission}' if args.mission else '')
        args.checkpoint = str(Path(args.job_dir) / name) if args.job_dir else RepositoryPath(f'{RUNS}/{name}')
    args.job_dir = args.mission = None


def start_from_resumed(args, archtype):
    """Take a --resume that holds no quantized training as --weights, as main/train.py does; returns what to say."""
    if archtype != 'quant' or not args.archtype or not args.resume or args.evaluate:
        return []
    from lib.record.checkpoint import read_checkpoint  # it imports torch
    try:
        saved = read_checkpoint(args.resume)
    except (ValueError, OSError):
        return []  # who resumes it says what is wrong
    if isinstance(saved, dict) and 'qat' in saved:
        return []
    args.weights, args.resume = args.resume, None
    return [f'--resume {args.weights} is no quantized training: its weights are what this one starts from']


def start_from_file(args):
    """Take a --resume that is a file as --weights, as main/search.py does; returns what is to be said of it."""
    if not args.resume or not os.path.isfile(args.resume):
        return []
    args.weights, args.resume = args.resume, None
    return [f'--resume {args.weights} is a checkpoint: a new search starts from it']


def say_unused(args, no_effect):
    """Take the options without effect that were given out of `args`; returns a line about them, if any."""
    given = [name for name in no_effect if getattr(args, name, None) is not None]
    for name in given:
        delattr(args, name)
    return [f'without effect: {", ".join(f"--{name} ({no_effect[name]})" for name in given)}'] if given else []


def training_defaults(args, _parser):
    """Return the defaults that --archtype gives, as {option: value}."""
    return dict(DEFAULTS) if args.archtype else {}


# ---- networks

def find_network(args):
    """Return the registered name of the network that --arch and --num_layers mean.

    Raises:
        ValueError: there is no such network.
    """
    from lib.utils.data_utils import dataset_spec  # it imports torch, and most command lines end here
    depth = args.num_layers or DEPTHS.get(args.arch)
    if args.model_file or depth is None and args.arch not in ('vgg',):
        return args.arch
    side = args.image_size or (dataset_spec(args.dataset).resolution if not args.dataset_file else SMALL + 1)
    known = networks(small=side <= SMALL).get(args.arch)
    if not known:
        raise ValueError(f'--num_layers {depth} belongs to --arch {", ".join(DEPTHS)}: leave it out with {args.arch}')
    if depth not in known:
        raise ValueError(f'--arch {args.arch} needs --num_layers {"/".join(map(str, known))}'
                         + (f', got {depth}' if depth else ''))
    return known[depth]


def networks(small):
    """Return {the original's name: {depth: registered name}}, for `small` images or those of ImageNet."""
    resnets = {18: 'postresnet18', 34: 'preresnet34', 50: 'preresnet50'}
    if small:
        resnets = {depth: f'preresnet{depth}_cifar' for depth in resnets}
    resnets |= {depth: f'preresnet{depth}' for depth in (20, 32, 56, 101, 110, 152)}
    return {'resnet': dict(sorted(resnets.items())), 'resnet20': {20: 'preresnet20'},
            'vgg': {depth: f'prevgg{depth}' for depth in (11, 16, 19)}, 'densenet': {40: 'densenet40'},
            'mobilenetv2': {52: 'premobilenetv2' if small else 'premobilenetv2_imagenet'}}
