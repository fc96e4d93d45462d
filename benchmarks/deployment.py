"""How fast and how large networks are as files that run elsewhere: float, 8-bit and clustered, batch 1, one thread.

Every side of a network takes turns in one process, so ratios are of one run; weights are random and calibrated on
noise, for neither bytes nor times depend on them. On an idle machine, with the packages of requirements-export.txt
(OpenVINO where it is installed):

    python benchmarks/deployment.py --page docs/benchmarks.md
"""

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import models  # noqa: E402
from benchmarks.rows.measure import machine, write_table  # noqa: E402
from lib.export.onnx_file import bytes_of, file_of, make_onnx, with_int8_sums  # noqa: E402
from lib.export.onnx_graph import marked_graph  # noqa: E402
from lib.export.onnx_packages import onnxruntime, openvino, require_onnx  # noqa: E402
from lib.export.onnx_runtimes import EXACT_SUMS, OnnxNetwork, OpenVinoNetwork  # noqa: E402
from lib.export.onnx_twin import Twin  # noqa: E402
from lib.quantize.kmeans import CodebookCache  # noqa: E402
from lib.simulator.measured.timing import Protocol, measure  # noqa: E402
from lib.utils.quantize_utils import (  # noqa: E402
    LinearQuantization,
    convert_to_quantized,
    quantizable_layers,
    quantized_layers,
)

NETWORKS, CLASSES, CENTROID_BITS = ('mobilenetv2', 'resnet18', 'resnet50'), 1000, 4
HEAD = '| network | what runs | where | MB | load, s | ms | as fast as float in PyTorch | convolutions of 8 bits |'


class Side(NamedTuple):
    """One way to run a network: what and where, bytes of its file, seconds to load it, a call, its 8-bit convolutions.
    """

    what: str
    where: str
    size: int
    load: float
    call: object
    fused: str


