"""Networks that cannot go through, and what is said; the words about those that can."""

import pytest
import torch
from torch import nn

from lib.data.batches import EpochBatches
from lib.network.check import check_network
from lib.network.conversion import listed
from lib.network.coverage import describe_layers
from lib.network.reach import reach_weights
from lib.network.records import profile_layers
from tests.own_models import CLASSES, ZOO

SHAPE = (3, 8, 8)


class Returning(nn.Module):
    """Returns `result(self, logits)`."""

    def __init__(self, result):
        super().__init__()
        self.fc, self.bn, self.drop = nn.Linear(192, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)
        self.result = result

    def forward(self, x):
        return self.result(self, self.drop(self.bn(self.fc(x.flatten(1)))))


def images_in_training(net, y):
    return (y, y) if net.training else y


@pytest.mark.parametrize(('result', 'words'), [
    (lambda net, y: (y, y), 'returns a tuple of 2 in evaluation mode; expected logits'),
    (lambda net, y: [y], 'returns a list of 1'),
    (lambda net, y: {'logits': y}, 'returns a dict of 1 in evaluation mode; .* wrap it in a module'),
    (lambda net, y: None, 'returns a NoneType in evaluation mode'),
    (images_in_training, 'returns a tuple of 2 in training mode'),
    (lambda net, y: y[:, :7], 'has 7 outputs, the data have 10 classes: .* --num_classes 7'),
    (lambda net, y: y[:, :, None, None], r'shape \(2, 10, 1, 1\) for two images in .*; expected logits \(2, 10\)'),
    (lambda net, y: y[0], r'shape \(10,\) for two images'),
    (lambda net, y: y.view(3, -1), r'Returning fails in evaluation mode on two images of 3x8x8 .*RuntimeError: shape'),
    (lambda net, y: y if not net.training else y / net.missing, 'fails in training mode .*AttributeError.*missing'),
])
def test_what_no_script_can_use_is_refused_in_one_line(result, words):
    net = Returning(result)
    net.fc.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=words) as error:
        check_network(net, SHAPE, 10)
    assert '\n' not in str(error.value)
    assert net.training and not net.fc.training and not net.fc._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_sound_network_is_left_as_it_was():
    net = Returning(lambda net, y: y)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    random = torch.get_rng_state()
    check_network(net, SHAPE, 10)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


class OddConv(nn.Conv2d):
    """A convolution that `odd(self, convolve, x)` calls."""

    def __init__(self, odd):
        super().__init__(3, 3, 3, padding=1)
        self.odd = odd

    def forward(self, x, *args):
        return self.odd(self, super().forward, x)


class OddLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))


class Around(nn.Module):
    """Calls an odd layer so that logits come all the same."""

    def __init__(self, layer, call):
        super().__init__()
        self.body, self.fc, self.call = nn.Sequential(layer), nn.Linear(192, 10), call

    def forward(self, x):
        return self.fc(self.call(self.body[0], x).flatten(1))


@pytest.mark.parametrize(('layer', 'call', 'words'), [
    (OddConv(lambda conv, f, x: (f(x), x)), lambda conv, x: conv(x)[0], '.OddConv. returns a tuple of 2'),
    (OddConv(lambda conv, f, x: {'out': f(x)}), lambda conv, x: conv(x)['out'], 'returns a dict of 1'),
    (OddConv(lambda conv, f, x: (f(x),) if conv.training else f(x)), lambda conv, x: torch.as_tensor(conv(x)[0])
     if conv.training else conv(x), 'returns a tuple of 1'),
    (OddConv(lambda conv, f, xs: f(xs[0])), lambda conv, x: conv([x]), '.OddConv. takes a list of 1'),
    (OddConv(lambda conv, f, x: f(x)), lambda conv, x: conv(x=x), 'is called without a positional input'),
    (OddConv(lambda conv, f, x: f(x).flatten(1)), lambda conv, x: conv(x), r'returns a tensor of shape \(2, 192\)'),
    (OddLinear(192, 192), lambda fc, x: fc(x), r'takes a tensor of shape \(2, 3, 8, 8\), and has 192 input features'),
])
def test_layers_that_are_none_for_the_flows_are_refused_by_name(layer, call, words):
    with pytest.raises(ValueError, match=f'the layer body.0 .*{words}.*derive its class from nn.Module') as error:
        check_network(Around(layer, call), SHAPE, 10)
    assert '\n' not in str(error.value)


