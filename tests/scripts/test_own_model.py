"""The walk of docs/own_model.md, in small: a network out of a file of the user's, through every script."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.record.files import write_json

EXAMPLE = Path(__file__).resolve().parents[2] / 'examples' / 'own_model.py'
SMALL = ('--dataset', 'digits', '--image_size', '16')
RUN = (*SMALL, '--workers', '0', '--device', 'cpu', '--train_batch', '64')
LINEAR = ['patches', 'block1.dwconv', 'block1.expand', 'block1.shrink', 'block2.dwconv', 'block2.expand',
          'block2.shrink', 'mix', 'attention.attention.out_proj', 'attention.attention.in_proj', 'attention.mlp.1',
          'attention.mlp.3', 'head']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder in which the user works, with a copy of the example in it."""
    home = tmp_path_factory.mktemp('own')
    (home / 'nets').mkdir()
    (home / 'nets' / 'own_model.py').write_text(EXAMPLE.read_text())
    return home


@pytest.fixture(scope='module')
def own(folder):
    """Options that name the network."""
    return ('--model_file', 'nets/own_model.py:build')


@pytest.fixture(scope='module')
def start(folder, own, succeed):
    """Options of every later command: network, data and float weights, those of one epoch."""
    succeed('pretrain.py', *own, *RUN, '--epochs', '1', '--lr', '0.05', '-c', 'float', cwd=folder)
    return (*own, *RUN, '--weights', 'float/checkpoint.pth.tar')


@pytest.fixture(scope='module')
def table(folder, own, succeed):
    """Path of the cost table of the network."""
    done = succeed('make_lookup_table.py', *own, *SMALL, '--hardware', 'bitfusion', '--output', 'table.npy',
                   '--no-plot', cwd=folder)
    assert 'own_model for images of 3 x 16 x 16, 10 outputs: 13 layers' in done.out
    assert np.load(folder / 'table.npy').shape == (13, 8, 8)
    return folder / 'table.npy'


def test_a_network_that_loads_its_own_weights_needs_none(folder, start, succeed, call, read_json):
    """It is searched, fine-tuned and evaluated as the same weights given by --weights; the log says so once."""
    (folder / 'nets' / 'trained.py').write_text("""
import torch
from pathlib import Path
from own_model import build as untrained
def build(num_classes):
    model = untrained(num_classes)
    path = Path(__file__).parents[1] / 'float' / 'checkpoint.pth.tar'
    model.load_state_dict(torch.load(path, weights_only=True)['state_dict'])
    return model
""")
    search = ('rl_quantize.py', '--train_size', '64', '--val_size', '64', '--train_episode', '1', '--preserve_ratio',
              '0.15', '--output', 'own')
    tune = ('finetune.py', '--strategy', 'uniform:3', '--eval')
    for command in (search, tune, ('pretrain.py', '--eval')):
        given = succeed(*command, *start, cwd=folder).out.splitlines()
        loaded = succeed(*command, '--model_file', 'nets/trained.py:build', *RUN, cwd=folder).out.splitlines()
        assert [line.startswith('no --weights: the network has those that ') for line in loaded].count(True) == 1
        if command is not search:
            assert loaded[-1].removeprefix('trained') == given[-1].removeprefix('own_model') and 'top-1' in given[-1]
    runs = [read_json(folder / 'own' / f'{name}_digits' / 'results.json') for name in ('own_model', 'trained')]
    assert len({(run['float_accuracy'], run['accuracy'], str(run['strategy'])) for run in runs}) == 1
    done = call(*tune, '--model_file', 'nets/trained.py:build', *RUN, '--pretrained', cwd=folder)
    assert done.code == 1 and 'has no published weights: give --weights' in done.err


def flow_options(name, table):
    """Options of either flow for search and fine-tuning."""
    return () if name == 'kmeans' else ('--linear_quantization', '--cost', table)


@pytest.fixture(scope='module', params=['kmeans', 'linear'])
def searched(request, folder, start, table, succeed):
    """(flow, its options, folder of a search of two episodes)."""
    options = flow_options(request.param, table)
    ratio = {'kmeans': '0.15', 'linear': '0.6'}[request.param]
    succeed('rl_quantize.py', *start, *options, '--train_size', '128', '--val_size', '64', '--train_episode', '2',
            '--warmup', '0', '--preserve_ratio', ratio, '--output', 'save', '--suffix', request.param, cwd=folder)
    return request.param, options, folder / 'save' / f'own_model_digits_{request.param}'


