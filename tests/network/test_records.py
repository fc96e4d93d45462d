import pytest
import torch
import torchvision
from torch import nn

from lib.network.records import profile_layers
from lib.simulator.layer import LayerRecord
from tests.meta import on_meta


class Conv(nn.Conv2d):
    """A subclass, as quantized layers are."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = Conv(8, 8, (1, 5), padding=(0, 2), groups=8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)
        self.spare = nn.Conv2d(4, 4, 1)

    def forward(self, image):
        x = self.drop(self.depthwise(input=self.norm(self.stem(image))))
        return self.head(x.mean((2, 3))), {'features': x}


def test_records_of_a_small_network():
    assert profile_layers(Net(), (3, 32, 48)) == [
        LayerRecord('stem', 'conv', 3, 8, (3, 3), (2, 2), 1, 32, 48, 16, 24, num_weights=216),
        LayerRecord('depthwise', 'conv', 8, 8, (1, 5), (1, 1), 8, 16, 24, 16, 24, num_weights=40),
        LayerRecord('head', 'linear', 8, 10, (1, 1), (1, 1), 1, 1, 1, 1, 1, num_weights=80),
        LayerRecord('spare', 'conv', 4, 4, (1, 1), (1, 1), 1, 0, 0, 0, 0, num_weights=16, calls=0),
    ]


def test_the_model_and_the_random_states_are_left_alone():
    model = Net().train()
    model.norm.eval()  # frozen batch norm in a network that trains
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    profile_layers(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model.drop.training and not model.norm.training
    assert model.stem.weight.grad.eq(1).all() and model.depthwise.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_shared_layer_appears_once_and_its_calls_are_counted():
    layer = nn.Conv2d(4, 4, 3, padding=1)
    (record,) = profile_layers(nn.Sequential(layer, nn.ReLU(), layer, layer), (4, 8, 8))
    assert (record.name, record.calls, record.in_h, record.out_w) == ('0', 3, 8, 8)
    assert record.macs == 3 * 8 * 8 * 4 * 4 * 9


def test_calls_of_several_sizes_become_one_call_with_all_positions():
    layer = nn.Conv2d(4, 4, 3, stride=2, padding=1)
    (record,) = profile_layers(nn.Sequential(layer, layer), (4, 8, 16))
    assert (record.calls, record.in_w, record.out_w) == (1, 1, 1)
    assert record.in_h == 8 * 16 + 4 * 8 and record.out_h == 4 * 8 + 2 * 4
    assert record.macs == (4 * 8 + 2 * 4) * 4 * 4 * 9


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.mlp = nn.Linear(6, 24)
        self.crops = nn.Conv2d(6, 6, 1)

    def forward(self, image):
        patches = self.patches(image)
        tokens = patches.flatten(2).transpose(1, 2)
        self.crops(patches.reshape(4, 6, 2, 2))  # four crops in one internal batch
        return self.mlp(self.attention(tokens, tokens, tokens)[0])


def test_positions_of_a_transformer_and_internal_batches():
    records = {record.name: record for record in profile_layers(Tokens(), (3, 16, 16))}
    assert list(records) == ['patches', 'attention.out_proj', 'mlp', 'crops']
    assert (records['mlp'].in_h, records['mlp'].out_h, records['mlp'].out_w) == (16, 16, 1)
    assert records['mlp'].macs == 16 * 6 * 24
    assert records['attention.out_proj'].calls == 0 and records['attention.out_proj'].num_weights == 36
    assert (records['crops'].calls, records['crops'].in_h, records['crops'].in_w) == (4, 2, 2)


def test_a_model_on_the_meta_device_and_one_in_half_precision():
    expected = profile_layers(Net(), (3, 32, 32))
    assert profile_layers(Net().to('meta'), (3, 32, 32)) == expected
    assert profile_layers(Net().bfloat16(), (3, 32, 32)) == expected


def test_published_counts_of_torchvision_models():
    with on_meta():
        resnet, vit = torchvision.models.resnet50(), torchvision.models.vit_b_16()
    layers = profile_layers(resnet, (3, 224, 224))
    assert len(layers) == 54 and sum(layer.num_weights for layer in layers) == 25_502_912
    assert sum(layer.macs for layer in layers) == 4_089_184_256
    layers = profile_layers(vit, (3, 224, 224))
    assert [layer.name.split('.')[-1] for layer in layers if not layer.calls] == ['out_proj'] * 12  # read, not called
    assert {layer.in_h for layer in layers if 'mlp' in layer.name} == {197}


def test_a_model_without_layers():
    assert profile_layers(nn.Flatten(), (3, 4, 4)) == []


def test_a_failing_forward_pass_names_the_input_shape_and_cleans_up():
    model = Net()
    with pytest.raises(ValueError, match=r'Net fails on one image of 1x32x32 \(channels x height x width\)'):
        profile_layers(model, (1, 32, 32))
    assert model.training and not any(module._forward_hooks for module in model.modules())
