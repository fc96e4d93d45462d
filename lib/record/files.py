"""Files on disk: written whole or not at all, and read by one reader per kind that says what is wrong in one line."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_TEXT = 1 << 26  # bytes of a text file that is read at all


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it onto `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.', suffix=path.suffix)
    os.close(handle)
    try:
        yield Path(temporary)
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a run folder is meant to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | Path, value: dict) -> None:
    """Write the dict `value` as JSON to `path` atomically, one entry a line."""
    lines = (f'  {json.dumps(key)}: {json.dumps(entry)}' for key, entry in value.items())
    write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')


def read_text(path: str | Path, what: str = 'file') -> str:
    """Return the text of a UTF-8 file, without a byte-order mark.

    Args:
        path: the file.
        what: what it should be, for messages ("lookup table", "settings of a run").

    Raises:
        FileNotFoundError: there is no such file, or it is a folder.
        ValueError: it cannot be opened, is no UTF-8, or is larger than `MAX_TEXT`.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise FileNotFoundError(f'{what} {path} is a folder; name the file in it')
        if size > MAX_TEXT:
            raise ValueError(f'{path} has {size} bytes, too many for a {what}')
        return path.read_text(encoding='utf-8-sig')
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error) if error.errno is None else
                                f'{what} {path} does not exist: check the path') from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, 'strerror', None) or 'it is no UTF-8 text'
        raise ValueError(f'{path} cannot be read as a {what}: {reason}') from error


def parse_json(text: str, source: str) -> Any:
    """Return the value of a JSON text; no NaN, no infinity, no key twice in one object.

    Raises:
        ValueError: the text is no such JSON, or nested too deeply; `source` is named.
    """
    def pairs(items):
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            raise ValueError(f'the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice')
        return dict(items)

    def constant(name):
        raise ValueError(f'{name} is no number of JSON')

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RecursionError as error:
        raise ValueError(f'{source} is no JSON that can be read: it is nested too deeply') from error
    except ValueError as error:
        raise ValueError(f'{source} is no JSON that can be read: {error}') from error


def read_json(path: str | Path, what: str = 'JSON file', kind: type = dict) -> Any:
    """Return the value of a JSON file, of type `kind`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as JSON, or holds a value of another type.
    """
    value = parse_json(read_text(path, what), f'{what} {path}')
    if not isinstance(value, kind):
        raise ValueError(f'{what} {path} holds a {type(value).__name__}, expected a {kind.__name__}')
    return value
