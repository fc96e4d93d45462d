"""What an analog array is to the dot-product engine: its parameters, and the interface of simulated and real ones."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from torch import Tensor

from lib.engine.devices import DEVICES, Device
from lib.record.files import is_file
from lib.record.parameters import parameter, parse_parameters
from lib.record.yaml_file import read_yaml
from lib.simulator.crossbar import MAPPINGS, Array

ADC_RANGES = ('granular', 'max', 'calibrated')
SIZES = ('rows', 'columns', 'cell_bits', 'dac_bits', 'adc_bits')


@dataclass(frozen=True, kw_only=True)
class ArrayConfig(Array):
    """Parameters of an array of rows x columns cells with its converters.

    `None` for a noise or the on/off ratio means what the device model says. Noises are standard deviations.

    Raises:
        ValueError: a parameter out of its range, or of no effect (names it).
    """

    adc_bits: int = parameter('bits of a conversion, 0: sums are not converted, hence exact', default=8, minimum=0,
                              maximum=24)
    mapping: str = parameter('of a weight to cells', default='balanced', choices=MAPPINGS)
    adc_range: str = parameter('range of the converters', default='granular', choices=ADC_RANGES)
    device: str = parameter('model of the cells', default='none', choices=tuple(DEVICES))
    programming_noise: float | None = parameter('part of g_max - g_min; none: of the device', default=None, minimum=0)
    read_noise: float | None = parameter('part of g_max - g_min, in every read; none: of the device', default=None,
                                         minimum=0)
    on_off_ratio: float | None = parameter('g_max / g_min, 0: off cells conduct nothing; none: of the device',
                                           default=None, minimum=0)
    drift_seconds: float = parameter('since the cells were programmed', 's', default=0.0, minimum=0)
    stuck_low: float = parameter('part of the cells that stay at g_min', default=0.0, minimum=0, maximum=1)
    stuck_high: float = parameter('part of the cells that stay at g_max', default=0.0, minimum=0, maximum=1)
    gain_mismatch: float = parameter('of the converters, around 1', default=0.0, minimum=0)
    offset_mismatch: float = parameter('of the converters, part of the largest current of a column', default=0.0,
                                       minimum=0)
    seed: int = parameter('of everything random', default=0, minimum=0, maximum=2**63 - 1)

    def __post_init__(self):
        super().__post_init__()
        for f in fields(self):
            value = getattr(self, f.name)
            if 'float' in str(f.type) and value is not None:  # 1 and 1.0 have one fingerprint
                object.__setattr__(self, f.name, float(value))
        if self.signed and self.adc_bits == 1:
            raise ValueError("adc_bits is 1, expected 0 or at least 2: the codes of a 'balanced' conversion are "
                             '-n..n with n = 2^(adc_bits - 1) - 1, so the range of this one would be zero')
        if self.signed and self.columns < 2:
            raise ValueError("columns is 1, expected at least 2: a 'balanced' weight takes a pair of columns")
        if self.stuck_low + self.stuck_high > 1:
            raise ValueError(f'stuck_low + stuck_high is {self.stuck_low + self.stuck_high:g}, expected at most 1')
        if 0 < (self.on_off_ratio or 0) <= 1:
            raise ValueError(f'on_off_ratio is {self.on_off_ratio:g}, expected g_max / g_min above 1, or 0')
        if self.drift_seconds and not DEVICES[self.device].drifts:
            raise ValueError(f'drift_seconds is {self.drift_seconds:g}, but device {self.device!r} does not drift: '
                             f"expected 0, or a device of {', '.join(n for n, d in DEVICES.items() if d.drifts)}")

    @property
    def signed(self) -> bool:
        """Whether the arrays give differences of two currents, which can be negative."""
        return self.mapping == 'balanced'

    @property
    def outputs(self) -> int:
        """Values that one read of an array gives: one per column, or per pair of columns."""
        return self.columns // 2 if self.signed else self.columns

    def largest_sum(self, rows: int | None = None) -> int:
        """Return the largest sum of a column of `rows` cells (default: all), in products of one step and one level."""
        return (rows or self.rows) * (2**self.dac_bits - 1) * (2**self.cell_bits - 1)

    def device_model(self) -> tuple[Device, float, float]:
        """Return the device with its g_min and g_max in uS."""
        device = DEVICES[self.device]
        if self.on_off_ratio is None:
            return device, device.g_min, device.g_max
        return device, (device.g_max / self.on_off_ratio if self.on_off_ratio else 0.0), device.g_max

    @classmethod
    def from_dict(cls, values: Mapping) -> 'ArrayConfig':
        """Return the configuration of a mapping; what is missing has its default, numbers may be text (`1e6 s`).

        Raises:
            ValueError: unknown parameter, or a wrong value (by name).
        """
        if not isinstance(values, Mapping):
            raise ValueError(f'expected a mapping of array parameters, got {values!r:.80}')
        return cls(**parse_parameters(cls, values, 'arrays have'))

    def describe(self) -> str:
        """Return size and bits, and every other parameter that is not at its default."""
        values, usual = self.to_dict(), ArrayConfig().to_dict()
        others = [f', {name} {value}' for name, value in values.items() if name not in SIZES and value != usual[name]]
        return (f'arrays of {self.rows} x {self.columns}, bits of cells {self.cell_bits}, of inputs at once '
                f"{self.dac_bits}, of converters {self.adc_bits}{''.join(others)}")

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that stand for all parameters."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]


def read_array_settings(path: str | Path, section: bool = False) -> dict:
    """Return the settings of arrays in a YAML file: all of it, or its section `mvm` if it has one.

    Args:
        path: of the file.
        section: it is a configuration of hybrid_train.py, whose settings are in that section alone.

    Raises:
        FileNotFoundError, ValueError: it is missing, no YAML, or has something else than settings.
    """
    if not is_file(path):
        raise FileNotFoundError(f'{path}: there is no such file')
    values = read_yaml(path, 'file of engine settings')
    values = {} if values is None else values
    if isinstance(values, dict) and (section or 'mvm' in values):
        values = values.get('mvm') or {}
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected engine settings as "rows: 128" and so on, one a line')
    return values


class ArrayDriver(ABC):
    """One array, simulated or real, with its input drivers (DACs) and converters (ADCs).

    The engine asks for one object per array, programs it once and then only reads. A set-up with fewer arrays than
    objects keeps the cells in the object and programs the array again when another object is read.

    All values are in products of one input step and one cell level: a cell at level 3 driven by an input 1 gives 3.
    """

    range: tuple[Tensor, Tensor] | None = None  # lowest and highest value of each column's converter, where known

    @abstractmethod
    def program(self, cells: Tensor) -> None:
        """Write levels into the cells.

        Args:
            cells: (2, r, n) in 'balanced': the levels of G+ and G- of r rows and n pairs of columns; (1, r, n) in
                'offset'. int64, 0..2^cell_bits - 1; r <= rows, n <= `ArrayConfig.outputs`. Rows and columns beyond are
                not used.
        """

    @abstractmethod
    def read(self, inputs: Tensor) -> Tensor:
        """Return what the converters say for a batch of input vectors.

        Args:
            inputs: (B, r), whole numbers 0..2^dac_bits - 1 as floats.

        Returns:
            (B, n) estimates of inputs @ (G+ - G-), or of inputs @ G.
        """

    def currents(self, inputs: Tensor) -> Tensor:
        """Return the values of `read` as they are before conversion, (B, n); for `calibrate_range`.

        Raises:
            ValueError: this array cannot be read without its converters.
        """
        raise ValueError(f'{type(self).__name__} has no currents(): the range of its converters cannot be calibrated '
                         'from here: set it in the driver')

    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set the range of each column's converter, two tensors (n,).

        Raises:
            ValueError: this array has converters of a fixed range.
        """
        raise ValueError(f'{type(self).__name__} has no set_range(): the range of its converters is fixed')
