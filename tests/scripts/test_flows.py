"""Both flows end to end by command, from another folder: pretrain, search, fine-tune, evaluate, summarize."""

import json
import math
import re
import shutil
import struct

import matplotlib.image
import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

COLUMNS = ['Learning Rate', 'Train Loss', 'Valid Loss', 'Train Acc.', 'Valid Acc.']


def events(folder):
    """Returns {tag: {step: value}} of the TensorBoard files in a folder, and the texts by tag."""
    scalars, texts = {}, {}
    for path in sorted(folder.glob('events.out.tfevents.*')):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from('<Q', data, place)  # then 4 bytes checksum, the record, 4 bytes checksum
            event = Event.FromString(data[place + 12:place + 12 + length])
            place += length + 16
            for value in event.summary.value:
                if value.HasField('tensor'):
                    texts.setdefault(value.tag, {})[event.step] = value.tensor.string_val[0].decode()
                else:
                    scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars, texts


def read(path):
    return torch.load(path, weights_only=True)


def log_rows(folder):
    header, *rows = (line.split('\t') for line in (folder / 'log.txt').read_text().splitlines())
    assert header == COLUMNS
    return np.array(rows, dtype=float)


def check_pictures(folder, *names):
    for name in names:
        picture = matplotlib.image.imread(folder / name)
        assert min(picture.shape[:2]) > 100 and picture.std() > 0, f'{name} is empty'


def layer_weights(state_dict):
    """Returns the weights of convolutions and the classifier: what has more than one dimension."""
    return {key: value for key, value in state_dict.items() if value.dim() > 1}


def said(metrics, text):
    """Whether a script printed exactly these accuracies."""
    return f"top-1 {metrics['top1']:.2f} %  top-5 {metrics['top5']:.2f} %  loss {metrics['loss']:.4f}" in text


# ---- float training


def test_pretraining_leaves_a_complete_run(home, pretrained, read_json):
    folder = home / 'float'
    rows = log_rows(folder)
    assert rows[:, 0].tolist() == [0.05, 0.0375, 0.0125]  # cosine: .5 lr (1 + cos(pi e / 3))
    assert np.isfinite(rows).all()
    results, saved, best = (read_json(folder / 'results.json'), read(folder / 'checkpoint.pth.tar'),
                            read(folder / 'model_best.pth.tar'))
    assert results['quantization'] == 'float' and results['ratio'] == 1
    assert round(results['top1'], 6) == rows[-1, 4] and round(results['best_top1'], 6) == rows[:, 4].max()
    assert saved['epoch'] == 3 and saved['acc'] == results['top1'] and saved['best_acc'] == results['best_top1']
    assert best['acc'] == results['best_top1']
    assert f"top-1 {results['top1']:.2f} %" in pretrained.out
    check_pictures(folder, 'training.png')
    scalars, _ = events(folder / 'logs')
    assert set(scalars) == {'learning_rate', 'train_loss', 'test_loss', 'train_accuracy', 'test_accuracy'}
    assert all(set(steps) == {0, 1, 2} for steps in scalars.values())
    assert scalars['test_accuracy'][2] == pytest.approx(results['top1'])
    assert pretrained.err == ''


def test_evaluating_the_float_network_gives_the_logged_accuracy(home, pretrained, succeed, read_json):
    before = (home / 'float' / 'results.json').read_bytes()
    done = succeed('pretrain.py', '--resume', 'float/checkpoint.pth.tar', '--eval', cwd=home)
    assert said(read_json(home / 'float' / 'results.json'), done.out)
    assert (home / 'float' / 'results.json').read_bytes() == before


def test_a_run_remembers_its_settings(home, pretrained, read_json):
    args = read_json(home / 'float' / 'args.json')
    assert (args['arch'], args['image_size'], args['epochs'], args['train_batch'], args['seed']) == \
        ('resnet20', 8, 3, 24, 234)


# ---- search


@pytest.fixture(params=['kmeans', 'linear'])
def searched(request, home):
    """(kind, folder, printed text, episodes, ratio) of each of the two searches."""
    if request.param == 'kmeans':
        return 'kmeans', home / 'save' / 'resnet20_digits_k', request.getfixturevalue('kmeans_search').out, 4, 0.13
    return 'linear', home / 'save' / 'qresnet20_digits', request.getfixturevalue('linear_search').out, 4, 0.6


