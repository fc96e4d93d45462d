"""Trains a float network: the starting point of every search and fine-tuning."""

from _common import make_parser, run
from _options import add_data_options, add_model_options, add_run_options, add_training_options
from _proqha import add_baseline_options, training_defaults
from _setup import build_model, start_device
from _training import about_run, read_images, read_resumed, read_start, resume_hint, train
from _weights import prepare, say_own_weights


def make_pretrain_parser():
    """Returns the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='resnet50')
    add_data_options(parser, batch=256)
    add_training_options(parser, lr=0.1, weight_decay=1e-4)
    add_run_options(parser)
    add_baseline_options(parser, 'origin')
    return parser


def main(args):
    """Trains, or evaluates with --evaluate."""
    from lib.utils.quantize_utils import Quantization

    device, saved = start_device(args), read_resumed(args)
    if args.evaluate and not (saved or args.weights or args.pretrained or args.model_file):
        raise ValueError('--eval: give the weights to evaluate by --resume, --weights or --pretrained')
    *loaders, classes = read_images(args, device)
    shape = loaders[0].input_shape
    model = build_model(args, classes, shape, device, loaders)
    start, source = read_start(args, saved)
    if args.evaluate and start is None:
        say_own_weights(args)
    prepare(args, model, shape, start, source, linear=False)
    train(args, model, loaders, saved, device, quantization=Quantization(model),
          about=about_run(args, loaders, classes, ratio=1.0))


if __name__ == '__main__':
    run(main, make_pretrain_parser(), resume_hint, configure=training_defaults)
