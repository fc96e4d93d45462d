"""A checkpoint of ours that was changed is refused: by its digest or, from before there was one, by its values."""

import copy

import pytest
import torch

from lib.quantize.kmeans import Codebook
from lib.record.checkpoint import read_checkpoint, save_checkpoint
from lib.record.checkpoint_rules import STEP
from lib.rl.ddpg import DDPG


def training():
    """As finetune.py writes it in the K-means flow."""
    labels = torch.tensor([[0, 1, 2], [2, 1, 0]], dtype=torch.uint8)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.grad = torch.ones(2)
    optimizer.step()
    return {'epoch': 2, 'state_dict': {'fc.weight': torch.ones(2, 3)}, 'acc': 97.5, 'best_acc': 98.0, 'top5': 100.0,
            'optimizer': optimizer.state_dict(), 'scaler': {}, 'quantization': 'kmeans', 'strategy': [2],
            'is_pruned': False, 'codebooks': {'fc': Codebook(torch.arange(3.), labels).state_dict()}, 'arch': 'net',
            'dataset': 'digits', 'classes': 10, 'input': [3, 8, 8], 'layers': ['fc'], 'ratio': 0.1, 'folded': False}


def search():
    """As rl_quantize.py writes it: three episodes of two layers."""
    agent = DDPG(num_states=3, hidden1=4, hidden2=4, capacity=10)
    history = [{'episode': i, 'reward': -0.1 * i, 'accuracy': 90.0, 'cost': 5, 'ratio': 0.1, 'ratios': {'size': 0.1},
                'strategy': [3, 4], 'loss': None, 'delta': 0.5, 'value_loss': None, 'policy_loss': None, 'w_ratio': 0.1,
                'images': (64, 32), 'seconds': 0.1, 'best_reward': 0.0} for i in range(3)]
    for _ in range(6):
        agent.observe([0, 0, 0], 0.5, 1, [0, 0, 0], False)
    return {'agent': agent.state_dict(), 'history': history}


def steps():
    """As progressive_search.py writes it."""
    history = [{**dict.fromkeys(STEP, 0.5), 'step': i, 'kbits': [8, 7], 'acc_info': None} for i in (1, 2)]
    return {'step': 2, 'state_dict': {'a': torch.ones(1)}, 'kbits': [8, 7], 'cost': 0.5, 'acc': 90.0,
            'test_prec1': 90.0, 'history': history, 'start': {'cost': 1.0, 'test_acc': 91.0}, 'quantization': 'qat',
            'strategy': {'layer_wbit': [8], 'layer_abit': [7]}, 'qat': {'arch': 'a', 'network': {}, 'quantizers': {}}}


def hybrid():
    """As hybrid_train.py writes it."""
    dsq = {'method': 'dsq', 'bits': 2, 'fold': True, 'bounds': 'minmax', 'lower': -0.2, 'upper': 1, 'slope': 2.0,
           'learn_lower': False, 'learn_upper': True, 'learn_slope': True}
    aciq = {'method': 'aciq', 'bits': 4, 'clipping': 'minmax', 'prior': 'laplace', 'per_channel': False}
    return {'epoch': 1, 'state_dict': {'a': torch.ones(1)}, 'quantization': 'hybrid',
            'plan': {'weights': {'conv': dsq}, 'activations': {'relu': aciq}, 'inputs': {}},
            'hybrid': {'config': {'training': {'epochs': 1}}, 'network': None, 'stage': 'trained'}}


