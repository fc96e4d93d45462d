"""How a PIL image becomes what a network sees: the augmentation for training, the fixed view for validation."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torchvision import transforms
from torchvision.transforms import v2

from lib.data.tensor_loader import Augment

NORMALIZE = {
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    'cifar': ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    'symmetric': ((0.5,) * 3, (0.5,) * 3),
}


def train_transform(spec: Any, size: int, randaugment: tuple[int, int] | None = None) -> Callable:
    """Return the augmentation of an image file for training: PIL image -> float32 (3, size, size).

    `randaugment`: (operations, magnitude), or None.
    """
    if spec.augment is None:
        steps = [transforms.RandomResizedCrop(size)]
    else:
        steps = [transforms.Resize((size, size)), transforms.RandomCrop(size, padding=scaled_augment(spec, size).pad)]
    if randaugment:
        return transforms.Compose([*steps, transforms.RandomHorizontalFlip(), v2.RandAugment(*randaugment),
                                   *_to_tensor(spec)])
    return transforms.Compose([*steps, transforms.RandomHorizontalFlip(), *_to_tensor(spec)])


def val_transform(spec: Any, size: int) -> Callable:
    """Return the fixed view of an image file: PIL image -> float32 (3, size, size)."""
    return transforms.Compose([fixed_view(spec, size), *_to_tensor(spec)])


def fixed_view(spec: Any, size: int) -> Callable:
    """Return PIL image -> PIL image of size x size; photographs: the shorter side to 256/224 `size`, centre crop."""
    if spec.augment is None:
        return transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size)])
    return transforms.Resize((size, size))


def scaled_augment(spec: Any, size: int) -> Augment:
    """Return the crop and mirroring that `train_transform` applies to fixed views of size x size pixels."""
    return Augment(pad=round(spec.augment.pad * size / spec.resolution), flip=True)


def renormalised(spec: Any, normalize: str | None) -> Any:
    """Return the row with another mean and standard deviation: 'imagenet', 'symmetric' ([-1, 1]) or None, its own."""
    if normalize is None:
        return spec
    mean, std = NORMALIZE[normalize]
    return replace(spec, mean=mean, std=std)


def _to_tensor(spec):
    return [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)]
