"""Whatever a person gets wrong: one readable line, an exit status that is not 0, and nothing lost that was there."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch

from lib.record.files import sealed

SEARCH, TUNE, TRAIN, TABLE, SUMMARY = ('rl_quantize.py', 'finetune.py', 'pretrain.py', 'make_lookup_table.py',
                                       'summarize.py')


def snapshot(folder):
    """Returns what would show that anything under a folder was written: size and time of every file."""
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
            for path in folder.rglob('*')}


def folder_option(script):
    """Returns the option that sends the output of a script to the current folder."""
    return {SEARCH: ('--output', 'out'), TABLE: ('--output', 'out.npy')}.get(script, ('-c', 'out'))


@pytest.fixture(scope='session')
def bad(home, weights, table, kmeans_search, linear_search):
    """A folder of files that cannot be used, each by its name; the good ones are there too."""
    folder = home / 'bad'
    folder.mkdir()
    whole = weights.read_bytes()
    (folder / 'good.pth').write_bytes(whole)
    (folder / 'empty.pth').write_bytes(b'')
    (folder / 'truncated.pth').write_bytes(whole[:len(whole) // 2])
    (folder / 'text.pth').write_text('not a checkpoint\n')
    (folder / 'picture.pth').write_bytes((home / 'float' / 'training.png').read_bytes())
    torch.save([1, 2, 3], folder / 'list.pth')
    torch.save({'weights': {'a': 1}}, folder / 'foreign.pth')
    torch.save(torch.zeros(3), folder / 'tensor.pth')
    torch.save(torch.nn.Linear(2, 2), folder / 'module.pth')
    state = torch.load(weights, weights_only=True)['state_dict']
    torch.save(state, folder / 'bare.pth')  # weights alone: fine to start from, not to resume from
    torch.save({key: value for key, value in state.items() if 'layer2' not in key}, folder / 'missing_keys.pth')
    torch.save({**state, 'linear.weight': torch.zeros(7, 64)}, folder / 'other_shape.pth')
    state['layer2.0.conv1.weight'] = torch.full_like(state['layer2.0.conv1.weight'], torch.nan)
    torch.save(state, folder / 'nan.pth')
    good = json.loads((home / 'save' / 'resnet20_digits_k' / 'strategy.json').read_text())
    del good['digest']  # of what is changed below
    pairs = json.loads((home / 'save' / 'qresnet20_digits' / 'strategy.json').read_text())
    names = [*good['layers'][:3], 'features.18.0', *good['layers'][4:]]
    for name, value in (('short_strategy', {**good, 'strategy': good['strategy'][:-1], 'layers': good['layers'][:-1]}),
                        ('other_strategy', {**good, 'layers': names}), ('pairs', pairs), ('good', good),
                        ('nothing', {'arch': 'resnet20'}), ('number', 6), ('string', {'strategy': 'six'})):
        (folder / f'{name}.json').write_text(json.dumps(value))
    (folder / 'broken.json').write_text('{"strategy": [6, 6')
    cells = np.load(table)
    (folder / 'truncated.npy').write_bytes(table.read_bytes()[:1000])
    (folder / 'text.npy').write_text('not a table')
    np.save(folder / 'short.npy', cells[:-1])
    np.save(folder / 'flat.npy', cells[:, 7])
    np.save(folder / 'negative.npy', -cells)
    shutil.copy(table, folder / 'other.npy')
    about = json.loads(table.with_suffix('.json').read_text())
    about['layers'][3]['in_channels'] += 1
    (folder / 'other.json').write_text(json.dumps(sealed(about)))
    (folder / 'empty').mkdir()
    (folder / 'photos' / 'train').mkdir(parents=True)
    (folder / 'run').mkdir()
    (folder / 'run' / 'args.json').write_text('{"arch": "resn')
    return folder


@pytest.fixture
def fail(call, bad, home, tmp_path):
    """`fail(script, *options, words=)`: a command, in a new folder, must fail well; a word may be several to choose."""
    number = itertools.count()

    def run(script, *options, words=()):
        before, cwd = snapshot(home), tmp_path / f'user{next(number)}'
        cwd.mkdir()
        done = call(script, *[str(option).replace('BAD', str(bad)) for option in options], cwd=cwd)
        message = done.err.strip()
        assert done.code not in (0, None), f'accepted: {done.out}'
        assert 'Traceback' not in message, message
        lines = [line for line in message.splitlines() if not line.startswith(('import torch', 'torch.save'))]
        last = lines[-1]
        assert 'error: ' in last, message
        if not message.startswith('usage:'):  # argparse shows the options before its line
            assert len(lines) == 1 and message.startswith('error: '), message
        for word in words:
            accepted = [text.replace('BAD', str(bad)).lower() for text in ([word] if isinstance(word, str) else word)]
            assert any(text in last.lower() for text in accepted), f'{word!r} is not in: {last}'
        assert snapshot(home) == before, 'files of other runs have changed'
        return last
    return run


@pytest.fixture
def search(fail, network, episodes):
    """`search(*options, words=)`: a K-means search that must fail, good but for the options."""
    return lambda *options, words=(): fail(
        SEARCH, *network, *episodes, '--weights', 'BAD/good.pth', '--train_episode', '1', '--preserve_ratio', '0.13',
        '--output', 'save', *options, words=words)


@pytest.fixture
def linear_search_fails(fail, linear, episodes, table):
    """The same in the linear flow."""
    return lambda *options, words=(): fail(
        SEARCH, *linear, *episodes, '--linear_quantization', '--weights', 'BAD/good.pth', '--train_episode', '1',
        '--preserve_ratio', '0.6', '--cost', table, '--output', 'save', *options, words=words)


@pytest.fixture
def tune(fail, network):
    """`tune(*options, words=)`: a K-means fine-tuning that must fail, good but for the options."""
    return lambda *options, words=(): fail(
        TUNE, *network, '--weights', 'BAD/good.pth', '--strategy', 'BAD/good.json', '--epochs', '1', '-c', 'out',
        *options, words=words)


@pytest.fixture
def train(fail, network):
    """`train(*options, words=)`: a float training that must fail, good but for the options."""
    return lambda *options, words=(): fail(TRAIN, *network, '--epochs', '1', '-c', 'out', *options, words=words)


# ---- names

@pytest.mark.parametrize('script', [SEARCH, TUNE, TRAIN, TABLE])
def test_unknown_flag(fail, script):
    fail(script, '--no_such_flag', '3', words=['--no_such_flag'])


@pytest.mark.parametrize('script', [SEARCH, TUNE, TRAIN, TABLE])
def test_unknown_architecture(fail, script, network):
    options = {TABLE: ('--dataset', 'digits'), TRAIN: network}.get(script, (*network, '--weights', 'BAD/good.pth'))
    options = (*options, '--train_size', '64', '--val_size', '64') if script == SEARCH else options
    fail(script, *options, *folder_option(script), '--arch', 'resnet02', words=['resnet02', 'resnet20'])


@pytest.mark.parametrize('script', [SEARCH, TUNE, TRAIN, TABLE])
def test_unknown_data_set(fail, script):
    fail(script, '--arch', 'resnet20', '--dataset', 'imagnet', *folder_option(script),
         words=['imagnet', 'imagenet', 'digits', 'folder'])


def test_unknown_hardware(fail, linear_search_fails):
    fail(TABLE, '--hardware', 'moon', words=['moon', 'cloud', 'edge'])
    linear_search_fails('--cost', 'moon_latency', words=['moon_latency', 'cloud_latency', 'edge_latency', '.npy'])


def test_abbreviations_are_no_flags(train):
    train('--epoch', '3', words=['--epoch'])


@pytest.mark.parametrize(('device', 'words'), [('cuda', ['cuda', '--device cpu']), ('gpu', ['gpu', 'auto', 'cpu']),
                                               ('cpu:x', ['cpu:x', 'auto', 'cpu']), ('cuda:x', ['cuda:x'])])
def test_a_device_that_is_not_there(train, device, words):
    if device == 'cuda' and torch.cuda.is_available():
        pytest.skip('this machine has one')
    train('--device', device, words=words)


# ---- data

@pytest.mark.parametrize(('name', 'folder'), [('folder', 'BAD/nowhere'), ('folder', 'BAD/empty'),
                                              ('folder', 'BAD/photos'), ('cifar10', 'BAD/empty'),
                                              ('cifar10', 'BAD/nowhere'), ('imagenet', 'BAD/empty'),
                                              ('mnist', 'BAD/empty'), ('dtd', 'BAD/nowhere')])
def test_a_data_folder_that_is_missing_or_empty(train, search, name, folder):
    train('--dataset', name, '--data', folder, words=[folder, 'train' if name in ('folder', 'dtd') else 'expected'])
    search('--dataset', name, '--dataset_root', folder, words=[folder])


def test_a_validation_subset_larger_than_the_data(search):
    search('--val_size', '5000', words=['5000', '1437', 'val_size'])


# ---- checkpoints

UNREADABLE = ['nowhere.pth', 'empty.pth', 'truncated.pth', 'text.pth', 'picture.pth', 'module.pth']
NO_WEIGHTS = ['list.pth', 'foreign.pth', 'tensor.pth']


@pytest.mark.parametrize('name', UNREADABLE + NO_WEIGHTS)
def test_a_checkpoint_that_is_none(fail, search, train, tune, network, name):
    path = f'BAD/{name}'
    search('--weights', path, words=[path])
    tune('--weights', path, words=[path])
    train('--weights', path, words=[path])
    fail(TUNE, *network, '--resume', path, words=[path])
    fail(TRAIN, *network, '--resume', path, words=[path])
    fail(TRAIN, *network, '--resume', path, '--eval', words=[path])


@pytest.mark.parametrize(('name', 'words'), [('missing_keys.pth', ['layer2.0.conv1.weight', '--arch']),
                                             ('other_shape.pth', ['linear.weight', '(7, 64)', '(10, 64)'])])
def test_weights_of_another_network(fail, search, tune, network, name, words):
    search('--weights', f'BAD/{name}', words=words)
    tune('--weights', f'BAD/{name}', words=words)
    fail(TUNE, *network, '--resume', f'BAD/{name}', '--eval', words=words)


@pytest.mark.parametrize('script', [TRAIN, TUNE])
def test_weights_alone_cannot_be_resumed(fail, network, script):
    """There is no epoch and no optimizer in them; --weights starts from them."""
    fail(script, *network, '--strategy' if script == TUNE else '--seed', 'uniform:4' if script == TUNE else '1',
         '--resume', 'BAD/bare.pth', words=['BAD/bare.pth', '--weights'])


def test_a_float_checkpoint_is_not_continued_as_a_fine_tuning(fail, home, weights):
    """That would write quantized weights into the folder of the float run."""
    fail(TUNE, '--resume', weights, '--strategy', 'uniform:4', '--epochs', '3', words=[str(weights), '--weights'])


def test_a_quantized_checkpoint_is_not_continued_as_a_float_training(fail, home, kmeans_finetune):
    path = home / 'tuned_k' / 'checkpoint.pth.tar'
    fail(TRAIN, '--resume', path, '--epochs', '3', words=[str(path), 'finetune.py'])


def test_float_weights_are_not_taken_for_a_kmeans_checkpoint(fail, network):
    fail(TUNE, *network, '--resume', 'BAD/good.pth', '--eval', words=['more than 256 values', '--strategy'])


def test_a_linear_checkpoint_is_not_evaluated_as_kmeans(fail, home, network, linear_finetune, tmp_path):
    shutil.copy(home / 'tuned_l' / 'checkpoint.pth.tar', tmp_path / 'gift.pth.tar')
    fail(TUNE, *network, '--resume', tmp_path / 'gift.pth.tar', '--eval',
         words=['gift.pth.tar', '--linear_quantization'])


def test_no_weights_to_start_from(fail, network, episodes):
    fail(SEARCH, *network, *episodes, '--output', 'save', words=['resnet20', '--weights'])


def test_nothing_to_evaluate(fail, network):
    """Random weights have no accuracy worth a command."""
    fail(TRAIN, *network, '--eval', words=['--resume', '--weights'])


@pytest.mark.parametrize('flow', ['search', 'tune', 'train'])
def test_weights_that_are_not_finite(request, flow):
    request.getfixturevalue(flow)('--weights', 'BAD/nan.pth', words=['layer2.0.conv1', 'not finite'])


# ---- strategies

@pytest.mark.parametrize(('strategy', 'words'), [
    ('[6, 6, 6]', ['3 entries', '20 quantizable layers']),
    ('BAD/short_strategy.json', ['19 entries', 'has 20', 'linear']),
    ('BAD/other_strategy.json', ['features.18.0']),
    ('BAD/pairs.json', ['pairs', '--linear_quantization']),
    (str([9] + [4] * 19), ['9', 'entry 0 (conv1)', '1 to 8']),
    (str([4] * 19 + [0]), ['entry 19 (linear)', '0', '1 to 8']),
    (str([4.5] * 20), ['4.5', 'whole number']),
    ('[]', ['no list']), ('6', ['6']), ('[6, 6', ['list']), ('[6, six]', ['list']),
    ('BAD/nowhere.json', ['BAD/nowhere.json']), ('BAD/broken.json', ['BAD/broken.json']),
    ('BAD/nothing.json', ['BAD/nothing.json', 'strategy']), ('BAD/number.json', ['BAD/number.json', 'no list']),
    ('BAD/string.json', ['BAD/string.json', 'no list']), ('BAD/good.pth', ['BAD/good.pth']),
    ('BAD/empty', ['BAD/empty']),
    ('uniform:9', ['9', '1 to 8']), ('uniform:0', ['0', '1 to 8']), ('uniform:', ['uniform:K']),
    ('resnet50', ['54 entries', '20 quantizable layers']),
])
def test_a_strategy_that_does_not_fit(tune, strategy, words):
    tune('--strategy', strategy, words=words)


@pytest.mark.parametrize(('strategy', 'words'), [
    ('BAD/good.json', ['pairs', '[w_bit, a_bit]']),
    ('[[8, -1], [4, 4]]', ['2 entries', '20 quantizable layers']),
    (str([[8, -1]] + [[4, 9]] * 19), ['entry 1', '9', '1 to 8']),
    (str([[8, -1]] + [[4, 4, 4]] * 19), ['entry 1', 'pair']),
    (str([[-1, -1]] + [[4, 4]] * 19), ['entry 0', 'weight bits -1']),
    (str([[8, -1]] + [4] * 19), ['pairs', 'entry 1']),
])
def test_a_linear_strategy_that_does_not_fit(fail, linear, table, strategy, words):
    fail(TUNE, *linear, '--linear_quantization', '--weights', 'BAD/good.pth', '--cost', table, '--epochs', '1', '-c',
         'out', '--strategy', strategy, words=words)


def test_no_strategy_at_all(fail, network):
    fail(TUNE, *network, '--weights', 'BAD/good.pth', '-c', 'out', words=['resnet20', 'STRATEGIES', '--strategy'])


# ---- budgets and costs

@pytest.mark.parametrize('ratio', ['0.03', '0', '-1', 'nan'])
def test_a_size_budget_that_cannot_be_met(search, ratio):
    search('--preserve_ratio', ratio, words=['cannot be met', '0.03125'])  # 1 bit of 32


def test_a_latency_budget_that_cannot_be_met(linear_search_fails, table):
    cells = np.load(table)
    lowest = cells[0, 7, 7] + cells[-1, 7, 7] + cells[1:-1, 1:, 1:].reshape(18, -1).min(axis=1).sum()
    words = ['cannot be met', f'{math.ceil(1e5 * lowest / cells[:, 7, 7].sum()) / 1e5:.5f}']
    linear_search_fails('--preserve_ratio', '0.05', '--min_bit', '2', words=words)


@pytest.mark.parametrize(('low', 'high'), [('6', '4'), ('0', '8'), ('1', '9')])
def test_a_range_of_bits_that_is_none(search, linear_search_fails, low, high):
    for run in (search, linear_search_fails):
        run('--min_bit', low, '--max_bit', high, words=['--min_bit', '--max_bit', low, high])


@pytest.mark.parametrize(('cost', 'words'), [
    ('BAD/nowhere.npy', ['BAD/nowhere.npy', 'make_lookup_table.py']), ('BAD/truncated.npy', ['BAD/truncated.npy']),
    ('BAD/text.npy', ['BAD/text.npy']), ('BAD/short.npy', ['19', '20']),
    ('BAD/flat.npy', ['(20, 8)', '(layers, 8, 8)']), ('BAD/negative.npy', ['negative']),
    ('BAD/other.npy', ['another network', 'layer 3', 'in_channels']),
    ('BAD/good.pth', ['BAD/good.pth', '.npy']),
])
def test_a_cost_table_that_does_not_fit(linear_search_fails, cost, words):
    linear_search_fails('--cost', cost, words=words)


def test_pruning_belongs_to_the_kmeans_flow(linear_search_fails):
    linear_search_fails('--is_pruned', words=['--is_pruned', 'K-means'])


# ---- numbers

MEANING = {'--train_batch': 'batch size', '--data_bsize': 'batch size', '--test_batch': 'batch size',
           '--lr': 'learning rate', '--lr_a': 'learning rate', '--lr_c': 'learning rate',
           '--finetune_lr': 'learning rate', '--wd': 'weight_decay', '--momentum': 'momentum', '--workers': 'workers',
           '--image_size': 'image size', '--start_epoch': 'start_epoch'}  # as a message may call them


@pytest.mark.parametrize(('option', 'value'), [
    ('--epochs', '0'), ('--epochs', '-3'), ('--train_batch', '0'), ('--train_batch', '-5'), ('--test_batch', '0'),
    ('--lr', '-0.1'), ('--lr', 'fast'), ('--momentum', '-1'), ('--wd', '-1'), ('--workers', '-1'),
    ('--start_epoch', '-1'), ('--start_epoch', '5'), ('--image_size', '0'), ('--image_size', '-8'),
    ('--num_classes', '0'), ('--num_classes', '-2'),
])
def test_a_number_that_training_cannot_use(train, option, value):
    train(option, value, words=[(option, MEANING.get(option, option)), value])


@pytest.mark.parametrize(('option', 'value'), [
    ('--train_episode', '0'), ('--train_episode', '-1'), ('--data_bsize', '0'), ('--test_batch', '0'),
    ('--train_size', '0'), ('--val_size', '0'), ('--val_size', '-1'), ('--bsize', '0'), ('--rmsize', '0'),
    ('--hidden1', '0'), ('--n_update', '0'), ('--finetune_epoch', '0'), ('--finetune_epoch', '-1'),
    ('--finetune_lr', '-1'), ('--kmeans_iter', '-1'), ('--tau', '2'), ('--discount', '2'), ('--lr_a', '-1'),
    ('--lr_c', '-1'), ('--init_delta', '-1'), ('--float_bit', '0'), ('--float_bit', '-8'),
    ('--seed', 'x'),
])
def test_a_number_that_a_search_cannot_use(search, option, value):
    search(option, value, words=[(option, MEANING.get(option, option.strip('-'))), value])


@pytest.mark.parametrize('value', ['0', '-1'])
def test_a_width_that_no_network_has(fail, value):
    fail(TRAIN, '--dataset', 'digits', '--arch', 'mobilenetv2', '--width_mult', value, '-c', 'out',
         words=['width'])


def test_a_width_for_a_network_without_one(train):
    train('--width_mult', '0.5', words=['resnet20', 'width'])


def test_images_too_small_for_the_network(fail):
    """224 pixels are what AlexNet is made for; on 8 its last pooling has nothing left."""
    fail(TRAIN, '--dataset', 'digits', '--arch', 'alexnet', '--image_size', '8', '-c', 'out', words=['image_size'])


@pytest.mark.parametrize('value', ['maybe', '2'])
def test_a_boolean_that_is_none(train, value):
    train('--half', value, words=['--half', 'True or False'])


@pytest.mark.parametrize(('options', 'words'), [
    (('--batch', '0'), ['batch']), (('--image_size', '0'), ['image_size']), (('--output', 'table.txt'), ['.npy']),
    (('--num_classes', '0'), ['num_classes']), (('--width_mult', '0', '--arch', 'mobilenetv2'), ['width_mult']),
])
def test_a_table_that_cannot_be_made(fail, options, words, tmp_path):
    fail(TABLE, '--dataset', 'digits', '--arch', 'resnet20', '--output', 'table.npy', *options, words=words)
    assert not list(tmp_path.rglob('table*'))


# ---- folders

def test_the_folder_of_another_run_is_refused(search, tune, train, home, kmeans_search, kmeans_finetune, pretrained):
    search('--output', home / 'save', '--suffix', 'k', words=['resnet20_digits_k', '--resume', '--overwrite'])
    tune('-c', home / 'tuned_k', words=['tuned_k', '--resume', '--overwrite'])
    train('-c', home / 'float', words=['float', '--resume', '--overwrite'])


def test_overwrite_replaces_the_run_and_leaves_other_files(succeed, network, tmp_path, read_json):
    """The notes and pictures that a person has put there are not the run's."""
    run = tmp_path / 'run'
    options = (*network, '--train_batch', '256', '--epochs', '1', '-c', 'run')
    succeed(TRAIN, *options, cwd=tmp_path)
    for name in ('notes.txt', 'photo.png', 'logs/events.txt'):
        (run / name).write_text('mine')
    succeed(TRAIN, *options, '--seed', '5', '--overwrite', cwd=tmp_path)
    assert read_json(run / 'args.json')['seed'] == 5
    assert all((run / name).is_file() for name in ('notes.txt', 'photo.png', 'logs/events.txt'))


