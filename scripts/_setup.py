"""From the options to the things they name: device, data, network."""

from _common import logger
from _resume import may_have_moved

USUAL_CLASSES, USUAL_WIDTH = 10**5, 4  # up to which a network is built without asking how large it will be
MAX_PARAMETERS = 2**31


def find_device(name):
    """Returns the torch device of `--device`.

    Raises:
        ValueError: CUDA is asked for and there is none, or the name is unknown.
    """
    import torch
    if name == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    if name.split(':')[0] not in ('cpu', 'cuda'):
        raise ValueError(f'--device {name}: expected auto, cpu, cuda or cuda:N')
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'--device {name}: this PyTorch sees no CUDA device; take --device cpu')
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'--device {name}: expected auto, cpu, cuda or cuda:N') from error


def start_device(args):
    """Joins the processes that torchrun started, if it did; returns the torch device of this process."""
    from lib.runtime import distributed
    return distributed.start(find_device(args.device))


def network_name(args):
    """Returns the name of the float network: of an own one that of its file, else without the q of a quantized twin."""
    import models
    own = getattr(args, 'model_file', None)
    is_twin = not own and args.arch.startswith('q') and args.arch not in models.list_models(quantized=False)
    return args.arch[1:] if is_twin else args.arch


def is_linear(args):
    """Whether the linear flow is meant: by --linear_quantization, or by the q of the network's name."""
    return args.linear_quantization or args.arch != network_name(args)


def image_size(args):
    """Returns the side of the images: the option, the data set's, or 299 for the inception family instead of 224.

    None leaves it to a data set of the user's own.
    """
    import models
    from lib.utils.data_utils import dataset_spec
    if args.image_size or getattr(args, 'dataset_file', None):
        return args.image_size
    size = dataset_spec(args.dataset).resolution
    return models.default_resolution(network_name(args)) if size == 224 and not args.model_file else size


def data_options(args, device):
    """Returns the keyword arguments of `create_loaders` and `create_search_loaders` alike."""
    from lib.runtime import distributed
    return {'batch_size': getattr(args, 'train_batch', args.test_batch), 'test_batch_size': args.test_batch,
            'workers': args.workers, 'seed': args.seed, 'download': args.download, 'image_size': image_size(args),
            'pin_memory': device.type == 'cuda', 'dataset_file': args.dataset_file, 'num_classes': args.num_classes,
            'cache': args.cache, 'cache_size': args.cache_size, 'on_bad_image': args.on_bad_image, 'device': device,
            'shard': (distributed.rank(), distributed.world_size()),
            'normalize': 'symmetric' if args.tensorflow else getattr(args, 'normalize', None)}


def loaders_of(args, device, **parts):
    """Returns (training loader, validation loader, number of classes) of the options.

    `parts`: `train_size` and `val_size` make it two parts of the training images, for a search; `splits` says what to
    read, and what loaders come back; any of `data_options` goes before the options.
    """
    from lib.runtime.distributed import main_first, together
    from lib.utils.data_utils import create_loaders, create_search_loaders
    create = create_search_loaders if 'train_size' in parts else create_loaders
    run = main_first if args.download else together  # who comes later finds what was downloaded
    with may_have_moved(args, 'dataset_root'):
        return run(create, args.dataset, args.dataset_root, **{**data_options(args, device), **parts})


def build_network(args, classes):
    """Returns the float network of the options, with random weights.

    Raises:
        ValueError: the network is unknown or its file fails, or an option does not belong to it.
    """
    from functools import partial

    import models
    from lib.runtime.user_code import load_model
    if args.model_file:
        if args.mode or args.width_mult != 1:
            raise ValueError('--width_mult and --mode belong to networks of --arch: leave them out with --model_file')
        return load_model(args.model_file, classes)
    options = dict(getattr(args, 'network_options', None) or {})
    if args.mode:
        options['mode'] = args.mode
    make = partial(models.create_model, network_name(args), num_classes=classes, width_mult=args.width_mult, **options)
    if classes > USUAL_CLASSES or args.width_mult > USUAL_WIDTH or options:
        check_parameters(make, f'{args.arch} of {classes} classes and width {args.width_mult:g}')
    return make()


def check_parameters(make, what):
    """Raises ValueError where a network would have more parameters than memory holds; nothing is allocated."""
    import torch
    try:
        with torch.device('meta'):
            count = sum(parameter.numel() for parameter in make().parameters())
    except NotImplementedError:  # one that cannot be built without numbers
        return
    except (RuntimeError, OverflowError, MemoryError, TypeError) as error:
        raise ValueError(f'{what} cannot be built: {str(error).splitlines()[0]}') from error
    if count > MAX_PARAMETERS:
        raise ValueError(f'{what} would have {count:,} parameters, expected at most {MAX_PARAMETERS:,}: take fewer '
                         'classes (--num_classes), or fewer channels')


def single_images(*loaders):
    """Returns {mode: batch size} of ([training loader,] validation loader) where a batch of one image comes."""
    loaders = dict(zip(('training', 'evaluation')[2 - len(loaders):], loaders, strict=True))
    return {mode: loader.batch_size for mode, loader in loaders.items() if loader.batches.smallest == 1}


def check_model(args, model, shape, classes, loaders=()):
    """Raises ValueError, with the options that help, where the network does not take the images of the loaders."""
    from lib.network.check import check_network
    single = single_images(*loaders)
    try:
        check_network(model, shape, classes, single)
    except ValueError as error:
        advice = '; another --image_size?' if ' fails ' in str(error) and not args.model_file else ''
        if ' one image ' in str(error):
            mode = 'training' if ' training mode' in str(error) else 'evaluation'
            batch = '--final_batch' if hasattr(args, 'final_batch') else '--train_batch'
            option = {'training': batch, 'evaluation': '--test_batch'}[mode]
            advice = (f'; one image is what batches of {single[mode]} leave for the last one: take another {option}, '
                      'or let the network take one image (in its forward, flatten(1) in place of squeeze())')
        raise ValueError(f'{args.arch}: {error}{advice}') from error


def build_model(args, classes, shape, device, loaders=()):
    """Returns the float network of the options on `device`, checked and described.

    Args:
        args: the options.
        classes: number of classes of the data.
        shape: (C, H, W) of an image.
        device: where the network goes.
        loaders: ([training loader,] validation loader) whose batches it has to take.

    Raises:
        ValueError: the network is unknown, does not take such images, or does not return logits.
    """
    import torch

    import models
    torch.manual_seed(args.seed)
    classes = args.num_classes or classes
    model = build_network(args, classes)
    if args.tensorflow:
        models.tensorflow_style(model)
    model = model.to(device)
    check_model(args, model, shape, classes, loaders)
    return model


def probe(model, shape):
    """Returns two images of noise on the device of the network."""
    import torch
    device = next(model.parameters()).device
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)


def convert(model, shape):
    """Converts the network to quantized layers, in place."""
    from lib.utils.quantize_utils import convert_to_quantized
    convert_to_quantized(model, probe(model, shape), quiet=True)  # `find_layers` says what stays float


def fold(model, shape, quiet=False):
    """Folds the BatchNorms of the network into the layers before them, in place, and says which are left."""
    from torch import nn

    from lib.network.batch_norm_folding import fold_batch_norms
    pairs = fold_batch_norms(model, probe(model, shape))
    left = [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not quiet:
        logger.info('%d BatchNorms are folded%s', len(pairs),
                    f', {len(left)} follow no layer alone and stay: {", ".join(left[:4])}' if left else '')
