"""Images without labels, by command: rounding and searching do without, what reads labels says so."""

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from lib.utils.data_utils import create_loaders
from tests.scripts.test_rounding import ROUND, loss_of, read, top1_of

OWN = """
import torch
from lib.data.datasets import DATASETS

def digits(split):
    spec = DATASETS['digits']
    images = torch.nn.functional.interpolate(spec.read(spec, None, split).images[:160].float(), 8) / 127.5 - 1
    return [image for image in images]
def half(split):
    spec = DATASETS['digits']
    return digits(split) if split == 'train' else list(zip(digits(split), spec.read(spec, None, split).labels))
"""


@pytest.fixture(scope='module')
def own(small, tmp_path_factory):
    """Options of a small network and of digits without labels."""
    file = tmp_path_factory.mktemp('own') / 'own.py'
    file.write_text(OWN)
    return '--dataset_file', f'{file}:digits', '--num_classes', '10', *small[2:4], '--workers', '0', \
        '--device', 'cpu', '--train_batch', '40', '--bn_batches', '2'


def finetune(own, weights, *more):
    return ('finetune.py', *own, '--weights', weights, *ROUND, '--strategy', 'uniform:3', '--cost', 'model_size', *more)


@pytest.fixture(scope='module')
def rounded(own, small_weights, succeed, tmp_path_factory):
    """`Done` of rounding without labels, and the folder that has its run, `round`."""
    folder = tmp_path_factory.mktemp('rounded')
    return succeed(*finetune(own, small_weights, '--epochs', '0', '-c', 'round'), cwd=folder), folder


def test_rounding_reports_the_agreement_with_the_float_network(rounded, succeed, refused, read_json):
    done, tmp_path = rounded
    assert (done.out + done.err).count('not augmented') == 1, 'these tensors are not'
    assert '(agreement with the float network: the images have no labels)' in done.out and top1_of(done) > 50
    assert read_json(tmp_path / 'round' / 'results.json')['labels'] == 'float network'
    checkpoint = tmp_path / 'round' / 'checkpoint.pth.tar'
    again = succeed('finetune.py', '--resume', checkpoint, '--eval', cwd=tmp_path)
    assert (top1_of(again), loss_of(again)) == (top1_of(done), loss_of(done))
    summary = succeed('summarize.py', f'x={tmp_path / "round"}', cwd=tmp_path)
    assert 'agreement with the float network' in summary.out
    succeed('export.py', '--resume', checkpoint, '--packed', 'x.safetensors', cwd=tmp_path)
    refused(tmp_path, ['no labels', 'training', '--epochs 0'], 'finetune.py', '--resume', checkpoint, '--epochs', '1')


def test_labels_of_the_validation_images_are_used_where_they_are(own, small_weights, rounded, succeed, tmp_path):
    half = (own[0], own[1].replace('digits', 'half'), *own[2:])
    done = succeed(*finetune(half, small_weights, '--epochs', '0', '-c', 'half'), cwd=tmp_path)
    assert 'agreement' not in done.out and top1_of(done) > 50
    states = [read(path / 'checkpoint.pth.tar')['state_dict'] for path in (tmp_path / 'half', rounded[1] / 'round')]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items()), 'labels are not read'
    assert top1_of(rounded[0]) != top1_of(done)


def test_distillation_trains_without_labels(own, small_weights, succeed, tmp_path):
    options = ('--lr', '0.002', '--distill', 'float', '-c', 'taught')
    done = succeed(*finetune(own, small_weights, '--epochs', '1', *options), cwd=tmp_path)
    assert top1_of(done) > 60 and 'agreement' in done.out


def test_a_folder_of_images(small, small_weights, succeed, tmp_path):
    images = next(iter(create_loaders('digits', batch_size=120)[0]))[0]
    (tmp_path / 'photos').mkdir()
    for number, image in enumerate(images):
        to_pil_image(image / 2 + 0.5).save(tmp_path / 'photos' / f'{number}.png')
    done = succeed('finetune.py', '--dataset', 'folder', '-d', 'photos', '--num_classes', '10', '--image_size', '8',
                   *small[2:4], '--weights', small_weights, '--workers', '0', '--strategy', 'uniform:4', *ROUND,
                   '--epochs', '0', '-c', 'round', cwd=tmp_path)
    assert 'agreement with the float network' in done.out


def test_a_search_without_labels(own, small_weights, succeed, refused, read_json, tmp_path):
    options = ('rl_quantize.py', *own, *ROUND, '--weights', small_weights, '--train_size', '128', '--val_size', '64',
               '--searcher', 'random', '--preserve_ratio', 'uniform:3', '--min_bit', '2', '--output', tmp_path)
    unlike = [(('--finetune_flag', 'False'), ['no labels', '--reward accuracy', 'agreement']),
              (('--reward', 'kl'), ['no labels', 'fine-tuning', '--finetune_flag False']),
              (('--finetune_flag', 'False', '--reward', 'loss'), ['no labels', '--reward loss'])]
    for wrong, words in unlike:
        refused(tmp_path, words, *options, *wrong)
    label_free = (*options, '--finetune_flag', 'False', '--reward_on', 'augmented')
    done = succeed(*label_free, '--reward', 'kl', '--train_episode', '2', '--finish', cwd=tmp_path)
    assert 'accuracy is agreement with the float network' in done.err + done.out
    folder, = tmp_path.glob('small_*')
    assert read_json(folder / 'results.json')['labels'] == 'float network'
    assert read_json(folder / 'results.json')['float_accuracy'] == 100
    agreed = succeed(*label_free, '--reward', 'agreement', '--train_episode', '1', '--suffix', 'agreed', cwd=tmp_path)
    assert 'agreement' in agreed.out
    best = read_json(next(tmp_path.glob('*_agreed')) / 'results.json')
    assert best['accuracy'] == pytest.approx(best['score']), 'both are the agreement'
    saved = read(folder / 'quantized' / 'checkpoint.pth.tar')
    assert saved['labels'] == 'float network' and saved['acc'] > 50


@pytest.mark.parametrize(('script', 'more'), [
    ('pretrain.py', ('--epochs', '1')), ('finetune.py', ('--strategy', 'uniform:3', '--epochs', '1')),
    ('qat_train.py', ('--strategy', 'uniform:3', '--epochs', '0')),
    ('finetune.py', ('--strategy', 'uniform:3', '--epochs', '0', '--kmeans_weights', 'fisher'))])
def test_what_reads_labels_says_so(own, small_weights, refused, tmp_path, script, more):
    refused(tmp_path, ['own.py:digits', 'have no labels', 'needs them'], script, *own[:-2], '--weights', small_weights,
            *more, '-c', tmp_path / 'run')