def test_a_folder_with_pictures_of_others_is_no_run(succeed, network, tmp_path):
    (tmp_path / 'photo.png').write_text('mine')
    succeed(TRAIN, *network, '--train_batch', '256', '--epochs', '1', '-c', '.', cwd=tmp_path)


@pytest.mark.parametrize('options', [('--device', 'gpu'), ('--arch', 'resnet02'), ('--weights', 'nowhere.pth'),
                                     ('--dataset', 'folder', '--data', 'nowhere'), ('--train_batch', '0'),
                                     ('--lr', '-1')])
def test_a_failed_start_keeps_the_run_that_was_to_be_replaced(call, pretrained, network, home, tmp_path, options):
    shutil.copytree(home / 'float', tmp_path / 'run')
    before = snapshot(tmp_path / 'run')
    done = call(TRAIN, *network, '-c', 'run', '--epochs', '1', *options, '--overwrite', cwd=tmp_path)
    assert done.code != 0
    assert snapshot(tmp_path / 'run') == before


@pytest.mark.parametrize('options', [('--device', 'gpu'), ('--strategy', '[1, 2]'), ('--weights', 'nowhere.pth'),
                                     ('--cost', 'nowhere.npy', '--linear_quantization', '--strategy', 'uniform:4')])
def test_a_failed_start_keeps_the_fine_tuning_that_was_to_be_replaced(call, kmeans_finetune, network, weights, home,
                                                                     tmp_path, options):
    shutil.copytree(home / 'tuned_k', tmp_path / 'run')
    before = snapshot(tmp_path / 'run')
    done = call(TUNE, *network, '-c', 'run', '--epochs', '1', '--weights', weights, '--strategy', 'uniform:4',
                *options, '--overwrite', cwd=tmp_path)
    assert done.code != 0
    assert snapshot(tmp_path / 'run') == before


