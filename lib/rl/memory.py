"""Replay memory: the transitions that the agent learns from."""

from __future__ import annotations

import numpy as np
import torch


class ReplayMemory:
    """Ring of the `capacity` latest transitions, in arrays; when it is full, a new one replaces the oldest.

    Next states are stored, so one array row is a complete transition and every row can be sampled, the newest too.
    """

    def __init__(self, capacity: int, num_states: int, seed: int):
        if min(capacity, num_states) < 1:
            raise ValueError(f'capacity and num_states must be at least 1, got {capacity} and {num_states}')
        self.capacity, self.size, self.position = capacity, 0, 0  # position: the row written next
        self.rng = np.random.default_rng(seed)
        widths = {'states': (num_states,), 'actions': (1,), 'rewards': (),
                  'next_states': (num_states,), 'terminals': ()}
        self.arrays = {name: np.zeros((capacity, *width), np.float32) for name, width in widths.items()}

    def __len__(self) -> int:
        return self.size

    def add(self, state, action, reward, next_state, terminal) -> None:
        """Store one transition; `terminal` is true where the episode ends with it."""
        for array, value in zip(self.arrays.values(), (state, action, reward, next_state, terminal), strict=True):
            array[self.position] = value
        self.position = (self.position + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, batch_size: int) -> tuple[np.ndarray, ...]:
        """Draw `batch_size` different transitions (all of them, if fewer are stored), each equally likely.

        Returns:
            states (B, S), actions (B, 1), rewards (B,), next_states (B, S), terminals (B,), all float32.
        """
        if not self.size:
            raise ValueError('the replay memory is empty: add transitions before sampling')
        rows = self.rng.choice(self.size, min(batch_size, self.size), replace=False)
        return tuple(array[rows] for array in self.arrays.values())

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to continue bit for bit, as tensors and plain Python values."""
        arrays = {name: torch.from_numpy(array[:self.size].copy()) for name, array in self.arrays.items()}
        return {'capacity': self.capacity, 'size': self.size, 'position': self.position, 'arrays': arrays,
                'rng': self.rng.bit_generator.state}

    def load_state_dict(self, state: dict) -> None:
        """Take over the contents and the generator of another memory of the same shape.

        Raises:
            ValueError: the capacity or the width of a row differs.
        """
        shapes = {name: tuple(array.shape[1:]) for name, array in self.arrays.items()}
        given = {name: tuple(array.shape[1:]) for name, array in state['arrays'].items()}
        if (state['capacity'], given) != (self.capacity, shapes):
            raise ValueError(f"saved replay memory has capacity {state['capacity']} and rows {given}, this one has "
                             f'{self.capacity} and {shapes}: resume with the settings of the saved run')
        self.size, self.position = state['size'], state['position']
        for name, array in self.arrays.items():
            array[:self.size] = state['arrays'][name].numpy()
        self.rng.bit_generator.state = state['rng']
