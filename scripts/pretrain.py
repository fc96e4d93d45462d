"""Trains a float network: the starting point of every search and fine-tuning."""

from _common import (
    add_data_options,
    add_model_options,
    add_run_options,
    add_training_options,
    make_parser,
    run,
)
from _setup import build_model, find_device, loaders_of
from _training import load_start, read_resumed, resume_hint, train


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
    from lib.utils.quantize_utils import Quantization

    saved = read_resumed(args)
    if args.evaluate and not (saved or args.weights or args.pretrained):
        raise ValueError('--eval: give the weights to evaluate by --resume, --weights or --pretrained')
    device = find_device(args.device)
    *loaders, classes = loaders_of(args, device)
    model = build_model(args, classes, device)
    load_start(args, model, saved)
    train(args, model, loaders, saved, device, quantization=Quantization(model),
          about={'arch': args.arch, 'dataset': args.dataset, 'ratio': 1.0})


if __name__ == '__main__':
    run(main, make_pretrain_parser(), resume_hint)
