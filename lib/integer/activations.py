"""Activations that are not ReLU: a table of 65,536 entries, or the product of the input with a gate that is one."""

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.integer.values import Program, Value, value_of

ENTRIES, INPUT_FRACTION, FRACTION = 2**16, 11, 15  # inputs in steps of 2^-11 from -16 to 16, outputs of 2^-15


class Activation(NamedTuple):
    """f(x), from a table, or `gated` x f(x). Beyond -16 and 16 f stays what it is there."""

    function: Callable[[Tensor], Tensor]
    gated: bool = False


def _normal(x):
    return torch.special.ndtr(x)


def _normal_by_tanh(x):
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mish_gate(x):
    return torch.tanh(F.softplus(x))


SIGMOID, TANH = Activation(torch.sigmoid), Activation(torch.tanh)
HARD_SIGMOID, HARD_SWISH = Activation(F.hardsigmoid), Activation(F.hardsigmoid, True)
SILU, MISH = Activation(torch.sigmoid, True), Activation(_mish_gate, True)
GELU = {'none': Activation(_normal, True), 'tanh': Activation(_normal_by_tanh, True)}
MODULES = {nn.Sigmoid: SIGMOID, nn.Tanh: TANH, nn.Hardsigmoid: HARD_SIGMOID, nn.Hardswish: HARD_SWISH, nn.SiLU: SILU,
           nn.Mish: MISH}
FUNCTIONS = {torch.sigmoid: SIGMOID, F.sigmoid: SIGMOID, 'sigmoid': SIGMOID, 'sigmoid_': SIGMOID, torch.tanh: TANH,
             F.tanh: TANH, 'tanh': TANH, 'tanh_': TANH, F.hardsigmoid: HARD_SIGMOID, F.hardswish: HARD_SWISH,
             F.silu: SILU, F.mish: MISH}


def module_activation(module: nn.Module) -> Activation | None:
    """Return what a module computes, None for another one."""
    return GELU[module.approximate] if type(module) is nn.GELU else MODULES.get(type(module))


def function_activation(target: Any, options: dict) -> Activation | None:
    """Return what a function or method computes, None for another one."""
    return GELU[options.get('approximate', 'none')] if target is F.gelu else FUNCTIONS.get(target)


@cache
def table_of(function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return round(2^15 f(x)) for all codes of x, int64 (65536,); the same tensor every time."""
    x = torch.arange(-ENTRIES // 2, ENTRIES // 2, dtype=torch.float64) * 2.0**-INPUT_FRACTION
    return (function(x) * 2.0**FRACTION).round().long()


def look_up(program: Program, name: str, function: Callable[[Tensor], Tensor], value: Value) -> Value:
    """Return f(value) as codes of 16 bits, from the table of f."""
    codes = program.requantize(value, f'{name}.input', None, step=2.0**-INPUT_FRACTION, low=-ENTRIES // 2,
                               high=ENTRIES // 2 - 1)
    table = table_of(function)
    register = program.add('lookup', name, [codes], value.shape, int(table.amin()), int(table.amax()),
                           arrays={'table': table}, note=f'{function.__name__} of a number in steps of '
                           f'2^-{INPUT_FRACTION}, in units of 2^-{FRACTION}')
    return value_of(register, 2.0**-FRACTION, FRACTION)
