"""Actor and critic of DDPG, with gradients written out.

Autograd and a general optimizer cost networks this small more than a third of an update on a CPU. Here a gradient is
the chain rule in ten lines, written where the optimizer reads it; `tests/rl` compares it with central differences.
"""

from __future__ import annotations

import torch
from torch import nn


class FlatModule(nn.Module):
    """A module whose parameters, and their gradients, lie one behind the other in one tensor each."""

    def flatten(self) -> FlatModule:
        """Move the parameters into `self.flat`, their gradients into `self.flat_grad`; call once, on the device."""
        parameters = list(self.parameters())
        self.flat = torch.cat([p.detach().flatten() for p in parameters])
        self.flat_grad = torch.zeros_like(self.flat)
        sizes = [p.numel() for p in parameters]
        for p, values, gradient in zip(parameters, self.flat.split(sizes), self.flat_grad.split(sizes), strict=True):
            p.data, p.grad = values.view(p.shape), gradient.view(p.shape)
        return self


class Actor(FlatModule):
    """The policy mu(s): state -> hidden1 -> hidden2 -> actions in [0, 1]."""

    def __init__(self, num_states: int, num_actions: int, hidden1: int, hidden2: int):
        super().__init__()
        self.fc1 = nn.Linear(num_states, hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, num_actions)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """Map states (B, S) to actions (B, A)."""
        return self.layers(s)[-1]

    def layers(self, s: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of all layers: (B, hidden1), (B, hidden2), (B, A)."""
        h1 = self.fc1(s).relu_()
        h2 = self.fc2(h1).relu_()
        return h1, h2, self.fc3(h2).sigmoid_()

    def backward(self, s: torch.Tensor, layers: tuple[torch.Tensor, ...], d_a: torch.Tensor) -> None:
        """Set the gradients of a loss whose gradient in the actions is `d_a` (B, A)."""
        h1, h2, a = layers
        d3 = d_a * a * (1 - a)
        d2 = _through(self.fc3, h2, d3)
        d1 = _through(self.fc2, h1, d2)
        _set_gradients(self.fc1, s, d1)


class Critic(FlatModule):
    """The value Q(s, a): relu(W1 s + W2 a) -> hidden2 -> 1."""

    def __init__(self, num_states: int, num_actions: int, hidden1: int, hidden2: int):
        super().__init__()
        self.fc_state = nn.Linear(num_states, hidden1)
        self.fc_action = nn.Linear(num_actions, hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, 1)

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Map states (B, S) and actions (B, A) to values (B,)."""
        return self.layers(s, a)[-1]

    def layers(self, s: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the outputs of all layers: (B, hidden1), (B, hidden2), (B,)."""
        h1 = (self.fc_state(s) + self.fc_action(a)).relu_()
        h2 = self.fc2(h1).relu_()
        return h1, h2, self.fc3(h2).squeeze(-1)

    def backward(self, s: torch.Tensor, a: torch.Tensor, layers: tuple[torch.Tensor, ...], d_q: torch.Tensor) -> None:
        """Set the gradients of a loss whose gradient in the values is `d_q` (B,)."""
        h1, h2, _ = layers
        d2 = _through(self.fc3, h2, d_q[:, None])
        d1 = _through(self.fc2, h1, d2)
        _set_gradients(self.fc_state, s, d1)
        _set_gradients(self.fc_action, a, d1)

    def action_gradient(self, layers: tuple[torch.Tensor, ...], d_q: float) -> torch.Tensor:
        """Return the gradient in the actions, (B, A), of a loss whose gradient in every value is the number `d_q`."""
        h1, h2, _ = layers
        d2 = _masked((d_q * self.fc3.weight).expand_as(h2), h2)
        return _masked(d2 @ self.fc2.weight, h1) @ self.fc_action.weight


def _through(layer: nn.Linear, h: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """Set the gradients of `layer`; return the gradient before the ReLU whose output `h` is its input."""
    _set_gradients(layer, h, d)
    return _masked(d @ layer.weight, h)


def _set_gradients(layer: nn.Linear, x: torch.Tensor, d: torch.Tensor) -> None:
    torch.mm(d.t(), x, out=layer.weight.grad)
    torch.sum(d, 0, out=layer.bias.grad)


def _masked(d: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Return the gradient before a ReLU, of that behind it and its output."""
    return torch.ops.aten.threshold_backward(d, h, 0)
