"""Image files decoded once into memory, where they fit."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms

from lib.data.datasets import Split
from lib.data.image_folder import BadImageError, image_size, load_image
from lib.data.link_tree import some_names
from lib.runtime import distributed

logger = logging.getLogger(__name__)


def decode_photographs(split: Split, cache_size: int, *, workers: int = 0, skip: bool = False) -> Split:
    """Decode a `Split` of paths; shorter sides above `cache_size` become that.

    Args:
        skip: leave out files that cannot be decoded and warn, instead of a ValueError.

    Returns:
        `Split` whose images are a list of uint8 (H, W, 3).
    """
    images, resize = [None] * len(split), transforms.Resize(cache_size)

    def store(index, image):
        smaller = resize(image) if min(image.size) > cache_size else image
        images[index] = torch.from_numpy(np.array(smaller))

    kept = _decode(split, store, workers, skip)
    return Split([images[index] for index in kept], split.labels[kept])


def decode_views(split: Split, view: Callable, size: int, *, workers: int = 0, skip: bool = False) -> Split:
    """Decode a `Split` of paths into one fixed view of each: images uint8 (N, 3, size, size).

    Args:
        view: PIL image -> PIL image of size x size.
        split, workers, skip: as of `decode_photographs`.
    """
    images = torch.empty(len(split), 3, size, size, dtype=torch.uint8)

    def store(index, image):
        image = view(image)
        if image.size != (size, size):
            raise ValueError(f'{split.images[index]} has {image.width} x {image.height} pixels, expected {size} x '
                             f"{size}: the data set 'folder' takes images of any size")
        images[index] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    kept = _decode(split, store, workers, skip)
    for place, index in enumerate(kept):
        if place < index:
            images[place] = images[index]  # in place, for a second copy may not fit into memory
    return Split(images[:len(kept)], split.labels[kept])


def _decode(split, store, workers, skip):
    """Call store(index, PIL image) for every image, in threads; returns the indices of those that could be decoded."""
    start, bad = time.perf_counter(), set()

    def decode(index):
        try:
            image = load_image(split.images[index])
        except BadImageError as error:
            if not skip:
                raise
            bad.add(error.path)
            return False
        store(index, image)
        return True

    with ThreadPoolExecutor(max(1, workers)) as pool:
        decoded = list(pool.map(decode, range(len(split))))
    kept = [index for index, good in enumerate(decoded) if good]
    if not kept:
        raise ValueError(f'none of the {len(split)} images can be decoded: {some_names(bad)}')
    logger.info('decoded %d images in %.1f s', len(kept), time.perf_counter() - start)
    if bad:
        logger.warning('%d of %d images cannot be decoded and are left out: %s', len(bad), len(split), some_names(bad))
    return kept


def photograph_bytes(paths: Sequence[str], cache_size: int, workers: int = 0) -> int:
    """Return the memory that `decode_photographs` takes, from the headers of the files."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        sizes = [size for size in pool.map(image_size, paths) if size]
    return sum(3 * round(width * height * min(1, cache_size / min(width, height)) ** 2) for width, height in sizes)


def fits_memory(cache: str, needed: int, count: int, *, name: str = 'images', world: int = 1) -> bool:
    """Decide whether images go into memory, and log what they take; several processes decide alike.

    Args:
        cache: 'auto': if they take at most half of the available memory; 'ram': always.
        world: number of processes; each keeps all images.

    Raises:
        ValueError: 'ram', and they take more than there is.
    """
    copies, available = int(os.environ.get('LOCAL_WORLD_SIZE', world)) if world > 1 else 1, available_memory()
    logger.info('%s: %d images, %.1f GB in memory%s', name, count, needed / 1e9,
                f' of each of {copies} processes' if copies > 1 else '')
    limit = available if cache == 'ram' else available and available / 2
    fits = cache == 'ram' if limit is None else needed * copies <= limit
    if world > 1:
        fits = distributed.total(fits)[0] == distributed.world_size()
    if not fits:
        there = 'an unknown amount' if available is None else f'{available / 1e9:.1f} GB'
        found = f'{name} take {needed * copies / 1e9:.1f} GB, and {there} of memory is available'
        if cache == 'ram':
            raise ValueError(f'--cache ram: {found}: take fewer or smaller images (--train_size, --cache_size), or '
                             '--cache off')
        logger.info('--cache auto: %s, so files are decoded again in every epoch', found)
    return fits


def available_memory() -> int | None:
    """Return the bytes of memory that are available, None where the system does not say."""
    try:
        lines = Path('/proc/meminfo').read_text(encoding='ascii').splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable:'))
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, ValueError, OSError):
        return None
