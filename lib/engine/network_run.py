"""Layers of a quantized network on dot-product engines, within the network's ordinary forward pass."""

from contextlib import contextmanager
from math import sqrt

import torch

from lib.engine.calibration import effective_bits
from lib.engine.dot_product import ConvMVMEngine, LinearMVMEngine
from lib.engine.operands import LayerOperands, computing
from lib.network.hooks import evaluating
from lib.runtime.seeds import derived_seed

KEPT = 20_000  # pairs of (exact, measured) that an account of errors keeps for figures


class LayerEngine:
    """A layer on an engine of its own: input codes in, an estimate of S = sum q_x q_w out, shaped as the output.

    Args:
        operands: `LayerOperands` of the layer; programmed at once.
        factory: makes an empty engine (`lib.engine.dot_product.make_engine`).

    Raises:
        ValueError: names the layer whose padding has no code.
    """

    def __init__(self, operands: LayerOperands, factory):
        operands.check()
        self.operands = operands
        codes, bits = operands.weight.codes, operands.weight.bits
        # Which code is 'no current' in the balanced mapping; S does not depend on it.
        zero_point = min(max(round(operands.weight.zero_point.mean().item()), 0), 2**bits - 1)
        try:
            if operands.is_conv:
                layer = operands.layer
                self.engine = ConvMVMEngine(factory)  # padded before: paddings of all kinds, codes of all zeros
                self.engine.program(codes, bits, zero_point, stride=layer.stride, padding=0, dilation=layer.dilation,
                                    groups=layer.groups)
            else:
                self.engine = LinearMVMEngine(factory)
                self.engine.program(codes, bits, zero_point)
        except ValueError as error:
            raise ValueError(f'layer {operands.name}: {error}') from error

    @property
    def num_arrays(self):
        """Arrays that hold the layer's weights."""
        return self.engine.engine.num_arrays

    def calibrate_range(self, codes):
        """Sets the ranges of the converters from input codes as they come, where the engine asks for it."""
        self.engine.calibrate_range(self.operands.padded(codes), self.operands.grid.bits)

    def __call__(self, codes):
        return self.engine(self.operands.padded(codes), self.operands.grid.bits).to(codes.device)


def engine_maker(factory, samples=None):
    """Returns a function that puts a layer on a new engine of a factory, as `on_engine` calls it.

    Args:
        factory: of `lib.engine.dot_product.make_engine`.
        samples: {layer name: input codes}, for engines whose converters' ranges are calibrated.
    """
    def make(operands):
        engine = LayerEngine(operands, factory)
        if factory.config.adc_range == 'calibrated':
            engine.calibrate_range(samples[operands.name])
        return engine
    return make


@contextmanager
def on_engine(model, operands, make, watch=None):
    """While active, layers of a network compute on engines; everything else, corrections and bias too, stays digital.

    Args:
        model: the quantized network, in evaluation mode.
        operands: {name: `LayerOperands`} of its layers, of `find_operands`.
        make: called with each layer's `LayerOperands`, once and in their order; returns a function from input codes to
            S or a measurement of it, shaped as the layer's output (`engine_maker`, `engine_of_sums`).
        watch: called with (operands, input codes, measured S) of every call of a layer.

    Yields:
        {name: what `make` returned}.

    Raises:
        ValueError: the layers are not those of the network.
    """
    for name, operand in operands.items():
        if name not in dict(model.named_modules()) or model.get_submodule(name) is not operand.layer:
            raise ValueError(f'layer {name} is none of this network: find the operands of this very network')
    engines = {name: make(operand) for name, operand in operands.items()}

    def compute(name, x, _):
        operand = operands[name]
        codes = operand.grid.codes(x.detach())
        sums = engines[name](codes)
        if watch is not None:
            watch(operand, codes, sums)
        return operand.finish(sums, codes).to(x.dtype)

    with computing({name: operand.layer for name, operand in operands.items()}, compute):
        yield engines


@contextmanager
def watching(operands, note):
    """While active, calls note(operands, input codes) before a layer computes as it always does."""
    def compute(name, x, digital):
        note(operands[name], operands[name].grid.codes(x.detach()))
        return digital()

    with computing({name: operand.layer for name, operand in operands.items()}, compute):
        yield


