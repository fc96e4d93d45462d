"""What all tests share: an environment without surprises, one thread (small tensors gain nothing from more), and a tiny
classification problem.

Imports nothing heavy: the process that only hands out the tests reads this file, too, before it starts the others.
"""

import gc
import os
from pathlib import Path

import pytest

# Files that need the same searches and fine-tunings, or tests/processes.py.
SHARED = ('test_bad_input', 'test_distributed', 'test_ends', 'test_flows', 'test_kill_and_resume', 'test_mutations',
          'test_predict', 'test_resume', 'test_several_processes', 'test_starting_weights')
# Files that look at figures, or at what becomes of one; drawing takes most of the time of runs as short as those here.
DRAWN = ('test_plots.py', 'test_table_report.py', 'test_comparison_report.py', 'test_figures.py', 'test_network_run.py',
         'test_flows.py', 'test_costs.py', 'test_parts.py')
OF_OTHERS = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'COLUMNS', 'LINES',
             'PYTHONOPTIMIZE', 'PYTHONWARNINGS', 'PYTHONSAFEPATH')
for variable in OF_OTHERS:  # of whoever runs the tests; for the programs that tests start
    os.environ.pop(variable, None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Leaves files that share what is slow to make to one process; the others are taken one by one, as usual."""
    if config.getvalue('dist') != 'loadfile':
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return 'shared' if Path(file).stem in SHARED else file
    return Scheduling(config, log)


def pytest_collection_finish():
    """Lets Python look for garbage less often, and not among all that is imported and collected: it took a tenth."""
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    """Runs every test on one thread, so that results do not depend on the number of cores."""
    import torch
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope='session')
def drawing():
    """Draws figures in `DRAWN` and, once, in `drawing.folders`; elsewhere their files hold no picture."""
    from tests.runs import Figures
    with pytest.MonkeyPatch.context() as patch:
        yield Figures(patch)


@pytest.fixture(autouse=True, scope='module')
def figures_are_drawn_where_tests_look_at_them(request, drawing):
    drawing.drawn = request.path.name in DRAWN


@pytest.fixture(autouse=True, scope='module')
def all_digits(request):
    """Gives tests beside those of the scripts, which leave some out for the rest of the session, all of the digits."""
    if request.path.parent.name == 'scripts':
        yield
        return
    from lib.data import datasets
    from tests.runs import DIGITS
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.DATASETS, 'digits', DIGITS)
        yield


@pytest.fixture
def tiny_net():
    """A `TinyNet` with fixed weights."""
    import torch

    from tests.tiny import TinyNet
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def tiny_loaders():
    """Training and validation loader of the tiny problem."""
    from tests.tiny import TinyLoader
    return TinyLoader(seed=0), TinyLoader(seed=1, images=20)
