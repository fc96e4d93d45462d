"""Two processes on the CPU, as torchrun starts them, do what one does, and end together."""

import socket

import pytest

from lib.record.checkpoint import read_checkpoint
from tests.runs import equal


@pytest.fixture
def pair(start):
    """`pair(script, *options, cwd=)`: two processes with the variables that torchrun sets; what both of them wrote."""
    def run(script, *options, cwd):
        with socket.socket() as found:
            found.bind(('127.0.0.1', 0))
            port = str(found.getsockname()[1])
        processes = [start(script, *options, cwd=cwd, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE='2',
                           MASTER_ADDR='127.0.0.1', MASTER_PORT=port) for rank in '01']
        written = [''.join(process.communicate(timeout=120)) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], '\n'.join(written)
        return ''.join(written)
    return run


def policies(folder):
    """The strategies and rewards of a search."""
    saved = read_checkpoint(folder / 'search.pth.tar')
    return [(record['strategy'], record['reward'], record['accuracy']) for record in saved['history']], saved['agent']


def test_a_search_without_training_is_that_of_one_process(home, tmp_path, pair, succeed, linear_options):
    options = (*linear_options, '--finetune_flag', 'False', '--val_size', '63', '--test_batch', '20',
               '--train_episode', '3')
    out = pair('rl_quantize.py', *options, '--output', tmp_path / 'two', cwd=home)
    assert out.count('best: accuracy') == 1  # one process reports
    succeed('rl_quantize.py', *options, '--output', tmp_path / 'one', cwd=home)
    (two, agent_of_two), (one, agent_of_one) = (policies(next((tmp_path / name).iterdir())) for name in ('two', 'one'))
    assert len(two) == 3
    assert two == one  # the counts of hits are exact, so rewards and agents are
    assert equal(agent_of_two, agent_of_one)


def test_training_writes_once_and_evaluates_to_the_image(home, tmp_path, pair, succeed, small, small_weights):
    folder = tmp_path / 'run'
    options = (*small, '--weights', small_weights, '--strategy', 'uniform:4', '--epochs', '1', '--lr', '0.01',
               '--train_batch', '44', '--sync_bn', '-c', folder)
    out = pair('finetune.py', *options, cwd=home)
    assert out.count('epoch 1/1') == 1
    assert len((folder / 'log.txt').read_text().splitlines()) == 2
    last = out.strip().splitlines()[-1]
    one = succeed('finetune.py', '--resume', folder / 'checkpoint.pth.tar', '--eval', cwd=home).out
    assert one.strip().splitlines()[-1].split('loss')[0] == last.split('loss')[0]


def test_activations_are_calibrated_on_the_same_images_however_many_processes(tmp_path, pair, succeed):
    options = ('--dataset', 'digits', '--image_size', '8', '--workers', '0', '--device', 'cpu')
    tiny = ('--train_batch', '80', '--epochs', '1', '--set', 'blocks=[[4, 4, 1], [4, 8, 2]]', '--set',
            'quantize_w_blocks=[0]', '--set', 'quantize_a_blocks=[0]', '--set', 'quantize_a=true', '--set',
            'a_bit_width=2', '--set', 'post_quantize_w_layers=[-1, 1]', '--set', 'post_quantize_a_layers=[-1, 1]')
    pair('hybrid_train.py', *options, *tiny, '-c', 'run', cwd=tmp_path)
    path = tmp_path / 'run' / 'experiment_data' / 'q_model' / 'model.pth.tar'
    two = read_checkpoint(path)['state_dict']
    succeed('hybrid_train.py', *options, '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)  # only calibrates
    assert equal(two, read_checkpoint(path)['state_dict'])
