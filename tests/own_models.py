"""Small networks as users write them, none of them in the style of `models/`: what every flow has to take unchanged.

`ZOO` tells of each what is known from reading it: the sign of every input (None: only data can tell), and what the
linear flow leaves float.
"""

import copy
import functools
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lib.network.reach import reach_weights

CLASSES = 5


class Residual(nn.Module):
    """Additions in place, functional activations, max pooling."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.max_pool2d(F.relu_(self.bn1(self.stem(x))), 2)
        y = self.bn3(self.conv2(self.bn2(self.conv1(x)).relu()))
        y += x
        return self.fc(y.relu().mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate computed from the pooled tensor; h-swish."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.Hardswish())
        self.reduce, self.expand = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.last = nn.Conv2d(12, 16, 1)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.conv(x)
        gate = self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        x = x * F.hardsigmoid(gate)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu6(self.last(x)), 1), 1))


class Branches(nn.Module):
    """Parallel branches, put together; every branch ends with a ReLU."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.mix = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.cat([self.a(x), self.b(x)], dim=1)
        x = torch.cat([F.avg_pool2d(x, 2), F.max_pool2d(x, 2)], dim=0)
        x = F.relu(self.mix(x)).mean((2, 3)).unflatten(0, (2, -1)).sum(0)
        return self.fc(x)


class OneActivation(nn.Module):
    """A single activation module, used everywhere; layers in a plain list, too."""

    def __init__(self):
        super().__init__()
        self.act, self.pool = nn.ReLU(), nn.AvgPool2d(2)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.fc = nn.Linear(8, CLASSES)
        self.order = [self.conv1, self.conv2]

    def forward(self, x):
        for conv in self.order:
            x = self.pool(self.act(conv(x)))
        return self.fc(x.flatten(2).mean(-1))


