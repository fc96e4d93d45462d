"""Networks in files that leave the house: what such a file says of itself; packed files, written and opened."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _checkpoints import read_network, rebuild
from _networks import Network, probe
from torch import Tensor

from lib.data.class_names import IMAGENET, names_of_dataset, read_class_names
from lib.data.datasets import DATASETS
from lib.data.preprocessing import Preprocessing
from lib.data.user_data import UserBuild
from lib.export.about import IMAGENET as STANDARD
from lib.export.about import NETWORK, make_about
from lib.export.container import write_bytes
from lib.export.packed import pack_network
from lib.export.stored import install, parse_packed, read_packed
from lib.record.disk import check_writable

logger = logging.getLogger('haq')

SLACK, FEW = 2, 1 << 20  # a network may need so many times as many numbers as its file has, and so many more


# ---- what a file says of itself

def about_of(saved, network, data, names_file=None):
    """Return what an exported file says of the network of a checkpoint; `names_file` has the names of its classes."""
    values = {name: getattr(network, name) for name in NETWORK}
    if network.model_file:  # whoever runs it names the file again; this path says nothing elsewhere
        values['model_file'] = Path(network.model_file).name
    own = user_dataset(data) if data.dataset_file else None
    steps = preprocessing_of(data, network, saved['input'], own)
    if steps is None:
        logger.warning('how image files become the input of this network is not known: predict.py will not run it')
    return make_about(saved, values, steps and steps.to_dict(), class_names(data, saved['classes'], own, names_file))


def user_dataset(data):
    """Return the validation images of a --dataset_file; None where they are not there."""
    try:
        return UserBuild(data.dataset_file, data.dataset_root)('val', augment=False)
    except (ValueError, OSError) as error:
        logger.warning('%s', error)
        return None


def preprocessing_of(data, network, shape, own=None):
    """Return the `Preprocessing` of validation images; None where it is not known.

    Args:
        data, network: the `Data` and the `Network`.
        shape: (C, H, W) of the network's input.
        own: data set of a --dataset_file.
    """
    if data.dataset_file:
        name = 'folder' if own is not None and not isinstance(own[0][0], Tensor) else None
    else:
        name = data.dataset if data.dataset in DATASETS else None
    if name is None or shape[0] != 3 or shape[1] != shape[2]:
        return None
    return Preprocessing.of_dataset(name, shape[-1], 'symmetric' if network.tensorflow else data.normalize)


def class_names(data, classes, own=None, names_file=None):
    """Return the names of so many classes, `STANDARD`, or None where they are not known."""
    if names_file:
        names = read_class_names(names_file)
        if len(names) != classes:
            raise ValueError(f'--class_names {names_file} has {len(names)} names, the network has {classes} classes')
        return names
    if data.dataset_file:
        names = getattr(own, 'classes', None)
        names = [str(name) for name in names] if isinstance(names, (list, tuple)) else None
    else:
        names = names_of_dataset(data.dataset, data.dataset_root)
        if names and data.dataset in IMAGENET and classes == len(names):
            return STANDARD
    if names is None or len(names) != classes:
        logger.info('the names of the %d classes are not known: they are numbers (--class_names gives them)', classes)
        return None
    return names


# ---- packed files

@dataclass(frozen=True)
class PackedExport:
    """What --packed writes; every field is the option of its name."""

    packed: str
    resume: str
    entropy: bool = False
    float16: bool = False
    class_names: str | None = None
    overwrite: bool = False

    def target(self):
        """Return the path of the file; ValueError where it exists or its folder cannot be written to."""
        path = Path(self.packed)
        if path.exists() and not self.overwrite:
            raise ValueError(f'--packed {path} is there already: give --overwrite or another name')
        check_writable(path.absolute().parent)
        return path


def export_packed(export, network, data):
    """Write the network of a checkpoint as a packed file and say what it takes.

    Args:
        export: the `PackedExport`.
        network: the `Network` of the run.
        data: the `Data` of the run.
    """
    path = export.target()
    model, saved, books = read_network(export.resume, network, data)
    about = about_of(saved, network, data, export.class_names)
    sizes, weights = write_packed(path, model, saved, books, about, network=network, entropy=export.entropy,
                                  float16=export.float16)
    if export.entropy:
        report_entropy(weights)
    for line in sizes.lines():
        logger.info('%s: %s', path, line)


def report_entropy(weights):
    """Print what Huffman codes save in each layer."""
    logger.info('%-40s %5s %12s %12s %8s', 'layer', 'bits', 'packed', 'Huffman', 'saved')
    for name, coded in weights.items():
        dense, short = coded.bytes_of_codes()
        logger.info('%-40s %5d %12d %12d %7.2f%%', name, coded.bits.max(), dense, short, 100 * (1 - short / dense))


def write_packed(path, model, saved, books, about, *, network, entropy=False, float16=False):
    """Write a packed file, after it was read again and the two networks gave the same logits.

    Args:
        path: of the file.
        model, saved, books: of `read_network`.
        about: of `about_of`.
        network: the `Network`.
        entropy, float16: as of `pack_network`.

    Returns:
        (`Sizes`, {layer: `CodedWeight`}).
    """
    images = probe(model, saved['input'])
    with torch.no_grad():
        before = model(images)
        data, sizes, weights = pack_network(model, images, about, books, entropy=entropy, float16=float16)
        packed = parse_packed(data)
        logits, again = model(images), install(rebuild(saved, network, path), packed)(images)
    if not torch.equal(logits, again):
        raise ValueError(f'the network reads a quantized weight outside of its layer: after packing, its logits differ '
                         f'by up to {(logits - again).abs().max():.3g}; keep the checkpoint')
    if float16:
        logger.info('float16 changes the logits of noise by at most %.3g, of a range of %.3g',
                    (logits - before).abs().max(), before.max() - before.min())
    write_bytes(path, data)
    return sizes, weights


def open_packed(path, model_file=None):
    """Return (network in evaluation mode on the CPU, what its packed file says of itself).

    Args:
        model_file: FILE.py:build of a network of the user's own, which a packed file only names.
    """
    packed = read_packed(path)
    values = packed.about['network']
    if (values['model_file'] is None) != (model_file is None):
        raise ValueError(f'{path} is of a network of its author\'s own, {values["model_file"]}: give that file by '
                         '--model_file FILE.py:build (its code is run)' if model_file is None else
                         f'{path} is of {values["arch"]}, not of a --model_file: leave the option out')
    network = Network(**{**values, 'model_file': model_file}, num_classes=packed.about['classes'])
    if model_file is None:
        check_size(network, packed, path)
    try:
        return install(rebuild(packed.about, network, path), packed, path), packed.about
    except (LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError) as error:  # of settings made up
        raise ValueError(f'{path} says of its network what none is made of ({type(error).__name__}: '
                         f'{" ".join(str(error).split())[:200]}): make it again') from error


def check_size(network, packed, path):
    """Raise ValueError where the network would be larger than its file says, before anything is allocated."""
    about = packed.about
    shape = next((about[kind]['network'] for kind in ('qat', 'hybrid') if kind in about), None) or {}
    layers = shape.get('num_layer_list') or []
    there = sum(coded.codes.size for coded in packed.weights.values()) + sum(a.size for a in packed.rest.values())
    try:
        if isinstance(layers, list) and sum(layers) > len(packed.weights) + len(packed.rest):
            raise ValueError(f'{sum(layers)} blocks, and the file has {len(packed.rest)} tensors')
        with torch.device('meta'):
            model = replace(network, network_options=shape or None).build(about['classes'])
    except NotImplementedError:  # one that cannot be built without numbers
        return
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
        raise ValueError(f'{path}: {network.arch} cannot be built: {" ".join(str(error).split())[:200]}') from error
    needed = sum(parameter.numel() for parameter in model.parameters())
    if needed > SLACK * there + FEW:  # a network whose BatchNorms are folded has a little less in its file
        raise ValueError(f'{path} has {there:,} numbers, {network.arch} needs {needed:,}: the file is of another '
                         'network')
