"""Weights in every wrapping that trainers use come out as the network's own, and it is said which were taken."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel

from lib.record.checkpoint import load_weights, state_dict_of, weights_for


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Flatten(), nn.Linear(4, 5)))


NET = build()
STATE = {key: value + 1 for key, value in NET.state_dict().items()}
OTHER = {key: torch.zeros_like(value) for key, value in STATE.items()}  # raw weights beside an average


def behind(prefix, state=STATE):
    return {prefix + key: value for key, value in state.items()}


def averaged():
    net = build()
    net.load_state_dict(STATE)
    return AveragedModel(net).state_dict()


def by_child(net):
    return {name: dict(child.state_dict()) for name, child in net.named_children()}


def loaded_net():
    net = build()
    net.load_state_dict(STATE)
    return net


# wrapping -> (checkpoint, what is said of it: where, average, beside)
DIALECTS = {
    'plain': (STATE, '', False, None),
    'DataParallel': ({'state_dict': behind('module.')}, '', False, None),
    'torch.compile': (behind('_orig_mod.'), '', False, None),
    'compiled DataParallel': (behind('module._orig_mod.'), '', False, None),
    'DataParallel compiled': ({'model': behind('_orig_mod.module.')}, 'model', False, None),
    'inner wrapper': ({key.replace('2.1.', '2.module.1.'): value for key, value in STATE.items()}, '', False, None),
    'Lightning': ({'state_dict': behind('model.'), 'epoch': 3, 'callbacks': {'a': STATE}},
                  'state_dict, names without model.', False, None),
    'Lightning net': ({'state_dict': behind('net.')}, 'state_dict, names without net.', False, None),
    'Lightning, compiled': ({'state_dict': behind('model._orig_mod.')}, 'state_dict, names without model.', False,
                            None),
    'backbone': (behind('backbone.'), 'names without backbone.', False, None),
    'two prefixes': ({'state_dict': behind('model.backbone.')}, 'state_dict, names without model.backbone.', False,
                     None),
    'timm, average alone': ({'state_dict_ema': STATE, 'epoch': 4}, 'state_dict_ema', True, None),
    'model_ema alone': ({'model_ema': STATE}, 'model_ema', True, None),
    'SWA': (averaged(), 'the whole file', True, None),
    'torchvision, average alone': ({'model_ema': averaged()}, 'model_ema', True, None),
    'params': ({'params': STATE}, 'params', False, None),
    'model_state': ({'model_state': STATE, 'optimizer_state': {'state': {0: {'exp_avg': torch.ones(3)}}}},
                    'model_state', False, None),
    'unknown key': ({'generator': STATE, 'discriminator': {'a': torch.ones(2)}}, 'generator', False, None),
    'nested': ({'model': {'state_dict': STATE}}, 'model.state_dict', False, None),
    'one dict a module': (by_child(loaded_net()), '0 + 1 + 2', False, None),
    'list': ([STATE], '', False, None),
    'arrays': ({key: value.numpy() for key, value in STATE.items()}, '', False, None),
    'arrays, big-endian': ({key: value.numpy().astype(value.numpy().dtype.newbyteorder('>'))
                            for key, value in STATE.items()}, '', False, None),
    'Parameters': ({key: nn.Parameter(value) if value.is_floating_point() else value for key, value in STATE.items()},
                   '', False, None),
    'float64': ({key: value.double() for key, value in STATE.items()}, '', False, None),
    'tensors beside': ({'model': STATE, 'best_acc1': torch.tensor(3.), 'rng_state': torch.ones(9), 'acc': np.ones(3)},
                       'model', False, None),
}


@pytest.mark.parametrize('name', DIALECTS)
def test_weights_are_found_in_every_wrapping(name):
    checkpoint, where, average, beside = DIALECTS[name]
    net = build()
    found = weights_for(net, checkpoint, name)
    assert (found.where, found.average, found.beside) == (where, average, beside)
    load_weights(net, checkpoint, name)
    assert all(torch.equal(value, STATE[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    net = build()
    load_weights(net, {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()})
    assert all(value.dtype == STATE[key].dtype and torch.equal(value, STATE[key].to(dtype).to(value.dtype))
               for key, value in net.state_dict().items())


@pytest.mark.parametrize(('checkpoint', 'raw', 'average'), [
    ({'state_dict': OTHER, 'state_dict_ema': STATE}, 'state_dict', 'state_dict_ema'),
    ({'model': behind('module.', OTHER), 'model_ema': averaged()}, 'model', 'model_ema'),
    ({'params': OTHER, 'params_ema': STATE}, 'params', 'params_ema'),
    ({'state_dict': OTHER, 'ema': {'decay': 0.9, 'shadow': behind('module.')}}, 'state_dict', 'ema.shadow'),
    ({'state_dict': {**behind('model.', OTHER), **behind('ema_model.module.')}}, 'state_dict, names without model.',
     'state_dict, names without ema_model.'),
])
def test_an_average_beside_raw_weights_is_taken_only_when_it_is_asked_for(checkpoint, raw, average):
    found = weights_for(NET, checkpoint)
    assert (found.where or 'state_dict', found.average, found.beside) == (raw, False, average)
    assert all(torch.equal(value, OTHER[key]) for key, value in found.state_dict.items())
    found = weights_for(NET, checkpoint, average=True)
    assert (found.where, found.average, found.beside) == (average, True, raw)
    assert all(torch.equal(value, STATE[key]) for key, value in found.state_dict.items())


def test_no_average_is_no_average():
    with pytest.raises(ValueError, match='file holds no average of its weights'):
        weights_for(NET, {'state_dict': STATE}, 'file', average=True)
    pooling = nn.Sequential()
    pooling.avgpool = nn.Conv2d(1, 1, 1)
    assert not weights_for(pooling, pooling.state_dict()).average


@pytest.mark.parametrize(('checkpoint', 'names'), [
    ({'student': STATE, 'teacher': OTHER}, 'student and teacher'),
    ({'state_dict': {**behind('encoder_q.'), **behind('encoder_k.')}}, 'encoder_k. and .* names without encoder_q'),
])
def test_two_networks_in_one_file_are_refused(checkpoint, names):
    with pytest.raises(ValueError, match=f'file holds several parts that fit the network equally well: .*{names}'):
        weights_for(NET, checkpoint, 'file')


def test_what_is_left_out_is_named():
    found = weights_for(NET, {'state_dict': {**behind('model.'), 'loss.weight': torch.ones(3)}})
    assert found.notes == ('1 entries outside model. are left out (loss.weight)',)
    found = weights_for(NET, {'state_dict': STATE, 'best_state_dict': OTHER})
    assert found.notes == ('best_state_dict would fit, too',) and found.where == ''


def test_pruned_weights_are_multiplied_by_their_masks():
    pruned = loaded_net()
    for layer, name in ((pruned[0], 'weight'), (pruned[2][1], 'weight'), (pruned[2][1], 'bias')):
        prune.l1_unstructured(layer, name, 0.4)
    weight, bias = pruned[0].weight.clone(), pruned[2][1].bias.clone()
    net, found = build(), weights_for(build(), pruned.state_dict())
    load_weights(net, pruned.state_dict())
    assert found.notes == ('3 pruned tensors are multiplied by their masks',)
    assert torch.equal(net[0].weight, weight) and torch.equal(net[2][1].bias, bias)
    assert (net[0].weight == 0).sum() == round(0.4 * net[0].weight.numel())
    twin = build()
    for layer, name in ((twin[0], 'weight'), (twin[2][1], 'weight'), (twin[2][1], 'bias')):
        prune.identity(layer, name)
    load_weights(twin, pruned.state_dict())  # pruned itself: nothing is multiplied
    assert all(torch.equal(value, pruned.state_dict()[key]) for key, value in twin.state_dict().items())


class OwnNames(nn.Module):
    """A network with submodules that have the names of wrappers."""

    def __init__(self):
        super().__init__()
        self.module = nn.Conv2d(1, 2, 3)
        self.body = nn.DataParallel(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
        self.net = nn.ModuleDict({'module': nn.Linear(2, 2), 'model': nn.Linear(2, 3)})


@pytest.mark.parametrize('wrap', [
    lambda state: state, lambda state: {'state_dict': {f'module.{key}': value for key, value in state.items()}},
    lambda state: {f'_orig_mod.{key}': value for key, value in state.items()},
    lambda state: {key.replace('body.module.', 'body.'): value for key, value in state.items()},
    lambda state: {'state_dict': {f'model.{key}': value for key, value in state.items()}},
])
def test_networks_whose_own_names_are_those_of_wrappers(wrap):
    theirs, ours = OwnNames(), OwnNames()
    load_weights(ours, wrap(theirs.state_dict()))
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())


def test_without_a_network_wrappers_are_removed_and_the_usual_key_is_taken():
    assert state_dict_of({'state_dict': behind('module.'), 'state_dict_ema': OTHER}).keys() == STATE.keys()
    assert state_dict_of({'state_dict_ema': STATE}).keys() == STATE.keys()
    assert state_dict_of({'foo': STATE, 'model': {'a': torch.ones(1)}}).keys() == {'a'}


@pytest.mark.parametrize('checkpoint', [{'epoch': 3}, {}, [], None, 3, torch.ones(3), {'a': torch.tensor(1.)}, [1, 2],
                                        {'optimizer': {'a': torch.ones(2)}}, {3: torch.ones(2)}])
def test_what_holds_no_weights_is_refused(checkpoint):
    with pytest.raises(ValueError, match='file holds no state dict'):
        weights_for(NET, checkpoint, 'file')


def test_dicts_that_refer_to_each_other_end():
    ring = {'state_dict': STATE}
    ring['again'] = ring
    many = {f'k{i}': None for i in range(50)}
    for key in many:
        many[key] = many
    ring['many'] = many
    assert weights_for(NET, ring).state_dict.keys() == STATE.keys()


@pytest.mark.parametrize(('key', 'value', 'words'), [
    ('0.weight', STATE['0.weight'] * torch.nan, '108 values that are not finite'),
    ('1.running_mean', torch.full((4,), torch.inf), '4 values that are not finite'),
    ('2.1.bias', torch.full((5,), 1e300, dtype=torch.float64), '5 values that are not finite in torch.float32'),
    ('1.running_var', torch.tensor([1., 1, -1e-9, 1]), 'is a variance and has negative values'),
    ('0.weight', torch.ones(4, 3, 3, 3, dtype=torch.int8), 'is torch.int8, the network has torch.float32'),
    ('0.bias', torch.ones(4, dtype=torch.complex64), 'is torch.complex64, the network has torch.float32'),
    ('0.bias', torch.ones(4, device='meta'), 'has no plain values'),
    ('0.bias', torch.ones(4).to_sparse(), 'has no plain values'),
])
def test_values_that_cannot_be_weights_are_refused_by_name(key, value, words):
    net = build()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ValueError, match=f'file: {key} .*{words}'):
        load_weights(net, {**STATE, key: value}, 'file')
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_mask_may_be_infinite_where_the_network_s_own_is():
    net = build()
    net.register_buffer('mask', torch.triu(torch.full((3, 3), -torch.inf), 1))
    load_weights(net, {**STATE, 'mask': net.mask.clone()})
    with pytest.raises(ValueError, match='mask has 6 values that are not finite'):
        load_weights(net, {**STATE, 'mask': net.mask.T.contiguous() + torch.triu(torch.full((3, 3), torch.inf), 1)})


def test_a_parameter_of_two_layers_needs_to_be_there_once():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].weight = net[0].weight
    state = {key: value + 1 for key, value in net.state_dict().items() if key != '2.weight'}  # as safetensors save it
    load_weights(net, state)
    assert torch.equal(net[2].weight, state['0.weight'])
