"""The loader of images in memory: crops against a loop over the images, determinism, normalisation, lengths."""

import numpy as np
import pytest
import torch
from torchvision import transforms

from lib.data.tensor_loader import Augment, TensorLoader, crop, seeded_generator

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def make_images(count=20, height=8, width=8):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded_generator(count))


def make_loader(images, **options):
    options = {'batch_size': 8, 'shuffle': True, 'mean': MEAN, 'std': STD, **options}
    return TensorLoader(images, torch.arange(len(images)), **options)


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a, c) and torch.equal(b, d)
                                           for (a, b), (c, d) in zip(left, right, strict=True))


@pytest.mark.parametrize(('height', 'width', 'pad'), [(8, 8, 2), (6, 9, 4), (5, 4, 0)])
def test_crop_equals_a_loop_over_the_images(height, width, pad):
    images, generator = make_images(40, height, width), seeded_generator(0)
    top, left = torch.randint(2 * pad + 1, (2, 40), generator=generator)
    mirror = torch.rand(40, generator=generator) < 0.5

    for result, image, y, x, turned in zip(crop(images, top, left, mirror, pad=pad), images, top, left, mirror,
                                           strict=True):
        padded = np.pad(image.numpy(), [(0, 0), (pad, pad), (pad, pad)])
        window = padded[:, y:y + height, x:x + width]
        np.testing.assert_array_equal(result.numpy(), window[:, :, ::-1] if turned else window)


def test_every_window_and_half_of_the_mirror_images_occur():
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(400, 3, 3, 3).contiguous()
    loader = make_loader(image, augment=Augment(pad=1, flip=True), batch_size=400, mean=(0,) * 3, std=(1 / 255,) * 3)
    (images, _), = loader
    views = {tuple(view[0].flatten().int().tolist()) for view in images}
    assert len(views) == 18  # 9 windows, each in two directions
    upright = sum(torch.nn.functional.pad(image[0, 0].float(), (1,) * 4).unfold(0, 3, 1).unfold(1, 3, 1)
                  .reshape(9, 9).eq(view[0].flatten()).all(1).any().item() for view in images)
    assert 160 < upright < 240


def test_no_flip_means_never_mirrored():
    images = make_images(50)
    (served, labels), = make_loader(images, batch_size=50, augment=Augment(pad=0), mean=(0,) * 3, std=(1 / 255,) * 3)
    assert torch.allclose(served, images[labels].float())


def test_normalisation_equals_torchvision():
    images = make_images()
    reference = transforms.Normalize(MEAN, STD)(images.float() / 255)
    served = torch.cat([batch for batch, _ in make_loader(images, shuffle=False)])
    assert served.dtype == torch.float32
    torch.testing.assert_close(served, reference, atol=1e-6, rtol=1e-6)


def test_an_epoch_serves_each_image_once_with_its_label():
    images = make_images(21)
    batches = list(make_loader(images, mean=(0,) * 3, std=(1 / 255,) * 3))
    labels = torch.cat([labels for _, labels in batches])
    assert labels.dtype == torch.int64
    assert sorted(labels.tolist()) == list(range(21)) != labels.tolist()
    assert torch.allclose(torch.cat([batch for batch, _ in batches]), images[labels].float())


def test_same_epoch_is_bit_identical_and_another_is_not():
    loader = make_loader(make_images(), augment=Augment(flip=True), seed=3)
    first = list(loader)
    torch.manual_seed(99)
    assert same(first, list(loader))
    loader.set_epoch(1)
    second = list(loader)
    assert not same(first, second)
    loader.set_epoch(0)
    assert same(first, list(loader))
    again = make_loader(make_images(), augment=Augment(flip=True), seed=3)
    again.set_epoch(1)
    assert same(second, list(again))
    assert not same(first, list(make_loader(make_images(), augment=Augment(flip=True), seed=4)))


def test_epoch_changes_order_and_augmentation_each_on_its_own():
    for options in ({'shuffle': True}, {'shuffle': False, 'augment': Augment()}):
        loader = make_loader(make_images(), **options)
        first = list(loader)
        loader.set_epoch(1)
        assert not same(first, list(loader))


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(make_loader(make_images(), augment=Augment(flip=True)))
    assert torch.equal(before, torch.get_rng_state())


def test_augmentation_of_an_image_does_not_depend_on_the_batch_size():
    images = make_images()
    small, large = (torch.cat([batch for batch, _ in make_loader(images, augment=Augment(2, True), batch_size=size)])
                    for size in (3, 20))
    assert torch.equal(small, large)


@pytest.mark.parametrize(('count', 'drop_last', 'expected'),
                         [(16, False, [8, 8]), (17, False, [8, 8, 1]), (17, True, [8, 8]), (5, False, [5])])
def test_lengths(count, drop_last, expected):
    loader = make_loader(make_images(count), drop_last=drop_last)
    assert [len(labels) for _, labels in loader] == expected
    assert (len(loader), loader.num_images, loader.batch_size) == (len(expected), count, 8)


def test_size_enlarges_after_the_crop():
    constant = torch.full((4, 3, 8, 8), 51, dtype=torch.uint8)
    (images, _), = make_loader(constant, size=20, mean=(0,) * 3, std=(1,) * 3)
    assert images.shape == (4, 3, 20, 20)
    torch.testing.assert_close(images, torch.full_like(images, 0.2))
    (cropped, _), = make_loader(constant, size=16, augment=Augment(8), mean=(0,) * 3, std=(1,) * 3)
    assert cropped.min() == 0  # the black padding was enlarged with the image


@pytest.mark.parametrize(('change', 'message'), [
    ({'images': torch.zeros(4, 3, 8, 8)}, 'expected uint8'),
    ({'images': torch.zeros(0, 3, 8, 8, dtype=torch.uint8)}, 'N > 0'),
    ({'labels': torch.zeros(3)}, r'labels \(3,\)'),
    ({'batch_size': 0}, 'batch size 0'),
])
def test_bad_arguments_are_named(change, message):
    options = {'images': torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 'batch_size': 2, **change}
    options.setdefault('labels', torch.zeros(len(options['images'])))
    with pytest.raises(ValueError, match=message):
        TensorLoader(options.pop('images'), options.pop('labels'), shuffle=False, mean=MEAN, std=STD, **options)


def test_unknown_padding_is_refused():
    with pytest.raises(ValueError, match='padding -1'):
        Augment(pad=-1)


def test_a_sample_is_mixed_and_always_the_same():
    images = make_images(200)

    def served(count):
        loader = make_loader(images, shuffle=False)
        loader.sample(count)
        batches = list(loader)
        assert loader.num_images == sum(len(labels) for _, labels in batches) and len(loader) == len(batches)
        labels = torch.cat([labels for _, labels in batches])
        expected = (images[labels].float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(torch.cat([batch for batch, _ in batches]), expected)
        return labels.tolist()

    few = served(30)
    assert len(set(few)) == 30 and few == served(30) and few != sorted(few)
    assert {label // 50 for label in few} == {0, 1, 2, 3}, 'of sorted images, from everywhere'
    assert sorted(served(-1)) == sorted(served(999)) == list(range(200))
    with pytest.raises(ValueError, match='a sample of 0 images: expected 1 to 200'):
        make_loader(images, shuffle=False).sample(0)
    with pytest.raises(ValueError, match='of a validation set'):
        make_loader(images).sample(10)
