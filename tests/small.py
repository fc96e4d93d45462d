"""A network of five layers with the layer names of a ResNet, for commands that need not have twenty: `--model_file`."""

from collections import OrderedDict

from torch import nn


class Block(nn.Module):
    """Two convolutions and what goes past them."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x):
        return self.relu2(self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x))))) + x)


def conv_bn(inputs, outputs, stride=1):
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(OrderedDict(conv1=conv, bn1=nn.BatchNorm2d(outputs), relu=nn.ReLU()))


def build(num_classes):
    return nn.Sequential(OrderedDict(
        stem=conv_bn(3, 16), layer1=Block(16), layer2=conv_bn(16, 32, 2), pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(), linear=nn.Linear(32, num_classes)))
