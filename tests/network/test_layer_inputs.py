import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.network.conversion import convert_to_quantized, quantizable_layers, quantized_layers
from lib.network.layer_inputs import POSITIONS, from_matrix, rows, seeing_inputs, weight_matrix
from lib.network.reach import reach_weights
from models.tensorflow import SameConv2d

CONVOLUTIONS = {
    'plain': nn.Conv2d(3, 4, 3), 'padded': nn.Conv2d(3, 4, 3, padding=1), 'strided': nn.Conv2d(4, 6, (3, 2), stride=2),
    'dilated': nn.Conv2d(4, 6, 3, dilation=2, padding=2), 'grouped': nn.Conv2d(4, 6, 3, groups=2, padding=1),
    'depthwise': nn.Conv2d(4, 8, 3, groups=4), 'pointwise': nn.Conv2d(4, 6, 1, stride=2),
    'tensorflow': SameConv2d(4, 6, 3, stride=2, padding=1),
    'same': nn.Conv2d(4, 6, 4, padding='same'), 'circular': nn.Conv2d(4, 6, 3, padding=1, padding_mode='circular'),
}


@pytest.mark.parametrize('name', CONVOLUTIONS)
@pytest.mark.parametrize('memory', [torch.contiguous_format, torch.channels_last])
def test_rows_times_weights_are_the_outputs_of_a_convolution(name, memory):
    layer = CONVOLUTIONS[name]
    x = torch.randn(5, layer.in_channels, 7, 8).to(memory_format=memory)
    found = torch.cat(list(rows(layer, x)), dim=1)
    outputs = found @ weight_matrix(layer, layer.weight).mT  # (G, n, O)
    expected = layer(x) - layer.bias.view(-1, 1, 1)
    assert found.shape[1] == len(x) * expected[0, 0].numel()
    torch.testing.assert_close(outputs.transpose(1, 2).reshape(len(layer.weight), -1),
                               expected.transpose(0, 1).reshape(len(layer.weight), -1), rtol=1e-4, atol=1e-5)
    assert torch.equal(from_matrix(layer, weight_matrix(layer, layer.weight)), layer.weight)


def test_rows_of_a_linear_layer():
    x = torch.randn(5, 7, 6)
    assert torch.equal(next(rows(nn.Linear(6, 2), x))[0], x.flatten(0, 1))


@pytest.mark.parametrize('layer', [nn.Conv2d(1, 1, 1), nn.Linear(1, 1)])
def test_of_many_positions_others_are_drawn_in_every_image_and_the_same_for_a_seed(layer):
    """What happens at a single position, such as a corner, is seen in some images."""
    positions = torch.arange(20.0 * 20)
    x = positions.reshape(20, 20, 1).expand(128, 20, 20, 1)
    x = x.permute(0, 3, 1, 2) if isinstance(layer, nn.Conv2d) else x
    first, again, other = (next(rows(layer, x, seed)).reshape(128, POSITIONS) for seed in (3, 3, 4))
    assert all(len(image.unique()) == POSITIONS for image in first) and len(first.unique()) == 400
    assert torch.equal(first, again) and not torch.equal(first, other)
    counts = torch.stack([(first == position).sum() for position in positions])
    assert counts.max() < 3 * counts.float().mean()


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.attention = Standardised(3, 8, 3), nn.MultiheadAttention(8, 2, batch_first=True)
        self.matrix, self.head = nn.Parameter(torch.randn(8, 5)), nn.Linear(5, 2)

    def forward(self, x):
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        x = self.attention(x, x, x, need_weights=False)[0]
        return self.head(x @ self.matrix).mean(1)


@pytest.mark.parametrize('linear', [False, True])
def test_layers_whose_weights_others_read_are_seen(linear):
    torch.manual_seed(0)
    model, images = Network().eval(), torch.randn(2, 3, 6, 6)
    reach_weights(model, images)
    if linear:
        convert_to_quantized(model, images)
        layers = quantized_layers(model)
        for layer in layers.values():
            layer.w_bit, layer.a_bit = 8, 3
    else:
        layers = quantizable_layers(model)
    seen = {}
    with seeing_inputs(model, layers, seen.__setitem__):
        model(images)
    assert sorted(seen) == sorted(layers) and len(layers) == 5
    for name, layer in layers.items():
        inputs = torch.cat(list(rows(layer, seen[name])), dim=1)
        assert inputs.shape[2] == weight_matrix(layer, layer.weight).shape[2], name
        if linear:  # what the layer multiplies: quantized already
            assert len(seen[name].unique()) <= 2**3, name
