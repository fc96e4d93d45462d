"""Networks of checkpoints: of all scripts, and of weights of other programs."""

from dataclasses import replace

import torch
from _networks import build_model, probe
from _resume import in_file
from _setup import image_size
from _weights import Start, fold

from lib.data.datasets import num_classes
from lib.hybrid.placement import rebuild as rebuild_hybrid
from lib.hybrid.plan import Plan
from lib.network.codebooks import find_codebooks
from lib.qat.parts import quantize_as
from lib.quantize.grids import Grids
from lib.record.checkpoint import read_checkpoint
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers

DEFAULT_SIDE = 224


def read_network(path, network, data):
    """Return (network in evaluation mode on the CPU, what its checkpoint says, {layer: `Codebook`}).

    Args:
        path: a checkpoint of any script that trains, or weights of another program.
        network: the `Network`.
        data: the `Data` of its run, for what the checkpoint does not say.
    """
    saved = read_checkpoint(path)
    if kind_of(saved) is None or 'input' not in saved:
        saved = {'state_dict': saved, **completed(saved, network, data)}
    model = rebuild(saved, network, path)
    Start(resume=path).load(model, saved, path)
    if kind_of(saved) not in ('kmeans', 'float'):
        return model.eval(), saved, {}
    books = find_codebooks(model, saved, saved.get('is_pruned') is True, path)
    if books and kind_of(saved) == 'float':
        saved = {**saved, 'quantization': 'kmeans', 'strategy': [book.bits for book in books.values()]}
    return model.eval(), saved, books


def completed(saved, network, data):
    """Return the entries of a checkpoint that it lacks, from the options."""
    known = saved if isinstance(saved, dict) else {}
    side = image_size(data, network) or DEFAULT_SIDE
    found = {'quantization': 'float', 'strategy': None, 'input': [3, side, side], **{
        key: known[key] for key in ('quantization', 'strategy', 'input', 'classes', 'folded', 'is_pruned', 'codebooks')
        if key in known}}
    found['attention_products'] = known.get('attention_products', network.attention_products)
    if 'classes' not in found:
        found['classes'] = network.num_classes or num_classes(data.dataset, data.dataset_root)
    return found


def read_quantized(path, network, kinds=('qat', 'linear', 'hybrid')):
    """Return (quantized network in evaluation mode on the CPU, image shape, the checkpoint that it is from).

    Args:
        path: a checkpoint of qat_train.py, hybrid_train.py or finetune.py.
        network: the `Network` of the run.
        kinds: what it may be.

    Raises:
        ValueError: the checkpoint is of another kind, or does not fit.
    """
    saved = read_checkpoint(path)
    kind = kind_of(saved)
    if kind not in kinds or 'input' not in saved:
        makers = ('qat_train.py, finetune.py or hybrid_train.py' if 'kmeans' in kinds else
                  'qat_train.py, or from finetune.py --linear_quantization')
        raise ValueError(f'{path} is a checkpoint of {kind or "unknown"} weights: what is exported comes from {makers}')
    model = rebuild(saved, network, path)
    Start(resume=path).load(model, saved, path)
    return model.eval(), tuple(saved['input']), saved


def rebuild(saved, network, source):
    """Return the network of a checkpoint on the CPU, with its quantizers and with random weights.

    Args:
        saved: what the checkpoint, or a packed file, says of it.
        network: the `Network` of the run.
        source: where `saved` is from, for messages.
    """
    kind, shape = kind_of(saved), tuple(saved['input'])
    with in_file(source):
        model = build_model(own_network(network, saved), saved['classes'], shape, 'cpu')
        if 'qat' in saved:
            quantize_as(model, saved['qat'], saved['strategy'], probe(model, shape), network.arch)
        elif kind == 'hybrid':
            rebuild_hybrid(model, Plan(**saved['plan']), probe(model, shape),
                           quantized=saved['hybrid']['stage'] == 'quantized')
        elif kind == 'linear':
            if saved.get('folded') is True:
                fold(model, shape, saved)
            convert_to_quantized(model, probe(model, shape), quiet=True)
            Grids.from_dict(saved).use(quantized_layers(model).values())
            LinearQuantization(model, saved['strategy'])
    return model


def codebooks_of(model, saved, path):
    """Return {layer: `Codebook`} of a checkpoint of the K-means flow whose weights the network has; {} of others.

    Raises:
        ValueError: no codebook is in it, or the weights are not those of the codebooks.
    """
    if kind_of(saved) != 'kmeans':
        return {}
    books = find_codebooks(model, saved, bool(saved.get('is_pruned')), path)
    wrong = [name for name, book in books.items() if not torch.equal(
        book.decode(), model.get_submodule(name).weight.detach().float())]
    if wrong or not books:
        raise ValueError(f'{path}: the weights of {wrong[0] if wrong else "the network"} are not those of a codebook: '
                         'take a checkpoint of finetune.py as the run wrote it')
    return books


def kind_of(saved):
    """Return the quantization of a checkpoint; a hybrid one without DSQ calls itself float until it is finished."""
    if not isinstance(saved, dict):
        return None
    return 'hybrid' if 'hybrid' in saved else saved.get('quantization')


def own_network(network, saved):
    """Return a `Network` with the shape that a checkpoint has of its own, if it has, and the reach of its strategy."""
    shape = next((saved[kind]['network'] for kind in ('qat', 'hybrid') if kind in saved), None)
    return replace(network, network_options=shape, attention_products=saved.get('attention_products'))


def checkpoint_settings(path):
    """Return the defaults that a checkpoint without an args.json beside it gives, {option: value}.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    saved = read_checkpoint(path)
    if not isinstance(saved, dict):
        return {}
    qat, shape = saved.get('qat'), saved.get('input')
    found = {'arch': (saved.get('arch'), str), 'dataset': (saved.get('dataset'), str),
             'num_classes': (saved.get('classes'), int), 'normalize': (qat.get('normalize') if qat else None, str),
             'image_size': (shape[-1] if isinstance(shape, list) and shape else None, int),
             'width_mult': (saved.get('width_mult'), float), 'mode': (saved.get('mode'), str),
             'tensorflow': (saved.get('tensorflow'), bool),
             'linear_quantization': (saved.get('quantization') == 'linear' or None, bool)}
    return {'attention_products': saved.get('attention_products'),
            **{name: value for name, (value, kind) in found.items() if type(value) is kind}}