@pytest.mark.parametrize('options', [('--device', 'gpu'), ('--preserve_ratio', '0.01'), ('--weights', 'nowhere.pth'),
                                     ('--val_size', '5000'), ('--bsize', '0')])
def test_a_failed_start_keeps_the_search_that_was_to_be_replaced(call, kmeans_search, kmeans_options, home, tmp_path,
                                                                options):
    shutil.copytree(home / 'save' / 'resnet20_digits_k', tmp_path / 'resnet20_digits_k')
    before = snapshot(tmp_path)
    done = call(SEARCH, *kmeans_options, '--output', '.', '--suffix', 'k', *options, '--overwrite', cwd=tmp_path)
    assert done.code != 0
    assert snapshot(tmp_path) == before


def test_a_failed_start_does_not_block_the_next(call, succeed, network, tmp_path):
    """The command is corrected and given again."""
    options = (*network, '--train_batch', '256', '--epochs', '1', '-c', 'run')
    assert call(TRAIN, *options, '--device', 'gpu', cwd=tmp_path).code != 0
    assert call(TRAIN, *options, '--weights', 'nowhere.pth', cwd=tmp_path).code != 0
    succeed(TRAIN, *options, cwd=tmp_path)


def test_overwriting_the_run_whose_weights_are_taken(call, pretrained, network, home, tmp_path):
    """The weights must not be deleted before they are read: the command works, or refuses and loses nothing."""
    shutil.copytree(home / 'float', tmp_path / 'run')
    before = snapshot(tmp_path / 'run')
    done = call(TRAIN, *network, '-c', 'run', '--weights', 'run/checkpoint.pth.tar', '--epochs', '1', '--train_batch',
                '256', '--overwrite', cwd=tmp_path)
    assert 'Traceback' not in done.err
    if done.code == 0:
        assert (tmp_path / 'run' / 'results.json').is_file()
    else:
        assert snapshot(tmp_path / 'run') == before


