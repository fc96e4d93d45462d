"""Files on disk: written whole or not at all, and read by one reader per kind that says what is wrong in one line.

YAML is read by `lib.record.yaml_file`, arrays by `lib.record.arrays`; this file needs the standard library alone.
"""

import contextlib
import csv
import errno
import io
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.record.digest import digest_of_value
from lib.record.disk import WriteError, room_text, why_not_written

MAX_TEXT = 1 << 26  # bytes of a text file that is read at all
MAX_STEM = 150  # characters of the name of a file
MAX_DEPTH = 100  # of lists in lists
MAX_DIGITS = 300  # of a whole number: the largest float has 309
NO_SUCH_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
DIGEST = 'digest'  # the key of the digest in sealed JSON files, archives of arrays and checkpoints


# ---- names

def file_stem(*parts: str) -> str:
    """Return a file name without suffix that stays in its folder, whatever the parts are."""
    return re.sub(r'[^\w.+-]', '_', '_'.join(parts)).lstrip('.')[:MAX_STEM]


# ---- writing

@contextlib.contextmanager
def atomic_path(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it onto `path` when the block ends without an error.

    Args:
        path: the file; its folder is made where it is missing.
        needed: bytes that the file takes, for the message where they do not fit; of the file it replaces by default.

    Raises:
        WriteError: the file cannot be written, as on a full disk or in a folder that is read-only.
    """
    path, temporary = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f'.{path.name}.{secrets.token_hex(4)}{path.suffix}')
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # of which the umask takes its part
        temporary = name
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        reason = why_not_written(error, temporary is None)
        if temporary:
            temporary.unlink(missing_ok=True)
        if reason:
            space = room_text(path, needed) if temporary else ''
            raise WriteError(f'{path} cannot be written: {reason}{space}') from error
        raise


def temporaries(path: Path) -> list[Path]:
    """Return the temporary files of `path`, a path or a pattern, that killed processes left beside it."""
    left = re.compile(r'\.[a-z0-9_]{8}$')  # the random part of their names, today's and that of mkstemp
    return [found for found in sorted(path.parent.glob(f'.{path.name}.*'))
            if left.search(found.name.removesuffix(path.suffix))]


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding='utf-8')


def write_json(path: str | Path, value: Mapping, *, seal: bool = False) -> None:
    """Write the dict `value` as JSON to `path` atomically, one entry a line.

    Args:
        value: plain values.
        seal: add the digest of everything, which `read_json` checks and takes out again.
    """
    value = sealed(value) if seal else value
    lines = (f'  {json.dumps(key)}: {json.dumps(entry)}' for key, entry in value.items())
    write_text(path, '{\n' + ',\n'.join(lines) + '\n}\n')


def csv_text(columns: Sequence[str], rows: Iterable[Sequence | Mapping], end: str = '\n') -> str:
    """Return a table as the text of a CSV file: a line of column names, then the rows, lists or {column: cell}.

    What is None, or what a row lacks, is an empty cell; what it has beyond the columns is left out.
    """
    text = io.StringIO()
    cells = ([row.get(name) for name in columns] if isinstance(row, Mapping) else row for row in rows)
    csv.writer(text, lineterminator=end).writerows([columns, *cells])
    return text.getvalue()


def sealed(value: Mapping) -> dict:
    """Return the dict as JSON gives it back, with the digest of everything in it."""
    value = {key: entry for key, entry in json.loads(json.dumps(value)).items() if key != DIGEST}
    return {**value, DIGEST: digest_of_value(value)}


def unsealed(value: dict, source: str) -> dict:
    """Return the dict without its digest, if it has one.

    Raises:
        ValueError: it is not what the digest was made of; `source` is named.
    """
    rest = {key: entry for key, entry in value.items() if key != DIGEST}
    if DIGEST in value and value[DIGEST] != digest_of_value(rest):
        raise ValueError(f'{source} is damaged or was changed by hand: its digest is of other values')
    return rest


# ---- reading

def is_file(path: str | Path) -> bool:
    """Return whether there is such a file; a name that is too long, or no name at all, is none.

    Raises:
        ValueError: nobody can tell, for instance because the folder may not be read.
    """
    try:
        return Path(path).is_file()
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            return False
        raise ValueError(f'{path} cannot be looked at: {error.strerror}; check the permissions') from error


def read_bytes(path: str | Path, what: str = 'file', limit: int = MAX_TEXT) -> bytes:
    """Return what a file holds.

    Args:
        limit: bytes beyond which it is not read at all.

    Raises:
        ValueError: it cannot be opened, or is larger than `limit`.
    """
    path, size = Path(path), file_size(path, what)
    if size > limit:
        raise ValueError(f'{path} has {size} bytes, too many for a {what}')
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f'{path} cannot be read as a {what}: {error.strerror}') from error


def file_size(path: str | Path, what: str = 'file') -> int:
    """Return the bytes of a regular file.

    Raises:
        ValueError: it cannot be looked at, or is a device or a pipe.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        if error.errno in NO_SUCH_FILE:
            raise FileNotFoundError(f'{what} {path} does not exist: check the path') from error
        raise ValueError(f'{path} cannot be read as a {what}: {error.strerror}') from error
    if stat.S_ISDIR(status.st_mode):
        raise FileNotFoundError(f'{what} {path} is a folder; name the file in it')
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f'{what} {path} is no regular file')
    return status.st_size


