"""A run is resumed with what it was begun from, wherever that lies now; with anything else it is refused, unharmed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.record.checkpoint import read_checkpoint, save_checkpoint
from tests.runs import SCRIPTS, history, last_line
from tests.scripts.conftest import LINEAR

SEARCH, TRAIN, TUNE = 'rl_quantize.py', 'pretrain.py', 'finetune.py'


@pytest.fixture
def copied(home, tmp_path, kmeans_search, linear_search, pretrained, kmeans_finetune):
    """`copied(name)`: a copy of a finished run."""
    def copy(name):
        return Path(shutil.copytree(home / name, tmp_path / Path(name).name))
    return copy


# ---- args.json

def test_settings_are_checked_as_the_command_line_is(copied, refused, read_json):
    """In the args.json of an earlier version, too, which has no digest."""
    folder = copied('save/resnet20_digits_k')
    settings = read_json(folder / 'args.json')
    (folder / 'args.json').write_text(json.dumps({**settings, 'image_size': None}))
    refused(folder, ['args.json', 'digest'], SEARCH, '--resume', folder)
    del settings['record'], settings['digest']
    for change, *words in (
            ({'half': 'maybe'}, '--half', "'maybe'", 'True or False'), ({'arch': 5}, '--arch', 'expected a text'),
            ({'train_batch': '32'}, '--train_batch', "'32'", 'expected 32'), ({'lr_c': 'fast'}, '--lr_c', 'fast'),
            ({'searcher': 'luck'}, '--searcher', 'luck', 'expected one of'), ({'bsize': 0}, '--bsize', 'too small'),
            ({'constraint': 'size=0.2'}, '--constraint', 'expected a list'), ({'val_size': 3.5}, '--val_size', '3.5'),
            ({'linear_quantization': 1}, '--linear_quantization'), ({'preserve_ratio': [0.1]}, '--preserve_ratio'),
            ({'min_bit': True}, '--min_bit', 'True')):
        (folder / 'args.json').write_text(json.dumps({**settings, **change}))
        refused(folder, words, SEARCH, '--resume', folder)


def test_a_line_that_is_missing_is_no_default(copied, refused, call, read_json, tmp_path):
    folder = copied('save/resnet20_digits_k')
    settings = read_json(folder / 'args.json')
    del settings['val_size']
    (folder / 'args.json').write_text(json.dumps(settings))
    refused(folder, ['args.json', 'digest'], SEARCH, '--resume', folder)
    del settings['record'], settings['digest'], settings['keep_memory']
    (folder / 'args.json').write_text(json.dumps({**settings, 'val_size': 64, 'warmup': 0, 'use_top5': False}))
    assert 'has no line' not in call(SEARCH, '--resume', folder, cwd=tmp_path).out
    del settings['use_top5']
    (folder / 'args.json').write_text(json.dumps({**settings, 'val_size': 64}))
    assert 'has no line for --use_top5: the defaults' in call(SEARCH, '--resume', folder, cwd=tmp_path).out


# ---- inputs

def test_weights_may_move_and_not_change(succeed, refused, small_search, small_weights, tmp_path):
    mine = shutil.copy(small_weights, tmp_path / 'mine.pth.tar')
    options = [mine if option == small_weights else option for option in small_search]
    succeed(SEARCH, *options, '--no-finetune_flag', '--train_episode', '1', '--output', tmp_path, cwd=tmp_path)
    folder = tmp_path / 'small_digits'
    other = read_checkpoint(mine)
    next(iter(other['state_dict'].values())).mul_(1.01)
    save_checkpoint(mine, other)
    refused(folder, [f'--weights {mine}', 'something else'], SEARCH, '--resume', folder, '--train_episode', '2')
    Path(mine).unlink()
    refused(folder, ['mine.pth.tar does not exist', 'if it was moved, give its new place by --weights'], SEARCH,
            '--resume', folder, '--train_episode', '2')
    moved = shutil.copy(small_weights, tmp_path / 'moved.pth.tar')
    succeed(SEARCH, '--resume', folder, '--train_episode', '2', '--weights', moved, cwd=tmp_path)
    shutil.move(moved, mine)
    succeed(SEARCH, '--resume', folder, '--train_episode', '3', cwd=tmp_path)  # it is where it was
    assert len(history(folder)) == 3


def test_a_table_may_move_and_not_change(succeed, refused, linear_options, table, tmp_path):
    mine = tmp_path / 'mine.npy'
    for suffix in ('.npy', '.json'):
        shutil.copy(table.with_suffix(suffix), mine.with_suffix(suffix))
    options = [mine if option == table else option for option in linear_options]
    succeed(SEARCH, *options, '--no-finetune_flag', '--train_episode', '1', '--output', tmp_path, cwd=tmp_path)
    folder = tmp_path / 'qresnet20_digits'
    again = (SEARCH, '--resume', folder, '--train_episode', '2')
    shutil.move(mine, tmp_path / 'elsewhere.npy')
    shutil.move(mine.with_suffix('.json'), tmp_path / 'elsewhere.json')
    refused(folder, ['--cost was', 'now size'], *again, '--cost', 'size')
    succeed(*again, '--cost', tmp_path / 'elsewhere.npy', cwd=tmp_path)
    numbers = np.load(tmp_path / 'elsewhere.npy')
    np.save(tmp_path / 'elsewhere.npy', numbers + 1)  # a bare table, as the original's
    (tmp_path / 'elsewhere.json').unlink()
    refused(folder, ['--cost', 'elsewhere.npy', 'something else'], *again[:-1], '3', '--cost',
            tmp_path / 'elsewhere.npy')


def test_the_state_of_another_search(copied, refused, succeed, kmeans_options, tmp_path):
    """With the same network, but another budget: of a run with a record, and of those before."""
    folder = copied('save/resnet20_digits_k')
    options = [{'0.13': '0.2'}.get(option, option) for option in map(str, kmeans_options)]
    succeed(SEARCH, *options, '--no-finetune_flag', '--train_episode', '1', '--output', tmp_path, '--suffix', 'other',
            cwd=tmp_path)
    state = read_checkpoint(tmp_path / 'resnet20_digits_other' / 'search.pth.tar')
    save_checkpoint(folder / 'search.pth.tar', state)
    refused(folder, ['search.pth.tar is of another run'], SEARCH, '--resume', folder)
    settings = json.loads((folder / 'args.json').read_text())
    del settings['record'], settings['digest']
    (folder / 'args.json').write_text(json.dumps(settings))
    refused(folder, ['search.pth.tar is of another run'], SEARCH, '--resume', folder)
    state['history'][0]['strategy'] = [6] * 20
    del state['run']
    save_checkpoint(folder / 'search.pth.tar', state)
    refused(folder, ['search.pth.tar: this is a search under other budgets'], SEARCH, '--resume', folder)


@pytest.mark.parametrize(('keys', 'value'), [
    ((), 3), ((), [1]), (('history', 1, 'strategy', 0), -1e300), (('history', 1, 'strategy', 0), 10 ** 400),
    (('history', 0, 'strategy'), {}), (('agent', 'critic', 'fc2.bias'), 'x'), (('agent', 'actor_optimizer'), [[]]),
    (('agent', 'rng'), None),
])
def test_a_damaged_state_of_an_earlier_version_is_named(copied, refused, keys, value):
    folder = copied('save/resnet20_digits_k')
    state = place = torch.load(folder / 'search.pth.tar', weights_only=True)
    del state['digest'], state['run']
    for key in keys[:-1]:
        place = place[key]
    if keys:
        place[keys[-1]] = value
    torch.save(state if keys else value, folder / 'search.pth.tar')
    settings = json.loads((folder / 'args.json').read_text())
    del settings['record'], settings['digest']
    (folder / 'args.json').write_text(json.dumps(settings))
    refused(folder, ['search.pth.tar'], SEARCH, '--resume', folder)


def test_a_quantizer_that_lost_its_range_is_named(home, linear_finetune, refused, tmp_path):
    """Of the others there, in a checkpoint of an earlier version; it would have begun anew without a word."""
    folder = Path(shutil.copytree(home / 'tuned_l', tmp_path / 'tuned_l'))
    saved = torch.load(folder / 'checkpoint.pth.tar', weights_only=True)
    del saved['digest'], saved['run'], saved['state_dict']['conv1.weight_quantizer.range']
    (folder / 'args.json').unlink()
    torch.save(saved, folder / 'checkpoint.pth.tar')
    refused(folder, ['checkpoint.pth.tar is damaged: it has no conv1.weight_quantizer.range, which'], TUNE, *LINEAR,
            '--linear_quantization', '--resume', folder / 'checkpoint.pth.tar', '--eval')


def test_the_checkpoint_of_another_training(copied, refused, home):
    folder = copied('float')
    shutil.copy(home / 'tuned_k' / 'checkpoint.pth.tar', folder / 'checkpoint.pth.tar')
    for more in ((), ('--eval',)):
        refused(folder, ['is of another run than the args.json'], TRAIN, '--resume', folder / 'checkpoint.pth.tar',
                *more)


def test_settings_that_are_lost_are_given_again(copied, refused, succeed, pretrain_options, tmp_path):
    folder = copied('float')
    (folder / 'args.json').unlink()
    again = (TRAIN, *pretrain_options, '--resume', folder / 'checkpoint.pth.tar')
    refused(folder, ['is of another run than these options say'], *again, '--lr', '0.2')
    done = succeed(*again, '--epochs', '3', cwd=tmp_path)
    assert 'has no args.json: the settings are those of this command' in done.out


def test_a_network_of_ones_own_that_was_edited(succeed, refused, tmp_path):
    file = tmp_path / 'net.py'
    file.write_text('from torch import nn\n\n\ndef build(num_classes):\n    return nn.Sequential(nn.Conv2d(3, 4, 3), '
                    'nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))\n')
    options = ('--model_file', 'net.py:build', '--dataset', 'digits', '--image_size', '8', '--workers', '0',
               '--train_batch', '80', '-c', 'run')
    succeed(TRAIN, *options, '--epochs', '1', cwd=tmp_path)
    run = tmp_path / 'run' / 'checkpoint.pth.tar'
    (tmp_path / 'there').mkdir()
    shutil.copy(file, tmp_path / 'there' / 'net.py')
    file.write_text(file.read_text().replace('nn.ReLU()', 'nn.ReLU6()'))
    refused(tmp_path / 'run', ['--model_file', 'net.py:build', 'something else'], TRAIN, '--resume', run, '--epochs',
            '2')
    succeed(TRAIN, '--resume', run, '--epochs', '2', '--model_file', 'there/net.py:build', cwd=tmp_path)


@pytest.mark.parametrize(('name', 'before', 'now', 'record', 'may'), [
    ('weights', '/gone/a.pth', '/new/a.pth', None, True), ('weights', __file__, '/new/a.pth', None, False),
    ('weights', __file__, '/new/a.pth', {}, False), ('weights', __file__, '/new/a.pth', {'inputs': {}}, True),
    ('weights', None, '/new/a.pth', {'inputs': {}}, False), ('dataset_root', '/gone', '/new', None, True),
    ('dataset_root', str(SCRIPTS), '/new', None, False), ('seed', '1', '2', {'inputs': {}}, False),
    ('cost', '/gone/a.yaml:energy', '/new/b.yaml:energy', None, True),
    ('cost', 'bitops', 'size', {'inputs': {}}, False),
    ('cost', '/gone/a.yaml:energy', '/new/b.yaml:latency', {'inputs': {}}, False),
    ('cost', '/gone/a.npy', 'bitops', {'inputs': {}}, False),
    ('constraint', ['bitops=0.2', '/a.npy=0.3'], ['bitops=0.2', '/b.npy=0.3'], {'inputs': {}}, True),
    ('constraint', ['bitops=0.2', '/a.npy=0.3'], ['bitops=0.2', '/b.npy=0.4'], {'inputs': {}}, False),
    ('constraint', ['/a.npy=0.3'], ['/b.npy=0.3', 'bitops=0.2'], {'inputs': {}}, False),
    ('model_file', '/gone/net.py:build', '/new/net.py:build', None, True),
    ('model_file', '/gone/net.py:build', '/new/net.py:other', None, False),
])
def test_which_settings_may_move(name, before, now, record, may):
    from _resume import may_move
    assert may_move(name, before, now, record) is may


def test_a_data_set_is_known_by_its_files(tmp_path):
    from lib.data.digest import data_digest
    for split in ('train', 'val'):
        for label in 'ab':
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            (folder / '0.png').write_bytes(b'12345')
    before = data_digest('folder', tmp_path / 'data', ('train',))
    (tmp_path / 'data' / 'val' / 'a' / '1.png').write_bytes(b'1')  # not read by a search
    (tmp_path / 'data' / 'train' / 'a' / '.DS_Store').write_bytes(b'1')
    shutil.move(tmp_path / 'data', tmp_path / 'moved')
    assert data_digest('folder', tmp_path / 'moved', ('train',)) == before
    assert data_digest('folder', tmp_path / 'moved', ('train', 'val')) != before
    (tmp_path / 'moved' / 'train' / 'a' / '0.png').write_bytes(b'123456')
    assert data_digest('folder', tmp_path / 'moved', ('train',)) != before
    assert data_digest('digits', None, ('train', 'val')) is None
    batches = tmp_path / 'cifar' / 'cifar-10-batches-py'
    batches.mkdir(parents=True)
    (batches / 'data_batch_1').write_bytes(b'12')
    before = data_digest('cifar10', tmp_path / 'cifar', ('train',))
    (batches / 'data_batch_1').write_bytes(b'21')
    assert data_digest('cifar10', tmp_path / 'cifar', ('train',)) != before


# ---- one path to a result

def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and 'tfevents' not in path.name}


def test_statistics_are_estimated_once(succeed, small, small_weights, tmp_path, read_json):
    """What the loop found is what a finished run, resumed or evaluated, says again."""
    run = tmp_path / 'run'
    options = (*small, '--weights', small_weights, '--strategy', 'uniform:3', '--epochs', '2', '--lr', '0.01',
               '--train_batch', '40')
    said = last_line(succeed(TUNE, *options, '--bn_batches', '1', '-c', run, cwd=tmp_path))
    results = read_json(run / 'results.json')
    assert f"{results['top1']:.6f}" == (run / 'log.txt').read_text().split()[-1]
    whole = contents(run)
    (run / 'results.json').unlink()  # as a kill after the last epoch leaves it
    checkpoint = run / 'checkpoint.pth.tar'
    assert last_line(succeed(TUNE, '--resume', checkpoint, cwd=tmp_path)) == said
    assert contents(run) == whole
    assert last_line(succeed(TUNE, '--resume', checkpoint, '--eval', cwd=tmp_path)) == said
    alone = shutil.copy(checkpoint, tmp_path / 'alone.pth.tar')
    assert last_line(succeed(TUNE, *small, '--weights', alone, '--eval', '--bn_batches', '1', cwd=tmp_path)) == said
    assert last_line(succeed(TUNE, '--resume', checkpoint, '--eval', '--bn_batches', '2', cwd=tmp_path)) != said


@pytest.mark.parametrize(('start', 'changed', 'settings', 'expected'), [
    ({'bn_batches': 4}, {}, True, 0), ({'bn_batches': 0}, {'bn_batches': (0, 4)}, True, 4), ({}, {}, True, 0),
    ({}, {'bn_batches': (2, 4)}, True, 4), ({}, {}, False, 4), (None, {}, False, 4), ({'bn_batches': 2}, {}, False, 4),
])
def test_where_statistics_are_to_be_estimated(tmp_path, start, changed, settings, expected):
    """Those of an earlier version's checkpoint are what the settings beside it say."""
    from _cli import Run
    from _training import batches_to_estimate
    if settings:
        (tmp_path / 'args.json').write_text('{}')
    run = Run(tmp_path, {}, str(tmp_path) if settings else None, changed=changed)
    assert batches_to_estimate(run, 4, start) == expected


