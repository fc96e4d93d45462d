"""Integer networks beside the fake-quantized ones that they come from: random weights, small images of four colours.

    python benchmarks/integer_networks.py [NAME ...] --side 64

BatchNorms are random and have the statistics of the images; the classifier holds the means of the classes. A row has
the bits, the quantizers, how the codes of each operation alone agree (the worst quantizer, the largest difference), how
many codes agree end to end, and on 64 new images the share of equal predictions. Needs timm.
"""

import argparse
import sys
import time
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lib.integer.compare import compare_codes  # noqa: E402
from lib.integer.lowering import lower_network  # noqa: E402
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized, quantized_layers  # noqa: E402

NAMES = ('densenet121', 'shufflenet_v2_x0_5', 'mobilenet_v3_small', 'efficientnet_b0', 'regnet_x_400mf',
         'regnet_y_400mf', 'timm:dla34', 'timm:repvgg_a0', 'timm:mobilenetv2_100', 'timm:regnetx_002')
COLOURS = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])


def images_of(side, count, seed):
    """Return noisy images of four colours, one after another."""
    noise = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return (1.2 * COLOURS.repeat(count // 4, 1)[:, :, None, None] + 0.4 * noise).clamp_(-8, 8)


def build(name):
    """Return a network of torchvision, or timm:NAME, with random weights."""
    torch.manual_seed(0)
    if name.startswith('timm:'):
        return timm.create_model(name.removeprefix('timm:'), num_classes=4)
    return torchvision.models.get_model(name, num_classes=4)


@torch.no_grad()
def settle(model, images):
    """Give BatchNorms random parameters and the images' statistics, and the classifier the means of the classes."""
    generator, features = torch.Generator().manual_seed(1), []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.3, generator=generator)
            module.momentum = None
    model.train()(images)
    last = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Conv2d))][-1]  # DLA's is 1x1
    hook = last.register_forward_pre_hook(lambda _, args: features.append(args[0].flatten(1)))
    model.eval()(images)
    hook.remove()
    means = features[0].unflatten(0, (-1, 4)).mean(0)
    means -= means.mean(0)
    last.weight.copy_((means / means.square().sum(1, keepdim=True)).view_as(last.weight))
    last.bias.zero_()


def row(name, bits, side):
    """Return the line of a network at these bits, of weights and activations."""
    start, images, model = time.time(), images_of(side, 32, 0), build(name)
    settle(model, images)
    convert_to_quantized(model, images[:2], quiet=True)
    layers = quantized_layers(model)
    LinearQuantization(model, [[bits, bits]] * len(layers), images, method='max')
    network = lower_network(model.eval(), tuple(images.shape[1:]))
    found = compare_codes(model, network, images_of(side, 8, 1)).values()
    new = images_of(side, 64, 2)
    with torch.no_grad():
        expected, predicted = model(new).argmax(1), network(new, arithmetic='float64').argmax(1)
    return (f'| {name} | {bits}/{bits} | {len(layers)} | {100 * min(one.equal for one in found):.2f} %, '
            f'{max(one.largest for one in found)} | '
            f'{100 * sum(one.equal_end_to_end for one in found) / len(found):.1f} % | '
            f'{100 * (expected == predicted).double().mean():.1f} % | {time.time() - start:.0f} s |')


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('names', nargs='*', default=NAMES, help='of torchvision, or timm:NAME (default: ten)')
    parser.add_argument('--side', type=int, default=64, help='of the images (default: 64)')
    args = parser.parse_args()
    for name in args.names:
        for bits in (8, 4):
            print(row(name, bits, args.side), flush=True)


if __name__ == '__main__':
    main()
