"""The house: who may import whom, and what code in lib may not do."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for room in ('lib', 'models', 'scripts') for p in (ROOT / room).rglob('*.py'))
ALLOWED = {
    'models': {'models'},
    'lib.quantize': {'lib.quantize'},
    'lib.record': {'lib.record'},
    'lib.rl': {'lib.rl', 'lib.record'},
    'lib.simulator': {'lib.simulator', 'lib.record'},
    'lib.utils': {'lib.utils', 'lib.quantize', 'lib.record', 'lib.simulator'},
    'lib.env': {'lib.env', 'lib.quantize', 'lib.record', 'lib.simulator', 'lib.utils'},
    'lib.search': {'lib.search', 'lib.env', 'lib.quantize', 'lib.record', 'lib.rl', 'lib.simulator', 'lib.utils'},
    'scripts': {'scripts', 'models', 'lib.quantize', 'lib.record', 'lib.rl', 'lib.simulator', 'lib.utils', 'lib.env',
                'lib.search'},
}
LIBRARIES = {'lib.quantize': {'torch', 'numpy'}, 'lib.rl': {'torch', 'numpy'},
             'lib.record': {'torch', 'numpy', 'yaml', 'scipy', 'safetensors', 'tensorboardX'},
             'lib.simulator': {'torch', 'numpy', 'scipy', 'yaml'}}
STANDARD = set(__import__('sys').stdlib_module_names)


def room_of(dotted):
    parts = dotted.split('.')
    return '.'.join(parts[:2]) if parts[0] == 'lib' else parts[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module if node.level == 0 else room_of('.'.join(path.relative_to(ROOT).parts[:-1]))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_whom_they_may(path):
    room = room_of('.'.join(path.relative_to(ROOT).with_suffix('').parts))
    for name in imports(path):
        if name.split('.')[0] in ('lib', 'models', 'scripts'):
            assert room_of(name) in ALLOWED.get(room, set()) or room == 'lib', f'{path} imports {name}'
        elif room in LIBRARIES:
            top = name.split('.')[0]
            assert top in LIBRARIES[room] | STANDARD, f'{path} imports {name}'


@pytest.mark.parametrize('path', [p for p in FILES if 'scripts' not in p.parts], ids=lambda p: str(p.relative_to(ROOT)))
def test_library_code_keeps_the_conventions(path):
    command = path.name == 'make_data.py'  # the one file in lib that is also a command
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        assert not isinstance(node, ast.Global), 'global'
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), 'bare except'
        assert not isinstance(node, ast.Assert), 'assert'
        if isinstance(node, ast.Call):
            assert not (isinstance(node.func, ast.Attribute) and node.func.attr == 'cuda' and not node.args), '.cuda()'
            assert command or not (isinstance(node.func, ast.Name) and node.func.id == 'print'), 'print'
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == 'torch.load':
                assert any(k.arg == 'weights_only' and ast.unparse(k.value) == 'True' for k in node.keywords)


def test_no_type_bool_in_options():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.keyword) and node.arg == 'type':
                assert ast.unparse(node.value) != 'bool', path
