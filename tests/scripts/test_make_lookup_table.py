
import numpy as np
import pytest

from lib.simulator.bit_serial import PRESETS
from lib.simulator.hardware import make_table
from lib.simulator.layer import LayerRecord
from lib.simulator.table_files import load_table


@pytest.fixture
def run(tmp_path, call):
    def run(*options):
        return call('make_lookup_table.py', '--arch', 'qresnet20', '--dataset', 'cifar10', '--no-plot', *options,
                    cwd=tmp_path)

    return run


def test_a_table_by_command_and_its_protection(run, tmp_path):
    done = run('--hardware', 'edge', '--output', 'made/table.npy')
    assert done.code == 0, done.err
    cost = load_table(tmp_path / 'made' / 'table.npy')
    layers = [LayerRecord.from_dict(entries) for entries in cost.about['layers']]
    assert (layers[0].in_h, layers[-1].out_channels) == (32, 10)
    assert sum(layer.num_weights for layer in layers) == 268_336  # the rest of 269,722 is batch norm and bias
    assert np.array_equal(cost.table, make_table(layers, PRESETS['edge']).table)
    assert f'{cost.reference:,}' in done.out and '20 layers' in done.out

    refused = run('--hardware', 'edge', '--output', 'made/table.npy', '--batch', '2')
    assert refused.code != 0 and '--overwrite' in refused.err and 'Traceback' not in refused.err
    assert load_table(tmp_path / 'made' / 'table.npy').about['batch'] == 1


def test_a_file_is_named_after_what_is_said(monkeypatch, tmp_path, call):
    """Without --dataset after the images and classes it was made for, those of ImageNet where nothing else is given."""
    import _costs
    monkeypatch.setattr(_costs, 'TABLES', tmp_path)
    for options, name, shape, classes in (
            ((), 'qresnet20_batch16_image32_classes1000', [3, 32, 32], 1000),
            (('--input_size', '64'), 'qresnet20_batch16_image64_classes1000', [3, 64, 64], 1000),
            (('--input_size', '3x9x8', '--num_classes', '7'), 'qresnet20_batch16_image3x9x8_classes7', [3, 9, 8], 7),
            (('--dataset', 'imagenet100'), 'qresnet20_imagenet100_batch16', [3, 32, 32], 1000)):
        done = call('make_lookup_table.py', '--arch', 'resnet20', '--no-plot', *options, cwd=tmp_path)
        assert done.code == 0, done.err
        about = load_table(tmp_path / f'{name}_latency_table.npy').about
        assert about['resolution'] == shape and about['layers'][-1]['out_channels'] == classes
        assert about['dataset'] == ('imagenet100' if '--dataset' in options else None)
