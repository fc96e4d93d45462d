"""What a pickled file may hold, so that it is read without running code from it, and which objects it names.

`torch.load(weights_only=True)` refuses every class it does not know. Arrays and scalars of NumPy are read as they are.
Settings of other trainers are replaced while they are read: dicts become OrderedDicts, all other objects an `Inert`.
Nothing that the file names is imported or called.
"""

import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.'  # the pickled number that torch.save began with before 1.6
LEGACY_PICKLES = 5  # this number, a version, a description of the machine, the value, the keys of its storages
STATE_KEYS = ('state_dict', 'model_state_dict', 'model_state', 'model', 'net', 'network', 'params', 'module', 'weights')
RISKY = re.compile(r'(os|posix|nt|io|_io|sys|subprocess|shutil|socket|urllib|http|tempfile|runpy|importlib|ctypes|'
                   r'pty|code|webbrowser|pickle|multiprocessing|asyncio|commands|timeit|pdb|bdb|cProfile)\.'
                   r'|(builtins\.|__builtin__\.)?(eval|exec|compile|open|__import__|input|breakpoint)$')


class Inert:
    """Placeholder of an object whose content is not needed."""

    def __new__(cls, *_args, **_kwargs):
        return object.__new__(cls)

    def __setstate__(self, _state: Any) -> None:
        """Forget what the object held."""

    def __repr__(self) -> str:
        return '(an object)'


class _Dict:
    """Make an OrderedDict where the file has a dict of another class."""

    def __new__(cls, *_args, **_kwargs):
        return OrderedDict()


class _List:
    """Make a list where the file has a list of another class, or a deque."""

    def __new__(cls, *_args, **_kwargs):
        return []


def _no_bytes() -> bytes:
    return b''


DICTS = (
    'collections.defaultdict', 'easydict.EasyDict', 'yacs.config.CfgNode', 'addict.addict.Dict', 'munch.Munch',
    'mmcv.utils.config.ConfigDict', 'mmengine.config.config.ConfigDict',
    'pytorch_lightning.utilities.parsing.AttributeDict', 'lightning.pytorch.utilities.parsing.AttributeDict',
    'lightning_fabric.utilities.data.AttributeDict', 'lightning.fabric.utilities.data.AttributeDict',
)
OBJECTS = (
    'argparse.Namespace', 'types.SimpleNamespace', 'pathlib.Path', 'pathlib.PosixPath', 'pathlib.WindowsPath',
    'pathlib.PurePath', 'pathlib.PurePosixPath', 'pathlib.PureWindowsPath', 'pathlib._local.Path',
    'pathlib._local.PosixPath', 'pathlib._local.WindowsPath', 'pathlib._local.PurePosixPath',
    'pathlib._local.PureWindowsPath', 'datetime.datetime', 'datetime.date', 'datetime.time', 'datetime.timedelta',
    'datetime.timezone', 'zoneinfo.ZoneInfo._unpickle', 'time.struct_time', 'decimal.Decimal', 'fractions.Fraction',
    'uuid.UUID', 'uuid.SafeUUID', 're._compile', 'builtins.range', 'builtins.slice', 'builtins.object',
    'builtins.list', 'builtins.dict', 'builtins.tuple', 'builtins.int', 'builtins.float', 'builtins.str',
    'builtins.bool', 'builtins.type', 'typing.Any', 'torch.torch_version.TorchVersion',
    'torchvision.transforms.functional.InterpolationMode', 'omegaconf.dictconfig.DictConfig',
    'omegaconf.listconfig.ListConfig', 'omegaconf.base.ContainerMetadata', 'omegaconf.base.Metadata',
    'omegaconf.nodes.AnyNode', 'omegaconf.nodes.IntegerNode', 'omegaconf.nodes.FloatNode',
    'omegaconf.nodes.StringNode', 'omegaconf.nodes.BooleanNode',
)


