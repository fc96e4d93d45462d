"""Whatever a person gets wrong: one readable line, an exit status that is not 0, and nothing lost that was there."""

import json
import math
import shlex
import shutil

import numpy as np
import pytest
import torch

from lib.record.files import sealed
from tests.runs import snapshot
from tests.scripts.bad_input import COMMANDS, ROWS

FILES = {
    'nets.py': """
from torch import nn
def build(num_classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.Conv2d(4, 8, 1),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
def fails():
    raise RuntimeError('no such luck')
def number():
    return 4
def viewing():
    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), View(), nn.Linear(144, 10))
def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 7))
def grey():
    return nn.Sequential(nn.Conv2d(1, 2, 3))
def flat():
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(10))
class Two(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(768, num_classes)
    def forward(self, x):
        return (super().forward(x.flatten(1)),) * 2
""",
    'chip.yaml': 'backend: roofline\npeak_int8: 2 GOPS\nbandwidth: 1.6 Gbit/s\n',
    'edge.yaml': 'preset: edge\ndepth: 512\n', 'no_parameter.yaml': 'preset: edge\nclock: 300\n',
    'broken.yaml': 'preset: "edge\n', 'rowz.yaml': 'rowz: 3\n', 'list.yaml': '[1, 2]\n',
    'mine.csv': 'layer,w_bit,a_bit,cost\n0,*,*,4\n3,*,*,1\n4,*,*,2\n7,*,*,1\n',
    'short.csv': 'layer,w_bit,a_bit,cost\n0,*,*,4\n', 'negative.csv': 'layer,w_bit,a_bit,cost\n0,*,*,-4\n',
    'text.pth': 'not a checkpoint\n', 'text.npy': 'not a table', 'empty.pth': '', 'broken.json': '{"strategy": [6, 6',
    'conv9.json': json.dumps({'strategy': [4] * 4, 'layers': ['conv9', '3', '4', '7']}),
    'nothing.json': '{"arch": "resnet20"}', 'number.json': '6', 'string.json': '{"strategy": "six"}',
    'run/args.json': '{"arch": "resn',
}
FOLDERS = ('empty', 'photos/train', 'run')
UNIFORM = [[8, -1], *[[4, 4]] * 18, [8, 8]]


