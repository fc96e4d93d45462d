"""Data sets that are decoded into memory: scikit-learn's digits, and small files in the forms torchvision reads."""

import hashlib
import pickle
import shutil
import struct
from collections import Counter
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits

from lib.utils.data_utils import create_loaders


def write_idx(path, array):
    """Writes the format of MNIST: two zero bytes, type (8 = unsigned byte), dimensions, sizes, values."""
    header = struct.pack(f'>BBBB{array.ndim}I', 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def test_digits_are_split_80_to_20_in_each_class():
    train, val, classes = create_loaders('digits', batch_size=64)
    assert (train.num_images, val.num_images, classes) == (1437, 360, 10)
    per_class = torch.bincount(train.labels), torch.bincount(val.labels)
    assert torch.equal(sum(per_class), torch.from_numpy(np.bincount(load_digits().target)))
    assert ((per_class[1] - sum(per_class) / 5).abs() < 1).all()


def test_digits_are_all_there_and_in_one_split_only():
    loaders = create_loaders('digits', batch_size=64)[:2]
    corners = torch.cat([loader.images[:, :, ::4, ::4] for loader in loaders])  # distinct for distinct images
    digits = load_digits()
    assert corners.shape == (1797, 3, 8, 8)
    found = Counter(torch.cat([loader.labels for loader in loaders]).tolist())
    assert found == Counter(digits.target.tolist())
    whole = torch.from_numpy(digits.images).float().mul(255 / 16)[:, None]
    enlarged = torch.nn.functional.interpolate(whole, (32, 32), mode='bilinear').round().byte()
    assert Counter(x[0].numpy().tobytes() for loader in loaders for x in loader.images) == \
        Counter(x[0].numpy().tobytes() for x in enlarged)


def test_digits_are_bilinear_in_three_equal_channels():
    train, _, _ = create_loaders('digits', batch_size=64)
    assert train.images.dtype == torch.uint8
    assert torch.equal(train.images[:, 0], train.images[:, 1]) and torch.equal(train.images[:, 0], train.images[:, 2])
    validation = np.argsort(load_digits().target, kind='stable')[::5]
    source = np.delete(load_digits().images, validation, axis=0)[0] * 255 / 16
    places = (np.arange(32) + 0.5) / 4 - 0.5  # centres of the new pixels among the old ones
    rows = np.stack([np.interp(places, np.arange(8), row) for row in source])
    reference = np.stack([np.interp(places, np.arange(8), column) for column in rows.T], axis=1)
    np.testing.assert_allclose(train.images[0, 0].numpy(), reference, atol=0.51)


def test_digits_at_another_resolution():
    train, val, _ = create_loaders('digits', batch_size=10, image_size=48)
    assert next(iter(train))[0].shape == next(iter(val))[0].shape == (10, 3, 48, 48)


@pytest.mark.parametrize(('name', 'folder'), [('mnist', 'MNIST'), ('fashion_mnist', 'FashionMNIST')])
def test_mnist_files(tmp_path, name, folder):
    grey = {'train': np.arange(6) * 40, 't10k': np.arange(3) * 100}
    for part, values in grey.items():
        write_idx(tmp_path / folder / 'raw' / f'{part}-images-idx3-ubyte', np.ones((28, 28)) * values[:, None, None])
        write_idx(tmp_path / folder / 'raw' / f'{part}-labels-idx1-ubyte', np.arange(len(values)))
    train, val, classes = create_loaders(name, tmp_path, batch_size=2)
    assert (train.num_images, val.num_images, classes) == (6, 3, 10)
    assert val.images.shape == (3, 3, 32, 32)
    assert val.images[:, 1, 5, 7].tolist() == [0, 100, 200]
    assert val.labels.tolist() == [0, 1, 2]
    assert train.augment.flip == (name == 'fashion_mnist')


def write_pickles(monkeypatch, folder, dataset, label_key, parts):
    """Writes CIFAR's pickles and enters their checksums into torchvision's class, which then verifies them."""
    folder.mkdir()
    for attribute, (file, images, labels) in parts.items():
        data = pickle.dumps({'data': images.reshape(len(images), -1), label_key: labels})
        (folder / file).write_bytes(data)
        monkeypatch.setattr(dataset, attribute, [[file, hashlib.md5(data).hexdigest()]])
    names = pickle.dumps({dataset.meta['key']: ['a', 'b']})
    (folder / 'meta').write_bytes(names)
    monkeypatch.setattr(dataset, 'meta', {**dataset.meta, 'filename': 'meta', 'md5': hashlib.md5(names).hexdigest()})


@pytest.mark.parametrize(('name', 'dataset', 'key'), [
    ('cifar10', torchvision.datasets.CIFAR10, 'labels'), ('cifar100', torchvision.datasets.CIFAR100, 'fine_labels')])
def test_cifar_pickles(tmp_path, monkeypatch, name, dataset, key):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    parts = {'train_list': ('one', images[:3], [4, 5, 6]), 'test_list': ('two', images[3:], [7, 8])}
    write_pickles(monkeypatch, tmp_path / dataset.base_folder, dataset, key, parts)
    train, val, classes = create_loaders(name, tmp_path, batch_size=2)
    assert classes == {'cifar10': 10, 'cifar100': 100}[name]
    assert np.array_equal(train.images, images[:3]) and np.array_equal(val.images, images[3:])
    assert (train.labels.tolist(), val.labels.tolist()) == ([4, 5, 6], [7, 8])
    (tmp_path / dataset.base_folder / 'two').write_bytes(b'truncated')
    with pytest.raises(ValueError, match=f'{name} cannot be read .*corrupted.*--download'):
        create_loaders(name, tmp_path, batch_size=2)


def test_svhn_files(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    files = {}
    for split, chosen, labels in (('train', [0, 1, 2], [10, 1, 9]), ('test', [3, 4], [10, 2])):
        file = tmp_path / f'{split}_32x32.mat'
        savemat(file, {'X': images[chosen].transpose(2, 3, 1, 0), 'y': np.array(labels).reshape(-1, 1)})
        files[split] = ['', file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, 'split_list', files)
    train, val, classes = create_loaders('svhn', tmp_path, batch_size=2)
    assert classes == 10
    assert np.array_equal(train.images, images[:3]) and np.array_equal(val.images, images[3:])
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1, 9], [0, 2])  # the file's 10 is the digit 0
    assert not train.augment.flip


