"""The weights a run begins with: a checkpoint to resume, --weights, or published ones; loaded into the network."""

import re
from http.client import HTTPException
from pathlib import Path

from _common import ROOT, logger
from _resume import may_have_moved
from _setup import convert, fold, network_name

# Where the originals keep the weights of their own networks, and the scripts that name them.
PRETRAINED_FILES = {'mobilenetv2': 'mobilenetv2-150.pth.tar', 'mobilenetv3': 'mobilenetv3small-f3be529c.pth',
                    'mobilenet_v3': 'mobilenetv3small-f3be529c.pth'}


def read_weights(args, pretrained):
    """Returns (checkpoint, where it is from) of --weights or, if `pretrained`, the published one; else (None, None).

    Raises:
        FileNotFoundError: there is none; the message names the file that is wanted and where to put it.
    """
    from lib.record.checkpoint import read_checkpoint
    from lib.runtime.distributed import main_first
    if args.weights:
        with may_have_moved(args, 'weights'):
            return read_checkpoint(args.weights), args.weights
    if not pretrained:
        return None, None
    name = network_name(args)
    if args.model_file:
        raise FileNotFoundError(f'--model_file {args.model_file} has no published weights: give --weights PATH, for '
                                'example the model_best.pth.tar of scripts/pretrain.py')
    if name not in PRETRAINED_FILES:
        return main_first(torchvision_state_dict, name), f"torchvision's weights of {name}"
    path = ROOT / 'pretrained' / 'imagenet' / PRETRAINED_FILES[name]
    if not path.is_file():
        raise FileNotFoundError(f'pretrained weights of {name} are missing: put {path.name} into {path.parent} '
                                '(bash run/setup.sh fetches it), or give --weights PATH')
    return read_checkpoint(path), path


def say_own_weights(args, otherwise=None):
    """Says what weights a network has that none are given for: those of its --model_file; of others `otherwise`."""
    if args.model_file:
        logger.info('no --weights: the network has those that %s gives it, which are random unless it loads some',
                    args.model_file)
    elif otherwise:
        logger.warning('%s', otherwise)


def published_file(args):
    """Returns the path of the network's weights in pretrained/, None where there are none."""
    path = ROOT / 'pretrained' / 'imagenet' / PRETRAINED_FILES.get(network_name(args), 'none')
    return path if path.is_file() else None


def checkpoint_settings(args, parser):
    """Returns the defaults that a checkpoint without an args.json beside it gives."""
    from lib.record.checkpoint import read_checkpoint
    if not args.resume:
        parser.error('give the checkpoint by --resume')
    try:
        saved = read_checkpoint(args.resume)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if not isinstance(saved, dict):
        return {}
    qat, shape = saved.get('qat'), saved.get('input')
    found = {'arch': (saved.get('arch'), str), 'dataset': (saved.get('dataset'), str),
             'num_classes': (saved.get('classes'), int), 'normalize': (qat.get('normalize') if qat else None, str),
             'image_size': (shape[-1] if isinstance(shape, list) and shape else None, int)}
    return {name: value for name, (value, kind) in found.items() if type(value) is kind}


def torchvision_state_dict(name):
    """Returns torchvision's state dict of a network, downloaded where it is not there yet.

    torchvision would unpickle a file of its cache as it is, code and all; here its name's checksum is verified each
    time, and it is read as every other file.
    """
    import models
    try:
        weights = models.torchvision_weights(name, 'IMAGENET1K_V1')  # the ones HAQ started from: ResNet-50 at 76.15 %
    except ValueError:
        weights = models.torchvision_weights(name)
    if weights is None:
        raise FileNotFoundError(f'{name} has no published weights here: give --weights PATH, for example the '
                                'model_best.pth.tar of scripts/pretrain.py')
    return read_download(weights.url, name)


