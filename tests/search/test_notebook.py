"""The ten lines of docs/python.md, with a user's own network and DataLoaders in memory."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lib.search.baselines import RandomSearcher
from lib.search.notebook import evaluate, quantize, search, train
from lib.utils.quantize_utils import Quantization, quantizable_layers, quantized_layers
from tests.tiny import TinyLoader, TinyNet

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'python.md'


@pytest.fixture
def mine():
    """(a network that has learned something, (training loader, validation loader) of torch)."""
    torch.manual_seed(0)
    data = [TensorDataset(loader.images, loader.labels) for loader in (TinyLoader(seed=0), TinyLoader(20, seed=1))]
    loaders = [DataLoader(dataset, batch_size=16, shuffle=shuffle) for dataset, shuffle in zip(data, (True, False),
                                                                                               strict=True)]
    model = TinyNet()
    train(Quantization(model), loaders, epochs=8, lr=0.1)
    return model, loaders


@pytest.mark.parametrize('linear', [False, True])
def test_from_a_network_and_loaders_to_a_quantized_network(mine, linear):
    model, loaders = mine
    before = copy.deepcopy(model.state_dict())
    options = {'budget': 0.9, 'cost': 'bitops', 'linear': True} if linear else {'budget': 0.15}
    strategy = search(model, loaders, **options, episodes=4)
    assert search(model, loaders, **options, episodes=4) == strategy, 'the same search finds the same strategy'
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    quantization = quantize(model, strategy, loaders[0])
    metrics = train(quantization, loaders, epochs=2, lr=0.01)
    assert evaluate(model, loaders[1]) == metrics and metrics.top1 > 50
    if linear:
        assert [[layer.w_bit, layer.a_bit] for layer in quantized_layers(model).values()] == strategy
    else:
        sizes = [len(layer.weight.unique()) for layer in quantizable_layers(model).values()]
        assert all(size <= 2 ** bits for size, bits in zip(sizes, strategy, strict=True))


def test_a_folder_goes_on_where_it_ended(mine, tmp_path):
    model, loaders = mine
    whole = search(model, loaders, budget=0.15, searcher='evolution', episodes=4, folder=tmp_path / 'whole')
    search(model, loaders, budget=0.15, searcher='evolution', episodes=2, folder=tmp_path / 'part')
    assert search(model, loaders, budget=0.15, searcher='evolution', episodes=4, folder=tmp_path / 'part') == whole
    lines = [re.sub(r' \S+ s$', '', (tmp_path / name / 'log.txt').read_text(), flags=re.MULTILINE)
             for name in ('whole', 'part')]
    assert lines[0] == lines[1] and (tmp_path / 'whole' / 'strategy.json').is_file()
    for other in ({'budget': 0.2}, {'searcher': 'random'}, {'max_bit': 6}, {'candidates': [2, 4, 8]},
                  {'pins': {'head': 8}}, {}):
        if not other:
            model.head.weight.data.mul_(1.01)
        with pytest.raises(ValueError, match='is of another search'):
            search(model, loaders, **{'budget': 0.15, 'searcher': 'evolution', **other}, episodes=5,
                   folder=tmp_path / 'part')


def test_a_budget_that_cannot_be_met(mine):
    with pytest.raises(ValueError, match=r'a budget of 0\.01 cannot be met.*lowest possible is 0\.03125'):
        search(*mine, budget=0.01)


def test_a_searcher_of_the_users_own(mine):
    from lib.env.space import Space
    from lib.network.coverage import inventory_of
    from lib.simulator.budget import Constraint
    from lib.simulator.counting import size_of
    model, loaders = mine
    inventory = inventory_of(model, (3, 8, 8), linear=False)
    space = Space.of(inventory, [Constraint.of_ratio(size_of(inventory), 0.15)])
    assert space.holds(search(model, loaders, budget=0.15, searcher=RandomSearcher(space, 3), episodes=2))


def test_the_page_runs(mine):
    code, = re.findall(r'```python\n(.*?)```', PAGE.read_text(encoding='utf-8'), re.DOTALL)
    model, (train_loader, val_loader) = mine
    scope = {'model': model, 'train_loader': train_loader, 'val_loader': val_loader}
    exec(code.replace('episodes=60', 'episodes=2'), scope)  # noqa: S102
    assert len(scope['strategy']) == 4 and scope['metrics'].top1 > 30
