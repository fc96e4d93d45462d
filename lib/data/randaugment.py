"""RandAugment of images in memory, each by random numbers of its own."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms import v2

from lib.runtime.seeds import derived_seed


class RandAugment:
    """torchvision's RandAugment (Cubuk et al., 1909.13719) of a batch, image by image.

    What becomes of an image depends on (seed, epoch) and its position alone. The transform draws from torch's global
    generator, which is put back.

    Args:
        operations: per image.
        magnitude: 0 to 30.
    """

    def __init__(self, operations: int, magnitude: int):
        self.transform = v2.RandAugment(operations, magnitude)

    @classmethod
    def of(cls, options: tuple[int, int] | None) -> Callable:
        """Return that of (operations, magnitude); None: a function that leaves images as they are."""
        return cls(*options) if options else lambda images, *_: images

    def __call__(self, images: Tensor, picked: Tensor, *seeds) -> Tensor:
        """Return the images uint8 (N, C, H, W) at the positions `picked` (N,), augmented."""
        before = torch.get_rng_state()
        try:
            return torch.stack([self._one(image, (*seeds, index, 'randaugment'))
                                for image, index in zip(images, picked.tolist(), strict=True)])
        finally:
            torch.set_rng_state(before)

    def _one(self, image, seeds):
        torch.random.default_generator.manual_seed(derived_seed(*seeds))  # not torch.manual_seed: that is CUDA's, too
        return self.transform(image)
