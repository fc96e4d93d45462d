"""From an image file to what a network gets, as in validation: plain numbers that a file of a network can carry."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torchvision import transforms
from torchvision.transforms.functional import pil_to_tensor

from lib.data.datasets import dataset_spec
from lib.data.image_folder import load_image
from lib.data.tensor_loader import Normalise
from lib.data.transforms import renormalised


@dataclass(frozen=True)
class Preprocessing:
    """What is done to an image file, in this order.

    Attributes:
        resize: bilinear with antialiasing: the shorter side, or [height, width].
        crop: side of the square that is then cut out of the middle; None: none.
        rescale: side to which the pixels, as floating point numbers, are then resized in the same way; None: not.
        mean, std: of each channel of RGB, in units of [0, 1] pixels: y = (pixel / 255 - mean) / std.
    """

    resize: int | list
    crop: int | None
    rescale: int | None
    mean: list
    std: list

    @classmethod
    def of_dataset(cls, name: str, size: int, normalize: str | None = None) -> 'Preprocessing':
        """Return that of the validation images of a data set.

        Args:
            name: as of `create_loaders`; 'folder' stands for PIL images of a data set of the user's own.
            size: side of the images that the network gets.
            normalize: another mean and standard deviation than the data set's, see `renormalised`.
        """
        spec = renormalised(dataset_spec(name), normalize)
        mean_std = {'mean': list(spec.mean), 'std': list(spec.std)}
        if spec.kind == 'memory':  # one size in memory, see `TensorLoader`
            resolution = spec.resolution
            return cls([resolution] * 2, None, None if size == resolution else size, **mean_std)
        if spec.augment is None:
            return cls(round(size * 256 / 224), size, None, **mean_std)
        return cls([size] * 2, None, None, **mean_std)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return what the network gets, float32 (N, 3, size, size), of the pixels of several files."""
        return Normalise(self.mean, self.std)(pixels, self.rescale)

    def view(self, path: str | Path) -> Tensor:
        """Return the pixels of a file, uint8 (3, height, width); a `BadImageError` names a file that is broken."""
        steps = [transforms.Resize(self.resize), *([transforms.CenterCrop(self.crop)] if self.crop else [])]
        return pil_to_tensor(transforms.Compose(steps)(load_image(path)))
