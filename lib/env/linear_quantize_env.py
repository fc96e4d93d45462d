"""The linear environment: weight and activation bits of every layer under budgets read from lookup tables."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lib.env.compensated import CompensatedWeights
from lib.env.search_env import SearchEnv
from lib.quantize.grids import Grids
from lib.training.compensation import round_linear
from lib.utils.quantize_utils import LinearQuantization, calibrate, quantized_layers


class LinearQuantizeEnv(SearchEnv):
    """Two steps a layer: weight bits, then activation bits. The ranges of a layer are found once for its bits."""

    def __init__(self, model: nn.Module, train_loader, val_loader, space, settings=None, *,
                 calibrate_method: str = 'kl', activation_cap: float | None = None, **common):
        """See `SearchEnv` for the other settings.

        Args:
            model: network with `QConv2d` and `QLinear` layers and float weights.
            space: one of pairs, as `Space.of` makes it.
            calibrate_method: 'kl', 'mse' or 'max'.
            activation_cap: upper limit of the activation ranges, or None.
        """
        self.calibrate_method, self.activation_cap, self._ranges = calibrate_method, activation_cap, {}
        train_loader.set_epoch(0)
        images = train_loader.first_batch()  # the same in all processes
        super().__init__(model, train_loader, val_loader, space, settings, **common)
        self._calibration = {'images': images.to(self.device), 'method': calibrate_method, 'cap': activation_cap,
                             'cache': self._ranges}
        self._compensated = CompensatedWeights(self.problems, self.rounding.corrects_bias) if self.problems else None

    def _quantize(self, strategy):
        quantization = self._ranged(strategy)
        if self._compensated:
            for name, layer in self.layers().items():
                self._compensated.put(name, layer)
        return quantization

    def _ranged(self, strategy):
        """Set bits and ranges."""
        return LinearQuantization(self.model, strategy, **self._calibration)

    def _quantize_finally(self, strategy, batches):
        layers = self.layers().values()
        self._set_bits(layers, [(None, None)] * len(layers))
        float_model = copy.deepcopy(self.model)
        quantization = self._ranged(strategy)
        round_linear(self.model, batches, self.rounding, float_model=float_model, method=self.calibrate_method)
        return quantization

    def layers(self) -> dict[str, nn.Module]:
        """Return {name: layer} of the layers that a strategy has entries for."""
        return quantized_layers(self.model)

    def describe_quantizers(self) -> dict:
        """Return what the quantized tensors depend on beside the float weights, as plain values."""
        chosen = Grids.of(self.layers().values()).to_dict()
        return {'flow': 'linear', 'calibration': self.calibrate_method, 'activation_cap': self.activation_cap,
                **{name: value for name, value in chosen.items() if value != getattr(Grids, name)},
                **self.rounding.describe()}

    @contextmanager
    def float_network(self) -> Iterator[nn.Module]:
        """As in `SearchEnv`; the layers are without bits, and the ranges of all bits are found beforehand."""
        layers = self.layers().values()
        bits = [(layer.w_bit, layer.a_bit) for layer in layers]
        with super().float_network() as model:
            try:
                for bit in self.space.all_bits:
                    self._ranged([[bit, bit]] * len(layers))
                self._set_bits(layers, [(None, None)] * len(layers))
                yield model
            finally:
                self._set_bits(layers, bits)

    @contextmanager
    def layer_at(self, name: str, w_bit: int | None = None, a_bit: int | None = None) -> Iterator[nn.Module]:
        """Give one layer, inside `float_network`, with these bits."""
        layer = self.layers()[name]
        kept = {key: value.clone() for key, value in layer.named_parameters()} if self._compensated else {}
        self._set_bits([layer], [(w_bit, a_bit)])
        try:
            calibrate(self.model, **self._calibration)
            if self._compensated:
                self._compensated.put(name, layer)
            yield layer
        finally:
            self._set_bits([layer], [(None, None)])
            with torch.no_grad():
                for key, value in kept.items():
                    layer.get_parameter(key).copy_(value)

    def _set_bits(self, layers, bits):
        for layer, (w_bit, a_bit) in zip(layers, bits, strict=True):
            layer.w_bit, layer.a_bit = w_bit, a_bit
