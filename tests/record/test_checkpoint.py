"""Files on disk: nothing is half written, and every wrong checkpoint is named."""

import pytest
import torch
from torch import nn

from lib.record.checkpoint import load_weights, read_checkpoint, save_checkpoint, state_dict_of


def test_checkpoints_make_the_round_trip(tmp_path):
    value = {'epoch': 3, 'weights': torch.arange(4.0), 'strategy': [[8, -1]], 'name': 'x', 'none': None}
    save_checkpoint(tmp_path / 'a.pth.tar', value)
    back = read_checkpoint(tmp_path / 'a.pth.tar')
    assert torch.equal(back.pop('weights'), value.pop('weights'))
    assert back == value


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'text', 'pickle of an object'])
def test_damaged_files_are_refused_with_their_name(tmp_path, damage):
    path = tmp_path / 'bad.pth.tar'
    torch.save({'state_dict': nn.Linear(50, 50).state_dict()}, path)
    data = path.read_bytes()
    if damage == 'pickle of an object':
        torch.save(nn.Linear(2, 2), path)
    else:
        path.write_bytes({'truncated': data[:len(data) // 2], 'empty': b'', 'text': b'hello'}[damage])
    with pytest.raises(ValueError, match='bad.pth.tar.*cannot be read as a PyTorch checkpoint'):
        read_checkpoint(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        read_checkpoint(tmp_path / 'nothing.pth')


def test_state_dicts_are_found_in_every_usual_wrapping():
    weights = nn.Linear(2, 2).state_dict()
    for wrapped in (weights, {'state_dict': weights, 'epoch': 1}, {'model': weights},
                    {'state_dict': {f'module.{k}': v for k, v in weights.items()}}):
        assert state_dict_of(wrapped).keys() == weights.keys()
    assert list(state_dict_of({'features.module.0.weight': torch.ones(1)})) == ['features.0.weight']
    with pytest.raises(ValueError, match='no state dict'):
        state_dict_of({'epoch': 3})


@pytest.mark.parametrize(('change', 'words'), [
    (lambda s: s.pop('0.bias'), '1 missing .0.bias.'),
    (lambda s: s.update({'9.weight': torch.ones(1)}), '1 unexpected .9.weight.'),
    (lambda s: s.update({'0.weight': torch.ones(3, 2)}), r'0.weight is \(3, 2\), the model has \(2, 2\)'),
])
def test_weights_that_do_not_fit_are_refused_by_name(change, words):
    model = nn.Sequential(nn.Linear(2, 2))
    state = {k: v + 1 for k, v in model.state_dict().items()}
    change(state)
    with pytest.raises(ValueError, match=words):
        load_weights(model, state, 'file')


def test_weights_of_a_float_network_fit_without_batch_counters():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    state = {k: v for k, v in model.state_dict().items() if 'num_batches_tracked' not in k}
    load_weights(model, state)


def net_with_classes(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(4, classes))


def test_another_number_of_classes_is_refused_unless_the_classifier_may_be_reset():
    state, model = net_with_classes(7).state_dict(), net_with_classes(3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'2.weight is \(7, 4\), the model has \(3, 4\).*--reset_classifier'):
        load_weights(model, state)
    assert load_weights(model, state, reset_classifier=True) == '2'
    assert torch.equal(model[0].weight, state['0.weight'])
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in ('2.weight', '2.bias'))


def test_a_classifier_that_fits_is_loaded():
    state, model = net_with_classes(3).state_dict(), net_with_classes(3)
    assert load_weights(model, state, reset_classifier=True) is None
    assert torch.equal(model[2].weight, state['2.weight'])


def test_other_shapes_are_refused_whatever_may_be_reset():
    state = net_with_classes(3).state_dict()
    state['0.weight'] = torch.ones(4, 2, 1, 1)
    with pytest.raises(ValueError, match='0.weight.*check --arch'):
        load_weights(net_with_classes(3), state, reset_classifier=True)
    state = {**net_with_classes(7).state_dict(), '0.weight': torch.ones(9, 1, 1, 1)}
    with pytest.raises(ValueError, match='0.weight.*2.weight.*check --arch'):
        load_weights(net_with_classes(3), state, reset_classifier=True)


def test_versions_of_modules_survive_the_search_for_the_state_dict():
    state = nn.DataParallel(nn.Sequential(nn.BatchNorm2d(2))).state_dict()
    assert state_dict_of({'state_dict': state})._metadata['0'] == {'version': 2}


def test_a_tensor_of_one_repeated_value_is_saved(tmp_path):
    """As the only centroid of a layer whose weights are all pruned, which has a stride of 0."""
    one = torch.tensor(0.5).expand(1)
    save_checkpoint(tmp_path / 'c.pth.tar', {'state_dict': {'a': one, 'b': torch.ones(2, 1).expand(2, 3)}})
    assert torch.equal(read_checkpoint(tmp_path / 'c.pth.tar')['state_dict']['a'], one)
