"""Quantization of whole networks."""

import copy

import pytest
import torch
from torch import nn

from lib.env.episode import EpisodeSettings
from lib.env.quantize_env import QuantizeEnv
from lib.env.space import Space
from lib.quantize.kmeans import Codebook
from lib.simulator.budget import Constraint
from lib.simulator.counting import model_size
from lib.training.loop import loss_function, train_one_epoch
from lib.utils.quantize_utils import (
    KMeansQuantization,
    LinearQuantization,
    convert_to_quantized,
    quantizable_layers,
    quantized_layers,
    recognise_codebooks,
    weight_counts,
)

PROBE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def train(net, loader, quantization, optimizer, epochs, start=0):
    for epoch in range(start, epochs):
        loader.set_epoch(epoch)
        quantization.before_epoch(epoch, epochs, optimizer)
        train_one_epoch(net, loader, loss_function(), optimizer, 'cpu', quantization.after_step,
                        before_step=quantization.before_step)
        quantization.after_epoch(optimizer)


def sgd(quantization):
    return torch.optim.SGD(quantization.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)


def test_conversion_without_bits_changes_nothing(tiny_net):
    tiny_net.eval()
    before = tiny_net(PROBE)
    names = list(quantizable_layers(tiny_net))
    state = tiny_net.state_dict()
    convert_to_quantized(tiny_net, PROBE)
    assert torch.equal(tiny_net(PROBE), before)
    assert list(quantized_layers(tiny_net)) == names == list(quantizable_layers(tiny_net))
    assert [m.input_quantizer.signed for m in quantized_layers(tiny_net).values()] == [True, False, True, False]
    tiny_net.load_state_dict(state)  # a float state dict fits


def test_a_layer_with_two_names_is_converted_under_both():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    net.append(net[0])
    convert_to_quantized(net, PROBE)
    assert net[0] is net[2]
    assert list(quantized_layers(net)) == ['0']


