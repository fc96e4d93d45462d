"""Objects out of the user's own Python files, named as `my_model.py:build`."""

import importlib.util
import inspect
import sys
from pathlib import Path

from torch import nn


def load_object(spec, option):
    """Returns the object of `FILE.py:NAME`; the file's folder is searched first for what it imports.

    Args:
        spec: what the user gave.
        option: name of the option, for messages.

    Raises:
        ValueError: not of this form, the file fails, or it has no such name.
        FileNotFoundError: there is no such file.
    """
    file, _, name = spec.rpartition(':')
    if not file.endswith('.py') or not name.isidentifier():
        raise ValueError(f'{option} {spec}: expected FILE.py:NAME, for example my_model.py:build')
    path = Path(file).absolute()
    if not path.is_file():
        raise FileNotFoundError(f'{option} {spec}: there is no file {path}')
    sys.path.insert(0, str(path.parent))
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f'{option} {spec}: {path.name} fails with {type(error).__name__}: {error}') from error
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, name):
        raise ValueError(f'{option} {spec}: {path.name} defines no {name}')
    return getattr(module, name)


def load_model(spec, num_classes):
    """Returns the network that `FILE.py:build` makes: `build(num_classes=N)` where it takes that, else `build()`.

    Raises:
        ValueError: it fails, or returns no `nn.Module`.
    """
    build = load_object(spec, '--model_file')
    try:
        takes_classes = 'num_classes' in inspect.signature(build).parameters
        model = build(num_classes=num_classes) if takes_classes else build()
    except Exception as error:
        raise ValueError(f'--model_file {spec} fails with {type(error).__name__}: {error}') from error
    if not isinstance(model, nn.Module):
        raise ValueError(f'--model_file {spec} returned a {type(model).__name__}, expected an nn.Module')
    return model