# ---- what is lost, and what is not

def test_a_training_that_diverges_says_what_to_do(call, pretrain_options, tmp_path):
    done = call(TRAIN, *pretrain_options, '--lr', '1e30', '-c', 'run', cwd=tmp_path)
    assert done.code and 'Traceback' not in done.err
    assert '--lr below 1e+30' in done.err


@pytest.fixture
def diverging(monkeypatch):
    """`diverging(episode)`: from here on that episode is fine-tuned at a rate that no network survives."""
    from lib.env.search_env import SearchEnv
    finetune = SearchEnv._finetune

    def start(number):
        def wild(env, quantization, episode):
            before = env.settings
            env.settings = replace(before, finetune_lr=1e30) if episode == number else before
            try:
                return finetune(env, quantization, episode)
            finally:
                env.settings = before
        monkeypatch.setattr(SearchEnv, '_finetune', wild)
    return start


def test_a_search_goes_on_after_an_episode_that_diverges(succeed, small_search, tmp_path, diverging, read_json):
    """Also after a search that stopped at it."""
    diverging(1)
    options = (*small_search, '--train_episode', '3', '--output', 'save')
    said = succeed(SEARCH, *options, '--suffix', 'whole', cwd=tmp_path).out
    whole, part = (tmp_path / 'save' / f'small_digits_{name}' for name in ('whole', 'part'))
    assert 'episode 1 diverged: ' in said
    assert (whole / 'log.txt').read_text().splitlines()[1].split()[-3] == 'diverged'
    succeed(SEARCH, *options, '--suffix', 'part', '--train_episode', '1', cwd=tmp_path)
    succeed(SEARCH, '--resume', part, '--train_episode', '3', cwd=tmp_path)
    records = history(whole)
    assert records == history(part) and len(records) == 3
    assert records[1]['accuracy'] == 0 and records[1]['reward'] < min(records[i]['reward'] for i in (0, 2))
    assert 'diverged' not in records[2]
    assert read_json(whole / 'results.json')['accuracy'] > 0
    assert read_json(whole / 'strategy.json')['accuracy'] > 0