def test_layers_that_are_never_called_are_named_and_left(caplog):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.used, self.unused = nn.Linear(3, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.used(x.flatten(2).transpose(1, 2))
            return self.attention(x, x, x)[0]

    net = convert_to_quantized(Net(), PROBE)
    assert list(quantized_layers(net)) == ['attention.out_proj', 'attention.in_proj', 'used']
    assert '1 layers keep float weights and inputs in the linear flow: unused (is never called)' in caplog.text


def test_linear_quantization_sets_bits_and_ranges_without_moving_batch_norm(tiny_net):
    convert_to_quantized(tiny_net, PROBE)
    before = copy.deepcopy(tiny_net.bn.state_dict())
    tiny_net.train()
    LinearQuantization(tiny_net, [[8, -1], [4, 5], [4, 5], [8, 8]], PROBE, method='max')
    assert tiny_net.training
    assert all(torch.equal(v, before[k]) for k, v in tiny_net.bn.state_dict().items())
    assert tiny_net.stem.weight_quantizer.range.item() == pytest.approx(tiny_net.stem.weight.abs().max().item())
    tiny_net.eval()
    with torch.no_grad():
        activation = tiny_net.relu(tiny_net.bn(nn.functional.conv2d(PROBE, tiny_net.stem.weight, padding=1)))
    assert tiny_net.depthwise.input_quantizer.range.item() == pytest.approx(activation.max().item(), rel=1e-5)


def test_free_layers_stay_float_until_the_last_epoch_and_clustered_in_it(tiny_net, tiny_loaders):
    strategy = [7, 3, 2, 8]
    quantization = KMeansQuantization(tiny_net, strategy, free_high_bit=True)
    assert quantization.free == ['stem', 'head']
    optimizer = sgd(quantization)
    train(tiny_net, tiny_loaders[0], quantization, optimizer, epochs=1, start=1)  # no epoch: nothing happens
    train_one_epoch(tiny_net, tiny_loaders[0], loss_function(), optimizer, 'cpu', quantization.after_step,
                    before_step=quantization.before_step)
    assert len(tiny_net.stem.weight.unique()) > 2 ** 7
    assert len(tiny_net.pointwise.weight.unique()) <= 4
    train(tiny_net, tiny_loaders[0], quantization, optimizer, epochs=2, start=1)
    for bits, layer in zip(strategy, quantizable_layers(tiny_net).values(), strict=True):
        assert len(layer.weight.unique()) <= 2 ** bits
    assert quantization.complete
    assert set(quantization.state()['codebooks']) == set(quantizable_layers(tiny_net))
    assert len(optimizer.state_dict()['param_groups'][0]['params']) == len(quantization.parameters())


def test_all_trained_values_change(tiny_net, tiny_loaders):
    quantization = KMeansQuantization(tiny_net, [4, 4, 4, 4])
    before = [p.detach().clone() for p in quantization.parameters()]
    weights = {name: layer.weight.detach().clone() for name, layer in quantizable_layers(tiny_net).items()}
    train(tiny_net, tiny_loaders[0], quantization, sgd(quantization), epochs=1)
    assert all(not torch.equal(a, b) for a, b in zip(before, quantization.parameters(), strict=True))
    assert all(not torch.equal(weights[name], layer.weight) for name, layer in quantizable_layers(tiny_net).items())


@pytest.mark.parametrize('strategy', [[3, 2, 4, 5], [8, 3, 7, 2]])
def test_a_checkpoint_brings_codebooks_so_training_goes_on_as_if_never_stopped(strategy, tiny_net, tiny_loaders):
    twin = copy.deepcopy(tiny_net)
    quantization = KMeansQuantization(tiny_net, strategy, free_high_bit=True)
    optimizer = sgd(quantization)
    train(tiny_net, tiny_loaders[0], quantization, optimizer, epochs=4)

    first = KMeansQuantization(twin, strategy, free_high_bit=True)
    stopped = sgd(first)
    for epoch in range(2):  # two epochs of four
        tiny_loaders[0].set_epoch(epoch)
        first.before_epoch(epoch, 4, stopped)
        train_one_epoch(twin, tiny_loaders[0], loss_function(), stopped, 'cpu', first.after_step,
                        before_step=first.before_step)
    state, weights, moments = copy.deepcopy((first.state(), twin.state_dict(), stopped.state_dict()))
    resumed = type(tiny_net)()
    resumed.load_state_dict(weights)
    books = {name: Codebook.from_state_dict(book) for name, book in state['codebooks'].items()}
    second = KMeansQuantization(resumed, state['strategy'], free_high_bit=True, codebooks=books)
    again = sgd(second)
    again.load_state_dict(moments)
    train(resumed, tiny_loaders[0], second, again, epochs=4, start=2)
    for key, value in tiny_net.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_codebooks_are_recognised_in_foreign_weights(tiny_net):
    KMeansQuantization(tiny_net, [3, 2, 4, 5])
    weights = {name: layer.weight.detach().clone() for name, layer in quantizable_layers(tiny_net).items()}
    books = recognise_codebooks(tiny_net)
    assert all(torch.equal(books[name].decode(), weight) for name, weight in weights.items())
    assert [len(book.centroids) <= 2 ** b for book, b in zip(books.values(), [3, 2, 4, 5], strict=True)] == [True] * 4
    assert recognise_codebooks(nn.Sequential(nn.Linear(40, 40))) is None  # more than 256 values
    assert recognise_codebooks(nn.Sequential(nn.Linear(4, 4))) is None  # few values, but no fewer than weights


# ---- layers that begin with one value

def zeroed(net, value=0.0):
    nn.init.constant_(net.head.weight, value)
    return net


def accuracy(net, loader):
    net.eval()
    with torch.no_grad():
        hits = torch.cat([net(images).argmax(1) == labels for images, labels in loader])
    return 100 * hits.float().mean().item()


@pytest.mark.parametrize('value', [0.0, 0.3])
@pytest.mark.parametrize(('free_high_bit', 'bits'), [(False, 3), (True, 3), (True, 8)])
@pytest.mark.parametrize('epochs', [1, 4])
def test_a_layer_of_one_value_is_clustered_once_it_has_values(value, free_high_bit, bits, epochs, tiny_net,
                                                              tiny_loaders, caplog):
    quantization = KMeansQuantization(zeroed(tiny_net, value), [4, 4, 4, bits], free_high_bit=free_high_bit)
    assert 'all weights of head are the same' in caplog.text and not quantization.complete
    train(tiny_net, tiny_loaders[0], quantization, sgd(quantization), epochs=epochs)
    assert quantization.complete and set(quantization.state()['codebooks']) == set(quantizable_layers(tiny_net))
    assert 4 < len(tiny_net.head.weight.unique()) <= 2 ** bits


def test_a_head_of_zeros_learns(tiny_net, tiny_loaders):
    quantization = KMeansQuantization(zeroed(tiny_net), [4, 4, 4, 3])
    train(tiny_net, tiny_loaders[0], quantization, torch.optim.Adam(quantization.parameters(), 0.03), epochs=12)
    assert accuracy(tiny_net, tiny_loaders[1]) > 90  # of four classes; with one centroid 25 for ever


def test_it_goes_on_after_a_stop_like_the_others(tiny_net, tiny_loaders):
    twin = copy.deepcopy(zeroed(tiny_net))
    quantization, strategy = KMeansQuantization(tiny_net, [4, 4, 4, 3]), [4, 4, 4, 3]
    optimizer = sgd(quantization)
    train(tiny_net, tiny_loaders[0], quantization, optimizer, epochs=3)
    first = KMeansQuantization(twin, strategy)
    stopped = sgd(first)
    train(twin, tiny_loaders[0], first, stopped, epochs=1)
    books = {name: Codebook.from_state_dict(state) for name, state in first.state()['codebooks'].items()}
    again = KMeansQuantization(twin, strategy, codebooks=books)
    resumed = sgd(again)
    resumed.load_state_dict(stopped.state_dict())
    train(twin, tiny_loaders[0], again, resumed, epochs=3, start=1)
    assert all(torch.equal(v, twin.state_dict()[k]) for k, v in tiny_net.state_dict().items())


def test_layers_of_one_value_that_cannot_or_need_not_differ_are_clustered_at_once(tiny_net):
    zeroed(tiny_net, 0.25).head.weight.requires_grad_(False)  # frozen, as the filter of an average is
    assert KMeansQuantization(tiny_net, [4, 4, 4, 3]).complete
    tiny_net.head.weight.requires_grad_(True)
    assert KMeansQuantization(zeroed(tiny_net), [4, 4, 4, 3], is_pruned=True).complete  # pruned: zeros stay
    assert KMeansQuantization(nn.Sequential(nn.Conv2d(1, 1, 1)), [4]).complete


def test_pruned_weights_of_one_value_stay_pruned(tiny_net, tiny_loaders):
    zeros = torch.rand(tiny_net.head.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    zeroed(tiny_net, 0.2).head.weight.data[zeros] = 0
    quantization = KMeansQuantization(tiny_net, [4, 4, 4, 3], is_pruned=True)
    assert quantization.unformed == ['head']
    train(tiny_net, tiny_loaders[0], quantization, sgd(quantization), epochs=2)
    assert (tiny_net.head.weight[zeros] == 0).all() and len(tiny_net.head.weight[~zeros].unique()) > 4


def test_an_episode_of_a_search_clusters_what_it_has_learned(tiny_net, tiny_loaders, caplog):
    constraints = [Constraint.of_ratio(model_size(list(weight_counts(tiny_net).values())), 0.25)]
    env = QuantizeEnv(zeroed(tiny_net), *tiny_loaders, Space(constraints),
                      EpisodeSettings(finetune_epoch=2, finetune_lr=0.05))
    first = env.evaluate_strategy([4, 4, 4, 3], 0)
    assert 4 < len(tiny_net.head.weight.unique()) <= 8
    assert env.evaluate_strategy([4, 4, 4, 3], 0) == first and caplog.text.count('are the same') == 1


def test_one_value_alone_makes_no_clustered_network():
    small = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    nn.init.zeros_(small[1].weight)
    assert recognise_codebooks(small) is None
