"""Data sets of the user's own: both kinds of image, randomness that is the loader's, and what is said of mistakes."""

import pickle
import random
import sys

import numpy as np
import pytest
import torch

from lib.utils.data_utils import create_loaders, create_search_loaders

DATA = """
import random
import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

class Photos(Dataset):
    classes = ['ash', 'birch', 'cedar']
    def __init__(self, count, augment=False):
        self.count, self.augment = count, augment
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        pixels = np.full((40, 50, 3), 3 * index, dtype=np.uint8)
        if self.augment:
            pixels[:] += np.uint8(random.randrange(3))
        return Image.fromarray(pixels), np.int64(index % 3)

class Tensors(Dataset):
    num_classes = 4
    def __init__(self, augment=True, count=30):
        self.augment, self.count = augment, count
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        noise = [random.random(), np.random.rand(), torch.rand(1).item()] if self.augment else [0.0, 0.0, 0.0]
        return torch.tensor(noise).view(3, 1, 1).expand(3, 4, 5) + index, torch.tensor(index % 4)

class Stream(IterableDataset):
    def __iter__(self):
        return iter([])

class Unsized:
    def __getitem__(self, index):
        return 0

class Plain(list):
    num_classes = 2

def photos(split):
    return Photos(12 if split == 'train' else 5)
def shaken(split):
    return Photos(12, augment=split == 'train')
def chosen(split, augment, root=None):
    return Tensors(augment)
def noisy(split):
    return Tensors()
def rooted(split, root):
    return Tensors(False, count=int(root))
def unlike(split, augment):
    return Tensors(augment, count=30 if augment else 29)
def nameless(split):
    return [(torch.zeros(3, 4, 4), 0)] * 4
def own_split(split):
    order = np.random.permutation(20)
    return Plain((torch.full((1, 2, 2), float(i)), 0) for i in (order[:15] if split == 'train' else order[15:]))
def stream(split):
    return Stream()
def unsized(split):
    return Unsized()
def nothing(split):
    return None
def empty(split):
    return []
def fails(split):
    raise KeyError(split)
def single(split):
    return Plain(['image'])
def triples(split):
    return Plain([(1, 2, 3)])
def arrays(split):
    return Plain([(np.zeros((3, 4, 4)), 0)])
def bytes_(split):
    return Plain([(torch.zeros(3, 4, 4, dtype=torch.uint8), 0)])
def flat(split):
    return Plain([(torch.zeros(4, 4), 0)])
def fraction(split):
    return Plain([(torch.zeros(3, 4, 4), 0.5)])
def late(split):
    return Plain([(torch.zeros(3, 4, 4), 0)] * 5 + [(torch.zeros(3, 4, 4), 2)])
def negative(split):
    return Plain([(torch.zeros(3, 4, 4), -1)])
def uneven(split):
    return Plain([(torch.zeros(3, 4, 4), 0)] * 3 + [(torch.zeros(3, 4, 5), 1)])
def parts_differ(split):
    return Plain([(torch.zeros(3, 4, 4 if split == 'train' else 5), 0)] * 3)
def val_only(split):
    return Plain([(torch.zeros(3, 4, 4), label) for label in {'val': (1, 0)}[split]])
def broken(split):
    class Broken(Plain):
        def __getitem__(self, index):
            if index == 2:
                raise OSError('disk on fire')
            return super().__getitem__(index)
    return Broken([(torch.zeros(3, 4, 4), 0)] * 3)
number = 7
"""


@pytest.fixture
def own(tmp_path):
    """`own(name)`: 'FILE.py:name'."""
    file = tmp_path / 'my_data.py'
    file.write_text(DATA)
    modules = set(sys.modules)
    yield lambda name: f'{file}:{name}'
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def create(file, **options):
    return create_loaders(None, dataset_file=file, **{'batch_size': 4, **options})


def search(file, train_size=10, val_size=5, **options):
    return create_search_loaders(None, dataset_file=file, train_size=train_size, val_size=val_size,
                                 **{'batch_size': 4, **options})


def test_photographs_get_our_transforms(own):
    train, val, classes = create(own('photos'), image_size=16)
    assert (classes, train.num_images, val.num_images, train.input_shape) == (3, 12, 5, (3, 16, 16))
    images = torch.cat([images for images, _ in val])
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = torch.stack([(torch.full((3, 16, 16), 3 * i / 255) - mean) / std for i in range(5)])
    torch.testing.assert_close(images, expected)
    assert torch.cat([labels for _, labels in val]).tolist() == [0, 1, 2, 0, 1]
    assert create(own('photos'))[0].input_shape == (3, 224, 224)


def test_tensors_are_used_as_they_are(own):
    train, val, classes = create(own('chosen'))
    assert (classes, train.input_shape) == (4, (3, 4, 5))
    images, labels = next(iter(val))
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert torch.equal(images, torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 4, 5))
    assert labels.tolist() == [0, 1, 2, 3]
    assert all(value % 1 > 0 for value in next(iter(train))[0].flatten().tolist())


def test_validation_images_can_be_read_alone(own):
    alone, classes = create(own('val_only'), splits=('val',))
    assert classes == 2 and next(iter(alone))[1].tolist() == [1, 0]


@pytest.mark.parametrize(('name', 'augmented'), [
    ('photos', True), ('shaken', True), ('chosen', True), ('noisy', True), ('own_split', False)])
def test_what_is_known_of_augmentation(own, name, augmented):
    train, val, _ = create(own(name))
    assert (train.augmented, val.augmented) == (augmented, False)


