"""Adam for one flat tensor: PyTorch's fused kernel without the bookkeeping of an optimizer."""

from __future__ import annotations

import torch
from torch.optim.adam import adam

BETAS, EPS = (.9, .999), 1e-8
SAVED = ('exp_avg', 'exp_avg_sq', 'steps')


class FlatAdam:
    """Kingma and Ba, "Adam", ICLR 2015, with the constants of `torch.optim.Adam`.

    For networks as small as the agent's, `torch.optim.Adam.step` takes two to three times as long as its arithmetic.

    Args:
        values: one-dimensional tensor that `step` changes in place.
        lr: learning rate.
    """

    def __init__(self, values: torch.Tensor, lr: float):
        self.values, self.lr = values, lr
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(values), torch.zeros_like(values)
        self.steps = torch.zeros((), device=values.device)

    @torch.no_grad()
    def step(self, gradient: torch.Tensor) -> None:
        """Move the values against a gradient of their shape."""
        adam([self.values], [gradient], [self.exp_avg], [self.exp_avg_sq], [], [self.steps], foreach=False, fused=True,
             amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], lr=self.lr, weight_decay=0., eps=EPS, maximize=False)

    def state_dict(self) -> dict:
        """Everything that `load_state_dict` needs to continue bit for bit; the values are not among it."""
        return {'lr': self.lr, **{name: getattr(self, name) for name in SAVED}}

    def load_state_dict(self, state: dict) -> None:
        """Take over the moments, the step count and the learning rate of another one.

        Raises:
            ValueError: it had another number of values, or the state is that of an optimizer of torch.
        """
        if missing := {'lr', *SAVED} - state.keys():
            raise ValueError(f'the state of Adam lacks {sorted(missing)}: it was saved by another version')
        for name in SAVED:
            own, given = getattr(self, name), state[name]
            if own.shape != given.shape:
                raise ValueError(f'saved {name} of Adam has shape {tuple(given.shape)}, expected {tuple(own.shape)}')
        for name in SAVED:
            getattr(self, name).copy_(state[name])
        self.lr = state['lr']
