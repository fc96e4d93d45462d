"""The house: who may import whom, and what code in lib may not do."""

import ast
import functools
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for room in ('lib', 'models', 'scripts') for p in (ROOT / room).rglob('*.py'))
ALLOWED = {  # beside itself; docs/architecture.md has what each room holds
    'models': '',
    'lib.quantize': '',
    'lib.record': '',
    'lib.runtime': 'record',
    'lib.rl': 'record',
    'lib.simulator': 'record',
    'lib.data': 'record runtime',
    'lib.network': 'quantize runtime simulator',
    'lib.utils': 'data network quantize record runtime',
    'lib.training': 'network quantize record runtime utils',
    'lib.qat': 'network quantize simulator utils',
    'lib.hybrid': 'network quantize record runtime utils',
    'lib.integer': 'network quantize record simulator',
    'lib.engine': 'network quantize record runtime simulator',
    'lib.export': 'integer network quantize record',
    'lib.env': 'network quantize record runtime simulator training utils',
    'lib.search': 'env network qat quantize record rl runtime simulator training utils',
}
LIBRARIES = {'lib.quantize': {'torch', 'numpy'}, 'lib.rl': {'torch', 'numpy'},
             'lib.record': {'torch', 'numpy', 'yaml', 'scipy', 'safetensors', 'tensorboardX', 'matplotlib'},
             'lib.simulator': {'torch', 'numpy', 'scipy', 'yaml', 'matplotlib'}}
STANDARD = set(__import__('sys').stdlib_module_names)


@functools.cache
def nodes_of(path):
    """Return the nodes of the syntax tree of a file."""
    return list(ast.walk(ast.parse(path.read_text(encoding='utf-8'))))


def room_of(dotted):
    parts = dotted.split('.')
    return '.'.join(parts[:2]) if parts[0] == 'lib' else parts[0]


def imports(path):
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module if node.level == 0 else room_of('.'.join(path.relative_to(ROOT).parts[:-1]))


def may_import(room, other):
    return other == room or other.removeprefix('lib.') in ALLOWED[room].split()


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_whom_they_may(path):
    room = room_of('.'.join(path.relative_to(ROOT).with_suffix('').parts))
    for name in imports(path):
        if name.split('.')[0] in ('lib', 'models', 'scripts'):
            assert room in ('scripts', 'lib') or may_import(room, room_of(name)), f'{path} imports {name}'
        elif room in LIBRARIES:
            top = name.split('.')[0]
            assert top in LIBRARIES[room] | STANDARD, f'{path} imports {name}'


def test_no_room_leads_back_to_itself():
    TopologicalSorter({room: [f'lib.{other}' for other in may.split()] for room, may in ALLOWED.items()}).prepare()


