"""BatchNorm statistics estimated anew: against brute force, with everything else left as it was."""

import multiprocessing
from datetime import timedelta

import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim.swa_utils import update_bn

from lib.network.hooks import batch_norms
from lib.training.batch_norm import reestimate_batch_norm
from lib.training.loop import Precision
from lib.utils.data_utils import create_loaders
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized


class Loader:
    """Three batches of unequal size."""

    def __init__(self, batches=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.batches = [(torch.randn(8 + i, 3, 6, 6, generator=generator) * (i + 1) + i, torch.zeros(8 + i))
                        for i in range(batches)]
        self.served = 0

    def __iter__(self):
        for batch in self.batches:
            self.served += 1
            yield batch


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(0.5)
        self.stateless = nn.BatchNorm2d(4, track_running_stats=False)
        self.linear = nn.Linear(4, 5)
        self.bn1d = nn.BatchNorm1d(5, momentum=None)
        self.unused = nn.BatchNorm2d(7)

    def forward(self, x):
        x = self.dropout(torch.relu(self.bn(self.conv(x))))
        return self.bn1d(self.linear(self.stateless(x).mean((2, 3))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    for norm in batch_norms(net).values():
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 1, 2)
        norm.num_batches_tracked.fill_(70)
    return net


def expected_statistics(net, batches):
    """Mean of the batch means and of the unbiased batch variances in front of both layers, in float64."""
    net, seen = net.double(), {'bn': [], 'bn1d': []}
    for images, _ in batches:
        x = net.conv(images.double())
        y = net.linear(nn.functional.batch_norm(torch.relu(
            nn.functional.batch_norm(x, None, None, net.bn.weight, net.bn.bias, True)), None, None, None, None, True)
            .mean((2, 3)))
        seen['bn'].append(x.transpose(0, 1).flatten(1))
        seen['bn1d'].append(y.T)
    net.float()
    return {name: (sum(v.mean(1) for v in values) / len(values), sum(v.var(1) for v in values) / len(values))
            for name, values in seen.items()}


@torch.no_grad()
def check(net, batches, count=None):
    for name, (mean, var) in expected_statistics(net, batches).items():
        norm = batch_norms(net)[name]
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var, rtol=1e-5, atol=1e-5)
        assert norm.num_batches_tracked == (count or len(batches))


@pytest.mark.parametrize('batches', [1, 2, 3])
def test_statistics_are_averages_over_the_batches(net, batches):
    loader = Loader()
    assert reestimate_batch_norm(net, loader, batches, 'cpu') == batches
    assert loader.served == batches
    check(net, loader.batches[:batches])


def test_all_else_stays(net):
    net.eval().dropout.train()
    modes = [module.training for module in net.modules()]
    momenta = [norm.momentum for norm in batch_norms(net).values()]
    parameters = [p.clone() for p in net.parameters()]
    unused = {key: value.clone() for key, value in net.unused.state_dict().items()}
    rng = torch.get_rng_state()
    reestimate_batch_norm(net, Loader(), 2, 'cpu')
    assert [module.training for module in net.modules()] == modes
    assert [norm.momentum for norm in batch_norms(net).values()] == momenta == [0.1, None, 0.1]
    assert all(torch.equal(p, q) and p.grad is None for p, q in zip(net.parameters(), parameters, strict=True))
    assert all(torch.equal(value, unused[key]) for key, value in net.unused.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)  # dropout drew nothing
    assert net.stateless.running_mean is None


def test_agrees_with_torch_where_nothing_is_random(net):
    net.dropout, other = nn.Identity(), Net()
    other.dropout = nn.Identity()
    other.load_state_dict(net.state_dict())
    reestimate_batch_norm(net, Loader(), 3, 'cpu')
    update_bn(Loader(), other)
    for name in ('bn', 'bn1d'):
        for own, theirs in zip(batch_norms(net)[name].buffers(), batch_norms(other)[name].buffers(), strict=True):
            torch.testing.assert_close(own, theirs)


def test_an_exception_restores_everything(net):
    before = {key: value.clone() for key, value in net.state_dict().items()}

    def broken():
        yield from Loader().batches[:2]
        raise OSError('disk')

    for loader, error, match in ((broken(), OSError, 'disk'), ([], ValueError, 'no batches')):
        with pytest.raises(error, match=match):
            reestimate_batch_norm(net, loader, 3, 'cpu')
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert [norm.momentum for norm in batch_norms(net).values()] == [0.1, None, 0.1]
        assert all(module.training for module in net.modules())


def test_fewer_batches_than_asked(net, caplog):
    loader = Loader()
    assert reestimate_batch_norm(net, loader, 9, 'cpu') == 3
    assert '3 batches, all there are; 9' in caplog.text
    check(net, loader.batches)


@pytest.mark.parametrize('augmented', [True, False, None])
@pytest.mark.parametrize('trained_on', [True, False])
def test_images_that_are_not_augmented_are_warned_of_once(net, caplog, augmented, trained_on):
    loader = Loader()
    loader.augmented = augmented
    for _ in range(2):
        reestimate_batch_norm(net, loader, 2, 'cpu', trained_on=trained_on)
    assert caplog.text.count('not augmented') == (augmented is False and not trained_on)


@pytest.mark.parametrize('name', ['digits', 'cifar10', 'dtd'])
def test_training_images_of_named_data_sets_are_augmented(name, net, caplog, tmp_path):
    if name != 'digits':
        for split in ('train', 'val'):
            (tmp_path / split / 'a').mkdir(parents=True)
            for number in range(3):
                Image.new('RGB', (32, 32)).save(tmp_path / split / 'a' / f'{number}.png')
    train, val, _ = create_loaders(name, tmp_path, batch_size=4, image_size=32)
    reestimate_batch_norm(net, train, 1, 'cpu')
    assert 'not augmented' not in caplog.text
    reestimate_batch_norm(net, val, 1, 'cpu')
    assert 'not augmented' in caplog.text


def test_refuses_no_batches_and_does_nothing_without_batch_norm(net, caplog):
    with pytest.raises(ValueError, match='at least 1'):
        reestimate_batch_norm(net, Loader(), 0, 'cpu')
    loader = Loader()
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))
    assert reestimate_batch_norm(plain, loader, 2, 'cpu') == 0
    assert 'no BatchNorm' in caplog.text and loader.served == 0 and plain.training


