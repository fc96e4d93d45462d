"""Image files of every kind, and files that cannot be decoded: refused by name, or left out and counted."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.image_folder import load_image
from lib.utils.data_utils import create_loaders

GREY = np.arange(256).reshape(16, 16)


def save(path, seed=0, size=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_png16(path, pixels, colour):
    """Writes a PNG of 16 bits per channel (PNG specification, 11.2.2); colour 0: grey, 2: RGB, 4: LA, 6: RGBA."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    height, width = pixels.shape[:2]
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    header = struct.pack('>IIBBBBB', width, height, 16, colour, 0, 0, 0)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows))
                     + chunk(b'IEND', b''))


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'RGBA', 'LA', 'CMYK', 'YCbCr'])
def test_all_kinds_of_eight_bit_files_become_rgb(tmp_path, mode):
    image = Image.fromarray(np.stack([GREY, GREY.T, 255 - GREY], 2).astype(np.uint8)).convert(mode)
    path = tmp_path / f'image.{"png" if mode not in ("CMYK", "YCbCr") else "tif"}'
    image.save(path)
    loaded = load_image(path)
    assert loaded.mode == 'RGB'
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(Image.open(path).convert('RGB')))


@pytest.mark.parametrize('file', ['grey.png', 'grey.tif', 'big.tif', 'int32.tif', 'grey.pgm', 'rgb.png', 'rgba.png',
                                  'la.png'])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path, file):
    grey = (GREY * 257).astype(np.uint16)
    path = tmp_path / file
    if file == 'grey.pgm':
        path.write_bytes(b'P5 16 16 65535\n' + grey.astype('>u2').tobytes())
    elif file.endswith('.png'):
        channels, colour = {'grey': (1, 0), 'rgb': (3, 2), 'rgba': (4, 6), 'la': (2, 4)}[file[:-4]]
        write_png16(path, np.stack([grey] * channels, 2), colour)
    else:
        Image.fromarray(grey.astype({'grey': '<u2', 'big': '>u2', 'int32': np.int32}[file[:-4]])).save(path)
    pixels = np.asarray(load_image(path))
    np.testing.assert_array_equal(pixels, np.stack([GREY] * 3, 2))


@pytest.mark.parametrize(('values', 'message'), [
    (np.full((4, 4), 0.5, np.float32), 'floating point'), (np.full((4, 4), 70000, np.int32), '70000 to 70000'),
    (np.full((4, 4), -1, np.int32), '-1 to -1')])
def test_pixels_of_unknown_range_are_refused(tmp_path, values, message):
    Image.fromarray(values).save(tmp_path / 'image.tif')
    with pytest.raises(ValueError, match=rf'cannot decode the image .*image.tif .*{message}.*8 or 16 bits'):
        load_image(tmp_path / 'image.tif')


@pytest.fixture
def tree(tmp_path):
    """Two classes of 6 training and 2 validation images of 20 x 20 pixels; two for training and one are broken."""
    for label, name in enumerate('ab'):
        for split, count in (('train', 6), ('val', 2)):
            for i in range(count):
                save(tmp_path / split / name / f'{i}.png', 10 * label + i)
    truncate(tmp_path / 'train' / 'a' / '1.png')
    (tmp_path / 'train' / 'b' / '4.png').write_bytes(b'')
    truncate(tmp_path / 'val' / 'b' / '0.png')
    return tmp_path


def truncate(path):
    path.write_bytes(path.read_bytes()[:300])


def loaders(root, **options):
    return create_loaders('folder', root, **{'batch_size': 4, 'image_size': 16, **options})[:2]


@pytest.mark.parametrize('options', [{}, {'workers': 1}, {'cache': 'ram'}, {'cache': 'ram', 'workers': 2}])
def test_a_bad_file_is_refused_by_name_with_the_way_out(tree, options):
    with pytest.raises(ValueError, match=r'cannot decode the image .*(1|4)\.png \(.*\): .*--on_bad_image skip$'):
        list(loaders(tree, **options)[0])


