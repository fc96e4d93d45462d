"""Image folders in memory: the same distribution as decoding files, the same validation images, and what they take."""

import logging
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision import transforms

from lib.data import image_cache
from lib.data.crop_loader import CropLoader, random_boxes
from lib.data.image_cache import available_memory, fits_memory, photograph_bytes
from lib.runtime.seeds import derived_seed
from lib.utils.data_utils import create_loaders, create_search_loaders

PLAIN = {'mean': (0,) * 3, 'std': (1 / 255,) * 3}  # serves the grey levels themselves


def smooth(seed, height, width):
    """Returns an image with structure at several scales, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC))


@pytest.fixture
def tree(tmp_path):
    """Two classes of 8 training and 3 validation images, of which some are larger and some smaller than 40 pixels."""
    for label, name in enumerate('ab'):
        for split, count in (('train', 8), ('val', 3)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(smooth(100 * label + 10 * i + count, 30 + 8 * i, 50)).save(folder / f'{i}.png')
    return tmp_path


def torchvision_boxes(height, width, count):
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        crop = transforms.RandomResizedCrop.get_params
        return np.array([crop(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])


@pytest.mark.parametrize(('height', 'width'), [(256, 341), (300, 200), (40, 40), (50, 200)])
def test_boxes_are_distributed_as_those_of_torchvision(height, width):
    count = 2000
    ours = random_boxes(np.full(count, height), np.full(count, width), np.random.default_rng(1))
    theirs = torchvision_boxes(height, width, count)
    assert (ours[:, :2] >= 0).all() and (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for statistic in (lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2], lambda b: b[:, 3],
                      lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: 2 * b[:, 0] + b[:, 2],
                      lambda b: b[:, 1] - b[:, 0]):
        assert ks_2samp(statistic(ours), statistic(theirs)).pvalue > 0.01


@pytest.mark.parametrize(('height', 'width'), [(10, 1000), (1000, 10), (7, 300)])
def test_where_no_try_fits_the_crop_is_central(height, width):
    class AlwaysLargest:
        def uniform(self, low, high, shape):
            return np.full(shape, high if low == 0.08 else 0.0)  # the whole area as a square: never fits

        def random(self, shape):
            return np.full(shape, 0.99)

    box = random_boxes(np.array([height]), np.array([width]), AlwaysLargest())[0]
    largest = [0.999999, 1.0]  # torchvision's own tries do not fit either
    theirs = transforms.RandomResizedCrop.get_params(torch.empty(3, height, width), largest, [3 / 4, 4 / 3])
    assert tuple(box) == tuple(theirs)


def test_a_crop_is_that_of_pillow_within_a_grey_level_and_half_are_mirrored():
    arrays = [torch.from_numpy(smooth(i, 40 + i, 64).copy()) for i in range(60)]
    loader = CropLoader(arrays, torch.arange(60), size=24, batch_size=60, **PLAIN)
    (images, labels), = loader
    boxes = random_boxes(np.arange(60) + 40, np.full(60, 64), np.random.default_rng(derived_seed(0, 0, 'augment')))
    mirrored = 0
    for image, index in zip(images.round().int().numpy(), labels.tolist(), strict=True):
        top, left, height, width = boxes[index].tolist()
        crop = Image.fromarray(arrays[index].numpy()).crop((left, top, left + width, top + height))
        reference = np.asarray(crop.resize((24, 24), Image.BILINEAR)).transpose(2, 0, 1).astype(int)
        differences = [np.abs(image - view).max() for view in (reference, reference[:, :, ::-1])]
        assert min(differences) <= 1
        mirrored += differences[1] < differences[0]
    assert 20 < mirrored < 40


def test_pixels_are_distributed_as_those_of_the_files(tree):
    options = {'batch_size': 16, 'image_size': 24}
    files, _, _ = create_loaders('folder', tree, seed=1, **options)
    cached, _, _ = create_loaders('folder', tree, seed=2, cache='ram', cache_size=1000, **options)
    statistics = []
    for loader in (files, cached):
        rows = []
        for epoch in range(25):
            loader.set_epoch(epoch)
            for images, labels in loader:
                left = images[..., :12].mean((1, 2, 3)) - images[..., 12:].mean((1, 2, 3))
                rows.append(torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3)), left, images[:, 0, 12, 12],
                                         labels.float()], 1))
        statistics.append(torch.cat(rows).numpy())
    assert statistics[0].shape == statistics[1].shape == (400, 5)
    assert all(ks_2samp(*(rows[:, column] for rows in statistics)).pvalue > 0.01 for column in range(5))


@pytest.mark.parametrize('name', ['folder', 'tinyimagenet'])
@pytest.mark.parametrize('workers', [0, 2])
def test_validation_images_are_those_of_the_files_and_no_file_is_opened_later(tree, name, workers):
    options = {'batch_size': 4, 'image_size': 24}
    reference = list(create_loaders(name, tree, **options)[1])
    train, val, _ = create_loaders(name, tree, cache='ram', workers=workers, **options)
    shutil.rmtree(tree)
    for (images, labels), (expected, same) in zip(val, reference, strict=True):
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
        assert torch.equal(labels, same)
    epochs = []
    for epoch in (0, 1, 0):
        train.set_epoch(epoch)
        epochs.append(list(train))
    assert sorted(torch.cat([labels for _, labels in epochs[0]]).tolist()) == [0] * 8 + [1] * 8
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(epochs[0], epochs[2], strict=True))
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_threads_and_batch_size_change_nothing(tree):
    def epoch(**options):
        loader, _, _ = create_loaders('folder', tree, image_size=24, cache='ram', seed=6, **options)
        return torch.cat([images for images, _ in loader])

    reference = epoch(batch_size=4)
    assert torch.equal(reference, epoch(batch_size=4, workers=2))
    assert torch.equal(reference, epoch(batch_size=8, workers=2))


def test_images_in_memory_are_resized_as_torchvision_does_it_only_where_they_are_larger(tree):
    train, _, _ = create_loaders('folder', tree, batch_size=4, cache='ram', cache_size=40)
    files, _, _ = create_loaders('folder', tree, batch_size=4)
    for image, path in zip(train.images, files.dataset.split.images, strict=True):
        original = Image.open(path)
        expected = transforms.Resize(40)(original) if min(original.size) > 40 else original
        np.testing.assert_array_equal(image.numpy(), np.asarray(expected))
    assert {min(image.shape[:2]) for image in train.images} == {30, 38, 40}
    total = sum(image.numel() for image in train.images)
    assert photograph_bytes(files.dataset.split.images, 40) == pytest.approx(total, rel=0.02)
    assert photograph_bytes(files.dataset.split.images, 1000) == sum(3 * math.prod(Image.open(p).size)
                                                                    for p in files.dataset.split.images)


def test_training_images_of_tiny_imagenet_are_windows_of_the_padded_view(tree):
    train, _, _ = create_loaders('tinyimagenet', tree, batch_size=16, image_size=16, cache='ram', seed=1)
    paths = create_loaders('tinyimagenet', tree, batch_size=16)[0].dataset.split.images
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    views = [np.asarray(Image.open(path).resize((16, 16), Image.BILINEAR)) for path in paths]
    windows = {np.ascontiguousarray(turned[y:y + 16, x:x + 16]).tobytes(): (y, x)
               for view in views for turned in (np.pad(view, [(2, 2), (2, 2), (0, 0)]),) for y in range(5)
               for x in range(5)}
    places = set()
    for images, _ in train:
        pixels = ((images * std + mean) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for image in pixels:
            place = windows.get(image.tobytes()) or windows.get(np.ascontiguousarray(image[:, ::-1]).tobytes())
            assert place
            places.add(place)
    assert len(places) > 5


def test_what_they_take_is_logged_before_and_the_time_after(tree, caplog):
    with caplog.at_level(logging.INFO):
        create_search_loaders('folder', tree, train_size=10, val_size=5, batch_size=4, image_size=24, cache='auto')
    lines = [record.message for record in caplog.records]
    assert lines[0] == 'search images: 15 images, 0.0 GB in memory'
    assert [line.split(' in ')[0] for line in lines[1:]] == ['decoded 10 images', 'decoded 5 images']


@pytest.mark.parametrize(('cache', 'needed', 'fits'), [('auto', 50, True), ('auto', 51, False), ('ram', 100, True)])
def test_auto_takes_half_of_the_memory_and_ram_all(monkeypatch, cache, needed, fits):
    monkeypatch.setattr(image_cache, 'available_memory', lambda: 100e9)
    assert fits_memory(cache, needed * 1e9, 7) is fits
    monkeypatch.setattr(image_cache, 'available_memory', lambda: None)
    assert fits_memory(cache, 1, 7) is (cache == 'ram')


def test_too_little_memory_is_named_and_auto_reads_files(tree, monkeypatch, caplog):
    monkeypatch.setattr(image_cache, 'available_memory', lambda: 1000)
    with pytest.raises(ValueError, match=r'--cache ram: images take 0.0 GB, and 0.0 GB of memory is available.*'
                                         r'--train_size, --cache_size'):
        create_loaders('folder', tree, batch_size=4, cache='ram')
    with caplog.at_level(logging.INFO):
        train, _, _ = create_loaders('folder', tree, batch_size=4, image_size=24, cache='auto')
    assert 'files are decoded again in every epoch' in caplog.text
    assert train.dataset.split.images  # the loader of files


def test_each_process_keeps_its_own_copy(monkeypatch):
    monkeypatch.setattr(image_cache, 'available_memory', lambda: 100e9)
    monkeypatch.delenv('LOCAL_WORLD_SIZE', raising=False)
    assert fits_memory('auto', 12e9, 7, world=4)
    assert not fits_memory('auto', 13e9, 7, world=4)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')  # on two machines
    assert fits_memory('auto', 13e9, 7, world=4)


def agree(rank, folder, answers):
    image_cache.available_memory = lambda: 1e9 * (1 + rank)  # in a process of its own
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    answers.put(fits_memory('auto', 0.3e9, 7, world=2))
    torch.distributed.destroy_process_group()


def test_processes_that_find_different_amounts_of_memory_decide_alike(tmp_path):
    context = torch.multiprocessing.get_context('fork')
    answers = context.SimpleQueue()
    processes = [context.Process(target=agree, args=(rank, tmp_path, answers)) for rank in (0, 1)]
    for process in processes:
        process.start()
    assert [answers.get(), answers.get()] == [False, False]  # 0.6 GB are more than half of the 1 GB of the first
    for process in processes:
        process.join()


def test_available_memory_is_some_of_the_machine_or_unknown(monkeypatch, tmp_path):
    assert available_memory() > 1e6
    monkeypatch.setattr(image_cache, 'Path', lambda _: tmp_path / 'none')
    assert available_memory() > 1e6  # os.sysconf

    def unknown(_):
        raise ValueError('unrecognized configuration name')
    monkeypatch.setattr(image_cache.os, 'sysconf', unknown)
    assert available_memory() is None


def test_batches_of_images_in_memory_are_made_on_the_device(tree):
    for name in ('folder', 'tinyimagenet', 'digits'):
        for loader in create_loaders(name, tree, batch_size=4, image_size=24, cache='ram', device='meta')[:2]:
            images, labels = next(iter(loader))
            assert images.device.type == labels.device.type == loader.first_batch().device.type == 'meta'
            assert images.shape == (4, 3, 24, 24) and images.dtype == torch.float32


def test_data_in_memory_ignores_the_cache():
    plain, cached = (create_loaders('digits', batch_size=500, cache=cache)[0] for cache in ('off', 'ram'))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(plain, cached, strict=True))


@pytest.mark.parametrize('option', [{'cache': 'disk'}, {'cache_size': 0}, {'on_bad_image': 'stop'},
                                    {'normalize': 'tensorflow'}])
def test_unknown_choices_are_named(option):
    with pytest.raises(ValueError, match='expected (one of|at least)'):
        create_loaders('digits', batch_size=4, **option)