def test_the_strategy_is_the_same_everywhere(searched, read_json):
    kind, folder, printed, _, _ = searched
    strategy = read_json(folder / 'strategy.json')['strategy']
    line = (folder / 'strategy.txt').read_text()
    assert line == json.dumps(strategy) + '\n'
    assert printed.endswith('\n' + line), 'the last line that is printed is the one to paste'
    assert (folder / 'log.txt').read_text().endswith(f'best policy: {line}')
    assert str(folder.name) + '/strategy.json' in printed


def test_the_strategy_file_says_what_it_belongs_to(searched, weights, read_json):
    kind, folder, _, _, ratio = searched
    about = read_json(folder / 'strategy.json')
    assert about['layers'] == [key.removesuffix('.weight') for key in layer_weights(read(weights)['state_dict'])]
    assert about['quantization'] == kind and about['dataset'] == 'digits' and about['preserve_ratio'] == ratio
    assert len(about['strategy']) == len(about['layers']) == 20


def test_the_best_episode_is_the_one_of_highest_reward(searched, read_json):
    _, folder, _, episodes, _ = searched
    history = read(folder / 'search.pth.tar')['history']
    assert [record['episode'] for record in history] == list(range(episodes))
    best = max(history, key=lambda record: record['reward'])
    about = read_json(folder / 'strategy.json')
    assert (best['strategy'], best['episode'], best['reward']) == (about['strategy'], about['episode'], about['reward'])
    for record in history:
        assert record['reward'] == pytest.approx(0.1 * (record['accuracy'] - about['float_accuracy']))


def test_every_kmeans_episode_is_within_size_budget_and_bit_range(home, kmeans_search, weights):
    counts = [value.numel() for value in layer_weights(read(weights)['state_dict']).values()]
    for record in read(home / 'save' / 'resnet20_digits_k' / 'search.pth.tar')['history']:
        assert all(2 <= bits <= 6 for bits in record['strategy'])
        size = sum(n * bits for n, bits in zip(counts, record['strategy'], strict=True))
        assert record['cost'] == size <= 0.13 * 32 * sum(counts)
        assert record['ratio'] == pytest.approx(size / (32 * sum(counts)))


def test_every_linear_episode_is_within_latency_budget(home, linear_search, table):
    cells = np.load(table)
    for record in read(home / 'save' / 'qresnet20_digits' / 'search.pth.tar')['history']:
        strategy = record['strategy']
        assert strategy[0] == [8, -1] and strategy[-1] == [8, 8]
        assert all(1 <= w <= 8 and 1 <= a <= 8 for w, a in strategy[1:])
        latency = sum(cells[i, w - 1, (8 if a == -1 else a) - 1] for i, (w, a) in enumerate(strategy))
        assert record['cost'] == latency <= 0.6 * cells[:, 7, 7].sum()


def test_the_log_of_a_search_has_a_line_per_episode_within_budget(searched):
    _, folder, printed, episodes, ratio = searched
    lines = (folder / 'log.txt').read_text().splitlines()
    assert len(lines) == episodes + 2
    for i, line in enumerate(lines[:episodes]):
        found = re.match(rf'#{i}: reward (\S+) accuracy (\S+) .* ratio (\S+) best_reward (\S+) ', line)
        assert found and float(found[3]) <= ratio
        assert line in printed
        assert ('value_loss' in line) == (i > 0), 'the agent learns from the first episode after warm-up on'


def test_the_scalars_of_a_search_have_the_original_names(searched):
    kind, folder, _, episodes, _ = searched
    scalars, texts = events(folder)
    history = read(folder / 'search.pth.tar')['history']
    every = {'reward/last', 'reward/best', 'info/accuracy', 'info/w_ratio', 'info/cost_ratio', 'info/images_forward',
             'info/images_backward', 'delta', *(f'preserve_rate_w/{i}' for i in range(20))}
    every |= {f'preserve_rate_a/{i}' for i in range(20)} if kind == 'linear' else set()
    assert set(scalars) == every | {'value_loss', 'policy_loss'}
    assert all(set(scalars[tag]) == set(range(episodes)) for tag in every)
    assert set(scalars['value_loss']) == set(range(1, episodes))
    for record in history:
        step, first = record['episode'], record['strategy'][3]
        assert scalars['reward/last'][step] == pytest.approx(record['reward'], rel=1e-5)
        assert scalars['preserve_rate_w/3'][step] == (first[0] if kind == 'linear' else first)
    current = next(text for tag, text in texts.items() if tag.startswith('info/current_policy'))
    assert json.loads(current[episodes - 1]) == history[-1]['strategy']
    assert any(tag.startswith('info/best_policy') for tag in texts)


