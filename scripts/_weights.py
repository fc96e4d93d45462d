"""The weights that a network begins with, and the form that it gets for a flow."""

import logging
from dataclasses import dataclass, replace

from _cli import ROOT
from _networks import probe
from _resume import may_have_moved

import models
from lib.network.batch_norm_folding import examine_batch_norms, fold_batch_norms, foldable_batch_norms
from lib.network.conversion import listed
from lib.network.hooks import batch_norms
from lib.network.sync_batch_norm import synchronise_batch_norm
from lib.qat.bit_lists import is_quantized
from lib.qat.inherited import begin_anew, check_quantizers, kept_quantizers, not_inherited
from lib.quantize.grids import Grids
from lib.record.checkpoint import load_weights, read_checkpoint, weights_for
from lib.record.download import read_download
from lib.runtime.distributed import main_first, world_size
from lib.utils.quantize_utils import convert_to_quantized, quantized_layers

logger = logging.getLogger('haq')

# Where the originals keep the weights of their own networks, and the scripts that name them.
PRETRAINED_FILES = {'mobilenetv2': 'mobilenetv2-150.pth.tar', 'mobilenetv3': 'mobilenetv3small-f3be529c.pth',
                    'mobilenet_v3': 'mobilenetv3small-f3be529c.pth'}


@dataclass(frozen=True)
class Start:
    """What weights a network begins with; every field is the option of its name."""

    weights: str | None = None
    ema: bool = False
    reset_classifier: bool = False
    pretrained: bool = False
    resume: str | None = None

    def find(self, model, checkpoint, source):
        """Return the `Weights` of a checkpoint for the network: of --weights the average, if --ema asks for it."""
        average = self.ema and source == self.weights
        try:
            return weights_for(model, checkpoint, source, average=average)
        except ValueError as error:
            raise ValueError(f'--ema: {error}' if average else str(error)) from error

    def put(self, model, weights, source):
        """Load `Weights` into the network and say what was taken."""
        reset = load_weights(model, weights.state_dict, source, reset_classifier=self.reset_classifier)
        if reset:
            logger.info('layer %s starts from random weights (--reset_classifier)', reset)
        if source != self.resume:
            logger.info('weights: %s', '; '.join([str(source), *weights.words()]))

    def load(self, model, checkpoint, source, *, anew=False):
        """Load a checkpoint, if any, into the network; `anew`: without what its quantizers found."""
        if checkpoint is not None:
            weights = self.find(model, checkpoint, source)
            if anew:
                begin_anew(weights.state_dict)
            check_quantizers(model, weights.state_dict, source)
            self.put(model, weights, source)


def read_weights(start, network):
    """Return (checkpoint, where it is from) of --weights or, with --pretrained, the published one; else (None, None).

    Raises:
        FileNotFoundError: there is none; the message names the file that is wanted and where to put it.
    """
    if start.weights:
        with may_have_moved(start.resume, 'weights', start.weights):
            return read_checkpoint(start.weights), start.weights
    if not start.pretrained:
        return None, None
    if network.model_file:
        raise FileNotFoundError(f'--model_file {network.model_file} has no published weights: give --weights PATH, for '
                                'example the model_best.pth.tar of scripts/pretrain.py')
    name = network.float_name
    if name not in PRETRAINED_FILES:
        return main_first(torchvision_state_dict, name), f"torchvision's weights of {name}"
    path = ROOT / 'pretrained' / 'imagenet' / PRETRAINED_FILES[name]
    if not path.is_file():
        raise FileNotFoundError(f'pretrained weights of {name} are missing: put {path.name} into {path.parent} '
                                '(bash run/setup.sh fetches it), or give --weights PATH')
    return read_checkpoint(path), path


def published_file(network):
    """Return the path of the network's weights in pretrained/, None where there are none."""
    path = ROOT / 'pretrained' / 'imagenet' / PRETRAINED_FILES.get(network.float_name, 'none')
    return path if path.is_file() and not network.model_file else None


def torchvision_state_dict(name):
    """Return torchvision's state dict of a network, downloaded where it is not there yet."""
    try:
        weights = models.torchvision_weights(name, 'IMAGENET1K_V1')  # the ones HAQ started from: ResNet-50 at 76.15 %
    except ValueError:
        weights = models.torchvision_weights(name)
    if weights is None:
        raise FileNotFoundError(f'{name} has no published weights here: give --weights PATH, for example the '
                                'model_best.pth.tar of scripts/pretrain.py')
    return read_download(weights.url, f'the weights of {name}', 'give --weights PATH')


def say_own_weights(network, otherwise=None):
    """Say what weights a network has that none are given for: those of its --model_file; of others `otherwise`."""
    if network.model_file:
        logger.info('no --weights: the network has those that %s gives it, which are random unless it loads some',
                    network.model_file)
    elif otherwise:
        logger.warning('%s', otherwise)


