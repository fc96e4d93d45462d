"""hybrid_calibrate.py and hybrid_experiment.py on small networks of three scripts and the digits."""

import csv
import shutil

import numpy as np
import pytest
import torch
import yaml

import models
from lib.engine.array import ArrayConfig
from lib.engine.calibration import Calibration
from lib.record.files import read_json
from lib.utils.data_utils import create_loaders
from lib.utils.quantize_utils import LinearQuantization, convert_to_quantized

TRAIN = ('--dataset', 'digits', '--image_size', '8', '--device', 'cpu', '--epochs', '2', '--train_batch', '64',
         '--strides', '1', '2', '--num_layer_list', '1', '1', '--num_channel_list', '8', '16', '--stem_channel', '8',
         '--header_channel', '16', '--layer_wbit', '4x5', '--layer_abit', '8,4x3,8', '--lr', '0.05')
LAYERS = ['stem.conv', 'blocks.0.depthwise', 'blocks.0.expand', 'blocks.0.project', 'blocks.1.downsample.conv',
          'blocks.1.depthwise', 'blocks.1.expand', 'blocks.1.project', 'header.conv', 'fc']
ON_ENGINE = [name for name in LAYERS if 'downsample' not in name]  # a BatchNorm stands before that one
NOISY = ('--gain_mismatch', '0.05', '--offset_mismatch', '0.02', '--adc_range', 'max', '--adc_bits', '10', '--rows',
         '64', '--columns', '32')


@pytest.fixture(scope='module')
def place(tmp_path_factory, succeed):
    """The folder in which the user works, with a run of qat_train.py in it."""
    folder = tmp_path_factory.mktemp('engine')
    succeed('qat_train.py', *TRAIN, '-c', 'run', cwd=folder)
    return folder


@pytest.fixture(name='experiment')
def experiment_fixture(place, call, tmp_path):
    """`experiment(*options)` -> (`Done`, folder of the results), of a copy of the run."""
    def experiment(*options, images=40):
        if not (tmp_path / 'run').exists():
            shutil.copytree(place / 'run', tmp_path / 'run')
        done = call('hybrid_experiment.py', '--resume', 'run/checkpoint.pth.tar', '--images', images, *options,
                    cwd=tmp_path)
        return done, tmp_path / 'run' / 'experiment_data' / 'results'
    return experiment


read = read_json  # which takes the digest out again


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


# ---- calibration

def test_calibration_recovers_gain_and_offset(call, tmp_path):
    done = call('hybrid_calibrate.py', '-c', 'run', *NOISY, cwd=tmp_path)
    assert done.code == 0, done.err
    results = tmp_path / 'run' / 'experiment_data' / 'results'
    assert {path.name for path in results.iterdir()} == {'calibration.json', 'calibration.png'}
    found = Calibration.from_dict(read(results / 'calibration.json'))
    assert found.r2_before < 0.999 < found.r2_after and found.rmse_after < found.rmse_before / 5
    assert len(found.gain) == 16 and found.gain.std() > 0.02
    for word in ('R^2', 'RMSE', 'effective bits', f'{found.r2_after:.6f}', f'{found.bits_after:.2f}'):
        assert word in done.out


def test_the_calibration_of_another_engine_is_not_replaced_unasked(call, tmp_path):
    assert call('hybrid_calibrate.py', '-c', 'run', cwd=tmp_path).code == 0
    path = tmp_path / 'run' / 'experiment_data' / 'results' / 'calibration.json'
    before = path.read_bytes()
    assert call('hybrid_calibrate.py', '-c', 'run', cwd=tmp_path).code == 0
    done = call('hybrid_calibrate.py', '-c', 'run', '--rows', '64', cwd=tmp_path)
    assert done.code == 1 and 'rows 128 there, 64 here' in done.err and '--overwrite' in done.err
    assert path.read_bytes() == before
    assert call('hybrid_calibrate.py', '-c', 'run', '--rows', '64', '--overwrite', cwd=tmp_path).code == 0


