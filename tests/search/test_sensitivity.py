"""Sensitivities against doing it by hand, explicit Hessians and gradients of single images."""

import copy
import itertools
import logging

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.data.tensor_loader import TensorLoader
from lib.network.layer_inputs import weight_matrix
from lib.quantize.kmeans import fit_codebook
from lib.record.arrays import read_npz, write_npz
from lib.search import sensitivity
from lib.search.allocation import GreedySearcher, ILPSearcher
from lib.search.curvature import hessian, measure_curvature
from lib.search.sensitivity import draw_images, measure_sensitivity
from lib.search.sensitivity_file import read_or_measure
from lib.training.compensation import Rounding
from lib.utils.quantize_utils import (
    calibrate,
    quantizable_layers,
    quantized_layers,
)
from tests.env import environments

IMAGES = 20  # all of the validation loader


def kmeans_env(net, loaders, **settings):
    return environments.kmeans_env(net, loaders, **{'finetune_flag': False, **settings})


def linear_env(net, loaders, **settings):
    return environments.linear_env(net, loaders, **{'finetune_flag': False, **settings})


ENVS = {'kmeans': kmeans_env, 'linear': linear_env}


@pytest.fixture
def trained(tiny_net, tiny_loaders):
    """A network with losses and BatchNorm statistics that mean something."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(tiny_net.parameters(), 1e-2)
    for epoch in range(3):
        tiny_loaders[0].set_epoch(epoch)
        for images, labels in tiny_loaders[0]:
            optimizer.zero_grad()
            F.cross_entropy(tiny_net(images), labels).backward()
            optimizer.step()
    tiny_net.zero_grad()
    return tiny_net


def val_images(loaders):
    return (torch.cat(parts) for parts in zip(*loaders[1], strict=True))


def loss_by_hand(net, loaders):
    images, labels = val_images(loaders)
    with torch.no_grad():
        return F.cross_entropy(net.eval()(images), labels).item()


# ---- 'loss' ----

def test_the_loss_of_one_clustered_layer_is_measured(trained, tiny_loaders):
    floats = copy.deepcopy(trained)
    env = kmeans_env(trained, tiny_loaders, seed=5)
    found = measure_sensitivity(env, 'loss', num_images=IMAGES)
    float_loss = loss_by_hand(copy.deepcopy(floats), tiny_loaders)
    for index, name in enumerate(quantizable_layers(floats)):
        for bits in (1, 2, 5):
            net = copy.deepcopy(floats)
            weight = net.get_submodule(name).weight
            weight.data = fit_codebook(weight.data, bits, max_iter=3).decode()
            rise = loss_by_hand(net, tiny_loaders) - float_loss
            assert found.table[index, bits - 1, 7] == pytest.approx(rise, abs=2e-6)
    assert found.table[:, 0, 7].max() > 0.05  # there is something to see
    assert np.isnan(found.table[:, :, :7]).all()
    assert (found.forwards, found.backwards) == (IMAGES * (1 + 4 * 8), 0)


def test_the_losses_of_quantized_weights_and_of_a_quantized_input_add_up(trained, tiny_loaders):
    env = linear_env(trained, tiny_loaders, min_bit=2, max_bit=6)
    floats = copy.deepcopy(trained)
    found = measure_sensitivity(env, 'loss', num_images=IMAGES)

    def loss_of(name, which, bits):
        net = copy.deepcopy(floats)
        for layer in quantized_layers(net).values():
            layer.w_bit = layer.a_bit = None
        setattr(net.get_submodule(name), which, bits)
        calibrate(net, tiny_loaders[0].first_batch(), method='kl')
        return loss_by_hand(net, tiny_loaders)

    float_loss = loss_of('stem', 'w_bit', None)
    for index, name in [(1, 'depthwise'), (2, 'pointwise')]:
        for w_bit, a_bit in [(2, 6), (3, 2), (5, 4)]:
            rise = loss_of(name, 'w_bit', w_bit) + loss_of(name, 'a_bit', a_bit) - 2 * float_loss
            assert found.table[index, w_bit - 1, a_bit - 1] == pytest.approx(rise, abs=2e-6)
    assert abs(found.table[1:3, 1, 1]).max() > 0.01
    assert found.forwards == IMAGES * (1 + 2 * 5 * 2)
    measured = np.isfinite(found.table)
    assert measured.sum() == 2 * 25 + 2
    assert found.table[0, 7, 7] == found.table[3, 7, 7] == 0  # pinned at [8, -1] and [8, 8]
    assert measured[1:3, 1:6, 1:6].all()


# ---- 'kl' ----

@pytest.mark.parametrize('flow', ENVS)
def test_the_divergence_is_that_of_one_quantized_layer_and_labels_do_not_matter(flow, trained, tiny_loaders):
    env = ENVS[flow](trained, tiny_loaders, min_bit=2, max_bit=5)
    found = measure_sensitivity(env, 'kl', num_images=IMAGES)
    images, _ = val_images(tiny_loaders)

    def outputs():
        with torch.no_grad():
            return F.softmax(env.model(images).double(), 1)

    with env.float_network():
        p = outputs()
        for layer, name in list(enumerate(env.layers()))[1:3]:
            for w_bit, a_bit in [(2, 5), (4, 2)]:
                rise = 0
                for bits in [{'w_bit': w_bit}, *([{'a_bit': a_bit}] if env.space.pairs else [])]:
                    with env.layer_at(name, **bits):
                        q = outputs()
                    rise += (p * (p / q).log()).sum(1).mean().item()
                cell = found.table[layer, w_bit - 1, a_bit - 1 if env.space.pairs else 7]
                assert cell == pytest.approx(rise, rel=1e-6)
    assert np.nanmax(found.table) > 0.002 and np.nanmin(found.table) >= 0
    assert found.forwards == IMAGES * (1 + (2 * 2 if env.space.pairs else 4) * 4)
    env.val_loader = copy.copy(tiny_loaders[1])
    env.val_loader.labels = (env.val_loader.labels + 1) % 4
    np.testing.assert_allclose(measure_sensitivity(env, 'kl', num_images=IMAGES).table, found.table, rtol=1e-6)


# ---- curvature ----

class ResidualNet(nn.Module):
    """A layer whose input goes through a shortcut too, and one that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def tail(self, x, into_branch):
        """The network from `branch` on, with its input apart from that of the shortcut."""
        return self.head(self.relu(x + self.branch(into_branch)).mean((2, 3)))

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        return self.tail(x, x)


