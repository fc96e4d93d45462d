"""Objects out of the user's own Python files, named as `my_model.py:build`."""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.record.files import is_file

logger = logging.getLogger(__name__)


def load_object(spec: str, option: str) -> Any:
    """Return the object of `FILE.py:NAME`; the file's folder is searched first for what it imports.

    Raises:
        ValueError: not of this form, the file fails, or it has no such name.
    """
    file, _, name = spec.rpartition(':')
    if not file.endswith('.py') or not name.isidentifier():
        raise ValueError(f'{option} {spec}: expected FILE.py:NAME, for example my_model.py:build')
    path = Path(file).absolute()
    if not is_file(path):
        raise FileNotFoundError(f'{option} {spec}: there is no file {path}')
    module_spec = importlib.util.spec_from_file_location(f'_user_{path.stem}', path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # dataclasses look themselves up there
    try:
        with importing_from(path.parent):
            module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f'{option} {spec}: {path.name} fails with {describe_error(error)}') from error
    if not hasattr(module, name):
        raise ValueError(f'{option} {spec}: {path.name} defines no {name}')
    return getattr(module, name)


def load_model(spec: str, num_classes: int) -> nn.Module:
    """Return the network that `FILE.py:build` makes: `build(num_classes=N)` where it takes that, else `build()`.

    It comes without the wrapper of `torch.compile` or `DataParallel`, which would go on with the float layers.

    Raises:
        ValueError: it fails, or returns no `nn.Module`.
    """
    build = load_object(spec, '--model_file')
    try:
        takes_classes = 'num_classes' in inspect.signature(build).parameters
        with importing_from(Path(spec.rpartition(':')[0]).absolute().parent):
            model = build(num_classes=num_classes) if takes_classes else build()
    except (Exception, SystemExit) as error:
        raise ValueError(f'--model_file {spec} fails with {describe_error(error)}') from error
    if not isinstance(model, nn.Module):
        raise ValueError(f'--model_file {spec} returned a {type(model).__name__}, expected an nn.Module')
    return _in_float32(_unwrapped(model), spec)


def _in_float32(model, spec):
    """Return the network in float32, as images and quantizers are; says so if it was in another type."""
    if torch.get_default_dtype() != torch.float32:
        torch.set_default_dtype(torch.float32)  # the user's file may have set another one, for everything
    others = {str(p.dtype).removeprefix('torch.') for p in model.parameters() if p.is_floating_point()} - {'float32'}
    if others:
        logger.info('--model_file %s: the network is in %s; it is cast to float32 (--half computes in mixed precision)',
                    spec, ', '.join(sorted(others)))
        model.float()
    return model


def _unwrapped(model):
    model = model._modules.get('_orig_mod', model)  # of torch.compile
    return _unwrapped(model.module) if isinstance(model, nn.DataParallel) else model


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let imports search this folder first, and leave no `__pycache__` in it: the folder is the user's."""
    sys.path.insert(0, str(folder))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        with suppress(ValueError):  # the user's code may have changed the list itself
            sys.path.remove(str(folder))


def describe_error(error: BaseException) -> str:
    """Return kind and message of an error in one line."""
    return ' '.join(f'{type(error).__name__}: {error}'.split())