@pytest.mark.parametrize('options', [{}, {'workers': 2}, {'cache': 'ram'}, {'cache': 'ram', 'workers': 2}])
def test_bad_files_are_left_out_and_reported_once(tree, caplog, options):
    train, val = loaders(tree, on_bad_image='skip', **options)
    for epoch in (0, 1):
        train.set_epoch(epoch)
        assert sorted(torch.cat([labels for _, labels in train]).tolist()) == [0] * 5 + [1] * 5
        assert torch.cat([labels for _, labels in val]).tolist() == [0, 0, 1]
    warnings = [record.message for record in caplog.records if record.levelname == 'WARNING']
    assert len(warnings) == 2
    name = tree / 'train'
    assert f'2 of 12 images cannot be decoded and are left out: {name}/a/1.png, {name}/b/4.png' in warnings
    assert f'1 of 4 images cannot be decoded and are left out: {tree}/val/b/0.png' in warnings


def test_the_images_that_are_left_are_those_of_a_folder_without_the_bad_ones(tree):
    skipped = [list(loader) for loader in loaders(tree, on_bad_image='skip', cache='ram')]
    for path in ('train/a/1.png', 'train/b/4.png', 'val/b/0.png'):
        (tree / path).unlink()
    for batches, expected in zip(skipped, loaders(tree, cache='ram'), strict=True):
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, expected, strict=True))


def test_a_batch_of_nothing_is_left_out_of_one_process(tree):
    (tree / 'val' / 'b' / '1.png').write_bytes(b'no image')
    _, val = loaders(tree, on_bad_image='skip', test_batch_size=2)
    assert [labels.tolist() for _, labels in val] == [[0, 0]]
    _, second = loaders(tree, on_bad_image='skip', test_batch_size=2, shard=(1, 2))
    assert [labels.tolist() for _, labels in second] == [[0]]
    (tree / 'train' / 'a' / '0.png').write_bytes(b'no image')
    (tree / 'train' / 'a' / '2.png').write_bytes(b'no image')
    train, _ = loaders(tree, on_bad_image='skip', batch_size=2)
    sizes = []
    for epoch in range(20):
        train.set_epoch(epoch)
        sizes += [len(labels) for _, labels in train]
        assert len(train.first_batch()) == 2
    assert set(sizes) == {2}  # BatchNorm cannot train on the one image that is left of a batch


def test_in_several_processes_each_needs_an_image_of_every_training_batch(tree):
    for path in (tree / 'train').rglob('*.png'):
        if path.parent.name == 'a':
            path.write_bytes(b'no image')
    train, _ = loaders(tree, on_bad_image='skip', batch_size=2, shard=(0, 2))
    with pytest.raises(ValueError, match=r'no image of batch \d can be decoded, and each of the 2 processes needs one'):
        list(train)


@pytest.mark.parametrize('cache', ['off', 'ram'])
def test_nothing_but_bad_files_is_an_error(tree, cache):
    for path in (tree / 'val').rglob('*.png'):
        path.write_bytes(b'no image')
    with pytest.raises(ValueError, match=r'none of the 4 images .*val/a/0.png'):
        list(loaders(tree, on_bad_image='skip', cache=cache)[1])


def test_cifar_as_an_image_folder_leaves_out_bad_files_too(tmp_path):
    for split in ('train', 'val'):
        for i in range(3):
            save(tmp_path / split / 'cat' / f'{i}.png', i, 32)
    truncate(tmp_path / 'train' / 'cat' / '1.png')
    with pytest.raises(ValueError, match=r'cannot decode the image .*1.png'):
        create_loaders('cifar10', tmp_path, batch_size=4)
    train, val, _ = create_loaders('cifar10', tmp_path, batch_size=4, on_bad_image='skip')
    assert torch.equal(train.images, val.images[[0, 2]])
    assert train.labels.tolist() == [0, 0]