@pytest.fixture
def residual():
    """(network in evaluation mode, images, labels)."""
    torch.manual_seed(3)
    net = ResidualNet().eval()
    net.bn.running_mean.uniform_(-0.3, 0.3)
    net.bn.running_var.uniform_(0.5, 2)
    net.head.weight.data *= 3
    return net, torch.randn(4, 3, 5, 5), torch.tensor([0, 1, 2, 1])


def trace_by_definition(function, point):
    """The trace of the explicit Hessian of `function` at `point`."""
    size = point.numel()
    return torch.autograd.functional.hessian(function, point.detach()).reshape(size, size).trace().item()


def quantizer_stub(scale):
    return lambda x: x * scale


def test_the_hessians_of_weights_are_the_explicit_ones(residual):
    net, images, labels = residual
    layers, many = dict(net.named_children()), (images.repeat(200, 1, 1, 1), labels.repeat(200))  # always other signs
    del layers['bn'], layers['relu']
    found = measure_curvature('hessian', net, layers, {}, *many)
    for name, layer in layers.items():
        def loss(weight, name=name):
            logits = torch.func.functional_call(net, {f'{name}.weight': weight}, images)
            return F.cross_entropy(logits, labels)

        expected = trace_by_definition(loss, layer.weight) / layer.weight.numel()
        assert found.weights[name] == pytest.approx(expected, rel=0.1)