def test_settings_come_from_the_command_line_then_a_file_then_the_run(call, tmp_path):
    (tmp_path / 'engine.yaml').write_text('rows: 64\nadc_bits: 6\n')
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'config.yaml').write_text('model: {}\nmvm: {rows: 32, columns: 16}\n')
    result = tmp_path / 'run' / 'experiment_data' / 'results' / 'calibration.json'
    for options, expected in (((), {'rows': 32, 'columns': 16}), (('--rows', '16'), {'rows': 16, 'columns': 16}),
                              (('--engine', 'engine.yaml', '--adc_bits', '5'), {'rows': 64, 'adc_bits': 5}),
                              (('--engine', 'run/config.yaml'), {'rows': 32, 'columns': 16})):
        done = call('hybrid_calibrate.py', '-c', 'run', '--overwrite', *options, cwd=tmp_path)
        assert done.code == 0, done.err
        assert read(result)['config'] == {**ArrayConfig().to_dict(), **expected}


def test_every_field_of_an_engine_has_an_option(call, tmp_path):
    done = call('hybrid_calibrate.py', '--help', cwd=tmp_path)
    text = ' '.join(done.out.split())
    for name, default in ArrayConfig().to_dict().items():
        option = {'device': 'cell_device', 'seed': 'engine_seed'}.get(name, name)
        assert f'--{option} ' in text
        said = "the device's" if default is None else f'{default:g}' if isinstance(default, (int, float)) else default
        assert f'(default: {said})' in text.split(f' --{option} ')[-1][:400], option


# ---- experiments

def test_an_ideal_engine_predicts_what_the_digital_network_does(experiment, place):
    done, results = experiment('--backend', 'ideal', images=180)
    assert done.code == 0, done.err
    report, trained = read(results / 'experiment.json'), read(place / 'run' / 'results.json')
    assert report['images'] == 180 and report['agreement'] == 100
    assert report['top1_engine'] == report['top1_digital'] == pytest.approx(trained['top1'])
    assert list(report['layers']) == ON_ENGINE
    assert all(row['rmse'] == 0 and row['effective_bits'] is None for row in report['layers'].values())
    assert 'stays digital: blocks.1.downsample.conv (has an input that no quantizer put on a grid)' in done.out
    assert {path.name for path in results.iterdir()} == {'experiment.json', 'layers.csv', 'scatter.png',
                                                         'histogram.png'}


def test_errors_of_every_layer_are_reported(experiment):
    done, results = experiment('--adc_bits', '4', '--error_images', '10', '--layers', 'blocks.0.*, 9')
    assert done.code == 0, done.err
    report, rows = read(results / 'experiment.json'), rows_of(results / 'layers.csv')
    assert [row['layer'] for row in rows] == ['blocks.0.depthwise', 'blocks.0.expand', 'blocks.0.project', 'fc']
    assert int(rows[3]['count']) == 10 * 10 and report['engine']['adc_bits'] == 4
    for row in rows:
        assert {name: f'{value}' for name, value in report['layers'][row['layer']].items()} == row
        assert float(row['rmse']) > 0 and 0 < float(row['correlation']) < 1 and float(row['effective_bits']) > 0


def test_equal_settings_are_measured_once(experiment):
    few = ('--layers', 'fc')
    done, results = experiment(*few)
    before = (results / 'experiment.json').read_bytes()
    done, _ = experiment(*few)
    assert 'has the results of these settings already' in done.out
    assert (results / 'experiment.json').read_bytes() == before
    done, _ = experiment(*few, '--overwrite')
    assert 'already' not in done.out
    done, _ = experiment(*few, '--adc_bits', '5')
    assert 'already' not in done.out and read(results / 'experiment.json')['engine']['adc_bits'] == 5


