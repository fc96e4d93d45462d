"""The dot-product engine: integer convolutions and linear layers on analog arrays (docs/dot_product_engine.md).

Integer codes in, estimates of their integer sums of products out; scales and zero points are up to the caller. Runs on
the CPU.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.engine.array import ArrayConfig, ArrayDriver
from lib.engine.calibration import Calibration
from lib.engine.mvm_engine import MVMEngine, check_codes
from lib.engine.simulated_array import SimulatedArray

BACKENDS = ('ideal', 'simulated', 'hardware')
PATCHES = 2**25  # bytes of im2col at a time


class EngineFactory:
    """Makes engines, one per layer; the i-th has random streams of its own, so layers are made in a fixed order."""

    def __init__(self, config: ArrayConfig, backend: str, driver: Callable[[], ArrayDriver] | None,
                 calibration: Calibration | None):
        self.config, self.backend, self.calibration = config, backend, calibration
        self._driver, self._made = driver, 0

    def __call__(self) -> MVMEngine:
        index, self._made = self._made, self._made + 1
        if self.backend == 'simulated':
            def make_array(number):
                return SimulatedArray(self.config, (index, number))
        else:
            def make_array(number):
                return self._driver()
        return MVMEngine(self.config, self.backend, make_array, self.calibration)


def make_engine(config: ArrayConfig | None = None, backend: str = 'simulated',
                driver: Callable[[], ArrayDriver] | None = None,
                calibration: Calibration | None = None) -> EngineFactory:
    """Return a factory of engines.

    Args:
        config: the arrays; None: the defaults of `ArrayConfig`.
        backend: 'ideal' (exact integer products), 'simulated', or 'hardware'.
        driver: for 'hardware': called once per array, returns its `ArrayDriver`.
        calibration: of the columns, of an engine of the same configuration; 'ideal' has no use for it.

    Raises:
        ValueError: unknown backend, driver missing or of no use, calibration of another engine (named).
    """
    config = ArrayConfig() if config is None else config
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r:.60}, expected {', '.join(BACKENDS)}")
    if (backend == 'hardware') != (driver is not None) or not (driver is None or callable(driver)):
        raise ValueError(f'backend {backend!r} with driver {driver!r:.60}, expected a callable that returns an '
                         "ArrayDriver for 'hardware', None for the others")
    if calibration is not None:
        calibration.check(config)
    return EngineFactory(config, backend, driver, None if backend == 'ideal' else calibration)


class LinearMVMEngine:
    """A linear layer's integer products on an engine."""

    def __init__(self, factory: Callable[[], MVMEngine]):
        self.engine = factory()

    def program(self, weight: Tensor, bits: int, zero_point: int = 0) -> None:
        """Write weight codes (out, in); see `MVMEngine.program`."""
        if weight.dim() != 2:
            raise ValueError(f'weight has shape {tuple(weight.shape)}, expected (out, in)')
        self.engine.program(weight.T, bits, zero_point)

    def __call__(self, codes: Tensor, bits: int) -> Tensor:
        """Return (..., out) float64 for input codes (..., in)."""
        sums = self.engine.mvm(codes.reshape(-1, codes.shape[-1]), bits)
        return sums.view(*codes.shape[:-1], sums.shape[1])

    def calibrate_range(self, codes: Tensor, bits: int) -> None:
        """Set the ranges of the converters from sample inputs; see `MVMEngine.calibrate_range`."""
        self.engine.calibrate_range(codes.reshape(-1, codes.shape[-1]), bits)