def read_download(url, name):
    """Returns what the file of an address holds, from the cache of torch.hub, where it is downloaded first if need be.

    Raises:
        FileNotFoundError: it cannot be downloaded.
        ValueError: it does not have the checksum in its name, or cannot be read.
    """
    import torch

    from lib.record.checkpoint import read_checkpoint
    from lib.record.digest import digest_of_file
    path = Path(torch.hub.get_dir()) / 'checkpoints' / url.rpartition('/')[2]
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise FileNotFoundError(f'the weights of {name} could not be downloaded ({error}): fetch {url} and give '
                                '--weights PATH') from error
    known = re.search(r'-([0-9a-f]{8,})\.', path.name)
    if known and not digest_of_file(path).startswith(known[1]):
        raise ValueError(f'{path} does not have the SHA-256 that its name begins, {known[1]}: delete it, it is '
                         f'downloaded again, or fetch {url} and give --weights PATH')
    return read_checkpoint(path)


def prepare(args, model, shape, checkpoint, source, linear):
    """Loads the checkpoint, if any, and in the linear flow converts the network, its BatchNorms folded if asked to.

    Args:
        args: the options.
        model: float network on its device.
        shape: (C, H, W) of an image.
        checkpoint, source: what to load and where it is from, or None.
        linear: whether the network is to be converted.

    Returns:
        The network.
    """
    from lib.network.hooks import batch_norms
    from lib.network.sync_batch_norm import synchronise_batch_norm
    from lib.runtime.distributed import world_size
    folded = isinstance(checkpoint, dict) and checkpoint.get('folded') is True
    if folded and not linear:
        raise ValueError(f'{source} has its BatchNorms folded into the weights, as only the linear flow has it: add '
                         '--linear_quantization')
    theirs = script_of_quantizers(checkpoint)
    if theirs:
        raise ValueError(f'{source} is a checkpoint of {theirs}, whose quantizers only that script has: go on with it '
                         'there; float weights to search or fine-tune from are made by pretrain.py')
    load_late = linear and (folded or not args.fold_bn)
    if not load_late:
        load(args, model, checkpoint, source)
    if linear:
        if folded or args.fold_bn:
            fold(model, shape, quiet=folded)
        convert(model, shape)
    if load_late:
        load(args, model, checkpoint, source)
    if args.sync_bn and world_size() > 1:
        synchronise_batch_norm(model)
    if getattr(args, 'bn_batches', 0) and not batch_norms(model):
        raise ValueError('--bn_batches: the network has no BatchNorm whose statistics could be estimated'
                         + (' once they are folded' if linear and (folded or args.fold_bn) else '') + ': leave it out')
    return model


def script_of_quantizers(checkpoint):
    """Returns the script whose quantizers, which no other has, are in the network of a checkpoint, or None."""
    from lib.qat.bit_lists import is_quantized
    if not isinstance(checkpoint, dict):
        return None
    if checkpoint.get('quantization') == 'hybrid':
        return 'hybrid_train.py'
    return 'qat_train.py' if 'qat' in checkpoint and is_quantized(checkpoint['strategy']) else None


def load(args, model, checkpoint, source):
    """Loads a checkpoint, if any, into the network."""
    if checkpoint is not None:
        put(args, model, find(args, model, checkpoint, source), source)


def put(args, model, weights, source):
    """Loads `Weights` into the network and says what was taken."""
    from lib.record.checkpoint import load_weights
    reset = load_weights(model, weights.state_dict, source, reset_classifier=args.reset_classifier)
    if reset:
        logger.info('layer %s starts from random weights (--reset_classifier)', reset)
    if source != getattr(args, 'resume', None):
        logger.info('weights: %s', '; '.join([str(source), *describe(weights)]))


def find(args, model, checkpoint, source):
    """Returns the `Weights` of a checkpoint for the network: of --weights the average, if --ema asks for it."""
    from lib.record.checkpoint import weights_for
    average = bool(getattr(args, 'ema', False)) and source == args.weights
    try:
        return weights_for(model, checkpoint, source, average=average)
    except ValueError as error:
        raise ValueError(f'--ema: {error}' if average else str(error)) from error


def describe(weights, ema=True):
    """Yields what is to be said of `Weights`, of those that lie as usual nothing; `ema`: the script has this option."""
    if weights.where:
        yield f'taken: {weights.where}' + (', an average' if weights.average else '')
    elif weights.beside:
        yield 'taken: the raw weights'
    if weights.beside:
        kind, advice = ('the raw weights', '') if weights.average else ('an average', ' (--ema takes it)' * ema)
        yield f'beside them: {weights.beside}, {kind}{advice}'
    yield from weights.notes
