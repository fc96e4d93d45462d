"""Hybrid quantization of networks: soft DSQ in training, then folding, then ACIQ."""

import logging
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from lib.hybrid.plan import Plan
from lib.network.batch_norm_folding import fold_batch_norms, foldable_batch_norms
from lib.network.conversion import activation_quantizers, all_layers, quantized_layers, start_reading
from lib.network.hooks import evaluating, hooked, replace_module
from lib.network.not_finite import locating
from lib.network.signedness import probe_inputs
from lib.quantize import (
    ACIQActivationQuantizer,
    ACIQWeightQuantizer,
    DSQQuantizer,
    LinearWeightQuantizer,
    QConv2d,
    Quantizer,
)
from lib.quantize.folding import start_folding, stop_folding
from lib.quantize.layers import QuantizedLayer, quantized_type
from lib.utils.quantize_utils import Quantization, synchronise_signs

logger = logging.getLogger(__name__)


class QuantizedActivation(nn.Module):
    """An activation function and the quantizer of its output."""

    def __init__(self, activation: nn.Module, quantizer: Quantizer):
        super().__init__()
        self.activation, self.quantizer = activation, quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer(self.activation(x))


def prepare_training(model: nn.Module, plan: Plan, images: Tensor) -> None:
    """Put the DSQ quantizers of a plan into a float network, in place.

    Convolutions with such weights are trained with their BatchNorm folded in, where the plan says so and one follows
    that can be folded.

    Args:
        model: float network, with the weights to begin with or before they are loaded.
        plan: a `Plan`; its `inputs` learn which of them are signed.
        images: probe (N, C, H, W) on the model's device.

    Raises:
        ValueError: a layer cannot be quantized, or gets a signed input at one bit.
    """
    _find_signs(model, plan, images)
    norms, dsq = dict(foldable_batch_norms(model, images)), plan.of('dsq')
    for name, entry in dsq.weights.items():
        layer = _quantized(model, name)
        layer.set_quantizers(weight=_dsq(entry))
        if entry['fold'] and name in norms and type(layer) is QConv2d:
            start_folding(layer, model.get_submodule(norms[name]))
    for name, entry in dsq.inputs.items():
        _quantized(model, name).set_quantizers(input=_dsq(entry))
    for name, entry in dsq.activations.items():
        _behind(model, name, entry, _dsq(entry))
    start_reading(model)


def finish_training(model: nn.Module, plan: Plan, images: Tensor) -> list[tuple[str, str]]:
    """End training: fold every BatchNorm that can be folded. Bounds and slopes of DSQ stay, which saw folded weights.

    The BatchNorm of a layer whose weights were trained without folding stays.

    Args:
        model: network after `prepare_training`.

    Returns:
        (layer, BatchNorm) names of those folded.
    """
    stop_folding(model)
    leave = [name for name, entry in plan.of('dsq').weights.items() if not entry['fold']]
    return fold_batch_norms(model, images, leave)


def place_after_training(model: nn.Module, plan: Plan) -> None:
    """Put the ACIQ quantizers of a plan into a network after `finish_training`, in place, not calibrated yet.

    Weights that are to be compensated get linear quantizers, of the range of least squared error.
    """
    aciq = plan.of('aciq')
    for name, entry in aciq.weights.items():
        if getattr(model.get_submodule(name), 'computes_weight', False):
            raise ValueError(f'{name} multiplies with a weight that it computes anew in every forward pass, which ACIQ '
                             f'cannot calibrate: give it weight bits of DSQ, or -1 for float weights')
        settings = {key: entry[key] for key in ('prior', 'per_channel', 'bit_alloc', 'bias_corr')}
        layer = _quantized(model, name)
        if entry['clipping'] == 'compensated':
            channels = len(layer.weight) if entry['per_channel'] else None
            quantizer = LinearWeightQuantizer(entry['bits'], channels=channels)
        else:
            quantizer = ACIQWeightQuantizer(entry['bits'], method=entry['clipping'], **settings)
        layer.set_quantizers(weight=quantizer)
    for name, entry in aciq.inputs.items():
        _quantized(model, name).set_quantizers(input=_aciq(entry))
    for name, entry in aciq.activations.items():
        _behind(model, name, entry, _aciq(entry))
    start_reading(model)


