"""A run that is killed and resumed ends with the very numbers of one that was never stopped."""

import os
import random
import re
import shutil
import signal
import time

import pytest
import torch

from lib.record.checkpoint import read_checkpoint, save_checkpoint
from tests.runs import equal, history, log_without_seconds, wait_for


def read(path):
    return torch.load(path, weights_only=True)


def check_same_search(resumed, whole):
    """Everything that a search leaves, but for the clock."""
    assert history(resumed) == history(whole)
    assert equal(read(resumed / 'search.pth.tar')['agent'], read(whole / 'search.pth.tar')['agent'])
    for name in ('strategy.json', 'strategy.txt'):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    for name in ('actor.pkl', 'critic.pkl'):
        assert equal(read(resumed / name), read(whole / name))
    assert log_without_seconds(resumed) == log_without_seconds(whole)
    assert (resumed / 'search.png').is_file() and (resumed / 'strategy.png').is_file()


def check_same_training(resumed, whole):
    """Everything that a training run leaves."""
    for name in ('log.txt', 'results.json'):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()
    for name in ('checkpoint.pth.tar', 'model_best.pth.tar'):
        assert equal(read(resumed / name), read(whole / name)), name
    assert (resumed / 'training.png').is_file()


def stop(process, checkpoint, how):
    """Waits until `checkpoint` is there and a random moment longer, then stops the process by signal `how`."""
    wait_for(checkpoint, process)
    time.sleep(random.uniform(0, 0.1))
    process.send_signal(how)
    return process.communicate(timeout=60)


def hint(err):
    """Returns the path after --resume in what an interrupted script said."""
    assert 'Traceback' not in err, err
    found = re.search(r'interrupted; continue with --resume (\S+)\n$', err)
    assert found, err
    return found[1]


# ---- real processes, stopped at a moment of chance


def test_a_killed_kmeans_search_goes_on_for_longer(home, weights, kmeans_options, kmeans_search, start, succeed,
                                                   tmp_path):
    """From another folder than it was started in, where the relative path of its weights means nothing.

    It has the numbers of a search of the same seed that was to be longer from the start.
    """
    options = [os.path.relpath(weights, tmp_path) if option == weights else option for option in kmeans_options]
    process = start('rl_quantize.py', *options, '--train_episode', '3', '--output', 'save', cwd=tmp_path)
    run = tmp_path / 'save' / 'resnet20_digits'
    stop(process, run / 'search.pth.tar', signal.SIGKILL)
    succeed('rl_quantize.py', '--resume', run, '--train_episode', '4', cwd=home)
    check_same_search(run, home / 'save' / 'resnet20_digits_k')


def test_an_interrupted_linear_search_says_how_to_resume(home, linear_options, linear_search, start, succeed, tmp_path):
    process = start('rl_quantize.py', *linear_options, '--train_episode', '20', '--output', 'save', cwd=tmp_path)
    run = tmp_path / 'save' / 'qresnet20_digits'
    _, err = stop(process, run / 'search.pth.tar', signal.SIGINT)
    assert process.returncode not in (0, -signal.SIGKILL)
    assert not list(run.glob('.*')), 'no temporary file is left'
    assert 0 < len(history(run)) <= 4
    succeed('rl_quantize.py', '--resume', hint(err), '--train_episode', '4', cwd=tmp_path)
    check_same_search(run, home / 'save' / 'qresnet20_digits')