def read_text(path: str | Path, what: str = 'file') -> str:
    """Return the text of a UTF-8 file, without a byte-order mark and with the line ends of Unix.

    Raises as `read_bytes`, and ValueError for what is no UTF-8.
    """
    try:
        text = read_bytes(path, what).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} cannot be read as a {what}: it is no UTF-8 text; save it as UTF-8') from error
    return text.replace('\r\n', '\n').replace('\r', '\n')


def parse_json(text: str, source: str) -> Any:
    """Return the value of a JSON text; no NaN, no infinity, no key twice in one object.

    Raises:
        ValueError: the text is no such JSON, or nested too deeply; `source` is named.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite,
                           parse_int=_whole)
        if not is_shallow(value):
            raise RecursionError
        return value
    except RecursionError as error:
        raise ValueError(f'{source} is no JSON that can be read: it is nested too deeply') from error
    except ValueError as error:
        raise ValueError(f'{source} is no JSON that can be read: {error}') from error


def is_shallow(value: Any) -> bool:
    """Return whether lists and dicts are nested at most `MAX_DEPTH` deep, so that one may print and compare them."""
    level = [[value]]
    for _ in range(MAX_DEPTH):
        level = [child for part in level for child in (part.values() if isinstance(part, dict) else part)
                 if isinstance(child, (list, dict))]
        if not level:
            return True
    return False


def _unique(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f'the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice')
    return found


def _refuse_constant(name):
    raise ValueError(f'{name} is no number of JSON')


def _finite(text):
    if not math.isfinite(value := float(text)):
        raise ValueError(f'{text:.40} is too large a number')
    return value


def _whole(text):
    if len(text) > MAX_DIGITS:
        raise ValueError(f'{text[:20]}... is too large a number')
    return int(text)


def read_json(path: str | Path, what: str = 'JSON file', kind: type = dict) -> Any:
    """Return the value of a JSON file, of type `kind`; the digest of a sealed one is checked and left out.

    Raises:
        ValueError: it cannot be read as JSON, holds a value of another type, or its digest is of something else.
    """
    value = parse_json(read_text(path, what), f'{what} {path}')
    if not isinstance(value, kind):
        raise ValueError(f'{what} {path} holds a {type(value).__name__}, expected a {kind.__name__}')
    try:
        return unsealed(value, f'{what} {path}') if isinstance(value, dict) else value
    except ValueError as error:
        raise ValueError(f'{error}; restore it, or delete it and make it again') from error


def read_csv(path: str | Path, columns: Sequence[str], what: str = 'CSV table') -> Iterator[tuple[int, dict]]:
    """Yield (line number, {column: text without spaces at its ends}) of a CSV file with a line of column names.

    Raises:
        ValueError: no CSV, a column is missing, or a line has too many cells.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, what), newline=''))
    try:
        if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} has no column {', '.join(missing)}: its first line must be {','.join(columns)}")
        if len(set(reader.fieldnames)) != len(reader.fieldnames):
            raise ValueError(f'{path} has two columns of one name: {",".join(reader.fieldnames)}')
        for row in reader:
            if any(row.get(None, ())):  # the comma of 1,234, for instance
                raise ValueError(f'{path}, line {reader.line_num}: more cells than columns, the last is '
                                 f'{row[None][-1]!r}')
            yield reader.line_num, {column: (row[column] or '').strip() for column in columns}
    except csv.Error as error:
        raise ValueError(f'{path} cannot be read as CSV: {error}') from error
