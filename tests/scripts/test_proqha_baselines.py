"""The command lines of ProQHA's main/train.py mean the network and the training that docs/progressive.md says."""

import json

import pytest
import torch

from lib.record.checkpoint import read_checkpoint
from lib.training.settings import TrainingSettings
from tests.runs import SCRIPTS

# Of the original's README, with the default of its option.py for what its run.sh takes from its arguments.
THEIRS = ('--arch=resnet20 --num_layers=20 --archtype={} --lr=0.001 --weight_decay=1e-4 --train_batch_size=256 '
          '--k_bits=8 --pre_k_bits=8 --ratio=1.0 --mission=mine --gpus=0 --train_epochs=300 --dataset=cifar10 '
          '--data_dir=/gdata --job_dir=/outputs --clip --resume=')
OURS = ('--arch preresnet20 --lr 0.001 --weight_decay 1e-4 --train_batch 256 --gpu_id 0 --epochs 300 --dataset cifar10 '
        '--data /gdata -c /outputs/preresnet20_cifar10_{} --clip --lr_type step3 --schedule 150 225 --resume=')
QUANT = f'--config {SCRIPTS.parent}/run/progressive/config.py:quant --k_bits 8 --pre_k_bits 8'
SMALL = ('--image_size', '8', '--dataset=digits', '--train_epochs=1', '--device', 'cpu', '--job_dir=out')


@pytest.fixture(scope='module')
def parse():
    """`parse(script, command line)`: (its settings, the lines that are said of them)."""
    import _cli
    import pretrain
    import qat_train
    made = {'pretrain': (pretrain.make_pretrain_parser, pretrain.configure),
            'qat_train': (qat_train.make_qat_parser, qat_train.configure)}

    def run(script, line):
        make, configure = made[script]
        parser = make()
        return vars(_cli.parse(parser, line.split(), configure)), parser.said
    return run


@pytest.mark.parametrize(('script', 'archtype', 'more'), [
    ('pretrain', 'origin', '--test_batch 100'), ('qat_train', 'quant', QUANT)])
def test_theirs_is_ours(parse, script, archtype, more):
    theirs, said = parse(script, THEIRS.format(archtype))
    ours, _ = parse(script, f'{OURS.format(archtype + "_mine")} {more}')
    assert theirs.pop('archtype') == archtype and not ours.pop('archtype')
    assert theirs == ours
    assert said[0] == 'resnet20 of 20 layers: preresnet20' and len(said) == 2
    assert said[1].startswith('without effect: ' + {'pretrain': '--k_bits (', 'qat_train': '--pre_k_bits, for'}[script])


@pytest.mark.parametrize('script', ['pretrain', 'qat_train'])
def test_every_option_of_theirs_is_accepted_and_what_has_no_effect_is_said_once(parse, script):
    unused = ('--base_data_dir=/x --print_freq=100 --batchnorm=True --cutout=False --info=hession --interval=1 --lam=5 '
              '--cost=0.25 --step=25 --search_epochs=30 --beta1=0.9 --beta2=0.999 --epsilon=1e-7 --eval_freq=1')
    found, (said,) = parse(script, f'{unused} --workers 3 --momentum .8 --width_mult 1.0 --grad_clip 4 --reset '
                           '--eval_batch_size 50 --test_only --no-clip')
    assert all(said.count(f'{option.partition("=")[0]} (') == 1 for option in unused.split())
    assert (found['workers'], found['momentum'], found['grad_clip'], found['test_batch']) == (3, 0.8, 4, 50)
    assert found['overwrite'] and found['evaluate'] and not found['clip'] and not {'lam', 'beta1'} & found.keys()


def test_their_defaults(parse):
    """Those of option.py; without --archtype the scripts have their own."""
    names = ('arch', 'dataset', 'epochs', 'train_batch', 'test_batch', 'lr', 'weight_decay', 'schedule', 'clip')
    assert [parse('pretrain', '--archtype origin')[0][name] for name in names] == [
        'preresnet56', 'cifar10', 300, 128, 100, 0.1, 2e-4, [150, 225], False]
    assert parse('pretrain', '--archtype origin --train_epochs 1')[0]['schedule'] == [1, 1], 'at the full rate'
    assert [parse('pretrain', '')[0][name] for name in names[:4]] == ['resnet50', 'imagenet', 100, 256]
    assert parse('pretrain', '--mission a --archtype origin')[0]['checkpoint'] == str(
        SCRIPTS.parent / 'checkpoints' / 'progressive' / 'preresnet56_cifar10_origin_a')


