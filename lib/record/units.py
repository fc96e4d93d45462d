"""Quantities with units, as people write them: `200 MHz`, `12.8 GB/s`, `20 pJ/bit`."""

import re
from math import isfinite

_PREFIXES = {'f': 1e-15, 'p': 1e-12, 'n': 1e-9, 'u': 1e-6, 'm': 1e-3, '': 1.0, 'k': 1e3, 'M': 1e6, 'G': 1e9, 'T': 1e12}


def _scaled(base, kind, prefixes, factor=1.0):
    return {prefix + base: (kind, factor * _PREFIXES[prefix]) for prefix in prefixes}


UNITS = {  # unit: (what it measures, its size in the base unit)
    **_scaled('Hz', 'frequency', ('', 'k', 'M', 'G')),
    **_scaled('s', 'time', ('', 'm', 'u', 'n', 'p')),
    **_scaled('J', 'energy', ('', 'm', 'u', 'n', 'p', 'f')),
    **_scaled('J/bit', 'energy per bit', ('n', 'p', 'f')),
    **_scaled('W', 'power', ('', 'm', 'u')),
    **_scaled('V', 'voltage', ('', 'm')),
    **_scaled('S', 'conductance', ('', 'm', 'u', 'n')),
    **_scaled('MAC/s', 'MAC rate', ('', 'k', 'M', 'G', 'T')),
    **_scaled('OPS', 'MAC rate', ('G', 'T'), 0.5),  # one multiply-accumulate is two operations
    **_scaled('B/s', 'bandwidth', ('', 'k', 'M', 'G', 'T')),
    **_scaled('bit/s', 'bandwidth', ('', 'k', 'M', 'G', 'T'), 1 / 8),
    'bit': ('data', 1.0), 'bits': ('data', 1.0), 'B': ('data', 8.0), 'bytes': ('data', 8.0),
    'KiB': ('data', 8.0 * 2**10), 'MiB': ('data', 8.0 * 2**20), 'GiB': ('data', 8.0 * 2**30),
}


def parse_quantity(value: object, unit: str) -> float | int:
    """Return a number in `unit`: a plain number is in that unit already, a string such as `0.2 GHz` is converted.

    Raises:
        ValueError: not a finite number, or its unit is unknown or measures something else.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r'\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*(\S*)\s*', value) if isinstance(value, str) else None
    wanted = f'a number of {unit}' if unit else 'a plain number'
    try:
        number = float(match.group(1)) if match else None
    except ValueError:
        number = None
    if number is None:
        raise ValueError(f'{value!r} is no quantity, expected {wanted}')
    given = match.group(2)
    if given not in ('', unit):
        if not unit or UNITS.get(given, (None,))[0] != UNITS[unit][0]:
            same = [name for name, (kind, _) in UNITS.items() if unit and kind == UNITS[unit][0]]
            known = f" ({', '.join(same)})" if same else ''
            raise ValueError(f'{value!r} has the wrong unit, expected {wanted}{known}')
        number *= UNITS[given][1] / UNITS[unit][1]
        number = round(number) if isfinite(number) and abs(number - round(number)) < 1e-9 * abs(number) else number
    if not isfinite(number):
        raise ValueError(f'{value!r} is too large, expected {wanted}')
    return int(number) if number == int(number) else number