def test_a_hook_that_makes_a_tuple_is_found_too():
    net = Around(nn.Conv2d(3, 3, 3, padding=1), lambda conv, x: conv(x)[0])
    net.body[0].register_forward_hook(lambda layer, args, output: (output, args[0]))
    with pytest.raises(ValueError, match='body.0 .Conv2d. returns a tuple of 2'):
        check_network(net, SHAPE, 10)


# ---- a batch of one image, and other types of numbers

@pytest.mark.parametrize(('net', 'mode', 'words'), [
    (Returning(lambda net, y: y), 'training', 'fails in training mode on one image of 3x8x8.*more than 1 value'),
    (Around(nn.Conv2d(3, 3, 3, padding=1), lambda conv, x: conv(x)), None, None),
])
def test_a_batch_of_one_image(net, mode, words):
    check_network(net, SHAPE, 10)
    check_network(net, SHAPE, 10, {'evaluation'})
    if mode is None:
        check_network(net, SHAPE, 10, {'training', 'evaluation'})
        return
    with pytest.raises(ValueError, match=words):
        check_network(net, SHAPE, 10, {mode})


def test_squeezing_away_the_batch_is_refused_where_one_image_comes():
    net = Around(nn.Conv2d(3, 10, 8), lambda conv, x: conv(x))
    net.forward = lambda x: net.body(x).squeeze()
    check_network(net, SHAPE, 10)
    with pytest.raises(ValueError, match=r'shape \(10,\) for one image in evaluation mode; expected logits \(1, 10\)'):
        check_network(net, SHAPE, 10, {'evaluation'})


@pytest.mark.parametrize(('count', 'size', 'drop', 'world', 'smallest'), [
    (360, 359, False, 1, 1), (360, 359, True, 1, 359), (10, 4, False, 1, 2), (8, 4, False, 1, 4), (3, 8, False, 1, 3),
    (1, 8, False, 1, 1), (9, 4, False, 2, 1), (10, 4, False, 2, 1), (12, 6, False, 4, 1), (16, 8, False, 4, 2)])
def test_the_smallest_batch(count, size, drop, world, smallest):
    shards = [EpochBatches(count, size, shuffle=False, drop_last=drop, shard=(rank, world)) for rank in range(world)]
    assert [batches.smallest for batches in shards] == [smallest] * world
    assert min(len(part) for batches in shards for part in batches) == smallest


def test_input_of_another_shape():
    with pytest.raises(ValueError, match='fails in evaluation mode on two images of 1x8x8 .*expected.*3 channels'):
        check_network(nn.Sequential(nn.Conv2d(3, 4, 3)), (1, 8, 8), 4)


def test_nothing_to_quantize():
    with pytest.raises(ValueError, match='Sequential has 0 convolutions and linear layers .*nothing to quantize'):
        check_network(nn.Sequential(nn.Flatten()), SHAPE, 192)

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(192, 10)

        def forward(self, x):
            return x.flatten(1) @ self.fc.weight.t()

    with pytest.raises(ValueError, match='Idle has 1 convolutions and linear layers .*calls none of them'):
        check_network(Idle(), SHAPE, 10)


def test_lazy_layers_get_their_shapes():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10))
    check_network(net, SHAPE, 10)
    assert [record.num_weights for record in profile_layers(net, SHAPE)] == [108, 1440]
    assert net[1].running_mean.eq(0).all()
    net.spare = nn.LazyLinear(3)
    net.forward = lambda x: net[4](net[3](net[2](net[1](net[0](x)))))
    with pytest.raises(ValueError, match='spare.weight has no shape'):
        check_network(net, SHAPE, 10)