@torch.no_grad()
def sample_codes(model, operands, images):
    """Returns {name: input codes} of layers in an ordinary forward pass, those of a layer's first call."""
    found = {}
    with watching(operands, lambda operand, codes: found.setdefault(operand.name, codes)):
        model(images)
    return found


def batches_of(loader, size):
    """Yields (images, labels) of a loader in batches of at most `size`."""
    for batch, labels in loader:
        yield from zip(batch.split(size), labels.split(size), strict=True)


@torch.no_grad()
def predict(model, batches, progress=None):
    """Returns (labels, predicted classes) of a network in evaluation mode, on the CPU.

    `progress` is called with the two after every batch, as far as they are.
    """
    device, labels, classes = next(model.parameters()).device, [], []
    with evaluating(model):
        for images, known in batches:
            labels.append(known.cpu())
            classes.append(model(images.to(device)).argmax(1).cpu())
            if progress is not None:
                progress(torch.cat(labels), torch.cat(classes))
    return torch.cat(labels), torch.cat(classes)


class NetworkErrors:
    """The errors of every layer's dot products on the first `images` images; its `watch` is that of `on_engine`."""

    def __init__(self, operands, images):
        self.layers, self._left = {name: SumErrors(name) for name in operands}, dict.fromkeys(operands, images)

    def watch(self, operand, codes, sums):
        """Compares a call of a layer with the exact dot products, while images are left."""
        name, count = operand.name, min(self._left[operand.name], len(codes))
        if count > 0:
            self.layers[name].add(operand, codes[:count], sums[:count])
            self._left[name] -= count


class SumErrors:
    """How a layer's measured dot products differ from the exact ones; adds up over batches.

    Args:
        *seed: of the pairs that are kept for figures: the first `KEPT` that a random choice takes from each batch.
    """

    def __init__(self, *seed):
        self._generator = torch.Generator().manual_seed(derived_seed('errors', *seed))
        self._totals = torch.zeros(6, dtype=torch.float64)  # count; sums of S, S^, S S, S^ S^, (S^ - S)^2
        self._low, self._high, self._pairs = float('inf'), float('-inf'), []

    def add(self, operand, codes, measured):
        """Compares a call of the layer; see `on_engine`."""
        exact, measured = operand.dot_products(codes).flatten().cpu(), measured.double().flatten().cpu()
        error = measured - exact
        self._totals += torch.stack([torch.tensor(float(exact.numel()), dtype=torch.float64), exact.sum(),
                                     measured.sum(), exact.square().sum(), measured.square().sum(),
                                     error.square().sum()])
        self._low, self._high = min(self._low, exact.min().item()), max(self._high, exact.max().item())
        left = KEPT - sum(part.shape[1] for part in self._pairs)
        if left > 0:
            picked = torch.randint(exact.numel(), (min(left, KEPT // 4, exact.numel()),), generator=self._generator)
            self._pairs.append(torch.stack([exact[picked], measured[picked]]))

    def pairs(self):
        """Returns a random sample of the pairs, (2, n): exact and measured."""
        return torch.cat(self._pairs, 1) if self._pairs else torch.zeros(2, 0)

    def summary(self):
        """Returns plain values.

        `rmse` of S^, `bias` its mean error, `relative_error` rmse / standard deviation of S, `correlation` of S and S^,
        and `effective_bits`, those of a uniform quantizer over the range of S with the same error; None where it is not
        defined (nothing differs, or S is constant).
        """
        count, exact, measured, exact2, measured2, error2 = self._totals.tolist()
        if not count:
            return {'count': 0}
        rmse, spread = sqrt(error2 / count), self._high - self._low
        std, measured_std = (sqrt(max(square / count - (total / count) ** 2, 0))
                             for total, square in ((exact, exact2), (measured, measured2)))
        covariance = (exact2 + measured2 - error2) / 2 / count - exact * measured / count**2
        return {'count': int(count), 'rmse': rmse, 'bias': (measured - exact) / count,
                'relative_error': rmse / std if std else None,
                'correlation': min(covariance / (std * measured_std), 1.0) if std * measured_std else None,
                'effective_bits': effective_bits(spread, rmse) if spread else None,
                'lowest': self._low, 'highest': self._high}