def safe_types() -> list[tuple[Callable, str]]:
    """Return (what is called instead, name in the file) of everything allowed beyond torch's own list."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    numpy = {np.ndarray: ['numpy.ndarray'], np.dtype: ['numpy.dtype'],
             scalar: ['numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar'],
             array: ['numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct']}
    kinds = '? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 S1 U1 M8 m8 O'
    numpy |= {type(np.dtype(kind)): [f'numpy.dtype[{kind}]'] for kind in kinds.split()}
    own = {_Dict: DICTS, Inert: OBJECTS, _List: ['collections.deque'], frozenset: ['builtins.frozenset'],
           _no_bytes: ['builtins.bytes']}
    return [(function, name) for function, names in {**numpy, **own}.items() for name in names]


class PickledNames(NamedTuple):
    """The classes and functions that a pickle names, in its order; its texts; the highest protocol that it claims."""

    objects: list[str]
    texts: list[str]
    protocol: int

    def obstacle(self, path: Path, error: str, *, by_pickle: bool = False) -> str | None:
        """Return what keeps a file from being read without running code, as a predicate, and what to do; None: nothing.

        Args:
            error: what `torch.load(weights_only=True)` said, to tell which object it refused.
            by_pickle: it was written by pickle.dump.
        """
        if risky := next(filter(RISKY.match, self.objects), None):
            return f'calls {risky} when it is unpickled: it is made to do harm; delete it'
        load = 'pickle.load' if by_pickle else 'torch.load'
        if any(name.startswith(('torch.nn.modules.', 'torch.fx.', 'torch.nn.parallel.')) for name in self.objects):
            return resave('a whole pickled network, code as well as weights', path, 'network', load,
                          'network.state_dict()')
        refused = re.search(r'GLOBAL (\S+)', error)
        found = f"a pickle with {refused[1]} in it, which only its author's code can read" if refused else \
            'written by pickle, not by torch.save' if by_pickle else \
            f'saved with pickle protocol {self.protocol}, which cannot be read safely' if self.protocol > 2 else \
            'a pickle of objects that cannot be read safely' if 'Can only' in error else None
        key = next((key for key in STATE_KEYS if key in self.texts), None)
        return found and resave(found, path, 'saved', load, f'saved[{key!r}]' if key else 'saved')


def resave(found: str, path: Path, name: str, load: str, weights: str) -> str:
    """Return a predicate that says what a file is, with two lines of Python that save its weights alone."""
    file, target = str(path), f'{path.stem}_weights.pth'
    opened = {'torch.jit.load': f"torch.jit.load({file!r}, map_location='cpu')",
              'torch.load': f"torch.load({file!r}, map_location='cpu', weights_only=False)",
              'pickle.load': f"pickle.load(open({file!r}, 'rb'))"}[load]
    return (f'is {found}. If you trust it, save its weights by themselves, with two lines of Python, and give those:\n'
            f'import {"pickle, " if load == "pickle.load" else ""}torch; {name} = {opened}\n'
            f'torch.save({weights}, {target!r})')


def pickled_names(path: Path) -> PickledNames:
    """Return the names in a file of torch.save or pickle.dump, as far as it can be followed."""
    objects, texts, protocol = [], [], 0
    with open(path, 'rb') as file:
        legacy = file.read(len(LEGACY)) == LEGACY
    with _stream(path) as stream:
        try:
            for _ in range(LEGACY_PICKLES if legacy else 1):
                for opcode, argument, _ in pickletools.genops(stream):
                    if opcode.name == 'PROTO':
                        protocol = max(protocol, argument)
                    elif opcode.name == 'GLOBAL':
                        objects.append(argument.replace(' ', '.'))
                    elif opcode.name == 'STACK_GLOBAL':
                        objects.append('.'.join(texts[-2:]))
                    elif isinstance(argument, str):
                        texts.append(argument)
        except Exception:  # noqa: S110 - what was found before the damage is enough
            pass
    return PickledNames(objects, texts, protocol)


def _stream(path: Path):
    if not zipfile.is_zipfile(path):
        return open(path, 'rb')
    archive = zipfile.ZipFile(path)
    return archive.open(next(name for name in archive.namelist() if name.endswith('/data.pkl')))
