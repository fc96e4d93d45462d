r"""How near a network stays to its float self without training, rounded to nearest and with compensation, and the cost.

Any network and any images, whose labels are not looked at: share of images with the same most likely class as by the
float network, KL from its outputs, processor seconds of each way; in the end the peak memory of all. BatchNorm is
estimated anew in both, or kept in both (--keep_bn), for images that the network was not trained on:

    python benchmarks/rounding.py --arch mobilenet_v2 --weights mobilenet_v2_tfslim.pth --tensorflow \
        --num_classes 1000 --dataset dtd --dataset_root data/dtd --keep_bn --channels_last
"""

import argparse
import copy
import resource
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'scripts')]

from _networks import Network, build_model  # noqa: E402
from _setup import Data, loaders_of  # noqa: E402
from _weights import Start, prepare, read_weights  # noqa: E402

from lib.network.hooks import evaluating  # noqa: E402
from lib.runtime.process import keep_memory  # noqa: E402
from lib.training.compensation import Rounding, round_codebooks, round_linear  # noqa: E402
from lib.utils.quantize_utils import (  # noqa: E402
    KMeansQuantization,
    LinearQuantization,
    quantizable_layers,
    quantized_layers,
)

DEVICE = torch.device('cpu')


def options():
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', default='resnet20')
    parser.add_argument('--weights', help='float weights (default: random)')
    parser.add_argument('--tensorflow', action='store_true', help='weights trained by TensorFlow')
    parser.add_argument('--num_classes', type=int)
    parser.add_argument('--dataset', default='digits')
    parser.add_argument('--dataset_root')
    parser.add_argument('--calibration_images', type=int, default=512)
    parser.add_argument('--test_images', type=int, default=512)
    parser.add_argument('--kmeans', type=int, nargs='*', default=[4, 3], help='bits of all layers')
    parser.add_argument('--linear', type=int, nargs='*', default=[8, 6, 4], help='bits of all weights and inputs')
    parser.add_argument('--channels_last', action='store_true', help='activations as N, H, W, C: faster on the CPU')
    parser.add_argument('--keep_bn', action='store_true', help='keep the BatchNorm statistics of the float network')
    parser.add_argument('--fold_bn', action='store_true', help='linear: fold BatchNorm')
    return parser.parse_args()


def prepared(args, network, data, linear):
    """Returns (float network in the form of the flow, training loader, validation loader)."""
    *loaders, classes = loaders_of(data, network, DEVICE)
    shape = loaders[0].input_shape
    model = build_model(network, classes, shape, DEVICE, loaders)
    start = Start(weights=args.weights)
    checkpoint, source = read_weights(start, network)
    prepare(model, shape, start, checkpoint, source, linear=linear, fold_bn=linear and args.fold_bn,
            grids={'activation_grid': None, 'weight_scales': 'channel' if linear else None})
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return model.eval(), *loaders


@torch.no_grad()
def outputs(model, loader, count):
    """Returns the logits of the first `count` images."""
    found, missing = [], count
    with evaluating(model):
        for images, _ in loader:
            found.append(model(images[:missing]))
            missing -= len(found[-1])
            if missing <= 0:
                break
    return torch.cat(found)


def quantized(model, train, rounding, bits, linear, keep_bn):
    """Returns the network under the same bits everywhere, 8 in the first and the last layer of the linear flow."""
    float_model, model = model, copy.deepcopy(model)
    batches = rounding.batches(train, DEVICE) if rounding.compensated else []
    if linear:
        middle = len(quantized_layers(model)) - 2
        LinearQuantization(model, [[8, -1], *[[bits, bits]] * middle, [8, 8]], train.first_batch(), method='mse')
        if batches:
            round_linear(model, batches, rounding, float_model=float_model, method='mse')
    else:
        strategy = dict.fromkeys(quantizable_layers(model), bits)
        books = round_codebooks(model, strategy, batches, rounding) if batches else None
        KMeansQuantization(model, list(strategy.values()), codebooks=books)
    if not keep_bn:
        Rounding('compensated').estimate_batch_norm(model, train, DEVICE)
    return model


def main():
    args = options()
    keep_memory()
    network = Network(args.arch, num_classes=args.num_classes, tensorflow=args.tensorflow)
    data = Data(args.dataset, args.dataset_root, train_batch=64, test_batch=64, cache='auto')
    print('| flow | bits | rounding | agreement, % | KL | seconds of a core |\n|---|---|---|---|---|---|', flush=True)
    for linear in (False, True):
        model, train, val = prepared(args, network, data, linear)
        reference = outputs(model, val, args.test_images)
        for bits in args.linear if linear else args.kmeans:
            for way in ('nearest', 'compensated'):
                begun = time.process_time()
                rounding = Rounding(way, args.calibration_images, keep_bn=args.keep_bn and way == 'compensated')
                found = quantized(model, train, rounding, bits, linear, args.keep_bn)
                spent = time.process_time() - begun
                logits = outputs(found, val, args.test_images)
                same = (logits.argmax(1) == reference.argmax(1)).float().mean() * 100
                divergence = F.kl_div(logits.log_softmax(1), reference.log_softmax(1), reduction='batchmean',
                                      log_target=True)
                print(f'| {"linear" if linear else "K-means"} | {bits} | {way} | {same:.1f} | {divergence:.4f} | '
                      f'{spent:.0f} |', flush=True)
    print(f'{len(reference)} images compared; peak memory '
          f'{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB')


if __name__ == '__main__':
    main()
