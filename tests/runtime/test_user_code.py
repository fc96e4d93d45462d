"""Objects out of the user's own files: what they may import and do, and what is said when they fail."""

import sys

import pytest
import torch
from torch import nn

from lib.runtime.user_code import load_model, load_object

NET = """
from torch import nn
LIMIT = 6
def build():
    return nn.Linear(3, 4)
def sized(num_classes=10):
    return nn.Linear(3, num_classes)
def lenient(**options):
    return nn.Linear(3, len(options) + 1)
class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Linear(3, num_classes))
def number():
    return 4
def fails():
    raise KeyError('first line\\nsecond line')
def leaves():
    raise SystemExit(3)
def needs(width):
    return nn.Linear(3, width)
"""


@pytest.fixture
def user(tmp_path, monkeypatch):
    """`user(name, text)`: writes a file into the folder in which the user works; afterwards imports are as before."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)

    def write(name, text=NET):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        return name
    yield write
    assert sys.path == path, 'the search path of imports is as before'
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(('name', 'outputs'), [('build', 4), ('sized', 7), ('lenient', 1), ('Net', 7)])
def test_a_network_gets_the_number_of_classes_if_it_takes_it(user, name, outputs):
    model = load_model(f'{user("net.py")}:{name}', 7)
    assert isinstance(model, nn.Module)
    assert list(model.parameters())[-1].shape == (outputs,)


def test_any_object_and_from_any_folder(user, tmp_path):
    user('deep/net.py')
    assert load_object('deep/net.py:LIMIT', '--x') == 6
    assert load_object(f'{tmp_path}/deep/net.py:LIMIT', '--x') == 6


def test_the_folder_of_the_file_is_searched_first_at_import_and_while_building(user):
    user('deep/neighbour_of_net.py', 'from torch import nn\ndef net(): return nn.Linear(1, 2)\n')
    user('deep/early.py', 'import neighbour_of_net\ndef build(): return neighbour_of_net.net()\n')
    assert load_model('deep/early.py:build', 3).out_features == 2
    del sys.modules['neighbour_of_net']
    user('deep/late.py', 'def build():\n    import neighbour_of_net\n    return neighbour_of_net.net()\n')
    assert load_model('deep/late.py:build', 3).out_features == 2


def test_a_file_with_dataclasses_and_a_name_of_ours(user):
    """Dataclasses look their module up by name; a user's models.py does not replace the models of this repository."""
    import models
    user('models.py', 'from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n'
         '@dataclass\nclass Config:\n    width: int = 5\ndef build(): return nn.Linear(1, Config().width)\n')
    assert load_model('models.py:build', 3).out_features == 5
    assert sys.modules['models'] is models


@pytest.mark.parametrize('setting', [False, True])
def test_nothing_is_left_in_the_users_folder(user, tmp_path, monkeypatch, setting):
    """Whatever the environment says of bytecode; and it says the same afterwards."""
    monkeypatch.setattr(sys, 'dont_write_bytecode', setting)
    monkeypatch.setattr(sys, 'pycache_prefix', None)
    user('deep/first.py', 'VALUE = 3')
    user('deep/second.py', 'from torch import nn\ndef net(): return nn.Linear(1, 2)\n')
    user('deep/net.py', 'import first\ndef build():\n    import second\n    return second.net()\n')
    load_model('deep/net.py:build', 2)
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['deep', 'first.py', 'net.py', 'second.py']
    assert sys.dont_write_bytecode is setting


def test_a_file_that_changes_the_search_path(user):
    user('net.py', 'import sys\nsys.path.pop(0)\n' + NET)
    assert load_model('net.py:build', 3).out_features == 4


def test_two_files_of_one_name(user):
    user('a/net.py', 'VALUE = 1')
    user('b/net.py', 'VALUE = 2')
    assert [load_object(f'{folder}/net.py:VALUE', '--x') for folder in 'aba'] == [1, 2, 1]


@pytest.mark.parametrize(('spec', 'words'), [
    ('net.py', ['expected FILE.py:NAME', 'my_model.py:build']), ('net.py:', ['expected FILE.py:NAME']),
    ('net:build', ['expected FILE.py:NAME']), (':build', ['expected']), ('net.py:1build', ['expected']),
    ('', ['expected']),
    ('net.py:nothing', ['net.py defines no nothing']),
    ('wrong.py:build', ['wrong.py fails with SyntaxError', 'line 1']),
    ('missing.py:build', ['missing.py fails with ModuleNotFoundError', 'no_such_module']),
    ('exits.py:build', ['exits.py fails with SystemExit: 2']),
    ('net.py:fails', ['fails with KeyError', 'first line']), ('net.py:leaves', ['fails with SystemExit: 3']),
    ('net.py:needs', ['fails with TypeError', 'width']), ('net.py:LIMIT', ['TypeError', 'not a callable']),
    ('net.py:number', ['returned a int, expected an nn.Module']),
])
def test_what_cannot_be_used_is_said_in_one_line(user, spec, words):
    user('net.py')
    user('wrong.py', 'def build(:\n')
    user('missing.py', 'import no_such_module\n')
    user('exits.py', 'import sys\nsys.exit(2)\n')
    with pytest.raises(ValueError) as error:
        load_model(spec, 10)
    message = str(error.value)
    assert all(word in message for word in (f'--model_file {spec}', *words)), message
    assert '\n' not in message


def test_a_file_that_is_not_there(user, tmp_path):
    with pytest.raises(FileNotFoundError, match='--model_file nowhere.py:build: there is no file .*nowhere.py'):
        load_model('nowhere.py:build', 10)


def test_wrappers_are_taken_off(user):
    user('wrapped.py', """
from torch import nn
class Compiled(nn.Module):  # a module that torch.compile returns holds the network under this name
    def __init__(self, net):
        super().__init__()
        self._orig_mod = net
def build():
    return Compiled(nn.DataParallel(nn.Linear(3, 4)))
""")
    assert type(load_model('wrapped.py:build', 4)) is nn.Linear


@pytest.mark.parametrize('dtype', ['float64', 'float16', 'bfloat16'])
def test_a_network_in_another_type_is_cast_and_that_is_said(dtype, user, caplog):
    text = ('import torch\nfrom torch import nn\ndef build():\n'
            f'    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).to(torch.{dtype})\n')
    with caplog.at_level('INFO'):
        model = load_model(f'{user("net.py", text)}:build', 4)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert f'the network is in {dtype}; it is cast to float32' in caplog.text


def test_a_file_that_changes_the_default_type_changes_it_for_itself_alone(user):
    text = 'import torch\ntorch.set_default_dtype(torch.float64)\ndef build():\n    return torch.nn.Linear(3, 4)\n'
    model = load_model(f'{user("net.py", text)}:build', 4)
    assert torch.get_default_dtype() == model.weight.dtype == torch.float32
