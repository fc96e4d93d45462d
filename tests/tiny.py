"""A tiny classification problem: network and data; random tensors."""

import torch
from torch import nn


def sample(*shape, seed=0, dtype=torch.float32):
    """Return normally distributed values, those of the seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class TinyNet(nn.Module):
    """Convolution, depthwise and pointwise convolution, linear: the kinds of layer that the environments tell apart."""

    def __init__(self, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 12, 1)
        self.act = nn.ReLU6()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, classes)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        x = self.act(self.pointwise(self.depthwise(x)))
        return self.head(self.pool(x).flatten(1))


class TinyLoader:
    """Noisy images of four colours; the batches depend on the epoch alone."""

    def __init__(self, images=48, batch=16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(images) % 4
        colours = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
        self.images = colours[self.labels][:, :, None, None] + 0.5 * torch.randn(images, 3, 8, 8, generator=generator)
        self.batch = self.batch_size = batch
        self.num_images, self.epoch = images, 0

    def __len__(self):
        return -(-len(self.labels) // self.batch)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def first_batch(self):
        return next(iter(self))[0]

    def __iter__(self):
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.epoch))
        for part in order.split(self.batch):
            yield self.images[part], self.labels[part]
