"""Every kind of file that the repository reads, with its reader: what is damaged, and what may come of it."""

import contextlib
import io
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.damage import stages
from tests.scripts.conftest import SCRIPTS, call


class Refused(ValueError):
    """The line with which a command refused a file."""


class Kind(NamedTuple):
    """A kind of file.

    `files` are patterns below the home of the runs. `read` gets the home and the file, and returns its content. Of
    files that we wrote (`ours`) damage may not be read as something else; of those of a person, another value may be
    meant, but what it costs is finite (`finite`). A message names the file, or else (`named` is False) the option in it
    that will not do.
    """

    name: str
    files: tuple[str, ...]
    read: Callable[[Path, Path], Any]
    ours: bool = True
    finite: bool = False
    named: bool = True


def _script(name):
    """Return a module of `scripts`."""
    if str(SCRIPTS) not in sys.path:
        sys.path.insert(0, str(SCRIPTS))
    return __import__(name)


def _command(*words):
    """Return a reader: what a command says, where FILE stands for the damaged one."""
    def read(home, file):
        done = call(*(str(word).replace('FILE', str(file)) for word in words), cwd=home)
        if done.code:
            raise Refused(done.err.strip().removeprefix('error: '))
        return done.out
    return read


def _search_again(home, file):
    """The strategy of a search that has its sensitivities and no episode yet."""
    (file.parent / 'search.pth.tar').unlink(missing_ok=True)
    return _command('rl_quantize.py', '--resume', file.parent)(home, file).splitlines()[-1]


def _state(home, file):
    """What a search goes on from."""
    from lib.record.checkpoint import read_checkpoint
    saved = read_checkpoint(file)
    if not isinstance(saved, dict):
        raise Refused(f'{file} is not the state of a search')  # as rl_quantize.py says it
    return saved


def _checkpoint(home, file):
    from lib.record.checkpoint import read_checkpoint, state_dict_of
    saved = read_checkpoint(file)
    state_dict_of(saved, file)
    return saved


def _weights(home, file):
    """Weights of others, as a network takes them."""
    import models
    from lib.record.checkpoint import load_weights, read_checkpoint, state_dict_of
    model = models.create_model('resnet20', num_classes=10)
    load_weights(model, state_dict_of(read_checkpoint(file), file, model), file)
    return model.state_dict()


def _agent(home, file):
    from lib.rl.ddpg import DDPG
    agent = DDPG(num_states=10 if file.parent.name[0] == 'q' else 9, hidden1=64, hidden2=48, capacity=4)
    agent.load_weights(file.parent)
    return [getattr(agent, name).state_dict() for name in ('actor', 'critic')]


def _settings(home, file):
    """The options of a resumed fine-tuning, as its parser reads them; it ends the program where it refuses them."""
    parser, said = _script('finetune').make_finetune_parser(), io.StringIO()
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        with contextlib.redirect_stderr(said):
            return vars(_script('_cli').parse(parser, ['--resume', str(file.with_name('checkpoint.pth.tar'))]))
    except SystemExit as stop:
        raise Refused(said.getvalue().strip()) from stop
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)


def _strategy(home, file):
    from lib.record.strategy import find_strategy
    names = stages.plain(home / 'names.json')
    return find_strategy(str(file), names, linear=False, published={}, network='resnet20')


def _table(home, file):
    from lib.simulator.table_files import load_table
    table = load_table(file.with_suffix('.npy'))
    return [table.table, table.reference, table.combine, table.name, table.unit, table.layer_names]


def _csv(home, file):
    from lib.simulator.table_files import load_table, read_csv_table
    layers = load_table(home / 'table.npy').about['layers']
    from lib.simulator.layer import LayerRecord
    return read_csv_table(file, [LayerRecord.from_dict(layer) for layer in layers], unit='ms', name='mine').table


def _hardware(home, file):
    from lib.simulator.backends import find_hardware
    from lib.simulator.table_files import load_table, saved_layers
    hardware = find_hardware(str(file))
    layers = saved_layers(home / 'table.npy', load_table(home / 'table.npy').about)
    return [hardware.cells(layers[:2])] and str(hardware)


def _hybrid(home, file):
    from lib.hybrid.config import read_config
    return read_config(file)


def _engine(home, file):
    return _script('_engine').engine_config(file, home, {})().to_dict()


def _calibration(home, file):
    from lib.engine.calibration import read_calibration
    return read_calibration(file).to_dict()


def _integer(home, file):
    from lib.integer.network import IntegerNetwork
    network = IntegerNetwork.load(file)
    return network(torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(0)))


def _points(home, file):
    from lib.engine.experiment import read_points
    return read_points(file)


def _measured(home, file):
    from lib.engine.operand_files import read_measured
    return read_measured(file.parent, [file.stem])


def _image(home, file):
    from lib.data.image_folder import load_image
    return np.asarray(load_image(str(file)))


def _data_set(name, root):
    def read(home, file):
        from lib.data.datasets import dataset_spec
        spec, found = dataset_spec(name), []
        for part in ('train', 'val'):
            split = spec.read(spec, home / root, part, False)
            found += [split.images, split.labels]
        return found
    return read