def test_a_search_leaves_plots_and_the_agent(searched):
    kind, folder, _, _, _ = searched
    check_pictures(folder, 'strategy.png', 'search.png', 'budget.png')
    actor, critic = read(folder / 'actor.pkl'), read(folder / 'critic.pkl')
    assert actor['fc1.weight'].shape == (64, 10 if kind == 'linear' else 9)
    agent = read(folder / 'search.pth.tar')['agent']
    for name, network in (('actor', actor), ('critic', critic)):
        assert all(torch.equal(network[key], agent[name][key]) for key in network)


# ---- fine-tuning


@pytest.fixture(params=['kmeans', 'linear'])
def tuned(request, home):
    """(kind, folder, printed text, search folder) of each of the two fine-tunings."""
    request.getfixturevalue(f'{request.param}_finetune')
    if request.param == 'kmeans':
        return 'kmeans', home / 'tuned_k', request.getfixturevalue('kmeans_finetune').out, 'resnet20_digits_k'
    return 'linear', home / 'tuned_l', request.getfixturevalue('linear_finetune').out, 'qresnet20_digits'


def test_fine_tuning_leaves_a_complete_run(tuned, home, read_json):
    kind, folder, printed, search = tuned
    found, results = read_json(home / 'save' / search / 'strategy.json'), read_json(folder / 'results.json')
    assert results['quantization'] == kind
    assert results['strategy'] == read_json(folder / 'strategy.json')['strategy'] == found['strategy']
    assert (results['cost'], results['ratio']) == (found['cost'], pytest.approx(found['ratio']))
    assert said(results, printed)
    rows = log_rows(folder)
    assert rows[-1, 4] == round(results['top1'], 6)
    saved = read(folder / 'checkpoint.pth.tar')
    assert saved['strategy'] == found['strategy'] and saved['layers'] == found['layers'] and saved['epoch'] == len(rows)
    check_pictures(folder, 'training.png')
    scalars, _ = events(folder / 'logs')
    assert scalars['test_accuracy'][len(rows) - 1] == pytest.approx(results['top1'])


def test_fine_tuned_kmeans_weights_take_as_many_values_as_their_bits_allow(home, kmeans_finetune):
    saved = read(home / 'tuned_k' / 'checkpoint.pth.tar')
    weights = layer_weights(saved['state_dict'])
    for bits, (name, weight) in zip(saved['strategy'], weights.items(), strict=True):
        assert len(weight.unique()) <= 2 ** bits, name


def test_evaluating_the_checkpoint_gives_the_logged_accuracy(tuned, home, succeed, read_json):
    _, folder, _, _ = tuned
    done = succeed('finetune.py', '--resume', folder.name + '/checkpoint.pth.tar', '--eval', cwd=home)
    assert said(read_json(folder / 'results.json'), done.out)


def test_the_checkpoint_alone_knows_network_strategy_and_data(tuned, tmp_path, succeed, read_json, table):
    """Copied away from its folder and its args.json."""
    kind, folder, _, _ = tuned
    shutil.copy(folder / 'checkpoint.pth.tar', tmp_path / 'gift.pth.tar')
    options = () if kind == 'kmeans' else ('--cost', table)
    done = succeed('finetune.py', *options, '--workers', '0', '--resume', 'gift.pth.tar', '--evaluate', cwd=tmp_path)
    assert said(read_json(folder / 'results.json'), done.out)
    assert [path.name for path in tmp_path.iterdir()] == ['gift.pth.tar'], 'evaluating writes nothing'


@pytest.mark.parametrize('free', ['True', 'False'])
def test_fine_tuning_layers_of_7_and_8_bits_for_two_epochs(high_options, high_bits, tmp_path, succeed, read_json, free):
    """Those stay float until the last epoch with free_high_bit, and end clustered either way."""
    folder = high_bits
    if free == 'False':
        folder = tmp_path / 'run'
        succeed('finetune.py', *high_options, '--free_high_bit', free, '-c', folder, cwd=tmp_path)
    saved, strategy = read(folder / 'checkpoint.pth.tar'), high_options[high_options.index('--strategy') + 1]
    for bits, weight in zip(strategy, layer_weights(saved['state_dict']).values(), strict=True):
        assert len(weight.unique()) <= 2 ** bits
    assert read_json(folder / 'results.json')['strategy'] == strategy


# ---- cost tables and the summary


