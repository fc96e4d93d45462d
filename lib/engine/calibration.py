"""Calibration of an array's columns: gain and offset of each converter by least squares on known patterns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log2, sqrt
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.engine.adc_range import choose_range
from lib.engine.array import ArrayConfig, ArrayDriver
from lib.engine.simulated_array import SimulatedArray, generator
from lib.record.files import is_file, read_json
from lib.record.values import TEXT, Rule, check_values, list_of, one_of, optional, real

SAMPLES = 4096  # sums that a calibration keeps for figures
WITHIN = 0.9  # part of a converter's range in which sums are fitted: near its ends an error would be clipped
DEAD = 1e-3  # a column of a smaller gain does not respond
CALIBRATION = 2**31  # first number of the random streams of the arrays here; engines count from 0


RULES = {  # of a file, in its order
    'gain': list_of(real()), 'offset': list_of(real()),
    'adc_range': optional(Rule(lambda value: list_of(real(), 2).accepts(value) and value[0] <= value[1],
                               'a range [lowest, highest]')),
    **dict.fromkeys(('r2_before', 'r2_after'), real(high=1)),
    **dict.fromkeys(('rmse_before', 'rmse_after'), real(0)),
    **dict.fromkeys(('bits_before', 'bits_after'), optional(real())), 'config': one_of(dict), 'fingerprint': TEXT,
}


@dataclass(frozen=True)
class Calibration:
    """What every column's converter makes of a sum, value = gain * true + offset, and how well that describes it.

    Values are in products of one input step and one cell level; one bank of converters serves all arrays.
    """

    gain: np.ndarray  # (outputs,)
    offset: np.ndarray
    adc_range: tuple[float, float] | None  # lowest and highest value of the converters meanwhile; None: not known
    r2_before: float  # coefficient of determination of value = true, on patterns other than those of the fit
    r2_after: float  # of (value - offset) / gain = true
    rmse_before: float
    rmse_after: float
    bits_before: float | None  # effective bits; None: no error at all
    bits_after: float | None
    config: dict
    fingerprint: str
    samples: np.ndarray | None = field(default=None, compare=False, repr=False)  # (3, n): true, before, after

    def correct(self, values: Tensor) -> Tensor:
        """Return (values - offset) / gain of the reads of the first n columns, (B, n); changes `values`.

        Converters with steps of 1 ('granular') read whole sums, so what is left is rounded: a fraction of a step would
        be the same in every read of such a sum, and most reads of the higher slices are 0.
        """
        n = values.shape[-1]
        offset, gain = (torch.as_tensor(part[:n]).to(values) for part in (self.offset, self.gain))
        values.sub_(offset).div_(gain)
        return values.round_() if _is_whole(self.config) else values

    def check(self, config: ArrayConfig) -> None:
        """Raise ValueError, with the parameters that differ, when an engine of `config` cannot use this."""
        if self.fingerprint == config.fingerprint():
            return
        theirs = config.to_dict()
        different = [f'{name} {self.config.get(name)!r} there, {theirs.get(name)!r} here'
                     for name in sorted(set(theirs) | set(self.config)) if theirs.get(name) != self.config.get(name)]
        raise ValueError(f"the calibration ({self.fingerprint}) is of another engine than this ({config.fingerprint()})"
                         f": {'; '.join(different) or 'its file was changed'}: calibrate this one")

    def to_dict(self) -> dict:
        """Return plain values, for JSON; without the samples."""
        return {**{name: getattr(self, name) for name in RULES}, 'gain': self.gain.tolist(),
                'offset': self.offset.tolist(), 'adc_range': list(self.adc_range) if self.adc_range else None}

    @classmethod
    def from_dict(cls, values: Mapping) -> 'Calibration':
        """Rebuild a calibration from `to_dict`; ValueError for a missing or unknown key, or no two equal columns."""
        if not isinstance(values, Mapping) or values.keys() != RULES.keys():
            wrong = sorted(values.keys() ^ RULES.keys()) if isinstance(values, Mapping) else repr(values)[:80]
            raise ValueError(f'this is no calibration of columns: missing or unknown keys {wrong}')
        check_values(values, RULES, 'this is no calibration of columns: it')
        config = ArrayConfig.from_dict(values['config'])
        if values['fingerprint'] != config.fingerprint():
            raise ValueError(f"the fingerprint {values['fingerprint']!r:.40} is of another engine than the config in "
                             'the same file, which was changed')
        gain, offset = (np.array(values[name], dtype=np.float64) for name in ('gain', 'offset'))
        if gain.shape != (config.outputs,) or offset.shape != (config.outputs,) or (np.abs(gain) < DEAD).any():
            raise ValueError(f'gain and offset have {gain.size} and {offset.size} numbers, expected {config.outputs} '
                             f'of each, no gain below {DEAD:g}')
        adc_range = tuple(values['adc_range']) if values['adc_range'] else None
        return cls(**{**values, 'gain': gain, 'offset': offset, 'adc_range': adc_range})


def read_calibration(path: str | Path) -> Calibration:
    """Return the calibration of a file of hybrid_calibrate.py; FileNotFoundError or ValueError where there is none."""
    if not is_file(path):
        raise FileNotFoundError(f'{path}: there is no such file; hybrid_calibrate.py makes it')
    try:
        return Calibration.from_dict(read_json(path, 'calibration'))
    except ValueError as error:
        raise ValueError(f'{path} is no calibration of hybrid_calibrate.py ({error})') from error


def effective_bits(span: float, rmse: float) -> float | None:
    """Return the bits of a uniform quantizer over `span` with this root mean squared error; None without error.

    A step of span / 2^b has an error of step / sqrt(12), so b = log2(span / (sqrt(12) rmse)).
    """
    return log2(span / (sqrt(12) * rmse)) if rmse else None


def calibrate_columns(config: ArrayConfig, driver: Callable[[], ArrayDriver] | None = None, patterns: int = 16,
                      vectors: int = 256, seed: int = 0) -> Calibration:
    """Return gain and offset of every column: value = gain * true + offset by least squares.

    Random levels go over a whole array (in 'balanced' each column leans to one of the signs), random inputs in, few of
    them or many, so that a column sees small and large sums: errors of its cells weigh little in large ones. Half the
    patterns are fitted, the other half judges the fit; sums beyond 0.9 of the converters' range, where they would be
    clipped, are left out of both. Programming errors are different in each pattern, so they average out; what all cells
    have in common, such as mean drift, becomes part of the gain.

    Args:
        config: of the engine.
        driver: returns an `ArrayDriver`, called once; None: a `SimulatedArray`.
        patterns: how often the array is programmed, at least 2.
        vectors: inputs per pattern, at least 16.
        seed: of the patterns and inputs.

    Raises:
        ValueError: too few patterns or vectors, or columns that do not respond (lists them).
    """
    if patterns < 2 or vectors < 16:
        raise ValueError(f'{patterns} patterns of {vectors} vectors, expected at least 2 of 16')
    draw, array = generator(seed, CALIBRATION), None
    found = []
    for number in range(patterns):
        if driver is None:
            array = SimulatedArray(config, (CALIBRATION, number))
        elif array is None:
            array = driver()
        found.append(_send_pattern(array, config, vectors, draw))
    true, value = (torch.stack(part).double().transpose(1, 2).numpy() for part in zip(*found, strict=True))
    half = patterns // 2
    gain, offset = _fit(*(part[:half].swapaxes(0, 1).reshape(config.outputs, -1) for part in (true, value)), array)
    return _judged(config, gain, offset, true[half:], value[half:], array)


def _send_pattern(array, config, vectors, draw) -> tuple[Tensor, Tensor]:
    """Program random levels, send random inputs; return true and measured sums, (vectors, outputs)."""
    top, shape = 2**config.cell_bits - 1, (config.rows, config.outputs)
    if config.signed:
        sign = torch.rand(shape, generator=draw) < torch.rand(config.outputs, generator=draw)
        levels = torch.randint(top + 1, shape, generator=draw) * torch.where(sign, 1, -1)
        cells = torch.stack([levels, -levels]).clamp_(min=0)
    else:
        levels = torch.randint(top + 1, shape, generator=draw)
        cells = levels.unsqueeze(0)
    array.program(cells)
    inputs = torch.randint(1, 2**config.dac_bits, (vectors, config.rows), generator=draw).float()
    driven = torch.rand(vectors, config.rows, generator=draw) < torch.rand(vectors, 1, generator=draw)
    inputs *= driven
    if config.adc_bits and config.adc_range == 'calibrated' and array.range is None:
        low, high = choose_range(array.currents(inputs), config.rows, config, sliced=True)
        array.set_range(torch.full((config.outputs,), low), torch.full((config.outputs,), high))
    return inputs.double() @ levels.double(), torch.as_tensor(array.read(inputs))


def _within(true, array) -> np.ndarray:
    """Return which sums (..., outputs, n) are well within the converters' range."""
    if array.range is None:
        return np.ones_like(true, dtype=bool)
    low, high = (bound.double().numpy()[:, None] for bound in array.range)
    return np.abs(true - (low + high) / 2) <= WITHIN * (high - low) / 2