@torch.no_grad()
def calibrate_after_training(model: nn.Module, plan: Plan, batches: Iterable[Tensor]) -> None:
    """Find what the ACIQ quantizers need: of weights first, then of activations, from images.

    While images pass, the activations to be calibrated stay float, all else is quantized. The range of each is the mean
    of those of the batches, and that of a batch covers all calls of the quantizer.

    Args:
        model: network after `place_after_training`.
        batches: iterable of images (N, C, H, W) on the model's device.

    Raises:
        ValueError: no images, or an activation that is never called.
    """
    aciq = plan.of('aciq')
    for name in aciq.weights:
        layer = model.get_submodule(name)
        layer.weight_quantizer.calibrate(layer.weight, method='mse')
    quantizers = {name: model.get_submodule(name).quantizer for name in aciq.activations}
    quantizers |= {name: model.get_submodule(name).input_quantizer for name in aciq.inputs}
    if quantizers:
        for name, ranges in _ranges_of_batches(model, quantizers, batches).items():
            if not ranges:
                raise ValueError(f'{name} is never called in a forward pass, so its range cannot be calibrated: take '
                                 'it out of the configuration')
            quantizers[name].set_clip(*np.mean(ranges, axis=0).tolist())


def _ranges_of_batches(model, quantizers, batches):
    """Return {name: [(clip, middle) of each batch]} of quantizers, which pass tensors on as they are meanwhile."""
    found, calls = {name: [] for name in quantizers}, {name: [] for name in quantizers}

    def record(name, quantizer, x, _output):
        calls[name].append(quantizer.statistics(x))
        return x

    seen = 0
    with hooked(quantizers, after=record), evaluating(model):
        for images in batches:
            seen += len(images)
            with locating(model, images):
                model(images)
            for name, ranges in calls.items():
                if ranges:
                    found[name].append(_covering(ranges))
                    ranges.clear()
    if not seen:
        raise ValueError('calibration saw no images: give calibration_num of at least 1')
    return found


def _covering(ranges):
    """Return (clip, middle) of the smallest range that covers some of them; with the middle 0, the largest."""
    if len(ranges) == 1:
        return ranges[0]
    low, high = min(middle - clip for clip, middle in ranges), max(middle + clip for clip, middle in ranges)
    return (high - low) / 2, (high + low) / 2


def rebuild(model: nn.Module, plan: Plan, images: Tensor, *, quantized: bool) -> None:
    """Give a float network the modules of a checkpoint, whose state dict then fits.

    Args:
        quantized: whether the checkpoint is of the network after `place_after_training`.
    """
    prepare_training(model, plan, images)
    if quantized:
        finish_training(model, plan, images)
        place_after_training(model, plan)


def integer_weights(model: nn.Module) -> dict[str, np.ndarray]:
    """Return {'layer.codes': ..., '.scale', '.zero_point', '.bias'} of every layer with quantized weights, as arrays.

    A weight is scale * (code - zero_point); codes are uint8 in the layout of the layer.
    """
    arrays = {}
    for name, layer in quantized_layers(model).items():
        if not layer.weight_quantizer.active:
            continue
        affine = layer.weight_quantizer.to_affine(layer.weight.detach())
        arrays[f'{name}.codes'] = affine.codes.cpu().numpy().astype(np.uint8)
        for key in ('scale', 'zero_point'):
            arrays[f'{name}.{key}'] = getattr(affine, key).cpu().numpy()
        if layer.bias is not None:
            arrays[f'{name}.bias'] = layer.bias.detach().cpu().numpy()
    return arrays


