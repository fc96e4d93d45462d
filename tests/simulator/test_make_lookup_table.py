import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.simulator.bit_serial import PRESETS
from lib.simulator.hardware import make_table
from lib.simulator.layer import LayerRecord
from lib.simulator.table_files import load_table

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'make_lookup_table.py'


@pytest.fixture
def run(tmp_path):
    def run(*options):
        command = [sys.executable, str(SCRIPT), '--arch', 'qresnet20', '--dataset', 'cifar10', '--no-plot', *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    return run


def test_a_table_by_command_and_its_protection(run, tmp_path):
    done = run('--hardware', 'edge', '--output', 'made/table.npy')
    assert done.returncode == 0, done.stderr
    cost = load_table(tmp_path / 'made' / 'table.npy')
    layers = [LayerRecord.from_dict(entries) for entries in cost.about['layers']]
    assert (layers[0].in_h, layers[-1].out_channels) == (32, 10)
    assert sum(layer.num_weights for layer in layers) == 268_336  # the rest of 269,722 is batch norm and bias
    assert np.array_equal(cost.table, make_table(layers, PRESETS['edge']).table)
    assert f'{cost.reference:,}' in done.stdout and '20 layers' in done.stdout

    refused = run('--hardware', 'edge', '--output', 'made/table.npy', '--batch', '2')
    assert refused.returncode != 0 and '--overwrite' in refused.stderr and 'Traceback' not in refused.stderr
    assert load_table(tmp_path / 'made' / 'table.npy').about['batch'] == 1


def test_bad_options_end_with_one_readable_line(run, tmp_path):
    failed = run('--batch', '0')
    assert failed.returncode != 0 and failed.stderr.startswith('error: ') and failed.stderr.count('\n') == 1
    assert '--batch' in failed.stderr and 'at least 1' in failed.stderr
    unknown = run('--hardware', 'tpu')
    assert unknown.returncode != 0 and 'cloud' in unknown.stderr and 'edge' in unknown.stderr
    assert not list(tmp_path.iterdir())
