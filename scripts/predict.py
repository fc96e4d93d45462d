"""Says what is in images: runs a packed file, a checkpoint of any script that trains, or an ONNX file."""

from pathlib import Path

from _cli import logger, make_parser, pick, run
from _option_types import BooleanOption as Bool
from _option_types import RepositoryPath, at_least
from _options import add_architecture_options
from _settings import saved_settings

OF_RUN = ('arch', 'model_file', 'width_mult', 'mode', 'num_classes', 'attention_products', 'tensorflow', 'dataset',
          'dataset_root', 'dataset_file', 'image_size', 'normalize')  # options that a checkpoint's args.json answers


def make_predict_parser():
    """Return the parser of this script."""
    parser = make_parser(__doc__)
    parser.add_argument('model', metavar='MODEL', help='a packed file or an ONNX file of export.py, which say '
                        'everything themselves, or a checkpoint')
    parser.add_argument('images', metavar='IMAGE', nargs='+', help='image files, and folders of them')
    parser.add_argument('--topk', type=at_least(1), default=5, help='classes of each image, the most probable first')
    parser.add_argument('--csv', metavar='FILE', help='write a table of all images instead of a line for each '
                        '(default: lines)')
    parser.add_argument('--batch', type=at_least(1), default=32, help='images that are run together')
    parser.add_argument('--on_bad_image', choices=['refuse', 'skip'], default='refuse', help='a file that cannot be '
                        'decoded ends the command, or is left out and named')
    parser.add_argument('--class_names', metavar='FILE', help='text file with the name of a class a line (default: '
                        'those in the file, or of the data set)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N; ONNX files run on the CPU')
    parser.add_argument('--overwrite', action=Bool, help='replace the file of --csv')
    parser.add_argument('--debug', action=Bool, help='log more, and show the traceback of an error')
    group = parser.add_argument_group('network and data of a checkpoint (known from the args.json beside it); of a '
                                      'packed file --model_file, if it is of one')
    add_architecture_options(group, arch='resnet50')
    group.add_argument('--tensorflow', action=Bool, help='the network was trained in TensorFlow')
    group.add_argument('--dataset', default='imagenet', help='data set that it was trained on')
    group.add_argument('--dataset_root', default=RepositoryPath('data/imagenet'), help='its folder, for the names of '
                       'the classes')
    group.add_argument('--dataset_file', metavar='FILE.py:build', help='a data set of your own; the code in the file '
                       'is run')
    group.add_argument('--image_size', type=at_least(1), help="side of the images (default: the data set's)")
    group.add_argument('--normalize', choices=['imagenet', 'cifar'], help='of the images (default: as in training)')
    return parser


def configure(args, parser):
    """Return the defaults of the run of a checkpoint; a packed or an ONNX file refuses options that it answers."""
    from _checkpoints import checkpoint_settings  # as above
    from _runnable import is_alone  # it imports torch

    if is_alone(args.model):
        answered = [name for name in OF_RUN if name != 'model_file']
        if given := [name for name in answered if getattr(args, name) != parser.get_default(name)]:
            raise ValueError(f'{args.model} says itself what network it is: leave --{", --".join(given)} out')
        return {}
    return saved_settings(parser, args.model, OF_RUN) or {
        name: value for name, value in checkpoint_settings(args.model).items() if name in OF_RUN}


def main(args):
    """Open the network, run it on all images, and say or write what it finds."""
    from _networks import Network
    from _runnable import open_network
    from _setup import Data, find_device

    from lib.data.image_folder import find_images
    from lib.export.predictions import predict, share_right, write_predictions
    from lib.record.disk import check_writable

    if args.csv:
        if Path(args.csv).exists() and not args.overwrite:
            raise ValueError(f'--csv {args.csv} is there already: give --overwrite or another name')
        check_writable(Path(args.csv).absolute().parent)
    paths, device = find_images(args.images), find_device(args.device)

    # the network
    network = open_network(args.model, pick(Network, args), pick(Data, args), device, args.class_names)
    logger.info('%s: %s, %d classes', args.model, network.what, len(network.names))

    # the images
    found, topk = [], min(args.topk, len(network.names))
    for prediction in predict(network.run, network.prepare.view, network.prepare.normalise, network.names, paths,
                              topk=topk, batch=args.batch, skip=args.on_bad_image == 'skip'):
        found.append(prediction)
        if not args.csv:
            logger.info('%s', prediction.line())
    if args.csv:
        write_predictions(args.csv, found, topk)
        logger.info('%s: %d images', args.csv, len(found))
    if len(found) > 1 and (right := share_right(found, network.names)):
        logger.info('top-1 %.2f %% of the %d images whose folder has the name of a class', *right)


if __name__ == '__main__':
    run(main, make_predict_parser(), configure=configure)
