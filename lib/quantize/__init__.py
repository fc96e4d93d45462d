"""The mathematics on tensors: K-means codebooks, linear quantizers, calibration, and layers that carry quantizers."""

from lib.quantize.aciq import ACIQWeightQuantizer, aciq_constant, allocate_bits
from lib.quantize.aciq_activations import ACIQActivationQuantizer
from lib.quantize.codebook import CentroidTrainer, Codebook
from lib.quantize.dorefa import DoReFaActivationQuantizer, DoReFaWeightQuantizer
from lib.quantize.dsq import DSQQuantizer
from lib.quantize.grids import Grids
from lib.quantize.kmeans import CodebookCache, fit_codebook
from lib.quantize.layers import QConv2d, QLinear, QuantizedLayer, RangeChoice, calibrating
from lib.quantize.linear import LinearActivationQuantizer, LinearWeightQuantizer
from lib.quantize.lsq import LSQQuantizer
from lib.quantize.pact import PACTActivationQuantizer
from lib.quantize.quantizer import Affine, Grid, Quantizer, straight_through
from lib.quantize.ranges import METHODS, find_range, kl_threshold, max_range, mse_range

__all__ = [
    'METHODS', 'ACIQActivationQuantizer', 'ACIQWeightQuantizer', 'Affine', 'CentroidTrainer', 'Codebook',
    'CodebookCache', 'DSQQuantizer', 'DoReFaActivationQuantizer', 'DoReFaWeightQuantizer', 'Grid', 'Grids',
    'LSQQuantizer', 'LinearActivationQuantizer', 'LinearWeightQuantizer', 'PACTActivationQuantizer', 'QConv2d',
    'QLinear', 'QuantizedLayer', 'Quantizer', 'RangeChoice', 'aciq_constant', 'allocate_bits', 'calibrating',
    'find_range', 'fit_codebook', 'kl_threshold', 'max_range', 'mse_range', 'straight_through',
]
