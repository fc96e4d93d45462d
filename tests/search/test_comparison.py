"""A comparison of searchers on a small network, in memory but for its files."""


from lib.search.bench import Bench
from lib.search.comparison import Comparison, FinalTraining
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