NAN, INF = float('nan'), float('inf')
CHANGES = [  # of which checkpoint, keys to the value, the new value or a function of the old one, what is said
    (training, ['best_acc'], NAN, 'best_acc is nan, expected a number from -1 to 100'),
    (training, ['best_acc'], 1e9, 'best_acc'), (training, ['best_acc'], None, 'best_acc'),
    (training, ['acc'], -1.0, 'acc is -1.0'), (training, ['top5'], 'high', "top5 is 'high'"),
    (training, ['epoch'], -2, 'epoch is -2, expected a whole number from 0'),
    (training, ['epoch'], 1.5, 'epoch is 1.5'), (training, ['epoch'], True, 'epoch is True'),
    (training, ['classes'], 0, 'classes is 0'),
    (training, ['input'], [3, 8], 'input is'), (training, ['arch'], 3, 'arch is 3'),
    (training, ['state_dict'], [], 'state_dict is'), (training, ['state_dict', 'fc.weight'], 'x', 'state_dict is'),
    (training, ['state_dict', 'fc.weight'], torch.full((2, 3), NAN), 'fc.weight holds 6'),
    (training, ['state_dict', 'bn.running_var'], torch.tensor([INF]), 'bn.running_var holds 1 of 1 values'),
    (training, ['optimizer'], {}, 'optimizer is'), (training, ['optimizer'], 3, 'optimizer is 3'),
    (training, ['optimizer', 'state', 0, 'momentum_buffer'], torch.tensor([1, NAN]), 'momentum_buffer'),
    (training, ['strategy'], [2, 2], 'strategy has 2 entries for 1 layers'),
    (training, ['strategy'], [9], 'strategy is'),
    (training, ['strategy'], [0], 'strategy is'), (training, ['strategy'], None, 'strategy is None'),
    (training, ['strategy'], [[2, 2]], 'strategy is'), (training, ['quantization'], 'linear', 'strategy is'),
    (training, ['codebooks'], [], 'codebooks is'), (training, ['codebooks', 'fc'], {}, 'codebooks.fc is'),
    (training, ['codebooks', 'fc', 'labels'], torch.full((2, 3), 3, dtype=torch.uint8), 'up to 3, there are 3'),
    (training, ['codebooks', 'fc', 'labels'], torch.zeros(2, 2, dtype=torch.uint8), 'codebooks.fc.labels'),
    (training, ['codebooks', 'fc', 'labels'], torch.zeros(2, 3), 'codebooks.fc.labels'),
    (training, ['codebooks', 'fc', 'centroids'], torch.tensor([1, 2, INF]), 'codebooks.fc.centroids holds'),
    (training, ['codebooks', 'fc', 'centroids'], torch.arange(5.), 'expected 1 to 4 numbers'),
    (training, ['codebooks', 'fc', 'kept'], torch.ones(2, 3), 'codebooks.fc.kept'),
    (search, ['history'], lambda h: h[:-1], 'history has 2 episodes of 4 steps, the agent remembers 6'),
    (search, ['history'], lambda h: h + h, r'history\[3\] is episode 0, expected 3'),
    (search, ['history'], lambda h: h[1:], r'history\[0\] is episode 1, expected 0'),
    (search, ['history'], {}, 'history is'), (search, ['history', 1], 3, r'history\[1\] is 3'),
    (search, ['history', 1, 'reward'], NAN, r'history\[1\].reward is nan'),
    (search, ['history', 1, 'accuracy'], '90', r'history\[1\].accuracy'),
    (search, ['agent', 'actor', 'flat'], torch.tensor([NAN]), 'agent.actor.flat'), (search, ['agent'], 3, 'agent is 3'),
    (search, ['agent', 'memory'], {}, 'agent.memory is'), (search, ['agent', 'memory', 'size'], 4, 'remembers 4'),
    (steps, ['history'], lambda h: h[:-1], 'history has 1 steps, step is 2'), (steps, ['step'], -1, 'step is -1'),
    (steps, ['kbits'], [8, 0], 'kbits is'), (steps, ['history', 0, 'cost'], -INF, 'cost is -inf'),
    (steps, ['strategy'], {'layer_wbit': [8]}, 'strategy is'), (steps, ['qat'], {}, 'qat is'),
    (search, ['history', 2, 'images'], 0.5, r'history\[2\].images is 0.5, expected numbers of images'),
    (search, ['history', 2, 'images'], (64, -1), 'images'), (search, ['history', 1, 'ratios'], {'size': 'x'}, 'ratios'),
    (search, ['history', 1, 'ratios'], [0.1], 'ratios'), (search, ['history', 0, 'seconds'], 'x', 'seconds'),
    (search, ['history', 0, 'delta'], 'x', 'delta'), (search, ['history', 0, 'strategy'], 'x', 'strategy'),
    (search, ['history', 0, 'policy_loss'], 0.5, 'expected both or none'),
    (steps, ['history', 1, 'kbits'], 0.5, r'history\[1\].kbits'),
    (steps, ['history', 0, 'model_size'], [], 'model_size'), (steps, ['start', 'test_acc'], [[[]]], 'start is'),
    (steps, ['start'], {'cost': 1}, 'start is'), (steps, ['start', 'cost'], None, 'start is'),
    (steps, ['history', 0, 'acc_info'], 1.0, 'expected one'),
    (steps, ['history', 0, 'hession_info'], None, 'or neither'),
    (steps, ['qat', 'quantizers', 'k'], [], 'qat is'), (steps, ['qat', 'network'], {1: 2}, 'qat is'),
    (steps, ['qat', 'network'], 3, 'qat is'), (hybrid, ['hybrid', 'config'], [], 'hybrid is'),
    (hybrid, ['hybrid', 'network'], 'x', 'hybrid is'), (hybrid, ['hybrid', 'network'], {1: 2}, 'hybrid is'),
    (hybrid, ['hybrid', 'stage'], 'done', 'hybrid is'), (hybrid, ['plan', 'weights'], [], 'plan is'),
    (hybrid, ['plan', 'weights', 'conv', 'bits'], 2.5, 'plan is'),
    (hybrid, ['plan', 'weights', 'conv', 'fold'], 'x', 'plan is'),
    (hybrid, ['plan', 'weights', 'conv', 'lower'], None, 'plan is'),
    (hybrid, ['plan', 'weights', 'conv', 'upper'], True, 'plan is'),
    (hybrid, ['plan', 'activations', 'relu', 'clipping'], {}, 'plan is'),
    (steps, ['qat'], 3, 'qat is'), (steps, ['qat'], {'quantizers': {}}, 'expected arch and network'),
]


