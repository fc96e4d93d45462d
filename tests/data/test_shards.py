"""Shards of several processes: their parts in the order of the ranks are, bit for bit, what one process serves."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.batches import EpochBatches, drops_last
from lib.runtime.seeds import own_generators
from lib.utils.data_utils import create_loaders, create_search_loaders

DATA = """
import torch
class Noisy(torch.utils.data.Dataset):
    num_classes = 5
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return torch.full((2, 3, 4), float(index)) + torch.rand(1), index % 5
def build(split):
    return Noisy(23 if split == 'train' else 9)
"""


@pytest.fixture(scope='module')
def make(tmp_path_factory):
    """`make(kind, **options)`: (training, validation) loader of 23 and 9 images, of every kind of loader."""
    root = tmp_path_factory.mktemp('shards')
    generator = np.random.default_rng(0)
    for split, counts in (('train', (12, 11)), ('val', (4, 5))):
        for label, count in enumerate(counts):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (20, 24 + i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    (root / 'data.py').write_text(DATA)

    def loaders(kind, **options):
        options = {'batch_size': 6, 'test_batch_size': 4, 'seed': 3, **options}
        if kind == 'own':
            return create_loaders(None, dataset_file=f'{root}/data.py:build', **options)[:2]
        if kind == 'memory':
            return create_search_loaders('digits', train_size=23, val_size=9, **options)[:2]
        name, cache = {'files': ('folder', 'off'), 'cache': ('folder', 'ram'), 'tiny': ('tinyimagenet', 'ram')}[kind]
        return create_loaders(name, root, image_size=16, cache=cache, **options)[:2]
    return loaders


KINDS = ['files', 'cache', 'tiny', 'memory', 'own']


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('world', [2, 3])
def test_parts_in_the_order_of_the_ranks_are_the_batches_of_one_process(make, kind, world):
    ranks = [make(kind, shard=(rank, world)) for rank in range(world)]
    for part, single in enumerate(make(kind)):
        for epoch in (0, 1):
            single.set_epoch(epoch)
            served = []
            for loaders in ranks:
                loaders[part].set_epoch(epoch)
                served.append(list(loaders[part]))
                assert len(loaders[part]) == len(served[-1])
                assert all(len(labels) == len(images) > 0 for images, labels in served[-1])
            for position, (images, labels) in enumerate(single):
                pieces = [batches[position] for batches in served if position < len(batches)]
                if part == 0 and len(labels) < 2 * world:
                    assert not pieces  # 23 images: the last batch of 5 is left out for three processes
                    continue
                assert torch.equal(torch.cat([piece[0] for piece in pieces]), images)
                assert torch.equal(torch.cat([piece[1] for piece in pieces]), labels)
        if part == 0:
            assert len({len(batches) for batches in served}) == 1


@pytest.mark.parametrize('kind', KINDS)
def test_the_first_batch_is_that_of_one_process_and_disturbs_no_iteration(make, kind):
    single, sharded = make(kind)[0], make(kind, shard=(1, 2), workers=1)[0]
    for loader in (single, sharded):
        loader.set_epoch(2)
    reference = list(single)
    iteration = iter(sharded)
    before = next(iteration)
    assert torch.equal(sharded.first_batch(), reference[0][0])
    assert torch.equal(before[0], reference[0][0][3:])
    assert torch.equal(next(iteration)[0], reference[1][0][3:])
    sharded.set_epoch(1)
    assert not torch.equal(sharded.first_batch(), reference[0][0])


@pytest.mark.parametrize('kind', KINDS)
def test_every_loader_says_what_it_serves(make, kind):
    for loader, count, batch in zip(make(kind, shard=(0, 2)), (23, 9), (6, 4), strict=True):
        assert (loader.num_images, loader.batch_size) == (count, batch)
        assert loader.input_shape == tuple(next(iter(loader))[0].shape[1:])


@pytest.mark.parametrize('count', [1, 4, 5, 7, 8, 9, 15])
@pytest.mark.parametrize('batch_size', [4, 7])
@pytest.mark.parametrize('world', [1, 2, 4])
def test_any_split_covers_each_image_once_and_training_gives_all_ranks_as_many_batches(count, batch_size, world):
    if count < world:
        return
    for training in (False, True):
        drop = training and drops_last(count, batch_size, world)
        ranks = [EpochBatches(count, batch_size, shuffle=training, seed=1, drop_last=drop, shard=(rank, world))
                 for rank in range(world)]
        parts = [list(rank) for rank in ranks]
        seen = sorted(int(i) for rank in parts for part in rank for i in part)
        whole = sorted(int(i) for batch in ranks[0].whole() for i in batch)
        assert seen == whole
        assert [len(rank) for rank in ranks] == list(map(len, parts))
        assert all(len(part) for rank in parts for part in rank)
        if not training:
            assert whole == list(range(count))
        elif count >= 2 * world:
            assert len(set(map(len, parts))) == 1
            rest = count % batch_size
            assert len(whole) == (count - rest if count > batch_size and rest < 2 * world else count)


def test_one_process_leaves_out_a_last_batch_of_one_image_only():
    dropped = {(count, batch) for count in range(1, 12) for batch in range(1, 12) if drops_last(count, batch)}
    assert dropped == {(c, b) for c in range(2, 12) for b in range(1, 12) if c % b == 1}


@pytest.mark.parametrize(('options', 'message'), [
    ({'batch_size': 2}, '3 processes cannot share batches of 2 images: take a batch size of at least 3'),
    ({'test_batch_size': 2}, '3 processes cannot share batches of 2 images'),
    ({'shard': (3, 3)}, r'shard \(3, 3\): expected'),
    ({'shard': (0, 10), 'batch_size': 10, 'test_batch_size': 10}, '10 processes cannot share 9 images'),
])
@pytest.mark.parametrize('kind', ['files', 'cache', 'memory'])
def test_more_processes_than_images_are_named(make, kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **{'shard': (0, 3), **options})


def test_own_generators_seed_all_three_and_put_them_back():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    with own_generators(1, 2):
        first = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    expected = draw()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)  # noqa: NPY002
    with pytest.raises(KeyError), own_generators(1, 2):
        assert draw() == first
        raise KeyError
    assert draw() == expected
    with own_generators(1, 3):
        assert all(a != b for a, b in zip(draw(), first, strict=True))
