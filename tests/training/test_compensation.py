import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.network.conversion import convert_to_quantized, quantizable_layers, quantized_layers
from lib.quantize.dorefa import DoReFaWeightQuantizer
from lib.quantize.lsq import LSQQuantizer
from lib.training.compensation import PASSES, Rounding, linear_layers, nearest_on, round_codebooks, round_linear
from lib.training.moments import calibration_batches, collect_moments
from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization
from tests.env.environments import ENVS

COMPENSATED = Rounding('compensated', 96)


class Network(nn.Module):
    """Convolutions of all kinds, one without BatchNorm, and one layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU())
        self.again, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.depth(self.stem(x)).mean((2, 3))
        return self.head(self.again(self.again(x).relu()).relu())


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(96, 3, 8, 8, generator=generator) @ torch.randn(8, 8, generator=generator)).split(48)


@pytest.fixture
def model(images):
    torch.manual_seed(0)
    model = Network()
    for _ in range(60):  # running statistics like those of a trained network
        model(torch.cat(images))
    return model.eval()


def distance(model, other, images):
    """Mean squared difference of the logits, relative to the variance of those of `other`."""
    with torch.no_grad():
        ours, theirs = (each(torch.cat(images)) for each in (model, other))
    return float((ours - theirs).square().mean() / theirs.var(0).mean())


@pytest.mark.parametrize('bits', [2, 3, 5])
def test_codebooks_keep_the_outputs_better_than_k_means(model, images, bits):
    plain, rounded = copy.deepcopy(model), copy.deepcopy(model)
    KMeansQuantization(plain, [bits] * 5)
    names = list(quantizable_layers(model))
    books = round_codebooks(rounded, dict.fromkeys(names, bits), images, COMPENSATED)
    assert list(books) == names
    for name, book in books.items():
        weight = rounded.get_submodule(name).weight
        assert torch.equal(weight, book.decode()) and len(weight.unique()) <= 2**bits
    assert distance(rounded, model, images) < 0.6 * distance(plain, model, images)
    for key, value in model.state_dict().items():
        if 'running' in key or 'batches' in key:
            assert torch.equal(rounded.state_dict()[key], value), key
    assert not rounded.training and not any(module._forward_hooks for module in rounded.modules())


@pytest.mark.parametrize('bits, a_bits', [(1, 8), (3, 4), (4, -1)])
@pytest.mark.parametrize('channel', [False, True])
def test_linear_weights_lie_on_their_grids(model, images, bits, a_bits, channel):
    model = convert_to_quantized(model, images[0])
    for layer in quantized_layers(model).values():
        layer.weight_quantizer.channels = len(layer.weight) if channel else None
    networks = []
    for rounding in (Rounding(), COMPENSATED):
        network = copy.deepcopy(model)
        LinearQuantization(network, [[bits, a_bits]] * 5, images[0], method='mse')
        if rounding.needs_images:
            round_linear(network, images, rounding, float_model=model, method='mse')
        networks.append(network)
    plain, rounded = networks
    assert distance(rounded, model, images) < (1.0 if bits == 1 else 0.8) * distance(plain, model, images)
    for name, layer in quantized_layers(rounded).items():
        codes, scale = layer.weight_quantizer.to_int(layer.weight)
        torch.testing.assert_close(layer.weight, codes * scale, rtol=1e-6, atol=0, msg=name)
        assert not torch.equal(layer.weight, quantized_layers(model)[name].weight)


class Deep(nn.Module):
    """So many layers that several of them share a pass over the images; the errors of all go through to the end."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12, bias=False) for _ in range(4 * PASSES))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, x):
        x = x.flatten(1)[:, :12]
        for layer in self.layers:
            x = 1.26 * F.leaky_relu(layer(x), 0.5)
        return x


@pytest.mark.parametrize('bits', [4, 6])
def test_an_error_is_made_good_once_in_a_deep_network(images, bits):
    torch.manual_seed(0)
    model = Deep().eval()
    names, plain, rounded = list(quantizable_layers(model)), copy.deepcopy(model), copy.deepcopy(model)
    KMeansQuantization(plain, [bits] * len(names))
    round_codebooks(rounded, dict.fromkeys(names, bits), images, COMPENSATED)
    assert distance(rounded, model, images) < 0.2 * distance(plain, model, images)


