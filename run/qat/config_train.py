"""The configurations of scripts/qat_train.py, one EasyDict each: edit them, or give options on the command line.

The keys are those of the original's config_train.py, and any option of qat_train.py. 32 bits = float.
docs/qat.md shows which part of a network each entry of layer_abit and layer_wbit belongs to.
"""

from easydict import EasyDict


def config(base, **changes):
    """Returns a copy of `base` with some entries changed."""
    return EasyDict({**base, **changes})


BASE = EasyDict()
BASE.dataset = 'cifar10'
BASE.normalize = 'cifar'
BASE.num_workers = 4
BASE.batch_size = 128
BASE.opt = 'Sgd'  # or 'Adam'
BASE.lr = 0.01
BASE.momentum = 0.9
BASE.weight_decay = 5e-4
BASE.nepochs = 300
BASE.lr_schedule = 'cosine'  # or 'exponential' (factor: gamma), 'multistep' (epochs: schedule)
BASE.learning_rate_min = 0.001

# ToyNet: stem, 10 blocks, header, fc
TOYNET = config(
    BASE, model='ToyNet', strides=[1, 2, 1, 2], num_layer_list=[1, 3, 3, 3], num_channel_list=[16, 32, 32, 64],
    stem_channel=16, header_channel=512, weight_quantizer='dorefa_symmetric', act_quantizer='mpact',
)
TOYNET_CFG1 = {'layer_abit': [32] + [8] * 10 + [32, 32], 'layer_wbit': [32] + [8] * 10 + [16, 16]}
TOYNET_CFG2 = {'layer_abit': [32, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 32, 32],
               'layer_wbit': [32, 8, 6, 6, 6, 6, 6, 6, 8, 8, 8, 16, 16]}

# MobileNetV2: stem, 17 blocks, head, fc
MOBILENETV2 = config(BASE, model='MBv2_cf10', weight_quantizer='dorefa_symmetric', act_quantizer='mpact')
MOBILENETV2_CFG1_STAR = {'layer_abit': [32] + [8] * 17 + [32, 32], 'layer_wbit': [32] + [8] * 17 + [16, 16]}

# ResNet-20: 9 blocks; with 11 entries also the stem (else 32 and 32) and fc (else 16 and 32). Activations stay scaled
# by 0.1, as in the original: expanded again they are too large for the classifier, whose weights reach 1, at this rate.
RESNET20 = config(BASE, model='RN20', batch_size=256, lr=0.1, weight_quantizer='dorefa_symmetric',
                  act_quantizer='dorefa', rescale=False)

CONFIGS = {
    'toynet_float': config(TOYNET, layer_abit=[32] * 13, layer_wbit=[32] * 13),
    'toynet_cfg1': config(TOYNET, **TOYNET_CFG1, act_quantizer='dorefa'),
    'toynet_cfg1_large_batch': config(TOYNET, **TOYNET_CFG1, act_quantizer='dorefa', batch_size=256),
    'toynet_cfg1_star': config(TOYNET, layer_abit=[32] + [8] * 11 + [16], layer_wbit=[8] * 13),
    'toynet_cfg2': config(TOYNET, **TOYNET_CFG2),
    'toynet_cfg2_dorefa': config(TOYNET, **TOYNET_CFG2, act_quantizer='dorefa'),
    'toynet_cfg3': config(TOYNET, layer_abit=[32, 8] + [6] * 9 + [32, 32], layer_wbit=[32, 8] + [6] * 9 + [16, 16]),
    'mobilenetv2_float': config(MOBILENETV2, layer_abit=[32] * 20, layer_wbit=[32] * 20),
    'mobilenetv2_cfg1_star': config(MOBILENETV2, **MOBILENETV2_CFG1_STAR),
    # The scale of MBConv blocks is 6, of stem and end 10
    'mobilenetv2_cfg1_star_fixed_pact': config(MOBILENETV2, **MOBILENETV2_CFG1_STAR, act_quantizer='fixed_pact',
                                               alpha=6.0, end_alpha=10.0),
    'mobilenetv2_cfg1_star_dorefa': config(MOBILENETV2, **MOBILENETV2_CFG1_STAR, act_quantizer='dorefa'),
    # Fewer bits where most of the weights are: blocks 11 to 17 at 6 bits
    'mobilenetv2_cfg2_star': config(MOBILENETV2, layer_abit=[32] + [8] * 17 + [32, 32],
                                    layer_wbit=[32] + [8] * 10 + [6] * 7 + [16, 16]),
    'resnet20_float': config(RESNET20, layer_abit=[32] * 11, layer_wbit=[32] * 11),
    'resnet20_cfg1_star': config(RESNET20, layer_abit=[8] * 9, layer_wbit=[8] * 9),
    'resnet20_cfg1_star_no_branch': config(RESNET20, layer_abit=[8] * 9, layer_wbit=[8] * 9, branch_out=False),
    # Fewer bits where most of the weights are: the last stage at 6 bits
    'resnet20_cfg2_star': config(RESNET20, layer_abit=[8] * 6 + [6] * 3, layer_wbit=[8] * 6 + [6] * 3),
}
for name, entries in CONFIGS.items():
    entries.pretrain = f'checkpoints/qat/{name}'  # the folder of the run
