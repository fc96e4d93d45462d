"""export.py --packed and predict.py as a user calls them: the same network from a checkpoint and from a small file."""

import csv
import re
import shutil

import pytest
import torch

from lib.export.about import make_about
from lib.export.container import to_bytes, write_bytes
from lib.export.onnx_run import open_onnx
from lib.export.stored import read_packed
from lib.utils.make_data import main as make_data

OWN = """
from torch import nn
def build(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, num_classes))
"""


@pytest.fixture(name='place', scope='module')
def place_fixture(home, kmeans_finetune, linear_finetune):
    """The folder in which the user works, with the digits as image files and packed files of both flows."""
    make_data(['--dataset', 'digits', '--target', str(home / 'digits')])
    return home


@pytest.fixture(name='pack', scope='module')
def pack_fixture(place, succeed):
    """`pack(run, *options)`: path of the packed file of a run."""
    def pack(run, *options):
        succeed('export.py', '--resume', f'{run}/checkpoint.pth.tar', '--packed', f'{run}.safetensors', '--overwrite',
                *options, cwd=place)
        return place / f'{run}.safetensors'
    return pack


def table(path):
    with open(path, newline='') as file:
        return list(csv.reader(file))


@pytest.mark.parametrize('run', ['tuned_k', 'tuned_l'])
def test_a_packed_file_says_what_its_checkpoint_says(place, pack, succeed, read_json, run):
    path, top1 = pack(run), read_json(place / run / 'results.json')['top1']
    said = []
    for model in (path.name, f'{run}/checkpoint.pth.tar'):
        done = succeed('predict.py', model, 'digits/val', '--csv', 'found.csv', '--overwrite', cwd=place)
        assert f'top-1 {top1:.2f} % of the 180 images' in done.out
        said.append(table(place / 'found.csv'))
    assert said[0] == said[1] and len(said[0]) == 181 and said[0][0][:3] == ['image', 'class1', 'probability1']
    assert path.stat().st_size < 0.25 * (place / run / 'checkpoint.pth.tar').stat().st_size


def test_a_network_with_folded_batch_norms(place, pack, linear, succeed, weights):
    succeed('finetune.py', *linear, '--linear_quantization', '--fold_bn', '--weights', weights, '--strategy',
            'uniform:6', '--epochs', '1', '--train_batch', '80', '-c', 'folded', cwd=place)
    pack('folded')
    said = [succeed('predict.py', model, 'digits/val/6', cwd=place).out.splitlines()[1:]
            for model in ('folded.safetensors', 'folded/checkpoint.pth.tar')]
    assert said[0] == said[1] and len(said[0]) == 19


def test_lines_of_single_images(place, pack, succeed):
    pack('tuned_k')
    images = ['digits/val/7/0010.png', 'digits/val/1']
    images[0] = str(next((place / 'digits' / 'val' / '7').iterdir()))
    done = succeed('predict.py', 'tuned_k.safetensors', *images, '--topk', '2', '--batch', '5', cwd=place)
    lines = [line for line in done.out.splitlines() if '.png: ' in line]
    assert len(lines) == 12 and all(re.search(r'\.png: \d [\d.]+ %, \d [\d.]+ %$', line) for line in lines)
    assert lines[0].startswith(images[0])


def test_names_and_sizes(place, pack, succeed):
    (place / 'names.txt').write_text('\n'.join(f'digit {i}' for i in range(10)) + '\n')
    path = pack('tuned_k', '--class_names', 'names.txt', '--entropy', '--float16')
    packed = read_packed(path)
    assert packed.about['class_names'][3] == 'digit 3' and packed.about['network']['arch'] == 'resnet20'
    assert packed.about['preprocessing']['resize'] == [32, 32] and packed.about['preprocessing']['rescale'] == 8
    assert 'digit' in succeed('predict.py', path.name, 'digits/val/3', cwd=place).out


def test_broken_images(place, pack, call, tmp_path):
    shutil.copytree(place / 'digits' / 'val' / '4', tmp_path / '4')
    (tmp_path / '4' / 'broken.png').write_bytes(b'no picture')
    path = pack('tuned_k')
    done = call('predict.py', path, tmp_path, cwd=tmp_path)
    assert done.code == 1 and 'broken.png' in done.err and 'Traceback' not in done.err
    done = call('predict.py', path, tmp_path, '--on_bad_image', 'skip', cwd=tmp_path)
    assert done.code == 0 and '1 of 20 images cannot be decoded' in done.out and 'of the 19 images' in done.out


