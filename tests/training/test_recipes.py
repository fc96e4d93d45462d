"""What a training can do beyond HAQ's recipe, each against torch's own or the formula, and that it resumes exactly."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.qat.placement import QATQuantization, Quantizers, find_steps, quantize_layers
from lib.quantize.kmeans import Codebook, CodebookCache
from lib.training.averaging import WeightAverage
from lib.training.fit import fit
from lib.training.loop import Precision, train_one_epoch
from lib.training.mixing import Mixing
from lib.training.optimizer import without_decay
from lib.training.settings import TrainingSettings
from lib.utils.quantize_utils import KMeansQuantization, LinearQuantization, Quantization, convert_to_quantized
from lib.utils.utils import learning_rate
from tests.runs import equal
from tests.tiny import TinyLoader, TinyNet, sample


@pytest.mark.parametrize(('kind', 'torchs'), [
    ('cos', lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=9, eta_min=0.01)),
    ('exp', lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.2))])
def test_a_linear_warm_up_is_that_of_torch(kind, torchs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.2, total_iters=3)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, torchs(optimizer)], milestones=[3])
    for epoch in range(12):
        found = learning_rate(epoch, lr=0.4, epochs=12, lr_type=kind, gamma=0.2, warmup_epoch=3, lr_min=0.01,
                              warmup_type='linear')
        assert found == pytest.approx(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(('options', 'steps', 'norms'), [
    ({}, True, True), ({'decay_steps': False}, False, True), ({'decay_norms': False}, False, False),
    ({'decay_norms': False, 'decay_steps': True}, True, False), ({'opt': 'adamw', 'decay_steps': False}, False, False)])
def test_which_parameters_decay(options, steps, norms):
    model = TinyNet()
    quantization = lsq(model)
    groups = TrainingSettings(**options).optimizer(quantization.parameters(), model).param_groups
    decay = {id(parameter): bool(group['weight_decay']) for group in groups for parameter in group['params']}
    learned = [p for name, p in model.named_parameters() if name.endswith('.step')]
    assert len(learned) > 4 and {decay[id(parameter)] for parameter in learned} == {steps}
    assert decay[id(model.bn.weight)] == norms and decay[id(model.head.weight)]


# ---- labels and images

def test_smoothed_labels_are_those_of_torch():
    logits, labels = sample(9, 5), torch.arange(9) % 5
    targets, counted = Mixing(smoothing=0.2).targets(labels, None, 5)
    torch.testing.assert_close(F.cross_entropy(logits, targets), F.cross_entropy(logits, labels, label_smoothing=0.2))
    assert counted is labels and Mixing().targets(labels, None, 5)[0] is labels


@pytest.mark.parametrize('options', [{'mixup': 0.4}, {'cutmix': 1.0}, {'mixup': 0.4, 'cutmix': 1.0, 'smoothing': 0.1}])
def test_mixed_images_and_labels_have_the_same_shares(options):
    """Image i is a constant i, so the mean of what it became tells whose pixels it has."""
    torch.manual_seed(3)
    mixing, images = Mixing(**options), torch.arange(6.0)[:, None, None, None].expand(6, 1, 32, 32)
    seen = set()
    for _ in range(20):
        mixed, shares = mixing.images(images.clone())
        torch.testing.assert_close(mixed.mean((1, 2, 3)), shares @ torch.arange(6.0))
        targets, labels = mixing.targets(torch.arange(6), shares, 6)
        smoothing = options.get('smoothing', 0)
        torch.testing.assert_close(targets, shares * (1 - smoothing) + smoothing / 6)
        assert labels.equal(shares.argmax(1)) and targets.sum(1).allclose(torch.ones(6))
        seen.add('mixup' if len(mixed[1].unique()) == 1 else 'cutmix')
    assert seen == {kind for kind in ('mixup', 'cutmix') if kind in options}


def test_what_is_not_an_image_is_not_mixed():
    with pytest.raises(ValueError, match=r'MixUp and CutMix mix images .* \(4, 7\)'):
        Mixing(mixup=1.0).images(torch.zeros(4, 7))


# ---- decay and clipping

def names_without_decay(model):
    spared = without_decay(model)
    return {name for name, parameter in model.named_parameters() if id(parameter) in spared}


def test_weights_decay_and_nothing_else():
    assert names_without_decay(TinyNet()) == {'bn.weight', 'bn.bias', 'depthwise.bias', 'pointwise.bias', 'head.bias'}
    model = convert_to_quantized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm((4, 2, 2)), nn.Flatten(),
                                               nn.Linear(16, 2)), torch.ones(1, 3, 2, 2))
    model.position = nn.Parameter(torch.zeros(1, 3))
    model.no_weight_decay = lambda: {'position'}
    assert names_without_decay(model) == {
        name for name, _ in model.named_parameters()} - {'0.weight', '3.weight'} >= {'0.input_quantizer.range'}


@pytest.mark.parametrize(('options', 'groups'), [
    ({'opt': 'sgd'}, [0.1]), ({'opt': 'sgd', 'decay_norms': False}, [0.1, 0]), ({'opt': 'adamw'}, [0.1, 0]),
    ({'opt': 'adamw', 'decay_norms': True}, [0.1]), ({'opt': 'adam'}, [0.1])])
def test_which_groups_decay(options, groups):
    model = TinyNet()
    optimizer = TrainingSettings(weight_decay=0.1, **options).optimizer(model.parameters(), model)
    assert [group['weight_decay'] for group in optimizer.param_groups] == groups
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_decoupled_decay_shrinks_weights_by_its_share():
    """Loshchilov and Hutter, algorithm 2: with a gradient of 0, w <- w (1 - lr decay); of Adam nothing is left."""
    model = TinyNet()
    before = copy.deepcopy(model.state_dict())
    optimizer = TrainingSettings(lr=0.5, weight_decay=0.1, opt='adamw').optimizer(model.parameters(), model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        torch.testing.assert_close(value, before[name] * (1 if name in names_without_decay(model) else 0.95))


def test_clipping_acts_on_centroids_also_on_those_that_came_later():
    """The weights of the head are all the same at first, so it has no centroids before the second epoch."""
    model = TinyNet()
    nn.init.zeros_(model.head.weight)
    quantization = KMeansQuantization(model, [2, 2, 2, 2], cache=CodebookCache(max_iter=5))
    settings = TrainingSettings(epochs=2, grad_clip=0.01, lr=0.1, momentum=0.0, weight_decay=0.0, decay_norms=False)
    optimizer, norms = settings.optimizer(quantization.parameters(), model), []
    optimizer.register_step_pre_hook(lambda *_: norms.append(math.sqrt(sum(
        p.grad.square().sum().item() for p in quantization.parameters() if p.grad is not None))))
    fit(model, (TinyLoader(), TinyLoader(seed=1)), settings, quantization=quantization, optimizer=optimizer)
    assert norms == pytest.approx([0.01] * 6, rel=1e-4)
    trained = {id(p) for group in optimizer.param_groups for p in group['params']}
    assert trained == {id(p) for p in quantization.parameters()} and len(model.head.weight.unique()) == 4


@pytest.mark.parametrize('quantize', [Quantization, lambda model: KMeansQuantization(model, [3] * 4)])
def test_gradients_are_clipped_after_the_scale_of_mixed_precision_is_out_of_them(quantize):
    """A power of two, so that it changes no digit."""
    def train(scale):
        torch.manual_seed(0)
        model, precision = TinyNet(), Precision('cpu')
        if scale:
            precision.scaler = torch.amp.GradScaler('cpu', init_scale=scale)
        quantization = quantize(model)
        optimizer = TrainingSettings(lr=0.1, grad_clip=0.02).optimizer(quantization.parameters(), model)
        train_one_epoch(model, TinyLoader(images=16), quantization.loss, optimizer, 'cpu', quantization.after_step,
                        before_step=quantization.before_step, precision=precision)
        return dict(model.named_parameters())

    assert equal(train(None), train(2.0**12))


# ---- the running average

def kmeans(model):
    return KMeansQuantization(model, [3, 2, 2, 4], cache=CodebookCache(max_iter=5))


def linear(model):
    convert_to_quantized(model, torch.zeros(1, 3, 8, 8))
    return LinearQuantization(model, [[4, 4]] * 4, TinyLoader().first_batch())


def lsq(model):
    quantize_layers(model, [[4, 4]] * 4, Quantizers('lsq', 'lsq'), torch.zeros(1, 3, 8, 8))
    find_steps(model, TinyLoader().first_batch())
    return QATQuantization(model, [[4, 4]] * 4, {})


@pytest.mark.parametrize('quantize', [Quantization, kmeans, linear, lsq])
def test_the_average_is_that_of_the_formula(quantize, tiny_net):
    """Written out for every entry of the state dict, in float64, while the network trains."""
    quantization = quantize(tiny_net)
    average, expected, steps = WeightAverage(quantization, 0.5), {}, 0
    learned = {name for name, p in tiny_net.named_parameters() if p.requires_grad} | {
        'bn.running_mean', 'bn.running_var'}

    def after_step():
        nonlocal steps
        quantization.after_step()
        average.update()
        decay = min(0.5, (1 + steps) / (10 + steps)) if steps else 0
        for name in learned:
            value = tiny_net.get_parameter(name) if 'running' not in name else tiny_net.get_buffer(name)
            expected[name] = decay * expected.get(name, 0) + (1 - decay) * value.detach().double()
        steps += 1

    optimizer = TrainingSettings(opt='adamw', lr=0.01).optimizer(quantization.parameters(), tiny_net)
    for _ in range(4):
        train_one_epoch(tiny_net, TinyLoader(), quantization.loss, optimizer, 'cpu', after_step,
                        before_step=quantization.before_step)
    raw = copy.deepcopy(tiny_net.state_dict())
    assert steps == 12
    with average.in_place() as state:
        assert state['ema']['updates'] == 12
        for name, value in tiny_net.state_dict().items():
            if name in learned:
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
                assert not value.equal(raw[name]), name
        if quantize is kmeans:
            assert [len(layer.weight.unique()) for layer in (tiny_net.stem, tiny_net.head)] == [8, 16]
    assert all(value.equal(raw[name]) for name, value in tiny_net.state_dict().items())


class Killed(Exception):
    """Ends a training after an epoch, as a kill would."""


ALL = {'opt': 'adamw', 'lr': 0.01, 'label_smoothing': 0.1, 'mixup': 0.5, 'cutmix': 1.0, 'ema_decay': 0.8,
       'grad_clip': 0.5, 'warmup_epoch': 1, 'warmup_type': 'linear', 'epochs': 4, 'momentum': 0.5}


def unformed(model):
    nn.init.zeros_(model.head.weight)
    return KMeansQuantization(model, [3, 8, 2, 4], cache=CodebookCache(max_iter=5), free_high_bit=True)


SGD = {'opt': 'sgd', 'decay_norms': False, 'bn_batches': 2}


@pytest.mark.parametrize(('quantize', 'more', 'epoch'), [
    (Quantization, {}, 1), (linear, SGD, 2), (lsq, {}, 2), (kmeans, SGD, 2), (unformed, {}, 1), (unformed, SGD, 3)])
def test_a_killed_training_with_everything_goes_on_to_the_same_numbers(quantize, more, epoch, tmp_path, monkeypatch):
    monkeypatch.setattr('lib.training.fit.TrainingLog.plot', lambda log: None)

    def start(folder, saved=None, stop=None):
        torch.manual_seed(0)
        model = TinyNet()
        quantization = quantize(model)
        settings = TrainingSettings(**{**ALL, **more})
        progress = {}
        if saved:
            model.load_state_dict(saved['state_dict'])
            if 'codebooks' in saved:
                books = {name: Codebook.from_state_dict(state) for name, state in saved['codebooks'].items()}
                quantization = KMeansQuantization(model, quantization.strategy, codebooks=books, free_high_bit=True,
                                                  cache=CodebookCache(max_iter=5))
        optimizer, average = settings.optimizer(quantization.parameters(), model), settings.average(quantization)
        if saved:
            optimizer.load_state_dict(saved['optimizer'])
            average.restore(saved['ema'])
            progress = {'start_epoch': saved['epoch'], 'best': saved['best_acc']}

        def rate(number):
            if number == stop:
                raise Killed
            return settings.rate(number)

        fit(model, (TinyLoader(), TinyLoader(seed=1)), settings, quantization=quantization, folder=folder, rate=rate,
            optimizer=optimizer, average=average, precision=Precision('cpu'), **progress)
        return model

    whole = start(tmp_path / 'whole')
    with pytest.raises(Killed):
        start(tmp_path / 'run', stop=epoch)
    saved = torch.load(tmp_path / 'run' / 'checkpoint.pth.tar', weights_only=True)
    assert saved['epoch'] == epoch
    assert equal(whole.state_dict(), start(tmp_path / 'run', saved).state_dict())
    first, second = (torch.load(tmp_path / name / 'checkpoint.pth.tar', weights_only=True) for name in ('whole', 'run'))
    assert equal(first, second)
    assert equal(first['state_dict'], whole.state_dict()), 'what was saved is what the network holds'
