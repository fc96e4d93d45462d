"""Actor and critic of DDPG."""

from __future__ import annotations

import torch
from torch import nn


class Actor(nn.Module):
    """The policy mu(s): state -> hidden1 -> hidden2 -> action in [0, 1]."""

    def __init__(self, num_states: int, hidden1: int, hidden2: int):
        super().__init__()
        self.fc1 = nn.Linear(num_states, hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, 1)

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        """Map states (B, S) to actions (B, 1)."""
        return self.fc3(self.fc2(self.fc1(s).relu()).relu()).sigmoid()


class Critic(nn.Module):
    """The value Q(s, a): relu(W1 s + W2 a) -> hidden2 -> 1."""

    def __init__(self, num_states: int, hidden1: int, hidden2: int):
        super().__init__()
        self.fc_state = nn.Linear(num_states, hidden1)
        self.fc_action = nn.Linear(1, hidden1)
        self.fc2 = nn.Linear(hidden1, hidden2)
        self.fc3 = nn.Linear(hidden2, 1)

    def forward(self, s: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """Map states (B, S) and actions (B, 1) to values (B,)."""
        h = (self.fc_state(s) + self.fc_action(a)).relu()
        return self.fc3(self.fc2(h).relu()).squeeze(-1)
