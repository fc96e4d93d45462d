"""Small networks of timm, with random weights: `--model_file examples/timm_networks.py:vit`.

timm is no requirement of this repository: `pip install timm`.
"""

import timm

SIZE = {'img_size': 32}


def vit(num_classes: int):
    """Return a vision transformer."""
    return timm.create_model('vit_tiny_patch16_224', patch_size=4, embed_dim=64, depth=4, num_heads=4,
                             num_classes=num_classes, **SIZE)


def swin(num_classes: int):
    """Return a Swin transformer of two stages."""
    return timm.create_model('swin_tiny_patch4_window7_224', patch_size=2, window_size=4, embed_dim=32, depths=(2, 2),
                             num_heads=(2, 4), num_classes=num_classes, **SIZE)


def convnext(num_classes: int):
    """Return a ConvNeXt."""
    return timm.create_model('convnext_atto', depths=(1, 1, 2, 1), dims=(16, 32, 64, 128), patch_size=2,
                             num_classes=num_classes)


def mobilenetv4(num_classes: int):
    """Return a MobileNetV4 of half the width."""
    return timm.create_model('mobilenetv4_conv_small_050', num_classes=num_classes)


def nfnet(num_classes: int):
    """Return a normalizer-free network: standardised weights, no BatchNorm."""
    config = timm.models.nfnet.NfCfg(depths=(1, 1, 2), channels=(32, 64, 128), stem_type='3x3', stem_chs=16,
                                     act_layer='silu')
    return timm.models.NormFreeNet(config, num_classes=num_classes)