@pytest.mark.parametrize(('script', 'line', 'words'), [
    ('pretrain', '--archtype quant', 'is trained by qat_train.py'),
    ('qat_train', '--archtype origin', 'is trained by pretrain.py'),
    ('pretrain', '--job_dir a -c b', '--checkpoint b and --job_dir or --mission: give one'),
    ('pretrain', '--arch vgg', 'needs --num_layers 11/16/19'),
    ('pretrain', '--arch resnet50 --num_layers 50', 'leave it out with resnet50'), ('qat_train', '--ratio 0', 'range'),
])
def test_what_contradicts_itself_is_refused(parse, capsys, script, line, words):
    with pytest.raises(SystemExit):
        parse(script, line)
    said = capsys.readouterr().err
    assert said.startswith('error: ') and words in said and said.count('\n') == 1


def test_both_baselines_by_their_command_lines(succeed, call, tmp_path):
    """The quantized one begins with the weights of the float one by --resume; and goes on by it with its own."""
    line = THEIRS.split()[:-1]
    succeed('pretrain.py', *' '.join(line).format('origin').split(), *SMALL, cwd=tmp_path)
    start, quantized = (tmp_path / 'out' / f'preresnet20_digits_{kind}_mine' / 'checkpoint.pth.tar'
                        for kind in ('origin', 'quant'))
    before = start.read_bytes()
    line = ' '.join(line).format('quant').split()
    done = succeed('qat_train.py', *line, *SMALL, '--resume', start, '--ratio=0.25', '--k_bits=4', cwd=tmp_path)
    assert done.out.count('its weights are what this one starts from') == 1 and start.read_bytes() == before
    saved = read_checkpoint(quantized)
    bits = [*saved['strategy']['layer_wbit'], *saved['strategy']['layer_abit']]
    assert sorted(bits) == [4] * 9 + [8] * 27, 'a quarter of the 36 quantizers'
    assert saved['qat']['quantizers'] | {'weights': 'dorefa', 'activations': 'pact', 'gradient': 'ste'} == \
        saved['qat']['quantizers']
    again = succeed('qat_train.py', *line, *SMALL, '--resume', quantized, '--ratio=0.25', '--k_bits=4',
                    '--train_epochs=2', cwd=tmp_path)
    assert 'epoch 2/2' in again.out and json.loads((quantized.parent / 'args.json').read_text())['clip'] is True
    done = call('qat_train.py', '--arch', 'preresnet20', *SMALL, '--ratio', '0.5', cwd=tmp_path)
    assert done.code == 1 and done.err.startswith('error: --ratio 0.5 is a fraction of the quantizers with --k_bits')


def test_the_drawn_bits_are_those_of_the_search():
    """progressive_search.py draws the same for --pre_k_bits; weights and activations alike."""

    import models
    from lib.qat.parts import quantize_parts
    from lib.qat.placement import Quantizers
    from lib.search.progressive import first_bits, first_lists
    for name in ('preresnet20', 'postresnet18'):
        lists = first_lists(models.create_model(name, num_classes=10), (3, 32, 32), 4, 7, 0.5, 3)
        quantizers = Quantizers('dorefa', 'pact')
        parts = quantize_parts(models.create_model(name, num_classes=10), **lists, quantizers=quantizers,
                               images=torch.zeros(1, 3, 32, 32))
        assert parts.bits == first_bits(len(parts), 4, 7, 0.5, 3)


def test_the_gradient_is_clipped_in_norm(parse):
    """The step of plain SGD is the rate times the gradient; here times 5 over its norm."""
    for clip, factor in ((5.0, 5 / 50), (None, 1)):
        weights = [torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))]
        optimizer = TrainingSettings(lr=0.1, momentum=0.0, weight_decay=0.0, grad_clip=clip).optimizer(weights)
        (30 * weights[0] - 40 * weights[1]).sum().backward()
        optimizer.step()
        assert [w.item() for w in weights] == pytest.approx([-3 * factor, 4 * factor])
    for w in weights:
        w.grad.zero_()
    optimizer.step()
