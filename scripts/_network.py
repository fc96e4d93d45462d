"""A network by its name or file and the shapes of its layers, for the scripts that need neither weights nor data."""

import argparse

from _common import at_least, positive
from _setup import float_name, image_size


def input_shape(text):
    """Option type: `224`, or `1x28x28` for (channels, height, width)."""
    try:
        sizes = [int(size) for size in text.lower().split('x')]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f'{text}: expected a side such as 224, or channels x height x width such as '
                                         '1x28x28')
    return tuple(sizes) if len(sizes) == 3 else (3, sizes[0], sizes[0])


def add_network_options(parser, dataset):
    """Adds the options that choose a network and its input, without weights or data."""
    group = parser.add_argument_group('network')
    group.add_argument('-a', '--arch', default='qmobilenetv2', help='name of the network; the q of a quantized twin '
                       'makes no difference')
    group.add_argument('--model_file', metavar='FILE.py:build', help='a network of your own instead: a function that '
                       'returns an nn.Module; it gets num_classes if it takes it')
    group.add_argument('--dataset', '--data_name', default=dataset, help='data set that gives image size and number '
                       'of classes')
    group.add_argument('--input_size', '--image_size', dest='input_size', type=input_shape, metavar='N|CxHxW',
                       help="side of the images, or channels x height x width (default: the data set's, 299 for the "
                       'inception family)')
    group.add_argument('--num_classes', type=at_least(1), help='outputs of the network (default: from the data set; '
                       '1000 for imagenet, imagenet100 and imagenet10)')
    group.add_argument('--width_mult', type=positive, default=1.0, help='width multiplier of the MobileNets')
    group.add_argument('--mode', choices=['small', 'large'], help='size of mobilenetv3 (default: small)')
    return group


def finish_network_options(args):
    """Derives from the options what others read: `arch` of an own model, and `image_size` where it is not the usual."""
    if args.model_file:
        args.arch = args.model_file.rpartition(':')[2]
    from lib.utils.data_utils import dataset_spec
    args.image_size = None
    if args.input_size:
        channels, height, width = args.input_size
        plain = channels == 3 and height == width
        args.image_size = height if plain else 'x'.join(map(str, args.input_size))
    if args.input_size:
        return args.input_size
    side = dataset_spec(args.dataset).resolution if args.model_file else image_size(args)
    return 3, side, side


def build_network(args):
    """Returns the network of the options, with random weights."""
    import models
    from lib.utils.data_utils import num_classes
    from lib.utils.user_code import load_model
    if args.dataset == 'folder' and not args.num_classes:
        raise ValueError('--dataset folder says nothing about the number of classes here: give --num_classes')
    classes = args.num_classes or num_classes(args.dataset)
    if args.model_file:
        return load_model(args.model_file, classes)
    options = {'mode': args.mode} if args.mode else {}
    return models.create_model(float_name(args.arch), num_classes=classes, width_mult=args.width_mult, **options)


def describe_network(args, shape):
    """Returns (number of parameters, `LayerRecord` of every quantizable layer) of the network of the options.

    Raises:
        ValueError: the network is unknown, does not take this input, or has no convolution or linear layer.
    """
    from lib.utils.profile import profile_layers
    model = build_network(args)
    if not args.model_file:
        model = model.to('meta')  # shapes are all that counts: nothing is computed
    records = profile_layers(model, shape)
    if not any(record.calls for record in records):
        raise ValueError(f'{args.arch} has no convolution or linear layer that its forward pass calls')
    return sum(parameter.numel() for parameter in model.parameters()), records
