"""Two processes over gloo against one process on the same batches; all scenarios run in one pair of processes."""

import socket
from pathlib import Path

import pytest
import torch
from torch import nn

from lib.runtime import distributed
from tests.processes import Program
from tests.runtime import distributed_scenarios as scenarios

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """The results of both processes, {scenario: result} of each, and how the main one ended: (status, message)."""
    folder = tmp_path_factory.mktemp('pair')
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        port = found.getsockname()[1]
    processes = [Program(scenarios.__file__, folder, cwd=ROOT, folder=tmp_path_factory.mktemp('output'), RANK=rank,
                         LOCAL_RANK=rank, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
                 for rank in '01']
    try:
        ends = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    files = [folder / f'process{rank}.pt' for rank in range(2)]
    assert all(file.is_file() for file in files), '\n'.join(ends)
    results = [torch.load(file, weights_only=True) for file in files]
    written = [sorted(str(path.relative_to(folder)) for path in folder.glob(f'process{rank}/*/*.*'))
               for rank in range(2)]
    return results, (processes[0].returncode, ends[0]), written


def alone(name, folder=None):
    """The result of one process."""
    return scenarios.SCENARIOS[name](folder)


def both(pair, name):
    return pair[0][0][name], pair[0][1][name]


def same(a, b):
    """Whether two structures of tensors and numbers agree bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def close(a, b, tolerance=1e-5):
    """Fails unless two structures of tensors and numbers agree to a tolerance, relative and absolute."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, check_dtype=False)


def test_evaluation_counts_every_image_once(pair):
    (loss, *counts), other = both(pair, 'evaluation')
    expected = alone('evaluation')
    assert (loss, *counts) == other
    assert tuple(counts) == expected[1:]
    assert loss == pytest.approx(expected[0], rel=1e-6)


def test_training_steps_are_those_of_the_whole_batch(pair):
    first, second = both(pair, 'frozen_batch_norm')
    assert same(first, second)
    close(first, alone('frozen_batch_norm'))


def test_clipped_and_averaged_weights_are_those_of_one_process(pair):
    first, second = both(pair, 'averaged_weights')
    assert same(first, second)
    close(first, alone('averaged_weights'))


def test_a_layer_that_is_never_called_does_not_stop_training(pair):
    first, second = both(pair, 'unused_parameters')
    assert same(first, second)
    expected = alone('unused_parameters')
    close(first, expected)
    assert torch.equal(first[0]['unused.weight'], scenarios.seeded(scenarios.SmallNet, unused=True).unused.weight)


def test_synchronised_batch_norm_trains_as_one_process_does(pair):
    first, second = both(pair, 'synchronised_batch_norm')
    assert same(first, second)
    assert first[2] == 2
    assert first[0]['bn1.num_batches_tracked'] == 4
    close(first, alone('synchronised_batch_norm'))


def test_mixed_precision(pair):
    first, second = both(pair, 'mixed_precision')
    assert same(first, second)
    close(first, alone('mixed_precision'), 0.03)


def test_plain_batch_norm_ends_with_the_same_statistics_everywhere(pair):
    first, second = both(pair, 'plain_batch_norm')
    assert same(first, second)
    expected = alone('plain_batch_norm')
    close(first['bn.running_mean'], expected['bn.running_mean'], 0.05)  # of the whole batch's, but for the weights
    assert not same(first, expected)


def test_a_synchronised_layer_against_batch_norm_in_double_precision(pair):
    first, second = both(pair, 'batch_norm_layer')
    x, direction = (torch.randn(5, 3, 4, 2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    x = (3000 + 7 * torch.arange(5).view(-1, 1, 1, 1) + x).double().requires_grad_()
    layer = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    y = layer(x)
    y.backward(direction.double())
    close(torch.cat([first['y'], second['y']]).double(), y.detach(), 2e-4)  # x has a resolution of 2e-4
    close(torch.cat([first['dx'], second['dx']]).double(), x.grad, 1e-5)
    close((first['dw'] + second['dw']).double(), layer.weight.grad, 1e-4)
    close((first['db'] + second['db']).double(), layer.bias.grad)
    mean, var, count = first['moments']
    close(mean, x.detach().mean((0, 2, 3)), 1e-7)
    close(var, x.detach().var((0, 2, 3), unbiased=False), 1e-5)  # means are float32; E[x^2] - E[x]^2 is off by 1
    assert count == 40
    assert first['state'].keys() == layer.state_dict().keys()
    close(first['state'], layer.state_dict())
    assert same(first['state'], second['state'])


@pytest.mark.parametrize('flow', ['kmeans', 'linear'])
def test_quantized_training_is_the_same_in_both_and_as_in_one(pair, flow, tmp_path):
    first, second = both(pair, flow)
    assert same(first, second)
    expected = alone(flow, tmp_path)
    close(first[:3], expected[:3], 1e-4)
    if flow == 'kmeans':
        labels = [[book['labels'] for book in result[3]['codebooks'].values()] for result in (first, expected)]
        assert same(*(found[1:] for found in labels))  # that of the layer clustered last hangs on trained weights
    else:
        assert same(first[3], expected[3])  # calibrated on the main process's images


def test_compensated_rounding_looks_at_the_images_of_one_process(pair):
    first, second = both(pair, 'compensated')
    assert same(first, second)
    assert same(first[:2], alone('compensated')[:2])  # the BatchNorm statistics are averages over both


def test_the_main_process_alone_writes(pair):
    written = pair[2]
    for flow in ('kmeans', 'linear'):
        assert {f'process0/{flow}/{name}' for name in ('checkpoint.pth.tar', 'log.txt', 'training.png')} <= \
            set(written[0])
    assert written[1] == []


def test_searches_go_the_same_way(pair):
    first, second = both(pair, 'search')
    assert same(first, second)
    environments, outcomes, agent = first
    assert len({str(outcome[0]) for outcome in outcomes}) > 1
    assert agent['baseline'] is not None
    assert [environment[0] for environment in environments] == pytest.approx(
        [environment[0] for environment in alone('search')[0]], abs=1e-9)  # float accuracy


def test_what_processes_tell_each_other(pair):
    for rank, found in enumerate(both(pair, 'talk')):
        assert found['rank'] == rank
        assert found['tensors'] == [[1, 1], [[0.5, 0.5]], 7]
        assert found['total'] == [2 ** 53 + 1, 1.0, 2] or found['total'] == [2 ** 53, 1.0, 2]
        assert found['mean'] == [0.5] * 3
        assert found['gather'] == [0, 1]
        assert found['join'] == [[0, 0], [1, 1], [1, 1]]
        assert found['broadcast'] == [0, 'a']
        assert found['on_main'] == 10
        assert found['made_before'] == bool(rank)


def test_random_numbers_differ_and_those_of_the_main_process_are_the_usual_ones(pair, tmp_path):
    first, second = both(pair, 'talk')
    assert first['random'] != second['random']
    assert first['random'] == alone('talk', tmp_path / 'process')['random']


def test_the_wrapper_is_kept_while_the_same_parameters_are_trained(pair):
    first, second = both(pair, 'wrappers')
    assert first[:3] == (True, False, False)
    assert same(first, second)


def test_an_error_in_one_process_ends_all_with_the_same_message(pair):
    first, second = both(pair, 'refusals')
    for index in (0, 1, 2, 4, 5):  # 3: a synchronised BatchNorm hands on what is not finite
        assert first[index][:2] == second[index][:2]
    taken, wrong, training, synchronised, evaluation, lengths = first
    assert taken == ('FileExistsError', 'the folder is taken', False)
    assert wrong[0] == 'ValueError' and wrong[2]
    assert training[0] == 'FloatingPointError' and 'at batch 0 of train' in training[1]
    assert synchronised[0] == evaluation[0] == 'FloatingPointError'
    assert 'the images hold values that are not finite' in second[3][1]
    assert lengths[1].startswith('the processes have 2, 1 batches')
    assert [error[2] for error in second] == [True, False, False, False, False, False]


def test_a_process_that_ends_without_a_word_ends_the_other(pair):
    status, message = pair[1]
    assert status == 1
    assert message.startswith('LostPeer: another process of this run has ended')


def test_one_process_needs_no_others(monkeypatch):
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert distributed.start('cpu') == torch.device('cpu')
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.total(1, 2.5) == [1, 2.5]
    net = nn.Linear(2, 2)
    assert distributed.data_parallel(net, None) is net
    with pytest.raises(ValueError, match='mine'):
        distributed.agree(ValueError('mine'))
    distributed.agree()
    distributed.finish()


def test_gpus_are_counted(monkeypatch):
    for name, value in zip(distributed.TORCHRUN, ('1', '2', '1', '127.0.0.1', '1'), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match='process 1 of this machine has no GPU of its own'):
        distributed.start('cuda')
    with pytest.raises(ValueError, match='give --device cuda'):
        distributed.start('cuda:1')
