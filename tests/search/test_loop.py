"""The loop of a search: one that goes on does what one that was never stopped does, image for image."""

import copy
import json

import pytest

from lib.env.screen import Screen
from lib.record.digest import digest_of_value
from lib.search.baselines import RandomSearcher
from lib.search.bench import ImageCounter
from lib.search.log import EpisodeLog
from lib.search.loop import go_on, identity_of, run_search
from tests.env.environments import ENVS


class Records:
    """A log that only keeps its rows."""

    def __init__(self):
        self.rows = []
        self.add = self.rows.append

    def plot(self):
        """There is nothing to draw."""

    finish = plot


def search(env, episodes, history=()):
    """The records of a search at random, `history` among them."""
    counter, searcher, log = ImageCounter(env.model), RandomSearcher(env.space, seed=3), Records()
    try:
        if history:
            go_on(env, searcher, counter, {'history': history})
        run_search(env, searcher, counter, episodes, log, history)
    finally:
        counter.close()
    return [*history, *({**row, 'seconds': 0} for row in log.rows)]


@pytest.mark.parametrize('kind', ENVS)
@pytest.mark.parametrize('screen', [0, 16])
def test_a_search_that_goes_on_counts_the_same_images(kind, screen, tiny_net, tiny_loaders, monkeypatch):
    monkeypatch.setattr(Screen, 'promising', lambda self, _: len(self.pairs) < 3)
    def env():
        return ENVS[kind](copy.deepcopy(tiny_net), tiny_loaders, screen=screen)

    tiny_loaders[1].batch_size = 16
    episodes = 7
    whole = search(env(), episodes)
    assert any(not row['finetuned'] for row in whole) == bool(screen), 'the screen spares some'
    for done in (1, 3, 5):
        assert search(env(), episodes, whole[:done]) == whole, f'{done} episodes done'


class Fickle(RandomSearcher):
    """Holds the first strategy to be best once it knows four; before, the last."""

    def rank(self, record):
        return record['episode'] if len(self.history) < 4 else -record['episode']


def test_the_strategy_that_is_saved_is_the_one_that_is_best_in_the_end(tiny_net, tiny_loaders, tmp_path):
    env = ENVS['kmeans'](tiny_net, tiny_loaders, finetune_flag=False)
    searcher, counter = Fickle(env.space, seed=3), ImageCounter(env.model)
    log = EpisodeLog(tmp_path, env, searcher)
    saved = []
    log.add = lambda record, add=log.add: (add(record), saved.append(
        json.loads((tmp_path / 'strategy.json').read_text())['strategy']))
    best = run_search(env, searcher, counter, 5, log)
    tried = [strategy for strategy, _ in searcher.history]
    assert saved == [*tried[:3], tried[0], tried[0]] and best.strategy == tried[0]
    assert json.loads((tmp_path / 'results.json').read_text())['strategy'] == tried[0]


def test_settings_that_came_later_are_no_other_search_while_they_change_nothing(tiny_net, tiny_loaders):
    """The identity as it was written before there were any of them."""
    env = ENVS['kmeans'](copy.deepcopy(tiny_net), tiny_loaders, finetune_lr=0.002)
    searcher, budget = RandomSearcher(env.space), env.space.constraints[0]
    before = digest_of_value({
        'searcher': 'random', 'weights': env.weights_digest(), 'settings': {
            'finetune_flag': True, 'finetune_epoch': 1, 'finetune_lr': 0.002, 'finetune_gamma': 0.8, 'use_top5': False,
            'reward_on': 'val', 'reward_cost': False, 'bn_batches': 0, 'screen': 0, 'seed': 234},
        'images': [48, 20], 'budgets': [[budget.cost.digest(), budget.limit]], 'bits': [1, 8, 'rounds', False]})
    assert identity_of(env, searcher) == before
    for changed in ({'reward': 'kl'}, {'reward_on': 'augmented'}, {'finetune_lr': 0.001}):
        assert identity_of(ENVS['kmeans'](copy.deepcopy(tiny_net), tiny_loaders, **{'finetune_lr': 0.002, **changed}),
                           searcher) != before