def prepare(model, shape, start, checkpoint=None, source=None, *, linear, fold_bn=False, sync_bn=False, bn_batches=0,
            grids=None):
    """Load the checkpoint, if any, and in the linear flow convert the network; return it.

    Args:
        model: float network on its device.
        shape: (C, H, W) of an image.
        start: the `Start`.
        checkpoint, source: what to load and where it is from, or None.
        linear: convert the network to quantized layers.
        fold_bn: fold its BatchNorms first; those of a checkpoint that has them folded are folded anyway.
        sync_bn: let BatchNorms span all processes.
        bn_batches: on which BatchNorm statistics are to be estimated, which needs BatchNorms.
        grids: {field of `Grids`: what its option says, None: as in the checkpoint}, of a network that has the options.
    """
    if script := script_of_quantizers(checkpoint):
        raise ValueError(f'{source} is a checkpoint of {script}, whose quantizers only that script has: go on with it '
                         'there; float weights to search or fine-tune from are made by pretrain.py')
    grids, kept = choose_grids(grids or {}, checkpoint, source, start, linear)
    folded = isinstance(checkpoint, dict) and checkpoint.get('folded') is True
    if folded and not linear:
        raise ValueError(f'{source} has its BatchNorms folded into the weights, as only the linear flow has it: add '
                         '--linear_quantization')
    if model.weights_reached == 'products' and not linear:
        raise ValueError('--attention_products: the K-means flow quantizes weights alone: add --linear_quantization, '
                         'or leave it out')
    load_late = linear and (folded or not fold_bn)
    if not load_late:
        start.load(model, checkpoint, source)
    if linear:
        if folded or fold_bn:
            fold(model, shape, checkpoint if folded else None)
        convert_to_quantized(model, probe(model, shape), quiet=True)  # `find_layers` says what stays float
        grids.use(quantized_layers(model).values())
    if load_late:
        start.load(model, checkpoint, source, anew=not kept)
    if sync_bn and world_size() > 1:
        synchronise_batch_norm(model)
    if bn_batches and not batch_norms(model):
        raise ValueError('--bn_batches: the network has no BatchNorm whose statistics could be estimated'
                         + (' once they are folded' if linear and (folded or fold_bn) else '') + ': leave it out')
    return model


def choose_grids(given, checkpoint, source, start, linear):
    """Return the `Grids` of a network in the linear flow, and whether they are those of the checkpoint's ranges.

    Raises:
        ValueError: an option of another flow, or other grids than those of the run to resume.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if given and not linear:
        raise ValueError(f'--{next(iter(given))} belongs to the linear flow: leave it out')
    theirs = Grids.from_dict(checkpoint if isinstance(checkpoint, dict) else {})
    ours = replace(theirs, **given)
    if ours != theirs and start.resume and source == start.resume:
        raise ValueError(f'{source} has grids of its own, --activation_grid {theirs.activation_grid} --weight_scales '
                         f'{theirs.weight_scales}: leave these options out, or start a new run with --weights')
    return ours, ours == theirs


def fold(model, shape, checkpoint=None):
    """Fold the BatchNorms of the network into the layers before them, in place, and say which are left, and why.

    A folded `checkpoint` says it itself, and has some that could not be folded when it was made: these stay.
    """
    images = probe(model, shape)
    held = {key.removeprefix('module.') for key in checkpoint.get('state_dict', ())} if checkpoint else ()
    leave = [layer for layer, norm in foldable_batch_norms(model, images, fused=True) if f'{norm}.running_mean' in held]
    pairs = fold_batch_norms(model, images, leave)
    if checkpoint:
        return
    reasons = {}
    for name, (_, reason) in examine_batch_norms(model, images).items():
        reasons.setdefault(reason, []).append(name)
    logger.info('%d BatchNorms are folded%s', len(pairs), f', {sum(map(len, reasons.values()))} stay' * bool(reasons))
    for reason, names in reasons.items():
        logger.info('not folded, for it %s: %s', reason, listed(names))


def script_of_quantizers(checkpoint):
    """Return the script whose quantizers, which no other has, are in the network of a checkpoint, or None."""
    if not isinstance(checkpoint, dict):
        return None
    if checkpoint.get('quantization') == 'hybrid':
        return 'hybrid_train.py'
    return 'qat_train.py' if 'qat' in checkpoint and is_quantized(checkpoint['strategy']) else None


def load_quantized(model, checkpoint, source, start, settings, strategy, float_names):
    """Load the weights to begin with into a network with quantizers.

    Clips and steps come along where they mean the same here: learned under quantizers of the same kind, steps also
    under the same bits. All others begin anew; a float network has none that were learned.

    Args:
        model: the network.
        checkpoint, source: what to load and where it is from.
        start: the `Start`.
        settings, strategy: of this run, as checkpoints have them.
        float_names: keys of the network's state dict before it had quantizers.
    """
    weights = start.find(model, checkpoint, source)
    left = not_inherited(model, weights.state_dict, kept_quantizers(checkpoint, settings, strategy), float_names)
    for key in left:
        del weights.state_dict[key]
    start.put(model, weights, source)
    if left:
        logger.info('its clips and steps are not taken over: they begin anew')