def test_the_hessian_of_an_input_is_the_explicit_one_of_this_reader_alone(residual):
    net, images, labels = residual
    found = measure_curvature('hessian', net, {'branch': net.branch}, {'branch': {4: quantizer_stub(0.5)}},
                              images.repeat(200, 1, 1, 1), labels.repeat(200))
    traces, shared, sizes = [], [], []
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        x = net.relu(net.bn(net.stem(image))).detach()
        traces.append(trace_by_definition(lambda z, x=x, y=label: F.cross_entropy(net.tail(x, z), y), x))
        shared.append(trace_by_definition(lambda z, y=label: F.cross_entropy(net.tail(z, z), y), x))
        sizes.append(x.square().sum().item() / 4)
    expected = np.mean(traces) / x.numel()
    assert found.inputs['branch'] == pytest.approx(expected, rel=0.1)
    assert abs(np.mean(shared) / x.numel() / expected - 1) > 0.3  # with the shortcut it would be something else
    assert found.input_errors['branch'][4] == pytest.approx(np.mean(sizes), rel=1e-5)


def test_random_signs_at_the_logits_have_the_covariance_of_the_cross_entropys_hessian():
    torch.manual_seed(0)
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    many = logits.repeat(40000, 1).requires_grad_()
    draws, = torch.autograd.grad(hessian(many, None, torch.Generator().manual_seed(0)), many)
    explicit = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, torch.tensor([2])), logits)[0, :, 0]
    torch.testing.assert_close(draws.T @ draws / len(draws), explicit, rtol=0, atol=0.005)


def test_the_fisher_matrix_is_that_of_single_images(residual):
    net, images, labels = residual
    layers = {name: net.get_submodule(name) for name in ('stem', 'branch', 'head')}
    found = measure_curvature('fisher', net, layers, {'branch': {1: quantizer_stub(0)}}, images, labels)
    squares, inputs = {name: [] for name in layers}, []
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        x = net.relu(net.bn(net.stem(image)))
        into = x.clone()
        into.retain_grad()
        F.cross_entropy(net.tail(x, into), label).backward()
        inputs.append(into.grad.square().mean().item())
        for name, layer in layers.items():
            squares[name].append(layer.weight.grad.square().mean().item())
        net.zero_grad()
    for name in layers:
        assert found.weights[name] == pytest.approx(np.mean(squares[name]), rel=1e-4)
    assert found.inputs['branch'] == pytest.approx(np.mean(inputs), rel=1e-4)


def test_frozen_and_unused_weights(residual):
    net, images, labels = residual
    layers = {'branch': net.branch, 'head': net.head}
    expected = measure_curvature('fisher', net, layers, {}, images, labels)
    net.branch.weight.requires_grad_(False)
    net.spare = nn.Linear(2, 2)
    found = measure_curvature('fisher', net, {**layers, 'spare': net.spare}, {}, images, labels)
    assert found.weights == {**expected.weights, 'spare': 0}
    assert not net.branch.weight.requires_grad


@pytest.mark.parametrize('kind', ['fisher', 'hessian'])
def test_a_rise_is_half_the_curvature_times_the_squared_error(kind, trained, tiny_loaders):
    floats = copy.deepcopy(trained).eval()
    env = linear_env(trained, tiny_loaders, min_bit=2, max_bit=5)
    found = measure_sensitivity(env, kind, num_images=IMAGES, seed=4)
    images, labels = draw_images(tiny_loaders[1], IMAGES, seed=4)
    inputs = []
    floats.pointwise.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    floats(images)
    curvature = measure_curvature(kind, floats, quantizable_layers(floats), {'pointwise': {}}, images, labels, seed=4)
    for w_bit, a_bit in [(2, 5), (4, 2), (3, 3)]:
        net = copy.deepcopy(env.model)
        layer = net.pointwise
        layer.w_bit, layer.a_bit = w_bit, a_bit
        calibrate(net, tiny_loaders[0].first_batch(), method='kl')
        with torch.no_grad():
            w_error = (layer.weight_quantizer(layer.weight) - layer.weight).square().sum().item()
            a_error = (layer.input_quantizer(inputs[0]) - inputs[0]).square().sum().item() / IMAGES
        expected = (curvature.weights['pointwise'] * w_error + curvature.inputs['pointwise'] * a_error) / 2
        assert found.table[2, w_bit - 1, a_bit - 1] == pytest.approx(expected, rel=1e-3)
    assert (found.forwards, found.backwards) == (IMAGES, IMAGES)
    assert np.isfinite(found.table).sum() == 2 * 16 + 2