def test_biases_take_over_the_mean_error(model, images):
    rounded, names = copy.deepcopy(model), ['again', 'head']
    round_codebooks(rounded, dict.fromkeys(names, 1), images, Rounding(bias_correction=True, calibration_images=96))
    ours, theirs = (network(torch.cat(images)).mean(0) for network in (rounded, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    plain = copy.deepcopy(model)
    KMeansQuantization(plain, [8, 8, 8, 1, 1])
    assert not torch.allclose(plain(torch.cat(images)).mean(0), theirs, atol=1e-2)


def test_pruned_zeros_stay(model, images):
    with torch.no_grad():
        for layer in quantizable_layers(model).values():
            layer.weight[layer.weight.abs() < layer.weight.abs().median()] = 0
    rounded = copy.deepcopy(model)
    books = round_codebooks(rounded, dict.fromkeys(quantizable_layers(model), 2), images, COMPENSATED, is_pruned=True)
    for name, layer in quantizable_layers(model).items():
        assert torch.equal(rounded.get_submodule(name).weight == 0, layer.weight == 0)
        assert len(books[name].centroids) <= 4


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_nearest_on_a_learned_step(bits):
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for quantizer in (LSQQuantizer(bits), LSQQuantizer(bits, channels=4)):
        quantizer.calibrate(weight)
        nearest, expected = nearest_on(quantizer, weight), quantizer(weight).reshape(2, 2, 27)
        columns = weight.reshape(2, 2, 27).double()
        found = torch.stack([nearest(columns[..., j]) for j in range(27)], 2)
        torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=0)


def test_levels_that_depend_on_all_weights_are_refused():
    with pytest.raises(ValueError, match='DoReFaWeightQuantizer has no grid of its own'):
        nearest_on(DoReFaWeightQuantizer(3), torch.randn(4, 3, 3, 3))


def test_moments_are_those_of_the_whole_matrix(model, images):
    layers = {'again': model.again, 'depth.2': model.depth[2]}
    seen = []
    handle = model.again.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    model.stem[1].train()  # with the statistics of the batch
    for batch in images:
        copy.deepcopy(model)(batch)
    handle.remove()
    rows = torch.cat(seen)
    found = collect_moments(model.eval(), layers, images)['again']
    torch.testing.assert_close(found.second[0], rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.mean[0], rows.mean(0), rtol=1e-4, atol=1e-6)


def test_kept_statistics_are_those_that_images_are_normalised_by(model, images):
    seen = []
    handle = model.again.register_forward_pre_hook(lambda _, args: seen.append(args[0].double()))
    for batch in images:
        model.eval()(batch)
    handle.remove()
    rows, before = torch.cat(seen), copy.deepcopy(model.stem[1].state_dict())
    found = collect_moments(model, {'again': model.again}, images, keep_bn=True)['again']
    torch.testing.assert_close(found.second[0], rows.mT @ rows / len(rows), rtol=1e-4, atol=1e-6)
    rounding = Rounding('compensated', keep_bn=True)
    round_codebooks(model, dict.fromkeys(quantizable_layers(model), 2), images, rounding)
    rounding.estimate_batch_norm(model, None, 'cpu')  # does not ask for images
    assert all(torch.equal(value, before[name]) for name, value in model.stem[1].state_dict().items())


def test_calibration_images_are_the_first_of_an_epoch_in_batches_of_at_least_2():
    batches = [(torch.full((100, 1), float(number)), None) for number in range(3)]
    loader = type('Loader', (list,), {'set_epoch': lambda self, epoch: None})(batches)
    found = calibration_batches(loader, 257)
    assert [len(batch) for batch in found] == [86, 86, 85] and torch.equal(found[0], torch.zeros(86, 1))
    with pytest.raises(ValueError, match='1 calibration images: expected at least 2'):
        calibration_batches(type(loader)([(torch.zeros(1, 1), None)]), 4)


@pytest.mark.parametrize('flow', ENVS)
def test_a_search_rounds_each_layer_and_bits_once(flow, tiny_net, tiny_loaders, monkeypatch):
    settings = {'finetune_flag': False, 'rounding': Rounding('compensated', 64)}
    env = ENVS[flow](tiny_net, tiny_loaders, **settings)
    strategy = [[3, 4]] * len(env.layers()) if env.space.pairs else [3] * len(env.layers())
    first = env.evaluate_strategy(strategy)
    state = {key: value.clone() for key, value in env.model.state_dict().items()}
    monkeypatch.setattr('lib.training.compensation.Problem.round', None)
    again = env.evaluate_strategy(strategy)
    assert again == first
    for key, value in env.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    monkeypatch.undo()
    assert env.quantize_finally(strategy, tiny_loaders[0]).describe()['strategy'] == strategy
    assert not torch.equal(env.model.head.weight, state['head.weight'])
    name = next(iter(env.layers()))
    with env.float_network() as network:
        before = {key: value.clone() for key, value in network.named_parameters() if 'quantizer' not in key}
        with env.layer_at(name, w_bit=3):
            assert not torch.equal(env.layers()[name].weight, before[f'{name}.weight'])
        for key, value in before.items():
            assert torch.equal(network.get_parameter(key), value), key


def test_what_cannot_be_compensated_is_named(model, images, caplog):
    model = convert_to_quantized(model, images[0])
    LinearQuantization(model, [[4, 4]] * 5, images[0])
    model.head.computes_weight = True
    assert 'head' not in linear_layers(model)
    assert 'head keep rounding to nearest' in caplog.text


@pytest.mark.parametrize('settings, message', [({'rounding': 'up'}, 'nearest, compensated'),
                                               ({'calibration_images': 1}, 'at least 2')])
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Rounding(**settings)
