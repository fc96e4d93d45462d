"""Tables that were made before, found by what they describe - layers, hardware, metric - whatever their names are."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lib.record.digest import digest_of_value
from lib.record.files import is_file
from lib.simulator.cost import CostTable
from lib.simulator.hardware import Hardware, check_metric, make_table
from lib.simulator.layer import LayerRecord
from lib.simulator.measured.machine import machine_facts
from lib.simulator.table_files import load_table, read_about, save_table

logger = logging.getLogger(__name__)

MACHINE = ('cpu', 'flags', 'torch', 'gpu')  # a measured table is of this machine only


def user_folder() -> Path | None:
    """Return the user's own folder of tables; None where the user has no home."""
    base = os.environ.get('XDG_CACHE_HOME', '')
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / '.cache') / 'haq' / 'lookup_tables'
    except RuntimeError:
        return None


def digest_of_table(layers: Sequence[LayerRecord], hardware: Hardware, metric: str) -> str:
    """Return the digest of what a table is of: layers, parameters of the hardware, metric; the machine if measured."""
    machine = machine_facts(hardware.device) if hardware.backend == 'measured' else {}
    return _digest([layer.to_dict() for layer in layers], hardware.to_dict(), metric, machine)


def digest_of_about(about: Mapping) -> str | None:
    """Return the same of a table's description; None of one that was not made for hardware."""
    if not {'layers', 'hardware', 'metric'} <= about.keys():
        return None
    measured = about['hardware'].get('backend') == 'measured'
    return _digest(about['layers'], about['hardware'], about['metric'], about.get('machine') or {} if measured else {})


def _digest(layers, hardware, metric, machine) -> str:
    plain = {key: int(value) if isinstance(value, float) and value.is_integer() else value  # 200.0 and 200 are one
             for key, value in hardware.items() if key != 'status'}
    facts = {key: machine[key] for key in MACHINE if machine.get(key) is not None}
    return digest_of_value({'layers': layers, 'hardware': plain, 'metric': metric, 'machine': facts})


def find_table(folders: Sequence[Path], digest: str) -> Path | None:
    """Return the table in `folders` that describes this, under any name; None where there is none."""
    for folder in folders:
        for path in sorted(folder.glob('*.json')):
            try:
                if digest_of_about(read_about(path)) == digest and is_file(path.with_suffix('.npy')):
                    return path.with_suffix('.npy')
            except (ValueError, OSError) as error:
                logger.debug('%s is passed over: %s', path, error)
    return None


def free_name(folder: Path, stem: str, layers: Sequence[LayerRecord], hardware: Hardware, metric: str,
              overwrite: bool = False) -> Path:
    """Return the path of a table in `folder`: `stem`.npy, or where that is another table's a name of its own."""
    digest, path = digest_of_table(layers, hardware, metric), folder / f'{stem}.npy'
    try:
        taken = is_file(path) and digest_of_about(read_about(path)) != digest and not overwrite
    except ValueError:
        taken = not overwrite
    return folder / f'{stem}_{digest[:12]}.npy' if taken else path


def find_or_make(stem: str, layers: Sequence[LayerRecord], hardware: Hardware, metric: str, folders: Sequence[Path],
                 about: Mapping) -> CostTable:
    """Return the table of a network on hardware: the one that was made before, else a new one, which is kept.

    Args:
        stem: beginning of the name of a new file; the digest of what the table is of comes behind it. A bare
            `stem`.npy in the first folder, without the .json of a table that was made here, is the user's own and is
            taken as it is.
        layers, hardware, metric, about: see `make_table`.
        folders: where tables are; a new one goes to the first that can be written, else it is not kept.

    Raises:
        ValueError: see `make_table`; or the user's own table is of another network.
    """
    check_metric(hardware, metric)
    own = folders[0] / f'{stem}.npy'
    if is_file(own) and not is_file(own.with_suffix('.json')):
        return load_table(own, layers)
    digest = digest_of_table(layers, hardware, metric)
    if path := find_table(folders, digest):
        try:
            return load_table(path, layers)
        except ValueError as error:
            logger.warning('%s (another one is made now)', error)
    table = make_table(layers, hardware, metric, about)
    keep_table(table, f'{stem}_{digest[:12]}.npy', folders)
    return table


def keep_table(table: CostTable, name: str, folders: Sequence[Path]) -> Path | None:
    """Save a table in the first folder that can be written; return its path, None where there is no such folder."""
    reasons = []
    for folder in folders:
        try:
            save_table(folder / name, table)
            logger.info('made the lookup table %s', folder / name)
            return folder / name
        except OSError as error:
            reasons.append(f'{folder}: {error.strerror or error}')
    logger.warning('the lookup table of %s is not kept, for no folder can be written (%s); make_lookup_table.py '
                   '--output PATH.npy makes one for --cost PATH.npy', table.name, '; '.join(reasons))
    return None