def test_the_quantized_network_sees_its_own_activations():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).eval()
    loader = Loader()
    images = torch.cat([images for images, _ in loader.batches])
    convert_to_quantized(net, images[:2])
    LinearQuantization(net, [[2, 2]] * 2, images)
    reestimate_batch_norm(net, loader, 3, 'cpu', Precision('cpu', channels_last=True))
    means = torch.stack([net[0](images).mean((0, 2, 3)) for images, _ in loader.batches])
    torch.testing.assert_close(net[1].running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    of_float_layer = nn.functional.conv2d(images, net[0].weight, net[0].bias).mean((0, 2, 3))
    assert (net[1].running_mean - of_float_layer).abs().max() > 0.01


def test_mixed_precision(net):
    loader, types = Loader(), []
    hook = net.conv.register_forward_hook(lambda module, args, output: types.append(output.dtype))
    reestimate_batch_norm(net, loader, 3, 'cpu', Precision('cpu', half=True))
    hook.remove()
    assert types == [torch.bfloat16] * 3
    mean, _ = expected_statistics(net, loader.batches)['bn']
    assert net.bn.running_mean.dtype == torch.float32
    torch.testing.assert_close(net.bn.running_mean.double(), mean, rtol=0.02, atol=0.02)


def _one_of_two(rank, file, net):
    torch.distributed.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2,
                                         timeout=timedelta(seconds=60))
    reestimate_batch_norm(net, Loader(2 + rank, seed=rank), 3, 'cpu')  # 2 batches here, 3 there
    torch.save(net.state_dict(), f'{file}.{rank}')
    torch.distributed.destroy_process_group()


def test_two_processes_average_over_the_batches_of_both(net, tmp_path):
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=_one_of_two, args=(rank, tmp_path / 'store', net), daemon=True)
               for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    states = [torch.load(f'{tmp_path}/store.{rank}', weights_only=True) for rank in range(2)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    unused = {key: value for key, value in net.state_dict().items() if key.startswith('unused')}
    assert all(torch.equal(value, states[0][key]) for key, value in unused.items())
    net.load_state_dict(states[0])
    check(net, Loader(2).batches + Loader(3, seed=1).batches, count=5)
