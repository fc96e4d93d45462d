"""What things cost, by command: tables of any hardware, measure.py, searches with several budgets, comparisons."""

import csv
import io
import json
import sys
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

import models
from lib.network.records import profile_layers
from lib.search import log as search_log
from lib.simulator.backends import PRESETS
from lib.simulator.cost import CostTable
from lib.simulator.counting import activation_memory, bit_operations, model_size
from lib.simulator.hardware import make_table
from lib.simulator.layer import LayerRecord
from lib.simulator.table_files import load_table
from tests.meta import on_meta

TABLE, MEASURE, SEARCH, COMPARE = 'make_lookup_table.py', 'measure.py', 'rl_quantize.py', 'compare_hardware.py'
DIGITS = ('--arch', 'resnet20', '--dataset', 'digits', '--input_size', '8')

NET = """
from torch import nn
def build(num_classes):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), nn.Conv2d(4, 8, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.spare, self.head = nn.Conv2d(1, 4, 3), nn.Linear(3, 3), nn.Linear(4, 10)
    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))
"""
OWN = ('--model_file', 'net.py:build', '--input_size', '1x28x28', '--num_classes', '10')
# Of that network for 1 x 28 x 28, by hand: weights, multiply-accumulates, inputs, outputs
NAMES = ['0', '3', '4', '7']
SHAPES = [(36, 36 * 784, 784, 4 * 784), (36, 36 * 196, 4 * 784, 4 * 196), (32, 32 * 196, 4 * 196, 8 * 196),
          (80, 80, 8, 10)]
PARAMETERS = 40 + 8 + 40 + 40 + 90
CHIP = 'backend: roofline\npeak_int8: 2 GOPS\nbandwidth: 1.6 Gbit/s\n'  # 10^9 multiply-accumulates, 0.2 GB per second


def chip_ms(shape, w, a):
    """Returns the time of a layer on that machine, which has nothing below 8 bits but packs values in memory."""
    weights, macs, inputs, outputs = shape
    return max(macs / 1e6, (weights * w + inputs * a + outputs * 8) / 8 / 2e5)


@pytest.fixture(autouse=True)
def tables(tmp_path, monkeypatch):
    """The folder of the tables is elsewhere, so that the repository stays as it is."""
    import _costs
    monkeypatch.setattr(_costs, 'TABLES', tmp_path / 'tables')
    return tmp_path / 'tables'


@pytest.fixture
def user(tmp_path):
    """The folder in which the user works, with a network, a machine and a table of numbers."""
    folder = tmp_path / 'user'
    folder.mkdir()
    (folder / 'net.py').write_text(NET)
    (folder / 'chip.yaml').write_text(CHIP)
    (folder / 'mine.csv').write_text('layer,w_bit,a_bit,cost\n0,*,*,4\n3,*,8,2\n3,*,*,1\n4,8,*,3\n4,*,*,2\n7,*,*,1\n')
    return folder


@pytest.fixture
def do(succeed, user):
    """`do(script, *options)`: what a command that succeeds prints."""
    return lambda *command: succeed(*command, cwd=user).out


def digits_layers():
    with on_meta():
        return profile_layers(models.create_model('resnet20', num_classes=10), (3, 8, 8))


def drawn(path):
    picture = matplotlib.image.imread(path)
    return min(picture.shape[:2]) > 100 and picture.std() > 0


# ---- tables


def test_the_list_of_hardware(do):
    listed = do(TABLE, '--list_hardware')
    for name, preset in PRESETS.items():
        head, values = listed[listed.index(f'{name} ({preset.backend}; '):].splitlines()[:2]
        assert preset.status in head and ' and '.join(preset.metrics) in head
        assert f'batch {preset.batch}' in values
    assert 'clock_mhz 200 MHz' in listed and 'bandwidth 320 GB/s' in listed
    assert len(listed.splitlines()) == 2 * len(PRESETS)


