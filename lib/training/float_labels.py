"""Images without labels: the classes that the float network finds stand in for them."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

KEPT = 4  # epochs whose classes are remembered


class FloatLabels:
    """A loader of images without labels, with the most likely class by a network as the label of each.

    So what is called accuracy is the agreement with that network. All else is as of the loader, `labelled`, too.

    Args:
        loader: a `Loader` whose images have no labels.
        network: on the device; it stays as it is, in evaluation mode.
        device: that of the network.

    Attributes:
        images_alone: the loader, for those who do not read labels.
    """

    def __init__(self, loader: Any, network: nn.Module, device: torch.device | str):
        self.images_alone, self.network, self.device = loader, network.eval().requires_grad_(False), device
        self._known = {}  # {epoch: classes of each batch}, in the order of use

    def __getattr__(self, name):
        if name == 'images_alone':  # not there yet: of a copy that is being made
            raise AttributeError(name)
        return getattr(self.images_alone, name)

    def __len__(self):
        return len(self.images_alone)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.images_alone.batches.epoch
        known = self._known[epoch] = self._known.pop(epoch, [])
        if len(self._known) > KEPT:
            del self._known[next(iter(self._known))]
        for place, (images, labels) in enumerate(self.images_alone):
            if place == len(known):
                known.append(self._classes(images).to(labels.device))
            yield images, known[place]

    def sample(self, count: int) -> None:
        """Serve a sample alone, as `Loader.sample`."""
        self.images_alone.sample(count)
        self._known.clear()

    @torch.no_grad()
    def _classes(self, images):
        return self.network(images.to(self.device)).argmax(1)


def images_alone(loader: Any) -> Any:
    """Return a loader of the same batches for one who does not read labels: none are looked for."""
    return getattr(loader, 'images_alone', loader)
