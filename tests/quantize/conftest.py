"""What the tests of several quantizers share: one map seen from all sides, and a tiny problem to learn."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def _telling_values(step, low, high):
    """Random values, both zeros, huge ones, and every level and every boundary between codes with its neighbours."""
    marks = torch.arange(2 * low - 3, 2 * high + 4) * (step / 2)
    around = [marks, marks.nextafter(torch.tensor(torch.inf)), marks.nextafter(torch.tensor(-torch.inf))]
    random = torch.randn(500, generator=torch.Generator().manual_seed(0)) * step * max(high, 1)
    return torch.cat([*around, random, torch.tensor([0.0, -0.0, 1e30, -1e30])])


@pytest.fixture
def check_map():
    """Asserts that forward, `to_int` and `grid` of a quantizer of activations are one map onto `codes`, all of them."""

    def check(quantizer, codes):
        grid = quantizer.grid()
        assert (grid.low, grid.high) == (codes[0], codes[-1]) and grid.binary == (codes == [-1, 1])
        x = _telling_values(grid.step, grid.low, grid.high)
        ours, scale = quantizer.to_int(x)
        assert ours.dtype == torch.int32 and scale.shape == (1,) and ours.unique().tolist() == codes
        assert torch.equal(ours * scale, quantizer(x)) and torch.equal(quantizer(x.requires_grad_()), ours * scale)
        nearest = torch.where(x >= 0, 1, -1) if grid.binary else (x / grid.step).round().clamp(grid.low, grid.high)
        assert torch.equal(ours, nearest.int())
        assert scale.item() == pytest.approx(grid.scale, rel=1e-6)

    return check


class _Problem(nn.Module):
    """A layer that learns, a quantizer, and a fixed head: the loss can fall by gradients through the quantizer only."""

    def __init__(self, layer, quantizer):
        super().__init__()
        self.layer, self.quantizer, self.head = layer, quantizer, nn.Linear(32, 3).requires_grad_(False)

    def forward(self, x):
        return self.head(self.quantizer(self.layer(x)))


@pytest.fixture
def loss_after_training():
    """Trains `layer` (8 to 32 features) under `quantizer` with SGD; returns its loss as a part of the first one."""

    def train(layer, quantizer, steps=50):
        torch.manual_seed(0)
        layer.reset_parameters()
        net, x = _Problem(layer, quantizer), torch.randn(128, 8)
        labels = (x @ torch.randn(8, 3)).argmax(1)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5, momentum=0.9)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            losses.append(F.cross_entropy(net(x), labels))
            losses[-1].backward()
            optimizer.step()
        return (sum(losses[-5:]) / 5 / losses[0]).item()

    return train
