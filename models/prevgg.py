"""VGG (Simonyan & Zisserman, 2015) with batch norm and ReLU before every convolution, as ProQHA used it."""

from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from models._blocks import PreActivation, QuantizedPart, init_weights, pre_activation_parts
from models.registry import register

CHANNELS = (64, 128, 256, 512, 512)  # of the convolutions of the five stages
# Number of convolutions in each stage, by the depth of the network: configurations A, D and E of the paper's table 1.
STAGES = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
POOLED = 7
HIDDEN = 4096


class PreActVGG(nn.Module):
    """VGG in pre-activation order; the batch norm and the ReLU of the first convolution act on the image itself.

    After the last pooling the classifier goes on in the same order, ReLU before linear layer, without batch norm. Keys:
    `features.stageN.M.norm`, `features.stageN.M.conv`, `classifier.linear1`, `classifier.linear2`, `classifier.output`.
    """

    def __init__(self, depth: int, num_classes: int = 1000):
        super().__init__()
        self.features, before = nn.Sequential(), 3
        for i, (channels, convolutions) in enumerate(zip(CHANNELS, STAGES[depth], strict=True), start=1):
            units = [PreActivation(before, channels, 3)]
            units += [PreActivation(channels, channels, 3) for _ in range(convolutions - 1)]
            self.features.add_module(f'stage{i}', nn.Sequential(*units, nn.MaxPool2d(2)))
            before = channels
        self.pool = nn.Sequential(OrderedDict(average=nn.AdaptiveAvgPool2d(POOLED), output=nn.Identity()))
        self.classifier = nn.Sequential(OrderedDict(
            relu1=nn.ReLU(), linear1=nn.Linear(before * POOLED**2, HIDDEN),
            relu2=nn.ReLU(), linear2=nn.Linear(HIDDEN, HIDDEN),
            relu3=nn.ReLU(), output=nn.Linear(HIDDEN, num_classes)))
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))

    def quantized_parts(self) -> list[QuantizedPart]:
        """Return all convolutions but the first, and both hidden linear layers; all else stays float."""
        hidden = [QuantizedPart(f'classifier.linear{i}', f'classifier.relu{i}') for i in (1, 2)]
        return pre_activation_parts(self)[1:] + hidden


for depth in STAGES:
    register(f'prevgg{depth}')(partial(PreActVGG, depth))
