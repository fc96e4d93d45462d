"""Image folders and data sets of the user's own whose images have no labels."""

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.digest import data_digest
from lib.utils.data_utils import create_loaders, create_search_loaders

DATA = """
import torch
from torch.utils.data import TensorDataset
from PIL import Image

class Plain(list):
    classes = 'abc'

IMAGE = torch.zeros(3, 4, 4)
def alone(split):
    return [IMAGE + i for i in range(6)] if split == 'train' else Plain((IMAGE, 2) for i in range(4))
def tuples(split):
    return TensorDataset(torch.zeros(6, 3, 4, 4))
def nones(split):
    return [(Image.new('RGB', (9, 9)), None)] * 6
def first_has(split):
    return Plain([(IMAGE, 1), IMAGE])
def first_has_not(split):
    return Plain([(IMAGE, None), (IMAGE, 1)])
"""


def draw(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), 10 * i, dtype=np.uint8)).save(folder / f'{i:02}.png')


def seen(loader):
    """Return the labels of an epoch, and the grey levels of the images."""
    images, labels = (torch.cat(column) for column in zip(*loader, strict=True))
    levels = images[:, 0, 0, 0] * 0.229 + 0.485
    return labels.tolist(), sorted((levels * 25.5).round().int().tolist())


def loaders(root, **options):
    return create_loaders('folder', root, batch_size=4, image_size=8, **options)


@pytest.mark.parametrize('cache', ['off', 'ram'])
def test_a_folder_of_images_gives_every_fifth_for_validation(tmp_path, cache):
    draw(tmp_path, 13)
    train, val, classes = loaders(tmp_path, num_classes=7, cache=cache)
    assert classes == 7 and not train.labelled and not val.labelled
    assert seen(val) == ([-1] * 3, [0, 5, 10])
    assert seen(train) == ([-1] * 10, [1, 2, 3, 4, 6, 7, 8, 9, 11, 12])


def test_images_in_train_itself_take_the_classes_of_val(tmp_path):
    draw(tmp_path / 'train', 6)
    for name in 'ab':
        draw(tmp_path / 'val' / name, 2)
    train, val, classes = loaders(tmp_path)
    assert (classes, train.labelled, val.labelled) == (2, False, True)
    assert seen(train)[0] == [-1] * 6 and seen(val)[0] == [0, 0, 1, 1]
    assert loaders(tmp_path, splits=('val',))[1] == 2


def test_a_search_holds_out_some_of_them(tmp_path):
    draw(tmp_path, 12)
    *parts, classes = create_search_loaders('folder', tmp_path, train_size=4, val_size=3, batch_size=4, image_size=8,
                                            num_classes=10)
    levels = [seen(part)[1] for part in parts]
    assert classes == 10 and not any(part.labelled for part in parts)
    assert [len(each) for each in levels] == [4, 3] and not set(levels[0]) & set(levels[1])


def test_the_number_of_classes_must_be_known(tmp_path):
    draw(tmp_path / 'train', 3)
    draw(tmp_path / 'val', 3)
    with pytest.raises(ValueError, match='have no labels.*give --num_classes'):
        loaders(tmp_path)
    assert loaders(tmp_path, num_classes=3)[2] == 3
    draw(tmp_path / 'one', 1)
    with pytest.raises(ValueError, match='holds one image: expected at least 2'):
        loaders(tmp_path / 'one', num_classes=3)


def test_the_digest_of_a_folder_of_images_is_that_of_its_images(tmp_path):
    digests = []
    for count in (3, 4):
        draw(tmp_path, count)
        digests.append(data_digest('folder', tmp_path, ('train', 'val')))
    assert digests[0] != digests[1]


@pytest.fixture
def own(tmp_path):
    file = tmp_path / 'my_data.py'
    file.write_text(DATA)
    return lambda name, **options: create_loaders(None, dataset_file=f'{file}:{name}', batch_size=4, **options)


@pytest.mark.parametrize(('name', 'classes', 'labelled'), [('alone', 3, True), ('tuples', 5, False),
                                                           ('nones', 5, False)])
def test_a_data_set_of_images_alone(own, name, classes, labelled):
    train, val, found = own(name, num_classes=None if labelled else 5)
    assert (found, train.labelled, val.labelled) == (classes, False, labelled)
    assert torch.cat([labels for _, labels in train]).tolist() == [-1] * 6
    assert torch.cat([labels for _, labels in val]).tolist() == ([2] * 4 if labelled else [-1] * 6)


@pytest.mark.parametrize(('name', 'words'), [('first_has', 'item 1 has no label, unlike .* item 0'),
                                             ('first_has_not', 'item 1 has a label, unlike .* item 0')])
def test_all_images_have_labels_or_none(own, name, words):
    with pytest.raises(ValueError, match=words):
        list(own(name)[0])
