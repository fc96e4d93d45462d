"""Metrics, learning rates, seeds, logs and the two loops."""

import math

import pytest
import torch
from torch import nn

from lib.qat.placement import Quantizers, find_steps, quantize_layers
from lib.quantize import LSQQuantizer
from lib.record.logs import TableLog
from lib.runtime.seeds import derived_seed, seed_everything
from lib.training.fit import fit
from lib.training.loop import Precision, evaluate, loss_function, train_one_epoch
from lib.training.settings import TrainingSettings
from lib.utils.quantize_utils import LinearQuantization, calibrate, convert_to_quantized
from lib.utils.utils import MetricCounter, learning_rate
from tests.tiny import TinyLoader


def test_metrics_count_images_not_batches():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(23, 7, generator=generator), torch.randint(0, 7, (23,), generator=generator)
    counter = MetricCounter()
    for part in torch.arange(23).split(5):
        counter.add(nn.functional.cross_entropy(logits[part], labels[part]).item(), logits[part], labels[part])
    result = counter.result()
    rank = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert result.top1 == pytest.approx(100 * (rank < 1).float().mean().item())
    assert result.top5 == pytest.approx(100 * (rank < 5).float().mean().item())
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)


def test_top5_of_few_classes_is_all_of_them():
    counter = MetricCounter()
    counter.add(0.0, torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))
    assert counter.result().top5 == 100


def test_learning_rates():
    common = {'lr': 0.4, 'epochs': 10, 'gamma': 0.1, 'schedule': [3, 6]}
    assert [learning_rate(e, lr_type='step3', **common) for e in (0, 2, 3, 5, 6, 9)] == pytest.approx(
        [0.4, 0.4, 0.04, 0.04, 0.004, 0.004])
    assert learning_rate(5, lr_type='cos', **common) == pytest.approx(0.5 * 0.4 * (1 + math.cos(math.pi / 2)))
    assert learning_rate(2, lr_type='exp', **common) == pytest.approx(0.4 * 0.01)
    assert learning_rate(7, lr_type='fixed', **common) == 0.4
    assert [learning_rate(e, lr_type='fixed', warmup_epoch=2, **common) for e in (0, 1, 2)] == pytest.approx(
        [0.04, 0.04, 0.4])
    with pytest.raises(ValueError, match='cos, exp'):
        learning_rate(0, lr_type='linear', **common)


def test_seeds_depend_on_every_part():
    seeds = {derived_seed(*parts) for parts in ((1, 'epoch', 2), (1, 'epoch', 3), (2, 'epoch', 2), (1, 'episode', 2))}
    assert len(seeds) == 4
    seed_everything(1, 'epoch', 2)
    first = torch.rand(3)
    seed_everything(1, 'epoch', 2)
    assert torch.equal(first, torch.rand(3))


def test_the_log_drops_rows_of_a_killed_epoch(tmp_path):
    log = TableLog(tmp_path / 'log.txt', ('a', 'b'))
    for i in range(3):
        log.append((i, 2 * i))
    again = TableLog(tmp_path / 'log.txt', ('a', 'b'), keep_rows=2)
    again.append((9, 9))
    assert again.columns() == {'a': [0, 1, 9], 'b': [0, 2, 9]}
    assert (tmp_path / 'log.txt').read_text().splitlines()[0] == 'a\tb'


@pytest.mark.parametrize('content', [b'a\tb\n1\tx\n', b'a\tb\n1\n', b'\xff\xfe', b'a\tb\n' + b'[' * 1000])
def test_a_log_that_is_damaged_is_named(content, tmp_path):
    (tmp_path / 'log.txt').write_bytes(content)
    with pytest.raises(ValueError, match=r'log\.txt cannot be (continued|read) as'):
        TableLog(tmp_path / 'log.txt', ('a', 'b'), keep_rows=2)


def test_training_learns_and_evaluation_changes_nothing(tiny_net, tiny_loaders):
    train, val = tiny_loaders
    before = evaluate(tiny_net, val, loss_function(), 'cpu')
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(15):
        train_one_epoch(tiny_net, train, loss_function(), optimizer, 'cpu')
    state = {k: v.clone() for k, v in tiny_net.state_dict().items()}
    after = evaluate(tiny_net, val, loss_function(), 'cpu')
    assert after.loss < before.loss
    assert after.top1 > 80
    assert all(torch.equal(v, state[k]) for k, v in tiny_net.state_dict().items())
    assert tiny_net.training  # the mode it had


