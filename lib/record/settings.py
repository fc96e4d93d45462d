"""The `args.json` of a run: its settings, and a record of what the run was begun from; sealed, so that nobody edits it.

Options that may change are given on the command line of the resumed run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.record.files import DIGEST, parse_json, read_text, unsealed

RECORD = 'record'  # the entry beside the settings


def with_record(settings: Mapping, inputs: Mapping, identity: str) -> dict:
    """Return what `args.json` holds, but for its seal.

    Args:
        settings: JSON values by name.
        inputs: {name: digest or digests of what it holds}.
        identity: what checkpoints of the run carry as `run`.
    """
    return {**settings, RECORD: {'inputs': dict(inputs), 'identity': identity}}


def read_settings(path: str | Path) -> tuple[dict, dict | None]:
    """Return (settings, record) of an `args.json`; the record is None where a version before it wrote the file.

    Raises:
        ValueError: it is damaged, or was changed since it was written.
    """
    what = f'settings of a run {path}'
    value = parse_json(read_text(path, 'settings of a run'), what)
    if not isinstance(value, dict):
        raise ValueError(f'{what} hold a {type(value).__name__}, expected a dict')
    if RECORD in value and DIGEST not in value:
        raise ValueError(f'{what} have lost their digest: put the file back, or start another run')
    settings = unsealed(value, what)
    record = settings.pop(RECORD, None)
    if record is not None and not (isinstance(record, dict) and isinstance(record.get('inputs'), dict)):
        raise ValueError(f'{what} have no record that can be read: put the file back, or start another run')
    return settings, record


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of inputs that both have with another digest, or that only one of them has."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
