"""Trains a float network: the starting point of every search and fine-tuning."""

from _cli import make_parser, pick, run, training_hint, training_run
from _options import add_data_options, add_model_options, add_run_options, add_training_options
from _proqha import DEFAULTS, add_baseline_options, norm_of


def make_pretrain_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    add_model_options(parser, arch='resnet50')
    add_data_options(parser, batch=256)
    add_training_options(parser, lr=0.1, weight_decay=1e-4, least=1)
    add_run_options(parser)
    add_baseline_options(parser, 'origin')
    return parser


def configure(args, _parser):
    """Return the defaults that --archtype gives, as {option: value}."""
    return dict(DEFAULTS) if args.archtype else {}


def main(args):
    """Train, or evaluate with --evaluate."""
    from _networks import Network, build_model
    from _setup import Data, start_device
    from _training import Course, about_run, read_images, read_resumed
    from _weights import Start, prepare, published_file, read_weights, say_own_weights

    from lib.training.loop import Precision
    from lib.training.settings import TrainingSettings
    from lib.utils.quantize_utils import Quantization

    run, device = training_run(args), start_device(args.device)
    network, data, start = pick(Network, args), pick(Data, args), pick(Start, args)
    saved = read_resumed(run, evaluate_only=args.evaluate)
    if args.evaluate and not (saved or args.weights or args.pretrained or args.model_file):
        raise ValueError('--eval: give the weights to evaluate by --resume, --weights or --pretrained')

    # data
    *loaders, classes = read_images(data, network, device, training=not args.evaluate)
    shape = loaders[0].input_shape

    # network
    model = build_model(network, classes, shape, device, loaders)
    checkpoint, source = (saved, args.resume) if saved else read_weights(start, network)
    if args.evaluate and checkpoint is None:
        say_own_weights(network)
    prepare(model, shape, start, checkpoint, source, linear=False, sync_bn=args.sync_bn)

    # training
    settings = pick(TrainingSettings, args, grad_clip=norm_of(args.clip_norm, args.clip, args.grad_clip))
    course = Course(run, None if args.evaluate else settings, device, Precision(device, args.half, args.channels_last),
                    about_run(network, data, shape, classes, ratio=1.0), saved, start_epoch=args.start_epoch,
                    published=published_file(network) if args.pretrained else None)
    course.train(model, loaders, Quantization(model))


if __name__ == '__main__':
    run(main, make_pretrain_parser(), training_hint, configure=configure)