def test_energy_on_bitfusion(do, user):
    said = do(TABLE, *DIGITS, '--hardware', 'bitfusion', '--metric', 'energy', '--batch', '2', '--output', 'e.npy',
              '--no-plot')
    cost = load_table(user / 'e.npy', digits_layers())
    assert (cost.name, cost.unit, cost.about['batch']) == ('bitfusion_energy', 'nJ', 2)
    layers = [LayerRecord.from_dict(entry) for entry in cost.about['layers']]
    machine = replace(PRESETS['bitfusion'], batch=2)
    for index in (0, 7, 19):
        for w, a in ((1, 1), (4, 8), (8, 3)):
            assert cost.table[index, w - 1, a - 1] == machine.layer_cost(layers[index], w, a).energy
    assert f'{cost.reference:,.6g} = {cost.reference / 1e6:,.4g} mJ' in said and '20 layers' in said
    assert not list(user.glob('*.png'))


def test_a_network_and_a_machine_of_ones_own(do, tables):
    """Under its conventional name, with its figures."""
    said = do(TABLE, *OWN, '--hardware', 'chip.yaml', '--dataset', 'mnist')
    stem = 'qnet_mnist_batch1_image1x28x28_classes10_chip_latency_table'
    assert sorted(path.name for path in tables.iterdir()) == [
        f'{stem}.json', f'{stem}.npy', f'{stem}_heat.png', f'{stem}_roofline.png']
    cost = load_table(tables / f'{stem}.npy')
    assert cost.layer_names == NAMES and cost.unit == 'ms' and cost.about['resolution'] == [1, 28, 28]
    for index, shape in enumerate(SHAPES):
        for w in range(1, 9):
            assert cost.table[index, w - 1].tolist() == pytest.approx([chip_ms(shape, w, a) for a in range(1, 9)])
    assert 'net for images of 1 x 28 x 28, 10 outputs: 4 layers, 41,632 multiply-accumulates' in said
    assert drawn(tables / f'{stem}_heat.png') and drawn(tables / f'{stem}_roofline.png')


def test_a_network_of_ones_own_takes_the_image_size_of_the_data_set(do, user):
    (user / 'rgb.py').write_text('from torch import nn\ndef build(): return nn.Conv2d(3, 4, 3)\n')
    assert '3 x 224 x 224' in do(MEASURE, '--model_file', 'rgb.py:build')


def test_layers_that_are_never_called_are_left_out(do, user):
    said = do(TABLE, '--model_file', 'net.py:Spare', '--input_size', '1x28x28', '--output', 's.npy', '--no-plot')
    assert 'never calls them: spare' in said and '2 layers' in said
    assert load_table(user / 's.npy').layer_names == ['stem', 'head']


def test_a_table_of_ones_own_numbers(do, user):
    said = do(TABLE, *OWN, '--from_csv', 'mine.csv', '--unit', 'ms', '--output', 'board.npy')
    cost = load_table(user / 'board.npy')
    assert (cost.name, cost.unit, cost.reference) == ('board', 'ms', 10)
    assert cost.cost([[8, 8], [4, 8], [4, 4], [1, 1]]) == 4 + 2 + 2 + 1
    assert cost.cost([[8, 8], [4, 7], [8, 4], [1, 1]]) == 4 + 1 + 3 + 1
    assert 'as given in mine.csv' in said and drawn(user / 'board_heat.png')


def test_a_different_table_is_not_replaced_unasked(do, refused, user):
    options = (TABLE, *OWN, '--no-plot', '--output', 't.npy', '--hardware')
    do(*options, 'edge')
    do(*options, 'edge')  # the same again
    before = (user / 't.npy').read_bytes()
    refused(user, ['t.npy', 'holds another table', '--overwrite'], *options, 'chip.yaml')
    assert (user / 't.npy').read_bytes() == before
    do(*options, 'chip.yaml', '--overwrite')
    assert load_table(user / 't.npy').name == 'chip_latency'


# ---- measure.py

STRATEGY = [[8, -1], [4, 6], [3, 2], [8, 8]]
BITS = [(8, 8), (4, 6), (3, 2), (8, 8)]  # as priced: the image is 8 bit


@pytest.fixture
def measured(do):
    """`measured(*options)`: the JSON of measure.py for the network and the machine above."""
    return lambda *options: json.loads(do(MEASURE, *OWN, '--hardware', 'chip.yaml', '--json', *options))


