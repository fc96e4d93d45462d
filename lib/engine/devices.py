"""Memory cells as devices: their range of conductance, and how far a programmed or read conductance is off.

All conductances are in microsiemens, all times in seconds. The constants are those of the sources named at each device;
docs/dot_product_engine.md has them in a table.
"""

from dataclasses import dataclass
from math import log, sqrt
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Device:
    """A cell without errors of its own; the base of the others.

    Where a configuration gives a noise as a number, that number takes the place of the device's model: independent
    noise of that part of g_max - g_min, or of the conductance itself where `proportional`.
    """

    name: str
    g_min: float  # conductance of the lowest level
    g_max: float  # of the highest
    source: str
    drifts: ClassVar[bool] = False
    proportional: ClassVar[bool] = False  # a programming noise given as a number is relative to the conductance
    positive: ClassVar[bool] = False  # a programmed conductance below 0 becomes 0

    def programming_std(self, g: Tensor) -> Tensor:
        """Return the standard deviation of a conductance programmed to g."""
        return torch.zeros_like(g)

    def read_std(self, g: Tensor, seconds: float) -> Tensor | None:
        """Return that of one read of g, `seconds` after the end of programming; None: there is no read noise."""
        return None

    def drift_exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over cells of nu in g (t / t0)^-nu, for a target g."""
        raise NotImplementedError(f'{self.name} does not drift')


class Proportional(Device):
    """A cell whose programming error is proportional to its conductance: g *= 1 + N(0, sigma)."""

    proportional = True


class PhaseChange(Device):
    """Phase-change memory (PCM), with x = g / g_max of the target and t0 = 20 s.

        programming  std = 0.26348 + 1.9650 x - 1.1731 x^2 uS
        drift        g (t / t0)^-nu;  nu ~ N(clamp(-0.0155 ln x + 0.0244, 0.049, 0.1),
                                             clamp(-0.0125 ln x - 0.0059, 0.008, 0.045)) per cell, not below 0
        read         std = g min(0.2, 0.0088 / x^0.65) sqrt(ln((t + t_r) / (2 t_r))), t_r = 250 ns (1/f noise)

    t = t0 + the seconds since. For example x = 0.5 (12.5 uS): programming 0.953 uS, nu 0.049 +- 0.008, read at t0
    0.722 uS.
    """

    drifts = True
    positive = True
    t0: ClassVar[float] = 20.0
    t_read: ClassVar[float] = 250e-9

    def programming_std(self, g: Tensor) -> Tensor:
        x = g / self.g_max
        return 0.26348 + 1.9650 * x - 1.1731 * x**2

    def read_std(self, g: Tensor, seconds: float) -> Tensor:
        spread = sqrt(log((self.t0 + seconds + self.t_read) / (2 * self.t_read)))
        x = (g.abs() / self.g_max).clamp(min=1e-7)
        return g.abs() * (0.0088 / x**0.65).clamp(max=0.2) * spread

    def drift_exponent(self, g: Tensor) -> tuple[Tensor, Tensor]:
        log_x = (g.abs() / self.g_max).clamp(min=1e-7).log()
        mean = (-0.0155 * log_x + 0.0244).clamp(0.049, 0.1)
        return mean, (-0.0125 * log_x - 0.0059).clamp(0.008, 0.045)


class ResistiveRam(Device):
    """Resistive memory (RRAM) after program and verify: std = 4.782 - 0.00911 g uS, fitted for g of 50 to 225 uS.

    Outside that range (another on/off ratio) the deviation at its end is taken. For example 4.33 uS at 50 uS, 2.73 uS
    at 225 uS: 2.5 % and 1.6 % of the range of conductance.
    """

    positive = True

    def programming_std(self, g: Tensor) -> Tensor:
        return 4.782 - 0.00911 * g.clamp(50, 225)


DEVICES = {device.name: device for device in (
    Device('none', 0.0, 1.0, 'no device: noise only where the configuration gives a number'),
    PhaseChange('pcm', 0.0, 25.0, 'IBM aihwkit, PCMLikeNoiseModel, g_max 25 uS'),
    ResistiveRam('rram', 50.0, 225.0, 'Milo et al., as fitted in Sandia CrossSim 3.2'),
    Proportional('neurosim', 1e6 / 900e3, 1e6 / 6e3, 'NeuroSim 1.3 (DNN+NeuroSim): 6 and 900 kOhm'),
)}
