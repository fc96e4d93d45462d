"""Compares an integer network with the fake-quantized network that it was lowered from, quantizer by quantizer."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lib.integer.network import IntegerNetwork, noise_images
from lib.network.conversion import activation_quantizers
from lib.network.hooks import evaluating, hooked
from lib.quantize.quantizer import Quantizer

NOISE_IMAGES = 100


class CodeDifference(NamedTuple):
    """How the codes of one quantizer differ between the two networks.

    `equal` is the share of equal codes and `largest` the largest difference where every operation is given the codes
    that the fake-quantized network has there, so that it alone is judged; `equal_end_to_end` and `largest_end_to_end`
    are those of the whole integer network, where differences add up.
    """

    equal: float
    largest: int
    equal_end_to_end: float
    largest_end_to_end: int


class NoiseCheck(NamedTuple):
    """How the two networks agree on images of noise.

    `agreement` is the share of equal predictions in percent. As noise is often of one class for a trained network,
    `difference` says more: the difference of the logits relative to how they vary over the images.
    """

    images: int
    agreement: float
    difference: float


@torch.no_grad()
def check_on_noise(model: nn.Module, network: IntegerNetwork) -> NoiseCheck:
    """Return the `NoiseCheck` of an `IntegerNetwork` and the fake-quantized network, on the CPU, that it comes from."""
    images = noise_images(network.input_shape, NOISE_IMAGES)
    found = network(images, arithmetic='float64').double() * network.scale
    with evaluating(model):
        expected = torch.cat([model(part) for part in images.split(16)]).double()
    spread = (expected - expected.mean(0)).square().mean().sqrt()
    difference = (found - expected).square().mean().sqrt() / spread.clamp_min(network.scale)  # a unit of the logits
    agreement = 100 * (found.argmax(1) == expected.argmax(1)).double().mean().item()
    return NoiseCheck(NOISE_IMAGES, agreement, difference.item())


class PredictionCheck(NamedTuple):
    """Both networks on labelled images, in percent, and the codes of their quantizers on some of them."""

    images: int
    top1_fake_quantized: float
    top1_integer: float
    agreement: float
    codes: dict


@torch.no_grad()
def compare_predictions(model: nn.Module, network: IntegerNetwork, loader: Iterable, *, code_images: int = 64,
                        arithmetic: str = 'int64') -> PredictionCheck:
    """Evaluate the fake-quantized `model` and the integer `network` on a loader.

    Args:
        model, network: the two.
        loader: of (images, labels).
        code_images: images of the first batch on which every code is compared.
        arithmetic: of the integer network.
    """
    hits = agreed = images = fake_hits = 0
    codes = None
    for batch, labels in loader:
        codes = codes or compare_codes(model, network, batch[:code_images])
        expected, found = model(batch.clone()).argmax(1), network(batch, arithmetic=arithmetic).argmax(1)
        images += len(batch)
        fake_hits += int((expected == labels).sum())
        hits += int((found == labels).sum())
        agreed += int((found == expected).sum())
    return PredictionCheck(images, *(100 * count / images for count in (fake_hits, hits, agreed)), codes)


def compare_codes(model: nn.Module, network: IntegerNetwork, images: Tensor) -> dict[str, CodeDifference]:
    """Return {name of a quantizer: `CodeDifference`} on a batch of images.

    Args:
        model: the fake-quantized network, on the CPU.

    Raises:
        ValueError: the two have other quantizers.
    """
    expected = fake_quantized_codes(model, images.clone())  # which a network may change
    missing = sorted(set(network.quantizers) ^ set(expected))
    if missing:
        raise ValueError(f'the networks differ in their quantizers ({", ".join(missing[:4])}): lower this very model')
    names, single = {register: name for name, (register, _) in network.quantizers.items()}, {}

    def watch(operation, result):
        name = names.get(operation.output)
        if name is not None:
            single[name] = result
            return expected[name]
        return None

    network.forward(network.encode(images), watch=watch)
    whole = network.codes(images)
    return {name: CodeDifference(*_difference(single[name], codes), *_difference(whole[name], codes))
            for name, codes in expected.items()}


def _difference(codes, expected):
    difference = (codes - expected).abs()
    return (difference == 0).double().mean().item(), int(difference.amax())


def fake_quantized_codes(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return {name: int64 codes} of every active quantizer of activations that `model` calls; later calls get #2..."""
    return seen_by_quantizers(model, images, lambda quantizer, x: quantizer.to_int(x)[0].long())


@torch.no_grad()
def seen_by_quantizers(model: nn.Module, images: Tensor, see: Callable[[Quantizer, Tensor], Any]) -> dict[str, Any]:
    """Return {name: see(quantizer, its input)} of the same calls."""
    found = {}

    def note(name, quantizer, x):
        calls = sum(other.partition('#')[0] == name for other in found)
        found[name if not calls else f'{name}#{calls + 1}'] = see(quantizer, x)

    with hooked(activation_quantizers(model), before=note), evaluating(model):
        model(images)
    return found
