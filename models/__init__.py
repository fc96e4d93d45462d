"""Float networks by name: our own, one family per file, and every classification model of torchvision.

Importing a family's file registers it. A quantized twin is no second copy of an architecture but a conversion,
`create_model("qresnet50", convert=...)`; this package knows nothing of quantization.
"""

from models import (
    densenet,
    hybrid_cnn,
    mobilenet,
    mobilenetv2,
    mobilenetv2_cifar,
    mobilenetv3,
    postresnet18,
    preactivation,
    premobilenetv2,
    prevgg,
    resnet_cifar,
    resnet_projection,
    toynet,
)
from models.registry import create_model, default_resolution, list_models, register, torchvision_weights
from models.tensorflow import tensorflow_style

__all__ = [
    'create_model',
    'default_resolution',
    'densenet',
    'hybrid_cnn',
    'list_models',
    'mobilenet',
    'mobilenetv2',
    'mobilenetv2_cifar',
    'mobilenetv3',
    'postresnet18',
    'preactivation',
    'premobilenetv2',
    'prevgg',
    'register',
    'resnet_cifar',
    'resnet_projection',
    'tensorflow_style',
    'torchvision_weights',
    'toynet',
]