def _fit(true, value, array) -> tuple[np.ndarray, np.ndarray]:
    """Return gain and offset per column, (outputs,), from sums (outputs, n)."""
    used = _within(true, array).astype(np.float64)
    count = used.sum(1)
    if (count < 2).any():
        raise ValueError(f'columns {_listed(count < 2)} have no sums within their range: use more vectors')
    means = [(used * part).sum(1, keepdims=True) / count[:, None] for part in (true, value)]
    x, y = ((part - mean) * used for part, mean in zip((true, value), means, strict=True))
    spread = (x * x).sum(1)
    gain = np.divide((x * y).sum(1), spread, out=np.zeros_like(spread), where=spread > 0)
    if (dead := ~(np.abs(gain) >= DEAD)).any():  # also where a driver gave no numbers
        raise ValueError(f'columns {_listed(dead)} do not respond (gain below {DEAD:g}): the engine cannot use them')
    return gain, means[1][:, 0] - gain * means[0][:, 0]


def _is_whole(config) -> bool:
    return bool(config['adc_bits']) and config['adc_range'] == 'granular'


def _listed(flags) -> str:
    numbers = np.flatnonzero(flags)
    return ', '.join(map(str, numbers[:10])) + (f' and {len(numbers) - 10} more' if len(numbers) > 10 else '')


def _judged(config, gain, offset, true, value, array) -> Calibration:
    """Return the calibration with its quality on sums (patterns, outputs, n) that were not fitted."""
    after, used = (value - offset[:, None]) / gain[:, None], _within(true, array)
    after = after.round() if _is_whole(config.to_dict()) else after
    true, value, after = (part[used] for part in (true, value, after))
    span, variance = float(true.max() - true.min()), float(true.var())
    rmse = [float(np.sqrt(np.mean((part - true) ** 2))) for part in (value, after)]
    picked = np.linspace(0, true.size - 1, min(true.size, SAMPLES)).astype(int)
    bounds = (float(array.range[0].min()), float(array.range[1].max())) if array.range else None
    return Calibration(
        gain, offset, bounds,
        *(1 - error**2 / variance for error in rmse), *rmse, *(effective_bits(span, error) for error in rmse),
        config=config.to_dict(), fingerprint=config.fingerprint(),
        samples=np.stack([part[picked] for part in (true, value, after)]),
    )