def test_hooks_run_around_every_step(tiny_net, tiny_loaders):
    calls = []
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    train_one_epoch(tiny_net, tiny_loaders[0], loss_function(), optimizer, 'cpu', lambda: calls.append('after'),
                    before_step=lambda: calls.append('before'))
    assert calls == ['before', 'after'] * 3


def test_half_precision_runs_on_the_cpu(tiny_net, tiny_loaders):
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.05)
    metrics = train_one_epoch(tiny_net, tiny_loaders[0], loss_function(), optimizer, 'cpu',
                              precision=Precision('cpu', half=True))
    assert math.isfinite(metrics.loss)


def test_channels_last_changes_the_layout_and_not_the_result(tiny_net, tiny_loaders):
    layouts = []
    tiny_net.register_forward_pre_hook(lambda _, args: layouts.append(args[0].is_contiguous()))
    plain = evaluate(tiny_net, tiny_loaders[1], loss_function(), 'cpu')
    last = evaluate(tiny_net, tiny_loaders[1], loss_function(), 'cpu', precision=Precision('cpu', channels_last=True))
    assert layouts[0] and not layouts[-1]
    assert last.loss == pytest.approx(plain.loss, rel=1e-5)


def test_a_loss_that_is_not_finite_names_the_layer(tiny_net, tiny_loaders):
    tiny_net.act = nn.Module()
    tiny_net.act.forward = lambda x: x / 0
    optimizer = torch.optim.SGD(tiny_net.parameters(), lr=0.1)
    with pytest.raises(FloatingPointError, match='comes from layer act'):
        train_one_epoch(tiny_net, tiny_loaders[0], loss_function(), optimizer, 'cpu')
    tiny_net.pointwise.weight.data[0] = float('nan')
    with pytest.raises(FloatingPointError, match='parameter pointwise.weight'):
        evaluate(tiny_net, tiny_loaders[1], loss_function(), 'cpu')


# ---- what is not finite

ONE_EPOCH = TrainingSettings(epochs=1, lr=0.01, lr_type='fixed', momentum=0.0, weight_decay=0.0)


class Wide(TinyLoader):
    """A loader with one pixel of a certain value."""

    def __init__(self, value):
        super().__init__()
        self.images[5, 0, 2, 2] = value


@pytest.mark.parametrize(('pixel', 'words'), [
    (1e30, 'model_best.pth.tar is not written: bn.running_var holds .* not finite .*lower the learning rate'),
    (math.inf, 'the images hold values that are not finite'), (math.nan, 'the images hold values that are not finite'),
])
def test_huge_pixels_end_in_one_line_and_leave_nothing_that_is_not_finite(pixel, words, tiny_net, tmp_path):
    with pytest.raises(FloatingPointError, match=words) as error:
        fit(tiny_net, (Wide(pixel), TinyLoader(seed=1)), ONE_EPOCH, folder=tmp_path, precision=Precision('cpu'))
    assert '\n' not in str(error.value) and not list(tmp_path.glob('*.tar'))


@pytest.mark.parametrize('value', [-1.0, 0.0, math.inf, math.nan])
def test_a_variance_that_is_none_is_not_written(value, tiny_net, tmp_path):
    """0 is one, and negative ones end in training; the others must not look like a result."""
    tiny_net.bn.running_var.fill_(value)
    tiny_net.bn.momentum = 0.0  # they stay as they are
    try:
        fit(tiny_net, (TinyLoader(), TinyLoader(seed=1)), ONE_EPOCH, folder=tmp_path, precision=Precision('cpu'))
    except FloatingPointError as error:
        assert value != 0 and 'bn' in str(error) and not list(tmp_path.glob('*.tar'))
    else:
        assert value == 0


@pytest.mark.parametrize('make', [
    lambda net: convert_to_quantized(net, torch.randn(2, 3, 8, 8)) and LinearQuantization(net, [[4, 4]] * 4),
    lambda net: quantize_layers(net, [[4, 4]] * 4, Quantizers('lsq', 'lsq'), torch.zeros(2, 3, 8, 8)),
])
def test_a_quantizer_that_finds_no_range_says_in_which_layer_it_went_wrong(make, tiny_net):
    make(tiny_net)
    tiny_net.depthwise.bias.data[0] = math.inf
    search = find_steps if any(isinstance(module, LSQQuantizer) for module in tiny_net.modules()) else calibrate
    with pytest.raises(ValueError, match='not finite.*parameter depthwise.bias holds values that are not finite'):
        search(tiny_net, torch.randn(4, 3, 8, 8))