class ConvNext(nn.Module):
    """Depthwise convolution, channels last, LayerNorm, GELU, layer scale."""

    def __init__(self, width=12):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.5 * torch.ones(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.patches(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(self.last(x.mean([-2, -1])))


class Tokens(nn.Module):
    """The body of a small transformer; `attend` is another's."""

    def __init__(self, width=16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.position = nn.Parameter(0.1 * torch.randn(1, 17, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class OwnAttention(Tokens):
    """Attention written out, with linear layers."""

    def __init__(self, width=16, heads=2):
        super().__init__(width)
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(torch.einsum('nhqd,nhkd->nhqk', q, k) / q.shape[-1] ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TorchAttention(Tokens):
    """PyTorch's attention, which reads the weights of its output projection and never calls it."""

    def __init__(self, width=16, heads=2):
        super().__init__(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def attend(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class TorchTransformer(Tokens):
    """PyTorch's encoder layer, which in evaluation computes from the weights of its layers and calls none of them."""

    def __init__(self, width=16, heads=2):
        super().__init__(width)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(width, heads, 32, batch_first=True), 1)

    def attend(self, x):
        return self.encoder(x)


class NeverCalled(nn.Module):
    """An auxiliary head that nobody calls."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.auxiliary = nn.Linear(8, CLASSES)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(self.conv(x).relu().amax((2, 3)))


class CalledTwice(nn.Module):
    """One convolution applied three times, registered under two names."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.again = self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        for layer in (self.shared, self.again, self.again):
            x = F.relu(layer(input=x))
        return self.fc(x.mean((-2, -1)))


class Decoder(nn.Module):
    """Down and up again: a transposed convolution and a 1-d one."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.rows = nn.Conv1d(8, 8, 3)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.silu(self.conv(F.relu(self.up(F.relu(self.down(x))))))
        return self.fc(self.rows(x.mean(-1)).mean(-1))


class StandardisedConv(nn.Conv2d):
    """Weight standardisation, in a forward of its own."""

    def forward(self, x):
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (std + 1e-5) / 6, self.bias)


class Standardised(nn.Module):
    """Weight standardisation and group norm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(),
                                  StandardisedConv(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(),
                                  nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))

    def forward(self, x):
        return self.body(x)


class Shapes(nn.Module):
    """Depthwise, dilated and grouped convolutions, kernels that are not square, channel shuffle."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(3, 8, (1, 5), (1, 2), (0, 2))
        self.depthwise = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=8, padding_mode='reflect')
        self.grouped = nn.Conv2d(16, 16, 3, 2, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = F.leaky_relu(self.wide(x), 0.3)
        x = F.relu(self.depthwise(x))
        x = x.reshape(len(x), 4, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.fc(self.norm(self.grouped(x)).clamp(min=0, max=4).flatten(2).mean(2))


class Grey(nn.Sequential):
    """One input channel; no normalization anywhere."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 5, 2), nn.ELU(), nn.Conv2d(8, 8, 3, 2), nn.SiLU(), nn.MaxPool2d(2),
                         nn.Flatten(), nn.Linear(72, 24), nn.ReLU(), nn.Linear(24, CLASSES))


class SameConv(nn.Conv2d):
    """Pads by itself, behind more than before, and keeps a number of its own."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.before = 0

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(F.pad(x, (self.before, 1, self.before, 1)), weight, bias)


class Subclasses(nn.Module):
    """Subclasses of layers, normalised weights, a hook."""

    def __init__(self):
        super().__init__()
        self.same = SameConv(3, 8, 3, 2)
        self.normed = parametrizations.weight_norm(nn.Conv2d(8, 8, 3, 2))
        self.spectral = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, 2))
        self.fc = nn.Linear(8, CLASSES)
        self.fc.register_forward_hook(lambda layer, inputs, output: 2 * output)

    def forward(self, x):
        x = F.relu(self.normed(F.relu(self.same(x))))
        return self.fc(self.spectral(x).abs().mean((2, 3)))


class Case(NamedTuple):
    """A network, and what is known of it."""

    build: type
    signs: dict  # {called layer: whether its input can be negative, None where only data can tell}
    float_layers: tuple = ()  # convolutions and linear layers that the linear flow leaves float
    computed: tuple = ()  # those whose weight the K-means flow cannot cluster
    shape: tuple = (3, 32, 32)


ZOO = {case.build.__name__: case for case in (
    Case(Residual, {'stem': True, 'conv1': False, 'conv2': False, 'fc': False}),
    Case(SqueezeExcite, {'conv.0': True, 'reduce': True, 'expand': False, 'last': True, 'fc': False}),
    Case(Branches, {'a.0': True, 'b.0': True, 'mix': False, 'fc': False}),
    Case(OneActivation, {'conv1': True, 'conv2': False, 'fc': False}),
    Case(ConvNext, {'patches': True, 'depthwise': True, 'up': True, 'down': True, 'head': True}),
    Case(OwnAttention, {'patches': True, 'mlp.0': True, 'mlp.2': True, 'head': True, 'qkv': True, 'out': True}),
    Case(TorchAttention, {'patches': True, 'mlp.0': True, 'mlp.2': True, 'head': True, 'attention.out_proj': True,
                          'attention.in_proj': True}),
    Case(TorchTransformer, {'patches': True, 'mlp.0': True, 'mlp.2': True, 'head': True,
                            'encoder.layers.0.linear1': True, 'encoder.layers.0.linear2': False,
                            'encoder.layers.0.self_attn.out_proj': True, 'encoder.layers.0.self_attn.in_proj': True}),
    Case(NeverCalled, {'conv': True, 'fc': False}, ('auxiliary',)),
    Case(CalledTwice, {'stem': True, 'again': True, 'fc': False}),
    Case(Decoder, {'down': True, 'conv': False, 'fc': True}),
    Case(Standardised, {'body.0': True, 'body.3': False, 'body.8': False}),
    Case(Shapes, {'wide': True, 'depthwise': True, 'grouped': False, 'fc': False}),
    Case(Grey, {'0': True, '2': True, '6': True, '8': False}, shape=(1, 32, 32)),
    Case(Subclasses, {'same': True, 'normed': False, 'spectral': False, 'fc': False},
         computed=('normed', 'spectral')),
)}


def warmed_up(case):
    """Returns the network of a case in evaluation mode, its BatchNorms with statistics, and 16 images of any colour."""
    net, images, random = _warmed_up(case.build, case.shape)
    torch.set_rng_state(random)  # as if it had been made now
    return copy.deepcopy(net), images.clone()


@functools.cache
def _warmed_up(build, shape):
    torch.manual_seed(0)
    net = build()
    images = 1.5 * torch.randn(16, shape[0], 1, 1) + 0.5 * torch.randn(16, *shape)
    reach_weights(net, images)
    with torch.no_grad():
        for _ in range(20):
            net.train()(images)
    return net.eval(), images, torch.get_rng_state()