def write_checkpoints(folder, path):
    whole = path.read_bytes()
    (folder / 'good.pth').write_bytes(whole)
    (folder / 'truncated.pth').write_bytes(whole[:len(whole) // 2])
    state = torch.load(path, weights_only=True)['state_dict']
    spoilt = {**state, 'layer2.0.conv1.weight': torch.full_like(state['layer2.0.conv1.weight'], torch.nan)}
    few = {key: value for key, value in state.items() if 'layer2' not in key}
    for name, value in (('list', [1, 2, 3]), ('foreign', {'weights': {'a': 1}}), ('tensor', torch.zeros(3)),
                        ('module', torch.nn.Linear(2, 2)), ('bare', state), ('missing_keys', few), ('nan', spoilt),
                        ('other_shape', {**state, 'linear.weight': torch.zeros(7, 64)})):
        torch.save(value, folder / f'{name}.pth')


def write_strategies(folder, saved):
    good = json.loads((saved / 'resnet20_digits_k' / 'strategy.json').read_text())
    del good['digest']  # of what is changed below
    shutil.copy(saved / 'qresnet20_digits' / 'strategy.json', folder / 'pairs.json')
    names = [*good['layers'][:3], 'features.18.0', *good['layers'][4:]]
    for name, value in (('good', good), ('other_strategy', {**good, 'layers': names}),
                        ('short_strategy', {**good, 'strategy': good['strategy'][:-1], 'layers': good['layers'][:-1]})):
        (folder / f'{name}.json').write_text(json.dumps(value))


def write_tables(folder, table):
    cells = np.load(table)
    (folder / 'truncated.npy').write_bytes(table.read_bytes()[:1000])
    falling = np.ones((20, 8, 8)) * np.arange(8, 0, -1)[:, None]  # in weight bits; the other one rises
    for name, value in (('short', cells[:-1]), ('flat', cells[:, 7]), ('negative', -cells), ('up', 9 - falling),
                        ('down', falling)):
        np.save(folder / f'{name}.npy', value)
    about = json.loads(table.with_suffix('.json').read_text())
    for name in ('table', 'other'):
        shutil.copy(table, folder / f'{name}.npy')
        (folder / f'{name}.json').write_text(json.dumps(sealed(about)))
        about['layers'][3]['in_channels'] += 1


def write_runs(folder, home):
    """Runs, copies of them that lack something, and what compare_hardware.py takes for a finished one."""
    shutil.copytree(home / 'save', folder / 'save')
    for name in ('float', 'tuned_k'):
        shutil.copytree(home / name, folder / name)
    whole = (folder / 'save' / 'resnet20_digits_k' / 'search.pth.tar').read_bytes()
    for name, content in (('empty', b''), ('text', b'half'), ('half', whole[:len(whole) // 2])):
        run = shutil.copytree(folder / 'save' / 'resnet20_digits_k', folder / f'state_{name}')
        (run / 'search.pth.tar').write_bytes(content)
    shutil.copy(folder / 'float' / 'training.png', folder / 'picture.pth')
    settings = json.loads((home / 'tuned_l' / 'args.json').read_text())
    del settings['record'], settings['digest']
    for name, change, results in (
            ('a', {}, {}), ('short', {}, {'strategy': UNIFORM[:-1]}), ('classes', {}, {'classes': 7}),
            ('float_a', {}, {'quantization': 'float', 'strategy': None}), ('no_args', None, {}),
            ('broken_args', '[1', {}), ('resnet32', {'arch': 'qresnet32'}, {'strategy': [[4, 4]] * 32})):
        (folder / name).mkdir()
        if change is not None:
            text = change if isinstance(change, str) else json.dumps({**settings, **change})
            (folder / name / 'args.json').write_text(text)
        (folder / name / 'results.json').write_text(json.dumps(
            {'quantization': 'linear', 'strategy': UNIFORM, 'top1': 90.0, 'ratio': 0.5, 'classes': 10,
             'input': [3, 8, 8], **results}))


@pytest.fixture(scope='session')
def wrong(home, weights, table, kmeans_search, linear_search, kmeans_finetune, linear_finetune, succeed):
    """The folder in which the commands of the table are given, of files that cannot be used and good ones."""
    folder = home / 'wrong'
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    write_checkpoints(folder, weights)
    write_strategies(folder, home / 'save')
    write_tables(folder, table)
    write_runs(folder, home)
    succeed(*shlex.split(COMMANDS['qat']), '--layer_wbit', '4x5', '--layer_abit', '8,4x3,8', '--epochs', '1', '-c',
            'engine', cwd=folder)
    return folder


@pytest.fixture
def fail(refused, wrong, home):
    """`fail(command, *words)`: the command must fail well, and say all the words."""
    def run(command, *words):
        first, _, rest = command.partition(' ')
        refused(home, words, *shlex.split(f'{COMMANDS.get(first, first)} {rest}'), cwd=wrong)
    return run


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[:70])
def test_bad_input(fail, row):
    fail(*row.replace(' | ', '\n').splitlines())


def test_a_device_that_is_not_there(fail):
    if torch.cuda.is_available():
        pytest.skip('this machine has one')
    fail('train --device cuda', 'cuda', '--device cpu')


def test_a_latency_budget_that_cannot_be_met(fail, table):
    cells = np.load(table)
    lowest = cells[0, 7, 7] + cells[-1, 7, 7] + cells[1:-1, 1:, 1:].reshape(18, -1).min(axis=1).sum()
    fail('linear_search --preserve_ratio 0.05 --min_bit 2', 'cannot be met',
         f'{math.ceil(1e5 * lowest / cells[:, 7, 7].sum()) / 1e5:.5f}')


def test_a_summary_of_results_that_are_none(fail, wrong):
    good = {'top1': 90.0, 'ratio': 0.5, 'quantization': 'linear', 'cost_name': 'size', 'strategy': [[8, -1], [4, 4]]}
    bad_values = [('top1', 'high'), ('top1', 101), ('top1', None), ('ratio', True), ('ratio', -1), ('quantization', 3),
                  ('cost_name', ['size']), ('strategy', 'uniform:4'), ('strategy', [4, 'x']), ('strategy', [[1, 2, 3]])]
    texts = ['{"top1": 3', '{"top1": 3}', '[]', '{"top1": NaN, "ratio": 1, "quantization": "float"}', '[' * 100_000,
             json.dumps(good).replace('0.5', '-Infinity'), json.dumps(good).replace('0.5', '1e999'),
             json.dumps({**sealed(good), 'top1': 99.0}), json.dumps({**sealed(good), 'more': 1}),
             *(json.dumps({**good, key: value}) for key, value in bad_values)]
    for text in texts:
        (wrong / 'empty' / 'results.json').write_text(text)
        fail('summarize.py a=empty', 'empty/results.json')
    (wrong / 'empty' / 'results.json').unlink()


# ---- what is there stays, and does not block


def test_overwrite_replaces_the_run_and_leaves_other_files(succeed, small, tmp_path, read_json):
    """The notes and pictures that a person has put there are not the run's."""
    run = tmp_path / 'run'
    options = (*small, '--train_batch', '80', '--epochs', '1', '-c', 'run')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'photo.png').write_text('mine')  # a folder with pictures of others is no run
    succeed('pretrain.py', *options, cwd=tmp_path)
    for name in ('notes.txt', 'logs/events.txt'):
        (run / name).write_text('mine')
    succeed('pretrain.py', *options, '--seed', '5', '--overwrite', cwd=tmp_path)
    assert read_json(run / 'args.json')['seed'] == 5
    assert all((run / name).is_file() for name in ('notes.txt', 'photo.png', 'logs/events.txt'))


def test_a_failed_start_does_not_block_the_next(call, succeed, small, tmp_path):
    """The command is corrected and given again."""
    options = (*small, '--train_batch', '80', '--epochs', '1', '-c', 'run')
    assert call('pretrain.py', *options, '--device', 'gpu', cwd=tmp_path).code != 0
    assert call('pretrain.py', *options, '--weights', 'nowhere.pth', cwd=tmp_path).code != 0
    succeed('pretrain.py', *options, cwd=tmp_path)


def test_overwriting_the_run_whose_weights_are_taken(call, pretrained, network, home, tmp_path):
    """The weights must not be deleted before they are read: the command works, or refuses and loses nothing."""
    shutil.copytree(home / 'float', tmp_path / 'run')
    before = snapshot(tmp_path / 'run')
    done = call('pretrain.py', *network, '-c', 'run', '--weights', 'run/checkpoint.pth.tar', '--epochs', '1',
                '--train_batch', '80', '--overwrite', cwd=tmp_path)
    assert 'Traceback' not in done.err
    if done.code == 0:
        assert (tmp_path / 'run' / 'results.json').is_file()
    else:
        assert snapshot(tmp_path / 'run') == before


def test_a_plot_stays_in_the_folder_that_was_named(succeed, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'results.json').write_text(json.dumps(
        {'top1': 90.0, 'ratio': 0.5, 'quantization': 'linear', 'cost_name': 'x/../../evil'}))
    succeed('summarize.py', 'a=run', '--output', 'out/deep', cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['deep'] and not list(tmp_path.glob('evil*'))
