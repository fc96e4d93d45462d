"""What figures call costs, searchers and engine settings: nothing of the program has its internal name."""

import sys
from pathlib import Path

import pytest

from lib.record.words import ENGINE, SEARCHERS, cost_words
from lib.search import bench
from lib.simulator.backends import PRESETS
from lib.simulator.counting import COUNTED

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'scripts'))
from _engine import FIELDS  # noqa: E402


@pytest.mark.parametrize(('name', 'words'), [
    ('model_size', 'model size relative to float'), ('file_size', 'file size relative to float'),
    ('bitops', 'bit operations relative to 8/8 bits'), ('cloud_latency', 'latency on cloud relative to 8/8 bits'),
    ('my_chip_energy', 'energy on my chip relative to 8/8 bits'),
    ('measured_latency', 'latency measured here relative to 8/8 bits'),
    ('measured_fp32_latency', 'latency measured here fp32 relative to 8/8 bits'),
    ('mine', 'mine relative to its reference')])
def test_costs(name, words):
    assert cost_words(name) == words
    assert cost_words(name, relative=False) == words.split(' relative')[0]


def test_every_name_of_the_program_has_words():
    costs = [*COUNTED, *(f'{preset}_{metric}' for preset, machine in PRESETS.items() for metric in machine.metrics)]
    assert not [name for name in costs if '_' in cost_words(name) or 'its reference' in cost_words(name)]
    assert SEARCHERS.keys() == {'uniform', *bench.SOLVERS, *bench.SIMPLE, 'progressive', 'ddpg'}
    assert ENGINE.keys() == FIELDS.keys()
    assert not [text for text in (*SEARCHERS.values(), *ENGINE.values()) if '_' in text]