def test_the_page_has_the_table():
    page = (ROOT / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| `([\w.]+)` \| .* \| (.*) \|$', page, re.MULTILINE)
    assert {room: ' '.join(re.findall(r'`(\w+)`', may)) for room, may in rows if room != 'scripts'} == ALLOWED


def test_every_folder_of_lib_is_a_room():
    folders = {f'lib.{path.name}' for path in (ROOT / 'lib').iterdir() if any(path.glob('*.py'))}
    assert folders == ALLOWED.keys() - {'models'}


@pytest.mark.parametrize('path', [p for p in FILES if 'scripts' not in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_library_code_keeps_the_conventions(path):
    command = path.name == 'make_data.py'  # the one file in lib that is also a command
    for node in nodes_of(path):
        assert not isinstance(node, ast.Global), 'global'
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), 'bare except'
        assert not isinstance(node, ast.Assert), 'assert'
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr == 'cuda' and not node.args), '.cuda()'
            assert command or not (isinstance(node.func, ast.Name) and node.func.id == 'print'), 'print'


# Calls that run code from the file that they read: the end of the name, and the options that keep them from it.
UNPICKLING = {
    'torch.load': {'weights_only': 'True'}, 'serialization.load': {'weights_only': 'True'},
    'load_state_dict_from_url': {'weights_only': 'True', 'check_hash': 'True'},
    'get_state_dict': {'weights_only': 'True', 'check_hash': 'True'}, 'torch.hub.load': None, 'jit.load': None,
    'pickle.load': None, 'pickle.loads': None, 'pickle.Unpickler': None, 'joblib.load': None, 'dill.load': None,
    'cloudpickle.load': None, 'shelve.open': None, 'marshal.loads': None, 'pandas.read_pickle': None,
    'yaml.load': {'Loader': 'SafeLoader'}, 'yaml.unsafe_load': None, 'yaml.full_load': None,
}


def unpickling(nodes):
    """Yields the calls that may run code from a file, however the function was imported."""
    names = {}  # as the file calls it -> as it is called
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f'{node.module}.{alias.name}' for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = ast.unparse(node.func).partition('.')
        called = '.'.join(filter(None, (names.get(first, first), rest)))
        given = {keyword.arg: ast.unparse(keyword.value).rpartition('.')[2] for keyword in node.keywords}
        if given.get('allow_pickle', 'False') != 'False':
            yield ast.unparse(node)
        for name, needed in UNPICKLING.items():
            safe = called == 'safetensors.torch.load' or needed is not None and needed.items() <= given.items()
            if f'.{called}'.endswith(f'.{name}') and not safe:
                yield ast.unparse(node)


@pytest.mark.parametrize('path', [*FILES, *sorted((ROOT / 'benchmarks').rglob('*.py'))],
                         ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_is_read_by_running_code_from_it(path):
    own = ["pickle.loads(state['dataset'])"] if path.name == 'user_data.py' else []  # no file: for loader processes
    assert list(unpickling(nodes_of(path))) == own


@pytest.mark.parametrize(('code', 'found'), [
    ('import torch\ntorch.load(p)', True), ('import torch as t\nt.load(p, weights_only=False)', True),
    ('from torch import load as read\nread(p)', True), ('import torch\ntorch.load(p, weights_only=True)', False),
    ('weights.get_state_dict(progress=False)', True), ('weights.get_state_dict(weights_only=True)', True),
    ('weights.get_state_dict(weights_only=True, check_hash=True)', False), ('torch.hub.load(r, m)', True),
    ('from torch.hub import load_state_dict_from_url as f\nf(u)', True), ('torch.jit.load(p)', True),
    ('import pickle\npickle.load(f)', True), ('from pickle import loads\nloads(b)', True), ('json.load(f)', False),
    ('np.load(p, allow_pickle=True)', True), ('np.load(p)', False), ('np.load(p, allow_pickle=False)', False),
    ('import yaml\nyaml.load(f, Loader=yaml.Loader)', True),
    ('import yaml\nyaml.load(f, Loader=yaml.SafeLoader)', False),
    ('safetensors.torch.load(b)', False), ('agent.load_weights(p)', False),
])
def test_indirect_loads_are_found(code, found):
    assert bool(list(unpickling(list(ast.walk(ast.parse(code)))))) == found


def test_no_type_bool_in_options():
    for path in FILES:
        for node in nodes_of(path):
            if isinstance(node, ast.keyword) and node.arg == 'type':
                assert ast.unparse(node.value) != 'bool', path

def inner_imports(path):
    """Yields (function, line) of each import inside a function, but for those at the head of a verb's `main`."""
    text = path.read_text(encoding='utf-8').splitlines()
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef) and not (node.name == 'main' and path.parent.name == 'scripts'):
            for inner in ast.walk(node):
                if isinstance(inner, (ast.Import, ast.ImportFrom)):
                    yield node.name, text[inner.lineno - 1]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_an_import_inside_a_function_says_why(path):
    assert [pair for pair in inner_imports(path) if '  # ' not in pair[1]] == []


@pytest.mark.parametrize('path', sorted((ROOT / 'scripts').glob('_*.py')), ids=lambda p: p.name)
def test_options_stop_in_the_verb(path):
    """Helpers take values and dataclasses; `_cli.py` alone knows `args`."""
    if path.name != '_cli.py':
        assert 'args' not in {node.arg if isinstance(node, ast.arg) else node.id for node in nodes_of(path)
                              if isinstance(node, (ast.arg, ast.Name))}