def test_a_function_gets_the_root_if_it_takes_it(own):
    assert create_loaders(None, '7', dataset_file=own('rooted'), batch_size=2)[0].num_images == 7


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_depend_on_seed_and_epoch_and_leave_the_global_generators_alone(own, workers):
    def served(loader, epoch):
        loader.set_epoch(epoch)
        return torch.cat([images for images, _ in loader])

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    reference = create(own('noisy'), seed=2)[0]
    epochs = [served(reference, epoch) for epoch in (0, 1)]
    loader = create(own('noisy'), seed=2, workers=workers)[0]
    assert all(torch.equal(served(loader, epoch), epochs[epoch]) for epoch in (1, 0, 1))
    assert before == (random.getstate(), np.random.get_state()[1].tolist(),  # noqa: NPY002
                      torch.get_rng_state().tolist())
    noise = [epoch.frac()[:, :, 0, 0] for epoch in epochs]
    for channel in range(3):  # of Python, NumPy and torch
        assert len(set(torch.cat(noise)[:, channel].tolist())) == 60


def test_a_random_split_in_the_function_is_the_same_everywhere(own):
    def images(loaders):
        return [sorted(int(x) for images, _ in loader for x in images[:, 0, 0, 0]) for loader in loaders[:2]]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    first = images(create(own('own_split'), seed=1))
    assert sorted(sum(first, [])) == list(range(20))
    assert first == images(create(own('own_split'), seed=2))


def test_a_search_holds_out_images_that_are_not_augmented(own, caplog):
    train, val, _ = search(own('chosen'))
    assert sorted(set(train.dataset.indices) & set(val.dataset.indices)) == []
    assert (train.num_images, val.num_images) == (10, 5)
    held_out = torch.cat([images for images, _ in val])
    assert torch.equal(held_out.frac(), torch.zeros(5, 3, 4, 5))
    assert held_out[:, 0, 0, 0].tolist() == val.dataset.indices
    assert next(iter(train))[0].frac().min() > 0
    assert not caplog.text


@pytest.mark.parametrize(('name', 'warned'), [('noisy', True), ('shaken', True), ('photos', False)])
def test_held_out_images_that_are_augmented_are_named(own, caplog, name, warned):
    search(own(name), train_size=6)
    assert ('held out for validation are augmented like those for training: give the function a parameter augment'
            in caplog.text) == warned


def test_the_number_of_classes(own):
    assert create(own('photos'), image_size=8, num_classes=9)[2] == 9
    assert create(own('nameless'), num_classes=2)[2] == 2
    with pytest.raises(ValueError, match='neither num_classes nor classes: give --num_classes'):
        create(own('nameless'))


@pytest.mark.parametrize(('name', 'message'), [
    ('missing', 'defines no missing'),
    ('number', 'is a int: expected a function build'),
    ('fails', r"my_data.py:fails\('train'\) fails with KeyError: 'train'"),
    ('stream', 'returned a Stream: expected a map-style Dataset'),
    ('unsized', 'returned a Unsized: expected a map-style Dataset'),
    ('nothing', 'returned a NoneType: expected a map-style Dataset'),
    ('empty', 'returned an empty data set'),
    ('single', r'item 0 is a str: expected a pair \(image, label\), or an image'),
    ('triples', 'item 0 is 3 things: expected a pair'),
    ('arrays', r'has as its image float64 \(3, 4, 4\): expected a PIL image, or a floating point tensor'),
    ('bytes_', r'has as its image torch.uint8 \(3, 4, 4\).*ToTensor'),
    ('flat', r'has as its image torch.float32 \(4, 4\)'),
    ('fraction', 'item 0 has the label 0.5: expected a whole number'),
    ('negative', 'item 0 has the label -1, but labels are 0 to 1'),
    ('parts_differ', r'training images have the shape \(3, 4, 4\), those for validation \(3, 4, 5\)'),
])
def test_mistakes_are_named_at_once(own, name, message):
    with pytest.raises(ValueError, match=message):
        create(own(name))


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(('name', 'message'), [
    ('late', r"^--dataset_file .*/my_data.py:late\('train'\): item 5 has the label 2, but labels are 0 to 1"),
    ('uneven', r'item 3 has the shape \(3, 4, 5\), but .* item 0 has \(3, 4, 4\)'),
    ('broken', 'item 2 fails with OSError: disk on fire'),
])
def test_mistakes_in_an_item_are_named_as_it_is_served(own, name, message, workers):
    train, _, _ = create(own(name), workers=workers, on_bad_image='skip')
    with pytest.raises(ValueError, match=message):
        list(train)


def test_parts_of_a_search_must_hold_the_same_images(own):
    with pytest.raises(ValueError, match='has 30 items with augment=True and 29 with augment=False'):
        search(own('unlike'))


def test_options_that_do_not_suit_tensors_are_named(own, caplog):
    with pytest.raises(ValueError, match=r'--image_size 16: .* tensors of the shape \(3, 4, 5\)'):
        create(own('chosen'), image_size=16)
    create(own('chosen'), normalize='symmetric')
    assert 'they are not normalised (symmetric)' in caplog.text
    images, _ = next(iter(create(own('photos'), image_size=8, normalize='symmetric')[1]))
    torch.testing.assert_close(images[1], torch.full((3, 8, 8), 3 / 127.5 - 1))


def test_a_worker_that_was_not_forked_can_unpickle_the_data(own):
    train, _, _ = create(own('photos'), image_size=8)
    expected = train.dataset[3][1]
    data = pickle.dumps(train.dataset)
    del sys.modules[type(train.dataset.dataset).__module__]
    assert pickle.loads(data)[3][1] == expected