@pytest.mark.parametrize('kind', ['fisher', 'hessian'])
def test_curvature_of_the_kmeans_flow(kind, trained, tiny_loaders):
    floats = copy.deepcopy(trained).eval()
    env = kmeans_env(trained, tiny_loaders)
    table = measure_sensitivity(env, kind, num_images=IMAGES).table[:, :, 7]
    curvature = measure_curvature(kind, floats, quantizable_layers(floats), {}, *draw_images(tiny_loaders[1], IMAGES))
    for index, (name, layer) in enumerate(quantizable_layers(floats).items()):
        weight = layer.weight.data
        errors = [(fit_codebook(weight, bits, max_iter=3).decode() - weight).square().sum().item()
                  for bits in range(1, 9)]
        assert table[index] == pytest.approx(curvature.weights[name] / 2 * np.array(errors), rel=1e-3, abs=1e-12)
    assert (np.diff(table, axis=1) <= 0).all()


@pytest.mark.parametrize('kind', ['fisher', 'hessian'])
def test_errors_of_compensated_weights_count_as_they_do_in_the_outputs(kind, trained, tiny_loaders):
    """Against the outputs of a layer themselves, on the rows that its weights were rounded for."""
    floats = copy.deepcopy(trained).eval()
    env = kmeans_env(trained, tiny_loaders, rounding=Rounding('compensated', 2 ** 10))
    table = measure_sensitivity(env, kind, num_images=IMAGES).table[:, :, 7]
    curvature = measure_curvature(kind, floats, quantizable_layers(floats), {}, *draw_images(tiny_loaders[1], IMAGES))
    for index, name in enumerate(quantizable_layers(floats)):
        metric, errors = env.problems.problem(name).metric, []
        root = torch.linalg.cholesky(metric)  # rows whose second moments are the metric
        for bits in range(1, 9):
            error = weight_matrix(env.layers()[name], env.cache.get(name, env.problems.weights[name], bits).decode()
                                  - env.problems.weights[name]).double()
            errors.append((error @ root).square().sum() / root.square().sum(2).mean())
        assert table[index] == pytest.approx(curvature.weights[name] / 2 * np.array(errors), rel=1e-3, abs=1e-12)


# ---- what it leaves behind, and its file ----

def snapshot(env):
    layers = env.layers().values()
    return ({key: value.clone() for key, value in env.model.state_dict().items()},
            [(module, module.training) for module in env.model.modules()],
            [(getattr(layer, 'w_bit', None), getattr(layer, 'a_bit', None)) for layer in layers],
            [(parameter.requires_grad, parameter.grad) for parameter in env.model.parameters()])


@pytest.mark.parametrize('flow', ENVS)
@pytest.mark.parametrize('kind', sensitivity.SENSITIVITIES)
def test_the_network_is_unchanged_and_what_it_was_quantized_to_does_not_matter(kind, flow, trained, tiny_loaders):
    env = ENVS[flow](trained, tiny_loaders, min_bit=2, max_bit=4)
    first = measure_sensitivity(env, kind, num_images=8)
    env.evaluate_strategy(env.space.within_budget(env.space.uniform(3)))
    env.model.train()
    env.model.bn.eval()
    before = snapshot(env)
    again = measure_sensitivity(env, kind, num_images=8)
    after = snapshot(env)
    np.testing.assert_array_equal(first.table, again.table)
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize('flow', ENVS)
def test_the_network_is_what_it_was_also_after_an_error(flow, trained, tiny_loaders):
    env = ENVS[flow](trained, tiny_loaders, min_bit=2, max_bit=4)
    before = snapshot(env)
    with pytest.raises(KeyError), env.float_network(), env.layer_at('pointwise', w_bit=2):
        raise KeyError
    after = snapshot(env)
    assert all(torch.equal(before[0][key], after[0][key]) for key in before[0])
    assert before[1:] == after[1:]