def test_everything_about_a_strategy(measured):
    found = measured('--strategy', json.dumps(STRATEGY))
    assert {'parameters', 'macs', 'layers', 'size_bits', 'size_ratio', 'cost', 'cost_ratio', 'unit'} <= found.keys()
    weights, macs, inputs, outputs = zip(*SHAPES, strict=True)
    size = sum(n * w for n, (w, _) in zip(weights, BITS, strict=True))
    prices = [chip_ms(shape, *bits) for shape, bits in zip(SHAPES, BITS, strict=True)]
    assert (found['parameters'], found['macs'], found['strategy']) == (PARAMETERS, sum(macs), STRATEGY)
    assert (found['size_bits'], found['size_ratio']) == (size, pytest.approx(size / 32 / sum(weights)))
    assert found['cost'] == pytest.approx(sum(prices))
    assert found['cost_ratio'] == pytest.approx(sum(prices) / sum(chip_ms(shape, 8, 8) for shape in SHAPES))
    assert (found['unit'], found['cost_name'], found['batch'], found['input']) == ('ms', 'chip_latency', 1, [1, 28, 28])
    costs = {name: cost['cost'] for name, cost in found['costs'].items()}
    assert costs['bitops'] == sum(m * w * a for m, (w, a) in zip(macs, BITS, strict=True))
    assert costs['activation_memory'] == max((i + o) * a for i, o, (_, a) in zip(inputs, outputs, BITS, strict=True))
    assert costs['proqha_ratio'] == 4 * 36  # without the first, the last and a MobileNet's last 1x1 convolution
    for index, row in enumerate(found['layers']):
        assert (row['name'], row['calls']) == (NAMES[index], 1)
        assert (row['weights'], row['macs']) == (weights[index], macs[index])
        assert [row['w_bit'], row['a_bit']] == STRATEGY[index]
        assert row['size_bits'] == weights[index] * BITS[index][0]
        assert row['cost'] == pytest.approx(prices[index])
    dw = found['layers'][1]
    assert (dw['type'], dw['groups'], dw['kernel'], dw['stride'], dw['in_size'], dw['out_size']) == \
        ('depthwise', 4, [3, 3], [2, 2], [28, 28], [14, 14])
    assert [row['type'] for row in found['layers']] == ['conv', 'depthwise', 'pointwise', 'linear']


def test_the_float_network(measured):
    """Weights of 32 bits; the machine's cost is that of 8/8."""
    found = measured()
    weights = [shape[0] for shape in SHAPES]
    assert found['strategy'] is None
    assert (found['size_bits'], found['size_ratio'], found['cost_ratio']) == (32 * sum(weights), 1, 1)
    assert found['cost'] == pytest.approx(sum(chip_ms(shape, 8, 8) for shape in SHAPES))
    assert [(row['w_bit'], row['a_bit'], row['size_bits']) for row in found['layers']] == [
        (32, None, 32 * n) for n in weights]
    assert found['costs']['proqha_ratio']['ratio'] == 1


@pytest.mark.parametrize(('options', 'strategy', 'bits'), [
    (('uniform:4',), [4] * 4, [(4, 8)] * 4),
    (('uniform:4', '--linear'), [[8, -1], [4, 4], [4, 4], [8, 8]], [(8, 8), (4, 4), (4, 4), (8, 8)]),
    (('[3, 4, 5, 6]',), [3, 4, 5, 6], [(3, 8), (4, 8), (5, 8), (6, 8)]),
    (('found.json',), [3, 4, 5, 6], [(3, 8), (4, 8), (5, 8), (6, 8)]),
])
def test_strategies_in_every_form(measured, user, options, strategy, bits):
    (user / 'found.json').write_text(json.dumps({'strategy': [3, 4, 5, 6], 'layers': NAMES}))
    found = measured('--strategy', *options)
    assert found['strategy'] == strategy
    assert found['cost'] == pytest.approx(sum(chip_ms(s, *b) for s, b in zip(SHAPES, bits, strict=True)))
    assert [row['w_bit'] for row in found['layers']] == [w for w, _ in bits]