def test_measure_knows_the_network(folder, own, succeed):
    done = succeed('measure.py', *own, *SMALL, '--json', cwd=folder)
    report = json.loads(done.out)
    assert report['network'] == 'own_model' and [layer['name'] for layer in report['layers']] == LINEAR
    calls = {layer['name']: layer['calls'] for layer in report['layers'] if layer['calls'] != 1}
    assert calls == {'mix': 2}
    mix = next(layer for layer in report['layers'] if layer['name'] == 'mix')
    assert mix['macs'] == 2 * 4 * 4 * 32 * (32 // 4) * 9 and mix['weights'] == 32 * 8 * 9


def test_search_fine_tuning_and_evaluation(searched, folder, start, succeed, read_json):
    flow, options, run = searched
    about = read_json(run / 'strategy.json')
    assert about['layers'] == LINEAR
    assert (about['arch'], about['quantization']) == ('own_model', flow)
    succeed('finetune.py', *start, *options, '--strategy', run / 'strategy.json', '--epochs', '1', '--lr', '0.01',
            '-c', f'tuned_{flow}', cwd=folder)
    saved = torch.load(folder / f'tuned_{flow}' / 'checkpoint.pth.tar', weights_only=True)
    assert saved['strategy'] == about['strategy']
    if flow == 'kmeans':
        for name, bits in zip(LINEAR, about['strategy'], strict=True):
            key = f'{name}.weight'.replace('in_proj.weight', 'in_proj_weight')
            assert len(saved['state_dict'][key].unique()) <= 2 ** bits
    again = succeed('finetune.py', '--resume', f'{folder}/tuned_{flow}/checkpoint.pth.tar', '--eval',
                    cwd=folder / 'nets')  # the run knows where the file of the network is
    results = read_json(folder / f'tuned_{flow}' / 'results.json')
    assert f"own_model on digits: top-1 {results['top1']:.2f} %" in again.out


def test_products_of_attention_are_searched_trained_and_evaluated(folder, start, succeed, call, read_json):
    options = (*start, '--linear_quantization', '--attention_products', '--cost', 'bitops')
    succeed('rl_quantize.py', *options, '--train_size', '64', '--val_size', '64', '--train_episode', '1', '--warmup',
            '1', '--preserve_ratio', '0.6', '--output', 'save', '--suffix', 'products', cwd=folder)
    run = folder / 'save' / 'own_model_digits_products'
    about = read_json(run / 'strategy.json')
    assert about['layers'] == [*LINEAR[:9], *LINEAR[9:10], 'attention.attention.product1',
                               'attention.attention.product2', *LINEAR[10:]]
    succeed('finetune.py', *options, '--strategy', run / 'strategy.json', '--epochs', '1', '-c', 'products', cwd=folder)
    again = succeed('finetune.py', '--resume', 'products/checkpoint.pth.tar', '--eval', cwd=folder)
    assert f"top-1 {read_json(folder / 'products' / 'results.json')['top1']:.2f} %" in again.out
    refused = call('finetune.py', *start, '--attention_products', '--strategy', 'uniform:4', '-c', 'x', cwd=folder)
    assert refused.code == 1 and '--attention_products: the K-means flow quantizes weights alone' in refused.err


def test_a_run_from_before_keeps_the_layers_that_it_had(folder, start, succeed, read_json):
    """Its files say nothing of products: `in_proj` and `out_proj` stay float in it."""
    options = (*start, '--linear_quantization', '--cost', 'bitops', '--strategy', 'uniform:4', '--epochs', '1')
    succeed('finetune.py', *options, '-c', 'old', cwd=folder)
    path = folder / 'old' / 'checkpoint.pth.tar'
    saved, settings = torch.load(path, weights_only=True), read_json(folder / 'old' / 'args.json')
    old = [name for name in LINEAR if '_proj' not in name]
    saved |= {'layers': old, 'strategy': [bits for name, bits in zip(LINEAR, saved['strategy'], strict=True)
                                          if name in old]}
    saved['state_dict'] = {key: value for key, value in saved['state_dict'].items() if '_proj.' not in key
                           or 'out_proj' in key and 'quantizer' not in key}
    del saved['attention_products'], saved['digest'], settings['attention_products']
    torch.save(saved, path)
    write_json(folder / 'old' / 'args.json', settings, seal=True)
    done = succeed('finetune.py', '--resume', path, '--eval', cwd=folder)
    assert 'never called: attention.attention.out_proj' in done.out and 'top-1' in done.out


def test_measure_prices_both_strategies(searched, folder, own, succeed, read_json):
    flow, _, run = searched
    report = json.loads(succeed('measure.py', *own, *SMALL, '--strategy', run / 'strategy.json', '--hardware',
                                'bitfusion', '--json', cwd=folder).out)
    about = read_json(run / 'strategy.json')
    cost = report['size_bits'] if flow == 'kmeans' else report['cost']
    assert cost == pytest.approx(about['cost'])


def test_data_of_ones_own_of_another_shape(tmp_path, succeed, call):
    files = ('--model_file', EXAMPLE.with_name('grey_model.py:build'), '--dataset_file',
             EXAMPLE.with_name('own_data.py:build'), '--workers', '0', '--device', 'cpu', '--train_batch', '64')
    succeed('pretrain.py', *files, '--epochs', '1', '--lr', '0.2', '-c', 'float', cwd=tmp_path)
    results = json.loads((tmp_path / 'float' / 'results.json').read_text())
    assert (results['arch'], results['dataset'], results['classes'], results['input']) == (
        'grey_model', 'own_data', 10, [1, 8, 8])
    assert results['top1'] > 30
    done = succeed('rl_quantize.py', *files, '--weights', 'float/checkpoint.pth.tar', '--train_size', '128',
                   '--val_size', '64', '--train_episode', '1', '--preserve_ratio', '0.12', '--output', 's',
                   cwd=tmp_path)
    assert '4 layers with 7,376 weights' in done.out
    assert (tmp_path / 's' / 'grey_model_own_data' / 'strategy.json').is_file()
    refused = call('pretrain.py', *files, '--dataset', 'digits', '-c', 'x', cwd=tmp_path)
    assert refused.code == 2 and 'give one of them' in refused.err