# ---- the report


def report(name, linear, reach='layers'):
    case = ZOO[name]
    net = reach_weights(case.build(), torch.randn(2, *case.shape), reach)
    return describe_layers(net, profile_layers(net, case.shape), linear)


@pytest.mark.parametrize('name', ['Residual', 'SqueezeExcite', 'OneActivation', 'ConvNext', 'Shapes'])
def test_a_network_without_anything_special_takes_one_line(name):
    net = ZOO[name].build()
    count = sum(p.numel() for p in net.parameters() if p.dim() > 1)
    layers = len(ZOO[name].signs)
    for linear, flow in ((True, 'linear'), (False, 'K-means')):
        assert report(name, linear) == [f'{layers} layers with {count:,} weights are quantized in the {flow} flow']


def test_what_is_special_is_named():
    # patches 3072, position 17 x 16, in_proj 48 x 16, out_proj 16 x 16, mlp 2 x 512, head 5 x 16
    assert report('TorchAttention', True) == [
        '4 layers with 4,176 weights are quantized in the linear flow',
        'never called: attention.out_proj; they stay float',
        'stays float, for it belongs to no Conv2d and no Linear: position of TorchAttention (1x17x16), '
        'attention.in_proj_weight of MultiheadAttention (48x16)']
    assert report('TorchAttention', False) == [
        '5 layers with 4,432 weights are quantized in the K-means flow',
        'never called: attention.out_proj; their weights are clustered all the same',
        'stays float, for it belongs to no Conv2d and no Linear: position of TorchAttention (1x17x16), '
        'attention.in_proj_weight of MultiheadAttention (48x16)']
    for linear, flow in ((True, 'linear'), (False, 'K-means')):
        assert report('TorchAttention', linear, 'weights') == [
            f'6 layers with 5,200 weights are quantized in the {flow} flow',
            'stays float, for it belongs to no Conv2d and no Linear: position of TorchAttention (1x17x16)']
    assert report('Standardised', True, 'weights') == ['3 layers with 832 weights are quantized in the linear flow']


def test_layers_called_several_times_and_of_other_kinds():
    assert report('CalledTwice', True)[1:] == ['called several times: again (3)']
    assert report('Branches', False)[1:] == ['called several times: mix (2)']
    assert report('Decoder', True)[1:] == [
        'stays float, for it belongs to no Conv2d and no Linear: up.weight of ConvTranspose2d (8x6x2x2), '
        'rows.weight of Conv1d (8x8x3)']
    assert report('Standardised', True)[1:] == [
        'stays float, for StandardisedConv has a forward of its own: body.3']
    assert report('Standardised', False) == ['3 layers with 832 weights are quantized in the K-means flow']
    # 3 x 8 x 9 and 5 x 8 in plain layers; a normalised weight is a direction (8 x 8 x 9) and 8 lengths (8 x 1 x 1 x 1)
    assert report('Subclasses', True) == ['4 layers with 1,408 weights are quantized in the linear flow']
    assert report('Subclasses', False) == [
        '2 layers with 256 weights are quantized in the K-means flow',
        'stays float, for ParametrizedConv2d computes its weight: normed, spectral']


def test_long_lists_are_counted():
    assert listed(map(str, range(8))) == '0, 1, 2, 3, 4, 5, 6, 7'
    assert listed(map(str, range(12))) == '0, 1, 2, 3, 4, 5 and 6 more'


def test_shared_weights_are_named():
    net = nn.Sequential(nn.Linear(CLASSES, CLASSES), nn.ReLU(), nn.Linear(CLASSES, CLASSES))
    net[2].weight = net[0].weight
    records = profile_layers(net, (1, 1, CLASSES))
    assert describe_layers(net, records, False) == ['1 layers with 25 weights are quantized in the K-means flow',
                                                    'shares the weight of 0: 2']
    assert describe_layers(net, records, True) == ['2 layers with 25 weights are quantized in the linear flow']