class HybridQuantization(Quantization):
    """Training of a network that `prepare_training` prepared; its `kind` is 'hybrid', or 'float' without DSQ."""

    def __init__(self, model: nn.Module, plan: Plan, settings: dict, *, qat: dict, training: dict):
        """Take over a prepared network.

        Args:
            settings: plain values that checkpoints carry beside the plan.
            qat, training: these sections of the configuration: what bounds and slopes are kept in, and the schedule of
                slopes that are not learned.
        """
        super().__init__(model, None)
        self.plan, self.settings, self.training_keys = plan, settings, training
        dsq = plan.of('dsq')
        self.kind = 'hybrid' if dsq else 'float'
        placed = [(model.get_submodule(name).weight_quantizer, entry, 'w') for name, entry in dsq.weights.items()]
        placed += [(model.get_submodule(name).quantizer, entry, 'a') for name, entry in dsq.activations.items()]
        placed += [(model.get_submodule(name).input_quantizer, entry, 'a') for name, entry in dsq.inputs.items()]
        self._clamps = [(quantizer, _ranges(qat, letter)) for quantizer, _, letter in placed]
        self._slopes = [(quantizer, entry['slope']) for quantizer, entry, _ in placed if not entry['learn_slope']]

    def before_epoch(self, epoch: int, epochs: int, optimizer: torch.optim.Optimizer) -> None:
        """Set the slopes that are not learned: s(e) = s0 + (s1 - s0) e / E in the first E epochs."""
        first, length = self.training_keys['warmup_slope'], self.training_keys['slope_warmup_epochs']
        share = min(epoch / length, 1.0) if length else 1.0
        with torch.no_grad():
            for quantizer, last in self._slopes:
                quantizer.slope.fill_(first + (last - first) * share)

    def after_step(self) -> None:
        for quantizer, ranges in self._clamps:
            quantizer.clamp_(**ranges)

    def synchronise(self) -> None:
        super().synchronise()
        synchronise_signs(activation_quantizers(self.model).values())

    def describe(self) -> dict:
        return {'quantization': self.kind, 'plan': self.plan.to_dict()}

    def state(self) -> dict:
        return {**self.describe(), 'hybrid': self.settings}


def _ranges(qat, letter):
    ranges = {'upper': qat[f'clip_{letter}_upper_range'], 'slope': qat[f'slope_{letter}_range']}
    return {**ranges, 'lower': qat['clip_w_lower_range']} if letter == 'w' else ranges


def _find_signs(model, plan, images):
    unknown = {name: model.get_submodule(name) for name, entry in plan.inputs.items() if 'signed' not in entry}
    if not unknown:
        return
    layers = all_layers(model)
    for name, signed in probe_inputs(model, layers, images).items():
        if name not in unknown:
            continue
        signed = signed is not False  # what is not known to be without a sign may have one
        if signed and plan.inputs[name]['bits'] == 1:
            raise ValueError(f'{name} gets 1-bit inputs that can be negative: 1-bit activations have no signed range; '
                             'take 2 bits, or -1 for a float input')
        plan.inputs[name]['signed'] = signed
    missing = [name for name in unknown if 'signed' not in plan.inputs[name]]
    if missing:
        raise ValueError(f'layers: {", ".join(missing)} is never called in a forward pass, so it has no input')


def _quantized(model, name):
    layer = model.get_submodule(name)
    if isinstance(layer, QuantizedLayer):
        return layer
    try:
        return quantized_type(layer).convert(layer, weight_quantizer=Quantizer(), input_quantizer=Quantizer())
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error


def _behind(model, name, entry, quantizer):
    """Replace an activation function by itself and the quantizer of its output, under all the names in its entry."""
    module = QuantizedActivation(model.get_submodule(name), quantizer.to(next(model.parameters()).device))
    module.train(model.training)
    replace_module(model, entry.get('names', [name]), module)  # old plans have the first name only, and mean that


def _dsq(entry):
    settings = {key: value for key, value in entry.items() if key not in ('method', 'bits', 'signed', 'fold', 'names')}
    if entry.get('signed'):
        settings.update(lower=-entry['upper'], learn_lower=entry['learn_upper'])
    return DSQQuantizer(entry['bits'], **settings)


def _aciq(entry):
    settings = {key: entry[key] for key in ('prior', 'center', 'spread')}
    return ACIQActivationQuantizer(entry['bits'], method=entry['clipping'], signed=entry.get('signed', False),
                                   **settings)