class ConvMVMEngine:
    """A convolution's integer products on an engine: patches (im2col) times filters."""

    def __init__(self, factory: Callable[[], MVMEngine]):
        self.engine = factory()

    def program(self, weight: Tensor, bits: int, zero_point: int = 0, stride=1, padding=0, dilation=1,
                groups: int = 1) -> None:
        """Write weight codes (out, in / groups, kh, kw); the rest as in `torch.nn.functional.conv2d`, in numbers.

        Raises:
            ValueError: as `MVMEngine.program`; an array with fewer rows than a filter has weights for one channel; a
                stride, padding, dilation or groups that no convolution has.
        """
        if weight.dim() != 4 or groups < 1 or len(weight) % groups:
            raise ValueError(f'weight has shape {tuple(weight.shape)} with {groups} groups, expected (out, '
                             'in / groups, kh, kw) with out a multiple of groups')
        self._stride, self._dilation = _pair(stride, 'stride', 1), _pair(dilation, 'dilation', 1)
        self._padding, self._kernel = _pair(padding, 'padding', 0), tuple(weight.shape[2:])
        matrices = weight.reshape(groups, len(weight) // groups, -1).transpose(1, 2)  # (groups, K, N)
        self.engine.program(matrices, bits, zero_point, unit=self._kernel[0] * self._kernel[1])
        self._channels, self._filters = groups * weight.shape[1], len(weight)

    def __call__(self, codes: Tensor, bits: int, pad_code: int = 0) -> Tensor:
        """Return S, the sums of input codes times weight codes, (N, out, H', W') float64.

        Args:
            codes: (N, C, H, W), 0..2^bits - 1.
            bits: 1..8.
            pad_code: the code that stands for zero, with which the border is padded.
        """
        codes = self._padded(codes, bits, pad_code)
        height, width = self._output_size(codes)
        step = max(1, PATCHES // (height * width * self._channels * self._kernel[0] * self._kernel[1]))
        parts = [self.engine.mvm(self._patches(codes[i:i + step]), bits) for i in range(0, len(codes), step)]
        sums = torch.cat(parts) if parts else torch.zeros(0, self._filters, dtype=torch.float64)
        return sums.view(len(codes), height, width, self._filters).permute(0, 3, 1, 2).contiguous()

    def calibrate_range(self, codes: Tensor, bits: int, pad_code: int = 0) -> None:
        """Set the ranges of the converters from sample inputs; see `MVMEngine.calibrate_range`."""
        codes = self._padded(codes, bits, pad_code)
        height, width = self._output_size(codes)
        enough = max(1, PATCHES // (height * width * self._channels * self._kernel[0] * self._kernel[1]))
        self.engine.calibrate_range(self._patches(codes[:enough]), bits)

    def _padded(self, codes, bits, pad_code) -> Tensor:
        if not self.engine.programmed:
            raise ValueError('the engine has no weights: call program first')
        codes = check_codes(codes, bits, 'input')
        if codes.dim() != 4 or codes.shape[1] != self._channels:
            raise ValueError(f'inputs have shape {tuple(codes.shape)}, expected (N, {self._channels}, H, W)')
        if int(pad_code) != pad_code or not 0 <= pad_code < 2**bits:
            raise ValueError(f'pad_code is {pad_code}, expected a whole number from 0 to {2**bits - 1}')
        (top, left) = self._padding
        return F.pad(codes, (left, left, top, top), value=int(pad_code))

    def _extent(self) -> tuple[int, int]:
        return tuple((k - 1) * d + 1 for k, d in zip(self._kernel, self._dilation, strict=True))

    def _output_size(self, codes) -> tuple[int, int]:
        sizes = [(size - extent) // stride + 1
                 for size, extent, stride in zip(codes.shape[2:], self._extent(), self._stride, strict=True)]
        if min(sizes) < 1:
            raise ValueError(f'padded inputs of {tuple(codes.shape[2:])} are smaller than the kernel, {self._extent()}')
        return tuple(sizes)

    def _patches(self, codes) -> Tensor:
        """Return im2col of padded codes, (N H' W', C kh kw)."""
        (height, width), (down, right) = self._output_size(codes), self._stride
        patches = codes.new_empty(len(codes), height, width, self._channels, *self._kernel)
        for i in range(self._kernel[0]):  # a strided copy per weight is six times faster than one copy of all
            for j in range(self._kernel[1]):
                y, x = i * self._dilation[0], j * self._dilation[1]
                taken = codes[..., y:y + down * (height - 1) + 1:down, x:x + right * (width - 1) + 1:right]
                patches[..., i, j] = taken.permute(0, 2, 3, 1)
        return patches.flatten(3).flatten(0, 2)


def _pair(value, name, least) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f'{name} is {value!r:.60}, expected a whole number of at least {least}, or two of them')
    return pair