def test_a_known_network(do):
    """The parameters and operations of ResNet-20, and costs from the library."""
    found = json.loads(do(MEASURE, '--arch', 'qresnet20', '--dataset', 'cifar10', '--strategy', 'uniform:4', '--linear',
                          '--hardware', 'edge', '--batch', '2', '--metric', 'energy', '--json'))
    assert (found['parameters'], found['macs'], found['batch']) == (269_722, 40_551_040, 2)
    with on_meta():
        layers = profile_layers(models.create_model('resnet20', num_classes=10), (3, 32, 32))
    strategy = [[8, -1], *[[4, 4]] * 18, [8, 8]]
    table = make_table(layers, replace(PRESETS['edge'], batch=2), 'energy')
    assert (found['cost'], found['cost_ratio'], found['unit']) == (table.cost(strategy), table.ratio(strategy), 'nJ')
    sizes = model_size([layer.num_weights for layer in layers])
    for cost in (sizes, bit_operations(layers), activation_memory(layers)):
        assert found['costs'][cost.name]['ratio'] == cost.ratio(strategy)


def test_the_lines_of_a_spreadsheet(do, measured):
    options = ('--strategy', json.dumps(STRATEGY))
    rows = list(csv.DictReader(io.StringIO(do(MEASURE, *OWN, '--hardware', 'chip.yaml', '--csv', *options))))
    for row, entry in zip(rows, measured(*options)['layers'], strict=True):
        for key, value in entry.items():
            assert row[key] == ('x'.join(map(str, value)) if isinstance(value, list) else str(value)), key


def test_two_strategies_side_by_side(do, measured):
    options = ('--strategy', json.dumps(STRATEGY), '--compare', 'uniform:2', '--linear')
    found, alone = measured(*options), measured('--strategy', 'uniform:2', '--linear')
    assert found['compare'] == alone
    assert {key: value for key, value in found.items() if key != 'compare'} == measured('--strategy', STRATEGY)
    rows = list(csv.DictReader(io.StringIO(do(MEASURE, *OWN, '--hardware', 'chip.yaml', '--csv', *options))))
    assert [float(row['cost_2']) for row in rows] == [entry['cost'] for entry in alone['layers']]
    assert [row['w_bit_2'] for row in rows] == ['8', '2', '2', '8']
    assert [row['w_bit'] for row in rows] == ['8', '4', '3', '8']
    text = do(MEASURE, *OWN, '--hardware', 'chip.yaml', *options)
    for name, cost in found['costs'].items():
        line = next(line for line in text.splitlines() if line.startswith(name + ' '))
        other = alone['costs'][name]
        assert f'{cost["ratio"]:.4f}' in line and f'{other["ratio"]:.4f}' in line
        assert f'({other["cost"] / cost["cost"] - 1:+.1%})' in line


def test_a_machine_is_measured_once_for_two_strategies(do, monkeypatch):
    """Two measurements differ, and the difference would be taken for that of the strategies."""
    made, noise = [], np.random.default_rng(0)

    def table(layers, hardware, metric):
        made.append(metric)
        return CostTable(noise.random((len(layers), 8, 8)), reference=1, name='m', unit='ms', about={'batch': 1})
    monkeypatch.setattr('lib.simulator.hardware.make_table', table)
    found = json.loads(do(MEASURE, *OWN, '--strategy', 'uniform:3', '--compare', 'uniform:3', '--json'))
    assert made == ['latency'] and found['cost'] == found['compare']['cost']


def test_the_text_says_what_every_total_counts(do, measured):
    found = measured('--strategy', 'uniform:4')
    text = do(MEASURE, *OWN, '--hardware', 'chip.yaml', '--strategy', 'uniform:4')
    assert set(found['counted']) == {'parameters', 'macs', 'madds', *found['costs']}
    for name, rule in found['counted'].items():
        assert rule in text and f'\n{name} ' in text
    for words in ('biases, batch normalization and codebooks are not counted', 'w * a per multiply-accumulate',
                  'largest: ', 'relative to 8/8 bits', 'batch of 1', 'ProQHA keeps them float: 0, 4, 7',
                  f'{PARAMETERS}', '41,632', 'net for images of 1 x 28 x 28'):
        assert words in text
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith('layer '))
    assert [line.split()[:2] for line in lines[head + 1:head + 5]] == [
        ['0', 'conv'], ['3', 'depthwise'], ['4', 'pointwise'], ['7', 'linear']]
    assert len({len(line) for line in lines[head:head + 5]}) == 1, 'the columns stand below each other'


