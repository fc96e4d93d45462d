"""RandAugment in every loader: what torchvision's own does to the same image with the same seed, and reproducible."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lib.data.crop_loader import CropLoader
from lib.data.loader_options import LoaderOptions
from lib.data.tensor_loader import Augment, TensorLoader
from lib.runtime.seeds import derived_seed, seeded_generator
from lib.utils.data_utils import create_loaders

PIXELS = {'mean': (0,) * 3, 'std': (1 / 255,) * 3, 'seed': 5}
IMAGES = torch.randint(0, 256, (24, 3, 12, 12), dtype=torch.uint8, generator=seeded_generator(0))
KINDS = {
    'tensors': lambda **more: TensorLoader(IMAGES, torch.arange(24), shuffle=True, augment=Augment(2, flip=True),
                                           **PIXELS, **more),
    'grey': lambda **more: TensorLoader(IMAGES[:, :1], torch.arange(24), shuffle=True, **PIXELS | {
        'mean': (0,), 'std': (1 / 255,)}, **more),
    'crops': lambda **more: CropLoader([image.permute(1, 2, 0) for image in IMAGES], torch.arange(24), size=8,
                                       **PIXELS, **more),
    'threads': lambda **more: CropLoader([image.permute(1, 2, 0) for image in IMAGES], torch.arange(24), size=8,
                                         workers=2, **PIXELS, **more),
}


def served(loader, epoch=1):
    """{position: image} of an epoch."""
    loader.set_epoch(epoch)
    return {int(label): image for images, labels in loader for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize('kind', KINDS)
def test_images_in_memory_become_what_torchvision_makes_of_them(kind):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    found = served(KINDS[kind](batch_size=7, randaugment=(3, 12)))
    assert torch.get_rng_state().equal(before)
    for index, image in served(KINDS[kind](batch_size=24)).items():
        torch.manual_seed(derived_seed(5, 1, index, 'randaugment'))
        expected = v2.RandAugment(3, 12)(image.round().to(torch.uint8))
        torch.testing.assert_close(found[index], expected.float(), rtol=0, atol=1e-3)
    assert not all(image.equal(found[index]) for index, image in served(KINDS[kind](batch_size=24)).items())


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (('train', 6), ('val', 2)):
        for index in range(2 * count):
            (tmp_path / split / 'ab'[index % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8)).save(
                tmp_path / split / 'ab'[index % 2] / f'{index}.png')
    return tmp_path


@pytest.mark.parametrize('cache', ['off', 'ram'])
def test_of_image_files_only_those_for_training_change_and_always_alike(folder, cache):
    def batches(randaugment, **more):
        loaders = create_loaders('folder', folder, image_size=8, seed=3, cache=cache, randaugment=randaugment,
                                 **{'batch_size': 4, **more})[:2]
        return [torch.cat([images for images, _ in loader]) for loader in loaders]

    (train, val), (plain, plain_val) = batches((2, 20)), batches(None)
    assert not train.equal(plain) and val.equal(plain_val)
    assert train.equal(batches((2, 20), workers=1, batch_size=6)[0])


OWN = """
import torch
from PIL import Image

def build(split, augment):
    return [(torch.zeros(3, 4, 4) if {tensors} else Image.new('RGB', (9, 9)), 0)] * 4
"""


def test_tensors_of_a_user_are_refused(tmp_path):
    for tensors in (True, False):
        (tmp_path / 'own.py').write_text(OWN.replace('{tensors}', str(tensors)))
        options = {'dataset_file': f'{tmp_path}/own.py:build', 'batch_size': 2, 'image_size': 4, 'num_classes': 1}
        if tensors:
            with pytest.raises(ValueError, match='--randaugment: the images of .* are tensors'):
                create_loaders('own', randaugment=(2, 9), **options)
            create_loaders('own', splits=('val',), randaugment=(2, 9), **options)
        else:
            create_loaders('own', randaugment=(2, 9), **options)


@pytest.mark.parametrize('wrong', [(0, 9), (2, 31), (2, -1)])
def test_what_it_cannot_do_is_named(wrong):
    with pytest.raises(ValueError, match='at least 1 operation of a magnitude of 0 to 30'):
        LoaderOptions(batch_size=1, randaugment=wrong)
