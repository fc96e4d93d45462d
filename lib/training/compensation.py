"""Rounding of the weights of a network for good, layer after layer, with compensation of errors or without."""

import copy
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.network.codebooks import has_one_value
from lib.network.conversion import listed, quantizable_layers, quantized_layers
from lib.network.hooks import batch_norms
from lib.network.layer_inputs import from_matrix, weight_matrix
from lib.quantize.codebook import Codebook
from lib.quantize.compensate import Moments, Nearest, Problem, compensate, compensate_codebook
from lib.quantize.kmeans import fit_codebook
from lib.quantize.quantizer import Quantizer, check_choice
from lib.quantize.reading import Product
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.loop import Precision
from lib.training.moments import calibration_batches, calls_of, collect_moments

logger = logging.getLogger(__name__)

ROUNDINGS = ('nearest', 'compensated')
PASSES = 12  # over the calibration images, of networks with more layers
BN_BATCHES = 8  # for the BatchNorm statistics after compensated rounding, where nothing else is said


@dataclass(frozen=True)
class Rounding:
    """How weights become codes.

    Attributes:
        rounding: to the 'nearest' code or centroid, each weight by itself, or 'compensated'.
        calibration_images: training images that the inputs of layers are taken from; their labels are not read.
        bias_correction: whether biases take over the mean errors of outputs; None: where rounding is compensated.
        bn_batches: training batches for the BatchNorm statistics afterwards; 0: 8 where rounding is compensated.
        keep_bn: BatchNorm keeps the statistics of the float network, and normalises the calibration images by them. For
            images that are unlike those that the float network was trained on.

    Raises:
        ValueError: another rounding, fewer than 2 images, or what contradicts itself.
    """

    rounding: str = 'nearest'
    calibration_images: int = 512
    bias_correction: bool | None = None
    bn_batches: int = 0
    keep_bn: bool = False

    def __post_init__(self):
        check_choice('rounding', self.rounding, ROUNDINGS)
        if self.calibration_images < 2:
            raise ValueError(f'calibration_images is {self.calibration_images}: expected at least 2')
        if self.keep_bn and not self.compensated:
            raise ValueError('keep_bn belongs to compensated rounding: leave it out')
        if self.keep_bn and self.bn_batches:
            raise ValueError(f'keep_bn keeps what bn_batches {self.bn_batches} estimates anew: leave one of them out')

    @property
    def compensated(self) -> bool:
        """Whether errors are compensated."""
        return self.rounding == 'compensated'

    @property
    def corrects_bias(self) -> bool:
        """Whether biases are corrected."""
        return self.compensated if self.bias_correction is None else self.bias_correction

    @property
    def needs_images(self) -> bool:
        """Whether rounding looks at images at all."""
        return self.compensated or self.corrects_bias

    def describe(self) -> dict:
        """Return what differs from rounding to the nearest, as plain values."""
        return {'rounding': self.rounding, 'calibration_images': self.calibration_images,
                'bias_correction': self.corrects_bias, **({'keep_bn': True} if self.keep_bn else {})} \
            if self.needs_images else {}

    def batches(self, loader, device: torch.device | str, precision: Precision | None = None,
                epoch: int = 0) -> list[Tensor]:
        """Return the calibration images of a training loader's epoch, in batches, in the memory layout of `precision`.

        The loader stays in that epoch.
        """
        place = (precision or Precision(device)).place
        return [place(device, batch) for batch in calibration_batches(loader, self.calibration_images, epoch)]

    def estimate_batch_norm(self, model: nn.Module, loader, device: torch.device | str,
                            precision: Precision | None = None) -> None:
        """Estimate the BatchNorm statistics of a rounded network anew, unless they are kept."""
        if self.needs_images and not self.keep_bn and batch_norms(model):
            reestimate_batch_norm(model, loader, self.bn_batches or BN_BATCHES, device, precision)


def nearest_on(quantizer: Quantizer, weight: Tensor) -> Nearest:
    """Return the rounding of columns (G, O), or (G, O, d), by a weight quantizer whose grid is fixed.

    Raises:
        ValueError: its levels depend on all weights (as DoReFa's do), so there is none.
    """
    if quantizer.bits == 1:
        codes, scale = quantizer.to_int(weight)
        scale = scale.abs() * codes.abs().max()

    def round_rows(values):  # (channels, n)
        if quantizer.bits == 1:
            return torch.where(values >= 0, 1.0, -1.0) * scale.reshape(-1, 1)
        return quantizer.fake_quantize(values)

    channels = weight.flatten(1)
    if not torch.equal(round_rows(channels[:, :1].contiguous()), quantizer(weight).flatten(1)[:, :1]):
        raise ValueError(f'{type(quantizer).__name__} has no grid of its own that a single weight could be rounded to')
    return lambda column: round_rows(column.reshape(len(channels), -1).float()).reshape(column.shape).double()


