"""All hardware models and their presets by name, and hardware described in a YAML file."""

from pathlib import Path

from lib.record.yaml_file import read_yaml
from lib.simulator import bismo, bit_serial, bitfusion, crossbar, roofline
from lib.simulator.counting import COUNTED
from lib.simulator.hardware import METRICS, Hardware, check_metric, with_parameters
from lib.simulator.measured import backend as measured

BACKENDS = {  # name: class; a new backend is its file and a line here
    'bit_serial': bit_serial.BitSerialArray,
    'bismo': bismo.Bismo,
    'bitfusion': bitfusion.BitFusion,
    'roofline': roofline.Roofline,
    'crossbar': crossbar.Crossbar,
    'measured': measured.MeasuredMachine,
}
MODULES = (bit_serial, bismo, bitfusion, roofline, crossbar, measured)
PRESETS = {name: preset for module in MODULES for name, preset in module.PRESETS.items()}


def find_hardware(name: str | Path) -> Hardware:
    """Return the hardware of a preset's name or of a YAML file.

    The YAML is a mapping with `preset: NAME` (the parameters that are not given stay as they are there) or
    `backend: NAME` (all parameters given), and parameters as numbers or with a unit: `clock_mhz: 0.3 GHz`.

    Raises:
        ValueError: unknown preset, backend or parameter (the message lists them), wrong unit, no valid YAML.
        FileNotFoundError: there is no such file.
    """
    if Path(name).suffix not in ('.yaml', '.yml'):
        if name not in PRESETS:
            raise ValueError(f"unknown hardware {str(name)!r}, expected {', '.join(sorted(PRESETS))} or a FILE.yaml")
        return PRESETS[name]
    return read_hardware(Path(name))


def find_machine(name: str) -> tuple[Hardware, str]:
    """Return (hardware, metric) of `cloud_latency`, `bitfusion_energy`, `chip.yaml` or `chip.yaml:energy`.

    Raises:
        ValueError: no such cost; the message lists them.
    """
    path, _, metric = name.partition(':')
    if Path(path).suffix in ('.yaml', '.yml'):
        hardware, metric = find_hardware(path), metric or METRICS[0]
    else:
        preset, _, metric = name.rpartition('_')
        if preset not in PRESETS or metric not in METRICS:
            known = [f'{p}_{m}' for p, hardware in sorted(PRESETS.items()) for m in hardware.metrics]
            raise ValueError(f'unknown cost {name}: expected one of {", ".join([*COUNTED, *known])}, a FILE.yaml that '
                             'describes hardware (FILE.yaml:energy), or the path of a .npy')
        hardware = PRESETS[preset]
    check_metric(hardware, metric)
    return hardware, metric


def read_hardware(path: Path) -> Hardware:
    """Return the hardware that a YAML file describes; see `find_hardware`."""
    values = read_yaml(path, 'hardware file')
    if not isinstance(values, dict):
        raise ValueError(f'{path}: expected lines of the form `parameter: value`, got {values!r:.80}')
    base = _base(path, values)
    values = {'name': path.stem, 'status': f'from {path.name}', **values}
    try:
        hardware = with_parameters(base, values)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if hardware.name in PRESETS:
        raise ValueError(f'{path}: the name {hardware.name} is that of a preset, from which nobody could tell it: '
                         'give another, `name: ...`')
    return hardware


def _base(path, values) -> Hardware | type[Hardware]:
    """Take `preset` or `backend` out of `values`; return what it names."""
    keys = {'preset': PRESETS, 'backend': BACKENDS}
    given = [key for key in keys if key in values]
    if len(given) != 1:
        both = ' and '.join(given) or 'neither'
        raise ValueError(f'{path}: expected either `preset: NAME` or `backend: NAME`, got {both}'
                         f" (presets: {', '.join(sorted(PRESETS))}; backends: {', '.join(BACKENDS)})")
    name = values.pop(given[0])
    known = keys[given[0]]
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"{path}: unknown {given[0]} {name!r}, expected one of {', '.join(sorted(known))}")
    return known[name]
