"""Networks of which a part stays float, or shares a Parameter, or defines its head first: through the commands."""

import json
import math

import pytest
import torch

from lib.network.coverage import inventory_of
from lib.runtime.user_code import load_model
from lib.simulator.counting import COUNTED
from lib.simulator.inventory import PRICING

NETS = """
import torch
from torch import nn
class Own(nn.Conv2d):
    def forward(self, x):
        columns = nn.functional.unfold(x, 3, padding=1)
        return ((self.weight - self.weight.mean()).flatten(1) @ columns).unflatten(2, x.shape[2:])
class Odd(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.odd = nn.Conv2d(3, 8, 3, padding=1), Own(8, 16, 3, padding=1)
        self.middle = nn.Conv2d(8, 8, 3, padding=1)
        self.mix = nn.Parameter(torch.randn(1, 16, 16) / 4)
        self.fc = nn.Linear(16, num_classes)
    def forward(self, x):
        return self.fc(self.odd(self.middle(self.stem(x).relu()).relu()).relu().mean((2, 3)) @ self.mix)[0]
class Shared(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b.weight = self.a.weight
        self.fc = nn.Linear(16, num_classes)
    def forward(self, x):
        return self.fc(self.b(self.a(self.stem(x).relu()).relu()).mean((2, 3)))
class Base(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(8, num_classes)
class HeadFirst(Base):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.stem, self.body = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))
"""
SHAPE = (3, 8, 8)


@pytest.fixture(scope='module')
def user(tmp_path_factory):
    """The folder in which the user works, with the networks and weights of each."""
    folder = tmp_path_factory.mktemp('user')
    (folder / 'nets.py').write_text(NETS)
    for name in ('Odd', 'Shared', 'HeadFirst'):
        torch.manual_seed(0)
        torch.save(load_model(f'{folder}/nets.py:{name}', 10).state_dict(), folder / f'{name}.pth')
    return folder


@pytest.fixture
def options(episodes):
    """`options(name, ...)`: of a command on one of the networks."""
    def of(name, *more):
        return ('--model_file', f'nets.py:{name}', '--dataset', 'digits', '--image_size', '8', '--workers', '0',
                '--weights', f'{name}.pth', *more)
    return of


@pytest.fixture
def search(succeed, user, options, episodes):
    """`search(name, folder, *options)`: `Done` of a search of two episodes."""
    return lambda name, folder, *more: succeed(
        'rl_quantize.py', *options(name, *episodes, '--train_episode', '2', '--no-finetune_flag', '--output', folder,
                                   *more), cwd=user)


def network(user, name):
    return load_model(f'{user}/nets.py:{name}', 10)


@pytest.mark.parametrize(('linear', 'cost', 'budget'), [
    (False, 'model_size', 0.7), (False, 'file_size', 0.8), (True, 'file_size', 0.9), (True, 'cloud_latency', 0.99)])
def test_float_layers_are_priced_reported_and_stored(succeed, search, options, user, read_json, linear, cost, budget):
    flow = ('--linear_quantization',) if linear else ()
    folder = f'odd_{cost}_{linear}'
    done = search('Odd', folder, *flow, '--cost', cost, '--preserve_ratio', budget, '--constraint', 'bitops=0.99',
                  '--min_bit', '2')
    found = inventory_of(network(user, 'Odd'), SHAPE, linear)
    weights, macs = found.coverage
    said = f'covers {weights:.1%} of the weights and {macs:.1%} of the multiply-accumulates'
    assert said in done.out and 'these stay float: odd, mix' in done.out or not linear
    run = user / folder / 'nets_digits'
    results, strategy = read_json(run / 'results.json'), read_json(run / 'strategy.json')
    assert results['coverage'] == strategy['coverage'] == {'weights': round(weights, 6), 'macs': round(macs, 6)}
    assert results['ratio'] <= budget
    if cost in COUNTED:
        table = COUNTED[cost](found)
        assert (results['cost'], results['ratio']) == (table.cost(results['strategy']),
                                                       pytest.approx(table.ratio(results['strategy'])))
    done = succeed('finetune.py', *options('Odd', *flow, '--cost', cost, '--strategy', run / 'strategy.json',
                                           '--epochs', '1', '-c', f'tuned_{folder}'), cwd=user)
    tuned = read_json(user / f'tuned_{folder}' / 'results.json')
    assert said in done.out and tuned['coverage'] == results['coverage']
    assert (tuned['cost'], tuned['ratio']) == (results['cost'], results['ratio'])
    assert read_json(user / f'tuned_{folder}' / 'strategy.json')['coverage'] == results['coverage']
    assert said.replace('covers', 'its strategy covers') in succeed('summarize.py', f'a=tuned_{folder}', cwd=user).out


