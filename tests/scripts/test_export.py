"""export.py on a small network that qat_train.py trained, and on one of the linear flow."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from lib.integer.network import IntegerNetwork

TRAIN = ('--dataset', 'digits', '--image_size', '8', '--device', 'cpu', '--epochs', '2', '--train_batch', '64',
         '--strides', '1', '2', '--num_layer_list', '1', '1', '--num_channel_list', '8', '16', '--stem_channel', '8',
         '--header_channel', '16', '--layer_wbit', '8x5', '--layer_abit', '32,8x3,16', '--lr', '0.05')


@pytest.fixture(scope='module')
def place(tmp_path_factory, succeed):
    """The folder in which the user works, with a run of qat_train.py in it."""
    folder = tmp_path_factory.mktemp('export')
    succeed('qat_train.py', *TRAIN, '-c', 'run', cwd=folder)
    return folder


@pytest.fixture(name='export')
def export_fixture(place, call):
    """`export(*options, output=)` -> `Done`."""
    return lambda *options, output: call('export.py', '--integer', '--resume', 'run/checkpoint.pth.tar', '--output',
                                         output, *options, cwd=place)


def test_an_exported_network_predicts_what_the_trained_one_does(export, place):
    graph = ('--onnx', 'integers.onnx') if find_spec('onnxruntime') and find_spec('onnx_ir') else ()
    done = export('--hardware', 'edge', '--hardware', 'bitfusion', *graph, output='all')
    assert done.code == 0, done.err
    assert not graph or 'every integer is that of the integer network' in done.out
    report = json.loads((place / 'all' / 'report.json').read_text())
    assert set(report['coverage']) == {'weights', 'macs'} and 'covers' in done.out
    results = json.loads((place / 'run' / 'results.json').read_text())
    assert report['images'] == 180 and report['top1_fake_quantized'] == pytest.approx(results['top1'])
    assert report['agreement'] > 99 and abs(report['top1_integer'] - report['top1_fake_quantized']) < 1
    assert 'the same prediction for' in done.out and 'integer.npz, integer.h, report.json\n' in done.out
    assert report['noise']['agreement'] > 99 and report['noise']['difference'] < 0.01
    assert len(report['codes']) == 10 and all(row['largest'] <= 1 for row in report['codes'].values())
    for name in ('edge', 'bitfusion'):
        machine = report['hardware'][name]
        assert machine['latency'] == pytest.approx(sum(layer['latency'] for layer in machine['layers']))
        assert {'stem.conv', 'blocks.1.downsample.conv', 'fc'} <= {layer['name'] for layer in machine['layers']}
    network = IntegerNetwork.load(place / 'all' / 'integer.npz')
    assert network(torch.zeros(2, 3, 8, 8)).dtype == torch.int64
    assert 'int8_t' in (place / 'all' / 'integer.h').read_text()


@pytest.mark.usefixtures('validation_images_alone')
def test_a_checkpoint_alone_is_enough(place, call, tmp_path):
    shutil.copy(place / 'run' / 'checkpoint.pth.tar', tmp_path / 'moved.pth.tar')
    done = call('export.py', '--integer', '--resume', 'moved.pth.tar', '--images', '40', '--arithmetic', 'float64',
                cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / 'integer' / 'report.json').read_text())
    assert report['images'] == 40 and report['arch'] == 'toynet' and report['dataset'] == 'digits'


def test_the_formats_of_the_original(export, place):
    done = export('--images', '20', '--format', 'original', '--rounding', 'trunc', output='original')
    assert done.code == 0, done.err
    codes = json.loads((place / 'original' / 'report.json').read_text())['codes']
    assert max(row['largest'] for row in codes.values()) in (1, 2)


def test_nothing_is_overwritten_unasked(export, place):
    assert export('--images', '0', output='twice').code == 0
    before = (place / 'twice' / 'integer.npz').read_bytes()
    done = export('--images', '0', output='twice')
    assert done.code == 1 and '--overwrite' in done.err and (place / 'twice' / 'integer.npz').read_bytes() == before
    assert export('--images', '0', '--overwrite', output='twice').code == 0


def test_a_constant_that_does_not_fit_names_layer_and_value(export):
    done = export('--images', '0', '--format', '8,1', output='refused')
    assert 'blocks.' in done.err and '<8,1>' in done.err and 'saturate' in done.err
    done = export('--images', '0', '--format', '8,1', '--saturate', output='saturated')
    assert done.code == 0 and 'were clipped' in done.out


def test_multipliers_that_vanish_are_named(export):
    done = export('--images', '0', '--format', '16,10', output='collapsed')
    assert done.code == 0 and 'blocks.0.depthwise_output' in done.out and 'became 0' in done.out


@pytest.mark.parametrize(('images', 'kinds'), [('0', ['noise']), ('20', ['noise', 'images']), ('-1', ['images'])])
def test_the_last_line_warns_of_integers_that_predict_otherwise(export, place, images, kinds):
    done = export('--images', images, '--format', '16,10', '--overwrite', output='otherwise')
    report = json.loads((place / 'otherwise' / 'report.json').read_text())
    last = done.out.splitlines()[-1]
    assert done.code == 0 and last.startswith('warning: the integer network is not the trained one')
    shares = {'noise': f'{report["noise"]["agreement"]:.2f} % of 100 images of noise',
              'images': f'{report.get("agreement", 0):.2f} % of {report.get("images")} validation images'}
    assert [kind for kind, share in shares.items() if share in last] == kinds


def test_only_quantized_networks_have_integers(place, call, tmp_path):
    torch.save({'state_dict': {'a': torch.zeros(1)}}, tmp_path / 'float.pth.tar')
    done = call('export.py', '--integer', '--resume', 'float.pth.tar', cwd=tmp_path)
    assert done.code == 1 and 'qat_train.py' in done.err
    assert call('export.py', '--integer', '--resume', 'none.pth.tar', cwd=tmp_path).code == 2
    assert call('export.py', '--integer', cwd=tmp_path).code == 2
    done = call('export.py', '--resume', place / 'run' / 'checkpoint.pth.tar', cwd=tmp_path)
    assert done.code == 1 and '--integer' in done.err


def test_the_linear_flow(small, call, succeed, tmp_path):
    succeed('finetune.py', *small, '--linear_quantization', '--cost', 'file_size', '--strategy', 'uniform:6',
            '--epochs', '1', '--train_batch', '80', '-c', 'run', cwd=tmp_path)
    done = call('export.py', '--integer', '--resume', 'run/checkpoint.pth.tar', '--images', '40', cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / 'run' / 'integer' / 'report.json').read_text())
    assert report['agreement'] > 95 and max(row['largest'] for row in report['codes'].values()) <= 1


# ---- ONNX

def test_a_network_is_written_as_an_onnx_graph_and_verified(place, call):
    pytest.importorskip('onnxruntime', reason='onnxruntime is not installed (requirements-export.txt)')
    pytest.importorskip('onnxscript', reason='onnxscript is not installed (requirements-export.txt)')
    command = 'export.py', '--onnx', 'net.onnx', '--resume', 'run/checkpoint.pth.tar', '--images', '60', '--int8_sums'
    done = call(*command, cwd=place)
    assert done.code == 0, done.err
    report = json.loads((place / 'net.json').read_text())
    assert report['bytes'] == (place / 'net.onnx').stat().st_size and report['problems'] == []
    assert report['images']['onnxruntime, not fused']['agreement'] >= 99.5
    assert len(report['codes']) == 10 and all(row['largest'] <= 1 for row in report['codes'].values())
    assert report['nodes']['onnxruntime']['QLinearConv'] > 0 and 'QLinearConv' in done.out
    assert report['int8_sums']['nodes']['onnxruntime']['QLinearAdd'] > 0 and 'another function' in done.out
    again = call(*command, cwd=place)
    assert again.code == 1 and '--overwrite' in again.err
