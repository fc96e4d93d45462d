"""Images of a batch that are mixed with each other (MixUp, CutMix), and labels that are made soft."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2


@dataclass(frozen=True)
class Mixing:
    """What becomes of a batch before the network and of its labels before the loss.

    Attributes:
        mixup, cutmix: the alpha of torchvision's transforms, whose share is distributed as Beta(alpha, alpha); 0: not.
            With both, each batch gets one of them, with the same chance.
        smoothing: share of a label that is spread evenly over all classes (Szegedy et al., 1512.00567).

    The random numbers come from torch's global generator, which every epoch seeds anew. Of several processes each mixes
    its part of the batch.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    smoothing: float = 0.0

    def images(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the images (N, C, H, W) mixed, and (N, N) shares of each in each; as they are, and None, without."""
        kinds = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix)) if alpha]
        if not kinds:
            return images, None
        if images.dim() != 4:
            raise ValueError(f'MixUp and CutMix mix images (N, C, H, W), and these are {tuple(images.shape)}: leave '
                             'them out')
        mix = kinds[int(torch.rand(()) * len(kinds))]
        return mix(images, torch.eye(len(images), device=images.device))

    def targets(self, labels: Tensor, shares: Tensor | None, classes: int) -> tuple[Tensor, Tensor]:
        """Return what the loss compares with, (N, classes) probabilities or the labels (N,), and labels to count by.

        The latter are those of the images that have the largest shares.
        """
        if shares is None and not self.smoothing:
            return labels, labels
        targets = F.one_hot(labels, classes).float()
        if shares is not None:
            targets, labels = shares @ targets, labels[shares.argmax(1)]
        return targets * (1 - self.smoothing) + self.smoothing / classes, labels