def test_a_sweep_keeps_its_points(experiment):
    options = ('--layers', 'fc', '--sweep')
    done, results = experiment(*options, 'adc_bits=4,0')
    assert done.code == 0, done.err
    rows = rows_of(results / 'sweep_adc_bits.csv')
    assert [row['value'] for row in rows] == ['4', '0'] and float(rows[1]['agreement']) == 100
    first = read(results / 'sweep_adc_bits.json')
    assert {point['value'] for point in first.values()} == {4, 0} and (results / 'sweep_adc_bits.png').is_file()
    done, _ = experiment(*options, 'adc_bits=3,4,0', '--sweep', 'mapping=offset', '--sweep', 'read_noise=0,0.1')
    assert 'adc_bits 4: known' in done.out and 'adc_bits 0: known' in done.out and 'adc_bits 3: known' not in done.out
    second = read(results / 'sweep_adc_bits.json')
    assert len(second) == 3 and first.items() <= second.items()
    assert len(rows_of(results / 'sweep_read_noise.csv')) == 2 and len(rows_of(results / 'sweep_mapping.csv')) == 1
    done, _ = experiment(*options, 'adc_bits=4', '--cell_bits', '1')  # another engine: points apart
    assert 'known' not in done.out and len(read(results / 'sweep_adc_bits.json')) == 4


def test_a_calibrated_engine_is_nearer_to_the_digital_network(experiment, call, tmp_path):
    errors, few = {}, (*NOISY, '--layers', 'header.conv')
    for name, options in (('plain', ()), ('each', ('--calibrate',)), ('file', ('--calibration', 'calibration.json'))):
        if name == 'file':
            assert call('hybrid_calibrate.py', '-c', 'other', *NOISY, cwd=tmp_path).code == 0
            shutil.copy(tmp_path / 'other' / 'experiment_data' / 'results' / 'calibration.json', tmp_path)
        done, results = experiment(*few, *options)
        assert done.code == 0, done.err
        report = read(results / 'experiment.json')
        errors[name] = report['layers']['header.conv']['rmse']
        assert report['calibrated'] == (name != 'plain')
    assert errors['each'] < errors['plain'] / 3 and errors['file'] == pytest.approx(errors['each'])
    done, _ = experiment('--calibration', 'calibration.json')
    assert done.code == 1 and 'of another engine' in done.err and 'rows 64 there, 128 here' in done.err
    done, _ = experiment(*NOISY, '--calibration', 'calibration.json', '--sweep', 'rows=64,32')
    assert done.code == 1 and '--calibrate' in done.err
    done, _ = experiment(*NOISY, '--calibrate', '--layers', 'fc', '--sweep', 'rows=64,32')
    assert done.code == 0, done.err


def test_operands_are_collected_and_measurements_replayed(experiment, tmp_path):
    done, _ = experiment('--collect', '20', '--collect_images', '3')
    assert done.code == 0, done.err
    folder = tmp_path / 'run' / 'experiment_data' / 'test_data'
    assert {path.stem for path in folder.iterdir()} == set(ON_ENGINE)
    with np.load(folder / 'stem.conv.npz') as arrays:
        assert arrays['inputs'].shape == (20, 1, 27)
    done, _ = experiment('--collect', '-1', '--collect_images', '3', '--layers', 'header.conv')
    with np.load(folder / 'header.conv.npz') as arrays:
        operands = dict(arrays)
    measured = np.einsum('igk,gkn->in', operands['inputs'].astype(float), operands['weights'].astype(float))
    (tmp_path / 'lab').mkdir()
    path = tmp_path / 'lab' / 'header.conv.npz'
    for wrong, words in (({**operands, 'measured': measured + np.nan}, 'expected finite numbers'),
                         ({'measured': measured.astype(str)}, 'expected finite numbers'),
                         ({**operands, 'measured': measured, 'inputs': operands['inputs'][::-1]}, 'digest')):
        np.savez(path, **wrong)
        done, _ = experiment('--replay', 'lab', '--collect_images', '3')
        assert done.code == 1 and words in done.err, done.err
    np.savez(path, **operands, measured=measured)  # as the page of the engine has it; alone it is enough
    assert experiment('--replay', 'lab', '--collect_images', '3')[0].code == 0
    np.savez(path, measured=measured)
    done, _ = experiment('--replay', 'lab', '--collect_images', '3')
    assert done.code == 0, done.err
    assert '3 images, dot products of header.conv as measured' in done.out
    assert 'the same prediction for 100.00 %' in done.out
    done, _ = experiment('--replay', 'lab', '--collect_images', '2')
    assert done.code == 1 and 'replay the images that they were collected on' in done.err
    done, _ = experiment('--collect', '0')
    assert done.code == 1 and '--collect 0' in done.err


