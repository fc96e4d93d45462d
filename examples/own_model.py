"""A network of one's own, for docs/own_model.md: a compact ConvNeXt with a block of attention at its end.

Nothing in it knows of this repository, and nothing of it was written for quantization. `build` is all that the scripts
ask for: `--model_file examples/own_model.py:build`.
"""

import torch
import torch.nn.functional as F
from torch import nn


class ConvBlock(nn.Module):
    """Depthwise convolution, then two linear layers on the channels, added to what came in."""

    def __init__(self, dim):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=5, padding=2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, 4 * dim)
        self.shrink = nn.Linear(4 * dim, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        y = self.dwconv(x).permute(0, 2, 3, 1)  # channels last
        y = self.shrink(F.gelu(self.expand(self.norm(y))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class AttentionBlock(nn.Module):
    """Attention between all positions; PyTorch's own module, whose weights are read and not called."""

    def __init__(self, dim, num_heads):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(x)


class SmallNet(nn.Module):
    """Patches of 4 x 4 pixels, two convolutional blocks that share a convolution between them, one of attention."""

    def __init__(self, num_classes, dim=32):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.block1, self.block2 = ConvBlock(dim), ConvBlock(dim)
        self.mix = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=4)
        self.attention = AttentionBlock(dim, num_heads=4)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.patches(x)
        for block in (self.block1, self.block2):
            x = F.relu(self.mix(block(x)))  # the same convolution after either block
        x = self.attention(x.flatten(2).transpose(1, 2))
        return self.head(x.mean(dim=1))


def build(num_classes):
    """Returns the network for this number of classes."""
    return SmallNet(num_classes)
