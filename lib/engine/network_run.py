"""Layers of a quantized network on dot-product engines, within the network's ordinary forward pass."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import sqrt

import torch
from torch import Tensor, nn

from lib.engine.calibration import effective_bits
from lib.engine.dot_product import ConvMVMEngine, LinearMVMEngine
from lib.engine.mvm_engine import MVMEngine
from lib.engine.operands import LayerOperands, computing
from lib.network.hooks import evaluating
from lib.runtime.seeds import derived_seed

KEPT = 20_000  # pairs of (exact, measured) that an account of errors keeps for figures


class LayerEngine:
    """A layer on an engine of its own: input codes in, an estimate of S = sum q_x q_w out, shaped as the output.

    Args:
        operands: of the layer; programmed at once.
        factory: makes an empty engine (`lib.engine.dot_product.make_engine`).
        samples: input codes by layer, for engines whose converters' ranges are calibrated.

    Raises:
        ValueError: names the layer whose padding has no code, or which does not fit the arrays.
    """

    def __init__(self, operands: LayerOperands, factory: Callable[[], MVMEngine],
                 samples: Mapping[str, Tensor] | None = None):
        operands.check()
        self.operands, layer = operands, operands.layer
        codes, bits = operands.weight.codes, operands.weight.bits
        # Which code is 'no current' in the balanced mapping; S does not depend on it.
        zero_point = min(max(round(operands.weight.zero_point.mean().item()), 0), 2**bits - 1)
        self.engine = (ConvMVMEngine if operands.is_conv else LinearMVMEngine)(factory)
        shape = {'stride': layer.stride, 'dilation': layer.dilation, 'groups': layer.groups} if operands.is_conv else {}
        try:  # padded here: paddings of all kinds, codes of all zeros
            self.engine.program(codes, bits, zero_point, **shape)
        except ValueError as error:
            raise ValueError(f'layer {operands.name}: {error}') from error
        if samples is not None and self.engine.engine.config.adc_range == 'calibrated':
            self.engine.calibrate_range(operands.padded(samples[operands.name]), operands.grid.bits)

    @property
    def num_arrays(self) -> int:
        """Arrays that hold the layer's weights."""
        return self.engine.engine.num_arrays

    def __call__(self, codes: Tensor) -> Tensor:
        return self.engine(self.operands.padded(codes), self.operands.grid.bits).to(codes.device)


@contextmanager
def on_engine(model: nn.Module, operands: Mapping[str, LayerOperands], make: Callable[[LayerOperands], Callable],
              watch: Callable | None = None) -> Iterator[dict]:
    """While active, layers of a network compute on engines; everything else, corrections and bias too, stays digital.

    Args:
        model: the quantized network, in evaluation mode.
        operands: of its layers by name, of `find_operands`.
        make: called with each layer's operands, once and in their order; returns a function from input codes to S or a
            measurement of it, shaped as the layer's output (`LayerEngine`, `engine_of_sums`).
        watch: called with (operands, input codes, measured S) of every call of a layer.

    Yields:
        {name: what `make` returned}.

    Raises:
        ValueError: the layers are not those of the network.
    """
    modules = dict(model.named_modules())
    for name, operand in operands.items():
        if modules.get(name) is not operand.layer:
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


@torch.no_grad()
def sample_codes(model: nn.Module, operands: Mapping[str, LayerOperands], images: Tensor) -> dict[str, Tensor]:
    """Return the input codes of layers in an ordinary forward pass, those of a layer's first call."""
    found = {}

    def compute(name, x, digital):
        codes = operands[name].grid.codes(x.detach())
        found.setdefault(name, codes)
        return digital()

    with computing({name: operand.layer for name, operand in operands.items()}, compute):
        model(images)
    return found


def batches_of(loader: Iterable, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of a loader in batches of at most `size`."""
    for batch, labels in loader:
        yield from zip(batch.split(size), labels.split(size), strict=True)


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]],
            progress: Callable[[Tensor, Tensor], None] | None = None) -> tuple[Tensor, Tensor]:
    """Return (labels, predicted classes) of a network in evaluation mode, on the CPU.

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


def percent(hits: Tensor) -> float:
    """Return the share of True in percent."""
    return 100 * hits.double().mean().item()


class SumErrors:
    """How a layer's measured dot products differ from the exact ones; adds up over batches.

    Args:
        name: of the layer; seed of the pairs that are kept for figures: the first `KEPT` that a random choice takes
            from each batch.
        images: on which the dot products are compared, the first ones; None: all.
    """

    def __init__(self, name: str, images: int | None = None):
        self._generator = torch.Generator().manual_seed(derived_seed('errors', name))
        self._totals = torch.zeros(6, dtype=torch.float64)  # count; sums of S, S^, S S, S^ S^, (S^ - S)^2
        self._low, self._high, self._pairs, self._images = float('inf'), float('-inf'), [], images

    def add(self, operand: LayerOperands, codes: Tensor, measured: Tensor) -> None:
        """Compare a call of the layer with the exact dot products, while images are left; see `on_engine`."""
        count = len(codes) if self._images is None else min(self._images, len(codes))
        if not count:
            return
        if self._images is not None:
            self._images -= count
        codes, measured = codes[:count], measured[:count]
        exact, measured = operand.dot_products(codes).flatten().cpu(), measured.double().flatten().cpu()
        self._totals += torch.stack([torch.tensor(float(exact.numel()), dtype=torch.float64), exact.sum(),
                                     measured.sum(), exact.square().sum(), measured.square().sum(),
                                     (measured - exact).square().sum()])
        self._low, self._high = min(self._low, exact.min().item()), max(self._high, exact.max().item())
        left = KEPT - sum(part.shape[1] for part in self._pairs)
        if left > 0:
            picked = torch.randint(exact.numel(), (min(left, KEPT // 4, exact.numel()),), generator=self._generator)
            self._pairs.append(torch.stack([exact[picked], measured[picked]]))

    def pairs(self) -> Tensor:
        """Return a random sample of the pairs, (2, n): exact and measured."""
        return torch.cat(self._pairs, 1) if self._pairs else torch.zeros(2, 0)

    def summary(self) -> dict:
        """Return plain values.

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
