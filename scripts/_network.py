"""A network by its name or file and the shapes of its layers, for the scripts that need neither weights nor data."""

import argparse
from typing import Any, NamedTuple

from _options import MAX_SIDE, add_architecture_options
from _setup import build_network, image_size


def input_shape(text):
    """Option type: `224`, or `1x28x28` for (channels, height, width)."""
    try:
        sizes = [int(size) for size in text.lower().split('x')]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 3) or min(sizes) < 1 or max(sizes) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f'{text:.60}: expected a side such as 224, or channels x height x width such '
                                         f'as 1x28x28, at most {MAX_SIDE} each')
    return tuple(sizes) if len(sizes) == 3 else (3, sizes[0], sizes[0])


def add_network_options(parser, dataset):
    """Adds the options that choose a network and its input, without weights or data."""
    group = parser.add_argument_group('network')
    add_architecture_options(group, 'qmobilenetv2')
    group.add_argument('--dataset', '--data_name', default=dataset, help='data set that gives image size and number '
                       'of classes' + ('' if dataset else " (default: none; ImageNet's, but not its name)"))
    group.add_argument('--input_size', '--image_size', dest='input_size', type=input_shape, metavar='N|CxHxW',
                       help="side of the images, or channels x height x width (default: the data set's, 299 for the "
                       'inception family)')
    return group


def finish_network_options(args):
    """Returns the shape of an image, (C, H, W), and leaves in `image_size` what makes it another than the usual.

    Without a data set images and classes are those of ImageNet, and both are left in the options.
    """
    args.image_size, unnamed = None, args.dataset is None
    args.dataset = args.dataset or 'imagenet'
    channels, height, width = shape = args.input_size or (3, image_size(args), image_size(args))
    if args.input_size or unnamed:
        args.image_size = height if channels == 3 and height == width else 'x'.join(map(str, shape))
    if unnamed:
        from lib.utils.data_utils import num_classes
        args.dataset, args.num_classes = None, args.num_classes or num_classes('imagenet')
    return shape


def network_of(args):
    """Returns the network of the options, with random weights."""
    from lib.utils.data_utils import num_classes
    if args.dataset == 'folder' and not args.num_classes:
        raise ValueError('--dataset folder says nothing about the number of classes here: give --num_classes')
    return build_network(args, args.num_classes or num_classes(args.dataset))


class Described(NamedTuple):
    """A network in numbers: its parameters, its MADDS, and its `Inventory` under a strategy of either flow.

    `uncalled` are the names of layers whose forward is never called.
    """

    parameters: int
    madds: int
    uncalled: list
    kmeans: Any
    linear: Any


def describe_network(args, shape):
    """Returns the network of the options as `Described`.

    Raises:
        ValueError: the network is unknown, does not take this input, or has no convolution or linear layer.
    """
    from lib.network.coverage import take_inventory
    from lib.network.records import profile_network
    model = network_of(args)
    if not args.model_file:
        model = model.to('meta')  # shapes are all that counts: nothing is computed
    profile = profile_network(model, shape)
    if not any(record.calls for record in profile.layers):
        raise ValueError(f'{args.arch} has no convolution or linear layer that its forward pass calls')
    uncalled = [record.name for record in profile.layers if not record.calls]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Described(parameters, profile.macs + profile.extras, uncalled,
                     *(take_inventory(model, profile, linear) for linear in (False, True)))
