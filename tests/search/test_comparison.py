"""A comparison of searchers on a small network, in memory but for its files."""


import json

import pytest

from lib.search.bench import Bench, SearcherSettings
from lib.search.comparison import Comparison, FinalTraining
from lib.training.compensation import Rounding
from lib.training.loop import evaluate
from tests.env.environments import kmeans_env


def test_a_searcher_whose_measurements_are_not_finite_is_left_out(tiny_net, tiny_loaders, tmp_path, monkeypatch,
                                                                  caplog):
    env = kmeans_env(tiny_net, tiny_loaders, preserve_ratio=0.2)
    bench, make = Bench(env, 2, folder=tmp_path), Bench.searcher

    def searcher(self, name, *options):
        if name == 'hessian':
            raise FloatingPointError('the sensitivities of layer fc are not finite')
        return make(self, name, *options)

    monkeypatch.setattr(Bench, 'searcher', searcher)
    comparison = Comparison(tmp_path, bench, tiny_loaders, FinalTraining(epochs=0))
    report = comparison.run({0.2: env.space}, ['uniform', 'hessian', 'random'], arch='tiny', dataset='tiny')
    assert '0.2 by hessian is left out: the sensitivities of layer fc are not finite' in caplog.text
    assert 'random' in report.text() and 'hessian' not in report.text()
    assert sorted(path.stem for path in (tmp_path / 'searches').iterdir()) == ['0.2_random_seed1', '0.2_uniform']


def test_each_seed_rounds_on_images_of_its_own(tiny_net, tiny_loaders, tmp_path):
    env = kmeans_env(tiny_net, tiny_loaders, preserve_ratio=0.125, finetune_flag=False,
                     rounding=Rounding('compensated', 64))
    comparison = Comparison(tmp_path, Bench(env, 2, folder=tmp_path), tiny_loaders, FinalTraining(epochs=0))
    comparison.run({0.125: env.space}, ['uniform'], seeds=[1, 2], arch='tiny', dataset='tiny')
    files = sorted((tmp_path / 'finetuned').glob('*_seed*.json'))
    first, second = (json.loads(path.read_text()) for path in files)
    assert (first['seed'], second['seed']) == (1, 2) and first['strategy'] == second['strategy']
    assert first['loss'] != second['loss']
    env.quantize_finally(second['strategy'], tiny_loaders[0], 2)
    metrics = evaluate(env.model, tiny_loaders[1], env.criterion, env.device)
    assert (metrics.top1, metrics.loss) == (second['top1'], second['loss'])


def test_a_policy_is_judged_as_the_result_of_a_searcher_and_marked_above_the_budget(tiny_net, tiny_loaders, tmp_path):
    env = kmeans_env(tiny_net, tiny_loaders, preserve_ratio=0.125, max_bit=4)
    policies = {'four': [4, 4, 4, 4], 'eight': [8, 4, 4, 4]}  # 8 bits are none of the search's
    assert env.space.holds(policies['four']) and not env.space.holds(policies['eight'])

    def compare(policies):
        bench = Bench(env, 2, SearcherSettings(policies=policies), folder=tmp_path)
        comparison = Comparison(tmp_path, bench, tiny_loaders, FinalTraining(epochs=0))
        return comparison.run({0.125: env.space}, ['uniform', *policies], seeds=[1, 2], arch='tiny', dataset='tiny')

    report = compare(policies)
    rows = {name: [row for row in report.rows if row['searcher'] == name] for name in ('uniform', *policies)}
    assert [row['above_budget'] for found in rows.values() for row in found] == [False] * 4 + [True] * 2
    for name, strategy in policies.items():
        outcome = env.evaluate_strategy(strategy)
        assert [row['strategy'] for row in rows[name]] == [strategy] * 2
        assert {row['ratio'] for row in rows[name]} == {env.space.cost.ratio(strategy)}
        assert {row['search_accuracy'] for row in rows[name]} == {outcome.accuracy}
    assert rows['four'][0]['top1'] == rows['uniform'][0]['top1'], 'the same strategy'
    assert len(list((tmp_path / 'finetuned').iterdir())) == 3, 'without training seeds make no difference'
    lines = {line.split(' | ')[1]: line for line in report.text().splitlines() if line.startswith('| 0.125')}
    assert '| above the budget |' in lines['eight'] and '| +0.00 |' in lines['four']
    assert json.loads((tmp_path / 'searches' / '0.125_eight.json').read_text())['policy'] == policies['eight']
    with pytest.raises(ValueError, match='0.125_four.json is of another search or comparison'):
        compare({'four': [4, 4, 4, 3]})