def test_a_float_training_killed_twice(home, small_training, small_weights, crash, start, succeed, tmp_path):
    """In its first epoch, after which it is started again, with --overwrite for what little is there; and later."""
    crash('checkpoint.pth.tar', 1, 'pretrain.py', *small_training, '-c', 'run', cwd=tmp_path)
    process = start('pretrain.py', *small_training, '-c', 'run', '--overwrite', cwd=tmp_path)
    _, err = stop(process, tmp_path / 'run' / 'checkpoint.pth.tar', signal.SIGKILL)
    assert err == ''
    succeed('pretrain.py', '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)
    check_same_training(tmp_path / 'run', home / 'small')


def test_an_interrupted_fine_tuning_says_how_to_resume(home, finetune_options, kmeans_finetune, start, succeed,
                                                      tmp_path):
    process = start('finetune.py', *finetune_options, '-c', 'run', cwd=tmp_path)
    _, err = stop(process, tmp_path / 'run' / 'checkpoint.pth.tar', signal.SIGINT)
    assert process.returncode not in (0, -signal.SIGKILL)
    succeed('finetune.py', '--resume', hint(err), cwd=tmp_path)
    check_same_training(tmp_path / 'run', home / 'tuned_k')


def test_a_second_process_in_the_folder_of_a_search(kmeans_options, start, call, succeed, tmp_path):
    """It is refused while the first one runs, and goes on when that was killed."""
    run = tmp_path / 'resnet20_digits'
    options = (*kmeans_options, '--train_episode', '500', '--output', tmp_path)
    process = start('rl_quantize.py', *options, cwd=tmp_path)
    wait_for(run / 'search.pth.tar', process)
    for more in (('--resume', run), (*options, '--overwrite')):
        done = call('rl_quantize.py', *more, cwd=tmp_path)
        assert done.code and 'is being written by process' in done.err, done.err
    stop(process, run / 'search.pth.tar', signal.SIGKILL)
    succeed('rl_quantize.py', '--resume', run, '--train_episode', len(history(run)), cwd=tmp_path)
    assert not list(run.glob('.*')), 'neither a lock nor a temporary file is left'


# ---- in this process, stopped at exact points


def test_a_search_that_ends_between_two_files(small_search, crash, succeed, tmp_path):
    """Three times: before anything is saved, on the way, before the agent of the last episode is."""
    options = (*small_search, '--linear_quantization', '--cost', 'file_size', '--preserve_ratio', 'uniform:4')
    run, whole = tmp_path / 'small_digits', tmp_path / 'small_digits_whole'
    succeed('rl_quantize.py', *options, '--output', tmp_path, '--suffix', 'whole', cwd=tmp_path)
    crash('search.pth.tar', 1, 'rl_quantize.py', *options, '--output', tmp_path, cwd=tmp_path)
    assert not (run / 'search.pth.tar').exists()
    crash('log.txt', 3, 'rl_quantize.py', '--resume', run, cwd=tmp_path)
    assert 0 < len(history(run)) < 4
    crash('critic.pkl', 4 - len(history(run)), 'rl_quantize.py', '--resume', run, cwd=tmp_path)
    assert len(history(run)) == 4
    succeed('rl_quantize.py', '--resume', run, cwd=tmp_path)
    check_same_search(run, whole)


def test_fine_tuning_that_ends_between_two_files(small, small_weights, crash, succeed, tmp_path):
    """Twice: within the second epoch's files, and before the last file."""
    options = (*small, '--weights', small_weights, '--strategy', 'uniform:3', '--epochs', '2', '--lr', '0.01',
               '--train_batch', '40')
    succeed('finetune.py', *options, '-c', 'whole', cwd=tmp_path)
    crash('model_best.pth.tar', 2, 'finetune.py', *options, '-c', 'run', cwd=tmp_path)
    crash('results.json', 1, 'finetune.py', '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)
    succeed('finetune.py', '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)
    check_same_training(tmp_path / 'run', tmp_path / 'whole')


def test_resumed_linear_fine_tuning(home, weights, table, linear, linear_finetune, crash, succeed, tmp_path):
    crash('checkpoint.pth.tar', 2, 'finetune.py', *linear, '--linear_quantization', '--weights', weights, '--cost',
          table, '--strategy', home / 'save' / 'qresnet20_digits' / 'strategy.json', '--epochs', '2', '--lr', '0.01',
          '--train_batch', '80', '-c', 'run', cwd=tmp_path)
    succeed('finetune.py', '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)
    check_same_training(tmp_path / 'run', home / 'tuned_l')


RECIPE = ('--opt', 'adamw', '--label_smoothing', '0.1', '--mixup', '0.2', '--cutmix', '1', '--randaugment', '9',
          '--ema_decay', '0.9', '--lr', '0.002', '--epochs', '2', '--train_batch', '80')


def check_teacher(weights, refused):
    """A resumed run learns from the very weights that it was begun from; without them, or with others, it says so."""
    kept = read_checkpoint(weights)
    next(iter(kept['state_dict'].values())).mul_(1.01)
    away = weights.rename(weights.with_suffix('.away'))
    refused(['--distill float', 'mine.pth.tar does not exist', 'give its new place by --weights'])
    save_checkpoint(weights, kept)
    refused([f'--weights {weights}', 'something else'])
    away.replace(weights)


@pytest.mark.parametrize('script', ['finetune.py', 'hybrid_train.py'])
def test_a_whole_recipe_resumed(script, small, small_weights, crash, refused, succeed, tmp_path):
    """And what is evaluated is the average: of the checkpoint alone it has the accuracy that was reported."""
    mine = tmp_path / 'mine.pth.tar'
    shutil.copy(small_weights, mine)
    options = (*small, *RECIPE, '--weights', mine, '--strategy', 'uniform:4', '--clip_norm', '2', '--warmup_epoch',
               '1', '--warmup_type', 'linear', '--distill', 'float', '--distill_weight', '0.9',
               '--kmeans_weights', 'fisher', '--calibration_images', '32') if script == 'finetune.py' else (
        '--dataset', 'digits', '--image_size', '8', '--workers', '0', '--device', 'cpu', *RECIPE, '--set',
        'blocks=[[4,4,1],[4,8,2]]', '--set', 'quantize_w_blocks=[0]', '--set', 'quantize_a_blocks=[0]', '--set',
        'quantize_a=true', '--set', 'a_bit_width=2', '--set', 'post_quantize_w_layers=[-1,1]', '--set',
        'post_quantize_a_layers=[-1,1]')
    succeed(script, *options, '-c', 'whole', cwd=tmp_path)
    crash('checkpoint.pth.tar', 2, script, *options, '-c', 'run', cwd=tmp_path)
    if script == 'finetune.py':
        check_teacher(mine, lambda words: refused(tmp_path / 'run', words, script, '--resume',
                                                  tmp_path / 'run' / 'checkpoint.pth.tar'))
    succeed(script, '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)
    check_same_training(tmp_path / 'run', tmp_path / 'whole')
    saved = read(tmp_path / 'run' / 'checkpoint.pth.tar')
    assert saved['ema']['updates'] == 12
    out = succeed(script, '--resume', 'run/checkpoint.pth.tar', '--eval', cwd=tmp_path).out
    assert f'top-1 {saved["acc"]:.2f} %' in out.strip().splitlines()[-1]


def test_resumed_fine_tuning_with_layers_that_stay_float_at_first(high_options, high_bits, crash, succeed, tmp_path):
    """The layers of 7 and 8 bits are clustered before the last epoch, here the first one after the resume."""
    crash('checkpoint.pth.tar', 2, 'finetune.py', *high_options, '-c', 'run', cwd=tmp_path)
    succeed('finetune.py', '--resume', 'run/checkpoint.pth.tar', cwd=tmp_path)
    check_same_training(tmp_path / 'run', high_bits)


# ---- again


def test_another_seed_gives_another_search(home, kmeans_options, kmeans_search, succeed, tmp_path):
    succeed('rl_quantize.py', *kmeans_options, '--output', tmp_path, '--manualSeed', '7', '--train_episode', '1',
            cwd=tmp_path)
    found, expected = (history(folder)[0]['strategy'] for folder in (tmp_path / 'resnet20_digits',
                                                                     home / 'save' / 'resnet20_digits_k'))
    assert found != expected


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(home, kmeans_search, kmeans_finetune, pretrained, succeed):
    """With nothing left to do; a search prints its strategy again."""
    for script, run, files in (('rl_quantize.py', 'save/resnet20_digits_k', ('strategy.json', 'log.txt')),
                               ('finetune.py', 'tuned_k/checkpoint.pth.tar', ('log.txt', 'results.json')),
                               ('pretrain.py', 'float/checkpoint.pth.tar', ('log.txt', 'results.json'))):
        folder = home / run if (home / run).is_dir() else (home / run).parent
        before = [(folder / name).read_bytes() for name in files]
        done = succeed(script, '--resume', run, cwd=home)
        assert [(folder / name).read_bytes() for name in files] == before
        if script == 'rl_quantize.py':
            assert done.out.endswith((folder / 'strategy.txt').read_text())


def test_the_whole_command_line_again_with_resume(home, kmeans_options, kmeans_search, pretrain_options, pretrained,
                                                  succeed):
    """What a person does: the last command from the shell's history, and --resume behind it."""
    succeed('rl_quantize.py', *kmeans_options, '--output', 'save', '--suffix', 'k', '--resume',
            'save/resnet20_digits_k', cwd=home)
    succeed('pretrain.py', *pretrain_options, '-c', 'float', '--resume', 'float/checkpoint.pth.tar', cwd=home)
