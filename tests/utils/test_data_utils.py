"""Loaders of image folders and the splits of a search: determinism, transforms, disjointness, errors."""

import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lib.utils.data_utils import create_loaders, create_search_loaders, dataset_spec, num_classes, search_split

IMAGENET_MEAN, IMAGENET_STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
TINY = {'batch_size': 4, 'image_size': 16}


def save_noise(path, seed, size=(24, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """Three classes of 6 training and 2 validation images of 24 x 20 pixels."""
    root = tmp_path_factory.mktemp('tree')
    for label, name in enumerate(('ash', 'birch', 'cedar')):
        for split, count in (('train', 6), ('val', 2)):
            for i in range(count):
                save_noise(root / split / name / f'{i}.png', seed=100 * label + 10 * i + len(split))
    return root


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, c) and torch.equal(b, d)
                                           for (a, b), (c, d) in zip(left, right, strict=True))


def test_folder_loaders_shapes_and_counts(tree):
    train, val, classes = create_loaders('folder', tree, **TINY, test_batch_size=6)
    assert classes == 3
    assert (train.num_images, train.batch_size, len(train)) == (18, 4, 5)
    assert (val.num_images, val.batch_size, len(val)) == (6, 6, 1)
    images, labels = next(iter(train))
    assert (images.shape, images.dtype, labels.dtype) == ((4, 3, 16, 16), torch.float32, torch.int64)
    assert sorted(torch.cat([labels for _, labels in train]).tolist()) == [0] * 6 + [1] * 6 + [2] * 6
    assert [labels.tolist() for _, labels in val] == [[0, 0, 1, 1, 2, 2]]


