"""The linear environment: weight and activation bits of every layer under budgets read from lookup tables."""

from contextlib import contextmanager

from lib.env.search_env import SearchEnv
from lib.simulator.layer import ends as ends_of
from lib.utils.quantize_utils import LinearQuantization, calibrate, quantized_layers


class LinearQuantizeEnv(SearchEnv):
    """Two steps a layer: weight bits, then activation bits.

    State: the eight layer features, the previous action divided by `max_bit` (1 at the first step; at an activation
    step the layer's own weight bits, at a weight step the activation bits of the layer before), and 1 at a weight
    step or 0 at an activation step. The first layer that is called stays `[8, -1]` and the last one `[8, 8]`.
    """

    num_states = 10
    pairs = True  # a strategy is a list of [w_bit, a_bit]

    def __init__(self, model, train_loader, val_loader, *, records, ends=None, calibrate_method='kl',
                 activation_cap=None, device='cpu', **settings):
        """See `SearchEnv` for the other settings.

        Args:
            model: network with `QConv2d` and `QLinear` layers and float weights.
            records: `LayerRecord` of each quantized layer.
            ends: indices of the first and the last layer; None: as the records know them.
            calibrate_method: 'kl', 'mse' or 'max'.
            activation_cap: upper limit of the activation ranges, or None.
        """
        self.calibrate_method, self.activation_cap = calibrate_method, activation_cap
        self._ranges = {}  # of the float weights, found once for each layer and bits
        train_loader.set_epoch(0)
        self._calibration_images = train_loader.first_batch().to(device)  # the same in all processes
        first, last = ends or ends_of(records)
        super().__init__(model, train_loader, val_loader, records=records,
                         fixed={first: [8, -1], last: [8, 8]}, device=device, **settings)

    @property
    def num_steps(self):
        """Steps of an episode."""
        return 2 * self.num_layers

    def _state(self, chosen):
        step = min(len(chosen), self.num_steps - 1)
        previous = chosen[step - 1] / self.max_bit if step else 1.0
        return [*self.features[step // 2], previous, float(step % 2 == 0)]

    def _entries(self, chosen):
        return [list(pair) for pair in zip(chosen[::2], chosen[1::2], strict=True)]

    def _choices(self, strategy):
        return [8 if bits == -1 else bits for pair in strategy for bits in pair]

    def _quantize(self, strategy):
        return LinearQuantization(self.model, strategy, self._calibration_images, method=self.calibrate_method,
                                  cap=self.activation_cap, cache=self._ranges)

    def layers(self):
        """Returns {name: layer} of the layers that a strategy has entries for."""
        return quantized_layers(self.model)

    def describe_quantizers(self):
        """Returns what the quantized tensors depend on beside the float weights, as plain values."""
        return {'flow': 'linear', 'calibration': self.calibrate_method, 'activation_cap': self.activation_cap}

    @contextmanager
    def float_network(self):
        """As in `SearchEnv`; the layers are without bits, and the ranges of all bits are found beforehand."""
        layers = self.layers().values()
        bits = [(layer.w_bit, layer.a_bit) for layer in layers]
        with super().float_network() as model:
            try:
                for bit in range(self.min_bit, self.max_bit + 1):
                    self._quantize([[bit, bit]] * self.num_layers)
                self._set_bits(layers, [(None, None)] * self.num_layers)
                yield model
            finally:
                self._set_bits(layers, bits)

    @contextmanager
    def layer_at(self, name, w_bit=None, a_bit=None):
        """Within this context, inside `float_network`, one layer has these bits; it is given."""
        layer = self.layers()[name]
        self._set_bits([layer], [(w_bit, a_bit)])
        try:
            calibrate(self.model, self._calibration_images, method=self.calibrate_method, cap=self.activation_cap,
                      cache=self._ranges)
            yield layer
        finally:
            self._set_bits([layer], [(None, None)])

    def _set_bits(self, layers, bits):
        for layer, (w_bit, a_bit) in zip(layers, bits, strict=True):
            layer.w_bit, layer.a_bit = w_bit, a_bit