def test_images_are_drawn_from_all_classes_alike():
    labels = torch.arange(3).repeat_interleave(10)
    images = (torch.arange(30, dtype=torch.uint8)[:, None, None, None]).expand(30, 3, 4, 4)
    loader = TensorLoader(images, labels, batch_size=7, shuffle=False, mean=(0, 0, 0), std=(1 / 255,) * 3)
    drawn, drawn_labels = draw_images(loader, 9, seed=0)
    assert drawn_labels.bincount().tolist() == [3, 3, 3]
    assert drawn_labels.tolist() != sorted(drawn_labels.tolist())
    numbers = drawn[:, 0, 0, 0].round().long()
    assert torch.equal(numbers // 10, drawn_labels)
    assert len(numbers.unique()) == 9
    assert torch.equal(drawn, draw_images(loader, 9, seed=0)[0])
    assert not torch.equal(drawn, draw_images(loader, 9, seed=1)[0])
    assert sorted(draw_images(loader, 30)[0][:, 0, 0, 0].round().tolist()) == list(range(30))
    for count in (0, 31):
        with pytest.raises(ValueError, match='expected 1 to 30'):
            draw_images(loader, count)


def test_an_unknown_kind_is_named(trained, tiny_loaders):
    with pytest.raises(ValueError, match="'hesian': expected one of loss, kl, fisher, hessian"):
        measure_sensitivity(kmeans_env(trained, tiny_loaders), 'hesian', num_images=2)


def test_a_sensitivity_that_is_not_finite_names_its_layer(trained, tiny_loaders):
    env = linear_env(trained, tiny_loaders)
    tiny_loaders[1].images[:, 0, 0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r'loss sensitivity of the weights of layer 1 \(depthwise\)'):
        measure_sensitivity(env, 'loss', num_images=4)


@pytest.mark.parametrize('kind', ['loss', 'fisher'])
@pytest.mark.parametrize('flow', ENVS)
def test_candidates_are_measured_as_in_a_range_and_nothing_else_is(flow, kind, trained, tiny_loaders, tmp_path):
    asked = {'candidates': ['8,2', 'pointwise=3,5', 'depthwise=4,7/-1'], 'pins': ['stem=6,5']}
    if flow == 'kmeans':
        asked = {'candidates': ['8,2', 'pointwise=3,5', 'depthwise=4,7'], 'pins': ['stem=6']}
    whole = measure_sensitivity(ENVS[flow](copy.deepcopy(trained), tiny_loaders), kind, num_images=IMAGES)
    env = ENVS[flow](trained, tiny_loaders, preserve_ratio=0.9, **asked)
    found = measure_sensitivity(env, kind, num_images=IMAGES)
    cells = {(0, 6, 5 if flow == 'linear' else 8): 0.0}
    for layer, bits in enumerate(env.space.layer_bits):
        for w_bit, a_bit in itertools.product(*bits.sides) if layer else ():
            if env.space.pairs and a_bit == -1:  # the loss of the weights alone: the input's at 8 bits is not in it
                assert np.isfinite(found.table[layer, w_bit - 1, 7])
                cells[layer, w_bit, 8] = found.table[layer, w_bit - 1, 7]
            elif layer not in env.space.fixed:
                cells[layer, w_bit, 8 if a_bit == -1 else a_bit] = whole.table[layer, w_bit - 1, a_bit - (a_bit > 0)]
            else:
                cells[layer, w_bit, a_bit] = 0.0
    expected = np.full((4, 8, 8), np.nan)
    for (layer, w_bit, a_bit), rise in cells.items():
        expected[layer, w_bit - 1, a_bit - 1] = rise
    np.testing.assert_allclose(found.table, expected, atol=1e-6)
    path = tmp_path / 'kept.npz'
    assert read_or_measure(path, env, kind, num_images=IMAGES).seconds == read_or_measure(
        path, env, kind, num_images=IMAGES).seconds
    assert GreedySearcher(env.space, found.table).best() and ILPSearcher(env.space, found.table).best()


@pytest.mark.parametrize('flow', ENVS)
def test_a_file_is_read_only_for_what_it_belongs_to(flow, tmp_path, trained, tiny_loaders, caplog):
    caplog.set_level(logging.WARNING)
    other = copy.deepcopy(trained)
    env, path = ENVS[flow](trained, tiny_loaders, min_bit=2, max_bit=3), tmp_path / 'new' / 'sensitivity'
    first = read_or_measure(path, env, 'fisher', num_images=6)
    np.testing.assert_array_equal(first.table, measure_sensitivity(env, 'fisher', num_images=6).table)
    held = read_npz(path)
    write_npz(path, {**held, 'table': held['table'] * 2})
    marked = read_or_measure(path, env, 'fisher', num_images=6)  # what is in the file, not a new measurement
    np.testing.assert_array_equal(marked.table, first.table * 2)
    assert (marked.kind, marked.forwards, marked.backwards) == ('fisher', 6, 6)
    assert not caplog.records

    assert read_or_measure(path, env, 'fisher', num_images=5).forwards == 5
    assert 'num_images differ' in caplog.text
    assert read_or_measure(path, env, 'hessian', num_images=5).kind == 'hessian'
    path.write_bytes(path.read_bytes()[:100])
    caplog.clear()
    intact = read_or_measure(path, env, 'hessian', num_images=5)
    assert 'cannot be used' in caplog.text
    np.testing.assert_array_equal(read_or_measure(path, env, 'hessian', num_images=5).table, intact.table)

    with torch.no_grad():
        other.head.weight[0, 0] += 0.5
    caplog.clear()
    env = ENVS[flow](other, tiny_loaders, min_bit=2, max_bit=3)
    changed = read_or_measure(path, env, 'hessian', num_images=5)
    assert 'weights' in caplog.text
    assert not np.array_equal(changed.table, intact.table, equal_nan=True)


def reversed_rows(table):
    return table[::-1]


def zeroed(table):
    return table * 0


IMPOSSIBLE = (  # also in a file of before, which has no digest
    lambda t: np.where(t == np.nanmax(t), -1e9, t), lambda t: t.astype(np.float32), lambda t: t[1:],
    lambda t: t.astype(str), lambda t: np.where(t > 0, np.inf, t), lambda t: np.nan_to_num(t, nan=0.5),
    lambda t: np.where(t > 0, np.nan, t))


@pytest.mark.parametrize(('change', 'sealed'), [
    *((change, True) for change in (reversed_rows, zeroed, *IMPOSSIBLE)), *((change, False) for change in IMPOSSIBLE)])
def test_other_numbers_than_those_measured_are_not_used(change, sealed, tmp_path, trained, tiny_loaders, caplog):
    env, path = kmeans_env(trained, tiny_loaders, min_bit=2, max_bit=3), tmp_path / 'sensitivity.npz'
    first = read_or_measure(path, env, 'fisher', num_images=6)
    with np.load(path) as file:
        held = {**file, 'table': change(file['table'])}
    np.savez(path, **{name: array for name, array in held.items() if sealed or name != 'digest'})
    np.testing.assert_array_equal(read_or_measure(path, env, 'fisher', num_images=6).table, first.table)
    assert 'cannot be used' in caplog.text


def test_a_file_of_before_is_used(tmp_path, trained, tiny_loaders, caplog):
    env, path = kmeans_env(trained, tiny_loaders, min_bit=2, max_bit=3), tmp_path / 'sensitivity.npz'
    first = read_or_measure(path, env, 'fisher', num_images=6)
    with np.load(path) as file:
        np.savez(path, **{name: array for name, array in file.items() if name != 'digest'})
    again = read_or_measure(path, env, 'fisher', num_images=6)
    assert again.seconds == first.seconds and not caplog.records
