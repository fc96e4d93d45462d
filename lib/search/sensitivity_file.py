"""Files of sensitivities: that of a run, measured anew where it is of something else, and one that runs share."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lib.env.search_env import SearchEnv
from lib.record.arrays import read_npz, write_npz
from lib.record.digest import digest_of_array
from lib.record.files import is_file, parse_json
from lib.record.sensitivity_plot import plot_sensitivity
from lib.record.values import check_values, real, whole
from lib.runtime import distributed
from lib.search.curvature import SCALARS
from lib.search.sensitivity import Sensitivity, measure_sensitivity, parts_of, table_of
from lib.simulator.cost import MAX_BIT

logger = logging.getLogger(__name__)

MAX_FILE = 1 << 26  # bytes
COUNTS = {'forwards': whole(), 'backwards': whole(), 'seconds': real(0)}
OF_A_SEARCH = ('kind', 'errors', 'min_bit', 'max_bit', 'fixed', 'bits', 'float_accuracy')  # those that share may differ


def read_or_measure(path: str | Path | None, env: SearchEnv, kind: str, *, num_images: int,
                    shared: str | Path | None = None) -> Sensitivity:
    """Read a `Sensitivity` from a file, or measure it and write the file.

    A file that belongs to something else (other weights, bits, quantizers, images) is measured anew and replaced.

    Args:
        path: an `.npz`; None: it is not kept.
        env, kind, num_images: as in `measure_sensitivity`.
        shared: an `.npz` of all kinds for all searches of the same network, quantizers and images, whatever their
            costs and budgets, whose bits are among those measured; it is read before anything is measured, and written
            where it does not have this kind.

    Raises:
        ValueError: `shared` is of something else.
    """
    if path is None and shared is None:
        return measure_sensitivity(env, kind, num_images=num_images)
    about = _belongs_to(env, kind, num_images)
    found = distributed.on_main(_read, path, about, env) if path else None
    if found is not None:
        return found
    found = distributed.on_main(read_shared, shared, env, kind, num_images=num_images) if shared else None
    if found is None:
        found = measure_sensitivity(env, kind, num_images=num_images)
        if shared and distributed.is_main():
            _share(shared, env, found, about)
    if path and distributed.is_main():
        write_npz(path, {**_arrays(found), 'about': json.dumps(about)})
        draw(found, env, Path(path).with_suffix('.png'))
    return found


def draw(found: Sensitivity, env: SearchEnv, path: str | Path) -> None:
    """Draw a `Sensitivity`: bits against layers; of pairs weights and activations apart."""
    sides = {}
    for (layer, side), rises in parts_of(found.table, env.space).items():
        label = ('weight bits', 'activation bits')[side]
        cells = sides.setdefault(label, np.full((env.space.num_layers, MAX_BIT), np.nan))
        cells[layer, np.array(env.space.layer_bits[layer].sides[side]) - 1] = rises
    what = 'divergence of the outputs' if found.kind == 'kl' else 'rise of the loss'
    if sides:
        plot_sensitivity(sides, list(env.layers()), path, what=f'{what} ({found.kind})')


def _belongs_to(env, kind, num_images):
    """Return what a sensitivity depends on, as plain values in the form that JSON gives them back."""
    about = {'kind': kind, 'num_images': num_images, 'seed': 0, 'layers': list(env.layers()),
             'min_bit': env.space.range[0], 'max_bit': env.space.range[1], 'fixed': list(env.space.fixed.items()),
             **({'bits': list(map(str, env.space.layer_bits))} if env.space.asked else {}),
             **({'errors': 'outputs'} if env.problems and kind in SCALARS else {}),  # see `weight_error`
             'float_accuracy': env.float_accuracy, 'weights': env.weights_digest(), **env.describe_quantizers()}
    return json.loads(json.dumps(about))


def _read(path, about, env):
    """Return the `Sensitivity` in a file, or None where there is none of exactly this."""
    if not is_file(path):
        return None
    try:
        file = read_npz(path, 'sensitivity', MAX_FILE)
        differ = _differing(about, parse_json(str(file['about']), f'{path}: about'))
        if not differ:
            _check_table(env, file['table'], kind=about['kind'])
            return _sensitivity(file, about['kind'], path)
    except (OSError, ValueError, KeyError) as error:
        logger.warning('%s cannot be used (%s): the sensitivity is measured anew', path, error)
        return None
    logger.warning('%s is of another search (%s differ): the sensitivity is measured anew', path, ', '.join(differ))
    return None


def _differing(about, saved) -> list[str]:
    """Return the names of what differs: settings that say nothing where they are usual may be on one side alone."""
    saved = saved if isinstance(saved, dict) else {}
    return [key for key in {**about, **saved} if about.get(key) != saved.get(key)]


def _arrays(found: Sensitivity) -> dict:
    return {name: getattr(found, name) for name in ('table', *COUNTS)}


def _sensitivity(file: Mapping, kind: str, path) -> Sensitivity:
    counts = {key: file[key].item() for key in COUNTS}
    check_values(counts, COUNTS, str(path))
    return Sensitivity(file['table'], kind, **counts)


# ---- one file for many searches

def read_shared(path: str | Path, env: SearchEnv, kind: str, *, num_images: int) -> Sensitivity | None:
    """Return what a shared file has of a kind, at the bits of this search; None: it has none, or there is no file.

    Raises:
        ValueError: the file is damaged, or of something else.
    """
    if not is_file(path):
        return None
    try:
        file = read_npz(path, 'file of sensitivities', MAX_FILE)
        about = _of_all_searches(env, _belongs_to(env, kind, num_images))
        if differ := _differing(about, parse_json(str(file['about']), 'about')):
            raise ValueError(f'it is of something else: {", ".join(differ)} differ')
        if f'{kind}.table' not in file:
            return None
        mine = {name.partition('.')[2]: array for name, array in file.items() if name.startswith(f'{kind}.')}
        _check_covers(parse_json(str(mine['sides']), 'sides'), env)
        found, expected = _sensitivity(mine, kind, path), _expected(env)
        table = np.where(np.isnan(expected), np.nan, found.table)
        table[list(env.space.fixed)] = expected[list(env.space.fixed)]
        _check_table(env, table, kind)
        return found._replace(table=table)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise ValueError(f'{path} cannot be used ({error}): give another file as sensitivities, or delete it, and it '
                         'is made anew') from error


def _share(path, env, found: Sensitivity, about: Mapping) -> None:
    """Add a kind to a shared file, which is of the same or not there."""
    file = read_npz(path, 'file of sensitivities', MAX_FILE) if is_file(path) else {}
    mine = {**_arrays(found), 'sides': json.dumps([bits.sides for bits in env.space.layer_bits])}
    write_npz(path, {**file, 'about': json.dumps(_of_all_searches(env, about)),
                     **{f'{found.kind}.{name}': array for name, array in mine.items()}})


def _of_all_searches(env, about: Mapping) -> dict:
    """Return what a shared file is of: the network, its quantizers and the images, whatever the bits and budgets."""
    image = next(iter(env.val_loader))[0][0].cpu().numpy()
    return {**{name: value for name, value in about.items() if name not in OF_A_SEARCH},
            'images': [env.val_loader.num_images, digest_of_array(image)]}


def _check_covers(sides, env) -> None:
    """Raise ValueError unless everything that this search may choose is among the bits that were measured."""
    for layer in env.space.free:
        bits = env.space.layer_bits[layer]
        if any(not set(mine) <= set(theirs) for mine, theirs in zip(bits.sides, sides[layer], strict=True)):
            raise ValueError(f'layer {layer} was measured at {" / ".join(map(str, sides[layer]))} bits, this search '
                             f'asks for {bits}')


# ---- the numbers

def _expected(env) -> np.ndarray:
    """Return a table with 0 where a measurement gives a number."""
    weights, inputs = ({index: dict.fromkeys(env.space.layer_bits[index].sides[side], 0.0) for index in env.space.free}
                       for side in (0, 1))
    return table_of(env.space, weights, inputs)


def _check_table(env, table, kind):
    """Raise ValueError unless a table has what a measurement gives: numbers at all bits of the search and only there.

    A fixed layer has 0, and only the loss can fall.
    """
    expected = _expected(env)
    if table.shape != expected.shape or table.dtype != expected.dtype or np.isinf(table).any() or \
            not np.array_equal(np.isnan(table), np.isnan(expected)) or \
            np.nansum(np.abs(table[list(env.space.fixed)])) or (kind != 'loss' and np.nanmin(table) < 0):
        raise ValueError('its numbers are not those of a measurement of these layers at these bits')
