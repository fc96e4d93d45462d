"""Exports a quantized network to ONNX, and verifies the file."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _checkpoints import codebooks_of, read_quantized
from _exported import about_of
from _networks import probe
from _setup import loaders_of

from lib.export.container import write_bytes
from lib.export.onnx_file import (
    DEFAULT,
    EXACT,
    FUSED,
    REFERENCE,
    bytes_of,
    make_onnx,
    verify,
    with_int8_sums,
    with_metadata,
)
from lib.export.onnx_integer import INTEGERS, integer_graph
from lib.export.onnx_packages import require_onnx
from lib.export.onnx_runtimes import METADATA, OnnxNetwork
from lib.integer.network import noise_images
from lib.record.disk import check_writable
from lib.record.files import write_json

logger = logging.getLogger('haq')

NOISE, CODE_BATCH, BATCH, IMAGES, CALIBRATION = 32, 4, 16, 1000, 64
SATURATED = 1.0  # percent of predictions that saturated sums change


@dataclass(frozen=True)
class OnnxExport:
    """What --onnx writes; every field is the option of its name."""

    onnx: str
    resume: str
    onnx_weights: str = 'int8'
    int8_sums: bool = False
    images: int | None = None
    code_images: int = 64
    class_names: str | None = None
    overwrite: bool = False

    def target(self):
        """Return the path of the file; ValueError where it exists or cannot be written, or packages are missing."""
        require_onnx()
        path = Path(self.onnx)
        if path.suffix != '.onnx':
            raise ValueError(f'--onnx {path}: the name of the file ends with .onnx')
        if path.exists() and not self.overwrite:
            raise ValueError(f'{path} exists already: give --overwrite or another --onnx')
        check_writable(path.parent)
        return path


def export_onnx(export, network, data):
    """Write the network of a checkpoint as an ONNX graph, and say how well the graph is the network.

    Args:
        export: the `OnnxExport`.
        network: the `Network` of the run.
        data: the `Data` of the run.
    """
    path = export.target()
    model, shape, saved = read_quantized(export.resume, network, kinds=('qat', 'linear', 'hybrid', 'kmeans'))
    books = codebooks_of(model, saved, export.resume)
    file = make_onnx(model, probe(model, shape), storage=export.onnx_weights, codebooks=books)
    about = {**about_of(saved, network, data, export.class_names), 'stored': export.onnx_weights,
             **{name: saved.get(name) for name in ('arch', 'dataset')}}
    images = [] if export.images == 0 else validation_images(export, network, data, saved['classes'])
    problems, found = verify_and_report(model, file, shape, images, export.code_images)
    if export.int8_sums:
        file, found['int8_sums'] = round_sums(model, file, network, data, saved['classes'], images)
    file = with_metadata(file, json.dumps(about))
    write_bytes(path, file.data)
    write_json(path.with_suffix('.json'), {**about, **found, 'bytes': len(file.data), 'problems': problems})
    logger.info('%s: %d bytes; %s', path, len(file.data), path.with_suffix('.json').name)
    if problems:
        logger.warning('warning: the graph is not the trained network: %s', '; '.join(problems[:4]))


def export_integers(export, network, about):
    """Write an `IntegerNetwork` as an ONNX graph, and check that it gives the same integers.

    Args:
        export: the `OnnxExport`.
        network: the `IntegerNetwork`.
        about: what the file says of it, plain values.

    Raises:
        ValueError: an operation has no form in ONNX, or an integer differs, which is a mistake in here.
    """
    path, graph = export.target(), integer_graph(network)
    graph.metadata_props[METADATA] = json.dumps({**about, 'scale': network.scale})
    data, images = bytes_of(graph), noise_images(network.input_shape, BATCH)
    runtime = OnnxNetwork(data)
    found = runtime.session.run([INTEGERS], {runtime.input.name: images.numpy()})[0]
    if not torch.equal(torch.from_numpy(found), network(images)):
        raise ValueError('the ONNX graph gives other integers than the integer network: it is not written')
    write_bytes(path, data)
    logger.info('%s: %d bytes; on %d images of noise every integer is that of the integer network', path, len(data),
                len(images))


def verify_and_report(model, file, shape, images, code_images):
    """Return (problems in words, what was found), and print it."""
    noise = noise_images(shape, NOISE)
    first = (images[0][0] if images else noise)[:min(code_images, BATCH)]
    found = verify(model, file, first.split(CODE_BATCH), [(part, None) for part in noise.split(BATCH)])
    report('noise', found)
    rows = {'noise': rows_of(found.runtimes), 'codes': rows_of(found.codes), 'nodes': found.nodes}
    if not images:
        return found.problems(), rows
    on_images = verify(model, file, [], images)
    report('validation images', on_images)
    problems = found.wrong_codes() + on_images.problems()  # of the noise no predictions: it is often of one class
    return problems, {**rows, 'images': rows_of(on_images.runtimes)}


def round_sums(model, file, network, data, classes, images):
    """Return (the file with 8-bit sums, what was found of it), and print it; ranges come from training images."""
    data = replace(data, num_classes=data.num_classes or classes, train_batch=CALIBRATION, test_batch=BATCH)
    loader, _ = loaders_of(data, network, torch.device('cpu'), splits=('train',))
    file = with_int8_sums(file, loader.first_batch())
    found = verify(model, file, [], images or [(noise_images(loader.input_shape, NOISE), None)])
    logger.info('with --int8_sums it is another function:')
    report('validation images' if images else 'noise', found)
    return file, {**rows_of(found.runtimes), 'nodes': found.nodes}


def validation_images(export, network, data, classes):
    """Return batches (images, labels) of the validation images that are asked for."""
    data = replace(data, num_classes=data.num_classes or classes, test_batch=BATCH)
    loader, _ = loaders_of(data, network, torch.device('cpu'), splits=('val',))
    loader.sample(IMAGES if export.images is None else export.images)
    return list(loader)


def rows_of(rows):
    return {name: row._asdict() for name, row in rows.items()}


def report(kind, found):
    """Print what a verification found."""
    if found.codes:
        worst = max(found.codes.values(), key=lambda row: (row.largest, row.tie))
        least = min(row.equal for row in found.codes.values())
        logger.info("layer by layer, on the network's own codes: at least %.4f %% of the codes of %d quantizers are "
                    'equal, none is more than %d apart, and those within %.2g of a tie', 100 * least, len(found.codes),
                    worst.largest, max(row.tie for row in found.codes.values()))
    count = found.runtimes[REFERENCE].images
    logger.info('%-34s %10s %12s %8s %8s   on %d %s', 'runtime', 'agreement', 'logits off', 'top-1', 'network', count,
                kind)
    for name, row in found.runtimes.items():
        tops = ['-' if top is None else f'{top:.2f}' for top in (row.top1, row.top1_network)]
        logger.info('%-34s %8.2f %% %12.3g %8s %8s   %s', name, row.agreement, row.difference, *tops,
                    nodes_in_words(found.nodes.get(name)))
    default, exact = found.runtimes[DEFAULT], found.runtimes[EXACT]
    if default.agreement < exact.agreement - SATURATED:
        logger.warning('on this processor onnxruntime saturates sums of 8-bit products: set session.x64quantprecision '
                       'to 1 in its session options, as predict.py does')


def nodes_in_words(nodes):
    """Return which nodes compute, the ones of 8 bits first."""
    if not nodes:
        return ''
    return ', '.join(f'{count} {kind}' for kind, count in sorted(nodes.items(), key=lambda item: item[0] not in FUSED))
