"""What a verb makes of its options: no field of a dataclass keeps its default because an option has another name."""

import re
from dataclasses import fields
from importlib import import_module

import pytest

from lib.env.episode import EpisodeSettings
from lib.search.bench import SearcherSettings
from lib.search.frontier import Goal
from lib.search.progressive import StepSettings
from lib.training.compensation import Rounding
from lib.training.settings import TrainingSettings
from tests.scripts.conftest import SCRIPTS

COMPOSED = {'network_options', 'network', 'linear', 'folder', 'agent', 'evaluate_every', 'keep_every', 'grad_clip',
            'policies'}
PLATEAU = {'lr_type', 'lr_min', 'warmup_epoch', 'warmup_type', 'schedule', 'gamma'}  # it has a rate of its own
RECIPE = {'randaugment', 'randaugment_ops'}  # of the scripts that train
WITHOUT = {  # options that a verb has not, beside those that no verb has
    'pretrain': {'normalize', 'bn_batches'}, 'finetune': {'normalize'}, 'qat_train': set(),
    'hybrid_train': {'normalize', 'bn_batches', *PLATEAU}, 'rl_quantize': {'normalize', 'pretrained', *RECIPE},
    'compare_searchers': {'normalize', 'pretrained', *RECIPE}, 'progressive_search': {'pretrained', *RECIPE},
    'export': {'train_batch', *RECIPE}, 'hybrid_experiment': RECIPE, 'measure': {'tensorflow', 'seed'},
    'make_lookup_table': {'tensorflow', 'seed'},
    'predict': {'train_batch', 'test_batch', 'workers', 'seed', 'cache', 'cache_size', 'download', 'resume', *RECIPE},
}


@pytest.fixture(scope='module')
def kinds():
    """{name: dataclass} of what `pick` fills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        found = [(module, name) for module, names in (
            ('_setup', ['Data']), ('_networks', ['Network']), ('_weights', ['Start']), ('_costs', ['Pricing']),
            ('_search', ['Flow']), ('_training', ['Teaching']), ('_proqha', ['NamedNetwork']),
            ('_onnx', ['OnnxExport']), ('_exported', ['PackedExport']))
            for name in names]
        yield {**{name: getattr(import_module(module), name) for module, name in found},
               **{kind.__name__: kind for kind in (EpisodeSettings, SearcherSettings, StepSettings, TrainingSettings,
                                                   Rounding, Goal)}}


@pytest.mark.parametrize('verb', WITHOUT)
def test_every_field_has_its_option(kinds, verb):
    picked = set(re.findall(r'pick\((\w+),', (SCRIPTS / f'{verb}.py').read_text()))
    module = import_module(verb)
    (make,) = [value for name, value in vars(module).items() if re.fullmatch(r'make_(?!parser)\w+_parser', name)]
    parser = make()
    options = {action.dest for action in parser._actions} | parser._defaults.keys()
    picked = [kinds[kind] for kind in picked] + [parser.translation] * bool(parser.translation)
    unfilled = {field.name for kind in picked for field in fields(kind)} - options
    assert picked and unfilled - COMPOSED == WITHOUT[verb]
