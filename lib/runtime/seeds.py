"""Seeds: one number for all randomness of a run, derived for each of its parts."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lib.runtime import distributed


def derived_seed(*parts) -> int:
    """Return a 63-bit seed that depends on all `parts` (numbers and names), the same on every machine."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], 'little') >> 1


def seed_everything(*parts) -> None:
    """Seed the global generators of Python, NumPy and torch from `parts`, e.g. (seed, 'epoch', 3).

    Called at the start of every epoch and episode: a resumed run then draws what an uninterrupted one would. Of several
    processes each has a seed of its own (dropout), the main one that of a single process.
    """
    seed = derived_seed(*parts, *([] if distributed.is_main() else [distributed.rank()]))
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)  # noqa: NPY002  (for data set code of users that draws from the global generator)
    torch.manual_seed(seed)


def seeded_generator(*parts) -> torch.Generator:
    """Return a new CPU generator whose stream depends on all `parts` (integers and names) and on nothing else."""
    return torch.Generator().manual_seed(derived_seed(*parts))


@contextmanager
def own_generators(*parts) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global CPU generators from `parts` for a while, and put them back."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)  # noqa: NPY002  (what transforms of users draw from)
    torch.random.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds CUDA devices too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])
