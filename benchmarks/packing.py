"""Packs a ResNet-50 with the published strategy and random codes, and reads it again: sizes, and seconds of CPU.

    python benchmarks/packing.py
"""

import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

import torch  # noqa: E402
from finetune import STRATEGIES  # noqa: E402

import models  # noqa: E402
from lib.export.about import make_about  # noqa: E402
from lib.export.container import write_bytes  # noqa: E402
from lib.export.packed import pack_network  # noqa: E402
from lib.export.stored import read_packed  # noqa: E402
from lib.network.conversion import quantizable_layers  # noqa: E402
from lib.network.coverage import inventory_of  # noqa: E402
from lib.quantize import Codebook  # noqa: E402
from lib.simulator.counting import file_size  # noqa: E402

SHAPE = (3, 224, 224)


def clustered(model, strategy):
    """Return {layer: codebook} of weights that are rounded to random centroids, in place."""
    books = {}
    for (name, layer), bits in zip(quantizable_layers(model).items(), strategy, strict=True):
        centroids = (0.02 * torch.randn(2**bits)).sort().values
        labels = torch.bucketize(layer.weight.data.contiguous(), centroids[1:])
        books[name] = Codebook(centroids, labels.to(torch.uint8))
        layer.weight.data.copy_(books[name].decode())
    return books


def timed(function):
    """Return (what a function returns, seconds of CPU, seconds)."""
    start = time.process_time(), time.perf_counter()
    result = function()
    return result, time.process_time() - start[0], time.perf_counter() - start[1]


def main():
    """Measure without and with Huffman codes."""
    torch.manual_seed(0)
    model, strategy = models.create_model('resnet50').eval(), STRATEGIES['resnet50']
    books = clustered(model, strategy)
    about = make_about({'quantization': 'kmeans', 'strategy': strategy, 'input': list(SHAPE), 'classes': 1000}, {
        'arch': 'resnet50', 'width_mult': 1.0, 'mode': None, 'tensorflow': False, 'model_file': None}, None, 'imagenet')
    print(f'--cost file_size: {file_size(inventory_of(model, SHAPE, False)).cost(strategy):,} bytes')
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'network.safetensors'
        for entropy in (False, True):
            (data, sizes, _), *packing = timed(lambda e=entropy: pack_network(
                model, torch.zeros(1, *SHAPE), about, books, entropy=e))
            write_bytes(path, data)
            _, *reading = timed(lambda: [coded.decode() for coded in read_packed(path).weights.values()])
            print('--entropy' if entropy else 'packed', *sizes.lines(), sep='\n    ')
            for what, (cpu, wall) in (('pack', packing), ('read and decode', reading)):
                print(f'    {what}: {cpu:.2f} s of CPU, {wall:.2f} s')


if __name__ == '__main__':
    main()