def test_the_linear_flow_and_its_float_weights(call, tmp_path):
    torch.manual_seed(0)
    train, _, classes = create_loaders('digits', batch_size=32, image_size=8)
    model = models.create_model('resnet20', num_classes=classes)
    about = {'arch': 'resnet20', 'dataset': 'digits', 'classes': classes, 'input': [3, 8, 8]}
    torch.save({'state_dict': model.state_dict(), **about}, tmp_path / 'float.pth.tar')
    convert_to_quantized(model, train.first_batch()[:2], quiet=True)
    strategy = [[8, -1]] + [[6, 6]] * 18 + [[8, 8]]
    LinearQuantization(model, strategy, train.first_batch())
    torch.save({'state_dict': model.state_dict(), 'quantization': 'linear', 'strategy': strategy, **about},
               tmp_path / 'linear.pth.tar')
    done = call('hybrid_experiment.py', '--resume', 'linear.pth.tar', '--images', '10', '--backend', 'ideal',
                '--float_weights', 'float.pth.tar', '--layers', 'layer1.*, *.conv2', cwd=tmp_path)
    assert done.code == 0, done.err
    report = read(tmp_path / 'experiment_data' / 'results' / 'experiment.json')
    assert report['agreement'] == 100 and 'top1_float' in report and len(report['layers']) == 12
    done = call('hybrid_experiment.py', '--resume', 'float.pth.tar', cwd=tmp_path)
    assert done.code == 1 and 'unknown weights' in done.err


def test_a_run_of_hybrid_train(call, succeed, tmp_path):
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump({
        'environment': {'dataset': 'digits', 'checkpoints_directory': 'run', 'device': 'CPU'},
        'model': {'blocks': [[4, 4, 1], [4, 8, 2]]}, 'training': {'epochs': 0},
        'qat': {'quantize_w_blocks': [0], 'quantize_a_blocks': [0]},
        'ptq': {'post_quantize_w': True, 'post_quantize_w_layers': [-1, 1], 'post_quantize_a': True,
                'post_quantize_a_layers': [-1, 1], 'post_image_bit_width': 8, 'calibration_epochs': 1},
        'mvm': {'rows': 64, 'adc_bits': 0}}))
    succeed('hybrid_train.py', '--config', 'config.yaml', '--image_size', '8', '-c', 'run', cwd=tmp_path)
    done = call('hybrid_experiment.py', '-c', 'run', '--images', '40', cwd=tmp_path)
    assert done.code == 0, done.err
    report = read(tmp_path / 'run' / 'experiment_data' / 'results' / 'experiment.json')
    assert report['agreement'] == 100 and report['engine']['rows'] == 64 and report['engine']['adc_bits'] == 0
    assert list(report['layers']) == ['conv0', 'blocks.0.conv1', 'blocks.0.conv2', 'blocks.1.conv1', 'blocks.1.conv2',
                                      'blocks.1.shortcut.conv']
    assert report['layers']['blocks.0.conv1']['w_bit'] == 2 and report['layers']['conv0']['a_bit'] == 8
    done = call('hybrid_experiment.py', '-c', 'elsewhere', cwd=tmp_path)
    assert done.code == 2 and 'give the folder of a run of hybrid_train.py by -c' in done.err


def test_arrays_of_a_driver(experiment, tmp_path):
    (tmp_path / 'lab.py').write_text(
        'from lib.engine.array import ArrayDriver\n\n\n'
        'class Exact(ArrayDriver):\n'
        '    def program(self, cells):\n'
        '        self.matrix = (cells[0] - cells[1]).float()\n\n'
        '    def read(self, inputs):\n'
        '        return inputs @ self.matrix\n')
    done, results = experiment('--backend', 'hardware', '--driver', 'lab.py:Exact', '--layers', 'stem.*,fc')
    assert done.code == 0, done.err
    report = read(results / 'experiment.json')
    assert report['agreement'] == 100 and report['backend'] == 'hardware'
