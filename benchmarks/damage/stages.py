"""Runs of every script that takes seconds, by the cheap settings of the tests of scripts."""

import json
from pathlib import Path
from typing import NamedTuple

from tests.scripts.conftest import EPISODES, LINEAR, NETWORK, succeed

DATA = ('--dataset', 'digits', '--image_size', '8', '--workers', '0', '--device', 'cpu')
WEIGHTS = ('--weights', 'float/checkpoint.pth.tar')
SHAPE = ('--strides', '1', '2', '--num_layer_list', '1', '1', '--num_channel_list', '8', '16', '--stem_channel', '8',
         '--header_channel', '16')
BLOCKS = ('--set', 'blocks=[[4, 4, 1], [4, 8, 2]]', '--set', 'warmup_epochs=0', '--set', 'quantize_w_blocks=[0]',
          '--set', 'quantize_a_blocks=[0]', '--set', 'quantize_a=true', '--set', 'a_bit_width=[[2, 1]]', '--set',
          'post_quantize_w_layers=[-1, 1]', '--set', 'post_quantize_a_layers=[-1, 1]')
COMPARED = ('--train_size', '64', '--val_size', '24', '--train_batch', '32', '--test_batch', '64', '--warmup', '1',
            '--hidden1', '16', '--hidden2', '16', '--evaluations', '3', '--final_epochs', '1', '--final_batch', '256',
            '--seeds', '1', '--min_bit', '2', '--max_bit', '4', '--budgets', 'uniform:3')


class Stage(NamedTuple):
    """A command; `resume` is what --resume gets, below the folder of the run."""

    name: str
    script: str
    options: tuple
    folder: str
    resume: str = ''

    def command(self):
        """Return the whole command line after the interpreter."""
        return (self.script, *self.options)


def _search(name, linear, *options, searcher='ddpg', episodes='4'):
    network = LINEAR if linear else NETWORK
    budget = ('--cost', 'table.npy', '--preserve_ratio', '0.6', '--linear_quantization') if linear else \
        ('--preserve_ratio', '0.13', '--min_bit', '2', '--max_bit', '6')
    return Stage(name, 'rl_quantize.py', (
        *network, *EPISODES, *WEIGHTS, *budget, '--train_episode', episodes, '--searcher', searcher, '--output', 'save',
        '--suffix', name, *options), f'save/{network[3]}_digits_{name}')


def _training(name, script, *options, epochs='2'):
    return Stage(name, script, (*options, '--epochs', epochs, '-c', name), name, 'checkpoint.pth.tar')


FLOAT = _training('float', 'pretrain.py', *NETWORK, '--lr', '0.1', '--train_batch', '256')
TABLE = Stage('table', 'make_lookup_table.py', (*LINEAR[:6], '--hardware', 'cloud', '--output', 'table.npy'), '')
RUNS = {stage.name: stage for stage in (  # those that are killed, in the order in which the later ones need them
    _search('kmeans', False),
    _search('linear', True),
    _training('tuned_k', 'finetune.py', *NETWORK, *WEIGHTS, '--strategy', str([5, 4, 3, 4, 2] * 4), '--lr', '0.01',
              '--train_batch', '128', epochs='3'),
    _training('tuned_l', 'finetune.py', *LINEAR, '--linear_quantization', *WEIGHTS, '--cost', 'table.npy', '--strategy',
              'uniform:4', '--lr', '0.01', '--train_batch', '256'),
    _training('qat', 'qat_train.py', *DATA, *SHAPE, '--train_batch', '64', '--layer_wbit', '8x5', '--layer_abit',
              '32,8x3,16', '--lr', '0.05', epochs='3'),
    _training('hybrid', 'hybrid_train.py', *DATA, *BLOCKS, '--train_batch', '128', epochs='3'),
    Stage('progressive', 'progressive_search.py', (*NETWORK, *WEIGHTS, '--lam', '4', '--search_epochs', '1', '--lr',
                                                   '0.003', '--train_batch', '256', '--step', '3', '--output', 'save'),
          'save/resnet20_digits_progressive'),
    Stage('compared', 'compare_searchers.py', (*NETWORK, *WEIGHTS, *COMPARED, '--searchers', 'random', 'greedy', 'ddpg',
                                               '--output', 'compared'), 'compared'))}
EXTRA = (  # files that only mutations need
    _search('greedy', False, searcher='greedy', episodes='1'),
    Stage('export', 'export.py', ('--integer', '--resume', 'qat/checkpoint.pth.tar', '--images', '0', '--output',
                                  'integer'), 'integer'),
    Stage('calibrate', 'hybrid_calibrate.py', ('-c', 'engine', '--rows', '16', '--columns', '8', '--gain_mismatch',
                                               '0.05', '--adc_range', 'max'), 'engine'),
    Stage('experiment', 'hybrid_experiment.py', ('--resume', 'qat/checkpoint.pth.tar', '--images', '20', '--backend',
                                                 'ideal'), 'qat'),
    Stage('collect', 'hybrid_experiment.py', ('--resume', 'qat/checkpoint.pth.tar', '--collect', '-1',
                                              '--collect_images', '1'), 'qat'))


def prepare(home: Path) -> None:
    """Make what all runs begin with: float weights and a lookup table."""
    for stage in (FLOAT, TABLE):
        run(stage, home)


def run(stage: Stage, home: Path):
    """Run a stage in this process and return what it left of output, or raise AssertionError."""
    return succeed(*stage.command(), cwd=home)


def plain(path: Path):
    """Return the value of a JSON file."""
    return json.loads(path.read_text(encoding='utf-8'))