def round_network(model: nn.Module, batches: Sequence[Tensor], layers: Mapping[str, nn.Module],
                  round_layer: Callable[[str, nn.Module, Moments], Tensor], *, float_model: nn.Module | None,
                  corrects_bias: bool = True, keep_bn: bool = False) -> None:
    """Round the weights of a network in place, each layer for the inputs that the layers before it leave (asymmetric).

    Layers are taken in the order of their calls. Those of a pass get the moments of the same forward passes, so they do
    not see each other's errors; networks of at most `PASSES` layers have a pass for each. The first layer of a pass
    makes good what the layers before the pass have done to the outputs; would the others do so, too, what is wrong once
    would be corrected several times. BatchNorm uses the statistics of the batch unless they are kept, so those that it
    has are to be estimated anew.

    Args:
        model: the network, its input quantizers in use.
        batches: calibration images on its device.
        layers: {name: layer} of the layers to be rounded; what no forward calls stays as it is.
        round_layer: returns the rounded `weight_matrix` of a layer.
        float_model: the network before any quantization, for whose inputs layers shall have the same outputs; None:
            rounded weights shall have the outputs of the weights before, for the same inputs (sequential).
        corrects_bias: let biases take over the mean errors of their outputs.
        keep_bn: as in `collect_moments`.
    """
    calls = calls_of(model, layers, batches[0])
    order = list(calls)
    for start in range(PASSES):
        names = order[start * len(order) // PASSES:(start + 1) * len(order) // PASSES]
        if not names:
            continue
        group = {name: layers[name] for name in names}
        found = collect_moments(model, group, batches, calls=calls, float_model=float_model, keep_bn=keep_bn)
        for name, layer in group.items():
            moments = found[name] if name == names[0] else found[name]._replace(cross=None, float_mean=None)
            before = weight_matrix(layer, layer.weight.detach()).double().clone()
            after = round_layer(name, layer, moments)
            _put(layer, after, mean_error(before, after, moments) if corrects_bias else None)


@torch.no_grad()
def _put(layer, matrix, error):
    layer.weight.copy_(from_matrix(layer, matrix))
    if error is not None and getattr(layer, 'bias', None) is not None:
        layer.bias += error.to(layer.bias)


def mean_error(before: Tensor, after: Tensor, moments: Moments) -> Tensor:
    """Return how far the outputs (channels,) of rounded weights lie below those of the float layer, on average."""
    theirs = moments.mean if moments.float_mean is None else moments.float_mean
    return (before @ theirs[..., None] - after @ moments.mean[..., None]).flatten()


# ---- for good

def round_codebooks(model: nn.Module, bits: Mapping[str, int], batches: Sequence[Tensor], rounding: Rounding, *,
                    is_pruned: bool = False, max_iter: int = 50) -> dict[str, Codebook]:
    """Cluster the weights of a float network in place; return {name: `Codebook`} of the layers that were.

    Args:
        bits: {name: 1..8} of the layers to be clustered.
        batches: calibration images on the model's device.
        rounding: says how.
        is_pruned, max_iter: as in `fit_codebook`.
    """
    layers = {name: layer for name, layer in quantizable_layers(model).items()
              if name in bits and not has_one_value(layer.weight, is_pruned)}
    options, books = {'max_iter': max_iter, 'is_pruned': is_pruned}, {}

    def round_layer(name, layer, moments):
        books[name] = codebook_for(layer, bits[name], moments, **options) if rounding.compensated else \
            fit_codebook(layer.weight, bits[name], **options)
        return weight_matrix(layer, books[name].decode()).double()

    round_network(model, batches, layers, round_layer, float_model=copy.deepcopy(model),
                  corrects_bias=rounding.corrects_bias, keep_bn=rounding.keep_bn)
    return books


def codebook_for(layer: nn.Module, bits: int, moments: Moments | Problem, *, is_pruned: bool = False,
                 max_iter: int = 50) -> Codebook:
    """Return the compensated codebook of a layer's weight."""
    weight = layer.weight.detach()
    problem = moments if isinstance(moments, Problem) else Problem(weight_matrix(layer, weight), moments)
    kept = weight != 0 if is_pruned else None
    matrix = None if kept is None else weight_matrix(layer, kept)
    centroids, labels = compensate_codebook(problem, bits, max_iter=max_iter, kept=matrix)
    labels = from_matrix(layer, labels)
    return Codebook(centroids, labels if kept is None else labels * kept, kept)


def round_linear(model: nn.Module, batches: Sequence[Tensor], rounding: Rounding, *,
                 float_model: nn.Module | None = None, method: str = 'kl', only: Collection[str] | None = None) -> None:
    """Round the weights of quantized layers, whose bits and ranges are set, to their grids, in place.

    With compensation the range of a weight is chosen again, by `method`, for the weights that it asks for.

    Args:
        float_model: as in `round_network`.
        only: names of the layers; None: all that can be.
    """
    def round_layer(name, layer, moments):
        matrix, quantizer = weight_matrix(layer, layer.weight.detach()), layer.weight_quantizer
        if not rounding.compensated:
            return weight_matrix(layer, quantizer(layer.weight.detach())).double()
        problem = Problem(matrix, moments)
        wanted = from_matrix(layer, problem.weight.float())
        quantizer.calibrate(wanted, method=method)
        return compensate(problem, nearest_on(quantizer, wanted))

    layers = {name: layer for name, layer in linear_layers(model).items() if only is None or name in only}
    round_network(model, batches, layers, round_layer, float_model=float_model, corrects_bias=rounding.corrects_bias,
                  keep_bn=rounding.keep_bn)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return {name: layer} of the quantized layers whose weights can be compensated; the others are logged."""
    found, left = {}, {}
    for name, layer in quantized_layers(model).items():
        if not layer.weight_quantizer.active or isinstance(layer, Product):
            continue
        reason = obstacle(layer)
        if reason:
            left.setdefault(reason, []).append(name)
        else:
            found[name] = layer
    for reason, names in left.items():
        logger.warning('%s keep rounding to nearest: %s', listed(names), reason)
    return found


def obstacle(layer: nn.Module) -> str | None:
    """Return why a layer's weight cannot be compensated in the linear flow, or None."""
    if getattr(layer, 'computes_weight', False):
        return 'what is quantized is computed from their weights'
    if getattr(layer, 'rows_are_inputs', False) and getattr(layer.weight_quantizer, 'channels', None):
        return 'the scales of their weights belong to inputs'
    return None
