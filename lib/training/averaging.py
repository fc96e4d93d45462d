"""A running average of the weights (EMA), which is what is validated and saved in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lib.runtime import distributed
from lib.utils.quantize_utils import Quantization


class WeightAverage:
    """The exponential moving average of what is trained, and of the statistics of BatchNorm.

    After the first step it is the weights themselves; after step n + 1 it is a <- d a + (1 - d) w with
    d = min(decay, (1 + n) / (10 + n)), so that a short training has one, too (TensorFlow's `num_updates`). Of a
    clustered weight its centroids are averaged, so it stays clustered; of quantizers what they learn. All else is the
    network's own.
    """

    def __init__(self, quantization: Quantization, decay: float):
        self.quantization, self.decay, self.updates = quantization, decay, 0
        self._averages = {}  # {id: (tensor, its average)}: an id is of this tensor as long as it is kept

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after a step; called after `Quantization.after_step`."""
        known = [tensor for tensor in self._tensors() if id(tensor) in self._averages]
        if known:
            decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
            get_ema_multi_avg_fn(decay)([self._averages[id(tensor)][1] for tensor in known], known, self.updates)
        self._take_in()
        self.updates += 1

    def _take_in(self):
        """Let what is trained now and was not before, as centroids are, begin its average; forget what no longer is."""
        self._averages = {id(tensor): self._averages.get(id(tensor)) or (tensor, tensor.detach().clone())
                          for tensor in self._tensors()}

    def _tensors(self):
        return [*self._trained(), *self._statistics()]

    def _trained(self):
        return [parameter for parameter in self.quantization.parameters() if parameter.requires_grad]

    def _statistics(self):
        return [tensor for tensor in distributed.running_statistics(self.quantization.model)
                if tensor.is_floating_point()]

    def _averages_of(self, tensors):
        return [self._averages[id(tensor)][1] for tensor in tensors]

    def synchronise(self) -> None:
        """Give all processes one average; that of BatchNorm statistics is the mean over them, as of the statistics.

        Called after every epoch.
        """
        self._take_in()
        distributed.broadcast_tensors(self._averages_of(self._trained()))
        distributed.average_tensors(self._averages_of(self._statistics()))

    @contextmanager
    def in_place(self) -> Iterator[dict]:
        """Put the average in the place of the weights for a while, and take statistics estimated there into it.

        Yields:
            What a checkpoint needs to go on from: the weights themselves.
        """
        trained, statistics = ([tensor.detach().clone() for tensor in tensors]
                               for tensors in (self._trained(), self._statistics()))
        self.put()
        try:
            yield {'ema': {'updates': self.updates, 'trained': trained, 'statistics': statistics}}
        finally:
            for tensor, average in zip(self._statistics(), self._averages_of(self._statistics()), strict=True):
                average.copy_(tensor)
            self._write([*trained, *statistics])

    def put(self) -> None:
        """Put the average in the place of the weights."""
        self._take_in()
        self._write(self._averages_of(self._tensors()))

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        """Go on from a checkpoint whose average the network holds: `state` has the weights themselves.

        Raises:
            ValueError: it is of other weights.
        """
        tensors, values = self._tensors(), [*state['trained'], *state['statistics']]
        shapes, found = ([tuple(tensor.shape) for tensor in kind] for kind in (tensors, values))
        if shapes != found:
            raise ValueError('the weights beside their average are of other shapes than those that are trained')
        self._averages, self.updates = {}, state['updates']
        self._take_in()
        self._write(values)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for tensor, value in zip(self._tensors(), values, strict=True):
            tensor.copy_(value)
        self.quantization.after_step()
