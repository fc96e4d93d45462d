"""Damage to files: of their bytes, and of the values of JSON, YAML, CSV, `.npz` and checkpoints."""

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

STRANGE = (None, True, 'x', '', -1, 0, 1, 2 ** 63, 10 ** 400, float('nan'), float('inf'), -1e300, 1e-320, [], {}, [1],
           {'a': 1}, [[[]]], 'NaN', '\x1b[31mred', 'a\nb', '../../evil', 'x' * 300, '8x1000000000', 0.5)


def flip(data: bytearray, rng: random.Random) -> None:
    """Flip 1 to 8 bits."""
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data: bytearray, rng: random.Random) -> None:
    """Cut the end off, perhaps everything."""
    del data[rng.choice((0, len(data) - 1, rng.randrange(len(data)))):]


def _range(data, rng):
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 2, 8, 64, 512, len(data) // 4 + 1)))


def remove(data: bytearray, rng: random.Random) -> None:
    """Remove a range."""
    start, stop = _range(data, rng)
    del data[start:stop]


def duplicate(data: bytearray, rng: random.Random) -> None:
    """Have a range twice."""
    start, stop = _range(data, rng)
    data[stop:stop] = data[start:stop]


def zero(data: bytearray, rng: random.Random) -> None:
    """Fill a range with zeros, as a disk that crashed does."""
    start, stop = _range(data, rng)
    data[start:stop] = bytes(stop - start)


def noise(data: bytearray, rng: random.Random) -> None:
    """Fill a range with random bytes."""
    start, stop = _range(data, rng)
    data[start:stop] = rng.randbytes(stop - start)


def append(data: bytearray, rng: random.Random) -> None:
    """Add bytes at the end."""
    data += rng.choice((b'\n', b'\0' * 64, b'}', b'garbage', bytes(data[:512])))


def other(data: bytearray, rng: random.Random) -> None:
    """Replace everything by another kind of file."""
    data[:] = rng.choice((b'', b'{}', b'[]', b'null', b'[' * 50000, b'<html></html>', b'\x80\x02}q\x00.', b'0', b'\n',
                          b'\xff\xfe\x00', b'a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n', b'PK\x05\x06' + bytes(18)))


BYTES = (flip, flip, flip, truncate, remove, duplicate, zero, noise, append, other)


def _places(value, path=()):
    """Yield the path of everything in nested dicts and lists, but for the whole."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in items:
        yield (*path, key)
        yield from _places(entry, (*path, key))


def mutate_value(value, rng: random.Random):
    """Change, remove or add one entry somewhere in nested dicts and lists; return the whole."""
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return rng.choice(STRANGE)
    *path, key = rng.choice(places)
    owner = value
    for part in path:
        owner = owner[part]
    kind = rng.choice(('strange', 'strange', 'strange', 'remove', 'twin', 'near', 'swap'))
    if kind == 'remove':
        del owner[key]
    elif kind == 'twin' and isinstance(owner, list):
        owner.insert(key, owner[key])
    elif kind == 'near' and isinstance(owner[key], (int, float)) and not isinstance(owner[key], bool):
        owner[key] += rng.choice((1, -1, 100, 0.5))
    elif kind == 'swap':
        second = rng.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
        owner[key], owner[second] = owner[second], owner[key]
    elif isinstance(owner, dict) and kind == 'twin':
        owner[rng.choice(('', 'x', 1, key * 2 if isinstance(key, str) else 'y'))] = owner[key]
    else:
        owner[key] = rng.choice(STRANGE)
    return value


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Mutate a value of a JSON text."""
    return json.dumps(mutate_value(json.loads(data), rng)).encode()


def mutate_yaml(data: bytes, rng: random.Random) -> bytes:
    """Mutate a value of a YAML text."""
    value = mutate_value(yaml.safe_load(data), rng)
    try:
        return yaml.safe_dump(value).encode()
    except ValueError:  # a whole number of more digits than Python turns into text
        return b'a: 1' + b'0' * 400


def mutate_csv(data: bytes, rng: random.Random) -> bytes:
    """Mutate a cell or a line of a CSV text."""
    rows = mutate_value(list(csv.reader(io.StringIO(data.decode()))), rng)
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(row if isinstance(row, list) else [row] for row in
                                                    (rows if isinstance(rows, list) else [rows]))
    return text.getvalue().encode('utf-8', 'replace')


def mutate_arrays(data: bytes, rng: random.Random) -> bytes:
    """Mutate an array of an `.npz` or `.npy`: values, type, shape, name."""
    loaded = np.load(io.BytesIO(data))
    arrays = dict(loaded) if hasattr(loaded, 'files') else {'': loaded}
    name = rng.choice(list(arrays))
    array = arrays[name]
    change = rng.choice(('type', 'shape', 'value', 'remove', 'rename', 'twin'))
    if change == 'remove':
        del arrays[name]
    elif change == 'rename':
        arrays[name + 'x'] = arrays.pop(name)
    elif change == 'twin':
        arrays['twin'] = array
    elif change == 'type':
        arrays[name] = rng.choice((array.astype('U8'), array.astype(bool), array.astype(np.complex64))) \
            if array.dtype.kind in 'fiu' else np.zeros(3)
    elif change == 'shape':
        arrays[name] = rng.choice((array[None], array.reshape(-1), array.reshape(-1)[:-1], np.zeros((0, 3))))
    elif array.size and array.dtype.kind in 'fiu':
        flat = array.reshape(-1).copy()
        with np.errstate(all='ignore'):
            flat[rng.randrange(len(flat))] = rng.choice((np.nan, np.inf, -1e30, -1, 0) if flat.dtype.kind == 'f'
                                                        else (0, np.iinfo(flat.dtype).max, np.iinfo(flat.dtype).min))
        arrays[name] = flat.reshape(array.shape)
    out = io.BytesIO()
    if hasattr(loaded, 'files'):
        np.savez(out, **arrays)
    else:
        np.save(out, next(iter(arrays.values()), np.zeros(0)))
    return out.getvalue()


def mutate_checkpoint(data: bytes, rng: random.Random) -> bytes:
    """Mutate a value of a checkpoint, and write it with valid checksums of the archive, as `torch.save` does."""
    value = mutate_value(torch.load(io.BytesIO(data), weights_only=True), rng)
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


VALUES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    '.json': mutate_json, '.yaml': mutate_yaml, '.csv': mutate_csv, '.npz': mutate_arrays, '.npy': mutate_arrays,
    '.tar': mutate_checkpoint, '.pt': mutate_checkpoint, '.pkl': mutate_checkpoint}


def mutated(path: Path, rng: random.Random) -> tuple[str, bytes]:
    """Return (what was done, the damaged bytes) of a file; half of them by its values, where they are understood."""
    data = path.read_bytes()
    change = VALUES.get(path.suffix)
    if change and rng.random() < 0.5:
        return change.__name__, change(data, rng)
    change, damaged = rng.choice(BYTES), bytearray(data)
    change(damaged, rng)
    return change.__name__, bytes(damaged)