def test_a_search_in_which_everything_diverges(call, small_search, tmp_path):
    done = call(SEARCH, *small_search, '--train_episode', '2', '--finetune_lr', '1e30', '--output', tmp_path,
                cwd=tmp_path)
    assert done.code and 'Traceback' not in done.err
    assert 'all 2 episodes diverged' in done.err and '--finetune_lr below 1e+30' in done.err
    assert not {'strategy.json', 'results.json'} & {path.name for path in (tmp_path / 'small_digits').iterdir()}


def test_a_comparison_goes_on_after_what_diverges(succeed, small, small_weights, tmp_path, read_json):
    done = succeed('compare_searchers.py', *small, '--weights', small_weights, '--budgets', 'uniform:3', '--searchers',
                   'uniform', 'random', '--seeds', '1', '--evaluations', '2', '--train_size', '64', '--val_size', '24',
                   '--train_batch', '32', '--finetune_flag', '--finetune_lr', '1e30', '--final_lr', '1e30',
                   '--final_batch', '512', '--output', 'worst', cwd=tmp_path)
    assert 'the fine-tuning of' in done.out and 'a lower learning rate' in done.out
    rows = read_json(tmp_path / 'worst' / 'comparison.json')['rows']
    assert [(row['searcher'], row['search_accuracy'], row['top1']) for row in rows] == [('uniform', 0, 0),
                                                                                       ('random', 0, 0)]
    searches = [read_json(path) for path in (tmp_path / 'worst' / 'searches').iterdir()]
    assert len(searches) == 2 and all(entry['diverged'] for search in searches for entry in search['history'])