def test_an_output_that_is_a_file(search, train):
    search('--output', 'BAD/good.pth', words=['BAD/good.pth'])
    train('-c', 'BAD/good.pth', words=['BAD/good.pth'])


# ---- resuming

@pytest.mark.parametrize(('folder', 'words'), [
    ('nowhere', ['nowhere', 'no run']), ('BAD/empty', ['BAD/empty', 'no run']), ('BAD/good.pth', ['BAD/good.pth']),
    ('BAD/run', ['args.json']),
])
def test_resuming_a_folder_that_is_no_run(fail, folder, words):
    fail(SEARCH, '--resume', folder, words=words)


def test_resuming_a_training_run_as_a_search(call, home, kmeans_finetune, tmp_path):
    """It has an args.json, but that of another script; its log.txt and strategy would be replaced."""
    run = shutil.copytree(home / 'tuned_k', tmp_path / 'run')
    before = snapshot(run)
    done = call(SEARCH, '--resume', 'run', '--train_episode', '1', '--train_size', '64', '--val_size', '64',
                '--preserve_ratio', '0.2', cwd=tmp_path)
    assert snapshot(run) == before
    assert done.code != 0 and 'Traceback' not in done.err and 'run' in done.err


@pytest.mark.parametrize('content', [b'', b'half', None])
def test_resuming_a_search_whose_state_is_damaged(call, home, kmeans_search, tmp_path, content):
    run = shutil.copytree(home / 'save' / 'resnet20_digits_k', tmp_path / 'run')
    whole = (run / 'search.pth.tar').read_bytes()
    (run / 'search.pth.tar').write_bytes(whole[:len(whole) // 2] if content is None else content)
    before = snapshot(run)
    done = call(SEARCH, '--resume', 'run', cwd=tmp_path)
    assert done.code != 0 and 'Traceback' not in done.err and 'search.pth.tar' in done.err
    assert snapshot(run) == before


@pytest.mark.parametrize(('options', 'words'), [
    (('--preserve_ratio', '0.2'), ['--preserve_ratio', '0.13', '0.2']), (('--seed', '1'), ['--seed', '234']),
    (('--max_bit', '8', '--warmup', '3'), ['--max_bit', '--warmup']), (('--arch', 'resnet32'), ['--arch', 'resnet20']),
])
def test_resuming_a_search_with_other_settings(fail, home, kmeans_search, options, words):
    fail(SEARCH, '--resume', home / 'save' / 'resnet20_digits_k', *options, words=words)


@pytest.mark.parametrize(('script', 'folder', 'options', 'words'), [
    (TRAIN, 'float', ('--lr', '0.3'), ['--lr', '0.1', '0.3']), (TRAIN, 'float', ('--seed', '1'), ['--seed', '234']),
    (TRAIN, 'float', ('--train_batch', '32'), ['--train_batch']), (TRAIN, 'float', ('-c', 'new'), ['--checkpoint']),
    (TUNE, 'tuned_k', ('--strategy', 'uniform:3'), ['--strategy', 'uniform:3']),
    (TUNE, 'tuned_k', ('--linear_quantization',), ['--linear_quantization']),
])
def test_resuming_a_training_with_other_settings(fail, home, pretrained, kmeans_finetune, script, folder, options,
                                                 words):
    fail(script, '--resume', home / folder / 'checkpoint.pth.tar', *options, words=words)


# ---- the summary

def test_a_summary_of_runs_that_are_none(fail, home, bad, pretrained, tmp_path):
    fail(SUMMARY, 'a=nowhere', words=['nowhere', 'finished'])
    good = {'top1': 90.0, 'ratio': 0.5, 'quantization': 'linear', 'cost_name': 'size', 'strategy': [[8, -1], [4, 4]]}
    bad_values = [('top1', 'high'), ('top1', 101), ('top1', None), ('ratio', True), ('ratio', -1), ('quantization', 3),
                  ('cost_name', ['size']), ('strategy', 'uniform:4'), ('strategy', [4, 'x']), ('strategy', [[1, 2, 3]])]
    texts = ['{"top1": 3', '{"top1": 3}', '[]', '{"top1": NaN, "ratio": 1, "quantization": "float"}', '[' * 100_000,
             json.dumps(good).replace('0.5', '-Infinity'), json.dumps(good).replace('0.5', '1e999'),
             json.dumps({**sealed(good), 'top1': 99.0}), json.dumps({**sealed(good), 'more': 1}),
             *(json.dumps({**good, key: value}) for key, value in bad_values)]
    for text in texts:
        (tmp_path / 'results.json').write_text(text)
        fail(SUMMARY, f'a={tmp_path}', words=['results.json'])


def test_a_plot_stays_in_the_folder_that_was_named(succeed, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'results.json').write_text(json.dumps(
        {'top1': 90.0, 'ratio': 0.5, 'quantization': 'linear', 'cost_name': 'x/../../evil'}))
    succeed(SUMMARY, 'a=run', '--output', 'out/deep', cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['deep'] and not list(tmp_path.glob('evil*'))


# ---- more than there is memory for, or than a name can have

LONG, MEASURE = 'x' * 300, ('measure.py', '--arch', 'mobilenetv2')
QAT, PRETRAIN = ('qat_train.py', '--dataset', 'digits'), (TRAIN, '--arch', 'resnet20', '--dataset', 'digits')


@pytest.mark.parametrize(('command', 'words'), [
    ((*MEASURE, '--num_classes', '1000000000'), ['--num_classes', 'at most 10000000']),
    ((*MEASURE, '--num_classes', '10000000'), ['12,812,223,872 parameters', 'take fewer classes']),
    ((*MEASURE, '--width_mult', '1000000000'), ['--width_mult', 'at most 1000']),
    ((*MEASURE, '--width_mult', '900'), ['parameters', 'fewer channels']),
    ((*MEASURE, '--width_mult', 'inf'), ['--width_mult']), ((*MEASURE, '--width_mult', 'nan'), ['--width_mult']),
    ((*MEASURE, '--batch', '1' + '0' * 25), ['--batch', 'too large']),
    ((*MEASURE, '--batch', '99999999'), ['batch is 99999999', 'at most 65536']),
    ((*MEASURE, '--input_size', '3x1000000000x8'), ['--input_size', '16384']),
    ((*MEASURE, '--hardware', f'{LONG}.yaml'), [LONG, 'does not exist']),
    ((*QAT, '--layer_wbit', '8x1000000000'), ['--layer_wbit', 'makes more than 10000 entries']),
    ((*QAT, '--layer_wbit', '9' * 5000), ['--layer_wbit', 'no number of bits']),
    ((*QAT, '--stem_channel', '1000000000'), ['--stem_channel', 'too large']),
    ((*PRETRAIN, '--seed', '9' * 25), ['--seed', 'too large']), ((*PRETRAIN, '--momentum', 'inf'), ['--momentum']),
    ((*PRETRAIN, '--image_size', '1000000000'), ['--image_size', 'at most 16384']),
    ((*PRETRAIN, '--epochs', '1' + '0' * 25), ['--epochs', 'too large']),
    ((*PRETRAIN[:1], '--model_file', f'{LONG}.py:build', '--dataset', 'digits'), ['there is no file']),
    ((SUMMARY, LONG), [LONG, 'does not exist']), (('compare_hardware.py', LONG, '--cost', 'bitops'), [LONG]),
    (('hybrid_train.py', '--config', LONG), [LONG, 'no such file']),
    ((TABLE, '--from_csv', LONG, '--unit', 'ms', '--output', 't.npy'), [LONG, 'does not exist']),
    ((TABLE, '--output', 'BAD/good.pth/t.npy'), ['--output', 'cannot be written, name another']),
])
def test_what_is_too_large_is_refused_before_it_is_made(fail, command, words):
    fail(*command, words=words)