def test_a_budget_that_float_layers_exceed_alone(call, user, options, episodes):
    done = call('rl_quantize.py', *options('Odd', *episodes, '--linear_quantization', '--cost', 'model_size',
                                           '--preserve_ratio', '0.1'), cwd=user)
    assert done.code == 1 and done.err.count('\n') == 1
    assert '--preserve_ratio 0.1 cannot be met: what stays float costs' in done.err and ': odd, mix;' in done.err


def test_a_shared_weight_in_both_flows(search, user, read_json):
    for flow, layers in (('--linear_quantization', ['stem', 'a', 'b', 'fc']), ('--no-linear_quantization',
                                                                               ['stem', 'a', 'fc'])):
        search('Shared', f'shared{len(layers)}', flow, '--cost', 'model_size', '--preserve_ratio', '0.2')
        found = read_json(user / f'shared{len(layers)}' / 'nets_digits' / 'strategy.json')
        assert found['layers'] == layers and found['coverage'] == {'weights': 1, 'macs': 1}


def test_first_and_last_layer_and_a_search_of_before(succeed, search, user, read_json):
    """A search that was begun when they were those of the definition goes on with these."""
    search('HeadFirst', 'ends', '--linear_quantization', '--cost', 'model_size', '--preserve_ratio', '0.9')
    run = user / 'ends' / 'nets_digits'
    state = torch.load(run / 'search.pth.tar', weights_only=True)
    assert [[entry['strategy'][0], entry['strategy'][1]] for entry in state['history']] == [[[8, 8], [8, -1]]] * 2
    measured = succeed('measure.py', '--model_file', 'nets.py:HeadFirst', '--num_classes', '10', '--input_size', '8',
                       '--strategy', 'uniform:3', '--linear', '--json', cwd=user)
    assert json.loads(measured.out)['strategy'] == [[8, 8], [8, -1], [3, 3]]
    del state['pricing'], state['digest']
    torch.save(state, run / 'search.pth.tar')
    succeed('rl_quantize.py', '--resume', run, '--train_episode', '4', cwd=user)
    state = torch.load(run / 'search.pth.tar', weights_only=True)
    assert 'pricing' not in state, 'it stays so'
    for entry in state['history'][2:]:
        assert entry['strategy'][0] == [8, -1] and entry['strategy'][2] == [8, 8]
        assert entry['strategy'][1][1] != -1 and math.isfinite(entry['reward'])


def test_a_comparison_says_what_is_covered_and_one_of_before_goes_on(succeed, user, options, episodes, read_json):
    words = ('--linear_quantization', '--cost', 'model_size', '--budgets', '0.9', '--searchers', 'uniform', '--seeds',
             '1', '--evaluations', '1', '--final_epochs', '0', '--bn_batches', '0')
    done = succeed('compare_searchers.py', *options('HeadFirst', *episodes, *words, '--output', 'compared'), cwd=user)
    assert 'covers 100.0% of the weights' in done.out
    (path,) = (user / 'compared' / 'searches').glob('*.json')
    found = read_json(path)
    assert found['strategy'][1] == [8, -1] and found['pricing'] == PRICING
    del found['pricing'], found['digest']  # as those of before have none
    path.write_text(json.dumps(found))
    succeed('compare_searchers.py', '--resume', 'compared', '--budgets', '0.8', cwd=user)
    added = [read_json(other) for other in (user / 'compared' / 'searches').glob('*.json') if other != path]
    assert [(row['strategy'][0], 'pricing' in row) for row in added] == [([8, -1], False)]
