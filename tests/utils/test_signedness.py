"""Signed or not: by structure where it proves something, else by a probe."""

import torch
from torch import nn
from torch.nn import functional as F

from lib.utils.signedness import probe_inputs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(9))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        c = self.convs
        image = c[0](x)
        relu = F.relu(image)
        pooled = F.max_pool2d(c[1](relu) * 0 + relu, 2)  # 0 * y + relu: not provable, but never negative
        summed = torch.cat([relu, F.relu6(c[2](relu))], 1)[:, :3] + relu
        c[3](summed)
        c[4](F.hardswish(image))
        c[5](F.hardtanh(image, -1, 1))
        c[6](torch.sigmoid(image) * relu)
        c[7](relu - 100)
        return c[8](pooled)


def test_signs_of_every_input():
    net = Net()
    layers = {name: m for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    signed = probe_inputs(net, layers, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert 'unused' not in signed  # never called
    assert [signed[f'convs.{i}'] for i in range(9)] == [True, False, False, False, True, True, False, True, None]
    assert net.training


def test_structure_alone_decides_on_the_meta_device():
    with torch.device('meta'):
        net = Net()
        layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
        signed = probe_inputs(net, layers, torch.empty(2, 3, 8, 8))
    assert [signed[f'convs.{i}'] for i in range(9)] == [None, False, False, False, None, None, False, None, None]