def test_a_network_that_is_all_float_for_proqha(do):
    """One layer is first and last; everything else about it can be measured."""
    found = json.loads(do(MEASURE, '--model_file', 'net.py:small', '--input_size', '1x28x28', '--json'))
    assert (found['parameters'], found['size_ratio'], 'proqha_ratio' in found['costs']) == (7850, 1, False)


def test_layers_never_called_belong_to_strategies_of_weights_only(do, refused, user):
    options = (MEASURE, '--model_file', 'net.py:Spare', '--input_size', '1x28x28', '--strategy')
    found = json.loads(do(*options, '[4, 4, 4]', '--json'))
    assert [(row['name'], row['calls']) for row in found['layers']] == [('stem', 1), ('spare', 0), ('head', 1)]
    assert found['size_bits'] == 4 * (36 + 9 + 40)
    assert json.loads(do(*options, '[[4, 4], [4, 4]]', '--json'))['size_bits'] == 4 * (36 + 40)
    for form in ('--json', '--csv', '--no-csv'):
        refused(user, ['--compare', 'two of a kind'], *options, '[[4, 4], [4, 4]]', '--compare', '[4, 4, 4]', form)


# ---- several budgets in a search


@pytest.fixture(scope='module')
def random_weights(tmp_path_factory):
    """Path of float weights that nobody has trained."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'random.pth'
    torch.save({'state_dict': models.create_model('resnet20', num_classes=10).state_dict()}, path)
    return path


@pytest.fixture
def options(network, episodes, random_weights, monkeypatch):
    """Options of a short K-means search without fine-tuning, plots or a budget."""
    monkeypatch.setattr(search_log.EpisodeLog, 'plot', lambda self: None)
    return (SEARCH, *network, *episodes, '--weights', random_weights, '--no-finetune_flag', '--train_episode', '1',
            '--output', 'save')


def search_history(folder):
    return torch.load(folder / 'search.pth.tar', weights_only=True)['history']


def test_a_search_for_energy_with_further_budgets(do, options, user, tables, read_json):
    """All of them hold in every episode, for both walls, and are in the log and the files."""
    layers, found = digits_layers(), {}
    for wall in ('rounds', 'greedy'):
        said = do(*options, '--cost', 'bitfusion_energy', '--preserve_ratio', '0.8', '--constraint', 'latency=0.85',
                  '--constraint', 'size=0.15', '--wall', wall, '--suffix', wall)
        made = sorted(tables.glob('*.npy'))
        assert [path.name.rpartition('_')[0] for path in made] == [
            f'qresnet20_digits_batch1_image8_bitfusion_{metric}_table' for metric in ('energy', 'latency')]
        costs = [(load_table(made[0], layers), 0.8), (load_table(made[1], layers), 0.85),
                 (model_size([layer.num_weights for layer in layers]), 0.15)]
        folder = user / 'save' / f'resnet20_digits_{wall}'
        (record,) = search_history(folder)
        about = read_json(folder / 'strategy.json')
        for cost, ratio in costs:
            assert record['ratios'][cost.name] == cost.ratio(record['strategy']) <= ratio
            assert about['budgets'][cost.name] == pytest.approx(ratio)
            assert f'budget: {cost.name} of at most {ratio * cost.reference:.6g} {cost.unit} = {ratio:.4f} of' in said
        for cost, _ in costs[1:]:
            assert f' {cost.name} {record["ratios"][cost.name]:.4f} ' in (folder / 'log.txt').read_text()
        assert (record['cost'], about['cost_name'], about['cost_unit']) == \
            (costs[0][0].cost(record['strategy']), 'bitfusion_energy', 'nJ')
        assert read_json(folder / 'args.json')['wall'] == wall
        found[wall] = record['strategy']
    assert found['rounds'] != found['greedy'], 'the same agent, another wall'


def test_a_search_with_budgets_is_resumed(do, call, options, user, tmp_path, read_json):
    """From another folder, where the relative path of a machine means nothing, and by the whole command line again."""
    command = (*options, '--constraint', 'chip.yaml:latency=0.95', '--constraint', 'proqha=uniform:6')
    do(*command)
    run = user / 'save' / 'resnet20_digits'
    assert read_json(run / 'args.json')['preserve_ratio'] is None
    done = call(SEARCH, '--resume', run, '--train_episode', '2', cwd=tmp_path)
    assert done.code == 0, done.err
    do(*command, '--resume', 'save/resnet20_digits', '--train_episode', '3')
    history = search_history(run)
    assert len(history) == 3
    for record in history:
        assert record['ratios']['chip_latency'] <= 0.95 and record['ratios']['proqha_ratio'] <= 6 / 32
    done = call(*command[:-1], 'proqha=0.1', '--resume', run, cwd=user)
    assert done.code != 0 and '--constraint was' in done.err and 'proqha=0.1' in done.err


@pytest.mark.parametrize('name', ['chip.yaml', 'low_energy.yaml'])
def test_latency_and_energy_are_those_of_a_machine_in_a_file(do, options, user, name):
    (user / name).write_text(CHIP)
    assert '_latency of at most' in do(*options, '--cost', f'{name}:energy', '--constraint', 'latency=0.95')


# ---- strategies on several machines


@pytest.fixture
def finished(user, names):
    """`finished(folder, strategy, *options, **results)`: leaves in a folder what finetune.py leaves."""
    make = names('finetune.py')['make_finetune_parser']

    def write(folder, strategy, *options, **results):
        command = ['--arch', 'qresnet20', '--dataset', 'digits', '--image_size', '8', *options]
        args = sys.modules['_cli'].settings_of(make().parse_args(command))
        (user / folder).mkdir()
        (user / folder / 'args.json').write_text(json.dumps(args))
        (user / folder / 'results.json').write_text(json.dumps(
            {'quantization': 'linear', 'strategy': strategy, 'top1': 90.0, 'ratio': 0.5, 'classes': 10,
             'input': [3, 8, 8], **results}))
    return write


UNIFORM = [[8, -1], *[[4, 4]] * 18, [8, 8]]
FEW_WEIGHT_BITS = [[8, -1], *[[2, 8]] * 18, [8, 8]]


def test_strategies_are_priced_on_every_machine(do, finished, user):
    finished('a', UNIFORM, top1=91.25)
    finished('b', FEW_WEIGHT_BITS, top1=88.0)
    (user / 'mine.yaml').write_text('preset: t4\npeak_int4: 0\n')
    costs = ['edge_latency', 'isaac_energy', 'mine.yaml:energy', 'bitops']
    said = do(COMPARE, 'uniform=a', 'few=b', *(part for name in costs for part in ('--cost', name)), '--output', 'out')
    layers = digits_layers()
    mine = replace(PRESETS['t4'], peak_int4=0, name='mine')
    expected = [make_table(layers, PRESETS['edge']), make_table(layers, PRESETS['isaac'], 'energy'),
                make_table(layers, mine, 'energy'), bit_operations(layers)]
    text = (user / 'out' / 'hardware.md').read_text()
    assert text in said
    head, _, *rows = ([cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines())
    assert head == ['strategy', 'top-1 (%)', *(cost.name for cost in expected)]
    ratios = [[cost.ratio(strategy) for cost in expected] for strategy in (UNIFORM, FEW_WEIGHT_BITS)]
    for row, label, top1, prices, others in zip(rows, ('uniform', 'few'), ('91.25', '88.00'), ratios, ratios[::-1],
                                                strict=True):
        assert row == [label, top1, *(f'**{price:.4f}**' if price <= other else f'{price:.4f}'
                                      for price, other in zip(prices, others, strict=True))]
    assert drawn(user / 'out' / 'hardware.png')


def test_a_folder_is_its_own_label_and_kmeans_strategies_are_priced_too(do, finished):
    finished('k', [4] * 20, '--arch', 'resnet20', quantization='kmeans')
    said = do(COMPARE, 'k', '--cost', 'edge_latency')
    ratio = make_table(digits_layers(), PRESETS['edge']).ratio([4] * 20)
    assert f'| k | 90.00 | **{ratio:.4f}** |' in said and 'plot' not in said
