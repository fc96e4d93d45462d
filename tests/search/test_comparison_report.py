"""The figures of a comparison: bars or lines, each visible, in words, no error of a single seed; and how fast."""

from types import SimpleNamespace

import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer

from lib.search import comparison_report
from lib.search.comparison_report import ComparisonReport

NAMES = ('uniform', 'ilp', 'ddpg')


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """`figure(budgets, seeds, searchers=, finetuned=)` -> figure of a comparison; accuracies rise with the budget."""
    saved = {}
    monkeypatch.setattr(comparison_report, 'save_figure', lambda figure, path: saved.update({path.name: figure}))

    def draw(budgets, seeds, searchers=NAMES, rewards=None, name='pareto.png', **options):
        cost = SimpleNamespace(name='edge_latency')
        found = ComparisonReport(tmp_path, arch='net', dataset='data', cost=cost, **options)
        found.add_float(92.0)
        for number, budget in enumerate(budgets):
            for searcher in searchers:
                for seed in seeds:
                    record = {'ratio': 0.2 + number / 10, 'evaluations': 1, 'forwards': 1, 'backwards': 0, 'seconds': 1,
                              'strategy': [], 'accuracy': 50, 'seed': seed,
                              'history': [{'reward': reward} for reward in (rewards or {}).get((searcher, seed), [0])]}
                    found.add(budget, searcher, seed, record, 90 + number + seed / 10 + (searcher == 'uniform'))
        found.plot()
        return saved.get(name), found.text()
    return draw


def texts(ax):
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(('budgets', 'titles'), [
    ([0.6], ['budget: 0.6 of the latency on edge (8/8 bits = 1)']),
    (['uniform:3', 0.5], ['budget: the latency on edge of 3 bits everywhere',
                          'budget: 0.5 of the latency on edge (8/8 bits = 1)'])])
def test_a_few_budgets_are_bars_from_the_float_network(figure, budgets, titles):
    drawn, _ = figure(budgets, [1, 2, 3])
    assert [ax.get_title(loc='left') for ax in drawn.axes] == titles
    for number, ax in enumerate(drawn.axes):
        bars = [bar for container in ax.containers if isinstance(container, BarContainer) for bar in container]
        means = [91.2 + number, 90.2 + number, 90.2 + number]  # of seeds 1, 2, 3
        assert [bar.get_width() for bar in bars] == pytest.approx([mean - 92 for mean in means])
        assert texts(ax) == [f'{mean:.2f} ± 0.06' for mean in means]  # 0.1 / sqrt(3)
    assert [label.get_text() for label in drawn.axes[0].get_yticklabels()] == ['uniform bits', 'integer program (loss)',
                                                                               'agent (DDPG)']
    assert drawn.get_suptitle() == 'net on data: mean and standard error over 3 seeds'
    assert drawn.get_supxlabel() == 'top-1 after fine-tuning, points from float (92.00 %)'


def test_one_seed_has_no_standard_error(figure):
    for budgets in ([0.6], [0.2, 0.3, 0.4, 0.5]):
        drawn, _ = figure(budgets, [1])
        title = drawn.get_suptitle() or drawn.axes[0].get_title(loc='left')
        assert title == 'net on data: one seed' and not any('±' in text for ax in drawn.axes for text in texts(ax))


def test_many_budgets_are_lines_none_of_which_hides_another(figure):
    drawn, _ = figure([0.2, 0.3, 0.4, 0.5], [1, 2])
    (ax,) = drawn.axes
    lines = [container.lines[0] for container in ax.containers]
    assert list(lines[1].get_ydata()) == list(lines[2].get_ydata())  # the same accuracies
    widths = [line.get_linewidth() for line in lines]
    assert widths == sorted(set(widths), reverse=True) and len({to_hex(line.get_color()) for line in lines}) == 3
    assert ax.get_xlabel() == 'latency on edge relative to 8/8 bits'
    assert [text.get_text() for text in drawn.legends[0].get_texts()][0] == 'uniform bits'


def test_what_was_not_fine_tuned_is_not_called_so(figure):
    drawn, table = figure([0.6], [1], finetuned=False)
    assert drawn.get_supxlabel().startswith('top-1 without fine-tuning') and '| top-1 without fine-tuning |' in table
    (ax,) = figure(['uniform:2', 'uniform:3'], [1], searchers=('uniform',), finetuned=False)[0].axes
    assert ax.get_ylabel() == 'top-1 without fine-tuning (%)' and len(ax.containers) == 1  # a curve, no bars


def test_progress_is_the_best_reward_so_far_of_every_searcher(figure):
    rewards = {('ddpg', 1): [-9, 2, 1, 4], ('ddpg', 2): [-9, 0, 3], ('uniform', 1): [2.5], ('uniform', 2): [2.5]}
    drawn, _ = figure(['uniform:3', 0.5], [1, 2], searchers=('uniform', 'ddpg'), rewards=rewards, name='progress.png')
    for ax, title in zip(drawn.axes, ('budget: the latency on edge of 3 bits everywhere',
                                      'budget: 0.5 of the latency on edge (8/8 bits = 1)'), strict=True):
        uniform, agent = ax.lines
        assert ax.get_title(loc='left') == title and uniform.get_linestyle() == '--'
        assert set(uniform.get_ydata()) == {2.5}
        assert list(agent.get_xdata()) == [1, 2, 3, 4] and list(agent.get_ydata()) == [-9, 1, 2.5, 3.5]
        assert len(ax.collections) == 1  # the standard error of the agent
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ['uniform bits', 'agent (DDPG)']


def test_there_is_no_progress_where_everybody_evaluates_once(figure):
    assert figure([0.6], [1, 2], name='progress.png')[0] is None