def test_a_network_of_your_own(place, succeed, call, tmp_path):
    (tmp_path / 'net.py').write_text(OWN)
    options = ('--model_file', 'net.py:build', '--dataset', 'digits', '--image_size', '16', '--workers', '0',
               '--device', 'cpu', '--epochs', '1', '--train_batch', '80', '--strategy', 'uniform:4')
    succeed('finetune.py', *options, '-c', 'run', cwd=tmp_path)
    succeed('export.py', '--resume', 'run/checkpoint.pth.tar', '--packed', 'own.safetensors', cwd=tmp_path)
    image = place / 'digits' / 'val' / '5'
    found = [succeed('predict.py', *model, image, cwd=tmp_path).out.splitlines()[1:] for model in (
        ('own.safetensors', '--model_file', 'net.py:build'), ('run/checkpoint.pth.tar',))]
    assert found[0] == found[1] and len(found[0]) == 19
    done = call('predict.py', 'own.safetensors', image, cwd=tmp_path)
    assert done.code == 1 and 'net.py:build: give that file by --model_file' in done.err


@pytest.fixture(scope='module')
def spoilt(place, pack):
    """The folder in which the user works, with files that cannot be used beside good ones."""
    data = pack('tuned_k').read_bytes()
    (place / 'damaged.safetensors').write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    packed = read_packed(place / 'tuned_k.safetensors')
    write_other(place / 'other.safetensors', packed, network={**packed.about['network'], 'arch': 'vgg16'})
    write_other(place / 'strange.safetensors', packed, quantization='qat', strategy=[[4, 4]] * 20,
                qat={'arch': 'resnet20', 'network': {}, 'quantizers': {'alpha': 'x'}})
    (place / 'digits.txt').write_text('a\nb\n')
    (place / 'empty').mkdir(exist_ok=True)
    (place / 'some.onnx').write_bytes(b'')
    return place


@pytest.mark.parametrize(('command', 'words'), [
    ('export.py --resume tuned_k/checkpoint.pth.tar', '--packed'),
    ('export.py --resume tuned_k/checkpoint.pth.tar --packed tuned_k.safetensors', 'there already'),
    ('export.py --resume float/checkpoint.pth.tar --packed new.safetensors', 'nothing to pack'),
    ('export.py --resume tuned_k/checkpoint.pth.tar --integer --entropy', 'belong to --packed'),
    ('export.py --resume tuned_k/checkpoint.pth.tar --packed new.safetensors --class_names digits.txt', '2 names'),
    ('predict.py nowhere.safetensors digits/val', 'nowhere.safetensors'),
    ('predict.py tuned_k.safetensors nowhere.png', 'nowhere.png does not exist'),
    ('predict.py tuned_k.safetensors empty', 'holds no image'),
    ('predict.py tuned_k.safetensors digits/val --arch resnet18', 'leave --arch out'),
    ('predict.py tuned_k.safetensors digits/val --model_file net.py:build', 'leave the option out'),
    ('predict.py tuned_k.safetensors digits/val --csv digits.txt', 'there already'),
    ('predict.py damaged.safetensors digits/val', 'SHA-256'),
    ('predict.py other.safetensors digits/val', 'needs'),
    ('predict.py strange.safetensors digits/val', 'says of its network what none is made of'),
    ('predict.py some.onnx digits/val', 'requirements-export.txt'),
])
def test_what_a_person_gets_wrong(spoilt, refused, command, words, monkeypatch):
    monkeypatch.setattr('lib.export.onnx_packages.MISSING', 'No module named onnx')
    refused(spoilt, [words], *command.split())


def write_other(path, packed, **changes):
    """The same weights, said to be those of another network, with the right digest."""
    tensors = {f'{name}.weight_{key}': array for name, coded in packed.weights.items()
               for key, array in coded.tensors().items()}
    write_bytes(path, to_bytes({**tensors, **packed.rest}, {**packed.about, **changes}))


def test_an_onnx_file_says_the_same_of_itself(monkeypatch, tmp_path):
    """With a stand-in for onnxruntime, which need not be installed: what is asked of it and what is made of that."""
    about = make_about({'quantization': 'linear', 'strategy': [[4, 4]], 'input': [3, 8, 8], 'classes': 2}, {
        'arch': 'resnet20', 'width_mult': 1.0, 'mode': None, 'tensorflow': False, 'model_file': None}, None, ['a', 'b'])

    class Network:
        metadata = about

        def __init__(self, path):
            assert path.name == 'net.onnx'

        def __call__(self, images):
            return images.sum((2, 3))[:, :2]

    monkeypatch.setattr('lib.export.onnx_run.OnnxNetwork', Network)
    run, found = open_onnx(tmp_path / 'net.onnx')
    assert found == about and run(torch.ones(1, 3, 8, 8).numpy()).tolist() == [[64, 64]]
    Network.metadata = {}
    with pytest.raises(ValueError, match='does not say what images it takes'):
        open_onnx(tmp_path / 'net.onnx')
