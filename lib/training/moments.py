"""Second moments of what layers get as input, streamed over calibration images: no activations are kept."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lib.network.hooks import batch_norms, evaluating
from lib.network.layer_inputs import rows, seeing_inputs
from lib.network.other_state import kept_state
from lib.quantize.compensate import Moments
from lib.quantize.quantizer import Quantizer
from lib.runtime import distributed
from lib.training.float_labels import images_alone

BATCH = 128


def calibration_batches(loader: Iterable, count: int, epoch: int = 0) -> list[Tensor]:
    """Return the first `count` images of an epoch of a training loader, in batches of at least 2, without their labels.

    Several processes, whose loaders serve the parts of a batch, all get the images that one would.

    Raises:
        ValueError: there are fewer than 2 images.
    """
    loader.set_epoch(epoch)
    found, missing = [], count
    for images, _ in images_alone(loader):
        found.append(distributed.join(images)[:missing])
        missing -= len(found[-1])
        if missing <= 0:
            break
    images = torch.cat(found)
    if len(images) < 2:
        raise ValueError(f'{len(images)} calibration images: expected at least 2')
    return list(images.chunk(-(-len(images) // BATCH)))


class _Enough(Exception):
    """Ends a forward pass whose rest nobody needs."""


@contextmanager
def calibrating(model: nn.Module, keep_bn: bool) -> Iterator[None]:
    """Let every BatchNorm normalise by its batch, unless its statistics are kept, and all else evaluate.

    Afterwards the network is what it was.
    """
    with evaluating(model), kept_state(model, leave=(Quantizer,)):
        for norm in batch_norms(model).values():
            norm.train(not keep_bn)
        yield


@torch.no_grad()
def calls_of(model: nn.Module, layers: Mapping[str, nn.Module], batch: Tensor) -> dict[str, int]:
    """Return {name: calls in a forward pass} of the layers that are called, in the order of their first calls."""
    calls = {}

    def see(name, _x):
        calls[name] = calls.get(name, 0) + 1

    with calibrating(model, keep_bn=False), seeing_inputs(model, layers, see):
        model(batch[:2])
    return calls


@torch.no_grad()
def collect_moments(model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[Tensor], *,
                    calls: Mapping[str, int] | None = None, float_model: nn.Module | None = None,
                    keep_bn: bool = False) -> dict[str, Moments]:
    """Return the `Moments` of the inputs of some layers.

    Args:
        layers: {name: layer of `model`}.
        batches: images on the model's device.
        calls: those of `calls_of`: a forward pass ends with the last of them.
        float_model: a network with the same names whose inputs give the `cross` moments; None: there are none.
        keep_bn: BatchNorm normalises by the statistics that it has, in place of those of each batch.
    """
    calls = calls or calls_of(model, layers, batches[0])
    sums = {name: _Sums(layer) for name, layer in layers.items()}
    for number, batch in enumerate(batches):
        theirs = {name: [] for name in layers}  # of one batch
        if float_model is not None:
            _run(float_model, {name: float_model.get_submodule(name) for name in layers}, batch, calls,
                 lambda name, x, theirs=theirs: theirs[name].append(x), keep_bn)
        waiting = {name: iter(inputs) for name, inputs in theirs.items()}
        _run(model, layers, batch, calls, lambda name, x, waiting=waiting, number=number: sums[name].add(
            x, next(waiting[name]) if float_model is not None else None, number), keep_bn)
    return {name: each.moments() for name, each in sums.items()}


def _run(model, layers, batch, calls, see, keep_bn):
    """Give `see(name, x)` the inputs of the layers in one forward pass, which ends with the last call of them."""
    missing = sum(calls[name] for name in layers)

    def count(name, x):
        nonlocal missing
        see(name, x)
        missing -= 1
        if missing == 0:
            raise _Enough

    with contextlib.suppress(_Enough), calibrating(model, keep_bn), seeing_inputs(model, layers, count):
        model(batch)


class _Sums:
    """Sums over the rows of a layer's inputs, in float64."""

    def __init__(self, layer):
        self.layer, self.count = layer, 0
        self.second = self.mean = self.cross = self.float_mean = 0.0

    def add(self, x: Tensor, float_x: Tensor | None, seed: int) -> None:
        parts = (rows(self.layer, x.float(), seed), rows(self.layer, (x if float_x is None else float_x).float(), seed))
        for ours, theirs in zip(*parts, strict=True):
            self.count += ours.shape[1]
            self.second = self.second + torch.bmm(ours.transpose(1, 2), ours).double()
            self.mean = self.mean + ours.sum(1).double()
            if float_x is not None:
                self.cross = self.cross + torch.bmm(theirs.transpose(1, 2), ours).double()
                self.float_mean = self.float_mean + theirs.sum(1).double()

    def moments(self) -> Moments:
        found = [value / self.count if isinstance(value, Tensor) else None
                 for value in (self.second, self.mean, self.cross, self.float_mean)]
        return Moments(*found)