def _labels(home, file):
    from lib.utils.make_data import read_labels
    return read_labels(file if file.suffix == '.txt' else file.with_name('ILSVRC2012_validation_ground_truth.txt'))


def _split(home, file):
    from lib.utils.make_data import split_dtd
    shutil.rmtree(home / 'dtd_target', ignore_errors=True)
    try:
        return split_dtd(home / 'dtd', home / 'dtd_target', split=1)
    finally:
        shutil.rmtree(home / 'dtd_target', ignore_errors=True)


OLD = (  # runs of earlier versions: name, what is damaged, the command that reads it
    ('tuned_k', 'checkpoint.pth.tar', 'finetune.py', 'checkpoint.pth.tar'),
    ('tuned_k', 'args.json', 'finetune.py', 'checkpoint.pth.tar', '--eval'),
    ('tuned_l', 'checkpoint.pth.tar', 'finetune.py', 'checkpoint.pth.tar', '--eval'),
    ('qat', 'checkpoint.pth.tar', 'qat_train.py', 'checkpoint.pth.tar'),
    ('qat', 'checkpoint.pth.tar', 'export.py', 'checkpoint.pth.tar', '--integer', '--images', '0', '--overwrite'),
    ('hybrid', 'checkpoint.pth.tar', 'hybrid_train.py', 'checkpoint.pth.tar', '--eval'),
    ('kmeans', 'search.pth.tar', 'rl_quantize.py', ''),
    ('progressive', 'checkpoint/3.pt', 'progressive_search.py', ''),
)
KINDS = (
    Kind('float checkpoint', ('float/*.pth.tar',), _checkpoint),
    Kind('K-means checkpoint', ('tuned_k/*.pth.tar',), _checkpoint),
    Kind('linear checkpoint', ('tuned_l/*.pth.tar',), _checkpoint),
    Kind('QAT checkpoint', ('qat/*.pth.tar',), _checkpoint),
    Kind('hybrid checkpoint', ('hybrid/*.pth.tar', 'hybrid/experiment_data/q_model/*.tar'), _checkpoint),
    Kind('progressive checkpoint', ('save/resnet20_digits_progressive/checkpoint/*.pt',), _checkpoint),
    Kind('state of a search', ('save/*/search.pth.tar',), _state),
    Kind('agent', ('save/*/actor.pkl', 'save/*/critic.pkl'), _agent),
    Kind('settings', ('tuned_k/args.json', 'tuned_l/args.json'), _settings),
    Kind('strategy.json', ('save/resnet20_digits_k*/strategy.json',), _strategy),
    Kind('strategy.txt', ('save/resnet20_digits_k*/strategy.txt',), _strategy, ours=False),
    Kind('lookup table', ('table.npy', 'table.json'), _table),
    Kind('sensitivities', ('save/resnet20_digits_greedy/sensitivity_*.npz',), _search_again),
    Kind('CSV of costs', ('costs.csv',), _csv, ours=False, finite=True),
    Kind('hardware', ('chip.yaml',), _hardware, ours=False),
    Kind('hybrid configuration', ('hybrid.yaml', 'hybrid/experiment_data/q_model/config.yaml'), _hybrid, ours=False),
    Kind('engine', ('engine.yaml',), _engine, ours=False),
    Kind('results', ('tuned_k/results.json', 'tuned_l/results.json'),
         _command('summarize.py', 'a=tuned_k', 'b=tuned_l')),
    Kind('results on machines', ('tuned_l/results.json', 'tuned_l/args.json'),
         _command('compare_hardware.py', 'a=tuned_l', '--cost', 'table.npy')),
    Kind('comparison', ('compared/searches/*.json', 'compared/finetuned/*.json'),
         _command('compare_searchers.py', '--resume', 'compared')),
    Kind('integer program', ('integer/integer.npz',), _integer),
    Kind('calibration', ('engine/experiment_data/results/calibration.json',), _calibration),
    Kind('results of the engine', ('qat/experiment_data/results/experiment.json',), _points),
    Kind('measured products', ('measured/*.npz',), _measured, ours=False),
    Kind('safetensors', ('weights.safetensors',), _weights, ours=False),
    Kind('weights of others', ('theirs.pth', 'theirs_legacy.pth'), _weights, ours=False),
    *(Kind(f'old {name}, {script.split("_")[0]}{" settings" * (file == "args.json")}', (f'old/{name}/{file}',),
           _command(script, '--resume', f'old/{name}/{resume}', *options), ours=False, named=file != 'args.json')
      for name, file, script, resume, *options in OLD),
    Kind('image', ('images/train/*/*', ), _image, ours=False),
    Kind('annotations', ('tiny/val/val_annotations.txt',), _data_set('tinyimagenet', 'tiny'), ours=False),
    Kind('MNIST', ('mnist/MNIST/raw/*',), _data_set('mnist', 'mnist'), ours=False),
    Kind('labels of ImageNet', ('labels/*',), _labels, ours=False),
    Kind('split of DTD', ('dtd/labels/*.txt',), _split, ours=False),
)