def test_a_missing_latency_table_is_made_and_announced(home, weights, linear, episodes, succeed, tmp_path, table,
                                                       monkeypatch):
    """Under its conventional name; the folder of the tables is elsewhere here, so that the repository stays clean."""
    import _costs
    monkeypatch.setattr(_costs, 'TABLES', tmp_path / 'tables')
    done = succeed('rl_quantize.py', *linear, *episodes, '--weights', weights, '--output', tmp_path / 'save',
                   '--train_episode', '1', '--preserve_ratio', '0.6', '--no-finetune_flag', cwd=home)
    made = list((tmp_path / 'tables').glob('*.npy'))
    assert len(made) == 1 and str(made[0]) in done.out
    assert np.array_equal(np.load(made[0]), np.load(table))


def test_a_lookup_table_by_command(table, read_json):
    cells, about = np.load(table), read_json(table.with_suffix('.json'))
    assert cells.shape == (20, 8, 8) and cells.dtype == np.int64 and (cells > 0).all()
    assert about['network'] == 'qresnet20' and about['batch'] == 16 and len(about['layers']) == 20
    assert about['layers'][0]['in_h'] == 8 and about['layers'][-1]['out_channels'] == 10


def test_summary_of_three_runs(home, kmeans_finetune, linear_finetune, succeed, read_json):
    done = succeed('summarize.py', 'float=float', 'searched=tuned_k', 'latency=tuned_l', '--output', 'summary',
                   cwd=home)
    lines = (home / 'summary' / 'summary.md').read_text()
    assert lines in done.out
    for label, folder in (('float', 'float'), ('searched', 'tuned_k'), ('latency', 'tuned_l')):
        results = read_json(home / folder / 'results.json')
        row = next(line for line in lines.splitlines() if line.startswith(f'| {label} |'))
        assert f"{results['ratio']:.4f}" in row and f"{results['top1']:.2f}" in row
    names = {read_json(home / folder / 'results.json')['cost_name'] for folder in ('tuned_k', 'tuned_l')}
    check_pictures(home / 'summary', *(f'{name}.png' for name in names))
    assert math.isclose(read_json(home / 'float' / 'results.json')['ratio'], 1)


def test_runs_of_one_label_are_a_row(succeed, call, tmp_path):
    for name, top1, ratio, cost in (('1', 90.0, 0.5, 'size'), ('2', 92.0, 0.5, 'size'), ('3', 97.0, 0.8, 'size'),
                                    ('other', 91.0, 0.5, 'latency')):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'results.json').write_text(json.dumps(
            {'top1': top1, 'ratio': ratio, 'quantization': 'linear', 'cost_name': cost}))
    done = succeed('summarize.py', 'seeds=1', 'alone=3', 'seeds=2', cwd=tmp_path)
    assert done.out.splitlines()[2:] == ['| seeds | size | 0.5000 | 91.00 ± 1.00 (2) |  |',
                                         '| alone | size | 0.8000 | 97.00 |  |']  # sqrt(2) / sqrt(2)
    done = call('summarize.py', 'a=1', 'a=other', cwd=tmp_path)
    assert done.code == 1 and 'a: its 2 runs have several cost_names (latency, size)' in done.err


def test_uniform_bits_are_a_curve_that_a_search_has_to_break_through(home, succeed, call, monkeypatch, tmp_path, small,
                                                                     small_weights):
    from lib.record import plots
    drawn, budgets = {}, [f'uniform:{bits}' for bits in (2, 3, 8)]
    succeed('compare_searchers.py', *small, '--linear_quantization', '--weights', small_weights, '--cost',
            'edge_latency', '--searchers', 'uniform', '--budgets', *budgets, '--min_bit', '2', '--seeds', '1',
            '--evaluations', '1', '--final_epochs', '0', '--val_size', '40', '--output', tmp_path / 'curve', cwd=home)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'results.json').write_text('{"top1": 97, "ratio": 0.5, "quantization": "linear", '
                                                   '"cost_name": "edge_latency"}')
    monkeypatch.setattr(plots, 'plot_budget', lambda points, path, **options: drawn.update(options, points=points))
    succeed('summarize.py', 'searched=run', '--output', 'out', '--curve', 'curve', cwd=tmp_path)
    assert [point['label'] for point in drawn['curve']] == ['2', '3', '8']
    ratios = [point['ratio'] for point in drawn['curve']]
    assert ratios == sorted(ratios) and ratios[-1] == 1 and {point['group'] for point in drawn['curve']} == {
        'uniform bits, not fine-tuned'}
    assert drawn['points'] == [{'label': '', 'ratio': 0.5, 'accuracy': 97, 'group': 'searched, fine-tuned'}]
    assert drawn['xlabel'] == 'latency on edge relative to 8/8 bits'
    done = call('summarize.py', 'searched=run', '--curve', 'run', cwd=tmp_path)
    assert done.code == 1 and 'run/comparison.json' in done.err and 'Traceback' not in done.err