def changed(make, keys, value):
    """Returns a checkpoint with the value under nested keys set anew."""
    place = checkpoint = copy.deepcopy(make())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value(place[keys[-1]]) if callable(value) else value
    return checkpoint


@pytest.mark.parametrize('make', [training, search, steps, hybrid])
@pytest.mark.parametrize('save', [save_checkpoint, lambda path, value: torch.save(value, path)])
def test_what_a_run_writes_is_read_with_and_without_a_digest(tmp_path, make, save):
    save(tmp_path / 'a.pth', make())
    found = read_checkpoint(tmp_path / 'a.pth')
    assert found.keys() == make().keys() and 'digest' not in found


@pytest.mark.parametrize(('make', 'keys', 'value', 'words'), CHANGES)
def test_values_that_no_run_writes_are_refused_by_name(tmp_path, make, keys, value, words):
    torch.save(changed(make, keys, value), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match=f'checkpoint .*a.pth: .*{words}'):
        read_checkpoint(tmp_path / 'a.pth')


@pytest.mark.parametrize(('make', 'keys', 'value'), [
    *(change[:3] for change in CHANGES[::5]), (training, ['epoch'], 99), (training, ['arch'], 'other'),
    (training, ['state_dict', 'fc.weight'], torch.zeros(2, 3)), (search, ['history', 1, 'strategy'], [4, 3]),
])
def test_what_was_changed_after_it_was_written_is_refused(tmp_path, make, keys, value):
    save_checkpoint(tmp_path / 'a.pth', make())
    digest = torch.load(tmp_path / 'a.pth', weights_only=True)['digest']
    torch.save({**changed(make, keys, value), 'digest': digest}, tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='a.pth was changed after it was written, its digest differs'):
        read_checkpoint(tmp_path / 'a.pth')


def test_every_flipped_bit_of_a_value_is_found(tmp_path):
    path = tmp_path / 'a.pth'
    save_checkpoint(path, training())
    data, weights = path.read_bytes(), torch.ones(6).numpy().tobytes()
    first = data.index(weights)
    for bit in range(8 * len(weights)):
        copy = bytearray(data)
        copy[first + bit // 8] ^= 1 << bit % 8
        path.write_bytes(copy)
        with pytest.raises(ValueError, match='a.pth cannot be read.*its part .*data/. does not have the checksum'):
            read_checkpoint(path)


@pytest.mark.parametrize('theirs', [
    {'state_dict': {'a': torch.ones(1)}, 'epoch': -2, 'best_acc': NAN, 'optimizer': 3, 'history': {'loss': []}},
    {'model': {'a': torch.ones(1)}, 'quantization': True, 'strategy': 'ddp', 'layers': 3, 'plan': 1},
    {'epoch': 30, 'state_dict': {'module.a': torch.ones(1)}, 'acc': 71.2, 'best_acc': 71.23, 'optimizer': {}},
])
def test_checkpoints_of_others_need_not_keep_our_rules(tmp_path, theirs):
    torch.save(theirs, tmp_path / 'a.pth')
    assert read_checkpoint(tmp_path / 'a.pth').keys() == theirs.keys()