def test_validation_view_is_resize_to_256_of_224_and_centre_crop(tree):
    _, val, _ = create_loaders('folder', tree, **TINY)
    image = Image.open(tree / 'val' / 'ash' / '0.png').resize((int(18 * 24 / 20), 18), Image.BILINEAR)  # 16 * 256 / 224
    left, top = round((image.width - 16) / 2), 1
    pixels = np.asarray(image.crop((left, top, left + 16, top + 16))) / 255
    reference = ((pixels - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(next(iter(val))[0][0].numpy(), reference, atol=1e-5)


@pytest.mark.parametrize('workers', [0, 2])
def test_same_epoch_is_bit_identical_whatever_the_workers(tree, workers):
    reference, _, _ = create_loaders('folder', tree, **TINY, seed=5)
    loader, _, _ = create_loaders('folder', tree, **TINY, seed=5, workers=workers)
    epochs = []
    for epoch in (0, 1):
        reference.set_epoch(epoch)
        epochs.append(list(reference))
        loader.set_epoch(epoch)
        assert same(epochs[epoch], list(loader))
    assert not same(*epochs)
    loader.set_epoch(0)  # workers that were kept must learn of it
    assert same(epochs[0], list(loader))
    assert not same(epochs[0], list(create_loaders('folder', tree, **TINY, seed=6)[0]))


def test_global_generators_are_neither_moved_nor_read(tree):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    loaders = create_search_loaders('folder', tree, **TINY, train_size=8, val_size=6)[:2]
    first = [list(loader) for loader in loaders]
    assert states() == before
    torch.manual_seed(1234)
    np.random.seed(1234)  # noqa: NPY002
    again = [list(loader) for loader in create_search_loaders('folder', tree, **TINY, train_size=8, val_size=6)[:2]]
    assert all(map(same, first, again))


def test_a_last_training_batch_of_one_image_is_left_out(tree):
    train, val, _ = create_loaders('folder', tree, batch_size=17, test_batch_size=5, image_size=16)
    assert [len(labels) for _, labels in train] == [17]
    assert [len(labels) for _, labels in val] == [5, 1]


def test_search_parts_are_disjoint_parts_of_train_and_independent_of_the_seed(tree):
    parts = []
    for seed in (0, 1):
        train, val, classes = create_search_loaders('folder', tree, **TINY, train_size=10, val_size=5, seed=seed)
        assert (train.num_images, val.num_images, classes) == (10, 5, 3)
        parts.append((list(train.dataset.split.images), list(val.dataset.split.images)))
    assert parts[0] == parts[1]
    training, validation = map(set, parts[0])
    assert (len(training), len(validation), len(training & validation)) == (10, 5, 0)
    assert all(str(tree / 'train') in path for path in training | validation)


def test_search_validation_is_fixed_and_search_training_is_augmented(tree):
    train, val, _ = create_search_loaders('folder', tree, **TINY, train_size=10, val_size=5)
    other, _, _ = create_search_loaders('folder', tree, **TINY, train_size=10, val_size=5, seed=1)
    epochs = {loader: [] for loader in (train, val, other)}
    for loader, batches in epochs.items():
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            batches.append(list(loader))
    assert same(*epochs[val])
    batches = [images for epoch in epochs[train] + epochs[other] for images, _ in epoch]
    views = torch.cat(batches).sum((1, 2, 3)).tolist()
    assert len(set(views)) == 40  # not only the order depends on epoch and seed


def test_search_of_images_in_memory():
    train, val, classes = create_search_loaders('digits', train_size=900, val_size=300, batch_size=100, seed=7)
    other, same_val, _ = create_search_loaders('digits', train_size=900, val_size=300, batch_size=100, seed=8)
    assert (train.num_images, val.num_images, classes) == (900, 300, 10)
    assert train.augment and not val.augment
    assert torch.equal(val.images, same_val.images) and torch.equal(train.images, other.images)
    assert not same(list(train), list(other))


def test_search_split_takes_what_is_left_and_says_so(caplog):
    training, validation = search_split(100, 20000, 30)
    assert sorted(training.tolist() + validation.tolist()) == list(range(100))
    assert (len(training), len(validation)) == (70, 30)
    assert 'remaining 70 train' in caplog.text
    caplog.clear()
    smaller, _ = search_split(100, 20, 30)
    assert torch.equal(smaller, training[:20])
    assert not caplog.text


@pytest.mark.parametrize(('train_size', 'val_size'), [(10, 100), (10, 10000), (0, 10), (10, 0)])
def test_search_split_that_cannot_be_made_is_refused(train_size, val_size):
    with pytest.raises(ValueError, match=rf'val_size {val_size} cannot be made of 100 .* at most 99'):
        search_split(100, train_size, val_size)


def test_tiny_imagenet_in_its_own_form(tmp_path):
    for label, synset in enumerate(('n01443537', 'n01629819')):
        save_noise(tmp_path / 'train' / synset / 'images' / f'{synset}_0.JPEG', label, (64, 64))
    for i in range(3):
        save_noise(tmp_path / 'val' / 'images' / f'val_{i}.JPEG', i, (64, 64))
    lines = ['val_0.JPEG\tn01629819\t0\t0\t63\t63', 'val_1.JPEG\tn01443537\t1\t1\t9\t9', 'val_2.JPEG\tn01629819\t0']
    (tmp_path / 'val' / 'val_annotations.txt').write_text('\n'.join(lines) + '\n')
    train, val, classes = create_loaders('tinyimagenet', tmp_path, batch_size=4)
    assert classes == 200
    assert next(iter(train))[0].shape == (2, 3, 64, 64)
    images, labels = next(iter(val))
    assert labels.tolist() == [1, 0, 1]
    pixels = np.asarray(Image.open(tmp_path / 'val' / 'images' / 'val_0.JPEG')) / 255
    np.testing.assert_allclose(images[0].permute(1, 2, 0).numpy(), (pixels - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-5)

    (tmp_path / 'val' / 'val_annotations.txt').write_text('val_0.JPEG\tn99999999\n')
    with pytest.raises(ValueError, match="'val_0.JPEG' is of class 'n99999999'"):
        create_loaders('tinyimagenet', tmp_path, batch_size=4)
    (tmp_path / 'val' / 'val_annotations.txt').write_text('\n'.join(lines + lines[1:2]))
    with pytest.raises(ValueError, match="val_annotations.txt: 'val_1.JPEG' stands there twice"):
        create_loaders('tinyimagenet', tmp_path, batch_size=4)
    (tmp_path / 'val' / 'val_annotations.txt').write_text('\n'.join(lines[:2]))
    with pytest.raises(ValueError, match='val_annotations.txt has no line for 1 images of .*images: val_2.JPEG'):
        create_loaders('tinyimagenet', tmp_path, batch_size=4)


def test_imagenet_subsets_keep_thousand_classes(tree, caplog):
    assert [num_classes(name) for name in ('imagenet', 'imagenet100', 'imagenet10')] == [1000] * 3
    _, val, classes = create_loaders('imagenet10', tree, **TINY)
    assert classes == 1000
    assert '3 of the 10 class folders' in caplog.text
    assert max(labels.max() for _, labels in val) == 2


def test_numbers_of_classes(tree):
    assert (num_classes('dtd'), num_classes('dtd', tree), num_classes('folder', tree)) == (47, 3, 3)
    assert (num_classes('digits', tree), num_classes('cifar100', tree)) == (10, 100)
    with pytest.raises(ValueError, match='folder needs a root'):
        num_classes('folder')


def test_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match="unknown data set 'cifar': expected one of digits, .*imagenet100.*folder"):
        dataset_spec('cifar')


def test_missing_root_says_what_is_expected_and_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r'DTD does not exist.*train/<class>/.*make_data.py --dataset dtd'):
        create_loaders('dtd', tmp_path / 'DTD', batch_size=1)
    with pytest.raises(ValueError, match=r'cifar10 needs a root.*cifar-10-batches-py.*--download'):
        create_loaders('cifar10', batch_size=1)


def test_empty_root_and_missing_val_are_named(tmp_path):
    with pytest.raises(ValueError, match=r'train does not exist'):
        create_loaders('folder', tmp_path, **TINY)
    save_noise(tmp_path / 'train' / 'a' / '0.png', 0)
    with pytest.raises(ValueError, match=r'val does not exist'):
        create_loaders('folder', tmp_path, **TINY)
    (tmp_path / 'val').mkdir()
    with pytest.raises(ValueError, match=r'val has no class folders'):
        create_loaders('folder', tmp_path, **TINY)


@pytest.mark.parametrize('cache', ['off', 'ram'])
def test_validation_images_can_be_read_alone(tree, tmp_path, cache):
    shutil.copytree(tree / 'val', tmp_path / 'val')
    _, expected, classes = create_loaders('folder', tree, **TINY, cache=cache)
    alone, counted = create_loaders('folder', tmp_path, **TINY, cache=cache, splits=('val',))
    assert counted == classes and same(list(alone), list(expected))
    with pytest.raises(ValueError, match=r'train does not exist'):
        create_loaders('folder', tmp_path, **TINY)
    with pytest.raises(ValueError, match=r'train does not exist'):
        create_search_loaders('folder', tmp_path, **TINY, train_size=1, val_size=1)


def test_fewer_classes_than_the_data_set_has_are_named_without_training_images_too(tree, tmp_path, caplog):
    shutil.copytree(tree / 'val', tmp_path / 'val')
    create_loaders('imagenet10', tmp_path, **TINY, splits=('val',))
    assert 'has 3 of the 10 class folders of imagenet10' in caplog.text


def test_classes_that_differ_or_are_empty_are_named(tmp_path):
    for path in ('train/a/0.png', 'train/b/0.png', 'val/a/0.png', 'val/c/0.png'):
        save_noise(tmp_path / path, 0)
    with pytest.raises(ValueError, match='missing: b; not in train: c'):
        create_loaders('folder', tmp_path, **TINY)
    (tmp_path / 'val' / 'c').rename(tmp_path / 'val' / 'b')
    (tmp_path / 'train' / 'b' / '0.png').unlink()
    with pytest.raises(ValueError, match='train: Found no valid file for the classes b'):
        create_loaders('folder', tmp_path, **TINY)


def test_too_many_classes_and_links_to_nowhere_are_named(tmp_path, tree):
    for i in range(11):
        (tmp_path / 'train' / f'class{i}').mkdir(parents=True)
    with pytest.raises(ValueError, match='has 10 class folders, but .* has 11'):
        create_loaders('imagenet10', tmp_path, **TINY)
    (tmp_path / 'train' / 'gone').symlink_to('nowhere')
    with pytest.raises(ValueError, match='gone link to nowhere'):
        create_loaders('folder', tmp_path, **TINY)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_broken_file_is_named(tmp_path, workers):
    save_noise(tmp_path / 'train' / 'a' / 'good.png', 0)
    save_noise(tmp_path / 'val' / 'a' / 'good.png', 0)
    (tmp_path / 'val' / 'a' / 'short.png').write_bytes((tmp_path / 'val' / 'a' / 'good.png').read_bytes()[:200])
    _, val, _ = create_loaders('folder', tmp_path, **TINY, workers=workers)
    with pytest.raises(ValueError, match=r'cannot decode the image .*short.png'):
        list(val)


@pytest.mark.parametrize('option', [{'batch_size': 0}, {'image_size': 0}, {'workers': -1}])
def test_bad_sizes_are_refused(tree, option):
    with pytest.raises(ValueError, match='expected at least 1, 1 and 0'):
        create_loaders('folder', tree, **{**TINY, **option})


def test_normalize_gives_another_mean_and_standard_deviation(tree):
    views = {}
    for normalize in (None, 'imagenet', 'symmetric'):
        for cache in ('off', 'ram'):
            _, val, _ = create_loaders('folder', tree, **TINY, normalize=normalize, cache=cache)
            views[normalize, cache] = next(iter(val))[0]
    mean, std = (torch.tensor(x).float().view(3, 1, 1) for x in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = views[None, 'off'] * std + mean
    assert torch.equal(views[None, 'off'], views['imagenet', 'off'])
    for cache in ('off', 'ram'):
        torch.testing.assert_close(views['symmetric', cache], 2 * pixels - 1, atol=1e-5, rtol=0)
    _, val, _ = create_loaders('digits', batch_size=4, normalize='imagenet')
    own = create_loaders('digits', batch_size=4)[1].first_batch()
    torch.testing.assert_close(val.first_batch() * std + mean, own / 2 + 0.5, atol=1e-5, rtol=0)


def test_a_number_of_classes_may_be_larger_or_smaller_but_must_hold_the_labels(tree):
    assert create_loaders('imagenet10', tree, **TINY, num_classes=10)[2] == 10
    assert create_search_loaders('folder', tree, **TINY, train_size=4, val_size=4, num_classes=30)[2] == 30
    with pytest.raises(ValueError, match='--num_classes 2: the labels of folder reach 2, so it takes at least 3'):
        create_loaders('folder', tree, **TINY, num_classes=2)
