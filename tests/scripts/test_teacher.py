"""--teacher: a deeper float network teaches, the one that was named, and the same one after a resume."""

import torch

import models


def test_a_deeper_network_teaches(small, small_weights, succeed, refused, tmp_path):
    torch.manual_seed(0)
    deeper = tmp_path / 'deeper.pth'
    torch.save(models.create_model('resnet20', num_classes=10).state_dict(), deeper)
    own = ('--dataset', 'digits', '--arch', 'resnet20', *small[4:])
    alone = succeed('pretrain.py', *own, '--weights', deeper, '--eval', cwd=tmp_path).out
    top1 = alone.rpartition('top-1 ')[2].split()[0]
    options = ('finetune.py', *small, '--weights', small_weights, '--strategy', 'uniform:4', '--train_batch', '80',
               '--lr', '0.001', '--distill', 'float', '-c', 'run')
    done = succeed(*options, '--teacher', 'resnet20', '--teacher_weights', 'deeper.pth', '--epochs', '1', cwd=tmp_path)
    assert f'the teacher has top-1 {top1} %' in done.out
    run, moved = tmp_path / 'run' / 'checkpoint.pth.tar', tmp_path / 'moved.pth'
    deeper.rename(moved)
    refused(tmp_path / 'run', ['deeper.pth does not exist', 'new place by --teacher_weights'], 'finetune.py',
            '--resume', run, '--epochs', '2')
    succeed('finetune.py', '--resume', run, '--epochs', '2', '--teacher_weights', moved, cwd=tmp_path)
    state = torch.load(moved, weights_only=True)
    state['linear.bias'].add_(1)
    torch.save(state, moved)
    refused(tmp_path / 'run', [f'--teacher_weights {moved}', 'something else'], 'finetune.py', '--resume', run,
            '--epochs', '3', '--teacher_weights', moved)
