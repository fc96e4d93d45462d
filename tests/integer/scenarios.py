"""Small quantized networks for the tests of integer inference: prepared for QAT, with statistics as after training."""

import torch
from torch import nn

from lib.quantize.dorefa import DoReFaWeightQuantizer
from lib.quantize.layers import quantized_type
from lib.quantize.pact import PACTActivationQuantizer
from lib.quantize.quantizer import Quantizer
from models import mobilenetv2_cifar, resnet_projection
from models.toynet import ToyNet

CLASSES = 4
SHAPE = (3, 16, 16)


def small_network(name):
    """Returns one of the three networks of the DoReFa/PACT system, with fewer channels and blocks."""
    torch.manual_seed(0)
    if name == 'toynet':
        return ToyNet(CLASSES, num_layer_list=(1, 1, 1, 1), num_channel_list=(8, 12, 12, 16), stem_channel=8,
                      header_channel=32)
    module, changes = {
        'mobilenetv2_cifar': (mobilenetv2_cifar, {'ROWS': [(1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 2, 2)],
                                                  'STEM_CHANNELS': 8, 'LAST_CHANNELS': 48}),
        'resnet20_projection': (resnet_projection, {'STAGES': [(8, 3, 1), (12, 3, 2)]}),
    }[name]
    before = {key: getattr(module, key) for key in changes}
    try:
        vars(module).update(changes)
        return (module.MobileNetV2Cifar if 'mobile' in name else module.ProjectionResNet)(CLASSES)
    finally:
        vars(module).update(before)


def batch(images=16, seed=0):
    """Returns images of four classes, each a colour and noise."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]])[torch.arange(images) % CLASSES]
    return (1.2 * colours[:, :, None, None] + 0.4 * torch.randn(images, *SHAPE, generator=generator)).clamp_(-8, 8)


def replace(model, name, module):
    """Puts `module` in the place of the submodule `name`."""
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)


def prepare(model, w_bits, a_bits, activation=lambda bits: PACTActivationQuantizer(bits, signed=True)):
    """Converts the layers and puts quantizers in place of the Identities; bits are one a entry, or one for all."""
    entries = model.bit_entries()
    w_bits, a_bits = ([bits] * len(entries) if isinstance(bits, int) else bits for bits in (w_bits, a_bits))
    for entry, w_bit, a_bit in zip(entries, w_bits, a_bits, strict=True):
        for name in entry.layers:
            layer = model.get_submodule(name)
            quantized_type(layer).convert(layer, w_bit=w_bit, weight_quantizer=DoReFaWeightQuantizer(symmetric=True),
                                          input_quantizer=Quantizer())
        for name in entry.activations:
            replace(model, name, activation(a_bit))
    return model


@torch.no_grad()
def settle(model, images):
    """Random batch norms, ranges and statistics that suit the images, a classifier that tells their classes apart."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator).mul_(
                torch.randint(0, 8, module.weight.shape, generator=generator).clamp(max=1) * 2 - 1)
            module.bias.normal_(0, 0.5, generator=generator)
            module.momentum = None

    def set_range(quantizer, args):
        quantizer.range.fill_(2.5 * args[0].std())

    hooks = [module.register_forward_pre_hook(set_range) for module in model.modules()
             if isinstance(module, PACTActivationQuantizer) and module.trainable]
    features = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    model.train()(images)
    for hook in hooks:
        hook.remove()
    hook = last.register_forward_pre_hook(lambda _, args: features.append(args[0]))
    model.eval()(images)
    hook.remove()
    means = features[0].unflatten(0, (-1, CLASSES)).mean(0)
    last.weight.copy_((means - means.mean(0)) / features[0].std())
    last.bias.normal_(0, 0.1, generator=generator)
    return model


def ready(name, w_bits, a_bits, *activation):
    """Returns the small network `name`, prepared and settled."""
    return settle(prepare(small_network(name), w_bits, a_bits, *activation), batch())
