"""From the options to the things they name: device, data, network, weights, cost table."""

from _common import ROOT, logger

# Where the originals keep the weights of their own networks, and the scripts that name them.
PRETRAINED_FILES = {'mobilenetv2': 'mobilenetv2-150.pth.tar', 'mobilenetv3': 'mobilenetv3small-f3be529c.pth',
                    'mobilenet_v3': 'mobilenetv3small-f3be529c.pth'}


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


def float_name(arch):
    """Returns the architecture without the q of its quantized twin."""
    import models
    return arch[1:] if arch.startswith('q') and arch not in models.list_models(quantized=False) else arch


def is_linear(args):
    """Whether the linear flow is meant: by --linear_quantization, or by the q of the network's name."""
    return args.linear_quantization or args.arch != float_name(args.arch)


def image_size(args):
    """Returns the side of the images: the option, the data set's, or 299 for the inception family instead of 224."""
    import models
    from lib.utils.data_utils import dataset_spec
    size = dataset_spec(args.dataset).resolution
    return args.image_size or (models.default_resolution(float_name(args.arch)) if size == 224 else size)


def build_model(args, num_classes, device, linear=False):
    """Returns the network of the options on `device`, converted to quantized layers if `linear`.

    Raises:
        ValueError: the network is unknown, or cannot take images of this size.
    """
    import torch

    import models
    from lib.utils.profile import profile_layers
    from lib.utils.quantize_utils import convert_to_quantized
    torch.manual_seed(args.seed)
    options = {'mode': args.mode} if args.mode else {}
    model = models.create_model(float_name(args.arch), num_classes=args.num_classes or num_classes,
                                width_mult=args.width_mult, **options).to(device)
    side = image_size(args)
    try:
        profile_layers(model, (3, side, side), device)
    except ValueError as error:
        raise ValueError(f'{args.arch} does not take images of {side} x {side} ({error}): give another '
                         '--image_size') from error
    if not linear:
        return model
    probe = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    return convert_to_quantized(model, probe)


def load_float_weights(model, args):
    """Loads the weights of `--weights`, or the pretrained ones: the original's file in its place, or torchvision's.

    Raises:
        FileNotFoundError: there are none; the message names the file that is wanted and where to put it.
    """
    from lib.utils.checkpoint import load_weights, read_checkpoint, state_dict_of
    if args.weights:
        load_weights(model, state_dict_of(read_checkpoint(args.weights), args.weights), args.weights)
        logger.info('float weights: %s', args.weights)
        return
    name = float_name(args.arch)
    if name in PRETRAINED_FILES:
        path = ROOT / 'pretrained' / 'imagenet' / PRETRAINED_FILES[name]
        if not path.is_file():
            raise FileNotFoundError(f'pretrained weights of {name} are missing: put {path.name} into {path.parent} '
                                    '(bash run/setup.sh fetches it), or give --weights PATH')
        load_weights(model, state_dict_of(read_checkpoint(path), path), path)
        return
    load_weights(model, _torchvision_state_dict(name), f"torchvision's weights of {name}")


def _torchvision_state_dict(name):
    import models
    try:
        weights = models.torchvision_weights(name, 'IMAGENET1K_V1')  # the ones HAQ started from: ResNet-50 at 76.15 %
    except ValueError:
        weights = models.torchvision_weights(name)
    if weights is None:
        raise FileNotFoundError(f'{name} has no published weights here: give --weights PATH, for example the '
                                'model_best.pth.tar of scripts/pretrain.py')
    try:
        return {key: value for key, value in weights.get_state_dict(progress=False).items()
                if not key.startswith(('aux1.', 'aux2.', 'AuxLogits.'))}
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f'the weights of {name} could not be downloaded ({error}): fetch {weights.url} and '
                                'give --weights PATH') from error


def loaders_of(args, device):
    """Returns (training loader, validation loader, number of classes) of the options."""
    from lib.utils.data_utils import create_loaders
    return create_loaders(args.dataset, args.dataset_root, batch_size=args.train_batch, test_batch_size=args.test_batch,
                          workers=args.workers, seed=args.seed, download=args.download,
                          image_size=args.image_size or image_size(args), pin_memory=device.type == 'cuda')