def save_tree(root, sides=32):
    images = np.random.default_rng(0).integers(0, 256, (4, sides, sides, 3), dtype=np.uint8)
    for image, path in zip(images, ('train/cat/1.png', 'train/frog/2.png', 'val/cat/3.png', 'val/frog/4.png'),
                           strict=True):
        (root / path).parent.mkdir(parents=True)
        Image.fromarray(image).save(root / path)
    return images.transpose(0, 3, 1, 2)


def test_cifar_as_an_image_folder(tmp_path, caplog):
    images = save_tree(tmp_path)
    train, val, classes = create_loaders('cifar10', tmp_path, batch_size=2)
    assert classes == 10
    assert np.array_equal(train.images, images[:2]) and np.array_equal(val.images, images[2:])
    assert train.labels.tolist() == val.labels.tolist() == [0, 1]
    assert '2 of the 10 class folders' in caplog.text
    mean, std = (np.array(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    np.testing.assert_allclose(next(iter(val))[0][0].numpy(), (images[2] / 255 - mean) / std, atol=1e-5)


def test_validation_images_of_cifar_can_be_read_alone(tmp_path):
    images = save_tree(tmp_path)
    shutil.rmtree(tmp_path / 'train')
    val, classes = create_loaders('cifar10', tmp_path, batch_size=2, splits=('val',))
    assert classes == 10 and np.array_equal(val.images, images[2:]) and val.labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r'train does not exist'):
        create_loaders('cifar10', tmp_path, batch_size=2)


def test_cifar_folder_with_other_sizes_names_the_file(tmp_path):
    save_tree(tmp_path, sides=28)
    with pytest.raises(ValueError, match=r'1\.png has 28 x 28 pixels, expected 32 x 32'):
        create_loaders('cifar10', tmp_path, batch_size=2)


def test_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r'mnist cannot be read .*MNIST/raw/ .*--download'):
        create_loaders('mnist', tmp_path, batch_size=2)


def test_a_failed_download_says_where_to_put_the_files(tmp_path, monkeypatch):
    def download(self):
        raise URLError('no network')

    monkeypatch.setattr(torchvision.datasets.SVHN, 'download', download)
    with pytest.raises(ValueError, match=r'no network.*train_32x32.mat and test_32x32.mat.*by hand'):
        create_loaders('svhn', tmp_path / 'new', batch_size=2, download=True)