def make_deployment_parser():
    """Returns the parser of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', default=NETWORKS, metavar='NETWORK', help='names of models.list_models'
                        '()')
    parser.add_argument('--image_size', type=int, default=224, help='side of the image')
    parser.add_argument('--bits', type=int, nargs=2, default=[8, 8], metavar=('W', 'A'), help='of all layers but the '
                        'first and the last, which have 8; times do not depend on them')
    parser.add_argument('--runs', type=int, default=100, help='calls of each side, in 10 rounds')
    parser.add_argument('--page', type=Path, help='where the table goes; default: it is only printed')
    return parser


def main(args):
    """Measures one network after the other and prints the table."""
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    require_onnx()
    torch.set_num_threads(1)
    versions = f'onnxruntime {onnxruntime.__version__}' + (f', OpenVINO {openvino.__version__.split("-")[0]}'
                                                           if openvino else ', no OpenVINO')
    lines = [*machine('cpu', 'random'), f'{versions}; {args.bits[0]} bits of weights, {args.bits[1]} of activations, '
             f'{args.image_size} x {args.image_size}, batch 1, one thread.', '', HEAD, '|---' * 8 + '|']
    print(*lines, sep='\n', flush=True)
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure_network(name, args.image_size, args.bits, args.runs, Path(folder))
        print(*rows, sep='\n', flush=True)
        lines += rows
    if args.page:
        write_table(args.page, 'deployment', lines)


@torch.no_grad()
def measure_network(name, side, bits, runs, folder):
    """Returns the rows of a network."""
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    sides = list(sides_of(name, image, bits, folder))
    protocol = Protocol(warm_up=3, rounds=10, runs=runs, max_seconds=60.0)
    times = measure({i: one.call for i, one in enumerate(sides)}, protocol)
    base = times[0].min_of_medians
    return [f'| {name} | {one.what} | {one.where} | {one.size / 1e6:.2f} | {one.load:.2f} | '
            f'{times[i].min_of_medians:.2f} | {base / times[i].min_of_medians:.2f}x | {one.fused} |'
            for i, one in enumerate(sides)]


def sides_of(name, image, bits, folder):
    """Yields the sides of a network, the float one in PyTorch first."""
    model = float_network(name, image)
    yield torch_side('float', model, image, folder)
    data = bytes_of(marked_graph(Twin(model), image))
    yield from onnx_sides('float', data, image, folder, precisions=('f32', 'bf16'))
    yield from torch_int8_side(model, image, folder)
    books = clustered(model)
    yield from onnx_sides(f'K-means, {CENTROID_BITS} bits', make_onnx(model, image, codebooks=books).data, image,
                          folder)
    file = make_onnx(linear(float_network(name, image), image, bits), image)
    yield from onnx_sides('quantized', file.data, image, folder)
    yield from onnx_sides('quantized, --int8_sums', with_int8_sums(file, image).data, image, folder)
    if max(bits) <= 4:
        small = file_of(file.marked, file.twin, 'int4')
        yield from onnx_sides('quantized, --onnx_weights int4', small.data, image, folder)


def float_network(name, image):
    """Returns a network whose BatchNorms have statistics of noise."""
    torch.manual_seed(0)
    model = models.create_model(name, num_classes=CLASSES)
    model.train()(image.expand(2, -1, -1, -1) + 0.1 * torch.randn(2, *image.shape[1:]))
    return model.eval()


def linear(model, image, bits):
    """Returns the network in the linear flow, calibrated on one image of noise."""
    convert_to_quantized(model, image, quiet=True)
    count = len(quantized_layers(model))
    LinearQuantization(model, [[8, 8], *[bits] * (count - 2), [8, 8]], image, method='max')
    return model


def clustered(model):
    """Clusters the weights in place; returns {layer: its codebook}."""
    cache, found = CodebookCache(max_iter=3), {}
    for name, layer in quantizable_layers(model).items():
        found[name] = cache.get(name, layer.weight.detach(), CENTROID_BITS)
        layer.weight.copy_(found[name].decode())
    return found


def torch_side(what, model, image, folder, fused='0'):
    """Returns a network in PyTorch, its file the state dict."""
    path = folder / 'state.pt'
    torch.save(model.state_dict(), path)
    start = time.perf_counter()
    torch.load(path, weights_only=True)
    load = time.perf_counter() - start
    return Side(what, 'PyTorch', path.stat().st_size, load, without_gradient(partial(model, image)), fused)


def without_gradient(call):
    """Returns the call in inference mode."""
    def run():
        with torch.inference_mode():
            return call()
    return run


def torch_int8_side(model, image, folder):
    """Yields PyTorch's own quantized kernels, where this PyTorch still has its way to them."""
    try:
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
        engine = torch.backends.quantized.engine
        prepared = prepare_fx(model, get_default_qconfig_mapping(engine), (image,))
        prepared(image)
        quantized = convert_fx(prepared)
        with torch.inference_mode():
            quantized(image)
        kinds = Counter(type(module).__module__ for module in quantized.modules() if isinstance(module, nn.Module))
        fused = sum(count for kind, count in kinds.items() if 'quantized' in kind and 'conv' in kind)
        yield torch_side(f'8 bits by torch.ao ({engine})', quantized, image, folder, str(fused))
    except Exception as error:  # it differs between versions, and networks cannot all be traced
        print(f'  torch.ao: left out ({type(error).__name__}: {str(error).splitlines()[0]:.100})', file=sys.stderr)


def onnx_sides(what, data, image, folder, precisions=('f32',)):
    """Yields an ONNX file in onnxruntime, with saturating and with exact sums where they differ, and in OpenVINO."""
    path = folder / 'network.onnx'
    path.write_bytes(data)
    nodes = OnnxNetwork(data, {}, keep_graph=True).nodes
    fused = f'{nodes["QLinearConv"]} of {sum(count for kind, count in nodes.items() if kind.endswith("Conv"))}'
    ways = {'onnxruntime': {}} | ({'onnxruntime, x64quantprecision': EXACT_SUMS} if nodes['QLinearConv'] else {})
    for where, settings in ways.items():
        load, network = loaded(partial(OnnxNetwork, path, settings))
        yield Side(what, where, len(data), load, partial(network, image), fused)
    for precision in precisions if openvino else ():
        if precision == 'bf16' and 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
            continue
        load, network = loaded(partial(OpenVinoNetwork, path, precision=precision))
        convolutions = {kind: count for (layer, kind), count in network.nodes.items() if 'Convolution' in layer}
        eight = sum(count for kind, count in convolutions.items() if kind in ('u8', 'i8'))
        yield Side(what, f'OpenVINO {precision}', len(data), load, partial(network, image),
                   f'{eight} of {sum(convolutions.values())}')


def loaded(make):
    """Returns (seconds, network)."""
    start = time.perf_counter()
    network = make()
    return time.perf_counter() - start, network


if __name__ == '__main__':
    main(make_deployment_parser().parse_args())
