"""Whether gradients arrive at every call of a layer that the logits depend on: else its curvature is wrong."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lib.network.hooks import hooked


class _Call:
    """A call of a layer: its name, its output where that asks for a gradient, and its input where that does not."""

    def __init__(self, name: str, x: Tensor, output: Tensor):
        self.name, self.constant = name, None if x.requires_grad else x.clone()
        self.output = output if output.requires_grad else None  # reentrant checkpointing makes it ask for one later


def blocked_layers(
    model: nn.Module, layers: Mapping[str, nn.Module], images: Tensor, free: Collection[str]
) -> list[str]:
    """Return the names of layers with a call that the logits depend on and that no gradient arrives at.

    That is so under `torch.no_grad` (as in reentrant checkpointing) and before a tensor that is detached. Where there
    are none, those are returned whose input is detached, though it comes from other layers: to these the gradient goes
    by other ways only. Whether the logits depend on a call is tried out: its output is disturbed.

    Args:
        model: network in evaluation mode.
        layers: all layers to look at, by name; their weights ask for gradients.
        images: a few, (N, C, H, W).
        free: names of those at which the gradient has to arrive.
    """
    logits, calls = _run(model, layers, images)
    arrived = _gradients(logits, [call.output for call in calls])
    _, others = _run(model, layers, images, range(len(calls)))  # what depends on a layer's output is another one now

    def names(suspicious):
        found = {calls[number].name for number in suspicious
                 if not torch.equal(_run(model, layers, images, [number])[0], logits)}
        return [name for name in layers if name in found]

    unreached = [number for number, call in enumerate(calls) if call.name in free and arrived[number] is None]
    return names(unreached) or names(_detached(calls, others))


def _detached(calls, others):
    """Return the numbers of the calls whose input asks for no gradient and is another one in the other run."""
    inputs = [(call.constant, other.constant) for call, other in zip(calls, others, strict=False)]
    return [number for number, (one, other) in enumerate(inputs)
            if one is not None and other is not None and not torch.equal(one, other)]


def _run(model, layers, images, disturbed=()) -> tuple[Tensor, list[_Call]]:
    """Return the logits and the calls of `layers`; the outputs of those of the numbers `disturbed` get noise."""
    calls, generator = [], torch.Generator().manual_seed(0)

    def note(name, _layer, x, output):
        calls.append(_Call(name, x, output))
        if len(calls) - 1 not in disturbed:
            return None
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + noise * (output.detach().abs().mean() + 1e-3)

    with hooked(layers, after=note), torch.enable_grad(), \
            torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(0)  # what is random in evaluation, too, is the same in every run
        return model(images.clone()), calls


def _gradients(logits: Tensor, outputs: list[Tensor | None]) -> list[Tensor | None]:
    """Return the gradient in each output, None where none arrives."""
    asking = [output for output in outputs if output is not None]
    try:
        found = iter(torch.autograd.grad(logits.sum(), asking, allow_unused=True))
    except RuntimeError:  # of reentrant checkpointing, or of logits that no layer's gradient could come from
        found = iter(asking if logits.requires_grad else [None] * len(asking))
    return [None if output is None else next(found) for output in outputs]
