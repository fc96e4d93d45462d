"""Who is first and last by the flow of data: several stems or heads, and weights that a function reads."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.env.space import Space
from lib.network.coverage import as_before, inventory_of
from lib.network.records import profile_layers, profile_network
from lib.record.strategy import uniform_strategy
from lib.simulator.budget import Constraint
from lib.simulator.counting import size_of
from lib.simulator.layer import CALLED, ends

SHAPE = (3, 6, 6)


class Net(nn.Module):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)


class TwoStems(Net):  # as RepVGG, and of a crossed ViT
    def __init__(self):
        super().__init__(a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(3, 4, 1), body=nn.Conv2d(4, 4, 1),
                         gate=nn.Linear(4, 4), head=nn.Linear(4, 2), other=nn.Linear(4, 2))

    def forward(self, x):
        x = F.relu(self.a(x) + self.b(x.clone()))
        other = self.other(x.mean((2, 3)))  # called before its end
        x = x + self.body(x)
        x = (x * self.gate(x.mean((2, 3)))[:, :, None, None].sigmoid()).mean((2, 3))
        return {'logits': [(self.head(x) + other) / 2]}


class Written(Net):
    """Outputs written into slices of another tensor; a weight that is normalised and read by a function."""

    def __init__(self):
        super().__init__(table=nn.Linear(2, 4), stem=nn.Conv2d(3, 4, 1), head=nn.Linear(4, 2), tail=nn.Linear(4, 2))

    def forward(self, x):
        position = self.table(x.new_ones(1, 2))  # nothing of the image is in it
        weight = self.stem.weight - self.stem.weight.mean((1, 2, 3), keepdim=True)
        x = F.conv2d(x, weight, self.stem.bias).mean((2, 3)) + position
        out = x.new_zeros(len(x), 4)
        out[:, :2] = self.head(x)
        out[:, 2:].copy_(F.linear(x, self.tail.weight))
        return out


class Again(Net):
    """Its first layer is its last one, too, and the one between is neither."""

    def __init__(self):
        super().__init__(side=nn.Conv2d(3, 3, 1), body=nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return self.side(self.body(self.side(x))).mean((2, 3))


class Reinjected(Net):
    """The image comes back beside features: the layer that reads both is not first."""

    def __init__(self):
        super().__init__(late=nn.Conv2d(7, 4, 1), stem=nn.Conv2d(3, 4, 1), thumb=nn.Conv2d(3, 4, 1))

    def forward(self, x):
        late = self.late(torch.cat([x, self.stem(x)], 1))
        return late.mean((2, 3)) + self.thumb(F.avg_pool2d(x, 2)).mean((2, 3))


@pytest.mark.parametrize(('kind', 'first', 'last'), [
    (TwoStems, {'a', 'b'}, {'head', 'other'}), (Written, {'stem'}, {'head', 'tail'}), (Again, {'side'}, {'side'}),
    (Reinjected, {'stem', 'thumb'}, {'late', 'thumb'})])
@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_first_is_what_reads_the_image_and_last_what_is_returned(kind, first, last, device):
    records = profile_layers(kind().to(device), SHAPE)
    found = [{records[index].name for index in side} for side in ends(records)]
    assert found == [first, last]


def test_several_ends_are_fixed_and_a_search_of_before_goes_on_with_those_of_the_calls():
    found, profile = inventory_of(TwoStems(), SHAPE, True), profile_network(TwoStems(), SHAPE)
    names = ['a', 'b', 'body', 'gate', 'head', 'other']
    budget = [Constraint.of_ratio(size_of(found), 0.9)]
    assert found.names == names and Space.of(found, budget).fixed == {0: [8, -1], 1: [8, -1], 4: [8, 8], 5: [8, 8]}
    assert uniform_strategy(6, 3, linear=True, ends=found.ends) == [[8, -1], [8, -1], [3, 3], [3, 3], [8, 8], [8, 8]]
    before = as_before(found, profile, CALLED)
    assert before.floats == found.floats and Space.of(before, budget).fixed == {0: [8, -1], 4: [8, 8]}


def test_classifiers_of_timm():
    timm = pytest.importorskip('timm')
    for name, first, last in (
            ('deit_tiny_distilled_patch16_224', ['patch_embed.proj'], ['head', 'head_dist']),
            ('mobilenetv3_small_050', ['conv_stem'], ['classifier']),
            ('repvgg_a0', ['stem.conv_kxk.conv', 'stem.conv_1x1.conv'], ['head.fc']),
            ('levit_128s', ['stem.conv1.linear'], ['head.linear', 'head_dist.linear'])):
        records = profile_layers(timm.create_model(name).to('meta'), (3, 224, 224))
        assert [[records[index].name for index in side] for side in ends(records)] == [first, last], name
